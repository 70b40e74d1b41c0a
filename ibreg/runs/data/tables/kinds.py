"""The kind of a column, and its cells converted: decided by all its cells, or by the option `kinds`."""

from __future__ import annotations

import re
from calendar import month_abbr, month_name
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ibreg.runs.data.tables.cells import are_numbers, as_booleans, as_times, formatted_numbers, may_be_booleans
from ibreg.runs.data.tables.reading import Table

# The words of dates and times: months, halves of the day, and what ISO 8601 has between and after the numbers.
_WORDS = {word.lower() for word in (*month_name, *month_abbr, "am", "pm", "t", "z", "utc")}

# If this fraction of the cells are numbers, or dates, the others are taken for errors.
NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Column:
    """A column with its cells converted.

    Args:
        name: name of the column.
        kind: "number", "boolean", "text" or "date".
        values: `(rows, 1)` of numbers, of booleans as 0 and 1, or of text; of dates `(rows, 2)`: in UTC, and as clocks
            at the place show them. Missing cells are NaN, NaT, or None in text.
        missing: `(rows,)`, bool.
        decided: whether the user decided the kind.
    """

    name: str
    kind: str
    values: pd.DataFrame
    missing: np.ndarray
    decided: bool = False


def read_column(table: Table, name: str, kind: str | None = None) -> Column:
    """Converts the cells of a column to numbers, booleans, dates and times, or text.

    Args:
        table: the table.
        name: name of the column.
        kind: what it is read as; None: what all its cells are, else text.

    Raises:
        ValueError: If a cell is not of the kind, which nearly all others are; if numbers are not written plainly, such
            as 1,234 or 5 %; if a number is not finite; or if day and month of all dates may be exchanged.

    Example:
        >>> from pathlib import Path
        >>> cells = {"age": np.array(["5", "", "7"], dtype=object), "ok": np.array(["y", "N", "y"], dtype=object)}
        >>> table = Table(Path("t.csv"), cells, [2, 3, 4], {""})
        >>> read_column(table, "age").values[0].tolist(), read_column(table, "ok").kind
        ([5.0, nan, 7.0], 'boolean')
    """
    missing = table.missing(name)
    codes, found = pd.factorize(table.cells[name][~missing])
    values, counts = np.asarray(found), np.bincount(codes, minlength=len(found))
    if kind is not None:
        converted, valid = _converted(kind, values)
        if not valid.all():
            _refuse(table, name, kind, values, valid, counts, asked=True)
        kind_found = kind
    else:
        kind_found, converted = _decide(table, name, values, counts)
    if kind_found == "number":
        _check_finite(table, name, values, converted)
    elif kind_found == "date" and as_times(values)[1]:
        day = values[0]
        raise ValueError(
            f"{table.place(name, _row_of(table, name, day))}: month and day of {day} may be exchanged, as in all "
            f"cells of the column: write dates as 2020-12-31, or read it as text with data.kinds={{{name}:text}}"
        )
    rows = np.full(len(missing), -1)
    rows[~missing] = codes
    return Column(name, kind_found, _spread(converted, rows), missing, decided=kind is not None)


def _decide(table: Table, name: str, values: np.ndarray, counts: np.ndarray) -> tuple[str, pd.DataFrame]:
    """Finds the kind of a column, and its values converted."""
    for kind in ("number", "boolean", "date") if len(values) else ():
        if (kind == "date" and not _may_be_dates(values)) or (kind == "boolean" and not may_be_booleans(values)):
            continue
        converted, valid = _converted(kind, values)
        if valid.all():
            return kind, converted
        if kind != "boolean" and counts[valid].sum() >= NEARLY_ALL * counts.sum():
            _refuse(table, name, kind, values, valid, counts, asked=False)
    _check_formatted(table, name, values, counts)
    return "text", _converted("text", values)[0]


def _check_formatted(table: Table, name: str, values: np.ndarray, counts: np.ndarray) -> None:
    """Raises an error on numbers that are not written plainly, if nearly all cells are numbers."""
    formatted = formatted_numbers(values)
    if formatted.any() and counts[formatted | are_numbers(values)].sum() >= NEARLY_ALL * counts.sum():
        cell = values[formatted][0]
        raise ValueError(
            f"{table.place(name, _row_of(table, name, cell))}: {cell} looks like a number with a thousands separator, "
            "a currency, a percent sign or a decimal comma, as nearly all cells of the column do: write plain numbers "
            f"such as 1234.5, or read the column as text with data.kinds={{{name}:text}}"
        )


def _may_be_dates(values: np.ndarray) -> bool:
    """Tells whether most texts look like dates or times: a quick look, before many formats are tried."""
    some = values[:: max(1, len(values) // 1000)]
    return float(np.mean([_looks_like_date(value) for value in some])) >= 0.5


def _looks_like_date(text: str) -> bool:
    parts = re.search(r"\d", text) and re.search("[-/.: ]", text)
    return bool(parts) and len(text) <= 40 and _WORDS.issuperset(re.findall(r"[^\W\d_]+", text.lower()))


def _converted(kind: str, values: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """Converts different texts, and tells which of them are of the kind."""
    if kind == "number":
        valid = are_numbers(values)
        numbers = [float(value) if ok else np.nan for value, ok in zip(values, valid, strict=True)]
        return pd.DataFrame({0: np.array(numbers, dtype=float)}), valid
    if kind == "boolean":
        booleans = as_booleans(values)
        return pd.DataFrame({0: booleans.astype(float)}), ~np.isnan(booleans)
    if kind == "date":
        times, _ = as_times(values)
        return pd.concat(list(times), axis=1, keys=[0, 1]), times.instants.notna().to_numpy()
    return pd.DataFrame({0: pd.Series(values, dtype=object)}), np.ones(len(values), dtype=bool)


def _spread(converted: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Returns the value of every row; rows with index -1 have none."""
    spread = converted.reindex(rows).reset_index(drop=True)
    return spread.where(spread.notna(), None) if pd.api.types.is_object_dtype(spread[0]) else spread


def _row_of(table: Table, name: str, cell: str) -> int:
    return int((table.cells[name] == cell).argmax())


def _refuse(
    table: Table, name: str, kind: str, values: np.ndarray, valid: np.ndarray, counts: np.ndarray, *, asked: bool
) -> None:
    """Raises the error on the first cell that is not of the kind."""
    cell = values[~valid][0]
    article = {"number": "a number", "boolean": "true or false, yes or no", "date": "a date"}[kind]
    because = "" if asked else f", as {counts[valid].sum()} of {counts.sum()} cells of the column are"
    as_text = "another kind" if asked else f"text with data.kinds={{{name}:text}}"
    raise ValueError(
        f"{table.place(name, _row_of(table, name, cell))}: {cell} is not {article}{because}. Correct the cell, empty "
        f"it, read the column as {as_text}, or leave it out with data.drop=[{name}]"
    )


def _check_finite(table: Table, name: str, values: np.ndarray, numbers: pd.DataFrame) -> None:
    infinite = np.isinf(numbers[0].to_numpy())
    if infinite.any():
        cell = values[infinite][0]
        raise ValueError(
            f"{table.place(name, _row_of(table, name, cell))}: {cell} is not a finite number. Correct the cell, empty "
            f"it, or leave the column out with data.drop=[{name}]"
        )
