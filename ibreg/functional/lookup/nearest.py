"""Nearest keys in codebooks, without a tensor of all distances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ibreg.precision import full_precision, promoted_dtype
from ibreg.tracing import inside_transformation

Nearest = tuple[Tensor, Tensor]  # distances, or scores that order keys alike, and indices; smallest first

KEYS_AT_ONCE = 4096
KEYS_WHILE_TRACING = 512  # with all rows and codebooks
ROWS_AT_ONCE = 256
TILE = 2**22  # distances at once, 16 MB: fewer stay in the cache until their minimum is found, but cost more calls
ALIGNMENT = 16  # a matrix product rounds its last columns differently: with a multiple of this, equal keys are ties


def nearest(queries: Tensor, keys: Tensor, *, top_k: int = 1, usable: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Finds the nearest keys of each query in each codebook.

    .. math:: \operatorname{arg\,min}_j |u_{cn} - k_{cj}|^2

    Ties are resolved to the lowest index. Distances are computed from matrix products, with an error of about 1e-6 of
    the squared extent of the keys: where keys form clusters a hundred times further apart than wide, search each
    cluster alone, or in float64. The distances of all keys never exist at once; only `torch.compile` and `torch.export`
    process all rows together, in chunks of 512 keys.

    Args:
        queries: `(codebooks, rows, dim)`.
        keys: `(codebooks, keys, dim)`.
        top_k: number of keys to find.
        usable: `(codebooks, keys)`, False for keys that are never found; None: all are usable.

    Returns:
        squared distances and indices, `(codebooks, rows, top_k)`, nearest first, without gradient. Where a codebook has
        fewer usable keys than `top_k`, the remaining distances are infinite and their indices are meaningless.

    Raises:
        ValueError: If shapes do not fit, or `top_k` exceeds the number of keys.

    Example:
        >>> keys = torch.tensor([[[0.0], [1.0], [1.0], [4.0]]])
        >>> nearest(torch.tensor([[[0.9], [9.0]]]), keys)[1].squeeze(-1)
        tensor([[1, 3]])
    """
    _check_keys(queries, keys, top_k, usable)
    with full_precision(queries), torch.no_grad():
        queries, keys = promote(queries, keys)
        origin = rounded_mean(keys)
        centered_queries, centered_keys = queries - origin, keys - origin
        norms = squared_norms(centered_keys, usable)
        step = KEYS_WHILE_TRACING if torch.compiler.is_compiling() else KEYS_AT_ONCE

        def search(books: slice, rows: slice) -> Nearest:
            best = None
            for start in range(0, keys.shape[1], step):
                chunk = slice(start, start + step)
                scores = scores_of(centered_queries[books, rows], centered_keys[books, chunk], norms[books, chunk])
                best = merge(best, scores, start, top_k)
            assert best is not None  # there is at least one key
            return best

        scores, indices = search_in_blocks(search, queries.shape[0], queries.shape[1], min(keys.shape[1], step))
        return squared_distances_to(queries, keys, indices).where(scores < torch.inf, torch.inf), indices


def squared_distances_to(queries: Tensor, keys: Tensor, indices: Tensor) -> Tensor:
    """Returns the squared distances of queries to chosen keys, with gradient to the queries.

    Args:
        queries: `(codebooks, rows, dim)`.
        keys: `(codebooks, keys, dim)`.
        indices: of the chosen keys, `(codebooks, rows, count)`.

    Shapes:
        the result is `(codebooks, rows, count)`.

    Example:
        >>> keys = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
        >>> squared_distances_to(torch.zeros(1, 1, 2), keys, torch.tensor([[[1, 0]]]))
        tensor([[[25.,  0.]]])
    """
    return (queries.unsqueeze(2) - pick_rows(keys, indices)).square().sum(-1)


