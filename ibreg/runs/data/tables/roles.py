"""The role of each column of a table: target, input, concept, group or order of the rows, or left out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ibreg.runs.data.tables.reading import Table

KINDS = ("number", "boolean", "text", "date")


@dataclass(frozen=True)
class Roles:
    """The role of each column; columns without one are features.

    Args:
        target: target column.
        drop: columns that are not used.
        groups: column of the groups, none of which is in two splits.
        order: column that orders the rows: numbers or times.
        concepts: columns of concept labels.
        kinds: what columns are read as, where their cells do not decide it: one of `KINDS` by column.
    """

    target: str
    drop: tuple[str, ...] = ()
    groups: str | None = None
    order: str | None = None
    concepts: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        table: Table,
        target: Any,
        drop: Any = (),
        groups: Any = None,
        order: Any = None,
        kinds: Any = None,
        concepts: Sequence[str] = (),
    ) -> Roles:
        """Checks the options of a table, and turns names that YAML reads as numbers, such as 5, into strings.

        Raises:
            ValueError: If a column does not exist or has two roles, or an option is of another kind.
        """
        if isinstance(drop, str) or not isinstance(drop, Sequence):
            raise ValueError(f"drop must be a list of columns, data.drop=[{drop}], got {drop!r}")
        if not isinstance(kinds or {}, Mapping):
            raise ValueError(f"kinds must map columns to kinds, data.kinds={{zip: text}}, got {kinds!r}")
        if groups is not None and order is not None:
            raise ValueError(f"groups={groups} and order={order} are two ways of splitting the rows: leave one out")
        groups, order = (None if name is None else str(name) for name in (groups, order))
        of_columns = {str(column): str(kind) for column, kind in (kinds or {}).items()}
        roles = cls(str(target), tuple(map(str, drop)), groups, order, tuple(map(str, concepts)), of_columns)
        roles._check(table)
        return roles

    def _check(self, table: Table) -> None:
        uses = {"target": [self.target], "groups": [self.groups], "order": [self.order], "concepts": self.concepts}
        named = {use: [column for column in columns if column is not None] for use, columns in uses.items()}
        for column in chain(*named.values(), self.drop, self.kinds):
            if column not in table.cells:
                raise ValueError(
                    f"{table.file} has no column {column!r}; the closest is {_closest(column, table.columns)!r} of "
                    f"{table.columns}"
                )
        for use, columns in named.items():
            for column in columns:
                if column in self.drop:
                    raise ValueError(f"drop must not contain the {use} {column!r}, got {list(self.drop)}")
                others = [other for other, those in named.items() if other != use and column in those]
                if others:
                    raise ValueError(f"{use} and {others[0]} must be different columns, got {column!r} for both")
        for column, kind in self.kinds.items():
            if kind not in KINDS:
                raise ValueError(f"the kind of column {column!r} must be one of {list(KINDS)}, got {kind!r}")
            if column not in (*self.features(table), self.order):
                raise ValueError(f"kinds must name columns that are inputs, got {column!r}")

    def features(self, table: Table) -> list[str]:
        """Lists the columns that are inputs, in the order of the file; `order` may be one too."""
        others = {self.target, *self.drop, self.groups, *self.concepts}
        return [column for column in table.columns if column not in others]


def _closest(name: str, columns: Sequence[str]) -> str:
    """Returns the column whose name is most similar to one that does not exist, whatever the case of letters."""
    lower = {column.strip().lower(): column for column in reversed(columns)}
    return lower[difflib.get_close_matches(name.strip().lower(), list(lower), n=1, cutoff=0)[0]]
