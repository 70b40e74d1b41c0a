"""Data sets with concept labels: rows, splits, and concept labels that are removed at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ibreg.layers.concept.specification import Concepts
from ibreg.runs.config.section import Share
from ibreg.runs.data.images import VALUE_RANGE, Normalization
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Request
from ibreg.runs.data.tables.columns import ColumnReport


class ConceptRows(Rows):
    """A data set of inputs, targets and concept labels that is fetched a whole batch at a time.

    Args:
        inputs: `(rows, ...)`: a tensor, or an object that returns a batch for a list of row indices.
        targets: `(rows,)`, integer classes.
        concepts: `(rows, concepts)`, NaN where a label is missing.

    Example:
        >>> rows = ConceptRows(torch.zeros(3, 2), torch.tensor([0, 1, 0]), torch.tensor([[1.0], [0.0], [1.0]]))
        >>> [part.tolist() for part in rows[1]]
        [[0.0, 0.0], 1, [0.0]]
    """

    def __init__(self, inputs, targets: Tensor, concepts: Tensor):
        super().__init__(inputs, targets)
        self.concepts = concepts

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return *super().__getitems__(indices), self.concepts[indices]


@dataclass(frozen=True)
class ConceptData:
    """A data set with concept labels, split into training, validation and test rows.

    Args:
        name: name in the registry.
        train: training rows, `(input, class, concepts)`.
        validation: rows held out of the training rows, or None.
        test: test rows.
        shifted: test rows for which the correlation of a spurious concept is flipped, or None.
        input_shape: shape of one input.
        class_names: one name per class, in the order of the targets.
        concepts: specification of the concept labels.
        value_range: smallest and largest value of an input; None: no limits, as for tables.
        normalization: how a network normalizes the inputs; None: no normalization.
        label_means: per concept, the mean of the training labels of a continuous one, in its own unit; else 0.
        label_stds: per concept, their standard deviation; else 1. The rows hold (label - mean) / deviation.
        input_names: one name per input of a table.
        columns: what was done with every column of a table.
    """

    name: str
    train: ConceptRows
    validation: ConceptRows | None
    test: ConceptRows
    shifted: ConceptRows | None
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    concepts: Concepts
    value_range: tuple[float, float] | None = None
    normalization: Normalization | None = None
    label_means: tuple[float, ...] = ()
    label_stds: tuple[float, ...] = ()
    input_names: tuple[str, ...] = ()
    columns: tuple[ColumnReport, ...] = ()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def in_units(self, values: Tensor) -> Tensor:
        """Converts labels or predicted values `(..., concepts)` to the units of continuous concepts, in float64."""
        means, stds = (torch.tensor(each, dtype=torch.float64) for each in (self.label_means, self.label_stds))
        return values.double() * stds.to(values.device) + means.to(values.device)


class ConceptRequest(Request):
    """Options that all data sets with concepts have, in addition to those of every data set.

    Attributes:
        validation: fraction of the training rows that is held out, in [0, 1); 0: none.
        missing: fraction of the concept labels of the training rows that is removed at random, in [0, 1); a categorical
            group loses all its columns together.
    """

    validation: Share = 0.2
    missing: Share = 0.0

    def rng(self, purpose: int) -> np.random.Generator:
        """Return a generator for one use of randomness: 0 inputs, 1 labels that are removed, 2 shifted inputs."""
        return np.random.default_rng((self.split_seed, purpose))


def assemble(
    name: str,
    request: ConceptRequest,
    concepts: Concepts,
    *,
    inputs: Callable[[np.ndarray], Any],
    classes: np.ndarray,
    class_names: Sequence[str],
    labels: np.ndarray,
    splits: Sequence[np.ndarray],
    shifted: ConceptRows | None = None,
    normalization: Normalization | None = None,
) -> ConceptData:
    """Assemble a data set: remove concept labels of training rows as requested, standardize those of continuous ones.

    Continuous concepts are standardized by the training labels, so that their loss does not depend on their unit.

    Args:
        name: name in the registry.
        request: the fraction of labels that is removed.
        concepts: specification of the concept labels.
        inputs: returns the inputs of some rows.
        classes: `(rows,)`, classes from 0.
        class_names: one name per class.
        labels: `(rows, concepts)`, NaN where a label is missing.
        splits: indices of the training, validation and test rows.
        shifted: test rows for which the correlation of a spurious concept is flipped.
        normalization: how a network normalizes images with values in [0, 1]; None for tables.

    Raises:
        ValueError: If labels do not fit their specification, or a concept has none in the training rows.
    """
    values = concepts.validate(torch.tensor(labels, dtype=torch.float64))
    training = torch.from_numpy(np.asarray(splits[0]))
    removed = request.rng(1).random((len(training), len(concepts.members))) < request.missing
    for group, columns in enumerate(concepts.members.values()):
        rows = training[torch.from_numpy(removed[:, group])]
        values[rows[:, None], torch.tensor(columns)] = torch.nan
    concepts.validate(values[training])
    values, means, stds = _standardized(concepts, values, training)
    targets = torch.from_numpy(np.asarray(classes, dtype=np.int64))
    train, validation, test = (ConceptRows(inputs(rows), targets[rows], values[rows]) for rows in splits)
    return ConceptData(
        name,
        train,
        validation if len(validation) else None,
        test,
        shifted,
        tuple(test[0][0].shape),
        tuple(class_names),
        concepts,
        value_range=None if normalization is None else VALUE_RANGE,
        normalization=normalization,
        label_means=means,
        label_stds=stds,
    )


def _standardized(
    concepts: Concepts, labels: Tensor, training: Tensor
) -> tuple[Tensor, tuple[float, ...], tuple[float, ...]]:
    """Standardize continuous concepts by the training labels; return labels in float32, means and deviations."""
    means, stds = torch.zeros(len(concepts)).double(), torch.ones(len(concepts)).double()
    for column, kind in enumerate(concepts.kinds):
        if kind == "continuous":
            known = labels[training, column]
            known = known[~known.isnan()]
            scale = float(known.abs().max()) or 1.0  # squares of large or small values overflow or underflow
            means[column] = (known / scale).mean() * scale
            if known.min() < known.max():
                stds[column] = (known / scale).std(correction=0) * scale
    scaled = ((labels - means) / stds).float()
    if (infinite := scaled.isinf().any(0)).any():
        name = concepts.names[int(infinite.int().argmax())]
        raise ValueError(
            f"labels of concept {name!r} overflow when standardized by the training labels: check its values"
        )
    return scaled, tuple(means.tolist()), tuple(stds.tolist())
