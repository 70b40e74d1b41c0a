"""Kernels between the rows of one or two batches: their Gram matrices, whole and in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ibreg.functional.kernel.bandwidths import MEDIAN_ROWS, Bandwidth, bandwidth_around_origin, bandwidth_of
from ibreg.functional.kernel.rows import (
    as_labels,
    as_pair,
    as_rows,
    minus_squared_distances,
    origin_of,
    squared_distances,
)


def gaussian_gram(x: Tensor, y: Tensor | None = None, *, bandwidth: Bandwidth = "median") -> Tensor:
    r"""Gram matrix of the Gaussian kernel.

    .. math:: K_{ij} = \exp(-|x_i - y_j|^2 / 2 h^2)

    Args:
        x: `(batch, ...)`.
        y: `(other_batch, ...)`, with as many features; None: `x`.
        bandwidth: h, see `bandwidth_of`; found on `x` and `y` together, without gradient.

    Returns:
        `(batch, other_batch)`, differentiable, 1 on the diagonal when there is one batch.

    Raises:
        ValueError: integers, features that do not match, or a bandwidth that is not above 0.

    Example:
        >>> gaussian_gram(torch.tensor([[0.0], [1.0]]), bandwidth=1.0)
        tensor([[1.0000, 0.6065],
                [0.6065, 1.0000]])
    """
    return torch.exp(-0.5 * _scaled_squared_distances(x, y, bandwidth))


def inverse_multiquadric_gram(x: Tensor, y: Tensor | None = None, *, bandwidth: Bandwidth = "median") -> Tensor:
    r"""Gram matrix of the inverse multiquadric kernel, whose tails are heavier than the Gaussian's.

    .. math:: K_{ij} = (1 + |x_i - y_j|^2 / h^2)^{-1/2}

    Args:
        x: `(batch, ...)`.
        y: `(other_batch, ...)`, with as many features; None: `x`.
        bandwidth: h, see `bandwidth_of`; found on `x` and `y` together, without gradient.

    Returns:
        `(batch, other_batch)`, differentiable, 1 on the diagonal when there is one batch.

    Raises:
        ValueError: integers, features that do not match, or a bandwidth that is not above 0.

    Example:
        >>> inverse_multiquadric_gram(torch.tensor([[0.0], [1.0]]), bandwidth=1.0)
        tensor([[1.0000, 0.7071],
                [0.7071, 1.0000]])
    """
    return torch.rsqrt(1 + _scaled_squared_distances(x, y, bandwidth))


def linear_gram(x: Tensor, y: Tensor | None = None) -> Tensor:
    r"""Gram matrix of the linear kernel.

    .. math:: K_{ij} = x_i \cdot y_j

    Args:
        x: `(batch, ...)`.
        y: `(other_batch, ...)`, with as many features; None: `x`.

    Returns:
        `(batch, other_batch)`, differentiable.

    Raises:
        ValueError: integers, or features that do not match.

    Example:
        >>> linear_gram(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([[1., 1.],
                [1., 5.]])
    """
    x, other = as_pair(x, y)
    with torch.autocast(x.device.type, enabled=False):
        return x @ other.mT


def delta_gram(x: Tensor, y: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Gram matrix of the delta kernel of labels: 1 where they are equal, else 0.

    The same as the linear kernel of one-hot codes.

    Args:
        x: `(batch,)` or `(batch, 1)`, integer labels.
        y: `(other_batch,)` or `(other_batch, 1)`; None: `x`.
        dtype: of the result; None: the default floating dtype.

    Returns:
        `(batch, other_batch)`.

    Raises:
        ValueError: no integers, or more than one label of a sample.

    Example:
        >>> delta_gram(torch.tensor([0, 1, 0]))
        tensor([[1., 0., 1.],
                [0., 1., 0.],
                [1., 0., 1.]])
    """
    x = as_labels(x)
    other = x if y is None else as_labels(y, "y")
    return (x.unsqueeze(-1) == other).to(torch.get_default_dtype() if dtype is None else dtype)


class Kernel(NamedTuple):
    """A kernel less a constant, as tiles of its Gram matrix: close to 1 everywhere, k - 1 has digits that k has not.

    Attributes:
        values: takes points `(rows, dim)` and `(columns, dim)`, returns `(rows, columns)`.
        slope: derivative of a kernel of u = |a - b|^2 by u, from what `values` returned; None: a kernel of a.b.
        reach: points are divided by `reach * bandwidth`; 0 where there is no bandwidth.
        labels: whether it compares integer labels.
    """

    values: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor], Tensor] | None = None
    reach: float = 0.0
    labels: bool = False

    def rows(self, x: Tensor, name: str) -> Tensor:
        """Returns a batch as `(batch, dim)`, labels as `(batch, 1)`, checked."""
        return as_labels(x, name).unsqueeze(-1) if self.labels else as_rows(x, name)

    def points(self, rows: Tensor, bandwidth: Bandwidth) -> tuple[Tensor, Tensor]:
        """Returns rows around 0 and divided by the bandwidth, and the derivative of a point by its row (0-dim)."""
        if self.labels:
            return rows, torch.ones((), device=rows.device)
        points = rows - origin_of(rows)
        if not self.reach:
            return points, rows.new_ones(())
        unit = self.reach * bandwidth_around_origin(points, bandwidth, MEDIAN_ROWS)
        return points / unit, 1 / unit

    def tile(self, points: Tensor, rows: slice, columns: slice) -> Tensor:
        """Returns a part of the Gram matrix of some points, less the constant."""
        tile = self.values(points[rows], points[columns])
        if self.slope is not None:  # by rounding, a row may have a distance to itself
            diagonal_of(tile, rows, columns).zero_()
        return tile

    def pull(self, weights: Tensor, here: Tensor, there: Tensor, gradient: Tensor) -> None:
        """Adds to the gradient by some points what their pairs with others give, each pair in both orders.

        Args:
            weights: `(here, there)`, derivative by the tile, times the slope where the kernel has one.
            here: `(here, dim)`.
            there: `(there, dim)`.
            gradient: `(here, dim)`, changed.
        """
        if self.slope is None:
            gradient.addmm_(weights, there, alpha=2)
        else:
            gradient.addmm_(weights, there, alpha=-4).addcmul_(weights.sum(1, keepdim=True), here, value=4)


