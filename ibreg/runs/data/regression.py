"""Regression data sets behind one name: `load("diabetes")`, `load("csv", path="table.csv", target="price")`.

Every set is cut in the same way, at random or in the order of time; inputs and targets are standardized by the training
rows alone. For experiments on little, noisy or irrelevant data a set can be cut short, get noise on its training
targets, and get columns that tell nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import fetch_california_housing, load_diabetes
from torch import Tensor
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.transforms.functional import InterpolationMode, rotate

from ibreg.runs.data import classification as data
from ibreg.runs.data.images import normalized
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import data_folder
from ibreg.runs.data.tables import Table, feature_values, read_table, standardized
from ibreg.runs.dispatch import choose, keyword_options


@dataclass(frozen=True)
class RegressionData:
    """A data set cut into training, validation and test rows, with what a model must know of it.

    Args:
        name: Name in the registry.
        train: Training rows, `(input, target)`; the targets of a batch are `(batch, 1)`, as a head of one unit gives.
        validation: Rows held out of the training part, or None.
        test: Test rows.
        input_shape: Shape of one input: `(features,)` or `(channels, height, width)`.
        target_mean: Mean of the training targets, in the unit of the target.
        target_std: Their standard deviation; the rows hold (target - mean) / deviation.
        quantity: What the target is, with its unit.
    """

    name: str
    train: Rows
    validation: Rows | None
    test: Rows
    input_shape: tuple[int, ...]
    target_mean: float
    target_std: float
    quantity: str

    def in_units(self, standardized: Tensor) -> Tensor:
        """Turns standardized targets or predictions back into the unit of the target, in float64."""
        return standardized.double() * self.target_std + self.target_mean


def load(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    validation: float = 0.2,
    split_seed: int = 0,
    limit: int = 0,
    split: str = "random",
    noise_columns: int = 0,
    target_noise: float = 0.0,
    **options,
) -> RegressionData:
    """Loads a data set by name and cuts it.

    Args:
        name: One of `names()`.
        root: Folder of the data; without it the environment variable `IBREG_DATA`, then `data`.
        download: Whether missing files may be fetched.
        validation: Share of the training part that is held out, in [0, 1); 0 for none.
        split_seed: Seed of the cut and of the noise.
        limit: Number of training rows to keep; 0 for all. In the order of time the latest are kept.
        split: "random", or "chronological": training rows first, then validation, then test rows, for sets whose rows
            stand in the order of time.
        noise_columns: How many columns of standard normal noise a table gets beside its own.
        target_noise: Standard deviation of the noise that is added to the training targets alone, in units of theirs.
        options: The set's own options, as they stand in `configs/data/<name>.yaml`.

    Raises:
        ValueError: For an unknown name or option, a value out of range, and data that cannot be used as they are.
        FileNotFoundError: If the files are not there; the message says what belongs where.

    Example:
        >>> diabetes = load("diabetes")
        >>> diabetes.input_shape, len(diabetes.train), len(diabetes.validation), len(diabetes.test)
        ((10,), 283, 71, 88)
        >>> x, y = diabetes.train[0]
        >>> y.shape, round(float(diabetes.in_units(y)), 3)
        (torch.Size([1]), 222.0)
    """
    function = choose("regression data set", name, _SETS, options, beside=f", all sets {list(keyword_options(load))}")
    folder = data_folder(root)
    request = RegressionRequest(folder, download, validation, split_seed, limit, split, noise_columns, target_noise)
    if split == "chronological" and name not in _IN_TIME:
        raise ValueError(f"the rows of {name} have no order of time: split=random; {list(_IN_TIME)} have one")
    return function(request, **options)


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()
        ['appliances_energy', 'beijing_pm25', 'bike_sharing', 'california_housing', 'csv', 'diabetes', 'rotated_mnist']
    """
    return sorted(_SETS)


