"""Data sets with concept labels behind one name: `load("xor")`, `load("concept_csv", path=..., target=..., ...)`.

Every set is cut in the same way: a test part and a validation share of the rest are held out, stratified by class and
seeded; a generated set is generated again for each `split_seed`. Concept labels of the training part can be removed, as
annotation often is incomplete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ibreg.runs.data import classification as data
from ibreg.runs.data.concept_rows import ConceptData, ConceptRequest, ConceptRows, assemble
from ibreg.runs.data.concept_tables import concept_csv, concept_image_folder, zoo
from ibreg.runs.data.images import Normalization, unit_range
from ibreg.runs.data.shapes import SHAPE_CONCEPTS, draw_shapes
from ibreg.runs.data.split import load_by_name
from ibreg.runs.data.tables import standardized

# The digits that have each concept. No two digits have the same ones, so that together they say which digit it is.
DIGIT_CONCEPTS = {
    "even": (0, 2, 4, 6, 8),
    "above_four": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "multiple_of_three": (0, 3, 6, 9),
    "closed_loop": (0, 6, 8, 9),
    "straight_strokes": (1, 4, 7),
}
DIGITS = tuple(range(10))


def load(name: str, **options: Any) -> ConceptData:
    """Loads or generates a data set by name and splits its rows.

    Args:
        name: one of `names()`.
        **options: those of all data sets with concepts, see `ConceptRequest`, and its own, as in
            `configs/data/<name>.yaml`.

    Raises:
        ValueError: If a name or option is unknown, a value is out of range, a concept has no label in the training
            rows, or the data cannot be used as they are.
        FileNotFoundError: If files are missing; the message says which files belong where.

    Example:
        >>> digits = load("digits_concepts")
        >>> digits.input_shape, digits.classes, digits.concepts.names[:3]
        ((1, 8, 8), 10, ('even', 'above_four', 'prime'))
        >>> x, y, c = digits.train[0]
        >>> x.shape, c.shape
        (torch.Size([1, 8, 8]), torch.Size([6]))
    """
    return load_by_name("data set with concepts", name, _SETS, ConceptRequest, options)


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()[:4]
        ['concept_csv', 'concept_image_folder', 'digits_concepts', 'dot']
    """
    return sorted(_SETS)


def xor(request: ConceptRequest, *, size: int = 3000, test: float = 0.2) -> ConceptData:
    """Draws points of a square, whose class is that one coordinate is above a half, but not both.

    Args:
        request: How the set is cut.
        size: Number of points, all parts together.
        test: Share of them for the test part.
    """
    points = request.rng(0).random((_size(size), 2))
    concepts = points > 0.5
    return _drawn("xor", request, points, concepts, concepts[:, 0] ^ concepts[:, 1], ["right", "upper"], test)


def trigonometry(request: ConceptRequest, *, size: int = 3000, test: float = 0.2) -> ConceptData:
    """Draws three hidden numbers, seen through sine, cosine and their length; concepts are their signs.

    h ~ N(0, 2²), x = (sin h_i + h_i, cos h_i + h_i, |h|²), c_i = [h_i > 0], y = [sum h > 1].

    Args:
        request: How the set is cut.
        size: Number of samples, all parts together.
        test: Share of them for the test part.
    """
    hidden = 2 * request.rng(0).standard_normal((_size(size), 3))
    inputs = np.hstack([np.sin(hidden) + hidden, np.cos(hidden) + hidden, (hidden**2).sum(1, keepdims=True)])
    names = [f"hidden_{place}_positive" for place in range(3)]
    return _drawn("trigonometry", request, inputs, hidden > 0, hidden.sum(1) > 1, names, test)


def dot(request: ConceptRequest, *, size: int = 3000, test: float = 0.2) -> ConceptData:
    """Draws two hidden vectors, seen through sum and difference; the class is the sign of their product.

    v1, v3 ~ N(0, 2²) in two dimensions, v2 = 1, v4 = -1, x = (v1 + v3, v1 - v3), c = ([v1.v2 > 0], [v3.v4 > 0]),
    y = [v1.v3 > 0]: the concepts say little about the class.

    Args:
        request: How the set is cut.
        size: Number of samples, all parts together.
        test: Share of them for the test part.
    """
    first, third = 2 * request.rng(0).standard_normal((2, _size(size), 2))
    inputs = np.hstack([first + third, first - third])
    concepts = np.stack([first.sum(1) > 0, -third.sum(1) > 0], axis=1)
    names = ["first_up", "third_down"]
    return _drawn("dot", request, inputs, concepts, (first * third).sum(1) > 0, names, test)


