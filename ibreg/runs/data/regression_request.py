"""Options that all regression data sets have: the split of the rows and the noise that is added."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ibreg.runs.config.section import NotNegative, Share
from ibreg.runs.data.split import Request


class RegressionRequest(Request):
    """Options that all regression data sets have, in addition to those of every data set.

    Attributes:
        validation: fraction of the training rows that is held out, in [0, 1); 0: none.
        split_seed: seed of the split and of the noise.
        limit: number of training rows that are kept; 0: all. A chronological split keeps the latest.
        split: "random", or "chronological": training rows first, then validation, then test rows, for data sets whose
            rows are in the order of time.
        noise_columns: number of columns of standard normal noise that are added to a table.
        target_noise: standard deviation of the noise that is added to the training targets alone, as a multiple of
            the standard deviation of the targets.

    Example:
        >>> request = RegressionRequest(validation=0.25, split="chronological")
        >>> [rows.tolist() for rows in request.split_rows(10, test=0.2)]
        [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]
    """

    validation: Share = 0.2
    split: Literal["random", "chronological"] = "random"
    noise_columns: Annotated[int, Field(ge=0)] = 0
    target_noise: NotNegative = 0.0

    def split_rows(self, count: int, test: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Splits rows into training, validation and test rows, at random or in their own order.

        Args:
            count: number of rows, which a chronological split takes in the order of time.
            test: fraction of the rows that are test rows; None: the data set has its own.

        Raises:
            ValueError: If a fraction is out of range, or a split would be empty.
        """
        order = np.arange(count) if self.split == "chronological" else self._rng(0).permutation(count)
        train, held_out = _hold_out_last(order, test or 0, "test")
        train, validation = _hold_out_last(train, self.validation, "validation")
        if self.limit:
            # A random split keeps the first, so that a smaller limit is a subset of a larger one.
            train = train[-self.limit :] if self.split == "chronological" else train[: self.limit]
        return train, validation, held_out

    def input_noise(self, count: int) -> np.ndarray:
        """Samples the columns of noise: standard normal, `(count, noise_columns)`."""
        return self._rng(1).standard_normal((self.noise_columns, count)).T

    def added_to_targets(self, count: int) -> np.ndarray:
        """Samples the noise of the targets, as a multiple of their standard deviation: `(count,)`."""
        return self.target_noise * self._rng(2).standard_normal(count)

    def _rng(self, purpose: int) -> np.random.Generator:
        # Each use of randomness has its own stream, so that none of them changes another.
        return np.random.default_rng((self.split_seed, purpose))


def _hold_out_last(rows: np.ndarray, fraction: float, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Holds out the last rows, a fraction of all."""
    kept = len(rows) - round(fraction * len(rows))
    if fraction and not 0 < kept < len(rows):
        raise ValueError(
            f"{split}={fraction} of {len(rows)} rows leaves one split empty: set data.{split} closer to 0.5"
        )
    return rows[:kept], rows[kept:]
