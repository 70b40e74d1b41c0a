"""Kernels between the rows of one or two batches, and the bandwidths that fit a batch.

Everything flattens `(batch, ...)` to `(batch, dim)`. The bandwidth h is a length: k depends on |a - b| / h.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

Bandwidth = float | tuple[str, float] | str
"""A length, `("rms", s)`, `("dimension", s)` or `"median"`: see `bandwidth_of`."""

LEAST_BANDWIDTH = 1e-12  # of the root mean squared distance; with it all rows that differ are as far apart as can be
MEDIAN_ROWS = 1024  # of how many rows a kernel's median is taken: one bandwidth, however its pairs are walked


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
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x.unsqueeze(-1) if x.dim() == 1 else x.flatten(1)


def check_block_size(block_size: Any) -> None:
    """Raises a ValueError for what is neither None nor a whole number of at least 1."""
    if block_size is not None and (type(block_size) is not int or block_size < 1):
        raise ValueError(f"block_size is a number of rows, at least 1, or None, got {block_size!r}")


def wide_dtype(x: Tensor) -> torch.dtype:
    """Returns what totals are kept in: float64, or float32 where the device has none."""
    return torch.float32 if x.device.type == "mps" else torch.float64


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


def bandwidth_of(x: Tensor, bandwidth: Bandwidth, *, rows: int | None = None) -> Tensor:
    r"""Bandwidth of a batch, as a length h without gradient.

    A number is h itself. `("rms", s)` is s times the root mean squared distance of two different rows,
    :math:`h = s \sqrt{2 \sum_d \operatorname{var} x_d}` (variance with n - 1), in time linear in the batch.
    `("dimension", s)` is s times the root of the number of features, :math:`h = s \sqrt d`, whatever the rows are.
    `"median"` is the median of the distances (not of their squares) of all pairs of different rows, and at least
    a thousandth of the root mean squared distance, so that many duplicates do not make it 0.

    Where all rows are equal, or there is one, 1 stands for the root mean squared distance: the bandwidth stays finite,
    and the kernel is 1 everywhere whatever it is.

    Args:
        x: `(batch, ...)`.
        bandwidth: a length above 0, `("rms", s)` or `("dimension", s)` with s above 0 (a list will do), or `"median"`.
        rows: the median is taken of at most so many rows, from all over the batch; None: of all.

    Returns:
        0-dim, in the dtype of `x`.

    Raises:
        ValueError: a bandwidth that is not above 0, or of another form; an input of integers.

    Example:
        >>> x = torch.tensor([[0.0], [3.0], [4.0]])
        >>> bandwidth_of(x, "median"), bandwidth_of(x, ("rms", 0.5)), bandwidth_of(x, 2.0)
        (tensor(3.), tensor(1.4720), tensor(2.))
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = as_rows(x)
        return _bandwidth(x - origin_of(x), bandwidth, rows)


def _bandwidth(centred: Tensor, bandwidth: Bandwidth, rows: int | None) -> Tensor:
    if isinstance(bandwidth, Real) and not isinstance(bandwidth, bool):
        length = centred.new_tensor(_positive(bandwidth, bandwidth))
        # Squares of what is further apart would be infinite, and their differences NaN.
        return length if bandwidth > 1e-6 else length.maximum(LEAST_BANDWIDTH * _root_mean_square(centred))
    if isinstance(bandwidth, (tuple, list)) and len(bandwidth) == 2 and bandwidth[0] == "rms":
        return _root_mean_square(centred) * max(_positive(bandwidth[1], bandwidth), LEAST_BANDWIDTH)
    if isinstance(bandwidth, (tuple, list)) and len(bandwidth) == 2 and bandwidth[0] == "dimension":
        return centred.new_tensor(math.sqrt(centred.shape[1]) * _positive(bandwidth[1], bandwidth))
    if isinstance(bandwidth, str) and bandwidth == "median":
        unit = _root_mean_square(centred)
        return _median(_some_rows(centred, rows) / unit).clamp_(min=1e-3) * unit
    raise ValueError(f'a bandwidth is a length above 0, ("rms", s), ("dimension", s) or "median", got {bandwidth!r}')


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
    x, other = _pair(x, y)
    origin = origin_of(x)
    x, other = x - origin, other - origin
    with torch.autocast(x.device.type, enabled=False):
        products = x @ other.mT
    squares = x.square().sum(-1, keepdim=True) + other.square().sum(-1) - 2 * products
    squares = squares.clamp(min=0)
    return squares if y is not None else squares.masked_fill(_diagonal(squares), 0)


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
    x, other = _pair(x, y)
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
        unit = self.reach * _bandwidth(points, bandwidth, MEDIAN_ROWS)
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