def diabetes(request: RegressionRequest, *, test: float = 0.2) -> RegressionData:
    """Loads scikit-learn's 442 diabetes patients; they come with scikit-learn, no file is needed.

    Args:
        request: How the set is cut.
        test: Share of the rows for the test part.
    """
    values, targets = load_diabetes(return_X_y=True, scaled=False)
    return _table("diabetes", "disease progression after a year (score)", request, values, targets, test)


def california_housing(request: RegressionRequest, *, test: float = 0.2) -> RegressionData:
    """Loads the 1990 census of California without the 992 districts at the price cap: 19,648 rows of 8 columns.

    The target is the logarithm of the median price, as in Yu et al. 2024 (arXiv 2404.17951).

    Args:
        request: Where the set lies and how it is cut.
        test: Share of the rows for the test part.
    """
    folder = request.root / "scikit_learn_data"
    try:
        if not (folder.is_dir() or request.download):  # scikit-learn would make the folder
            raise OSError
        found = fetch_california_housing(data_home=str(folder), download_if_missing=request.download, return_X_y=True)
    except OSError as error:
        if request.download:
            raise
        raise _missing("california_housing", folder, "scikit-learn's cal_housing_py3.pkz") from error
    values, price = found
    below_cap = price < 5
    return _table(
        "california_housing", "log price (100,000 $)", request, values[below_cap], np.log(price[below_cap]), test
    )


def bike_sharing(request: RegressionRequest, *, test: float = 0.2) -> RegressionData:
    """Loads 17,379 hours of a bicycle hire: how many bicycles were out, from calendar and weather.

    Casual and registered users are left out, as they sum to the target; season, month, hour, weekday and weather are
    one column per value.

    Args:
        request: Where the set lies and how it is cut.
        test: Share of the rows for the test part.
    """
    cells = _uci_table("bike_sharing", request)
    values = [
        *(_one_hot(cells[column]) for column in ("season", "mnth", "hr", "weekday", "weathersit")),
        _numbers(cells, ["yr", "holiday", "workingday", "temp", "atemp", "hum", "windspeed"]),
    ]
    targets = _numbers(cells, ["cnt"])[:, 0]
    return _table("bike_sharing", "bicycles per hour", request, np.hstack(values), targets, test)


def beijing_pm25(request: RegressionRequest, *, test: float = 0.2) -> RegressionData:
    """Loads 41,757 hours of fine dust in Beijing, from weather, hour and month; unmeasured hours are dropped.

    Hour and month go in as sine and cosine, the wind's direction as one column per value. Year and day are left out:
    together they name the hour, whose neighbors a random cut puts among the training rows.

    Args:
        request: Where the set lies and how it is cut.
        test: Share of the rows for the test part.
    """
    cells = _uci_table("beijing_pm25", request)
    measured = ~np.isin(cells["pm2.5"], ["", "NA"])
    cells = {column: entries[measured] for column, entries in cells.items()}
    values = [
        _cycle(_numbers(cells, ["hour"]), 24),
        _cycle(_numbers(cells, ["month"]), 12),
        _one_hot(cells["cbwd"]),
        _numbers(cells, ["DEWP", "TEMP", "PRES", "Iws", "Is", "Ir"]),
    ]
    targets = _numbers(cells, ["pm2.5"])[:, 0]
    return _table("beijing_pm25", "PM2.5 (µg/m³)", request, np.hstack(values), targets, test)


def appliances_energy(request: RegressionRequest, *, random_columns: bool = True, test: float = 0.2) -> RegressionData:
    """Loads 19,735 ten-minute spans of a house: what its appliances used, from sensors, weather, time and weekday.

    The time of day goes in as sine and cosine, the weekday as one column per value; the date itself is left out.

    Args:
        request: Where the set lies and how it is cut.
        random_columns: Whether rv1 and rv2 are kept, the same noise twice that the authors put in.
        test: Share of the rows for the test part.
    """
    if not isinstance(random_columns, bool):
        raise ValueError(f"random_columns={random_columns!r} is true or false")
    cells = _uci_table("appliances_energy", request)
    date = cells.pop("date").astype("datetime64[s]")
    day = date.astype("datetime64[D]")
    targets = _numbers(cells, ["Appliances"])[:, 0]
    left_out = {"Appliances"} | (set() if random_columns else {"rv1", "rv2"})
    values = [
        _cycle((date - day).astype(float)[:, None], 24 * 60 * 60),
        _one_hot(day.astype(int) % 7),
        _numbers(cells, [column for column in cells if column not in left_out]),
    ]
    return _table("appliances_energy", "energy (Wh in 10 min)", request, np.hstack(values), targets, test)


