"""The target column of a table: classes, whose names are the text in the file, or quantities."""

from __future__ import annotations

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pandas as pd

from ibreg.runs.data.tables.cells import are_numbers
from ibreg.runs.data.tables.reading import Table

SHOWN = 5  # classes of several spellings that a warning names


def target_classes(table: Table, column: str) -> tuple[np.ndarray, list[str]]:
    """Numbers the classes of a column from 0: integers in numerical order, other texts in alphabetical order.

    Warns of classes that may be one, such as 1 and 1.0, or True and TRUE.

    Returns:
        The class of each row, `(rows,)`, and one name per class, as it stands in the file.

    Raises:
        ValueError: If a cell is missing, or all are numbers and some are fractions.

    Example:
        >>> from pathlib import Path
        >>> table = Table(Path("t.csv"), {"grade": np.array(["10", "9", "2"], dtype=object)}, [2, 3, 4], {""})
        >>> labels, names = target_classes(table, "grade")
        >>> labels.tolist(), names
        ([2, 1, 0], ['2', '9', '10'])
    """
    cells = table.cells[column]
    _check_known(table, column, "; a class of that name is kept with data.missing_marks=['']")
    codes, found = pd.factorize(cells)
    names = np.asarray(found)
    numbers = are_numbers(names)
    if infinite := [name for name in names[numbers] if "inf" in name.lower()]:
        raise ValueError(
            f"{table.place(column, int((cells == infinite[0]).argmax()))}: a class must be an integer or a string, got "
            f"the infinite number {infinite[0]}; remove the row, fill it in, or rename the class"
        )
    if numbers.all():
        values = [Decimal(name) for name in names]
        if fractions := [name for name, value in zip(names, values, strict=True) if value != value.to_integral_value()]:
            raise ValueError(
                f"a class must be an integer or a string, but column {column!r} holds fractions such as "
                f"{fractions[0]}; for quantities use recipes/regression.py"
            )
        order = sorted(range(len(names)), key=lambda place: (values[place], names[place]))  # 010 comes before 10
    else:
        order = sorted(range(len(names)), key=names.__getitem__)
    places = np.empty(len(names), dtype=np.int64)
    places[order] = np.arange(len(names))
    ordered = [names[place] for place in order]
    _warn_of_spellings(table, column, ordered)
    return places[codes], ordered


def _warn_of_spellings(table: Table, column: str, names: Sequence[str]) -> None:
    """Warns of names that differ in case, blanks or accents' encoding alone, or in how a number is written."""
    spellings = defaultdict(list)
    for name, is_number in zip(names, are_numbers(np.asarray(names, dtype=object)), strict=True):
        plain = " ".join(unicodedata.normalize("NFKC", name).split()).casefold()
        spellings[Decimal(name) if is_number else plain].append(name)
    if alike := [" and ".join(map(repr, those)) for those in spellings.values() if len(those) > 1]:
        shown = "; ".join(alike[:SHOWN]) + f"; {len(alike) - SHOWN} more" * (len(alike) > SHOWN)
        warnings.warn(
            f"{table.file}, column {column!r}: classes that may be one are kept apart: {shown}; write each class in "
            "one way if so",
            stacklevel=4,
        )


def target_quantities(table: Table, column: str) -> np.ndarray:
    """Converts a column to the numbers of a regression target: `(rows,)`.

    Raises:
        ValueError: If a cell is missing or is not a finite number.
    """
    _check_known(table, column, "")
    cells = table.cells[column]
    valid = are_numbers(cells)
    numbers = np.array([float(cell) if ok else np.nan for cell, ok in zip(cells, valid, strict=True)])
    if not (finite := np.isfinite(numbers)).all():
        row = int((~finite).argmax())
        raise ValueError(
            f"{table.place(column, row)}: a regression target must be a finite number, got {cells[row]}; for classes "
            "use recipes/classification.py"
        )
    return numbers


def _check_known(table: Table, column: str, remedy: str) -> None:
    """Raises an error on the first missing cell."""
    missing = table.missing(column)
    if missing.any():
        row = int(missing.argmax())
        cell = table.cells[column][row]
        raise ValueError(
            f"{table.place(column, row)}: the target is missing, got {cell or 'an empty cell'}; remove the row or fill "
            f"it in{remedy if cell else ''}"
        )
