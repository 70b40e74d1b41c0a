"""Reading a table: every cell as the text that stands in the file, with its line for messages."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ibreg.runs.data.tables.parquet import parquet_cells

# Cells that stand for a missing value, in any case: those of pandas and R, SQL, Excel, SAS, and what people type.
MISSING_MARKS = (
    "", "NA", "N/A", "#N/A", "#N/A N/A", "#NA", "NaN", "-NaN", "NaT", "<NA>", "null", "(null)", "None", "nil", "\\N",
    "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", ".", "?", "-", "--",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The cells of a file as text.

    Args:
        file: the file, for messages.
        cells: cells of each column, `(rows,)` of strings without blanks around them, in the order of the file.
        lines: line of each row in the file; empty for a file without lines.
        marks: cells that stand for a missing value, in lower case.

    Example:
        >>> table = Table(Path("t.csv"), {"age": np.array(["5", "NA"], dtype=object)}, [2, 3], {"na"})
        >>> table.missing("age").tolist(), table.place("age", 1)
        ([False, True], "column 'age', line 3")
    """

    file: Path
    cells: dict[str, np.ndarray]
    lines: Sequence[int]
    marks: frozenset[str] | set[str]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.cells)

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))

    def missing(self, column: str) -> np.ndarray:
        """Tells which cells of a column are missing: `(rows,)`, bool."""
        codes, values = pd.factorize(self.cells[column])
        return np.array([value.lower() in self.marks for value in values], dtype=bool)[codes]

    def place(self, column: str, row: int) -> str:
        """Names a cell in a message."""
        return f"column {column!r}, " + (f"line {self.lines[row]}" if len(self.lines) else f"row {row + 1}")


def read_table(file: Path, missing_marks: Sequence[str] = MISSING_MARKS) -> Table:
    """Reads a table with a header: comma-separated text, also compressed by gzip, or parquet.

    Args:
        file: the file; its content decides what it is.
        missing_marks: cells that stand for a missing value, in any case.

    Raises:
        ValueError: If the file is no table.
        ImportError: If the file is parquet, and pyarrow is not installed.
    """
    marks = frozenset(mark.strip().lower() for mark in missing_marks)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: data.path is the csv file itself, or a single parquet file")
    with open(file, "rb") as stream:
        start = stream.read(8)
    if start.startswith(b"PAR1"):
        cells, lines = parquet_cells(file), []
    elif start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ValueError(f"{file} is an Excel file or a zip archive: save the table as csv (UTF-8)")
    else:
        cells, lines = _csv_cells(file, compressed=start.startswith(b"\x1f\x8b"))
    if not cells or not len(next(iter(cells.values()))):
        raise ValueError(f"{file} has no rows: a header and then one row per example are expected")
    return Table(file, cells, lines, marks)


def _csv_cells(file: Path, *, compressed: bool) -> tuple[dict[str, np.ndarray], list[int]]:
    """Reads comma-separated text; not by pandas, which fills short rows and does not know the line of a row."""
    rows: list[list[str]] = []
    lines: list[int] = []
    opened = gzip.open if compressed else open
    with opened(file, "rt", encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        line = 1
        try:
            for row in reader:
                _check_text(file, line, row)
                if row and not (len(row) == 1 and not row[0].strip()):
                    rows.append([cell.strip() for cell in row])
                    lines.append(line)
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error}): save it as UTF-8") from error
        except csv.Error as error:
            raise ValueError(
                f"{file}, line {line}: {error}; close every quote, and double those inside quotes"
            ) from error
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} is a damaged gzip file: {error}") from error
    first = _before_header(file, rows)
    rows, lines = rows[first:], lines[first:]
    if len(rows) < 2:
        return {}, []
    header, *rows = _without_empty_end(rows)
    _check_header(file, header, rows)
    for line, row in zip(lines[1:], rows, strict=True):
        if len(row) != len(header):
            raise ValueError(f"{file}, line {line}: {_ragged(row, header)}")
    columns = np.array(rows, dtype=object).reshape(len(rows), len(header)).T
    return dict(zip(header, columns, strict=True)), lines[1:]


def _check_text(file: Path, line: int, row: Sequence[str]) -> None:
    if "\0" in "".join(row):
        raise ValueError(
            f"{file}, line {line}: a cell holds a NUL byte, which is no text: remove it, or save the file as UTF-8"
        )


def _before_header(file: Path, rows: Sequence[Sequence[str]]) -> int:
    """Counts the rows above the header: `sep=,` as Excel writes it, and comments that start with #."""
    first = 0
    if rows and rows[0][0].lower().startswith("sep=") and len(rows[0]) <= 2:
        if (mark := rows[0][0][4:]) and mark != ",":
            raise ValueError(f"{file} has columns separated by {mark!r}: save it with commas and decimal points")
        first = 1
    table = next((row for row in rows[first:] if not row[0].startswith("#")), None)
    # A header may start with # too; it is above the rows, and has as many cells.
    while table and rows[first][0].startswith("#") and (len(rows[first]) != len(table) or rows[first + 1] is not table):
        first += 1
    return first


def _without_empty_end(rows: list[list[str]]) -> list[list[str]]:
    """Removes what commas at the ends of lines add to a table: columns without a name and without a cell."""
    width = max(len(row) - next((end for end, cell in enumerate(reversed(row)) if cell), len(row)) for row in rows)
    return [row[:width] for row in rows]


_OTHER_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def _check_header(file: Path, header: list[str], rows: list[list[str]]) -> None:
    """Checks that columns are separated by commas, and that every row is below its own header."""
    if len(header) == 1:
        marks = [name for mark, name in _OTHER_MARKS.items() if mark in header[0]]
        if not marks and len(header[0].split()) == len(rows[0][0].split()) > 1:
            marks = ["blanks"]
        if marks:
            raise ValueError(
                f"{file} has columns separated by {marks[0]}: save it with commas between columns and decimal points"
            )
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise ValueError(f"{file} has more than one column named {twice[0]!r}: columns need different names")
    if all(len(row) == len(header) + 1 for row in rows):
        raise ValueError(
            f"{file} has a header of {len(header)} columns above rows of {len(rows[0])} cells: give the first column a "
            "name too"
        )


def _ragged(row: Sequence[str], header: Sequence[str]) -> str:
    """Describes a row that has not as many cells as the header."""
    cells, columns = (
        f"{len(each)} {word}{'s' * (len(each) != 1)}" for each, word in ((row, "cell"), (header, "column"))
    )
    hint = ""
    if row[0].startswith("#"):
        hint = "; comments must stand above the header: remove the line"
    elif any("\n" in cell for cell in row):
        hint = "; a quote that opens here is closed on another line"
    elif len(row) > len(header):
        hint = "; quote cells that contain a comma"
    return f"{cells} under a header of {columns}{hint}"
