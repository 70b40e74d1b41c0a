"""Classification data sets behind one name: `load("digits")`, `load("csv", path="table.csv", target="type")`.

Every set is cut in the same way: a validation share is held out of the training part, stratified and seeded; a set
without a test part of its own gives one up first. Whatever is fitted is fitted on the training rows alone.
"""

import csv
import difflib
import inspect
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision import transforms
from torchvision.datasets.folder import default_loader

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


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
    """

    name: str
    train: Dataset
    validation: Dataset | None
    test: Dataset
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]

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
    function = _chosen(name, options)
    folder = Path(root or os.environ.get("IBREG_DATA") or "data").expanduser()
    return function(Request(folder, download, validation, split_seed, limit), **options)


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()
        ['cifar10', 'csv', 'digits', 'fashion_mnist', 'image_folder', 'mnist']
    """
    return sorted(_SETS)


def loader(dataset: Dataset, batch_size: int, *, sampler: Sampler | None = None, drop_last: bool = False) -> DataLoader:
    """Makes a loader of batches `(inputs, targets)`, which fetches a whole batch at once where the set can do so.

    Args:
        dataset: A part of a `ClassificationData`, or any other map-style set.
        batch_size: Rows per batch.
        sampler: Order of the rows; without it, their own.
        drop_last: Whether an incomplete last batch is left out.

    Example:
        >>> inputs, targets = next(iter(loader(load("digits").test, 32)))
        >>> inputs.shape, targets.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    return DataLoader(dataset, batch_size, sampler=sampler, drop_last=drop_last, collate_fn=_collate)


def _collate(batch):
    """Passes a finished batch on and stacks a list of samples."""
    return batch if isinstance(batch, tuple) else default_collate(batch)


class Rows(Dataset):
    """Inputs and targets that are fetched a whole batch at a time.

    Args:
        inputs: `(rows, ...)`: a tensor, or anything that gives a batch for a list of row numbers.
        targets: `(rows,)`, integer classes.
        augment: Changes a batch of inputs at random, each time that it is fetched.

    Example:
        >>> rows = Rows(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0]))
        >>> rows[1]
        (tensor([2., 3.]), tensor(1))
        >>> rows.__getitems__([2, 0])
        (tensor([[4., 5.],
                [0., 1.]]), tensor([0, 0]))
    """

    def __init__(self, inputs, targets: Tensor, augment: Callable[[Tensor], Tensor] | None = None):
        self.inputs, self.targets, self.augment = inputs, targets, augment

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        inputs = self.inputs[indices]
        return inputs if self.augment is None else self.augment(inputs), self.targets[indices]


class ImageFiles:
    """Image files that are indexed like a tensor `(rows, 3, size, size)` and decoded when asked for.

    Args:
        paths: One file per row.
        image_size: Side of the square picture in pixels: the shorter side is resized to it, the centre is kept.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(self, paths: Sequence[str], image_size: int, mean: Sequence[float], std: Sequence[float]):
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(image_size),
                transforms.CenterCrop(image_size),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __getitem__(self, indices: list[int]) -> Tensor:
        return torch.stack([self.transform(default_loader(self.paths[index])) for index in indices])


