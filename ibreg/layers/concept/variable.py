"""One entry of a specification of concepts: a column of the labels, or a categorical variable with its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibreg.layers.constraints import AtLeast, OneOf

KINDS = ("binary", "categorical", "continuous")
FIELDS = ("name", "kind", "group", "weight", "values")


@dataclass(frozen=True)
class Variable:
    """One entry of a specification: a single column of the labels, or one column for each value of a categorical one.

    Attributes:
        name: name of the variable, and of its column in a table.
        kind: "binary", "categorical" or "continuous".
        columns: its columns of the labels, neighbors.
        values: values of a categorical variable, one per column; empty for a variable that is a single column.
        group: name of the group that its columns belong to.
        weight: weight of its loss, at least 0.

    Raises:
        ValueError: If the kind does not exist, or the weight is not a finite number of at least 0.
    """

    name: str
    kind: str
    columns: tuple[int, ...]
    values: tuple[str, ...]
    group: str
    weight: float

    def __post_init__(self):
        OneOf(KINDS).check(f"the kind of concept {self.name!r}", self.kind)
        AtLeast(0).check(f"the weight of concept {self.name!r}", self.weight)

    @classmethod
    def of(cls, entry: Any, column: int) -> Variable:
        """Build the variable that an entry describes.

        Args:
            entry: a name, or a mapping with `name` and further fields: see `Concepts.of`.
            column: first column of the variable.

        Raises:
            ValueError: If it is neither, or a field is unknown or invalid.
        """
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise ValueError(f"a concept must be a name or a mapping with a name, got {entry!r}")
        name = str(entry["name"])
        unknown = [str(key) for key in entry if key not in FIELDS]
        if unknown:
            raise ValueError(
                f"concept {name!r} has no field {', '.join(map(repr, unknown))}: choose from {', '.join(FIELDS)}"
            )
        weight = float(AtLeast(0).check(f"the weight of concept {name!r}", entry.get("weight", 1.0)))
        if "values" not in entry:
            return cls(name, entry.get("kind", "binary"), (column,), (), str(entry.get("group", name)), weight)
        if entry.get("kind", "categorical") != "categorical" or "group" in entry:
            raise ValueError(
                f"concept {name!r} has values, so it is categorical and a group of its own: leave out kind and group"
            )
        values = entry["values"]
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < 2:
            raise ValueError(f"the values of concept {name!r} must be a list of two or more, got {values!r}")
        columns = tuple(range(column, column + len(values)))
        return cls(name, "categorical", columns, tuple(map(str, values)), name, weight)

    @property
    def column_names(self) -> tuple[str, ...]:
        """The name of each column: `name=value` where the variable has values."""
        return tuple(f"{self.name}={value}" for value in self.values) or (self.name,)

    def entry(self) -> str | dict[str, Any]:
        """Return the entry that describes this variable, in JSON types."""
        entry: dict[str, Any] = {"name": self.name}
        if self.values:
            entry["values"] = list(self.values)
        else:
            entry |= {"kind": self.kind} if self.kind != "binary" else {}
            entry |= {"group": self.group} if self.group != self.name else {}
        entry |= {"weight": self.weight} if self.weight != 1 else {}
        return entry if len(entry) > 1 else self.name
