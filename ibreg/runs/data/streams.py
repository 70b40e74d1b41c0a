"""Class-incremental data: the classes of each split of a stream, their order and their rows.

Learners do not receive the boundaries of splits: they train on batches of inputs and classes, and predict over all
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ibreg.runs.config.section import Count, Positive
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Fraction, Request, load_request, request_of

TOY_CLASSES = 8
TOY_EXTENT = 1.5  # the plane around the ring of the toy's classes, from -TOY_EXTENT to TOY_EXTENT


def load(name: str, **options: Any) -> ClassificationData:
    """Loads a data set for class-incremental learning.

    The encoder normalizes images by its own mean and deviation, so the `mean` and `std` of a set are not used.

    Args:
        name: one of `names()`.
        **options: those of all data sets, see `ibreg.runs.data.split.Request`, and its own, as in
            `configs/data/<name>.yaml`.

    Raises:
        ValueError: If a name or option is unknown, or the data are not usable.
        FileNotFoundError: If files are missing; the message names the files and their folder.

    Example:
        >>> data = load("toy_gaussians")
        >>> data.classes, data.input_shape, len(data.train), len(data.test)
        (8, (2,), 1080, 1200)
    """
    return load_request(SETS, request({"name": name, **options}))


def request(options: Mapping[str, Any], section: str = "data") -> Request:
    """Checks the options of a data set.

    Args:
        options: those of `load`, with the `name`.
        section: their key in a configuration, for messages.

    Raises:
        ValueError: If a name or option is unknown, a value is not valid, or images would be augmented.
    """
    asked = request_of("data set", SETS, Request, options, section)
    if getattr(asked, "augment", False):
        raise ValueError(f"{section}.augment must be false, as each image is encoded once, got true")
    return asked


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()
        ['cifar10', 'colored_mnist', 'csv', 'digits', 'fashion_mnist', 'image_folder', 'mnist', 'toy_gaussians']
    """
    return sorted(SETS)


def unlabeled_inputs(data: ClassificationData, limit: int = 0, seed: int = 0):
    """Returns unlabeled inputs of a data set itself, which initialize keys and scales without a second data set.

    For the toy data these are at most 2,000 uniform points of the plane around its classes; otherwise the training
    inputs, including those of later classes.

    Args:
        data: a data set that `load` returned.
        limit: number of inputs, chosen at random; 0: all.
        seed: seed of the points and of the choice.

    Example:
        >>> points = unlabeled_inputs(load("toy_gaussians"))
        >>> points.shape, bool(points.abs().max() <= TOY_EXTENT)
        (torch.Size([2000, 2]), True)
    """
    inputs = _UNLABELED.get(data.name, lambda seed: data.train.inputs)(seed)
    if not 0 < limit < len(inputs):
        return inputs
    return inputs[np.random.default_rng((seed, 2)).permutation(len(inputs))[:limit].tolist()]


def class_order(classes: int, seed: int | None) -> list[int]:
    """Permutes the classes by a seed; None keeps their order.

    Example:
        >>> class_order(4, None), sorted(class_order(4, seed=7))
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """
    return (
        list(range(classes)) if seed is None else np.random.default_rng((seed, classes)).permutation(classes).tolist()
    )


def class_splits(order: list[int], per_split: int) -> list[tuple[int, ...]]:
    """Divides an order of classes into splits of equal size.

    Args:
        order: all classes, once each.
        per_split: number of classes of a split.

    Raises:
        ValueError: If the number of classes is not a multiple of `per_split`.

    Example:
        >>> class_splits([3, 0, 2, 1], per_split=2)
        [(3, 0), (2, 1)]
    """
    if type(per_split) is not int or per_split < 1 or len(order) % per_split:
        fitting = [size for size in range(1, len(order) + 1) if len(order) % size == 0]
        raise ValueError(
            f"classes_per_split must be one of {fitting}, which divide {len(order)} classes, got {per_split!r}"
        )
    return [tuple(order[start : start + per_split]) for start in range(0, len(order), per_split)]


def rows_of(rows: Rows, classes: tuple[int, ...]) -> Rows:
    """Returns the rows of the given classes.

    Example:
        >>> kept = rows_of(Rows(torch.arange(6.0).view(3, 2), torch.tensor([2, 0, 1])), (1, 2))
        >>> kept.inputs, kept.targets
        (tensor([[0., 1.],
                [4., 5.]]), tensor([2, 1]))
    """
    kept = torch.isin(rows.targets, torch.tensor(classes))
    return Rows(rows.inputs[kept], rows.targets[kept])


def toy_gaussians(
    request: Request, *, rows: Count = 2400, deviation: Positive = 0.12, test: Fraction = 0.5
) -> ClassificationData:
    """Samples eight Gaussian classes in the plane, on a ring of radius 1.

    Args:
        request: options of all data sets; `split_seed` is also the seed of the points.
        rows: number of points, equally many of each class.
        deviation: standard deviation of each Gaussian.
        test: fraction of the rows that are test rows.

    Raises:
        ValueError: If `rows` is no multiple of the classes.
    """
    if rows % TOY_CLASSES:
        raise ValueError(f"data.rows must be a multiple of the {TOY_CLASSES} classes, got {rows}")
    labels = np.repeat(np.arange(TOY_CLASSES), rows // TOY_CLASSES)
    angles = 2 * np.pi * labels / TOY_CLASSES
    noise = deviation * np.random.default_rng((request.split_seed, 0)).standard_normal((rows, 2))
    points = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1) + noise, dtype=torch.float32)
    class_names = tuple(f"{round(360 * index / TOY_CLASSES)}°" for index in range(TOY_CLASSES))
    targets = torch.tensor(labels)
    split = request.stratified_split(labels, class_names, test)
    train, validation, held_out = (Rows(points[part], targets[part]) for part in split)
    return ClassificationData(
        "toy_gaussians", train, validation if len(validation) else None, held_out, (2,), class_names
    )


def _plane(seed: int) -> Tensor:
    points = np.random.default_rng((seed, 1)).uniform(-TOY_EXTENT, TOY_EXTENT, (2000, 2))
    return torch.tensor(points, dtype=torch.float32)


SETS: dict[str, Callable[..., ClassificationData]] = {**datasets.SETS, "toy_gaussians": toy_gaussians}
_UNLABELED: dict[str, Callable[[int], Tensor]] = {"toy_gaussians": _plane}
