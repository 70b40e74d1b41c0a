"""What was done with every column of a table, and the numbers of rows of its splits, printed and written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ibreg.runs.data.tables.columns import ColumnReport
from ibreg.runs.folder import write_rows

COLUMNS = "columns.csv"


def print_columns(data: Any) -> None:
    """Prints what was done with every column, of data that were read from a table; prints nothing for others.

    Neighboring columns with the same report share a line.

    Args:
        data: a loaded data set; its attribute `columns`, if it has one, holds the reports.

    Example:
        >>> class Data:
        ...     columns = (ColumnReport("age", "number", 2, 3, "standardized"),)
        ...     train, validation, test = range(60), range(20), range(20)
        >>> print_columns(Data())
        ┏━━━━━━━━┳━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━━━━┓
        ┃ column ┃ read as ┃ inputs ┃ missing ┃ note         ┃
        ┡━━━━━━━━╇━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━━━━┩
        │ age    │ number  │      2 │       3 │ standardized │
        └────────┴─────────┴────────┴─────────┴──────────────┘
        60 training, 20 validation and 20 test rows
    """
    reports: Sequence[ColumnReport] = getattr(data, "columns", ())
    if not reports:
        return
    table = Table()
    for heading in ("column", "read as", "inputs", "missing", "note"):
        table.add_column(heading, justify="right" if heading in ("inputs", "missing") else "left", overflow="fold")
    for _, equal in groupby(reports, key=lambda report: replace(report, column="")):
        # As Text: brackets in the name of a column are not markup.
        table.add_row(*(Text(str(value)) for value in asdict(_joined(list(equal))).values()))
    console = Console()
    if not sys.stdout.isatty():  # a log file has no width
        console.width = console.measure(table, options=console.options.update(width=10_000)).maximum
    console.print(table)
    console.print(
        f"{len(data.train)} training, {len(data.validation)} validation and {len(data.test)} test rows",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _joined(reports: Sequence[ColumnReport]) -> ColumnReport:
    """Returns one report of columns that have equal ones."""
    if len(reports) == 1:
        return reports[0]
    first, last = reports[0].column, reports[-1].column
    between = " ... " if len(reports) > 2 else ", "
    return replace(reports[0], column=f"{first}{between}{last} ({len(reports)} columns)")


def write_columns(data: Any, folder: Path) -> None:
    """Writes what was done with every column to `columns.csv`, of data that were read from a table.

    Args:
        data: a loaded data set.
        folder: folder of the run.
    """
    reports: Sequence[ColumnReport] = getattr(data, "columns", ())
    if reports:
        write_rows(folder / COLUMNS, [asdict(report) for report in reports])
