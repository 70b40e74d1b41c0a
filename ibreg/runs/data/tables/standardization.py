"""Standardization by the training rows, of values of any size."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


class PowerOfTwo(TransformerMixin, BaseEstimator):
    """Divides each column by a power of two, so that the largest value that was fitted is between 1/2 and 1.

    That is exact; without it, the squares of very large or small values overflow or underflow.

    Example:
        >>> PowerOfTwo().fit_transform(np.array([[3.0, 1e300], [1.0, -5e299]])).round(3).tolist()
        [[0.75, 0.747], [0.25, -0.373]]
    """

    def fit(self, values: np.ndarray, y=None) -> PowerOfTwo:
        """Finds the power of each column; NaN is ignored."""
        self.exponents_ = np.frexp(np.nan_to_num(np.abs(np.asarray(values, dtype=float))).max(axis=0))[1]
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Divides by the powers; what overflows becomes the largest number, as scikit-learn refuses infinity."""
        with np.errstate(over="ignore"):
            scaled = np.ldexp(np.asarray(values, dtype=float), -self.exponents_)
        largest = np.finfo(float).max
        return np.clip(scaled, -largest, largest)


class ConstantToZero(TransformerMixin, BaseEstimator):
    """Sets columns to 0 in all rows that are constant in the rows that are fitted; others are unchanged.

    Example:
        >>> ConstantToZero().fit(np.array([[5.0, 1.0], [5.0, 2.0]])).transform(np.array([[7.0, 3.0]])).tolist()
        [[0.0, 3.0]]
    """

    def fit(self, values: np.ndarray, y=None) -> ConstantToZero:
        """Finds the constant columns."""
        self.constant_ = np.ptp(values, axis=0) == 0
        return self

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Sets the constant columns to 0."""
        return np.where(self.constant_, 0.0, values)


def standardizer() -> Pipeline:
    """Builds the transformer to mean 0 and standard deviation 1 of each column; a constant column becomes 0."""
    return make_pipeline(PowerOfTwo(), ConstantToZero(), StandardScaler())


def standardized(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Standardizes each column to mean 0 and standard deviation 1 over the given rows; a constant column becomes 0.

    Args:
        values: `(rows, columns)`.
        rows: indices of the rows to fit on, the training rows.

    Raises:
        ValueError: If a value overflows, as it is too far from those of the training rows.

    Example:
        >>> standardized(np.array([[1.0, 5.0], [3.0, 5.0], [7.0, 6.0]]), np.array([0, 1])).tolist()
        [[-1.0, 0.0], [1.0, 0.0], [5.0, 0.0]]
    """
    if not values.shape[1]:  # which scikit-learn refuses
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is an error below
        scaled = standardizer().fit(values[rows]).transform(values)
    if (place := first_overflow(scaled)) is not None:
        raise ValueError(
            f"column {place[1]} has values that overflow when standardized by the training rows: check its values"
        )
    return scaled


def first_overflow(values: np.ndarray) -> tuple[int, int] | None:
    """Returns row and column of the first value that is no finite number in single precision, if there is one."""
    bad = ~(np.abs(values) <= np.finfo(np.float32).max)
    if not bad.any():
        return None
    column = int(bad.any(axis=0).argmax())
    return int(bad[:, column].argmax()), column