def _minus_squared_distances(here: Tensor, there: Tensor) -> Tensor:
    products = torch.addmm(there.square().sum(-1).neg_(), here, there.mT, alpha=2)
    return products.sub_(here.square().sum(-1, keepdim=True)).clamp_(max=0)


KERNELS: dict[str, Kernel] = {
    "gaussian": Kernel(
        lambda here, there: _minus_squared_distances(here, there).expm1_(),
        lambda tile: tile.neg().sub_(1),
        reach=math.sqrt(2),
    ),
    "inverse_multiquadric": Kernel(
        lambda here, there: _minus_squared_distances(here, there).neg_().log1p_().mul_(-0.5).expm1_(),
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


def _pair(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    x = as_rows(x)
    if y is None:
        return x, x
    y = as_rows(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y have to have as many features, got {x.shape[1]} and {y.shape[1]}")
    return x, y


def _diagonal(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[0], dtype=torch.bool, device=matrix.device)


def _scaled_squared_distances(x: Tensor, y: Tensor | None, bandwidth: Bandwidth) -> Tensor:
    x, other = _pair(x, y)
    h = bandwidth_of(x if y is None else torch.cat((x, other)), bandwidth)
    return squared_distances((x - origin_of(x)) / h, None if y is None else (other - origin_of(x)) / h)


def _positive(value: Any, bandwidth: Bandwidth) -> float:
    number = float(value) if isinstance(value, Real) else math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"a bandwidth is a length above 0, got {bandwidth!r}")
    return number


def _root_mean_square(centred: Tensor) -> Tensor:
    """Root mean squared distance of two different rows; 1 where all are equal, so that it can divide."""
    # Totals are wide, as squares of very small features would underflow.
    total = torch.linalg.vector_norm(centred, dtype=wide_dtype(centred))
    size = (total * math.sqrt(2 / max(centred.shape[0] - 1, 1))).to(centred.dtype)
    return torch.where(size == 0, 1, size)


def _some_rows(x: Tensor, most: int | None) -> Tensor:
    """Returns at most so many rows, at golden steps around the batch: an order that repeats itself is no bias."""
    batch = x.shape[0]
    if most is None or batch <= most:
        return x
    step = next(step for step in itertools.count(int(0.618 * batch)) if math.gcd(step, batch) == 1)
    return x[torch.arange(most, device=x.device) * step % batch]


def _median(points: Tensor) -> Tensor:
    """Median distance of two different rows, the mean of the middle two where there are two; 0 where there is one."""
    batch = points.shape[0]
    if batch < 2:
        return points.new_zeros(())
    # Half of the diagonal is sorted below all pairs and half above: the matrix then has the median of the pairs.
    pairs = batch * (batch - 1) // 2
    squares = _minus_squared_distances(points, points).neg_()
    squares.diagonal()[: (batch + 1) // 2].fill_(-math.inf)
    squares.diagonal()[(batch + 1) // 2 :].fill_(math.inf)
    lower = squares.median()
    if pairs % 2:
        return lower.sqrt()
    ties = (squares <= lower).sum() - (batch + 1) // 2  # counts each pair twice
    upper = torch.where(ties > pairs, lower, torch.where(squares > lower, squares, math.inf).amin())
    return (lower.sqrt() + upper.sqrt()) / 2
