"""Classification data sets behind one name: `load("digits")`, `load("csv", path="table.csv", target="type")`.

Every set is cut in the same way: a validation share is held out of the training part, stratified and seeded; a set
without a test part of its own gives one up first. Whatever is fitted is fitted on the training rows alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor

from ibreg.runs.data.colored import GROUPS, groups_of, paint
from ibreg.runs.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageFiles,
    channels_first,
    class_folders,
    crop_and_flip,
    normalized,
    per_channel,
)
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Request, data_folder
from ibreg.runs.data.tables import feature_values, read_table, standardized, target_classes
from ibreg.runs.dispatch import choose, keyword_options


@dataclass(frozen=True)
class ClassificationData:
    """A data set cut into training, validation and test rows, with what a model must know of it.

    Args:
        name: Name in the registry.
        train: Training rows, `(input, target)` with the target an integer class.
        validation: Rows held out of the training part, or None.
        test: Test rows.
        input_shape: Shape of one input: `(features,)` or `(channels, height, width)`.
        class_names: One name per class, in the order of the targets.
        groups: Where an average would hide a spurious correlation: takes inputs and targets and returns of each sample
            the index of its group.
        group_names: One name per group.
    """

    name: str
    train: Rows
    validation: Rows | None
    test: Rows
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    groups: Callable[[Tensor, Tensor], Tensor] | None = None
    group_names: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


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
    """Loads a data set by name and cuts it.

    Args:
        name: One of `names()`.
        root: Folder of the data; without it the environment variable `IBREG_DATA`, then `data`.
        download: Whether missing files may be fetched, where torchvision can fetch them.
        validation: Share of the training part that is held out, in [0, 1); 0 for none.
        split_seed: Seed of every cut.
        limit: Number of training rows to keep, stratified; 0 for all.
        options: The set's own options, as they stand in `configs/data/<name>.yaml`.

    Raises:
        ValueError: For an unknown name or option, a share out of range, a class too rare to be in every part, and
            data that cannot be used as they are.
        FileNotFoundError: If the files are not there; the message says what belongs where.

    Example:
        >>> data = load("digits", validation=0.25)
        >>> data.input_shape, data.classes
        ((1, 8, 8), 10)
        >>> len(data.train), len(data.validation), len(data.test)
        (1077, 360, 360)
    """
    function = choose("data set", name, _SETS, options, beside=f", all sets {list(keyword_options(load))}")
    folder = data_folder(root)
    return function(Request(folder, download, validation, split_seed, limit), **options)


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()
        ['cifar10', 'colored_mnist', 'csv', 'digits', 'fashion_mnist', 'image_folder', 'mnist']
    """
    return sorted(_SETS)


def _data(name: str, parts: Sequence[Rows], class_names: Sequence[str]) -> ClassificationData:
    train, validation, test = parts
    shape = tuple(test[0][0].shape)
    return ClassificationData(name, train, validation if len(validation) else None, test, shape, tuple(class_names))


def digits(
    request: Request, *, test: float = 0.2, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
) -> ClassificationData:
    """Loads scikit-learn's 1,797 handwritten digits, 8 x 8 in gray; they come with scikit-learn, no file is needed.

    Args:
        request: How the set is cut.
        test: Share of the rows for the test part.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    pixels, labels = load_digits(return_X_y=True)
    class_names = [str(digit) for digit in range(10)]
    inputs = normalized(torch.tensor(pixels).view(-1, 1, 8, 8), 16, mean, std)
    targets = torch.tensor(labels)
    parts = [Rows(inputs[rows], targets[rows]) for rows in request.stratified_split(labels, class_names, test)]
    return _data("digits", parts, class_names)


def mnist(
    request: Request, *, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
) -> ClassificationData:
    """Loads MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 in gray.

    Args:
        request: Where the set lies and how it is cut.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    return _downloadable("mnist", request, mean, std)


def colored_mnist(
    request: Request,
    *,
    correlation: float = 0.9,
    test_correlation: float = 0.5,
    label_noise: float = 0.0,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
) -> ClassificationData:
    """Loads MNIST painted red or green, the label being whether the digit is 5 or more, see `colored.paint`.

    Args:
        request: Where the set lies and how it is cut; its seed is also that of the colors.
        correlation: Share of training and validation images whose color is that of their label.
        test_correlation: The same of the test images; at 0.5 color tells nothing.
        label_noise: Share of wrong labels, in all parts.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    gray = mnist(request, mean=0.0, std=1.0)
    generator = torch.Generator().manual_seed(request.split_seed)
    parts = []
    for part, share in ((gray.train, correlation), (gray.validation, correlation), (gray.test, test_correlation)):
        if part is None:
            parts.append(Rows(gray.test.inputs[:0], gray.test.targets[:0]))
            continue
        images, labels = paint(
            part.inputs, part.targets, correlation=share, label_noise=label_noise, generator=generator
        )
        parts.append(Rows(normalized(images, 1, mean, std), labels))
    return replace(_data("colored_mnist", parts, ["0 to 4", "5 to 9"]), groups=groups_of, group_names=GROUPS)


def fashion_mnist(
    request: Request, *, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
) -> ClassificationData:
    """Loads Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28 x 28 in gray.

    Args:
        request: Where the set lies and how it is cut.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    return _downloadable("fashion_mnist", request, mean, std)


