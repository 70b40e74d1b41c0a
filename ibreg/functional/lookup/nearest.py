"""Nearest keys of many codebooks, without a tensor of all distances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ibreg.precision import full_precision, promoted_dtype
from ibreg.tracing import inside_transformation

KEYS_AT_ONCE = 4096
KEYS_WHILE_TRACING = 512  # with all rows and codebooks
ROWS_AT_ONCE = 256
TILE = 2**22  # distances at once, 16 MB: fewer stay in the cache until their minimum is found, but cost more calls
WIDTH = 16  # a product of matrices rounds its last columns otherwise: with a multiple of this, equal keys are ties


def nearest(queries: Tensor, keys: Tensor, *, top_k: int = 1, usable: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Finds the nearest keys of each query in each codebook.

    .. math:: \operatorname{arg\,min}_j |u_{cn} - k_{cj}|^2

    Ties go to the lowest index. Distances are told apart to about 1e-6 of the squared extent of the keys, as they come
    from products: where keys lie in groups that are a hundred times further apart than wide, search them group by
    group, or in float64. The distances of all keys never exist at once; only under `torch.compile` and
    `torch.export` all rows are visited together, in chunks of 512 keys.

    Args:
        queries: `(codebooks, rows, dim)`.
        keys: `(codebooks, keys, dim)`.
        top_k: how many to find.
        usable: `(codebooks, keys)`, False for keys that are never found; None: all.

    Returns:
        squared distances and indices, `(codebooks, rows, top_k)`, nearest first, without gradient. Where a codebook has
        fewer usable keys the distance is infinite, and the index means nothing.

    Raises:
        ValueError: shapes that do not fit, `top_k` above the number of keys.

    Example:
        >>> keys = torch.tensor([[[0.0], [1.0], [1.0], [4.0]]])
        >>> nearest(torch.tensor([[[0.9], [9.0]]]), keys)[1].squeeze(-1)
        tensor([[1, 3]])
    """
    _check(queries, keys, top_k, usable)
    with full_precision(queries), torch.no_grad():
        queries, keys = promoted(queries, keys)
        origin = origin_of(keys)
        centered, near = queries - origin, keys - origin
        squares = squared_lengths(near, usable)
        step = KEYS_WHILE_TRACING if torch.compiler.is_compiling() else KEYS_AT_ONCE

        def find(books: slice, rows: slice) -> tuple[Tensor, Tensor]:
            best = None
            for start in range(0, near.shape[1], step):
                chunk = slice(start, start + step)
                scores = scores_of(centered[books, rows], near[books, chunk], squares[books, chunk])
                best = merged(best, scores, start, top_k)
            return best

        scores, indices = in_parts(find, *queries.shape[:2], min(keys.shape[1], step))
        return squared_distances_to(queries, keys, indices).where(scores < torch.inf, torch.inf), indices


def squared_distances_to(queries: Tensor, keys: Tensor, indices: Tensor) -> Tensor:
    """Returns the squared distances of queries to keys that were found, with gradient to the queries.

    Args:
        queries: `(codebooks, rows, dim)`.
        keys: `(codebooks, keys, dim)`.
        indices: `(codebooks, rows, found)`.

    Shapes:
        the result is `(codebooks, rows, found)`.

    Example:
        >>> keys = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
        >>> squared_distances_to(torch.zeros(1, 1, 2), keys, torch.tensor([[[1, 0]]]))
        tensor([[[25.,  0.]]])
    """
    return (queries.unsqueeze(2) - picked(keys, indices)).square().sum(-1)


def picked(rows: Tensor, indices: Tensor) -> Tensor:
    """Returns the rows `(codebooks, n, dim)` at indices `(codebooks, *shape)`, as `(codebooks, *shape, dim)`."""
    codebooks, count, features = rows.shape
    first = count * torch.arange(codebooks, device=indices.device).reshape(-1, *[1] * (indices.dim() - 1))
    return F.embedding(indices + first, rows.reshape(-1, features))


