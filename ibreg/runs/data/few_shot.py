"""Subsets of a data set: few images of each class, some of the classes; and corrupted test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ibreg.evaluation.corruptions import corrupt
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.rows import Rows


class Subset:
    """A subset of the rows of inputs, fetched on access.

    Args:
        inputs: a tensor, or an object that returns a batch for a list of row indices.
        rows: indices of the rows that are kept, in their order.

    Example:
        >>> Subset(torch.arange(4.0), [3, 1])[[1]]
        tensor([1.])
    """

    def __init__(self, inputs: Any, rows: Sequence[int]):
        self.inputs, self.rows = inputs, list(rows)
        self.workers: int = getattr(inputs, "workers", 0)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        return self.inputs[[self.rows[index] for index in indices]]


def take(rows: Rows, kept: Sequence[int], targets: Tensor | None = None) -> Rows:
    """Keeps some of the rows, with their augmentation; `targets` replaces their targets."""
    return Rows(Subset(rows.inputs, kept), rows.targets[kept] if targets is None else targets, rows.augment)


def few_shot(data: ClassificationData, shots: int, *, validation: float, seed: int) -> ClassificationData:
    """Keeps the same number of random labeled images of each class, and holds a fraction of them out for validation.

    Validation images count as labeled images, since in practice few labels leave no others to select epochs or beta by.
    With the same seed, more shots include the images of fewer.

    Args:
        data: a data set without validation rows.
        shots: images of each class, training and validation together; 0: all.
        validation: fraction of them that is held out, at least one image of each class; 0: none.
        seed: seed of the choice.

    Raises:
        ValueError: If a class has fewer images, or too few to hold some out.

    Example:
        >>> from ibreg.runs.data.classification import load
        >>> few = few_shot(load("digits", validation=0), 5, validation=0.2, seed=0)
        >>> few.train.targets.bincount().tolist(), few.validation.targets.bincount().tolist()
        ([4, 4, 4, 4, 4, 4, 4, 4, 4, 4], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    """
    train: list[int] = []
    held_out: list[int] = []
    for label, name in enumerate(data.class_names):
        rows = np.flatnonzero(data.train.targets.numpy() == label)
        kept = shots or len(rows)
        if len(rows) < kept:
            raise ValueError(f"shots must be at most {len(rows)}, the training images of class {name!r}, got {shots}")
        chosen = np.random.default_rng((seed, label)).permutation(rows)[:kept].tolist()
        held = max(round(validation * kept), 1) if validation else 0
        if held >= kept:
            raise ValueError(
                f"shots={kept} with data.validation={validation} leaves no training image of class {name!r}: give at "
                "least 2, or data.validation=0 with selection=last"
            )
        held_out += chosen[:held]
        train += chosen[held:]
    # Validation rows are never augmented.
    validation_rows = take(Rows(data.train.inputs, data.train.targets), held_out) if held_out else None
    return replace(data, train=take(data.train, train), validation=validation_rows)


def of_classes(data: ClassificationData, labels: Sequence[int]) -> ClassificationData:
    """Keeps some of the classes and renumbers them from 0.

    Args:
        data: any data set.
        labels: indices of the classes.

    Raises:
        ValueError: If the data have no such class, or fewer than two are given.

    Example:
        >>> from ibreg.runs.data.classification import load
        >>> of_classes(load("digits"), [7, 9]).class_names
        ('7', '9')
    """
    if len(set(labels)) < max(len(labels), 2) or not set(labels) <= set(range(data.classes)):
        raise ValueError(
            f"classes must be two or more different integers from 0 to {data.classes - 1}, got {list(labels)}"
        )
    numbers = torch.full((data.classes,), -1)
    numbers[list(labels)] = torch.arange(len(labels))

    def kept_of(rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        kept = (numbers[rows.targets] >= 0).nonzero().flatten().tolist()
        return take(rows, kept, numbers[rows.targets[kept]])

    names = tuple(data.class_names[label] for label in labels)
    splits = {name: kept_of(getattr(data, name)) for name in ("train", "validation", "test")}
    return replace(data, class_names=names, **splits)


def spread(rows: Rows, most: int) -> Rows:
    """Keeps at most `most` rows, evenly spaced: of rows in the order of the classes, equally many of each; 0 keeps all.

    Example:
        >>> spread(Rows(torch.arange(10.0), torch.arange(10)), 3).targets
        tensor([0, 3, 6])
    """
    if not 0 < most < len(rows):
        return rows
    return take(rows, [index * len(rows) // most for index in range(most)])


def corrupted(rows: Rows, kind: str, severity: int) -> Rows:
    """Corrupts images, see `ibreg.evaluation.corruptions.corrupt`.

    Args:
        rows: their inputs are `(rows, channels, height, width)` in [0, 1].
        kind: kind of corruption.
        severity: 1 (mild) to 5 (severe).
    """
    return Rows(corrupt(rows.inputs[list(range(len(rows)))], kind, severity), rows.targets)
