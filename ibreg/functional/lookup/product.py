"""Nearest product keys: keys that are all pairs of sub-keys, of which there are far fewer than pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ibreg.functional.lookup.nearest import (
    TILE,
    Nearest,
    merge,
    nearest,
    promote,
    rounded_mean,
    scores_of,
    search_in_blocks,
    smallest,
    squared_distances_to,
    squared_norms,
)
from ibreg.precision import full_precision

FIRST_WIDTH = 4  # number of nearest sub-keys of each half in the first search, where some pairs are not usable
PAIRS_AT_ONCE = 1024
FEW = 0.1  # up to this fraction of all pairs, usable ones are searched one by one

Usable = Callable[[Tensor], Tensor]  # from indices of pairs to whether they are usable


def product_nearest(
    queries: Tensor, sub_keys: Tensor, *, top_k: int = 1, usable: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Finds the nearest of all pairs of sub-keys, exactly, from the distances of the halves.

    .. math:: |u - [a_i; b_j]|^2 = |u_1 - a_i|^2 + |u_2 - b_j|^2

    Pair (i, j) has the index i * size + j; ties are resolved to the lowest. A search of size^2 keys so costs one of
    2 * size (Lample et al. 2019, arXiv 1907.05242). Where some pairs are not usable, more and more of the nearest
    sub-keys are combined, until no other pair can be nearer; where few pairs are usable, these are searched one by one.
    Both depend on values, so `torch.compile` and `torch.export` search all pairs instead.

    Args:
        queries: `(codebooks, rows, dim)`, dim even.
        sub_keys: `(codebooks, 2, size, dim / 2)`.
        top_k: number of pairs to find, at most size^2.
        usable: `(codebooks, size^2)`, False for pairs that are never found; None: all are usable.

    Returns:
        as `nearest`: squared distances and indices, `(codebooks, rows, top_k)`, nearest first.

    Raises:
        ValueError: If shapes do not fit, or `top_k` exceeds the number of pairs.

    Example:
        >>> sub_keys = torch.tensor([[[[0.0], [1.0]], [[0.0], [1.0]]]])
        >>> product_nearest(torch.tensor([[[0.9, 0.2]]]), sub_keys)[1]
        tensor([[[2]]])
    """
    _check_sub_keys(queries, sub_keys, top_k, usable)
    codebooks, _, size, _ = sub_keys.shape
    tracing = torch.compiler.is_compiling()
    if usable is not None and not tracing:
        most = int(usable.sum(1).max())
        if most == size**2 and bool(usable.all()):
            usable = None
        elif top_k <= most <= FEW * size**2:
            return _among_few(queries, sub_keys, top_k, usable, most)
    with full_precision(queries), torch.no_grad():
        queries, sub_keys = promote(queries, sub_keys)
        halves = queries.unflatten(-1, (2, -1)).movedim(2, 1)
        origin = rounded_mean(sub_keys)
        centered_queries, centered_keys = halves - origin, sub_keys - origin
        norms = squared_norms(centered_keys)

        def search(books: slice, rows: slice) -> Nearest:
            first, second = (
                scores_of(centered_queries[books, half, rows], centered_keys[books, half], norms[books, half])
                for half in (0, 1)
            )
            first, second = first[..., :size], second[..., :size]
            if usable is None:
                width = min(top_k, size)
                return _combine(smallest(first, width), smallest(second, width), size, top_k)
            return (_among_all if tracing else _among_nearest)(first, second, usable[books], top_k)

        scores, indices = search_in_blocks(search, codebooks, queries.shape[1], size)
        first, second = (
            squared_distances_to(halves[:, half], sub_keys[:, half], half_indices)
            for half, half_indices in enumerate((indices // size, indices % size))
        )
        return (first + second).where(scores < torch.inf, torch.inf), indices


def _among_few(queries: Tensor, sub_keys: Tensor, top_k: int, usable: Tensor, most: int) -> Nearest:
    """Searches the usable pairs, at most `most` in each codebook, as keys of their own."""
    codebooks, _, size, _ = sub_keys.shape
    book, pair = usable.nonzero(as_tuple=True)
    counts = usable.sum(1)
    column = torch.arange(len(pair), device=pair.device) - (counts.cumsum(0) - counts)[book]
    pairs = pair.new_zeros(codebooks, most).index_put_((book, column), pair)  # the usable pairs, then padding
    filled = torch.arange(most, device=pair.device) < counts.unsqueeze(1)
    books = torch.arange(codebooks, device=pair.device).unsqueeze(1)
    keys = torch.cat([sub_keys[books, 0, pairs // size], sub_keys[books, 1, pairs % size]], -1)
    distances, columns = nearest(queries, keys, top_k=top_k, usable=filled)
    return distances, pairs[books.unsqueeze(-1), columns]


def _combine(first: Nearest, second: Nearest, size: int, top_k: int, usable: Usable | None = None) -> Nearest:
    """Returns the nearest pairs of some sub-keys of the first half with some of the second."""
    pairs = (first[1].unsqueeze(-1) * size + second[1].unsqueeze(-2)).flatten(-2)
    sums = (first[0].unsqueeze(-1) + second[0].unsqueeze(-2)).flatten(-2)
    pairs, order = pairs.sort(-1)  # ties are resolved to the lowest index
    sums = sums.gather(-1, order)
    if usable is not None:
        sums = sums.where(usable(pairs), torch.inf)
    sums, order = smallest(sums, top_k)
    return sums, pairs.gather(-1, order)


def _among_nearest(first: Tensor, second: Tensor, usable: Tensor, top_k: int) -> Nearest:
    """Returns the nearest usable pairs: of each row's `width` nearest sub-keys, then of more, until no other is nearer.

    A pair with a sub-key that is not among the nearest is at least as far as the next sub-key of one half with the
    nearest of the other. Rows whose `top_k` pairs are all nearer than that are done.
    """
    shape, size = first.shape[:2], first.shape[-1]
    first, second = first.flatten(0, 1), second.flatten(0, 1)
    book = torch.arange(shape[0], device=first.device).repeat_interleave(shape[1])
    values = first.new_empty(len(first), top_k)
    indices = values.new_empty(values.shape, dtype=torch.int64)
    undecided, width = torch.arange(len(first), device=first.device), max(FIRST_WIDTH, top_k)
    while width < size and len(undecided):
        remaining = []
        for rows in undecided.split(max(1, TILE // width**2)):
            (a, a_indices), (b, b_indices) = smallest(first[rows], width + 1), smallest(second[rows], width + 1)
            near = (a[:, :-1], a_indices[:, :-1]), (b[:, :-1], b_indices[:, :-1])
            owner = book[rows].unsqueeze(1)
            values[rows], indices[rows] = _combine(*near, size, top_k, lambda pairs, owner=owner: usable[owner, pairs])
            bound = torch.minimum(a[:, -1] + b[:, 0], a[:, 0] + b[:, -1])
            remaining.append(rows[~(values[rows, -1] < bound)])
        undecided, width = torch.cat(remaining), 4 * width
    for rows in undecided.split(max(1, TILE // size**2)):
        best = _among_all(first[rows].unsqueeze(1), second[rows].unsqueeze(1), usable[book[rows]], top_k)
        values[rows], indices[rows] = (tensor.squeeze(1) for tensor in best)
    return values.unflatten(0, shape), indices.unflatten(0, shape)


def _among_all(first: Tensor, second: Tensor, usable: Tensor, top_k: int) -> Nearest:
    """Returns the nearest usable pairs from the sums of all pairs, chunk by chunk."""
    size, best = first.shape[-1], None
    step = max(1, PAIRS_AT_ONCE // size)
    for start in range(0, size, step):
        sums = (first[..., start : start + step].unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)
        usable_chunk = usable[:, start * size : (start + step) * size].unsqueeze(1)
        best = merge(best, sums.where(usable_chunk, torch.inf), start * size, top_k)
    assert best is not None  # there is at least one sub-key
    return best


def _check_sub_keys(queries: Tensor, sub_keys: Tensor, top_k: int, usable: Tensor | None) -> None:
    if (
        queries.dim() != 3
        or sub_keys.dim() != 4
        or sub_keys.shape[1] != 2
        or (queries.shape[0], queries.shape[2]) != (sub_keys.shape[0], 2 * sub_keys.shape[3])
    ):
        raise ValueError(
            "queries must be (codebooks, rows, dim) and sub-keys (codebooks, 2, size, dim / 2), got "
            f"{tuple(queries.shape)} and {tuple(sub_keys.shape)}"
        )
    pairs = sub_keys.shape[2] ** 2
    if not 1 <= top_k <= pairs:
        raise ValueError(f"top_k must be from 1 to the {pairs} pairs of sub-keys of a codebook, got {top_k}")
    if usable is not None and usable.shape != (sub_keys.shape[0], pairs):
        raise ValueError(f"usable must be (codebooks, pairs) {(sub_keys.shape[0], pairs)}, got {tuple(usable.shape)}")
