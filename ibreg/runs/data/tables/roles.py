"""The role of each column of a table: target, input, concept, group or order of the rows, or left out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from ibreg.runs.data.tables.reading import Table

LISTED = 10  # columns that a message lists


@dataclass(frozen=True)
class Roles:
    """The role of each column; columns without one are features.

    Args:
        target: target column.
        drop: columns that are not used.
        groups: column of the groups, none of which is in two splits.
        order: column that orders the rows: numbers or times.
        concepts: columns of concept labels.
        kinds: what columns are read as, where their cells do not decide it: number, boolean, text or date by column.
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
        target: str,
        *,
        drop: Sequence[str] = (),
        groups: str | None = None,
        order: str | None = None,
        kinds: Mapping[str, str] | None = None,
        concepts: Sequence[str] = (),
    ) -> Roles:
        """Checks that the columns exist and have one role each.

        Raises:
            ValueError: If a column does not exist or has two roles.
        """
        if groups is not None and order is not None:
            raise ValueError(
                f"data.groups={groups} and data.order={order} are two ways of splitting the rows: leave one out"
            )
        roles = cls(target, tuple(drop), groups, order, tuple(concepts), dict(kinds or {}))
        roles._check(table)
        return roles

    def _check(self, table: Table) -> None:
        uses = {"target": [self.target], "groups": [self.groups], "order": [self.order], "concepts": self.concepts}
        named = {use: [column for column in columns if column is not None] for use, columns in uses.items()}
        for column in chain(*named.values(), self.drop, self.kinds):
            if column not in table.cells:
                raise ValueError(
                    f"{table.file} has no column {column!r}; the closest is {_closest(column, table.columns)!r} of "
                    f"{_listed(table.columns)}"
                )
        for use, columns in named.items():
            for column in columns:
                if column in self.drop:
                    raise ValueError(f"data.drop must not contain data.{use}, {column!r}, got {_listed(self.drop)}")
                others = [other for other, those in named.items() if other != use and column in those]
                if others:
                    raise ValueError(
                        f"data.{use} and data.{others[0]} must be different columns, got {column!r} for both; the file "
                        f"has {_listed(table.columns)}"
                    )
        for column in self.kinds:
            if column not in (*self.features(table), self.order):
                inputs = _listed(self.features(table))
                raise ValueError(f"data.kinds must name input columns, of {inputs}, got {column!r}: leave it out")

    def features(self, table: Table) -> list[str]:
        """Lists the columns that are inputs, in the order of the file; `order` may be one too."""
        others = {self.target, *self.drop, self.groups, *self.concepts}
        return [column for column in table.columns if column not in others]


def _listed(columns: Sequence[str]) -> str:
    """Lists columns in a message, of many the first."""
    more = f", ... ({len(columns)} columns)" if len(columns) > LISTED else ""
    return f"[{', '.join(map(repr, columns[:LISTED]))}{more}]"


def _closest(name: str, columns: Sequence[str]) -> str:
    """Returns the column whose name is most similar to one that does not exist, whatever the case of letters."""
    lower = {column.strip().lower(): column for column in reversed(columns)}
    return lower[difflib.get_close_matches(name.strip().lower(), list(lower), n=1, cutoff=0)[0]]
