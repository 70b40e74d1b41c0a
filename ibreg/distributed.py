"""Sums, means and rows over the ranks of a process group; the group is looked up at each call, never cached."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def mean_over_ranks(value: Tensor) -> Tensor:
    """Returns the mean of a tensor over all ranks, or the tensor itself without others; every rank must call it.

    Args:
        value: any shape, the same on every rank; without gradient.

    Example:
        >>> import torch
        >>> mean_over_ranks(torch.tensor(2.0))
        tensor(2.)
    """
    return over_ranks(value) / distributed.get_world_size() if several_ranks() else value


def several_ranks() -> bool:
    """Whether there are other ranks; to be called each time, as a layer may be older than the process group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def over_ranks(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over all ranks, or the tensor itself without others; every rank must call it.

    Args:
        value: any shape, the same on every rank; without gradient.

    Example:
        >>> over_ranks(torch.tensor(2.0))
        tensor(2.)
    """
    if not several_ranks():
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> tuple[Tensor, tuple[int, ...], int]:
    """Returns the rows of all ranks in order, the number of rows of each rank, and the own rank.

    Ranks may have different numbers of rows; every rank must call it. A single process returns its own rows.

    Args:
        rows: `(rows, dim)`, without gradient.

    Raises:
        ValueError: If the numbers of features differ between ranks; on every rank, so that none waits.
    """
    if not several_ranks():
        return rows, (rows.shape[0],), 0
    ranks = distributed.get_world_size()
    shapes = rows.new_empty((ranks, 2), dtype=torch.int64)
    distributed.all_gather_into_tensor(shapes, torch.tensor([rows.shape], device=rows.device))
    lengths, features = zip(*shapes.tolist(), strict=True)
    if len(set(features)) > 1:
        raise ValueError(f"the rows of all ranks must have the same number of features, got {list(features)}")
    longest = max(lengths)
    padded = rows.new_zeros((longest, rows.shape[1]))
    padded[: rows.shape[0]] = rows
    gathered = rows.new_empty((ranks * longest, rows.shape[1]))
    distributed.all_gather_into_tensor(gathered, padded)
    parts = [part[:length] for part, length in zip(gathered.split(longest), lengths, strict=True)]
    return torch.cat(parts), lengths, distributed.get_rank()


def all_rows(rows: Tensor) -> Tensor:
    """Returns the rows of all ranks in order, with a gradient for the rank's own; every rank must call it.

    All ranks must compute the same result from them. The gradient is that with respect to the rank's own rows, times
    the number of ranks, as `DistributedDataParallel` averages.

    Args:
        rows: `(rows, dim)`; ranks may have different numbers of rows.

    Raises:
        ValueError: If the numbers of features differ between ranks.
    """
    return _AllRows.apply(rows) if several_ranks() else rows


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        gathered, lengths, rank = gather_rows(rows.detach())
        start = sum(lengths[:rank])
        ctx.own, ctx.ranks = slice(start, start + lengths[rank]), len(lengths)
        return gathered

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.ranks * grad[ctx.own]
