"""Regression data sets: rows, standardized targets and inputs, and the noise that is added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ibreg.runs.data.images import Normalization
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.tables.columns import ColumnReport
from ibreg.runs.data.tables.standardization import standardized


@dataclass(frozen=True)
class RegressionData:
    """A data set split into training, validation and test rows, and the properties that a model needs.

    Args:
        name: name in the registry.
        train: training rows, `(input, target)`; the targets of a batch are `(batch, 1)`, as a head of one unit returns.
        validation: rows held out of the training rows, or None.
        test: test rows.
        input_shape: shape of one input: `(features,)` or `(channels, height, width)`.
        target_mean: mean of the training targets, in the unit of the target.
        target_std: their standard deviation; the rows hold (target - mean) / deviation.
        quantity: name of the target, with its unit.
        value_range: smallest and largest value of an input; None: no limits, as for tables.
        normalization: how a network normalizes the inputs; None: no normalization.
        input_names: one name per input of a table.
        columns: what was done with every column of a table.
    """

    name: str
    train: Rows
    validation: Rows | None
    test: Rows
    input_shape: tuple[int, ...]
    target_mean: float
    target_std: float
    quantity: str
    value_range: tuple[float, float] | None = None
    normalization: Normalization | None = None
    input_names: tuple[str, ...] = ()
    columns: tuple[ColumnReport, ...] = ()

    def in_units(self, standardized: Tensor) -> Tensor:
        """Converts standardized targets or predictions to the unit of the target, in float64."""
        return standardized.double() * self.target_std + self.target_mean


def table_data(
    name: str, quantity: str, request: RegressionRequest, values: np.ndarray, targets: np.ndarray, test: float
) -> RegressionData:
    """Splits a table `(rows, columns)`, adds its noise columns and standardizes it."""
    splits = request.split_rows(len(values), test)
    inputs = standardized(np.hstack([values, request.input_noise(len(values))]), splits[0])
    return assemble(name, quantity, request, torch.tensor(inputs, dtype=torch.float32), targets, splits)


def assemble(
    name: str,
    quantity: str,
    request: RegressionRequest,
    inputs: Tensor,
    targets: np.ndarray,
    splits: Sequence[np.ndarray],
) -> RegressionData:
    """Standardizes the targets, adds the noise of the training rows, and builds the splits."""
    fitted = targets[splits[0]]
    if np.ptp(fitted) == 0:
        raise ValueError(f"the target of {name} is {fitted[0]} in all {len(fitted)} training rows: nothing to learn")
    mean, std = float(fitted.mean()), float(fitted.std())
    scaled = (targets - mean) / std
    scaled[splits[0]] += request.added_to_targets(len(targets))[splits[0]]
    column = torch.tensor(scaled, dtype=torch.float32).unsqueeze(1)
    train, validation, test = (Rows(inputs[rows], column[rows]) for rows in splits)
    shape = tuple(inputs.shape[1:])
    return RegressionData(name, train, validation if len(validation) else None, test, shape, mean, std, quantity)
