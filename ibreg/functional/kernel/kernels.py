"""Kernels between the rows of one batch or two: Gram matrices, whole or in tiles."""

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
    negative_squared_distances,
    origin_of,
    squared_distances,
)


def gaussian_gram(x: Tensor, y: Tensor | None = None, *, bandwidth: Bandwidth = "median") -> Tensor:
    r"""Gram matrix of the Gaussian kernel.

    .. math:: K_{ij} = \exp(-|x_i - y_j|^2 / 2 h^2)

    Args:
        x: `(batch, ...)`.
        y: `(other_batch, ...)`, with as many features as `x`; None: `x`.
        bandwidth: h, see `bandwidth_of`; computed from `x` and `y` together, without gradient.

    Returns:
        `(batch, other_batch)`, differentiable; 1 on the diagonal if `y` is None.

    Raises:
        ValueError: If an input has integers, the numbers of features differ, or the bandwidth is not above 0.

    Example:
        >>> gaussian_gram(torch.tensor([[0.0], [1.0]]), bandwidth=1.0)
        tensor([[1.0000, 0.6065],
                [0.6065, 1.0000]])
    """
    return torch.exp(-0.5 * _scaled_squared_distances(x, y, bandwidth))


def inverse_multiquadric_gram(x: Tensor, y: Tensor | None = None, *, bandwidth: Bandwidth = "median") -> Tensor:
    r"""Gram matrix of the inverse multiquadric kernel, with heavier tails than the Gaussian.

    .. math:: K_{ij} = (1 + |x_i - y_j|^2 / h^2)^{-1/2}

    Args:
        x: `(batch, ...)`.
        y: `(other_batch, ...)`, with as many features as `x`; None: `x`.
        bandwidth: h, see `bandwidth_of`; computed from `x` and `y` together, without gradient.

    Returns:
        `(batch, other_batch)`, differentiable; 1 on the diagonal if `y` is None.

    Raises:
        ValueError: If an input has integers, the numbers of features differ, or the bandwidth is not above 0.

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
        y: `(other_batch, ...)`, with as many features as `x`; None: `x`.

    Returns:
        `(batch, other_batch)`, differentiable.

    Raises:
        ValueError: If an input has integers, or the numbers of features differ.

    Example:
        >>> linear_gram(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([[1., 1.],
                [1., 5.]])
    """
    x, other = as_pair(x, y)
    with torch.autocast(x.device.type, enabled=False):
        return x @ other.mT


