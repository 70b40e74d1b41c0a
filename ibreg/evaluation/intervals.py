r"""Confidence intervals (95 % CI) of a mean over training runs with different seeds, and of a difference.

They are those of Student's t, :math:`\bar x \pm t_{0.975, n-1}\, s / \sqrt n` over n seeds, where s is the
sample standard deviation: they describe the variation between seeds, not that between test samples. Equal values have
no interval: one of width 0 would state certainty, where a few seeds only happen to agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, sem, t

LEVEL = 0.95
# Values that differ by less than this fraction of their size are equal up to rounding.
ROUNDING = 1e-12


class Interval(NamedTuple):
    """A mean and its confidence interval.

    Attributes:
        mean: mean over the seeds.
        low: lower end of the interval, NaN for one seed and for equal values.
        high: upper end of the interval, NaN for one seed and for equal values.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean_interval(values: ArrayLike) -> Interval:
    """Computes the mean over seeds and its 95 % interval by Student's t.

    Args:
        values: `(seeds, ...)`. A value that is not finite makes its mean and interval NaN.

    Returns:
        Arrays of shape `(...)`, 0-dim for one value per seed.

    Raises:
        ValueError: If there is no value.

    Example:
        >>> [round(float(bound), 3) for bound in mean_interval([0.5, 0.6, 0.7])]
        [0.6, 0.352, 0.848]
    """
    values = _finite(values)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"values must have shape (seeds >= 1, ...), got {values.shape}")
    return _student(values, abs(values).max(axis=0))


def _student(values: np.ndarray, size: np.ndarray) -> Interval:
    """Computes the interval of values that were computed from numbers of this size."""
    mean = np.asarray(values.mean(axis=0))
    if len(values) == 1:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    # Not `ttest_1samp`, which warns of equal values, such as accuracies of 1, as a loss of precision.
    error = np.asarray(sem(values, axis=0))
    error = np.where(error > ROUNDING * size, error, np.nan)
    half = t.ppf((1 + LEVEL) / 2, len(values) - 1) * error
    return Interval(mean, mean - half, mean + half)


def paired_interval(values: ArrayLike, reference: ArrayLike) -> Interval:
    """Computes the mean of the differences `values - reference` of the same seeds, with its 95 % interval.

    It is the interval that belongs to the paired t test: 0 lies outside where that test rejects equal means at 5 %.

    Args:
        values: `(seeds, ...)`.
        reference: `(seeds, ...)`, the seeds in the same order.

    Returns:
        Arrays of shape `(...)`.

    Raises:
        ValueError: If the shapes differ, or there is no value.

    Example:
        >>> [round(float(bound), 2) for bound in paired_interval([2.0, 3.0], [3.0, 5.0])]
        [-1.5, -7.85, 4.85]
    """
    values, reference = _finite(values), _finite(reference)
    if values.shape != reference.shape:
        raise ValueError(f"paired values must have equal shapes, got {values.shape} and {reference.shape}")
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"paired values must have shape (seeds >= 1, ...), got {values.shape}")
    return _student(values - reference, np.maximum(abs(values), abs(reference)).max(axis=0))


def accuracy_interval(accuracies: Sequence[float], samples: int) -> tuple[float, float, float]:
    """Computes a mean accuracy and its 95 % interval: Student's over several seeds, Wilson's over the samples of one.

    Args:
        accuracies: one per seed, fractions.
        samples: number of samples that each of them was measured on.

    Returns:
        The mean, and both ends of the interval, within [0, 1]; NaN where several seeds have equal accuracies.

    Raises:
        ValueError: If there is no accuracy, one is not in [0, 1], or there are no samples.

    Example:
        >>> [round(value, 3) for value in accuracy_interval([0.5, 0.6, 0.7], 100)]
        [0.6, 0.352, 0.848]
        >>> [round(value, 3) for value in accuracy_interval([0.5], 100)]
        [0.5, 0.404, 0.596]
    """
    if not accuracies or samples < 1 or not all(0 <= accuracy <= 1 for accuracy in accuracies):
        raise ValueError(
            f"accuracies must be fractions of 1 or more samples, got {list(accuracies)} of {samples} samples"
        )
    if len(accuracies) == 1:
        interval = binomtest(round(accuracies[0] * samples), samples).proportion_ci(method="wilson")
        return float(accuracies[0]), float(interval.low), float(interval.high)
    mean, low, high = map(float, mean_interval(accuracies))
    return mean, max(low, 0.0), min(high, 1.0)


def _finite(values: ArrayLike) -> np.ndarray:
    """Replaces infinities by NaN: a seed diverged, whichever of them it ended at."""
    values = np.asarray(values, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)
