"""Nearest keys among all pairs of sub-keys, of which there are far fewer than pairs (product keys)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ibreg.functional.lookup.nearest import (
    TILE,
    in_parts,
    merged,
    nearest,
    origin_of,
    promoted,
    scores_of,
    smallest,
    squared_distances_to,
    squared_lengths,
)
from ibreg.precision import full_precision

WIDTH = 4  # how many of the nearest sub-keys are looked at first, where some pairs are not usable
PAIRS_AT_ONCE = 1024
FEW = 0.1  # up to this share of all pairs, usable ones are searched one by one

Found = tuple[Tensor, Tensor]  # values and indices, smallest first
Free = Callable[[Tensor], Tensor]  # from pairs to whether they are usable


def product_nearest(
    queries: Tensor, sub_keys: Tensor, *, top_k: int = 1, usable: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Finds the nearest of all pairs of sub-keys, exactly, from the distances of the halves.

    .. math:: |u - [a_i; b_j]|^2 = |u_1 - a_i|^2 + |u_2 - b_j|^2

    Pair (i, j) has the index i * size + j; ties go to the lowest. So size^2 keys cost the search of 2 * size (Lample et
    al. 2019, arXiv 1907.05242). Where pairs are not usable, more and more of the nearest sub-keys are looked at, until
    no pair beyond them can be nearer, or, where few pairs are usable, these are searched one by one; both read values,
    so `torch.compile` and `torch.export` visit all pairs instead.

    Args:
        queries: `(codebooks, rows, dim)`, dim even.
        sub_keys: `(codebooks, 2, size, dim / 2)`.
        top_k: how many to find, at most size^2.
        usable: `(codebooks, size^2)`, False for pairs that are never found; None: all.

    Returns:
        as `nearest`: squared distances and indices, `(codebooks, rows, top_k)`, nearest first.

    Raises:
        ValueError: shapes that do not fit, `top_k` above the number of pairs.

    Example:
        >>> sub_keys = torch.tensor([[[[0.0], [1.0]], [[0.0], [1.0]]]])
        >>> product_nearest(torch.tensor([[[0.9, 0.2]]]), sub_keys)[1]
        tensor([[[2]]])
    """
    _check(queries, sub_keys, top_k, usable)
    codebooks, _, size, _ = sub_keys.shape
    tracing = torch.compiler.is_compiling()
    if usable is not None and not tracing:
        most = int(usable.sum(1).max())
        if most == size**2 and bool(usable.all()):
            usable = None
        elif top_k <= most <= FEW * size**2:
            return _of_few(queries, sub_keys, top_k, usable, most)
    with full_precision(queries), torch.no_grad():
        queries, sub_keys = promoted(queries, sub_keys)
        halves = queries.unflatten(-1, (2, -1)).movedim(2, 1)
        origin = origin_of(sub_keys)
        centered, near = halves - origin, sub_keys - origin
        squares = squared_lengths(near)

        def find(books: slice, rows: slice) -> tuple[Tensor, Tensor]:
            first, second = (
                scores_of(centered[books, half, rows], near[books, half], squares[books, half])[..., :size]
                for half in (0, 1)
            )
            if usable is None:
                width = min(top_k, size)
                return _of_box(smallest(first, width), smallest(second, width), size, top_k)
            return (_of_all if tracing else _of_growing_boxes)(first, second, usable[books], top_k)

        scores, indices = in_parts(find, codebooks, queries.shape[1], size)
        first, second = (
            squared_distances_to(halves[:, half], sub_keys[:, half], found)
            for half, found in enumerate((indices // size, indices % size))
        )
        return (first + second).where(scores < torch.inf, torch.inf), indices


def _of_few(queries: Tensor, sub_keys: Tensor, top_k: int, usable: Tensor, most: int) -> Found:
    """Returns the best of the usable pairs, of which a codebook has so many at most, as keys of their own."""
    codebooks, _, size, _ = sub_keys.shape
    book, pair = usable.nonzero(as_tuple=True)
    counts = usable.sum(1)
    place = torch.arange(len(pair), device=pair.device) - (counts.cumsum(0) - counts)[book]
    pairs = pair.new_zeros(codebooks, most).index_put_((book, place), pair)
    there = torch.arange(most, device=pair.device) < counts.unsqueeze(1)
    books = torch.arange(codebooks, device=pair.device).unsqueeze(1)
    keys = torch.cat([sub_keys[books, 0, pairs // size], sub_keys[books, 1, pairs % size]], -1)
    distances, found = nearest(queries, keys, top_k=top_k, usable=there)
    return distances, pairs[books.unsqueeze(-1), found]


def _of_box(first: Found, second: Found, size: int, top_k: int, free: Free | None = None) -> Found:
    """Returns the best pairs of some sub-keys of the first half with some of the second."""
    pairs = (first[1].unsqueeze(-1) * size + second[1].unsqueeze(-2)).flatten(-2)
    sums = (first[0].unsqueeze(-1) + second[0].unsqueeze(-2)).flatten(-2)
    pairs, order = pairs.sort(-1)  # of equal pairs the first will be taken
    sums = sums.gather(-1, order)
    if free is not None:
        sums = sums.where(free(pairs), torch.inf)
    sums, order = smallest(sums, top_k)
    return sums, pairs.gather(-1, order)


def _of_growing_boxes(first: Tensor, second: Tensor, usable: Tensor, top_k: int) -> Found:
    """Returns the best usable pairs: for each row among its nearest sub-keys, of which there are more and more."""
    shape, size = first.shape[:2], first.shape[-1]
    first, second = first.flatten(0, 1), second.flatten(0, 1)
    book = torch.arange(shape[0], device=first.device).repeat_interleave(shape[1])
    values = first.new_empty(len(first), top_k)
    indices = values.new_empty(values.shape, dtype=torch.int64)
    left, width = torch.arange(len(first), device=first.device), max(WIDTH, top_k)
    while width < size and len(left):
        unsure = []
        for rows in left.split(max(1, TILE // width**2)):
            here, there = smallest(first[rows], width + 1), smallest(second[rows], width + 1)
            boxes = ((found[0][:, :-1], found[1][:, :-1]) for found in (here, there))
            owner = book[rows].unsqueeze(1)
            values[rows], indices[rows] = _of_box(*boxes, size, top_k, lambda pairs, owner=owner: usable[owner, pairs])
            outside = torch.minimum(here[0][:, -1] + there[0][:, 0], here[0][:, 0] + there[0][:, -1])
            unsure.append(rows[~(values[rows, -1] < outside)])
        left, width = torch.cat(unsure), 4 * width
    for rows in left.split(max(1, TILE // size**2)):
        best = _of_all(first[rows].unsqueeze(1), second[rows].unsqueeze(1), usable[book[rows]], top_k)
        values[rows], indices[rows] = (tensor.squeeze(1) for tensor in best)
    return values.unflatten(0, shape), indices.unflatten(0, shape)


def _of_all(first: Tensor, second: Tensor, usable: Tensor, top_k: int) -> Found:
    """Returns the best usable pairs among all."""
    size, best = first.shape[-1], None
    step = max(1, PAIRS_AT_ONCE // size)
    for start in range(0, size, step):
        sums = (first[..., start : start + step].unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2)
        free = usable[:, start * size : (start + step) * size].unsqueeze(1)
        best = merged(best, sums.where(free, torch.inf), start * size, top_k)
    return best


def _check(queries: Tensor, sub_keys: Tensor, top_k: int, usable: Tensor | None) -> None:
    if (
        queries.dim() != 3
        or sub_keys.dim() != 4
        or sub_keys.shape[1] != 2
        or (queries.shape[0], queries.shape[2]) != (sub_keys.shape[0], 2 * sub_keys.shape[3])
    ):
        raise ValueError(
            "queries are (codebooks, rows, dim) and sub-keys (codebooks, 2, size, dim / 2), got "
            f"{tuple(queries.shape)} and {tuple(sub_keys.shape)}"
        )
    pairs = sub_keys.shape[2] ** 2
    if not 1 <= top_k <= pairs:
        raise ValueError(f"top_k is from 1 to the {pairs} pairs of sub-keys of a codebook, got {top_k}")
    if usable is not None and usable.shape != (sub_keys.shape[0], pairs):
        raise ValueError(f"usable is (codebooks, pairs) {(sub_keys.shape[0], pairs)}, got {tuple(usable.shape)}")
