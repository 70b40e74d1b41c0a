"""Tables of numbers, read from csv files and checked."""

import csv
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Table:
    """The cells of a csv file as strings, with the target and the features among its columns.

    Args:
        target: name of the target column.
        features: names of the feature columns, in the order of the file.
        cells: cells of each column.
        lines: line of each row in the file, for messages.
    """

    target: str
    features: tuple[str, ...]
    cells: dict[str, list[str]]
    lines: list[int]


def read_table(file: Path, target: str, drop: Sequence[str] = ()) -> Table:
    """Reads a comma-separated file with a header, and checks its columns.

    Args:
        file: file in UTF-8.
        target: name of the target column.
        drop: columns to leave out.

    Raises:
        ValueError: If the file is no table, a column does not exist, or a target is missing.
    """
    if isinstance(drop, str):
        raise ValueError(f"drop must be a list of columns, data.drop=[{drop}], got {drop!r}")
    target, drop = str(target), [str(column) for column in drop]  # YAML reads a column called 5 as a number
    header, lines, cells = _read(file)
    for column in (target, *drop):
        if column not in header:
            close = difflib.get_close_matches(column, header, n=1, cutoff=0)
            raise ValueError(f"{file} has no column {column!r}; the closest is {close[0]!r} of {header}")
    if target in drop:
        raise ValueError(f"drop must not contain the target {target!r}, got {drop}")
    features = tuple(column for column in header if column != target and column not in drop)
    if not features:
        raise ValueError(f"{file} has no feature column left beside the target {target!r}")
    for cell, line in zip(cells[target], lines, strict=True):
        if cell.lower() in ("", "nan"):
            raise ValueError(f"column {target!r}, line {line}: the target is missing; remove the row or fill it in")
    return Table(target, features, cells, lines)


_OTHER_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def _read(file: Path) -> tuple[list[str], list[int], dict[str, list[str]]]:
    """Reads a table: its header, the line of each row, and the cells of each column."""
    if file.is_dir():
        raise ValueError(f"{file} is a folder: data.path is the csv file itself")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        try:
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error}): save it as UTF-8") from error
    if len(rows) < 2:
        raise ValueError(f"{file} has no rows: a header and then one row per example are expected")
    (_, header), *rows = rows
    if len(header) == 1 and (marks := [name for mark, name in _OTHER_MARKS.items() if mark in header[0]]):
        raise ValueError(
            f"{file} has columns separated by {marks[0]}: save it with commas between columns and decimal points"
        )
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise ValueError(f"{file} has more than one column named {twice[0]!r}: columns need different names")
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{file}, line {line}: {len(row)} cells under a header of {len(header)} columns")
    lines = [line for line, _ in rows]
    return header, lines, {column: [row[index] for _, row in rows] for index, column in enumerate(header)}


def target_classes(table: Table) -> tuple[np.ndarray, list[str]]:
    """Numbers the classes of the target from 0: integers in numerical order, strings in alphabetical order.

    Returns:
        The class of each row, `(rows,)`, and one name per class.

    Raises:
        ValueError: If the target holds fractions.

    Example:
        >>> target_classes(Table("grade", ("size",), {"grade": ["10", "9", "10"]}, [2, 3, 4]))
        (array([1, 0, 1]), ['9', '10'])
    """
    cells = table.cells[table.target]
    numbers = [_number(cell) for cell in cells]
    are_numbers = np.isfinite(numbers).all()
    if are_numbers and (fractions := [cell for cell, number in zip(cells, numbers, strict=True) if number % 1]):
        raise ValueError(
            f"a class must be an integer or a string, but column {table.target!r} holds fractions such as "
            f"{fractions[0]}; for quantities use recipes/regression.py"
        )
    classes, labels = np.unique([int(number) for number in numbers] if are_numbers else cells, return_inverse=True)
    return labels, [str(name) for name in classes]


def feature_values(table: Table) -> np.ndarray:
    """Converts the features to numbers `(rows, features)`.

    Raises:
        ValueError: If a cell is no finite number; the message names the first line in each column.
    """
    values = np.array([[_number(cell) for cell in table.cells[column]] for column in table.features])
    bad = {index: int(np.isnan(row).argmax()) for index, row in enumerate(values) if np.isnan(row).any()}
    if bad:
        columns = [table.features[index] for index in bad]
        cells = "; ".join(
            f"column {column!r}, line {table.lines[row]}: {table.cells[column][row] or 'empty'}"
            for column, row in zip(columns, bad.values(), strict=True)
        )
        raise ValueError(
            f"not a finite number: {cells}. Encode or fill in such cells, or leave the columns out with "
            f"data.drop=[{','.join(columns)}]"
        )
    return np.ascontiguousarray(values.T)


def _number(cell: str) -> float:
    """Returns the number in a cell, NaN if it is not a finite number."""
    try:
        number = float(cell)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def standardized(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Standardizes each column to mean 0 and standard deviation 1 over the given rows; a constant column becomes 0.

    Args:
        values: `(rows, columns)`.
        rows: indices of the rows to fit on, the training rows.

    Raises:
        ValueError: If a value overflows, as it is too far from those of the training rows.

    Example:
        >>> standardized(np.array([[1.0, 5.0], [3.0, 5.0], [7.0, 6.0]]), np.array([0, 1])).tolist()
        [[-1.0, 0.0], [1.0, 0.0], [5.0, 0.0]]
    """
    # A power of two is exact; without it, the squares of very large or small values overflow or underflow.
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is an error below
        values = values / np.exp2(np.frexp(np.abs(values[rows]).max(axis=0))[1])
        fitted = values[rows]
        constant = np.ptp(fitted, axis=0) == 0  # their computed deviation may be a rounding error
        scaled = np.where(constant, 0, (values - fitted.mean(axis=0)) / np.where(constant, 1, fitted.std(axis=0)))
    if not np.isfinite(scaled).all():
        column = int(np.flatnonzero(~np.isfinite(scaled).all(axis=0))[0])
        raise ValueError(
            f"column {column} has values that overflow when standardized by the training rows: check its values"
        )
    return scaled