def cifar10(
    request: Request,
    *,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
    augment: bool = False,
) -> ClassificationData:
    """Loads CIFAR-10: 50,000 + 10,000 photographs, 32 x 32 in color.

    Args:
        request: Where the set lies and how it is cut.
        mean: Subtracted from values in [0, 1], one number or one per channel.
        std: What they are divided by then.
        augment: Whether training images are cropped and mirrored at random.
    """
    return _downloadable("cifar10", request, mean, std, crop_and_flip if augment else None)


_DOWNLOADABLE = {
    "mnist": (torchvision.datasets.MNIST, "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "fashion_mnist": (
        torchvision.datasets.FashionMNIST,
        "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    ),
    "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py/{data_batch_1 ... 5,test_batch,batches.meta}"),
}


def _downloadable(name, request, mean, std, augment=None) -> ClassificationData:
    """Loads a set that torchvision reads, and fetches on demand, into memory."""
    kind, files = _DOWNLOADABLE[name]
    try:
        train, test = (kind(request.root, train=train, download=request.download) for train in (True, False))
    except RuntimeError as error:
        if request.download:
            raise
        raise FileNotFoundError(
            f"{name} is not in {request.root.absolute()}, or is damaged: put {files} there, set data.root or "
            "IBREG_DATA to the folder that has them, or fetch them with data.download=true"
        ) from error
    pixels, targets = channels_first(train.data), torch.as_tensor(train.targets)

    def part(rows, augment=None):
        return Rows(normalized(pixels[rows], 255, mean, std), targets[rows], augment)

    training, validation, _ = request.stratified_split(targets.numpy(), train.classes)
    held_out = Rows(normalized(channels_first(test.data), 255, mean, std), torch.as_tensor(test.targets))
    return _data(name, [part(training, augment), part(validation), held_out], train.classes)


def image_folder(
    request: Request,
    *,
    path: str | Path,
    image_size: int = 224,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
    augment: bool = False,
    broken: str = "stop",
) -> ClassificationData:
    """Loads images from `path/train/<class>/` and `path/test/<class>/`, decoded batch by batch.

    Args:
        request: Where the set lies and how it is cut.
        path: Folder with `train` and `test`, under the root or as it stands.
        image_size: Side in pixels: the shorter side is resized to it and the center kept.
        mean: Subtracted from values in [0, 1], one number or one per channel.
        std: What they are divided by then.
        augment: Whether training images are cropped and mirrored at random.
        broken: "stop" at a broken file when it is met, or "skip" them, which decodes every file once beforehand.

    Raises:
        ValueError: If the two parts have other classes, or a class has no image.
    """
    if broken not in ("stop", "skip"):
        raise ValueError(f"broken={broken!r} is stop or skip")
    if not (isinstance(image_size, int) and image_size > 0):
        raise ValueError(f"image_size={image_size!r} is a number of pixels: 1 or more")
    mean, std = per_channel("mean", mean, 3), per_channel("std", std, 3)
    folder = request.find(path, "image folder")
    train, test = (class_folders(folder / part, skip_broken=broken == "skip") for part in ("train", "test"))
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        raise ValueError(f"{folder} must have the same classes in train and test, but these stand in one only: {odd}")

    def part(source, rows, augment=None):
        files = ImageFiles([source.samples[row][0] for row in rows], image_size, mean, std)
        return Rows(files, torch.tensor(source.targets)[rows], augment)

    training, validation, _ = request.stratified_split(np.array(train.targets), train.classes)
    parts = [
        part(train, training, crop_and_flip if augment else None),
        part(train, validation),
        part(test, range(len(test))),
    ]
    return _data("image_folder", parts, train.classes)


def csv_file(
    request: Request, *, path: str | Path, target: str, drop: Sequence[str] = (), test: float = 0.2
) -> ClassificationData:
    """Loads a table of numbers with a header; each column is standardized by the training rows.

    Args:
        request: Where the set lies and how it is cut.
        path: Comma-separated file, under the root or as it stands.
        target: Column of the class, integers or text.
        drop: Columns to leave out.
        test: Share of the rows for the test part.

    Raises:
        ValueError: For columns that are not there, and for cells that are no numbers, with their lines.
    """
    table = read_table(request.find(path, "table"), target, drop)
    labels, class_names = target_classes(table)
    values = feature_values(table)
    parts = request.stratified_split(labels, class_names, test)
    inputs = torch.tensor(standardized(values, parts[0]), dtype=torch.float32)
    targets = torch.tensor(labels)
    return _data("csv", [Rows(inputs[rows], targets[rows]) for rows in parts], class_names)


_SETS: dict[str, Callable[..., ClassificationData]] = {
    "digits": digits,
    "mnist": mnist,
    "colored_mnist": colored_mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "image_folder": image_folder,
    "csv": csv_file,
}
