"""Parts of a data set: few images of each class, some of the classes, test images that are corrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ibreg.evaluation.corruptions import corrupt
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.images import per_channel
from ibreg.runs.data.rows import Rows


class Chosen:
    """Some rows of inputs, fetched when asked for.

    Args:
        inputs: A tensor, or anything that gives a batch for a list of row numbers.
        rows: Those that are kept, in their order.

    Example:
        >>> Chosen(torch.arange(4.0), [3, 1])[[1]]
        tensor([1.])
    """

    def __init__(self, inputs: Any, rows: Sequence[int]):
        self.inputs, self.rows = inputs, list(rows)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        return self.inputs[[self.rows[index] for index in indices]]


def take(rows: Rows, kept: Sequence[int], targets: Tensor | None = None) -> Rows:
    """Keeps some rows of a part, with its augmentation; `targets` takes the place of theirs."""
    return Rows(Chosen(rows.inputs, kept), rows.targets[kept] if targets is None else targets, rows.augment)


def few_shot(data: ClassificationData, shots: int, *, validation: float, seed: int) -> ClassificationData:
    """Keeps so many labeled images of each class, drawn at random, and holds a share of them out to choose by.

    Who has few images has no others to choose epochs or beta with, so these are counted too. With one seed, more images
    include the fewer.

    Args:
        data: a data set without validation rows.
        shots: images of each class, over training and validation; 0 for all.
        validation: the share of them that is held out, at least one image of a class; 0 for none.
        seed: of the draw.

    Raises:
        ValueError: a class with fewer images, or too few to hold some out.

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
            raise ValueError(
                f"shots={shots}: class {name!r} has {len(rows)} training images, the most that shots can be"
            )
        drawn = np.random.default_rng((seed, label)).permutation(rows)[:kept].tolist()
        held = max(round(validation * kept), 1) if validation else 0
        if held >= kept:
            raise ValueError(
                f"shots={kept} with data.validation={validation} leaves no training image of class {name!r}: give at "
                "least 2, or data.validation=0 with selection=last"
            )
        held_out += drawn[:held]
        train += drawn[held:]
    # What is held out is not augmented: `validation` rows never are.
    validation_rows = take(replace_augment(data.train), held_out) if held_out else None
    return replace(data, train=take(data.train, train), validation=validation_rows)


def replace_augment(rows: Rows) -> Rows:
    """Gives the same rows without augmentation."""
    return Rows(rows.inputs, rows.targets)


def of_classes(data: ClassificationData, labels: Sequence[int]) -> ClassificationData:
    """Keeps some of the classes and numbers them anew.

    Args:
        data: any data set.
        labels: the classes, by their number in the data.

    Raises:
        ValueError: a class that the data do not have, or fewer than two.

    Example:
        >>> from ibreg.runs.data.classification import load
        >>> of_classes(load("digits"), [7, 9]).class_names
        ('7', '9')
    """
    if len(set(labels)) < max(len(labels), 2) or not set(labels) <= set(range(data.classes)):
        raise ValueError(f"classes are two or more different ones of 0 ... {data.classes - 1}, got {list(labels)}")
    numbers = torch.full((data.classes,), -1)
    numbers[list(labels)] = torch.arange(len(labels))

    def part(rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        kept = (numbers[rows.targets] >= 0).nonzero().flatten().tolist()
        return take(rows, kept, numbers[rows.targets[kept]])

    names = tuple(data.class_names[label] for label in labels)
    parts = {name: part(getattr(data, name)) for name in ("train", "validation", "test")}
    return replace(data, class_names=names, **parts)


def spread(rows: Rows, most: int) -> Rows:
    """Keeps at most so many rows, evenly spaced: of rows in the order of the classes, equally many of each; 0 for all.

    Example:
        >>> spread(Rows(torch.arange(10.0), torch.arange(10)), 3).targets
        tensor([0, 3, 6])
    """
    if not 0 < most < len(rows):
        return rows
    return take(rows, [place * len(rows) // most for place in range(most)])


def corrupted(
    rows: Rows, kind: str, severity: int, *, mean: float | Sequence[float], std: float | Sequence[float]
) -> Rows:
    """Corrupts normalized images, see `ibreg.evaluation.corruptions.corrupt`.

    Args:
        rows: their inputs are `(rows, channels, height, width)`.
        kind: of corruption.
        severity: 1 (mild) to 5 (severe).
        mean: what was subtracted from values in [0, 1].
        std: what they were divided by then.
    """
    images = rows.inputs[list(range(len(rows)))]
    shift, scale = (
        torch.tensor(per_channel(name, value, images.shape[1])).view(-1, 1, 1)
        for name, value in (("mean", mean), ("std", std))
    )
    # Rounding leaves [0, 1] by 1e-7.
    changed = corrupt((images * scale + shift).clamp(0, 1), kind, severity)
    return Rows((changed - shift) / scale, rows.targets)
