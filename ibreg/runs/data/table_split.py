"""Splits of the rows of a table: by groups that stay together, or in the order of a column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.split import Request
from ibreg.runs.data.tables.kinds import read_column
from ibreg.runs.data.tables.reading import Table
from ibreg.runs.data.tables.roles import Roles

Splits = tuple[np.ndarray, np.ndarray, np.ndarray]

CANDIDATES = 200  # random choices of groups, of which the one is taken whose fractions fit best


def split_classes(
    request: Request, table: Table, roles: Roles, labels: np.ndarray, class_names: Sequence[str], test: float
) -> Splits:
    """Splits the rows of a table with classes: by the column that decides, else at random, stratified.

    Args:
        request: fraction of validation rows, seed, and number of training rows that are kept.
        table: the table.
        roles: which column decides, `groups` or `order`.
        labels: `(rows,)`, classes from 0.
        class_names: one name per class.
        test: fraction of the rows that are test rows.

    Returns:
        The indices of the training, validation and test rows.

    Raises:
        ValueError: If a cell of the column is missing, a split would be empty or far from its fraction, or a class has
            no training row.
    """
    if len(class_names) < 2 or (roles.groups is None and roles.order is None):
        return request.stratified_split(labels, class_names, test)  # which refuses a single class
    splits = _split(request, table, roles, test, labels)
    for number, name in enumerate(class_names):
        if not (labels[splits[0]] == number).any():
            option = "groups" if roles.groups is not None else "order"
            raise ValueError(
                f"{option}={roles.groups or roles.order!r} leaves no training row of class {name!r} among "
                f"{len(splits[0])}: remove data.{option} to split at random, leave the class out, or set data.test "
                "closer to 0"
            )
    return splits


def split_quantities(request: RegressionRequest, table: Table, roles: Roles, test: float) -> Splits:
    """Splits the rows of a table for regression: by the column that decides, else as the request says.

    Args:
        request: fraction of validation rows, seed, and number of training rows that are kept.
        table: the table.
        roles: which column decides, `groups` or `order`.
        test: fraction of the rows that are test rows.

    Returns:
        The indices of the training, validation and test rows.

    Raises:
        ValueError: If a cell of the column is missing, a split would be empty or far from its fraction, or the order is
            given twice.
    """
    if roles.groups is None and roles.order is None:
        return request.split_rows(len(table), test)
    if request.split == "chronological":
        raise ValueError(
            "split=chronological takes the rows in the order of the file: leave it out with data.groups or data.order"
        )
    return _split(request, table, roles, test, None)


def _split(request: Request, table: Table, roles: Roles, test: float, labels: np.ndarray | None) -> Splits:
    """Splits by groups, with about the same fraction of each class where there are labels, or in an order."""
    codes = _time_codes(table, roles) if roles.groups is None else _group_codes(table, roles.groups)
    train, validation, held_out = splits = _unlimited(request, roles, codes, test, labels)
    if _far(len(held_out), len(table), test):
        _refuse(table, roles, codes, splits, np.concatenate(splits), "test", test)
    rest = np.concatenate([train, validation])
    if _far(len(validation), len(rest), request.validation):
        _refuse(table, roles, codes, splits, rest, "validation", request.validation)
    if roles.groups is not None:
        return _limited(train, request, labels), validation, held_out
    return train[-request.limit :] if request.limit else train, validation, held_out


def _unlimited(request: Request, roles: Roles, codes: np.ndarray, test: float, labels: np.ndarray | None) -> Splits:
    """Splits all rows by the numbers of their groups or of their places in the order."""
    classes = np.zeros(len(codes), dtype=int) if labels is None else labels

    def hold_out(rows: np.ndarray, fraction: float, split: str) -> tuple[np.ndarray, np.ndarray]:
        if roles.groups is None:
            return _hold_out_latest(rows, codes, fraction, split)
        left = 2 if split == "test" and request.validation else 1  # groups, for the splits that follow
        return _hold_out_groups(rows, codes, classes, fraction, request.split_seed, split, left)

    rows = np.argsort(codes, kind="stable") if roles.groups is None else np.arange(len(codes))
    rows, held_out = hold_out(rows, test, "test")
    train, validation = hold_out(rows, request.validation, "validation")
    return train, validation, held_out


def _far(held: int, rows: int, fraction: float) -> bool:
    """Tells whether a split has less than half or more than twice of the rows that are asked for, to within a row."""
    wanted = fraction * rows
    off = held < wanted / 2 or held > 2 * wanted or rows - held < (rows - wanted) / 2
    return off and abs(held - wanted) > 1


def _refuse(
    table: Table, roles: Roles, codes: np.ndarray, splits: Splits, rows: np.ndarray, split: str, fraction: float
) -> None:
    """Raises the error on a split of rows that is far from what is asked, with the rows that stay together."""
    option, column = ("order", str(roles.order)) if roles.groups is None else ("groups", roles.groups)
    if roles.groups is None:  # the rows are in order, and equal ones where the cut should be moved it
        together = codes[rows[len(rows) - round(fraction * len(rows))]]
    else:
        together = np.bincount(codes[rows]).argmax()
    count, cell = int((codes[rows] == together).sum()), table.cells[column][codes == together][0]
    train, validation, test = map(len, splits)
    given = {"test": test, "validation": validation}[split] / len(rows)
    raise ValueError(
        f"data.{option}={column} would give {train} training, {validation} validation and {test} test rows, far from "
        f"data.{split}={fraction}: {count} of {len(rows)} rows have {cell} in the column and stay together. Split by "
        f"another column, or set data.{split} to another fraction, such as {given:.3g}"
    )


def _group_codes(table: Table, column: str) -> np.ndarray:
    missing = table.missing(column)
    if missing.any():
        raise ValueError(
            f"{table.place(column, int(missing.argmax()))}: the group is missing; remove the row or fill it in"
        )
    return pd.factorize(table.cells[column])[0]


def _hold_out_groups(
    rows: np.ndarray, codes: np.ndarray, classes: np.ndarray, fraction: float, seed: int, split: str, left: int
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out groups with about a fraction of the rows of each class."""
    if not fraction:
        return rows, rows[:0]
    counts = pd.crosstab(codes[rows], classes[rows])
    groups, table = counts.index.to_numpy(), counts.to_numpy()
    if len(groups) < 2:
        remedy = "split by another column" if split == "test" else "data.validation=0 holds out no validation rows"
        raise ValueError(
            f"the groups must be two or more to split training and {split} rows, got {len(groups)}; {remedy}, or "
            "remove data.groups to split at random"
        )
    totals = table.sum(axis=0)
    rng = np.random.default_rng(seed)

    def choice() -> np.ndarray:
        """Takes groups in random order, as many as come next to the fraction of the rows."""
        order = rng.permutation(len(groups))
        taken = table[order[: max(len(groups) - left, 1)]].sum(axis=1).cumsum()
        return order[: 1 + np.abs(taken - fraction * totals.sum()).argmin()]

    def misfit(chosen: np.ndarray) -> float:
        of_classes = np.abs(table[chosen].sum(axis=0) / totals - fraction).max()
        return float(of_classes + abs(table[chosen].sum() / totals.sum() - fraction))

    best = min((choice() for _ in range(CANDIDATES)), key=misfit)
    taken = np.isin(codes[rows], groups[best])
    return rows[~taken], rows[taken]


