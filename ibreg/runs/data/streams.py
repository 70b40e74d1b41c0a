"""Class-incremental learning: which classes come together, in which order, and the rows of each split.

The learner is not told where a split ends: it sees batches of inputs and classes, and answers over all classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ibreg.runs.data import classification as datasets
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Request, data_folder
from ibreg.runs.dispatch import choose, keyword_options

IMAGES = ("cifar10", "digits", "fashion_mnist", "image_folder", "mnist")
TOY_CLASSES = 8
TOY_REACH = 1.5  # the plane around the ring of the toy's classes, from -TOY_REACH to TOY_REACH


def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    validation: float = 0.1,
    split_seed: int = 0,
    limit: int = 0,
    **options,
) -> ClassificationData:
    """Loads a data set for class-incremental learning; images have values in [0, 1].

    What encodes images has a mean and a deviation of its own, so a set's `mean` and `std` are not used.

    Args:
        name: One of `names()`.
        root: Folder of the data; without it the environment variable `IBREG_DATA`, then `data`.
        download: Whether missing files may be fetched, where torchvision can fetch them.
        validation: Share of the training part that is held out, in [0, 1); 0 for none.
        split_seed: Seed of every cut, and of the toy's draw.
        limit: Number of training rows to keep, stratified; 0 for all.
        options: The set's own options, as they stand in `configs/data/<name>.yaml`.

    Raises:
        ValueError: For an unknown name or option, and data that cannot be used as they are.
        FileNotFoundError: If the files are not there; the message says what belongs where.

    Example:
        >>> data = load("toy_gaussians")
        >>> data.classes, data.input_shape, len(data.train), len(data.test)
        (8, (2,), 1080, 1200)
        >>> load("digits").train.inputs.min(), load("digits").train.inputs.max()
        (tensor(0.), tensor(1.))
    """
    if name in _SETS:
        function = choose("data set", name, _SETS, options, beside=f", all sets {list(keyword_options(load))}")
        folder = data_folder(root)
        return function(Request(folder, download, validation, split_seed, limit), **options)
    if name not in names():
        raise ValueError(f"no data set {name!r}: it is one of {names()}")
    if options.get("augment"):
        raise ValueError("data.augment=true changes images at random, but each is encoded once: leave it false")
    if name in IMAGES:
        options |= {"mean": 0, "std": 1}
    common = {"root": root, "download": download, "validation": validation, "split_seed": split_seed, "limit": limit}
    return datasets.load(name, **common, **options)


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()
        ['cifar10', 'colored_mnist', 'csv', 'digits', 'fashion_mnist', 'image_folder', 'mnist', 'toy_gaussians']
    """
    return sorted([*_SETS, *datasets.names()])


def unlabeled_inputs(data: ClassificationData, limit: int = 0, seed: int = 0):
    """Returns inputs without labels that belong to a set itself: for keys and scales, where no other set gives them.

    For the toy these are uniform points of the plane around its classes, at most 2,000; else the training inputs, those
    of classes to come included.

    Args:
        data: What `load` returned.
        limit: How many, drawn at random; 0 for all.
        seed: Of the points and of the draw.

    Example:
        >>> points = unlabeled_inputs(load("toy_gaussians"))
        >>> points.shape, bool(points.abs().max() <= TOY_REACH)
        (torch.Size([2000, 2]), True)
    """
    inputs = _OWN_UNLABELLED.get(data.name, lambda seed: data.train.inputs)(seed)
    if not 0 < limit < len(inputs):
        return inputs
    return inputs[np.random.default_rng((seed, 2)).permutation(len(inputs))[:limit].tolist()]


def class_order(classes: int, seed: int | None) -> list[int]:
    """Orders the classes by a seed; None keeps their own order.

    Example:
        >>> class_order(4, None), sorted(class_order(4, seed=7))
        ([0, 1, 2, 3], [0, 1, 2, 3])
    """
    return (
        list(range(classes)) if seed is None else np.random.default_rng((seed, classes)).permutation(classes).tolist()
    )


def class_splits(order: list[int], per_split: int) -> list[tuple[int, ...]]:
    """Cuts an order of classes into splits.

    Args:
        order: All classes, once each.
        per_split: Classes of a split.

    Raises:
        ValueError: If the classes cannot be cut into equal splits.

    Example:
        >>> class_splits([3, 0, 2, 1], per_split=2)
        [(3, 0), (2, 1)]
    """
    if type(per_split) is not int or per_split < 1 or len(order) % per_split:
        fitting = [size for size in range(1, len(order) + 1) if len(order) % size == 0]
        raise ValueError(
            f"classes_per_split={per_split!r} does not cut {len(order)} classes into equal splits: choose of {fitting}"
        )
    return [tuple(order[start : start + per_split]) for start in range(0, len(order), per_split)]


def rows_of(rows: Rows, classes: tuple[int, ...]) -> Rows:
    """Returns the rows of some classes.

    Example:
        >>> kept = rows_of(Rows(torch.arange(6.0).view(3, 2), torch.tensor([2, 0, 1])), (1, 2))
        >>> kept.inputs, kept.targets
        (tensor([[0., 1.],
                [4., 5.]]), tensor([2, 1]))
    """
    kept = torch.isin(rows.targets, torch.tensor(classes))
    return Rows(rows.inputs[kept], rows.targets[kept])


def toy_gaussians(
    request: Request, *, rows: int = 2400, deviation: float = 0.12, test: float = 0.5
) -> ClassificationData:
    """Draws eight Gaussian classes in the plane, on a ring of radius 1.

    Args:
        request: How the set is cut; its seed draws it too.
        rows: Points in all, equally many of each class.
        deviation: Standard deviation of each Gaussian.
        test: Share of the rows for the test part.

    Raises:
        ValueError: If there are too few rows, or they are not equally many of each class, or have no spread.
    """
    if type(rows) is not int or rows < TOY_CLASSES or rows % TOY_CLASSES:
        raise ValueError(f"rows={rows!r} is a positive multiple of the {TOY_CLASSES} classes")
    if not (isinstance(deviation, int | float) and 0 < deviation < math.inf):
        raise ValueError(f"deviation={deviation!r} is a number above 0, in radii of the ring")
    labels = np.repeat(np.arange(TOY_CLASSES), rows // TOY_CLASSES)
    angles = 2 * np.pi * labels / TOY_CLASSES
    noise = deviation * np.random.default_rng((request.split_seed, 0)).standard_normal((rows, 2))
    points = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1) + noise, dtype=torch.float32)
    class_names = tuple(f"{round(360 * place / TOY_CLASSES)}°" for place in range(TOY_CLASSES))
    targets = torch.tensor(labels)
    split = request.stratified_split(labels, class_names, test)
    train, validation, held_out = (Rows(points[part], targets[part]) for part in split)
    return ClassificationData(
        "toy_gaussians", train, validation if len(validation) else None, held_out, (2,), class_names
    )


def _plane(seed: int) -> Tensor:
    points = np.random.default_rng((seed, 1)).uniform(-TOY_REACH, TOY_REACH, (2000, 2))
    return torch.tensor(points, dtype=torch.float32)


_SETS: dict[str, Callable[..., ClassificationData]] = {"toy_gaussians": toy_gaussians}
_OWN_UNLABELLED: dict[str, Callable[[int], Tensor]] = {"toy_gaussians": _plane}
