"""Classification data sets by name: `load("digits")`, `load("csv", path="table.csv", target="type")`.

All sets are split in the same way: a validation fraction is held out of the training rows, stratified and seeded; for a
set without a test split, test rows are held out first. Statistics such as means are fitted on the training rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torchvision
from pydantic import Field
from sklearn.datasets import load_digits
from torch import Tensor

from ibreg.runs.config.section import Count
from ibreg.runs.data.colored import GROUPS, groups_of, paint
from ibreg.runs.data.image_files import ImageFiles
from ibreg.runs.data.image_folders import ClassFolders, train_and_test
from ibreg.runs.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VALUE_RANGE,
    Normalization,
    PerChannel,
    channels_first,
    crop_and_flip,
    unit_range,
)
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Fraction, Request, load_request, request_of
from ibreg.runs.data.table_split import split_classes
from ibreg.runs.data.tables.columns import ColumnReport
from ibreg.runs.data.tables.encoding import encode
from ibreg.runs.data.tables.options import ColumnName, ColumnNames, Kinds, Marks
from ibreg.runs.data.tables.reading import MISSING_MARKS, read_table
from ibreg.runs.data.tables.roles import Roles
from ibreg.runs.data.tables.targets import target_classes


@dataclass(frozen=True)
class ClassificationData:
    """A data set split into training, validation and test rows, and the properties that a model needs.

    Args:
        name: name in the registry.
        train: training rows, `(input, target)` with the target an integer class.
        validation: rows held out of the training rows, or None.
        test: test rows.
        input_shape: shape of one input: `(features,)` or `(channels, height, width)`.
        class_names: one name per class, in the order of the targets.
        value_range: smallest and largest value of an input; None: no limits, as for tables.
        normalization: how a network normalizes the inputs; None: no normalization.
        groups: for data with a spurious correlation, which an average hides: maps inputs and targets to the group index
            of each sample.
        group_names: one name per group.
        input_names: one name per input of a table.
        columns: what was done with every column of a table.
    """

    name: str
    train: Rows
    validation: Rows | None
    test: Rows
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    value_range: tuple[float, float] | None = None
    normalization: Normalization | None = None
    groups: Callable[[Tensor, Tensor], Tensor] | None = None
    group_names: tuple[str, ...] = ()
    input_names: tuple[str, ...] = ()
    columns: tuple[ColumnReport, ...] = ()

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def has_images(self) -> bool:
        """Whether inputs are images, `(channels, height, width)`."""
        return len(self.input_shape) == 3


def load(name: str, **options: Any) -> ClassificationData:
    """Loads a data set by name and splits its rows.

    Args:
        name: one of `names()`.
        **options: those of all data sets, see `ibreg.runs.data.split.Request`, and its own, as in
            `configs/data/<name>.yaml`.

    Raises:
        ValueError: If a name or option is unknown, a fraction is out of range, a class is too rare to be in every
            split, or the data are not usable.
        FileNotFoundError: If files are missing; the message names the files and their folder.

    Example:
        >>> data = load("digits", validation=0.25)
        >>> data.input_shape, data.classes, data.value_range
        ((1, 8, 8), 10, (0.0, 1.0))
        >>> len(data.train), len(data.validation), len(data.test)
        (1077, 360, 360)
    """
    return load_request(SETS, request({"name": name, **options}))


def request(options: Mapping[str, Any], section: str = "data") -> Request:
    """Checks the options of a data set.

    Args:
        options: those of `load`, with the `name`.
        section: their key in a configuration, for messages.

    Raises:
        ValueError: If a name or option is unknown, or a value is not valid.
    """
    return request_of("data set", SETS, Request, options, section)


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()
        ['cifar10', 'colored_mnist', 'csv', 'digits', 'fashion_mnist', 'image_folder', 'mnist']
    """
    return sorted(SETS)