def _limited(train: np.ndarray, request: Request, labels: np.ndarray | None) -> np.ndarray:
    """Keeps a random number of training rows, of each class in proportion where that is possible."""
    if not 0 < request.limit < len(train):
        return train
    strata = None if labels is None else labels[train]
    if strata is not None and np.bincount(strata)[np.unique(strata)].min() < 2:
        strata = None
    kept, _ = train_test_split(train, train_size=request.limit, stratify=strata, random_state=request.split_seed)
    return np.sort(kept)


def _time_codes(table: Table, roles: Roles) -> np.ndarray:
    """Numbers the cells of the order column in the order of numbers or times; equal ones have equal numbers."""
    name = str(roles.order)
    column = read_column(table, name, roles.kinds.get(name))
    if column.missing.any():
        row = int(column.missing.argmax())
        raise ValueError(
            f"{table.place(name, row)}: the cell that orders the row is missing; remove the row or fill it in"
        )
    if column.kind not in ("number", "date"):
        raise ValueError(
            f"order must be a column of numbers, or of dates and times such as 2020-12-31 18:00, but {name!r} is "
            f"{column.kind}, such as {table.cells[name][0]}"
        )
    return np.unique(column.values[0].to_numpy(), return_inverse=True)[1]


def _hold_out_latest(rows: np.ndarray, codes: np.ndarray, fraction: float, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Holds out the last of ordered rows, cut where the time changes, next to the wanted fraction."""
    if not fraction:
        return rows, rows[:0]
    kept = len(rows) - round(fraction * len(rows))
    if not 0 < kept < len(rows):
        raise ValueError(
            f"{split}={fraction} of {len(rows)} rows leaves one split empty: set data.{split} closer to 0.5"
        )
    changes = 1 + np.flatnonzero(np.diff(codes[rows]))
    if len(changes):
        after = int(np.searchsorted(changes, kept))
        cuts = [int(cut) for cut in changes[max(after - 1, 0) : after + 1]]
        # A cut near to the fraction may be the farther one: with 20 of 100 wanted, 32 is near and 9 is not.
        kept = min(cuts, key=lambda cut: (_far(len(rows) - cut, len(rows), fraction), abs(cut - kept)))
    return rows[:kept], rows[kept:]