def digits_concepts(request: ConceptRequest, *, test: float = 0.2) -> ConceptData:
    """Loads scikit-learn's 1,797 handwritten digits with six concepts each, such as even, prime, closed loop.

    The concepts follow from the digit and together say which one it is. No file is needed.

    Args:
        request: How the set is cut.
        test: Share of the rows for the test part.
    """
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    concepts = np.stack([np.isin(labels, digits) for digits in DIGIT_CONCEPTS.values()], axis=1)
    inputs = unit_range(torch.tensor(pixels).view(-1, 1, 8, 8), 16)
    class_names = [str(digit) for digit in DIGITS]
    parts = request.stratified_split(labels, class_names, test)
    described = list(DIGIT_CONCEPTS)
    return assemble(
        "digits_concepts",
        request,
        inputs.__getitem__,
        labels,
        class_names,
        concepts,
        described,
        parts,
        normalization=Normalization.of(0.5, 0.5, channels=1),
    )


def mnist_addition(
    request: ConceptRequest, *, size: int = 10_000, test: float = 0.2, threshold: int | None = None
) -> ConceptData:
    """Loads pairs of MNIST digits side by side, 28 x 56; concepts are the two digits, the class is their sum.

    Args:
        request: Where MNIST lies and how the set is cut.
        size: Number of pairs, all parts together.
        test: Share of the pairs, which are made of MNIST's test part.
        threshold: The class is whether the sum is above this number; None: the sum itself, 19 classes.
    """
    if threshold is not None and not (isinstance(threshold, int) and 0 <= threshold < 18):
        raise ValueError(f"threshold={threshold!r} is a sum of two digits from 0 to 17, or null for the sum itself")
    images, digits, held_out = _mnist(request, size, test, each=2)
    sums = digits.sum(1)
    classes = sums if threshold is None else (sums > threshold).astype(int)
    names = [str(total) for total in range(19)] if threshold is None else [f"<= {threshold}", f"> {threshold}"]
    parts = _around(request, classes, names, held_out)
    concepts = np.hstack([np.eye(10)[digits[:, 0]], np.eye(10)[digits[:, 1]]])
    described = [{"name": name, "values": list(DIGITS)} for name in ("left", "right")]
    inputs = torch.cat([images[:, 0], images[:, 1]], -1).unsqueeze(1)
    return assemble(
        "mnist_addition",
        request,
        inputs.__getitem__,
        classes,
        names,
        concepts,
        described,
        parts,
        normalization=Normalization.of(0.5, 0.5, channels=1),
    )


def mnist_parity(request: ConceptRequest, *, size: int = 10_000, test: float = 0.2) -> ConceptData:
    """Loads MNIST digits; the concept is the digit, the class whether it is odd.

    Args:
        request: Where MNIST lies and how the set is cut.
        size: Number of images, all parts together.
        test: Share of them that come from MNIST's test part.
    """
    images, digits, held_out = _mnist(request, size, test, each=1)
    classes = digits[:, 0] % 2
    names = ["even", "odd"]
    parts = _around(request, classes, names, held_out)
    described = [{"name": "digit", "values": list(DIGITS)}]
    concepts = np.eye(10)[digits[:, 0]]
    return assemble(
        "mnist_parity",
        request,
        images.__getitem__,
        classes,
        names,
        concepts,
        described,
        parts,
        normalization=Normalization.of(0.5, 0.5, channels=1),
    )


