"""Bandwidths of kernels, absolute or relative to a batch: a kernel of bandwidth h depends on |a - b| / h."""

from __future__ import annotations

import itertools
import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ibreg.functional.kernel.rows import as_rows, negative_squared_distances, origin_of
from ibreg.precision import wide_dtype

Bandwidth = float | tuple[str, float] | str
"""A number, `("rms", s)`, `("dimension", s)` or `"median"`: see `bandwidth_of`."""

BANDWIDTHS = "a number above 0, ('rms', s) or ('dimension', s) with s above 0, or 'median'"  # in error messages

LEAST_BANDWIDTH = 1e-12  # relative to the root mean squared distance; there the kernel of different rows is 0
MEDIAN_ROWS = 1024  # rows that the median of a kernel is computed from, whatever its block size


def bandwidth_of(x: Tensor, bandwidth: Bandwidth, *, rows: int | None = None) -> Tensor:
    r"""Bandwidth h of a batch, without gradient.

    - A number is h itself.
    - `("rms", s)` is s times the root mean squared distance between two different rows,
      :math:`h = s \sqrt{2 \sum_d \operatorname{var} x_d}` (variance with n - 1), in time linear in the batch.
    - `("dimension", s)` is s times the square root of the number of features, :math:`h = s \sqrt d`.
    - `"median"` is the median of the distances (not of their squares) between all pairs of different rows, and at
      least 0.001 times the root mean squared distance, so that duplicates do not make it 0.

    If all rows are equal, or there is only one, the root mean squared distance is taken to be 1: the bandwidth is
    finite, and the kernel is 1 everywhere.

    Args:
        x: `(batch, ...)`.
        bandwidth: a number above 0, `("rms", s)` or `("dimension", s)` with s above 0 (or lists), or `"median"`.
        rows: maximum number of rows that the median is computed from, spread over the batch; None: all rows.

    Returns:
        0-dim, in the dtype of `x`.

    Raises:
        ValueError: If the bandwidth is not above 0 or of another form, or `x` has integers.

    Example:
        >>> x = torch.tensor([[0.0], [3.0], [4.0]])
        >>> bandwidth_of(x, "median"), bandwidth_of(x, ("rms", 0.5)), bandwidth_of(x, 2.0)
        (tensor(3.), tensor(1.4720), tensor(2.))
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x = as_rows(x)
        return bandwidth_around_origin(x - origin_of(x), bandwidth, rows)


def bandwidth_around_origin(centered: Tensor, bandwidth: Bandwidth, rows: int | None) -> Tensor:
    """Returns the `bandwidth_of` centered rows `(batch, dim)`."""
    if isinstance(bandwidth, Real) and not isinstance(bandwidth, bool):
        number = _positive(bandwidth, bandwidth)
        h = centered.new_tensor(number)
        # With a smaller bandwidth squares would be infinite, and their differences NaN.
        return h if number > 1e-6 else h.maximum(LEAST_BANDWIDTH * _root_mean_square(centered))
    if isinstance(bandwidth, (tuple, list)) and len(bandwidth) == 2 and bandwidth[0] == "rms":
        return _root_mean_square(centered) * max(_positive(bandwidth[1], bandwidth), LEAST_BANDWIDTH)
    if isinstance(bandwidth, (tuple, list)) and len(bandwidth) == 2 and bandwidth[0] == "dimension":
        return centered.new_tensor(math.sqrt(centered.shape[1]) * _positive(bandwidth[1], bandwidth))
    if isinstance(bandwidth, str) and bandwidth == "median":
        unit = _root_mean_square(centered)
        return _median(_some_rows(centered, rows) / unit).clamp_(min=1e-3) * unit
    raise ValueError(f"bandwidth must be {BANDWIDTHS}, got {bandwidth!r}")


def _positive(value: Any, bandwidth: Bandwidth) -> float:
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"bandwidth must be {BANDWIDTHS}, got {bandwidth!r}")
    return number


def _root_mean_square(centered: Tensor) -> Tensor:
    """Returns the root mean squared distance between two different rows; 1 if all are equal, to divide by."""
    # The total is float64, as squares of very small features would underflow.
    total = torch.linalg.vector_norm(centered, dtype=wide_dtype(centered))
    size = (total * math.sqrt(2 / max(centered.shape[0] - 1, 1))).to(centered.dtype)
    return torch.where(size == 0, 1, size)


def _some_rows(x: Tensor, most: int | None) -> Tensor:
    """Returns at most `most` rows, in steps of the golden ratio around the batch: a periodic order gives no bias."""
    batch = x.shape[0]
    if most is None or batch <= most:
        return x
    step = next(step for step in itertools.count(int(0.618 * batch)) if math.gcd(step, batch) == 1)
    return x[torch.arange(most, device=x.device) * step % batch]


def _median(points: Tensor) -> Tensor:
    """Returns the median distance between two different rows, or the mean of the middle two; 0 for a single row."""
    batch = points.shape[0]
    if batch < 2:
        return points.new_zeros(())
    # Half of the diagonal is sorted below all pairs and half above, so that the matrix has the median of the pairs.
    pairs = batch * (batch - 1) // 2
    squares = negative_squared_distances(points, points).neg_()
    squares.diagonal()[: (batch + 1) // 2].fill_(-math.inf)
    squares.diagonal()[(batch + 1) // 2 :].fill_(math.inf)
    lower = squares.median()
    if pairs % 2:
        return lower.sqrt()
    ties = (squares <= lower).sum() - (batch + 1) // 2  # counts each pair twice
    upper = torch.where(ties > pairs, lower, torch.where(squares > lower, squares, math.inf).amin())
    return (lower.sqrt() + upper.sqrt()) / 2
