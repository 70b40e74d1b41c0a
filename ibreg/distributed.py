"""Quantities over ranks. Whether there are several is asked at each call, never remembered."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def mean_over_ranks(value: Tensor) -> Tensor:
    """Returns the mean of a tensor over all ranks, or the tensor itself where there is one; every rank has to call it.

    Args:
        value: any shape, the same on every rank; without gradient.

    Example:
        >>> import torch
        >>> mean_over_ranks(torch.tensor(2.0))
        tensor(2.)
    """
    return over_ranks(value) / distributed.get_world_size() if several_ranks() else value


def several_ranks() -> bool:
    """Whether there are other processes, asked at each call: a layer may be older than its process group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def over_ranks(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over all ranks, or the tensor itself where there is one; every rank has to call it.

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
    """Returns the rows of all ranks in order, how many each has, and which rank this is.

    Ranks may have different numbers of rows; every rank has to call it. A process that is alone has all rows itself.

    Args:
        rows: `(rows, dim)`, without gradient.

    Raises:
        ValueError: another number of features on another rank; raised on every rank, so that none waits.
    """
    if not several_ranks():
        return rows, (rows.shape[0],), 0
    ranks = distributed.get_world_size()
    shapes = rows.new_empty((ranks, 2), dtype=torch.int64)
    distributed.all_gather_into_tensor(shapes, torch.tensor([rows.shape], device=rows.device))
    lengths, features = zip(*shapes.tolist(), strict=True)
    if len(set(features)) > 1:
        raise ValueError(f"the ranks have rows of different numbers of features: {list(features)}")
    longest = max(lengths)
    padded = rows.new_zeros((longest, rows.shape[1]))
    padded[: rows.shape[0]] = rows
    gathered = rows.new_empty((ranks * longest, rows.shape[1]))
    distributed.all_gather_into_tensor(gathered, padded)
    parts = [part[:length] for part, length in zip(gathered.split(longest), lengths, strict=True)]
    return torch.cat(parts), lengths, distributed.get_rank()


def all_rows(rows: Tensor) -> Tensor:
    """Returns the rows of all ranks in order, with a gradient for this rank's own; every rank has to call it.

    Every rank computes the same of them. The gradient is that of the result by these rows times the number of ranks,
    as `DistributedDataParallel` takes the mean of the ranks' gradients.

    Args:
        rows: `(rows, dim)`; ranks may have different numbers of rows.

    Raises:
        ValueError: another number of features on another rank.
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
    def backward(ctx, grad):
        return ctx.ranks * grad[ctx.own]