def shapes(
    request: ConceptRequest,
    *,
    size: int = 4000,
    test: float = 0.25,
    image_size: int = 24,
    noise: float = 0.25,
    spurious: float = 0.95,
) -> ConceptData:
    """Draws images of shapes, whose class is that two or more of circle, large and striped hold.

    So concepts vary within a class. The color says nothing. The brightness of the ground agrees with the class in
    most images, and in the shifted test part, the same images on the other ground, in few.

    Args:
        request: How the set is cut.
        size: Number of images, all parts together.
        test: Share of them for the test part.
        image_size: Side in pixels.
        noise: Standard deviation of the noise of pixels, whose range is [0, 1].
        spurious: Share of the images whose ground agrees with their class: 0.5 says nothing about it, 1 all.
    """
    if not (isinstance(image_size, int) and image_size >= 8):
        raise ValueError(f"image_size={image_size!r} is a number of pixels: 8 or more")
    for option, value, most in (("noise", noise, float("inf")), ("spurious", spurious, 1)):
        if not (isinstance(value, int | float) and 0 <= value <= most and value < float("inf")):
            raise ValueError(f"{option}={value!r} is a number of at least 0" + (", at most 1" if most == 1 else ""))
    rng = request.rng(0)
    concepts = rng.integers(2, size=(_size(size), len(SHAPE_CONCEPTS)))
    classes = (concepts[:, :3].sum(1) >= 2).astype(int)
    concepts[:, 4] = np.where(rng.random(size) < spurious, classes, 1 - classes)
    turned = np.column_stack([concepts[:, :4], 1 - concepts[:, 4]])
    images, shifted = (draw_shapes(those, image_size, noise, request.rng(2)) for those in (concepts, turned))
    names = ["fewer than two", "two or more"]
    parts = request.stratified_split(classes, names, test)
    rows = parts[2]
    other_ground = ConceptRows(shifted[rows], torch.tensor(classes)[rows], torch.tensor(turned[rows]).float())
    described = list(SHAPE_CONCEPTS)
    return assemble(
        "shapes",
        request,
        images.__getitem__,
        classes,
        names,
        concepts,
        described,
        parts,
        shifted=other_ground,
        normalization=Normalization.of(0.5, 0.5, channels=3),
    )


def _size(size: int) -> int:
    if not (isinstance(size, int) and size > 0):
        raise ValueError(f"size={size!r} is a number of samples: 1 or more")
    return size


def _drawn(name, request: ConceptRequest, inputs, concepts, classes, concept_names, test: float) -> ConceptData:
    """Cuts points with two classes, and standardizes them by the training rows."""
    labels, names = classes.astype(int), ["no", "yes"]
    parts = request.stratified_split(labels, names, test)
    points = torch.tensor(standardized(inputs, parts[0]), dtype=torch.float32)
    return assemble(name, request, points.__getitem__, labels, names, concepts, concept_names, parts)


def _mnist(request: ConceptRequest, size: int, test: float, *, each: int) -> tuple[Tensor, np.ndarray, int]:
    """Draws samples of one or more digits: images `(size, each, 28, 28)`, digits `(size, each)`, how many are test.

    The last of them are made of MNIST's test part.
    """
    if not (isinstance(test, int | float) and 0 < test < 1):
        raise ValueError(f"test={test!r} is a share: more than 0 and less than 1")
    digits = data.load("mnist", root=request.root, download=request.download, validation=0)
    held_out = round(test * _size(size))
    rng = request.rng(0)
    images, labels = [], []
    for part, count in ((digits.train, size - held_out), (digits.test, held_out)):
        if not 0 < count <= len(part):
            raise ValueError(f"size={size} and test={test} ask for {count} of a part of MNIST that has {len(part)}")
        rows = torch.from_numpy(np.stack([rng.permutation(len(part))[:count] for _ in range(each)], axis=1))
        images.append(part.inputs[rows].squeeze(2))
        labels.append(part.targets[rows])
    return torch.cat(images), torch.cat(labels).numpy(), held_out


def _around(request: ConceptRequest, labels: np.ndarray, class_names, held_out: int):
    """Cuts what stands before the test rows into training and validation rows."""
    count = len(labels) - held_out
    training, validation, _ = request.stratified_split(labels[:count], class_names)
    return training, validation, np.arange(count, len(labels))


_SETS: dict[str, Callable[..., ConceptData]] = {
    "xor": xor,
    "trigonometry": trigonometry,
    "dot": dot,
    "digits_concepts": digits_concepts,
    "mnist_addition": mnist_addition,
    "mnist_parity": mnist_parity,
    "shapes": shapes,
    "zoo": zoo,
    "concept_csv": concept_csv,
    "concept_image_folder": concept_image_folder,
}