def _image_data(
    name: str,
    splits: Sequence[Rows],
    class_names: Sequence[str],
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> ClassificationData:
    data = _data(name, splits, class_names)
    normalization = Normalization.of(mean, std, channels=data.input_shape[0])
    return replace(data, value_range=VALUE_RANGE, normalization=normalization)


def _data(name: str, splits: Sequence[Rows], class_names: Sequence[str]) -> ClassificationData:
    train, validation, test = splits
    shape = tuple(test[0][0].shape)
    return ClassificationData(name, train, validation if len(validation) else None, test, shape, tuple(class_names))


def digits(
    request: Request, *, test: Fraction = 0.2, mean: PerChannel = 0.5, std: PerChannel = 0.5
) -> ClassificationData:
    """Loads scikit-learn's 1,797 handwritten digits, grayscale images of 8 x 8; no file is needed.

    Args:
        request: options of all data sets.
        test: fraction of the rows that are test rows.
        mean: mean of the values in [0, 1], by which the network normalizes.
        std: their standard deviation.
    """
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    class_names = [str(digit) for digit in range(10)]
    inputs = unit_range(torch.tensor(pixels).view(-1, 1, 8, 8), 16)
    targets = torch.tensor(labels)
    splits = [Rows(inputs[rows], targets[rows]) for rows in request.stratified_split(labels, class_names, test)]
    return _image_data("digits", splits, class_names, mean, std)


def mnist(request: Request, *, mean: PerChannel = 0.5, std: PerChannel = 0.5) -> ClassificationData:
    """Loads MNIST: 60,000 + 10,000 handwritten digits, grayscale images of 28 x 28.

    Args:
        request: options of all data sets.
        mean: mean of the values in [0, 1], by which the network normalizes.
        std: their standard deviation.
    """
    return _torchvision_set("mnist", request, mean, std)


def colored_mnist(
    request: Request,
    *,
    correlation: Annotated[float, Field(ge=0, le=1)] = 0.9,
    test_correlation: Annotated[float, Field(ge=0, le=1)] = 0.5,
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0,
    mean: PerChannel = 0.5,
    std: PerChannel = 0.5,
) -> ClassificationData:
    """Loads MNIST in red or green; the class is whether the digit is 5 or more, see `colored.paint`.

    Args:
        request: options of all data sets; `split_seed` is also the seed of the colors.
        correlation: fraction of training and validation images whose color is that of their label.
        test_correlation: the same fraction of the test images; at 0.5 the color is independent of the label.
        label_noise: fraction of incorrect labels, in all splits.
        mean: mean of the values in [0, 1], by which the network normalizes: one number, or one per channel.
        std: their standard deviation.
    """
    gray = mnist(request)
    generator = torch.Generator().manual_seed(request.split_seed)
    splits = []
    for rows, fraction in ((gray.train, correlation), (gray.validation, correlation), (gray.test, test_correlation)):
        if rows is None:
            splits.append(Rows(gray.test.inputs[:0], gray.test.targets[:0]))
            continue
        images, labels = paint(
            rows.inputs, rows.targets, correlation=fraction, label_noise=label_noise, generator=generator
        )
        splits.append(Rows(images, labels))
    colored = _image_data("colored_mnist", splits, ["0 to 4", "5 to 9"], mean, std)
    return replace(colored, groups=groups_of, group_names=GROUPS)


def fashion_mnist(request: Request, *, mean: PerChannel = 0.5, std: PerChannel = 0.5) -> ClassificationData:
    """Loads Fashion-MNIST: 60,000 + 10,000 grayscale images of 28 x 28.

    Args:
        request: options of all data sets.
        mean: mean of the values in [0, 1], by which the network normalizes.
        std: their standard deviation.
    """
    return _torchvision_set("fashion_mnist", request, mean, std)


def cifar10(
    request: Request,
    *,
    mean: PerChannel = IMAGENET_MEAN,
    std: PerChannel = IMAGENET_STD,
    augment: bool = False,
) -> ClassificationData:
    """Loads CIFAR-10: 50,000 + 10,000 RGB images of 32 x 32.

    Args:
        request: options of all data sets.
        mean: mean of the values in [0, 1], by which the network normalizes: one number, or one per channel.
        std: their standard deviation.
        augment: whether training images are cropped and mirrored at random.
    """
    return _torchvision_set("cifar10", request, mean, std, augment=augment)


_TORCHVISION_SETS = {
    "mnist": (torchvision.datasets.MNIST, "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"),
    "fashion_mnist": (
        torchvision.datasets.FashionMNIST,
        "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    ),
    "cifar10": (torchvision.datasets.CIFAR10, "cifar-10-batches-py/{data_batch_1 ... 5,test_batch,batches.meta}"),
}


def _torchvision_set(name: str, request: Request, mean, std, *, augment: bool = False) -> ClassificationData:
    """Loads a data set of torchvision into memory, and downloads it if requested."""
    kind, files = _TORCHVISION_SETS[name]
    try:
        train, test = (kind(request.folder, train=train, download=request.download) for train in (True, False))
    except RuntimeError as error:
        if request.download:
            raise
        raise FileNotFoundError(
            f"{name} is not in {request.folder.absolute()}, or is damaged: put {files} there, set data.root or "
            "IBREG_DATA to the folder that has them, or fetch them with data.download=true"
        ) from error
    pixels, targets = channels_first(train.data), torch.as_tensor(train.targets)
    training, validation, _ = request.stratified_split(targets.numpy(), train.classes)
    splits = [
        Rows(unit_range(pixels[training], 255), targets[training], _augmentation(mean, pixels.shape[1], augment)),
        Rows(unit_range(pixels[validation], 255), targets[validation]),
        Rows(unit_range(channels_first(test.data), 255), torch.as_tensor(test.targets)),
    ]
    return _image_data(name, splits, train.classes, mean, std)


def _augmentation(mean: float | Sequence[float], channels: int, augment: bool):
    return partial(crop_and_flip, fill=Normalization.of(mean, 1.0, channels).mean) if augment else None


def image_folder(
    request: Request,
    *,
    path: str | Path,
    image_size: Count = 224,
    mean: PerChannel = IMAGENET_MEAN,
    std: PerChannel = IMAGENET_STD,
    augment: bool = False,
    broken: Literal["stop", "skip"] = "stop",
    workers: Annotated[int, Field(ge=0)] = 0,
) -> ClassificationData:
    """Loads images from `path/train/<class>/` and `path/test/<class>/`, decoded batch by batch.

    Images are as viewers show them: upright by their EXIF orientation, transparency over white, the first frame of
    several. Grayscale of 16 bits is scaled to [0, 1] as all others.

    Args:
        request: options of all data sets.
        path: folder with `train` and `test`, absolute, or relative to the data folder or to the current folder.
        image_size: side in pixels, to which the square at the center of an image is resized.
        mean: mean of the values in [0, 1], by which the network normalizes: one number, or one per channel.
        std: their standard deviation.
        augment: whether training images are cropped and mirrored at random.
        broken: "stop" raises at a broken file when it is read; "skip" decodes all files once and drops broken ones.
        workers: number of processes that decode images while the model trains; 0: the main process. Results do not
            depend on it.

    Raises:
        ValueError: If train and test have different classes, or a class has no image.
    """
    folder = request.find(path, "image folder")
    train, test = train_and_test(folder, skip_broken=broken == "skip")

    def rows_of(source: ClassFolders, rows: Sequence[int] | np.ndarray, augment: bool = False) -> Rows:
        files = ImageFiles([source.paths[row] for row in rows], image_size, workers)
        return Rows(files, torch.tensor(source.labels)[rows], _augmentation(mean, 3, augment))

    training, validation, _ = request.stratified_split(np.array(train.labels), train.classes)
    splits = [rows_of(train, training, augment), rows_of(train, validation), rows_of(test, range(len(test.paths)))]
    return _image_data("image_folder", splits, train.classes, mean, std)


def csv_file(
    request: Request,
    *,
    path: str | Path,
    target: ColumnName,
    drop: ColumnNames = (),
    groups: ColumnName | None = None,
    order: ColumnName | None = None,
    kinds: Kinds | None = None,
    missing_marks: Marks = MISSING_MARKS,
    test: Fraction = 0.2,
) -> ClassificationData:
    """Loads a table with a header, csv or parquet; every column is encoded by statistics of the training rows.

    Args:
        request: options of all data sets.
        path: file, absolute, or relative to the data folder or to the current folder.
        target: column of the class, integers or strings.
        drop: columns to leave out.
        groups: column of the groups, none of which is in two splits; None: rows are split at random.
        order: column of numbers or times that orders the rows: the latest are test rows; None: at random.
        kinds: what columns are read as where their cells do not decide it: number, boolean, text or date by column.
        missing_marks: cells that stand for a missing value, in any case.
        test: fraction of the rows that are test rows.

    Raises:
        ValueError: If a column does not exist, or a cell cannot be used; the message names the line.
    """
    table = read_table(request.find(path, "table"), missing_marks)
    roles = Roles.of(table, target, drop=drop, groups=groups, order=order, kinds=kinds)
    labels, class_names = target_classes(table, roles.target)
    splits = split_classes(request, table, roles, labels, class_names, test)
    encoded = encode(table, roles, splits[0], {roles.target: ("class", f"{len(class_names)} classes")})
    inputs, targets = torch.from_numpy(encoded.inputs), torch.from_numpy(labels)
    data = _data("csv", [Rows(inputs[rows], targets[rows]) for rows in splits], class_names)
    return replace(data, input_names=encoded.names, columns=encoded.columns)


SETS: dict[str, Callable[..., ClassificationData]] = {
    "digits": digits,
    "mnist": mnist,
    "colored_mnist": colored_mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "image_folder": image_folder,
    "csv": csv_file,
}
