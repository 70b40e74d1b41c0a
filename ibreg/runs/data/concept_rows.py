"""A data set with concept labels, and what is asked of one: its rows, its parts, labels that are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ibreg.layers.concept.specification import Concepts, Description
from ibreg.runs.data.images import VALUE_RANGE, Normalization
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Request


class ConceptRows(Rows):
    """Inputs, targets and concept labels that are fetched a whole batch at a time.

    Args:
        inputs: `(rows, ...)`: a tensor, or anything that gives a batch for a list of row numbers.
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
    """A data set with concept labels, cut into parts, with what a model must know of it.

    Args:
        name: Name in the registry.
        train: Training rows, `(input, class, concepts)`.
        validation: Rows held out of the training part, or None.
        test: Test rows.
        shifted: The test rows with a flipped spurious concept, or None where there is none.
        input_shape: Shape of one input.
        class_names: One name per class, in the order of the targets.
        concepts: What the columns of the concept labels are.
        value_range: smallest and largest value of an input; None: no limits, as for tables.
        normalization: how a network normalizes the inputs; None: it reads them as they are.
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

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class ConceptRequest(Request):
    """Options that all data sets with concepts have, beside those of every data set.

    Args:
        validation: fraction of the training rows that is held out, in [0, 1); 0: none.
        missing: fraction of the concept labels of the training rows that is removed at random, in [0, 1); a categorical
            group loses all its columns together.

    Raises:
        ValueError: If a value is out of range.
    """

    validation: float = 0.2
    missing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not (isinstance(self.missing, int | float) and 0 <= self.missing < 1):
            raise ValueError(f"missing must be a fraction of at least 0 (none) and less than 1, got {self.missing!r}")

    def rng(self, purpose: int) -> np.random.Generator:
        """Returns a generator for one use of randomness: 0 inputs, 1 labels that are removed, 2 shifted inputs."""
        return np.random.default_rng((self.split_seed, purpose))


def assemble(
    name: str,
    request: ConceptRequest,
    inputs: Callable[[np.ndarray], Any],
    labels: np.ndarray,
    class_names: Sequence[str],
    concepts: np.ndarray,
    described: Description,
    parts: Sequence[np.ndarray],
    shifted: ConceptRows | None = None,
    normalization: Normalization | None = None,
) -> ConceptData:
    """Makes a data set of its parts, and removes the labels that are to be missing.

    Args:
        name: Name in the registry.
        request: How much is removed.
        inputs: Gives the inputs of some rows.
        labels: `(rows,)`, classes from 0.
        class_names: One name per class.
        concepts: `(rows, concepts)`, NaN where a label is missing.
        described: What the columns are, as `Concepts.of` takes it.
        parts: Training, validation and test rows.
        shifted: The test rows with a flipped spurious concept.
        normalization: how a network normalizes images with values in [0, 1]; None for tables.

    Raises:
        ValueError: If labels do not fit their description, or a concept has none in the training part.
    """
    specification = Concepts.of(described)
    values = specification.validate(torch.tensor(concepts, dtype=torch.float32))
    training = torch.from_numpy(np.asarray(parts[0]))
    removed = request.rng(1).random((len(training), len(specification.members))) < request.missing
    for place, columns in enumerate(specification.members.values()):
        rows = training[torch.from_numpy(removed[:, place])]
        values[rows[:, None], torch.tensor(columns)] = torch.nan
    specification.validate(values[training])
    train, validation, test = (
        ConceptRows(inputs(rows), torch.from_numpy(np.asarray(labels, dtype=np.int64)[rows]), values[rows])
        for rows in parts
    )
    return ConceptData(
        name,
        train,
        validation if len(validation) else None,
        test,
        shifted,
        tuple(test[0][0].shape),
        tuple(class_names),
        specification,
        value_range=None if normalization is None else VALUE_RANGE,
        normalization=normalization,
    )
