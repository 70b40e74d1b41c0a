"""Concept labels from the columns of a table."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from ibreg.layers.concept.specification import Concepts
from ibreg.layers.concept.variable import Variable
from ibreg.runs.data.tables.cells import are_numbers, as_booleans
from ibreg.runs.data.tables.reading import Table

VALUES_LISTED = 20  # of a column of text, in a message


def concept_labels(table: Table, concepts: Concepts) -> np.ndarray:
    """Turn the columns of concepts into labels `(rows, concepts)`, one-hot where a variable has values.

    A missing cell is a missing label, NaN, unless it is one of the values of its variable. True and false, yes and no
    are 1 and 0 of a binary concept.

    Args:
        table: the table; its columns have the names of the variables.
        concepts: specification of the concepts.

    Raises:
        ValueError: If a cell is not a number, or not one of the values of its variable.

    Example:
        >>> from pathlib import Path
        >>> cells = {"red": np.array(["yes", "NA"], dtype=object), "hue": np.array(["b", "a"], dtype=object)}
        >>> concepts = Concepts.of(["red", {"name": "hue", "values": ["a", "b"]}])
        >>> concept_labels(Table(Path("t.csv"), cells, [2, 3], {"na"}), concepts).tolist()
        [[1.0, 0.0, 1.0], [nan, 1.0, 0.0]]
    """
    return np.hstack([_labels_of(table, variable) for variable in concepts.variables])


def _labels_of(table: Table, variable: Variable) -> np.ndarray:
    """Return the labels of one variable, `(rows, columns)`."""
    cells = table.cells[variable.name]
    missing = table.missing(variable.name) & np.array([cell not in variable.values for cell in cells], dtype=bool)
    codes, found = pd.factorize(cells[~missing])
    names = np.asarray(found)
    if variable.values:
        converted = np.array([[float(name == value) for value in variable.values] for name in names])
        valid = np.array([name in variable.values for name in names], dtype=bool)
    else:
        converted = _numbers(names, variable)[:, None]
        valid = np.isfinite(converted[:, 0])
    if not valid.all():
        wrong = names[~valid][0]
        place = table.place(variable.name, int((cells == wrong).argmax()))
        raise ValueError(
            f"{place}, must be {_valid(variable)} or empty (no label), got {wrong}{_remedy(variable, names)}"
        )
    labels = np.full((len(cells), len(variable.columns)), np.nan)
    labels[~missing] = converted.reshape(-1, len(variable.columns))[codes]
    return labels


def _numbers(names: np.ndarray, variable: Variable) -> np.ndarray:
    numeric = are_numbers(names)
    numbers = np.array([float(name) if number else np.nan for name, number in zip(names, numeric, strict=True)])
    return as_booleans(names) if variable.kind == "binary" and not numeric.any() else numbers


def _valid(variable: Variable) -> str:
    return f"one of {list(variable.values)}" if variable.values else "a number"


def _remedy(variable: Variable, names: np.ndarray) -> str:
    """Say how a column of text becomes a concept."""
    if variable.values or are_numbers(names).any() or not 1 < len(names) <= VALUES_LISTED:
        return ""
    # Quoted, as YAML would read yes, no or 010 as something else than text.
    values = json.dumps(sorted(names), ensure_ascii=False)
    return f"; for text, list its values: {{name: {variable.name}, values: {values}}}"
