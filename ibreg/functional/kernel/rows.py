"""Batches as rows: checks, the origin to subtract, and squared distances.

All functions flatten `(batch, ...)` to `(batch, dim)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ibreg.precision import at_least_float32

BLOCK_SIZE = "rows of a block of the Gram matrix"


def as_rows(x: Tensor, name: str = "x") -> Tensor:
    """Flattens a batch to `(batch, dim)`; half precision becomes float32.

    Args:
        x: `(batch, ...)`, floating point; `(batch,)` is one feature.
        name: name of the tensor in error messages.

    Raises:
        ValueError: If the tensor has integers, or no batch axis.
    """
    if not x.is_floating_point():
        raise ValueError(
            f"{name} must be floating point, got {x.dtype}: for labels use the delta kernel, or one-hot codes"
        )
    if x.dim() == 0:
        raise ValueError(f"{name} must be a batch, (batch, ...), got a 0-dim tensor")
    x = at_least_float32(x)
    return x.unsqueeze(-1) if x.dim() == 1 else x.flatten(1)


def as_labels(x: Tensor, name: str = "x") -> Tensor:
    """Checks integer labels and returns them as `(batch,)`.

    Args:
        x: `(batch,)` or `(batch, 1)`, integers or booleans.
        name: name of the tensor in error messages.

    Raises:
        ValueError: If the labels are not integers, or a sample has more than one.
    """
    if x.is_floating_point() or x.is_complex():
        raise ValueError(f"{name} must be integer labels for the delta kernel, got {x.dtype}: use x.long()")
    if x.dim() == 2 and x.shape[1] == 1:
        x = x.squeeze(1)
    if x.dim() != 1:
        raise ValueError(
            f"{name} must have one label per sample for the delta kernel, shape (batch,), got {tuple(x.shape)}"
        )
    return x


def as_pair(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns two batches as rows; `y` is `x` if it is None.

    Raises:
        ValueError: If a batch has integers, or the numbers of features differ.
    """
    x = as_rows(x)
    if y is None:
        return x, x
    y = as_rows(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same number of features, got {x.shape[1]} and {y.shape[1]}")
    return x, y


def check_block_size(block_size: Any) -> None:
    """Checks a number of rows.

    Raises:
        ValueError: If it is neither None nor an integer of at least 1.
    """
    if block_size is not None and (type(block_size) is not int or block_size < 1):
        raise ValueError(f"block_size must be None or an integer of at least 1 ({BLOCK_SIZE}), got {block_size!r}")


def origin_of(x: Tensor) -> Tensor:
    """Returns the mean of the rows, without gradient, to subtract before rows are squared.

    Without that, |a|^2 + |b|^2 - 2 <a, b> cancels for a batch far from 0. The mean is taken relative to the first row,
    so that a constant batch becomes exactly 0; a rounded mean would leave a residue.

    Args:
        x: `(batch, dim)`.
    """
    x = x.detach()
    first = x[:1]
    return first + (x - first).mean(0, keepdim=True)


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Squared distances between the rows of one batch or two.

    .. math:: D_{ij} = |x_i - y_j|^2

    They are computed by a matrix product, after the mean of `x` was subtracted from both: the rounding error is about
    1e-7 of the squared distance from that mean. Distances are at least 0, and exactly 0 on the diagonal if `y` is None.

    Args:
        x: `(batch, ...)`.
        y: `(other_batch, ...)`, with as many features as `x`; None: `x`.

    Returns:
        `(batch, other_batch)`, differentiable.

    Raises:
        ValueError: If a batch has integers, or the numbers of features differ.

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


def negative_squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns -|a - b|^2 of centered rows, without gradient, in memory that the caller may change."""
    products = torch.addmm(b.square().sum(-1).neg_(), a, b.mT, alpha=2)
    return products.sub_(a.square().sum(-1, keepdim=True)).clamp_(max=0)
