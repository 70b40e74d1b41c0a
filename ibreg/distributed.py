"""Quantities over ranks. Whether there are several is asked at each call, never remembered."""

from __future__ import annotations

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
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
