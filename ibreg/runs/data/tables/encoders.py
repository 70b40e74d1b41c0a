"""Encoders of one column each, in the manner of scikit-learn: fitted on the training rows, applied to all.

A missing cell is filled in here; a flag of its own tells the model that it was missing, see `encoding`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, cast

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from ibreg.runs.data.tables.standardization import PowerOfTwo, standardizer

MOST_LEVELS = 100  # one-hot columns of a text column; the rarest levels share one


class Encoder(Protocol):
    """What the encoders have beside `fit` and `transform`."""

    def names(self, column: str) -> list[str]:
        """Names the inputs that a column becomes."""
        ...

    def note(self) -> str:
        """Says what was fitted."""
        ...


class Numbers(TransformerMixin, BaseEstimator):
    """Fills in the median of the training rows and standardizes by them."""

    def fit(self, values: pd.DataFrame, y=None) -> Numbers:
        """Finds median, mean and standard deviation."""
        self.pipeline_ = make_pipeline(PowerOfTwo(), SimpleImputer(strategy="median"), standardizer())
        self.pipeline_.fit(values.to_numpy(dtype=float))
        return self

    def transform(self, values: pd.DataFrame) -> np.ndarray:
        """Returns `(rows, 1)`."""
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is an error of `encode`, with its cell named
            return np.asarray(self.pipeline_.transform(values.to_numpy(dtype=float)))

    def names(self, column: str) -> list[str]:
        """Names the inputs."""
        return [column]

    def note(self) -> str:
        """Says what was fitted."""
        return "standardized"


class Booleans(TransformerMixin, BaseEstimator):
    """Keeps 0 and 1; a missing cell becomes the more frequent value of the training rows."""

    def fit(self, values: pd.DataFrame, y=None) -> Booleans:
        """Finds the more frequent value."""
        self.imputer_ = SimpleImputer(strategy="most_frequent").fit(values.to_numpy(dtype=float))
        return self

    def transform(self, values: pd.DataFrame) -> np.ndarray:
        """Returns `(rows, 1)`."""
        return np.asarray(cast(Any, self.imputer_).transform(values.to_numpy(dtype=float)))

    def names(self, column: str) -> list[str]:
        """Names the inputs."""
        return [column]

    def note(self) -> str:
        """Says what was fitted."""
        return "0 or 1"


class Levels(TransformerMixin, BaseEstimator):
    """One-hot encodes text. Rare levels, and those that no training row has, share a column; missing cells have none.

    Args:
        least: number of training rows below which a level is rare.
    """

    def __init__(self, least: int = 2):
        self.least = least

    def fit(self, values: pd.DataFrame, y=None) -> Levels:
        """Finds the levels."""
        cells = values.to_numpy(dtype=object)
        self.encoder_ = OneHotEncoder(
            min_frequency=self.least, max_categories=MOST_LEVELS, handle_unknown="infrequent_if_exist",
            sparse_output=False,
        ).fit(cells[~pd.isna(cells[:, 0])])  # fmt: skip
        return self

    def transform(self, values: pd.DataFrame) -> np.ndarray:
        """Returns `(rows, levels)`."""
        cells = values.to_numpy(dtype=object)
        known = ~pd.isna(cells)
        return self.encoder_.transform(np.where(known, cells, self.encoder_.categories_[0][0])) * known

    def names(self, column: str) -> list[str]:
        """Names the inputs."""
        names = [f"{column}={level}" for level in self._frequent()]
        return [*names, f"{column} (rare)"] if len(self._rare()) else names

    def note(self) -> str:
        """Says what was fitted."""
        rare = len(self._rare())
        return f"one-hot, {rare} rare levels in one input" if rare else "one-hot"

    def _rare(self) -> np.ndarray:
        rare = self.encoder_.infrequent_categories_[0]
        return np.array([], dtype=object) if rare is None else rare

    def _frequent(self) -> list[str]:
        rare = set(self._rare())
        return [level for level in self.encoder_.categories_[0] if level not in rare]


class Moments(TransformerMixin, BaseEstimator):
    """Encodes dates and times: elapsed time, standardized, and sine and cosine of what varies in the training rows.

    Cycles are those of clocks and calendars at the place: time of day, weekday, day of year. A missing cell has the
    median time and 0 for sine and cosine.

    Args:
        elapsed: whether the elapsed time is an input.
    """

    cycles: ClassVar[tuple[str, ...]] = ("time of day", "weekday", "day of year")

    def __init__(self, elapsed: bool = True):
        self.elapsed = elapsed

    def fit(self, values: pd.DataFrame, y=None) -> Moments:
        """Finds the cycles that vary, and median, mean and standard deviation of the elapsed time."""
        phases = _phases(values.iloc[:, 1])
        self.varying_ = [cycle for cycle in self.cycles if len(np.unique(phases[cycle].dropna())) > 1]
        self.start_ = values.iloc[:, 0].min()
        self.numbers_ = Numbers().fit(self._days(values))
        return self

    def transform(self, values: pd.DataFrame) -> np.ndarray:
        """Returns `(rows, inputs)`."""
        phases = _phases(values.iloc[:, 1])[self.varying_]
        angles = 2 * np.pi * phases.to_numpy(dtype=float)
        cycles = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(values), -1)
        parts = [self.numbers_.transform(self._days(values))] if self.elapsed else []
        return np.hstack([*parts, np.nan_to_num(cycles)])

    def names(self, column: str) -> list[str]:
        """Names the inputs."""
        cycles = [f"{column} {cycle} ({way})" for cycle in self.varying_ for way in ("sin", "cos")]
        return [column, *cycles] if self.elapsed else cycles

    def note(self) -> str:
        """Says what was fitted."""
        cycles = ", ".join(self.varying_)
        if not self.elapsed:
            return f"{cycles}; no elapsed time, as the column orders the rows"
        return f"elapsed time, {cycles}" if cycles else "elapsed time"

    def _days(self, values: pd.DataFrame) -> pd.DataFrame:
        return ((values.iloc[:, 0] - self.start_) / pd.Timedelta(days=1)).to_frame()


def _phases(wall: pd.Series) -> pd.DataFrame:
    """Returns the fraction of the day, the week and the year that has passed."""
    times = wall.dt
    year = np.where(times.is_leap_year, 366, 365)
    return pd.DataFrame(
        {
            "time of day": (wall - times.normalize()) / pd.Timedelta(days=1),
            "weekday": times.day_of_week / 7,
            "day of year": (times.day_of_year - 1) / year,
        }
    )