def in_parts(
    find: Callable[[slice, slice], tuple[Tensor, Tensor]], codebooks: int, rows: int, keys: int
) -> tuple[Tensor, Tensor]:
    """Finds keys for blocks of codebooks and rows that meet `keys` keys at once, and returns what was found as one."""
    if torch.compiler.is_compiling():
        return find(slice(None), slice(None))
    books_at_once = max(1, TILE // (keys * max(1, min(rows, ROWS_AT_ONCE))))
    found = []
    for book in range(0, codebooks, books_at_once):
        books = slice(book, book + books_at_once)
        blocks = [find(books, slice(row, row + ROWS_AT_ONCE)) for row in range(0, max(rows, 1), ROWS_AT_ONCE)]
        found.append([torch.cat(tensors, 1) for tensors in zip(*blocks, strict=True)])
    values, indices = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    return values, indices


def merged(best: tuple[Tensor, Tensor] | None, scores: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Returns the smallest scores and their indices of those before and a chunk whose first index is `start`."""
    values, indices = smallest(scores, min(count, scores.shape[-1]))
    if best is not None:
        values = torch.cat([best[0], values], -1)  # those before have the lower indices, so they win ties
        indices = torch.cat([best[1], indices + start], -1)
        values, order = smallest(values, min(count, values.shape[-1]))
        indices = indices.gather(-1, order)
    return values, indices


def smallest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the smallest values of the last axis and their positions, and overwrites what it was given.

    Unlike with topk, the first of equal ones comes first.
    """
    if count == 1:
        return scores.min(-1, keepdim=True)
    if count > 8:
        values, positions = scores.sort(dim=-1, stable=True)
        return values[..., :count], positions[..., :count]
    found = []
    # A copy of all scores would take as long as their minimum, but vmap has no rule for the operation in place.
    cross_out = Tensor.scatter if inside_transformation(scores) else Tensor.scatter_
    for _ in range(count):
        if found:
            scores = cross_out(scores, -1, found[-1].indices, torch.inf)
        found.append(scores.min(-1, keepdim=True))
    return torch.cat([each.values for each in found], -1), torch.cat([each.indices for each in found], -1)


def origin_of(keys: Tensor) -> Tensor:
    """Returns what to take for the origin of keys and queries: near the keys, where the expanded square is exact.

    With few digits, so that equal distances stay equal where keys are small integers.
    """
    return keys.mean(-2, keepdim=True).bfloat16().to(keys.dtype)


def squared_lengths(keys: Tensor, usable: Tensor | None = None) -> Tensor:
    """Returns the squared lengths of keys `(..., keys, dim)`, infinite where a key may not be found."""
    squares = keys.square().sum(-1)
    return squares if usable is None else squares.where(usable, torch.inf)


def scores_of(queries: Tensor, keys: Tensor, squares: Tensor) -> Tensor:
    """Returns squared distances less what is the same for all keys, `(codebooks, rows, keys or more)`."""
    missing = -keys.shape[1] % WIDTH
    if missing:
        keys, squares = F.pad(keys, (0, 0, 0, missing)), F.pad(squares, (0, missing), value=torch.inf)
    return torch.baddbmm(squares.unsqueeze(1), queries, keys.mT, alpha=-2)


def promoted(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in the wider of their dtypes, at least float32."""
    dtype = promoted_dtype(queries.dtype, keys.dtype)
    return queries.to(dtype), keys.to(dtype)


def _check(queries: Tensor, keys: Tensor, top_k: int, usable: Tensor | None) -> None:
    if queries.dim() != 3 or keys.dim() != 3 or queries.shape[::2] != keys.shape[::2]:
        raise ValueError(
            "queries are (codebooks, rows, dim) and keys (codebooks, keys, dim), got "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if not 1 <= top_k <= keys.shape[1]:
        raise ValueError(f"top_k is from 1 to the {keys.shape[1]} keys of a codebook, got {top_k}")
    if usable is not None and usable.shape != keys.shape[:2]:
        raise ValueError(f"usable is (codebooks, keys) {tuple(keys.shape[:2])}, got {tuple(usable.shape)}")