def pick_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Returns the rows `(codebooks, n, dim)` at indices `(codebooks, *shape)`, as `(codebooks, *shape, dim)`."""
    codebooks, count, features = rows.shape
    first = count * torch.arange(codebooks, device=indices.device).reshape(-1, *[1] * (indices.dim() - 1))
    return F.embedding(indices + first, rows.reshape(-1, features))


def search_in_blocks(search: Callable[[slice, slice], Nearest], codebooks: int, rows: int, keys: int) -> Nearest:
    """Runs a search for blocks of codebooks and rows, and concatenates the results.

    Args:
        search: finds the nearest keys for a slice of the codebooks and a slice of the rows.
        codebooks: number of codebooks.
        rows: number of rows.
        keys: number of keys that the search compares with a row at once, which decides how many codebooks a block has.
    """
    if torch.compiler.is_compiling():
        return search(slice(None), slice(None))
    books_at_once = max(1, TILE // (keys * max(1, min(rows, ROWS_AT_ONCE))))
    results = []
    for book in range(0, codebooks, books_at_once):
        books = slice(book, book + books_at_once)
        blocks = [search(books, slice(row, row + ROWS_AT_ONCE)) for row in range(0, max(rows, 1), ROWS_AT_ONCE)]
        results.append([torch.cat(tensors, 1) for tensors in zip(*blocks, strict=True)])
    values, indices = (torch.cat(tensors) for tensors in zip(*results, strict=True))
    return values, indices


def merge(best: Nearest | None, scores: Tensor, start: int, count: int) -> Nearest:
    """Merges the best keys so far with those of the next chunk.

    Args:
        best: the result for the keys before the chunk; None for the first chunk.
        scores: of the keys of the chunk; they may be overwritten.
        start: index of the first key of the chunk.
        count: number of keys to find.
    """
    values, indices = smallest(scores, min(count, scores.shape[-1]))
    if best is not None:
        values = torch.cat([best[0], values], -1)  # the best so far have lower indices, so they win ties
        indices = torch.cat([best[1], indices + start], -1)
        values, order = smallest(values, min(count, values.shape[-1]))
        indices = indices.gather(-1, order)
    return values, indices


def smallest(scores: Tensor, count: int) -> Nearest:
    """Returns the smallest values of the last axis and their indices; may overwrite its input.

    Unlike in `torch.topk`, equal values are in the order of their indices.
    """
    if count == 1:
        values, indices = scores.min(-1, keepdim=True)
        return values, indices
    if count > 8:
        values, indices = scores.sort(dim=-1, stable=True)
        return values[..., :count], indices[..., :count]
    minima = [scores.min(-1, keepdim=True)]
    # A copy of all scores would take as long as their minimum, but vmap has no rule for the in-place operation.
    cross_out = Tensor.scatter if inside_transformation(scores) else Tensor.scatter_
    for _ in range(count - 1):
        scores = cross_out(scores, -1, minima[-1].indices, torch.inf)
        minima.append(scores.min(-1, keepdim=True))
    return torch.cat([minimum.values for minimum in minima], -1), torch.cat([minimum.indices for minimum in minima], -1)


def rounded_mean(keys: Tensor) -> Tensor:
    """Returns the mean of keys, an origin near which the expanded square of a difference is accurate.

    It is rounded to bfloat16, so that distances that are equal stay equal where keys are small integers.
    """
    return keys.mean(-2, keepdim=True).bfloat16().to(keys.dtype)


def squared_norms(keys: Tensor, usable: Tensor | None = None) -> Tensor:
    """Returns the squared norms of keys `(..., keys, dim)`, infinite for keys that are not usable."""
    norms = keys.square().sum(-1)
    return norms if usable is None else norms.where(usable, torch.inf)


def scores_of(queries: Tensor, keys: Tensor, norms: Tensor) -> Tensor:
    """Returns |k|^2 - 2 <q, k>, the squared distances minus |q|^2, as `(codebooks, rows, keys)`.

    The keys are padded to a multiple of `ALIGNMENT`; the scores of the padding are infinite.
    """
    missing = -keys.shape[1] % ALIGNMENT
    if missing:
        keys, norms = F.pad(keys, (0, 0, 0, missing)), F.pad(norms, (0, missing), value=torch.inf)
    return torch.baddbmm(norms.unsqueeze(1), queries, keys.mT, alpha=-2)


def promote(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in the wider of their dtypes, at least float32."""
    dtype = promoted_dtype(queries.dtype, keys.dtype)
    return queries.to(dtype), keys.to(dtype)


def _check_keys(queries: Tensor, keys: Tensor, top_k: int, usable: Tensor | None) -> None:
    if queries.dim() != 3 or keys.dim() != 3 or queries.shape[::2] != keys.shape[::2]:
        raise ValueError(
            "queries must be (codebooks, rows, dim) and keys (codebooks, keys, dim), got "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        )
    if not 1 <= top_k <= keys.shape[1]:
        raise ValueError(f"top_k must be from 1 to the {keys.shape[1]} keys of a codebook, got {top_k}")
    if usable is not None and usable.shape != keys.shape[:2]:
        raise ValueError(f"usable must be (codebooks, keys) {tuple(keys.shape[:2])}, got {tuple(usable.shape)}")
