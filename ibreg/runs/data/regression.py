"""Regression data sets by name: `load("diabetes")`, `load("csv", path="table.csv", target="price")`.

All sets are split in the same way, at random or in the order of time; tables and targets are standardized by the
training rows alone. For experiments on small or noisy data, training rows can be limited, noise added to the training
targets, and columns of noise to the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import fetch_california_housing, load_diabetes
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, rotate

from ibreg.runs.config.section import Count
from ibreg.runs.data import classification as data
from ibreg.runs.data.images import VALUE_RANGE, Normalization, PerChannel
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.regression_rows import RegressionData, assemble, table_data
from ibreg.runs.data.split import Fraction, load_request, missing_files, request_of
from ibreg.runs.data.table_split import split_quantities
from ibreg.runs.data.tables.encoding import encode
from ibreg.runs.data.tables.options import ColumnName, ColumnNames, Kinds, Marks
from ibreg.runs.data.tables.reading import MISSING_MARKS, read_table
from ibreg.runs.data.tables.roles import Roles
from ibreg.runs.data.tables.standardization import standardized
from ibreg.runs.data.tables.targets import target_quantities
from ibreg.runs.data.uci import appliances_energy, beijing_pm25, bike_sharing


def load(name: str, **options: Any) -> RegressionData:
    """Loads a data set by name and splits its rows.

    Args:
        name: one of `names()`.
        **options: those of all regression data sets, see `RegressionRequest`, and its own, as in
            `configs/data/<name>.yaml`.

    Raises:
        ValueError: If a name or option is unknown, a value is out of range, or the data are not usable.
        FileNotFoundError: If files are missing; the message names the files and their folder.

    Example:
        >>> diabetes = load("diabetes")
        >>> diabetes.input_shape, len(diabetes.train), len(diabetes.validation), len(diabetes.test)
        ((10,), 283, 71, 88)
        >>> x, y = diabetes.train[0]
        >>> y.shape, round(float(diabetes.in_units(y)), 3)
        (torch.Size([1]), 222.0)
    """
    return load_request(SETS, request({"name": name, **options}))


def request(options: Mapping[str, Any], section: str = "data") -> RegressionRequest:
    """Checks the options of a data set.

    Args:
        options: those of `load`, with the `name`.
        section: their key in a configuration, for messages.

    Raises:
        ValueError: If a name or option is unknown, a value is not valid, or a chronological split is asked for a set
            whose rows have no order.
    """
    asked = request_of("regression data set", SETS, RegressionRequest, options, section)
    if asked.split == "chronological" and asked.name not in _IN_TIME:
        raise ValueError(
            f"{section}.split must be random for {asked.name}, whose rows have no time order, unlike those of "
            f"{', '.join(_IN_TIME)}, got chronological"
        )
    return asked


def names() -> list[str]:
    """Lists the data sets that `load` knows.

    Example:
        >>> names()
        ['appliances_energy', 'beijing_pm25', 'bike_sharing', 'california_housing', 'csv', 'diabetes', 'rotated_mnist']
    """
    return sorted(SETS)


def diabetes(request: RegressionRequest, *, test: Fraction = 0.2) -> RegressionData:
    """Loads scikit-learn's 442 diabetes patients; they come with scikit-learn, no file is needed.

    Args:
        request: options of all regression data sets.
        test: fraction of the rows that are test rows.
    """
    values, targets = map(np.asarray, load_diabetes(return_X_y=True, scaled=False))
    return table_data("diabetes", "disease progression after a year (score)", request, values, targets, test)


def california_housing(request: RegressionRequest, *, test: Fraction = 0.2) -> RegressionData:
    """Loads the 1990 census of California without the 992 districts at the price cap: 19,648 rows of 8 columns.

    The target is the logarithm of the median price, as in Yu et al. 2024 (arXiv 2404.17951).

    Args:
        request: options of all regression data sets.
        test: fraction of the rows that are test rows.
    """
    folder = request.folder / "scikit_learn_data"
    try:
        if not (folder.is_dir() or request.download):  # scikit-learn would create the folder
            raise OSError
        values, price = fetch_california_housing(
            data_home=str(folder), download_if_missing=request.download, return_X_y=True
        )
    except OSError as error:
        if request.download:
            raise
        raise missing_files("california_housing", folder, "scikit-learn's cal_housing_py3.pkz") from error
    values, price = np.asarray(values), np.asarray(price)
    below_cap = price < 5
    return table_data(
        "california_housing", "log price (100,000 $)", request, values[below_cap], np.log(price[below_cap]), test
    )


def rotated_mnist(
    request: RegressionRequest,
    *,
    size: Count = 10_000,
    largest_angle: Annotated[float, Field(gt=0, le=180)] = 45.0,
    rotation_seed: Annotated[int, Field(ge=0)] = 0,
    test: Fraction = 0.2,
    mean: PerChannel = 0.5,
    std: PerChannel = 0.5,
) -> RegressionData:
    """Loads MNIST digits, each rotated by a random angle, which is the target; test images are those of MNIST.

    Args:
        request: options of all regression data sets.
        size: number of images, over all splits.
        largest_angle: angles are uniform between minus and plus this one, in degrees, counterclockwise.
        rotation_seed: seed of the choice of images and of their angles.
        test: fraction of the images that are test images.
        mean: mean of the values in [0, 1], by which the network normalizes.
        std: their standard deviation.
    """
    if request.noise_columns:
        raise ValueError(f"noise_columns={request.noise_columns} are for tables: rotated_mnist has images")
    digits = data.load("mnist", root=request.root, download=request.download, validation=0)
    held_out = round(test * size)
    rng = np.random.default_rng(rotation_seed)
    images = []
    for rows, count in ((digits.train, size - held_out), (digits.test, held_out)):
        if not 0 < count <= len(rows):
            raise ValueError(
                f"size={size} and test={test} require {count} of the {len(rows)} images of a split of MNIST"
            )
        images.append(rows.inputs[rng.permutation(len(rows))[:count]])
    angles = rng.uniform(-largest_angle, largest_angle, size)
    training, validation, _ = request.split_rows(size - held_out)
    splits = training, validation, np.arange(size - held_out, size)
    rotated = assemble("rotated_mnist", "angle (degrees)", request, _rotate(torch.cat(images), angles), angles, splits)
    return replace(rotated, value_range=VALUE_RANGE, normalization=Normalization.of(mean, std, channels=1))


def _rotate(images: Tensor, angles: np.ndarray) -> Tensor:
    """Rotates each image `(channels, height, width)` by its angle in degrees."""
    pairs = zip(images, angles.tolist(), strict=True)
    return torch.stack([rotate(image, angle, InterpolationMode.BILINEAR) for image, angle in pairs])


def csv_file(
    request: RegressionRequest,
    *,
    path: str | Path,
    target: ColumnName,
    drop: ColumnNames = (),
    groups: ColumnName | None = None,
    order: ColumnName | None = None,
    kinds: Kinds | None = None,
    missing_marks: Marks = MISSING_MARKS,
    test: Fraction = 0.2,
) -> RegressionData:
    """Loads a table with a header, csv or parquet; every column is encoded by statistics of the training rows.

    Args:
        request: options of all data sets; `split="chronological"` takes the rows in the order of the file.
        path: file, absolute, or relative to the data folder or to the current folder.
        target: column of the regression target.
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
    targets = target_quantities(table, roles.target)
    splits = split_quantities(request, table, roles, test)
    encoded = encode(table, roles, splits[0], {roles.target: ("regression target", "")})
    noise = request.input_noise(len(table))
    inputs = np.hstack([encoded.inputs, standardized(noise, splits[0])])
    data = assemble("csv", roles.target, request, torch.tensor(inputs, dtype=torch.float32), targets, splits)
    names = (*encoded.names, *(f"noise {number}" for number in range(1, noise.shape[1] + 1)))
    return replace(data, input_names=names, columns=encoded.columns)


SETS: dict[str, Callable[..., RegressionData]] = {
    "diabetes": diabetes,
    "california_housing": california_housing,
    "bike_sharing": bike_sharing,
    "beijing_pm25": beijing_pm25,
    "appliances_energy": appliances_energy,
    "rotated_mnist": rotated_mnist,
    "csv": csv_file,
}
_IN_TIME = ("appliances_energy", "beijing_pm25", "bike_sharing", "csv")
