"""Data sets with concept labels by name: `load("xor")`, `load("concept_csv", path=..., target=..., ...)`.

All are split in the same way: test rows, and a fraction of the rest for validation, are held out, stratified by class
and seeded. Generated data are generated again for each `split_seed`. Concept labels of training rows can be removed at
random, as annotations are often incomplete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import load_digits
from torch import Tensor

from ibreg.layers.concept.specification import Concepts
from ibreg.runs.config.section import Count, NotNegative
from ibreg.runs.data import classification as data
from ibreg.runs.data.concept_rows import ConceptData, ConceptRequest, ConceptRows, assemble
from ibreg.runs.data.concept_tables import concept_csv, concept_image_folder, zoo
from ibreg.runs.data.images import Normalization, unit_range
from ibreg.runs.data.shapes import SHAPE_CONCEPTS, draw_shapes
from ibreg.runs.data.split import Fraction, load_request, request_of
from ibreg.runs.data.tables.standardization import standardized

# The digits with each concept. No two digits have the same concepts, so that together they determine the digit.
DIGIT_CONCEPTS = {
    "even": (0, 2, 4, 6, 8),
    "above_four": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "multiple_of_three": (0, 3, 6, 9),
    "closed_loop": (0, 6, 8, 9),
    "straight_strokes": (1, 4, 7),
}
DIGITS = tuple(range(10))
GRAYSCALE = Normalization.of(0.5, 0.5, channels=1)


def load(name: str, **options: Any) -> ConceptData:
    """Load or generate a data set by name and split its rows.

    Args:
        name: one of `names()`.
        **options: those of all data sets with concepts, see `ConceptRequest`, and its own, as in
            `configs/data/<name>.yaml`.

    Raises:
        ValueError: If a name or option is unknown, a value is out of range, a concept has no label in the training
            rows, or the data are not usable.
        FileNotFoundError: If files are missing; the message names the files and their folder.

    Example:
        >>> digits = load("digits_concepts")
        >>> digits.input_shape, digits.classes, digits.concepts.names[:3]
        ((1, 8, 8), 10, ('even', 'above_four', 'prime'))
        >>> x, y, c = digits.train[0]
        >>> x.shape, c.shape
        (torch.Size([1, 8, 8]), torch.Size([6]))
    """
    return load_request(SETS, request({"name": name, **options}))


def request(options: Mapping[str, Any], section: str = "data") -> ConceptRequest:
    """Check the options of a data set.

    Args:
        options: those of `load`, with the `name`.
        section: their key in a configuration, for messages.

    Raises:
        ValueError: If a name or option is unknown, or a value is not valid.
    """
    return request_of("data set with concepts", SETS, ConceptRequest, options, section)


def names() -> list[str]:
    """List the data sets that `load` knows.

    Example:
        >>> names()[:4]
        ['concept_csv', 'concept_image_folder', 'digits_concepts', 'dot']
    """
    return sorted(SETS)


def xor(request: ConceptRequest, *, size: Count = 3000, test: Fraction = 0.2) -> ConceptData:
    """Generate points of the unit square, whose class is whether exactly one coordinate is above one half.

    Args:
        request: options of all data sets.
        size: number of points in all splits together.
        test: fraction of them that are test rows.
    """
    points = request.rng(0).random((size, 2))
    labels = points > 0.5
    return _points("xor", request, Concepts.of(["right", "upper"]), points, labels, labels[:, 0] ^ labels[:, 1], test)


def trigonometry(request: ConceptRequest, *, size: Count = 3000, test: Fraction = 0.2) -> ConceptData:
    """Generate three latent numbers, observed through sine, cosine and their norm; the concepts are their signs.

    h ~ N(0, 2²), x = (sin h_i + h_i, cos h_i + h_i, |h|²), c_i = [h_i > 0], y = [sum h > 1].

    Args:
        request: options of all data sets.
        size: number of samples in all splits together.
        test: fraction of them that are test rows.
    """
    latent = 2 * request.rng(0).standard_normal((size, 3))
    inputs = np.hstack([np.sin(latent) + latent, np.cos(latent) + latent, (latent**2).sum(1, keepdims=True)])
    concepts = Concepts.of([f"hidden_{index}_positive" for index in range(3)])
    return _points("trigonometry", request, concepts, inputs, latent > 0, latent.sum(1) > 1, test)


def dot(request: ConceptRequest, *, size: Count = 3000, test: Fraction = 0.2) -> ConceptData:
    """Generate two latent vectors, observed through sum and difference; the class is the sign of their product.

    v1, v3 ~ N(0, 2²) in two dimensions, v2 = 1, v4 = -1, x = (v1 + v3, v1 - v3), c = ([v1.v2 > 0], [v3.v4 > 0]),
    y = [v1.v3 > 0]: the concepts have little information on the class.

    Args:
        request: options of all data sets.
        size: number of samples in all splits together.
        test: fraction of them that are test rows.
    """
    first, third = 2 * request.rng(0).standard_normal((2, size, 2))
    inputs = np.hstack([first + third, first - third])
    labels = np.stack([first.sum(1) > 0, -third.sum(1) > 0], axis=1)
    concepts = Concepts.of(["first_up", "third_down"])
    return _points("dot", request, concepts, inputs, labels, (first * third).sum(1) > 0, test)


def digits_concepts(request: ConceptRequest, *, test: Fraction = 0.2) -> ConceptData:
    """Load scikit-learn's 1,797 handwritten digits with six concepts each, such as even, prime, closed loop.

    The concepts are functions of the digit and together determine it. No file is needed.

    Args:
        request: options of all data sets.
        test: fraction of the rows that are test rows.
    """
    pixels, classes = map(np.asarray, load_digits(return_X_y=True))
    labels = np.stack([np.isin(classes, digits) for digits in DIGIT_CONCEPTS.values()], axis=1)
    inputs = unit_range(torch.tensor(pixels).view(-1, 1, 8, 8), 16)
    class_names = [str(digit) for digit in DIGITS]
    return assemble(
        "digits_concepts", request, Concepts.of(list(DIGIT_CONCEPTS)), inputs=inputs.__getitem__, classes=classes,
        class_names=class_names, labels=labels, splits=request.stratified_split(classes, class_names, test),
        normalization=GRAYSCALE,
    )  # fmt: skip


def mnist_addition(
    request: ConceptRequest,
    *,
    size: Count = 10_000,
    test: Fraction = 0.2,
    threshold: Annotated[int, Field(ge=0, lt=18)] | None = None,
) -> ConceptData:
    """Load pairs of MNIST digits side by side, 28 x 56; the concepts are the two digits, the class is their sum.

    Args:
        request: options of all data sets.
        size: number of pairs in all splits together.
        test: fraction of the pairs that are test rows, made of MNIST's test images.
        threshold: the class is whether the sum is above this number; None: the sum itself, 19 classes.
    """
    images, digits, held_out = _mnist(request, size, test, per_row=2)
    sums = digits.sum(1)
    classes = sums if threshold is None else (sums > threshold).astype(int)
    names = [str(total) for total in range(19)] if threshold is None else [f"<= {threshold}", f"> {threshold}"]
    concepts = Concepts.of([{"name": name, "values": list(DIGITS)} for name in ("left", "right")])
    inputs = torch.cat([images[:, 0], images[:, 1]], -1).unsqueeze(1)
    return assemble(
        "mnist_addition", request, concepts, inputs=inputs.__getitem__, classes=classes, class_names=names,
        labels=np.hstack([np.eye(10)[digits[:, 0]], np.eye(10)[digits[:, 1]]]),
        splits=_splits_before(request, classes, names, held_out), normalization=GRAYSCALE,
    )  # fmt: skip


def mnist_parity(request: ConceptRequest, *, size: Count = 10_000, test: Fraction = 0.2) -> ConceptData:
    """Load MNIST digits; the concept is the digit, the class is whether it is odd.

    Args:
        request: options of all data sets.
        size: number of images in all splits together.
        test: fraction of them that are test rows, from MNIST's test images.
    """
    images, digits, held_out = _mnist(request, size, test, per_row=1)
    classes, names = digits[:, 0] % 2, ["even", "odd"]
    return assemble(
        "mnist_parity", request, Concepts.of([{"name": "digit", "values": list(DIGITS)}]), inputs=images.__getitem__,
        classes=classes, class_names=names, labels=np.eye(10)[digits[:, 0]],
        splits=_splits_before(request, classes, names, held_out), normalization=GRAYSCALE,
    )  # fmt: skip


def shapes(
    request: ConceptRequest,
    *,
    size: Count = 4000,
    test: Fraction = 0.25,
    image_size: Annotated[int, Field(ge=8)] = 24,
    noise: NotNegative = 0.25,
    spurious: Annotated[float, Field(ge=0, le=1)] = 0.95,
) -> ConceptData:
    """Generate images of shapes, whose class is whether two or more of circle, large and striped are true.

    Concepts therefore vary within a class. The color is independent of the class. The brightness of the background is
    spuriously correlated with the class; the correlation flips in the shifted test split, which has the same images
    with the other background.

    Args:
        request: options of all data sets.
        size: number of images in all splits together.
        test: fraction of them that are test rows.
        image_size: side in pixels.
        noise: standard deviation of the noise of pixels, whose range is [0, 1].
        spurious: fraction of the images whose background agrees with their class: 0.5: independent, 1: all.
    """
    rng = request.rng(0)
    labels = rng.integers(2, size=(size, len(SHAPE_CONCEPTS)))
    classes = (labels[:, :3].sum(1) >= 2).astype(int)
    labels[:, 4] = np.where(rng.random(size) < spurious, classes, 1 - classes)
    flipped = np.column_stack([labels[:, :4], 1 - labels[:, 4]])
    images, shifted = (draw_shapes(concepts, image_size, noise, request.rng(2)) for concepts in (labels, flipped))
    names = ["fewer than two", "two or more"]
    splits = request.stratified_split(classes, names, test)
    rows = splits[2]
    return assemble(
        "shapes", request, Concepts.of(list(SHAPE_CONCEPTS)), inputs=images.__getitem__, classes=classes,
        class_names=names, labels=labels, splits=splits,
        shifted=ConceptRows(shifted[rows], torch.tensor(classes)[rows], torch.tensor(flipped[rows]).float()),
        normalization=Normalization.of(0.5, 0.5, channels=3),
    )  # fmt: skip


def _points(
    name: str,
    request: ConceptRequest,
    concepts: Concepts,
    inputs: np.ndarray,
    labels: np.ndarray,
    positive: np.ndarray,
    test: float,
) -> ConceptData:
    """Assemble points of two classes, standardized by the training rows."""
    classes, names = positive.astype(int), ["no", "yes"]
    splits = request.stratified_split(classes, names, test)
    points = torch.tensor(standardized(inputs, splits[0]), dtype=torch.float32)
    return assemble(
        name, request, concepts, inputs=points.__getitem__, classes=classes, class_names=names, labels=labels,
        splits=splits,
    )  # fmt: skip


def _mnist(request: ConceptRequest, size: int, test: float, *, per_row: int) -> tuple[Tensor, np.ndarray, int]:
    """Sample MNIST digits: images `(size, per_row, 28, 28)`, digits `(size, per_row)`, and the number of test rows.

    The test rows are the last ones, made of MNIST's test images.
    """
    digits = data.load("mnist", root=request.root, download=request.download, validation=0)
    held_out = round(test * size)
    rng = request.rng(0)
    images, labels = [], []
    for split, count in ((digits.train, size - held_out), (digits.test, held_out)):
        if not 0 < count <= len(split):
            raise ValueError(
                f"size={size} and test={test} must take 1 to {len(split)} rows of a split of MNIST, got {count}"
            )
        rows = torch.from_numpy(np.stack([rng.permutation(len(split))[:count] for _ in range(per_row)], axis=1))
        images.append(split.inputs[rows].squeeze(2))
        labels.append(split.targets[rows])
    return torch.cat(images), torch.cat(labels).numpy(), held_out


def _splits_before(
    request: ConceptRequest, classes: np.ndarray, class_names: Sequence[str], held_out: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split the rows before the last `held_out`, the test rows, into training and validation rows."""
    count = len(classes) - held_out
    train, validation, _ = request.stratified_split(classes[:count], class_names)
    return train, validation, np.arange(count, len(classes))


SETS: dict[str, Callable[..., ConceptData]] = {
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
