"""Cells of a parquet file as the text that a csv file of the same table would have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd


def parquet_cells(file: Path) -> dict[str, np.ndarray]:
    """Reads a parquet file and turns its typed cells into text; a missing cell is empty.

    Integers with missing cells stay integers, times are in ISO 8601, durations in seconds.

    Args:
        file: the file.

    Raises:
        ImportError: If pyarrow is not installed.
        ValueError: If the file is damaged, its index is named like a column, or a cell holds a NUL byte.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(f'{file} is a parquet file, which needs pyarrow: pip install "ibreg[parquet]"') from error
    try:
        # Without nullable types, integers and booleans with missing cells would be read as floats and objects.
        frame = pd.read_parquet(file, engine="pyarrow", dtype_backend="numpy_nullable")
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is a damaged parquet file: {str(error).splitlines()[0]}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        unnamed = frame.index.nlevels == 1 and frame.index.name is None
        try:
            frame = frame.reset_index(names=[""] if unnamed else None)
        except ValueError as error:
            raise ValueError(
                f"{file} has an index of pandas with the name of a column ({error}): rename the index, "
                "frame.rename_axis('row'), or leave it out, frame.reset_index(drop=True)"
            ) from error
    cells = {str(name): _texts(frame.iloc[:, place]) for place, name in enumerate(frame.columns)}
    for name, column in cells.items():
        if rows := [row for row, cell in enumerate(column, 1) if "\0" in cell]:
            raise ValueError(f"{file}, column {name!r}, row {rows[0]}: the cell holds a NUL byte, which is no text")
    return cells


def _texts(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_timedelta64_dtype(column):
        column = column.dt.total_seconds()
    missing = column.isna().to_numpy(dtype=bool)
    cells = ["" if absent else str(cell).strip() for cell, absent in zip(column, missing, strict=True)]
    return np.array(cells, dtype=object)