def rotated_mnist(
    request: RegressionRequest,
    *,
    size: int = 10_000,
    largest_angle: float = 45.0,
    rotation_seed: int = 0,
    test: float = 0.2,
    mean: float = 0.5,
    std: float = 0.5,
) -> RegressionData:
    """Loads MNIST digits, each turned by an angle of its own, which is the target; test images are MNIST's own.

    Args:
        request: Where MNIST lies and how it is cut.
        size: Number of images, training, validation and test together.
        largest_angle: Angles are uniform between minus and plus this one, in degrees, counterclockwise.
        rotation_seed: Seed of the choice of images and of their angles.
        test: Share of the images that come from MNIST's test part.
        mean: Subtracted from values in [0, 1].
        std: What they are divided by then.
    """
    if request.noise_columns:
        raise ValueError(f"noise_columns={request.noise_columns} are for tables: rotated_mnist has images")
    if not (isinstance(size, int) and size > 0):
        raise ValueError(f"size={size!r} is a number of images: 1 or more")
    if not (isinstance(largest_angle, int | float) and 0 < largest_angle <= 180):
        raise ValueError(f"largest_angle={largest_angle!r} is in degrees: more than 0, at most 180")
    if not (isinstance(rotation_seed, int) and rotation_seed >= 0):
        raise ValueError(f"rotation_seed={rotation_seed!r} is an integer of at least 0")
    if not (isinstance(test, int | float) and 0 < test < 1):
        raise ValueError(f"test={test!r} is a share: more than 0 and less than 1")
    digits = data.load("mnist", root=request.root, download=request.download, validation=0, mean=0, std=1)
    held_out = round(test * size)
    rng = np.random.default_rng(rotation_seed)
    images = []
    for part, count in ((digits.train, size - held_out), (digits.test, held_out)):
        if not 0 < count <= len(part):
            raise ValueError(
                f"size={size} and test={test} ask for {count} images of a part of MNIST that has {len(part)}"
            )
        images.append(part.inputs[rng.permutation(len(part))[:count]])
    angles = rng.uniform(-largest_angle, largest_angle, size)
    pixels = torch.stack(
        [
            rotate(image, angle, InterpolationMode.BILINEAR)
            for image, angle in zip(torch.cat(images), angles.tolist(), strict=True)
        ]
    )
    training, validation, _ = request.split_rows(size - held_out)
    parts = training, validation, np.arange(size - held_out, size)
    return _data("rotated_mnist", "angle (degrees)", request, normalized(pixels, 1, mean, std), angles, parts)


def csv_file(
    request: RegressionRequest, *, path: str | Path, target: str, drop: Sequence[str] = (), test: float = 0.2
) -> RegressionData:
    """Loads a table of numbers with a header; for a chronological split its rows stand in the order of time.

    Args:
        request: Where the set lies and how it is cut.
        path: Comma-separated file, under the root or as it stands.
        target: Column of the quantity to predict.
        drop: Columns to leave out.
        test: Share of the rows for the test part.

    Raises:
        ValueError: For columns that are not there, and for cells that are no numbers, with their lines.
    """
    table = read_table(request.find(path, "table"), target, drop)
    return _table("csv", table.target, request, feature_values(table), _quantities(table), test)


def _quantities(table: Table) -> np.ndarray:
    """Turns the target into numbers `(rows,)`."""
    found = []
    for cell, line in zip(table.cells[table.target], table.lines, strict=True):
        try:
            found.append(float(cell))
        except ValueError:
            found.append(np.nan)
        if not np.isfinite(found[-1]):
            raise ValueError(
                f"column {table.target!r}, line {line}: {cell} is no finite number, which the target of a regression "
                "is; classes are a matter of classification"
            )
    return np.array(found)


