"""Batches as rows: what checks them, where their middle is, and how far they are from each other.

Everything flattens `(batch, ...)` to `(batch, dim)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ibreg.precision import at_least_float32


def as_rows(x: Tensor, name: str = "x") -> Tensor:
    """Returns a batch as `(batch, dim)`, half precision turned to float32.

    Args:
        x: `(batch, ...)`, floating point; `(batch,)` is taken as one feature.
        name: how errors call it.

    Raises:
        ValueError: integers, or a tensor without a batch axis.
    """
    if not x.is_floating_point():
        raise ValueError(f"{name} has to be floating point, got {x.dtype}: labels go with the delta kernel, or one-hot")
    if x.dim() == 0:
        raise ValueError(f"{name} is a batch, (batch, ...), got a 0-dim tensor")
    x = at_least_float32(x)
    return x.unsqueeze(-1) if x.dim() == 1 else x.flatten(1)


def as_labels(x: Tensor, name: str = "x") -> Tensor:
    """Returns integer labels as `(batch,)`, checked.

    Args:
        x: `(batch,)` or `(batch, 1)`, integers or booleans.
        name: how errors call it.

    Raises:
        ValueError: no integers, or more than one label of a sample.
    """
    if x.is_floating_point() or x.is_complex():
        raise ValueError(f"the delta kernel takes integer labels, got {name} of {x.dtype}: use x.long()")
    if x.dim() == 2 and x.shape[1] == 1:
        x = x.squeeze(1)
    if x.dim() != 1:
        raise ValueError(f"the delta kernel takes one label of each sample, (batch,), got {name} of {tuple(x.shape)}")
    return x


def as_pair(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns one batch or two as rows, of as many features.

    Raises:
        ValueError: integers, or features that do not match.
    """
    x = as_rows(x)
    if y is None:
        return x, x
    y = as_rows(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y have to have as many features, got {x.shape[1]} and {y.shape[1]}")
    return x, y


def check_block_size(block_size: Any) -> None:
    """Raises a ValueError for what is neither None nor an integer of at least 1."""
    if block_size is not None and (type(block_size) is not int or block_size < 1):
        raise ValueError(f"block_size is a number of rows, at least 1, or None, got {block_size!r}")


def origin_of(x: Tensor) -> Tensor:
    """Returns a point in the middle of the rows, without gradient, to subtract before squares are taken.

    Without it, |a|^2 + |b|^2 - 2 a.b loses the digits of a distant batch. A constant batch becomes exactly 0, which a
    rounded mean alone would not do: hence the way over the first row.

    Args:
        x: `(batch, dim)`.
    """
    x = x.detach()
    first = x[:1]
    return first + (x - first).mean(0, keepdim=True)


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Squared distances between the rows of one batch, or of two.

    .. math:: D_{ij} = |x_i - y_j|^2

    By a matrix product, after the middle of `x` was subtracted from both: about 1e-7 of the squared distance from that
    middle is rounding. Never below 0; exactly 0 on the diagonal when there is one batch.

    Args:
        x: `(batch, ...)`.
        y: `(other_batch, ...)`, with as many features; None: `x`.

    Returns:
        `(batch, other_batch)`, differentiable.

    Raises:
        ValueError: integers, or features that do not match.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[ 0., 25.],
                [25.,  0.]])
    """
    x, other = as_pair(x, y)
    origin = origin_of(x)
    x, other = x - origin, other - origin
    with torch.autocast(x.device.type, enabled=False):
        products = x @ other.mT
    squares = x.square().sum(-1, keepdim=True) + other.square().sum(-1) - 2 * products
    squares = squares.clamp(min=0)
    if y is not None:
        return squares
    diagonal = torch.eye(squares.shape[0], dtype=torch.bool, device=squares.device)
    return squares.masked_fill(diagonal, 0)


def minus_squared_distances(here: Tensor, there: Tensor) -> Tensor:
    """Returns -|a - b|^2 of rows that lie around 0, without gradient, in memory that the caller may change."""
    products = torch.addmm(there.square().sum(-1).neg_(), here, there.mT, alpha=2)
    return products.sub_(here.square().sum(-1, keepdim=True)).clamp_(max=0)
