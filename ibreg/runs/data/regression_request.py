"""What is asked of every regression data set: where it lies, which rows go into which part, and what noise it gets."""

import math
from dataclasses import dataclass

import numpy as np

from ibreg.runs.data.split import Request


@dataclass(frozen=True)
class RegressionRequest(Request):
    """A request with what regression asks further; the arguments are those of `regression_data.load`.

    Example:
        >>> from pathlib import Path
        >>> request = RegressionRequest(Path(), False, 0.25, 0, 0, "chronological", 0, 0.0)
        >>> [part.tolist() for part in request.split_rows(10, test=0.2)]
        [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]
    """

    split: str
    noise_columns: int
    target_noise: float

    def __post_init__(self):
        super().__post_init__()
        if self.split not in ("random", "chronological"):
            raise ValueError(f"split={self.split!r} is random or chronological")
        if not (isinstance(self.noise_columns, int) and self.noise_columns >= 0):
            raise ValueError(f"noise_columns={self.noise_columns!r} is a number of columns: 0 or more")
        if not (isinstance(self.target_noise, int | float) and 0 <= self.target_noise < math.inf):
            raise ValueError(
                f"target_noise={self.target_noise!r} is in standard deviations of the target: 0 (none) or more"
            )

    def split_rows(self, count: int, test: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cuts rows into training, validation and test rows, at random or in their own order.

        Args:
            count: How many rows there are, in the order of time where that matters.
            test: Share of the rows for the test part; None for a set that has one of its own.

        Raises:
            ValueError: If a part would be empty.
        """
        if not (test is None or (isinstance(test, int | float) and 0 < test < 1)):
            raise ValueError(f"test={test!r} is a share: more than 0 and less than 1")
        order = np.arange(count) if self.split == "chronological" else self._rng(0).permutation(count)
        train, held_out = _end_off(order, test or 0, "test")
        train, validation = _end_off(train, self.validation, "validation")
        if self.limit:
            # A random cut keeps the first, so that a smaller limit is a part of a larger one; time keeps the latest.
            train = train[-self.limit :] if self.split == "chronological" else train[: self.limit]
        return train, validation, held_out

    def input_noise(self, count: int) -> np.ndarray:
        """Draws the columns that tell nothing: standard normal, `(count, noise_columns)`."""
        return self._rng(1).standard_normal((self.noise_columns, count)).T

    def added_to_targets(self, count: int) -> np.ndarray:
        """Draws the noise of the targets, in their standard deviations: `(count,)`."""
        return self.target_noise * self._rng(2).standard_normal(count)

    def _rng(self, purpose: int) -> np.random.Generator:
        # Each use of randomness has a stream of its own, so that none of them changes another.
        return np.random.default_rng((self.split_seed, purpose))


def _end_off(rows: np.ndarray, share: float, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Takes a share of the rows off their end."""
    kept = len(rows) - round(share * len(rows))
    if share and not 0 < kept < len(rows):
        raise ValueError(f"{part}={share} of {len(rows)} rows leaves one side empty: set data.{part} nearer to 0.5")
    return rows[:kept], rows[kept:]