def delta_gram(x: Tensor, y: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    r"""Gram matrix of the delta kernel of labels: 1 where two labels are equal, else 0.

    It equals the linear kernel of one-hot codes.

    Args:
        x: `(batch,)` or `(batch, 1)`, integer labels.
        y: `(other_batch,)` or `(other_batch, 1)`; None: `x`.
        dtype: dtype of the result; None: the default dtype of torch.

    Returns:
        `(batch, other_batch)`.

    Raises:
        ValueError: If labels are not integers, or a sample has more than one.

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
    """Kernel minus a constant, evaluated in tiles of its Gram matrix.

    A wide kernel is close to 1 everywhere: k - 1 has digits that k has lost.

    Attributes:
        evaluate: maps points a `(rows, dim)` and b `(columns, dim)` to the tile `(rows, columns)`.
        derivative: maps a tile of a kernel of u = |a - b|^2 to dk/du; None: a kernel of <a, b>, or of labels.
        unit: points are rows divided by `unit * bandwidth`; 0: the kernel has no bandwidth.
        labels: whether the kernel compares integer labels.
    """

    evaluate: Callable[[Tensor, Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None = None
    unit: float = 0.0
    labels: bool = False

    def rows(self, x: Tensor, name: str) -> Tensor:
        """Checks a batch and returns it as `(batch, dim)`, labels as `(batch, 1)`."""
        return as_labels(x, name).unsqueeze(-1) if self.labels else as_rows(x, name)

    def points(self, rows: Tensor, bandwidth: Bandwidth) -> tuple[Tensor, Tensor]:
        """Returns rows centered around 0 and divided by the bandwidth, and the 0-dim derivative of a point by its row.

        The bandwidth is a constant, the origin cancels in every quantity.
        """
        if self.labels:
            return rows, torch.ones((), device=rows.device)
        points = rows - origin_of(rows)
        if not self.unit:
            return points, rows.new_ones(())
        length = self.unit * bandwidth_around_origin(points, bandwidth, MEDIAN_ROWS)
        return points / length, 1 / length

    def tile(self, points: Tensor, rows: slice, columns: slice) -> Tensor:
        """Returns a tile of the Gram matrix of points, minus the constant."""
        tile = self.evaluate(points[rows], points[columns])
        if self.derivative is not None:  # rounding gives a point a distance to itself
            diagonal_of(tile, rows, columns).zero_()
        return tile

    def add_gradient(self, weights: Tensor, a: Tensor, b: Tensor, gradient: Tensor) -> None:
        r"""Adds the gradient of :math:`\sum_{ij} W_{ij} (k(a_i, b_j) + k(b_j, a_i))` with respect to a, in place.

        W is the derivative of a loss with respect to a symmetric Gram matrix, in which each pair stands twice. With
        `weights` = W for a kernel of :math:`\langle a, b \rangle`, and `weights` = W dk/du for a kernel of
        :math:`u = |a - b|^2`, where :math:`du/da = 2 (a - b)`:

        .. math:: 2 W b, \qquad 4 \sum_j W_{ij} (a_i - b_j) = 4 \, (W 1 \circ a - W b)

        Args:
            weights: `(rows, columns)`, as above.
            a: `(rows, dim)`, points.
            b: `(columns, dim)`, points.
            gradient: `(rows, dim)`, changed in place.
        """
        if self.derivative is None:
            gradient.addmm_(weights, b, alpha=2)
        else:
            gradient.addmm_(weights, b, alpha=-4).addcmul_(weights.sum(1, keepdim=True), a, value=4)


# In units of the points: k = exp(-u) and k = (1 + u)^(-1/2) of u = |a - b|^2, k = <a, b>, and k = 1 for equal labels.
# All but the linear kernel are evaluated as k - 1: expm1(-u), expm1(-log1p(u) / 2). Their derivatives, from k - 1:
# dk/du = -k = -(k - 1) - 1 and dk/du = -k^3 / 2.
KERNELS: dict[str, Kernel] = {
    "gaussian": Kernel(
        evaluate=lambda a, b: negative_squared_distances(a, b).expm1_(),
        derivative=lambda tile: tile.neg().sub_(1),
        unit=math.sqrt(2),
    ),
    "inverse_multiquadric": Kernel(
        evaluate=lambda a, b: negative_squared_distances(a, b).neg_().log1p_().mul_(-0.5).expm1_(),
        derivative=lambda tile: tile.add(1).pow_(3).mul_(-0.5),
        unit=1.0,
    ),
    "linear": Kernel(evaluate=lambda a, b: a @ b.mT),
    "delta": Kernel(evaluate=lambda a, b: (a == b.mT).float().sub_(1), labels=True),
}


def kernel_named(name: str) -> Kernel:
    """Returns the kernel of a name.

    Raises:
        ValueError: If there is no kernel of that name.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(map(repr, KERNELS))}, got {name!r}")
    return KERNELS[name]


def diagonal_of(tile: Tensor, rows: slice, columns: slice) -> Tensor:
    """Returns a view of a tile's elements on the diagonal of the whole matrix; most tiles have none."""
    return tile.diagonal(rows.start - columns.start)


def _scaled_squared_distances(x: Tensor, y: Tensor | None, bandwidth: Bandwidth) -> Tensor:
    x, other = as_pair(x, y)
    h = bandwidth_of(x if y is None else torch.cat((x, other)), bandwidth)
    return squared_distances((x - origin_of(x)) / h, None if y is None else (other - origin_of(x)) / h)