def crop_and_flip(images: Tensor) -> Tensor:
    """Shifts every picture by up to an eighth of its size and mirrors half of them, as is usual for CIFAR-10.

    What is shifted in is 0, the mean colour of normalised pictures (He et al. 2016, arXiv 1512.03385, section 4.2).

    Args:
        images: `(batch, channels, height, width)`.

    Example:
        >>> crop_and_flip(torch.randn(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])
    """
    batch, channels, height, width = images.shape
    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down))
    rows = torch.randint(2 * down + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(2 * right + 1, (batch, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(batch, 1) < 0.5, columns, columns.flip(1))
    picture = torch.arange(batch)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Request:
    """What is asked of every set: where it lies and how it is cut; the arguments are those of `load`."""

    root: Path
    download: bool
    validation: float
    split_seed: int
    limit: int

    def __post_init__(self):
        if not (isinstance(self.validation, int | float) and 0 <= self.validation < 1):
            raise ValueError(f"validation={self.validation!r} is a share: at least 0 (none) and less than 1")
        if not (isinstance(self.split_seed, int) and 0 <= self.split_seed < 2**32):
            raise ValueError(f"split_seed={self.split_seed!r} is a whole number from 0 to 2**32 - 1")
        if not (isinstance(self.limit, int) and self.limit >= 0):
            raise ValueError(f"limit={self.limit!r} is a number of training rows: 0 (all) or more")

    def find(self, path: str | Path, what: str) -> Path:
        """Finds a user's own file or folder, under the root or as the path stands."""
        places = [self.root / Path(path).expanduser(), Path(path).expanduser()]
        for place in places:
            if place.exists():
                return place
        looked = " nor ".join(str(place.absolute()) for place in dict.fromkeys(places))
        raise FileNotFoundError(
            f"no {what} at {looked}: set data.path to it (and data.root or IBREG_DATA to the folder that data.path "
            "starts from); it is your own data, which data.download=true cannot fetch"
        )

    def cut(
        self, labels: np.ndarray, class_names: Sequence[str], test: float | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cuts rows into training, validation and test rows, each class in the same proportion in all of them.

        Args:
            labels: `(rows,)`, classes from 0.
            class_names: One name per class, for messages.
            test: Share of the rows for the test part; None for a set that has one of its own.
        """
        if not (test is None or (isinstance(test, int | float) and 0 < test < 1)):
            raise ValueError(f"test={test!r} is a share: more than 0 and less than 1")
        if len(class_names) < 2:
            raise ValueError(f"the only class is {class_names[0]!r}: classification needs two or more")
        train, held_out = self._hold_out(np.arange(len(labels)), test, "test", labels, class_names)
        train, validation = self._hold_out(train, self.validation, "validation", labels, class_names)
        if 0 < self.limit < len(train):
            train = self._keep(train, labels, class_names)
        return train, validation, held_out

    def _hold_out(self, rows, share, part, labels, class_names) -> tuple[np.ndarray, np.ndarray]:
        kept, held_out = rows, rows[:0]
        if not share:
            return kept, held_out
        with suppress(ValueError):  # scikit-learn refuses a class of one row, and a side with fewer rows than classes
            sides = train_test_split(rows, test_size=share, stratify=labels[rows], random_state=self.split_seed)
            kept, held_out = map(np.asarray, sides)
        if any(len(np.unique(labels[side])) < len(class_names) for side in (kept, held_out)):
            counts = np.bincount(labels[rows], minlength=len(class_names))
            raise ValueError(
                f"{part}={share} of {len(rows)} rows cannot have every class on both sides: class "
                f"{class_names[counts.argmin()]!r} has {counts.min()} of them. Set data.{part} nearer to 0.5, give the "
                "class more rows, merge it with another or leave it out; data.validation=0 holds out no validation rows"
            )
        return kept, held_out

    def _keep(self, rows, labels, class_names) -> np.ndarray:
        classes = len(class_names)
        if not classes <= self.limit <= len(rows) - classes:
            raise ValueError(
                f"limit={self.limit} cannot be stratified: it is 0 (all {len(rows)} training rows) or from {classes}, "
                f"one per class, to {len(rows) - classes}"
            )
        sides = train_test_split(rows, train_size=self.limit, stratify=labels[rows], random_state=self.split_seed)
        kept = np.asarray(sides[0])
        if missing := set(range(classes)) - set(labels[kept]):
            raise ValueError(
                f"limit={self.limit} leaves no training row of class {class_names[min(missing)]!r}: raise it"
            )
        return kept


def _data(name: str, parts: Sequence[Rows], class_names: Sequence[str]) -> ClassificationData:
    train, validation, test = parts
    shape = tuple(test[0][0].shape)
    return ClassificationData(name, train, validation if len(validation) else None, test, shape, tuple(class_names))


def digits(
    request: Request, *, test: float = 0.2, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
) -> ClassificationData:
    """Loads scikit-learn's 1,797 handwritten digits, 8 x 8 in grey; they come with scikit-learn, no file is needed.

    Args:
        request: How the set is cut.
        test: Share of the rows for the test part.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    pixels, labels = load_digits(return_X_y=True)
    class_names = [str(digit) for digit in range(10)]
    inputs = _normalised(torch.tensor(pixels).view(-1, 1, 8, 8), 16, mean, std)
    targets = torch.tensor(labels)
    parts = [Rows(inputs[rows], targets[rows]) for rows in request.cut(labels, class_names, test)]
    return _data("digits", parts, class_names)


def mnist(
    request: Request, *, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
) -> ClassificationData:
    """Loads MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 in grey.

    Args:
        request: Where the set lies and how it is cut.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    return _downloadable("mnist", request, mean, std)


def fashion_mnist(
    request: Request, *, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
) -> ClassificationData:
    """Loads Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28 x 28 in grey.

    Args:
        request: Where the set lies and how it is cut.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    return _downloadable("fashion_mnist", request, mean, std)


def cifar10(
    request: Request,
    *,
    mean: float | Sequence[float] = _IMAGENET_MEAN,
    std: float | Sequence[float] = _IMAGENET_STD,
    augment: bool = False,
) -> ClassificationData:
    """Loads CIFAR-10: 50,000 + 10,000 photographs, 32 x 32 in colour.

    Args:
        request: Where the set lies and how it is cut.
        mean: Subtracted from values in [0, 1], one number or one per channel.
        std: What they are divided by then.
        augment: Whether training pictures are cropped and mirrored at random.
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
    pixels, targets = _channels_first(train.data), torch.as_tensor(train.targets)

    def part(rows, augment=None):
        return Rows(_normalised(pixels[rows], 255, mean, std), targets[rows], augment)

    training, validation, _ = request.cut(targets.numpy(), train.classes)
    held_out = Rows(_normalised(_channels_first(test.data), 255, mean, std), torch.as_tensor(test.targets))
    return _data(name, [part(training, augment), part(validation), held_out], train.classes)


def _channels_first(pixels) -> Tensor:
    """Gives `(rows, channels, height, width)` for `(rows, height, width)` and `(rows, height, width, channels)`."""
    pixels = torch.as_tensor(pixels)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _normalised(pixels: Tensor, largest: int, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Scales pixels from 0 ... `largest` to [0, 1], then by mean and standard deviation."""
    channels = pixels.shape[1]
    shift = torch.tensor(_per_channel("mean", mean, channels)).view(-1, 1, 1)
    scale = torch.tensor(_per_channel("std", std, channels)).view(-1, 1, 1)
    # One copy and then in place: temporaries of this size cost more time than the arithmetic.
    return pixels.to(torch.float32, copy=True).div_(largest).sub_(shift).div_(scale)


def _per_channel(option: str, value: float | Sequence[float], channels: int) -> list[float]:
    numbers = list(value) if isinstance(value, Sequence) else [value] * channels
    valid = len(numbers) == channels and all(isinstance(number, int | float) for number in numbers)
    if not valid or (option == "std" and min(numbers) <= 0):
        above = " above 0" if option == "std" else ""
        raise ValueError(f"{option}={value!r} is one number{above}, or a list of {channels}, one per channel")
    return [float(number) for number in numbers]


def image_folder(
    request: Request,
    *,
    path: str | Path,
    image_size: int = 224,
    mean: float | Sequence[float] = _IMAGENET_MEAN,
    std: float | Sequence[float] = _IMAGENET_STD,
    augment: bool = False,
) -> ClassificationData:
    """Loads pictures from `path/train/<class>/` and `path/test/<class>/`, decoded batch by batch.

    Args:
        request: Where the set lies and how it is cut.
        path: Folder with `train` and `test`, under the root or as it stands.
        image_size: Side in pixels: the shorter side is resized to it and the centre kept.
        mean: Subtracted from values in [0, 1], one number or one per channel.
        std: What they are divided by then.
        augment: Whether training pictures are cropped and mirrored at random.

    Raises:
        ValueError: If the two parts have other classes, or a class has no picture.
    """
    if not (isinstance(image_size, int) and image_size > 0):
        raise ValueError(f"image_size={image_size!r} is a number of pixels: 1 or more")
    mean, std = _per_channel("mean", mean, 3), _per_channel("std", std, 3)
    folder = request.find(path, "image folder")
    train, test = (_class_folders(folder / part) for part in ("train", "test"))
    if odd := sorted(set(train.classes) ^ set(test.classes)):
        raise ValueError(f"{folder} must have the same classes in train and test, but these stand in one only: {odd}")

    def part(source, rows, augment=None):
        files = ImageFiles([source.samples[row][0] for row in rows], image_size, mean, std)
        return Rows(files, torch.tensor(source.targets)[rows], augment)

    training, validation, _ = request.cut(np.array(train.targets), train.classes)
    parts = [
        part(train, training, crop_and_flip if augment else None),
        part(train, validation),
        part(test, range(len(test))),
    ]
    return _data("image_folder", parts, train.classes)


def _class_folders(folder: Path) -> torchvision.datasets.ImageFolder:
    if not folder.is_dir() or not any(place.is_dir() for place in folder.iterdir()):
        raise FileNotFoundError(
            f"no class folders in {folder.absolute()}: pictures are expected in train/<class>/ and test/<class>/ under "
            f"{folder.parent.absolute()}; they are your own data, which data.download=true cannot fetch"
        )
    found = torchvision.datasets.ImageFolder(folder, allow_empty=True)
    seen = set(found.targets)
    if empty := [name for name, label in found.class_to_idx.items() if label not in seen]:
        raise ValueError(f"no picture in {folder} for the classes {empty}: add some or remove these folders")
    return found


def csv_file(
    request: Request, *, path: str | Path, target: str, drop: Sequence[str] = (), test: float = 0.2
) -> ClassificationData:
    """Loads a table of numbers with a header; each column is standardised by the training rows.

    Args:
        request: Where the set lies and how it is cut.
        path: Comma-separated file, under the root or as it stands.
        target: Column of the class, integers or text.
        drop: Columns to leave out.
        test: Share of the rows for the test part.

    Raises:
        ValueError: For columns that are not there, and for cells that are no numbers, with their lines.
    """
    if isinstance(drop, str):
        raise ValueError(f"drop={drop!r} is a list of columns: data.drop=[{drop}]")
    target, drop = str(target), [str(column) for column in drop]  # a column called 5 arrives as a number
    file = request.find(path, "table")
    header, lines, cells = _read(file)
    for column in (target, *drop):
        if column not in header:
            close = difflib.get_close_matches(column, header, n=1, cutoff=0)
            raise ValueError(f"{file} has no column {column!r}; the closest is {close[0]!r} of {header}")
    if target in drop:
        raise ValueError(f"the target {target!r} stands in drop={drop} too")
    features = [column for column in header if column != target and column not in drop]
    if not features:
        raise ValueError(f"{file} has no column left to learn from beside the target {target!r}")
    labels, class_names = _classes(target, cells[target], lines)
    table = np.stack(_columns({column: cells[column] for column in features}, lines), axis=1)
    parts = request.cut(labels, class_names, test)

    train = table[parts[0]]
    constant = np.ptp(train, axis=0) == 0  # their computed deviation may be a rounding error instead of 0
    table = (table - train.mean(axis=0)) / np.where(constant, 1, train.std(axis=0))
    inputs, targets = torch.tensor(table, dtype=torch.float32), torch.tensor(labels)
    return _data("csv", [Rows(inputs[rows], targets[rows]) for rows in parts], class_names)


def _read(file: Path) -> tuple[list[str], list[int], dict[str, list[str]]]:
    """Reads a table: its header, the line number of each row, and the cells of each column."""
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        try:
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error}): save it as UTF-8") from error
    if len(rows) < 2:
        raise ValueError(f"{file} has no rows: a header and then one row per example are expected")
    (_, header), *rows = rows
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise ValueError(f"{file} has more than one column of the name {twice[0]!r}: columns need different names")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {line}: {len(row)} cells under a header of {len(header)} columns")
    lines = [line for line, _ in rows]
    return header, lines, {column: [row[place] for _, row in rows] for place, column in enumerate(header)}


def _classes(target: str, cells: list[str], lines: list[int]) -> tuple[np.ndarray, list[str]]:
    """Numbers the classes from 0: integers in their own order, text in the alphabet's."""
    for cell, line in zip(cells, lines, strict=True):
        if cell.lower() in ("", "nan"):
            raise ValueError(f"column {target!r}, line {line}: the target is missing; remove the row or fill it in")
    numbers = [_number(cell) for cell in cells]
    whole = np.isfinite(numbers).all()
    if whole and (fractions := [cell for cell, number in zip(cells, numbers, strict=True) if number % 1]):
        raise ValueError(
            f"column {target!r} holds fractions such as {fractions[0]}: a class is an integer or text, and a "
            "quantity is a matter of regression"
        )
    found, labels = np.unique([int(number) for number in numbers] if whole else cells, return_inverse=True)
    return labels, [str(name) for name in found]


def _columns(columns: dict[str, list[str]], lines: list[int]) -> list[np.ndarray]:
    """Turns text into numbers, or names the first cell of each column where that fails."""
    numbers = {column: np.array([_number(cell) for cell in cells]) for column, cells in columns.items()}
    bad = {column: int(np.isnan(values).argmax()) for column, values in numbers.items() if np.isnan(values).any()}
    if bad:
        places = "; ".join(
            f"column {column!r}, line {lines[row]}: {columns[column][row] or 'empty'}" for column, row in bad.items()
        )
        raise ValueError(
            f"not a finite number: {places}. Encode or fill in such cells, or leave the columns out with "
            f"data.drop=[{','.join(bad)}]"
        )
    return list(numbers.values())


def _number(cell: str) -> float:
    """Gives the number in a cell, NaN where there is no finite one."""
    try:
        number = float(cell)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


_SETS: dict[str, Callable[..., ClassificationData]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "image_folder": image_folder,
    "csv": csv_file,
}


def _chosen(name: str, options: dict) -> Callable[..., ClassificationData]:
    if name not in _SETS:
        raise ValueError(f"no data set {name!r}: it is one of {names()}")
    function = _SETS[name]
    parameters = list(inspect.signature(function).parameters.values())[1:]
    common = [p.name for p in inspect.signature(load).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(options.keys() - {p.name for p in parameters}):
        raise ValueError(f"{name} has no option {unknown}: it has {[p.name for p in parameters]}, all sets {common}")
    if missing := [p.name for p in parameters if p.default is p.empty and p.name not in options]:
        raise ValueError(f"{name} needs the option {missing}")
    return function