_UCI_ARCHIVES = "https://archive.ics.uci.edu/static/public"
_UCI = {
    "bike_sharing": ("hour.csv", "275/bike+sharing+dataset.zip"),
    "beijing_pm25": ("PRSA_data_2010.1.1-2014.12.31.csv", "381/beijing+pm2+5+data.zip"),
    "appliances_energy": ("energydata_complete.csv", "374/appliances+energy+prediction.zip"),
}


def _uci_table(name: str, request: RegressionRequest) -> dict[str, np.ndarray]:
    """Reads a table of the UCI repository, its cells as text."""
    file, archive = _UCI[name]
    folder = request.root / "uci"
    if not (folder / file).is_file():
        if not request.download:
            raise _missing(name, folder, file)
        download_and_extract_archive(f"{_UCI_ARCHIVES}/{archive}", str(folder), remove_finished=True)
    header, *rows = np.loadtxt(folder / file, delimiter=",", dtype=str, quotechar='"', comments=None)
    return dict(zip(header.tolist(), np.transpose(rows), strict=True))


def _missing(name: str, folder: Path, files: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name} is not in {folder.absolute()}, or is damaged: put {files} there, set data.root or IBREG_DATA to the "
        f"folder that has {folder.name}/, or fetch it with data.download=true"
    )


def _numbers(cells: dict[str, np.ndarray], columns: Sequence[str]) -> np.ndarray:
    """Turns columns into numbers `(rows, columns)`."""
    return np.stack([cells[column].astype(float) for column in columns], axis=1)


def _one_hot(entries: np.ndarray) -> np.ndarray:
    """Turns entries into one column per value: `(rows, values)`."""
    found, place = np.unique(entries, return_inverse=True)
    return np.eye(len(found))[place]


def _cycle(values: np.ndarray, period: float) -> np.ndarray:
    """Puts values on a circle, so that the last hour stands beside the first: `(rows, 1)` -> `(rows, 2)`."""
    angle = 2 * np.pi * values / period
    return np.hstack([np.sin(angle), np.cos(angle)])


def _table(name, quantity, request: RegressionRequest, values, targets, test: float) -> RegressionData:
    """Cuts a table `(rows, columns)`, adds its noise columns and standardizes it."""
    parts = request.split_rows(len(values), test)
    inputs = standardized(np.hstack([values, request.input_noise(len(values))]), parts[0])
    return _data(name, quantity, request, torch.tensor(inputs, dtype=torch.float32), targets, parts)


def _data(name, quantity, request: RegressionRequest, inputs: Tensor, targets: np.ndarray, parts) -> RegressionData:
    """Standardizes the targets, adds the noise of the training rows, and makes the parts."""
    fitted = targets[parts[0]]
    if np.ptp(fitted) == 0:
        raise ValueError(f"the target of {name} is {fitted[0]} in all {len(fitted)} training rows: nothing to learn")
    mean, std = float(fitted.mean()), float(fitted.std())
    scaled = (targets - mean) / std
    scaled[parts[0]] += request.added_to_targets(len(targets))[parts[0]]
    column = torch.tensor(scaled, dtype=torch.float32).unsqueeze(1)
    train, validation, test = (Rows(inputs[rows], column[rows]) for rows in parts)
    shape = tuple(inputs.shape[1:])
    return RegressionData(name, train, validation if len(validation) else None, test, shape, mean, std, quantity)


_SETS: dict[str, Callable[..., RegressionData]] = {
    "diabetes": diabetes,
    "california_housing": california_housing,
    "bike_sharing": bike_sharing,
    "beijing_pm25": beijing_pm25,
    "appliances_energy": appliances_energy,
    "rotated_mnist": rotated_mnist,
    "csv": csv_file,
}
_IN_TIME = ("appliances_energy", "beijing_pm25", "bike_sharing", "csv")