KERNELS: dict[str, Kernel] = {
    "gaussian": Kernel(
        lambda here, there: minus_squared_distances(here, there).expm1_(),
        lambda tile: tile.neg().sub_(1),
        reach=math.sqrt(2),
    ),
    "inverse_multiquadric": Kernel(
        lambda here, there: minus_squared_distances(here, there).neg_().log1p_().mul_(-0.5).expm1_(),
        lambda tile: tile.add(1).pow_(3).mul_(-0.5),
        reach=1.0,
    ),
    "linear": Kernel(lambda here, there: here @ there.mT),
    "delta": Kernel(lambda here, there: (here == there.mT).float().sub_(1), labels=True),
}


def kernel_named(name: str) -> Kernel:
    """Returns a kernel by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in KERNELS:
        raise ValueError(f"there is no kernel {name!r}: take one of {', '.join(KERNELS)}")
    return KERNELS[name]


def diagonal_of(tile: Tensor, rows: slice, columns: slice) -> Tensor:
    """Returns the part of a tile that lies on the diagonal of the whole matrix, as a view; most tiles have none."""
    return tile.diagonal(rows.start - columns.start)


def _scaled_squared_distances(x: Tensor, y: Tensor | None, bandwidth: Bandwidth) -> Tensor:
    x, other = as_pair(x, y)
    h = bandwidth_of(x if y is None else torch.cat((x, other)), bandwidth)
    return squared_distances((x - origin_of(x)) / h, None if y is None else (other - origin_of(x)) / h)
