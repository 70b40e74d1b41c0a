"""Turns the columns of a table into inputs, by statistics of the training rows alone, and says what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer

from ibreg.runs.data.tables.columns import ColumnReport
from ibreg.runs.data.tables.encoders import Booleans, Encoder, Levels, Moments, Numbers
from ibreg.runs.data.tables.kinds import Column, read_column
from ibreg.runs.data.tables.reading import Table
from ibreg.runs.data.tables.roles import Roles
from ibreg.runs.data.tables.standardization import first_overflow

NAMES_OF_THE_INDEX = ("", "index", "level_0")  # of pandas' index, as pandas writes it or `reset_index` calls it


class Encoded(NamedTuple):
    """The inputs of all rows.

    Args:
        inputs: `(rows, inputs)`, float32.
        names: one name per input, such as `age`, `age missing`, `color=red`.
        columns: what was done with every column of the file.
    """

    inputs: np.ndarray
    names: tuple[str, ...]
    columns: tuple[ColumnReport, ...]


def encode(table: Table, roles: Roles, training: np.ndarray, others: Mapping[str, tuple[str, str]]) -> Encoded:
    """Encodes the features of a table.

    Numbers are standardized, booleans are 0 or 1, text is one-hot, dates and times are encoded by `encoders.Moments`.
    A column with missing cells in the training rows has a flag beside it. Columns that cannot help a model are left
    out: those that number the rows, that are the same in all training rows, and text that hardly repeats.

    Args:
        table: the table.
        roles: which columns are features.
        training: indices of the training rows.
        others: kind and note, for the report, of columns that are no features.

    Raises:
        ValueError: If no feature is left, or a cell cannot be used; the message names its line.
    """
    columns = {name: read_column(table, name, roles.kinds.get(name)) for name in roles.features(table)}
    reasons = {name: _left_out(table, column, roles, training) for name, column in columns.items()}
    used = [column for name, column in columns.items() if not reasons[name]]
    if not used:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items())
        raise ValueError(
            f"{table.file} has no feature column left beside the target {roles.target!r}"
            + (f" ({listed})" if listed else "")
        )
    reports = {
        name: _report(column, 0, f"left out: {reasons[name]}") for name, column in columns.items() if reasons[name]
    }
    transformer, frame = _transformer(used, roles, training)
    values = np.asarray(transformer.fit(frame.iloc[training]).transform(frame))
    _check_overflow(table, values, used, transformer)
    names: list[str] = []
    for place, column in enumerate(used):
        encoder: Encoder = transformer.named_transformers_[str(place)]
        flag = [f"{column.name} missing"] * (f"{place} missing" in transformer.output_indices_)
        own = [*encoder.names(column.name), *flag]
        names += own
        reports[column.name] = _report(column, len(own), encoder.note() + ", flag of missing cells" * len(flag))
    for name in table.columns:
        if name not in reports:
            kind, note = others.get(name, ("", "left out: data.drop"))
            if name == roles.groups:
                kind, note = "group", f"{len(np.unique(table.cells[name]))} groups, none of them in two splits"
            reports[name] = ColumnReport(name, kind, 0, int(table.missing(name).sum()), note)
    return Encoded(values.astype(np.float32), tuple(names), tuple(reports[name] for name in table.columns))


def _report(column: Column, inputs: int, note: str) -> ColumnReport:
    return ColumnReport(column.name, column.kind, inputs, int(column.missing.sum()), note)


def _left_out(table: Table, column: Column, roles: Roles, training: np.ndarray) -> str:
    """Says why a column is left out; an empty string if it is not."""
    known = training[~column.missing[training]]
    if not len(known):
        return "no cell in the training rows"
    cells = table.cells[column.name]
    counts = pd.Series(cells[known]).value_counts()
    if len(counts) == 1 and len(known) == len(training):
        return f"{cells[known[0]]} in all training rows"
    if column.name == roles.order and (column.kind != "date" or not _cycles(column, training)):
        return "orders the rows, and test rows lie beyond all training rows"
    if not column.decided and _numbers_the_rows(column):
        return "numbers the rows" + f"; data.kinds={{{column.name}:number}} keeps it" * bool(column.name)
    if column.kind != "text":
        return ""
    if not column.decided and 2 * (counts == 1).sum() > len(known):
        repeats = counts.max() >= _least(training)
        return "nearly every cell is another text" + f"; data.kinds={{{column.name}:text}} keeps it" * bool(repeats)
    return "" if counts.max() >= _least(training) else f"no text is in {_least(training)} or more training rows"


def _least(training: np.ndarray) -> int:
    """Returns the number of training rows below which a text is rare: 1 % of them, from 2 to 10."""
    return max(2, min(10, len(training) // 100))


def _cycles(column: Column, training: np.ndarray) -> list[str]:
    return Moments(elapsed=False).fit(column.values.iloc[training]).varying_


def _numbers_the_rows(column: Column) -> bool:
    """Tells whether a column is pandas' index, or counts the rows from 0 or 1."""
    if column.kind != "number" or column.missing.any():
        return False
    numbers = column.values[0].to_numpy()
    count = np.arange(len(numbers))
    if np.array_equal(numbers, count) or np.array_equal(numbers, count + 1):
        return True
    named = column.name in NAMES_OF_THE_INDEX or column.name.startswith("Unnamed: ")
    return named and bool((numbers % 1 == 0).all()) and len(np.unique(numbers)) == len(numbers)


def _transformer(used: list[Column], roles: Roles, training: np.ndarray) -> tuple[ColumnTransformer, pd.DataFrame]:
    """Builds the transformer of all columns, with one entry for each and one for its flag, and the frame for it."""
    entries, parts = [], {}
    for place, column in enumerate(used):
        encoders = {
            "number": Numbers(),
            "boolean": Booleans(),
            "text": Levels(_least(training)),
            "date": Moments(elapsed=column.name != roles.order),
        }
        keys = [f"{place} {part}" for part in column.values.columns]
        parts |= {key: column.values[part] for key, part in zip(keys, column.values.columns, strict=True)}
        entries.append((str(place), encoders[column.kind], keys))
        if column.missing[training].any():
            parts[f"{place} missing"] = column.missing.astype(float)
            entries.append((f"{place} missing", "passthrough", [f"{place} missing"]))
    return ColumnTransformer(entries, sparse_threshold=0), pd.DataFrame(parts)


def _check_overflow(table: Table, values: np.ndarray, used: list[Column], transformer: ColumnTransformer) -> None:
    if (found := first_overflow(values)) is None:
        return
    row, output = found
    place = next(place for place, span in transformer.output_indices_.items() if span.start <= output < span.stop)
    name = used[int(place)].name
    raise ValueError(
        f"{table.place(name, row)}: {table.cells[name][row]} overflows when standardized by the training rows. Correct "
        f"the cell, empty it, or leave the column out with data.drop=[{name}]"
    )
