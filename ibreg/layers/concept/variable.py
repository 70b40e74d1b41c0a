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
            hint = _QUOTES if isinstance(entry, bool) or entry is None else ""
            raise ValueError(f"a concept must be a name or a mapping with a name, got {entry!r}{hint}")
        name = _text("the name of a concept", entry["name"])
        unknown = [str(key) for key in entry if key not in FIELDS]
        if unknown:
            raise ValueError(
                f"concept {name!r} has no field {', '.join(map(repr, unknown))}: choose from {', '.join(FIELDS)}"
            )
        weight = float(AtLeast(0).check(f"the weight of concept {name!r}", entry.get("weight", 1.0)))
        if "values" not in entry:
            group = _text(f"the group of concept {name!r}", entry.get("group", name))
            return cls(name, entry.get("kind", "binary"), (column,), (), group, weight)
        if entry.get("kind", "categorical") != "categorical" or "group" in entry:
            raise ValueError(
                f"concept {name!r} has values, so it is categorical and a group of its own: leave out kind and group"
            )
        values = entry["values"]
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < 2:
            raise ValueError(f"the values of concept {name!r} must be a list of two or more, got {values!r}")
        texts = tuple(_text(f"each value of concept {name!r}", value) for value in values)
        return cls(name, "categorical", tuple(range(column, column + len(texts))), texts, name, weight)

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


_QUOTES = ": YAML reads yes, no, on, off, true, false and null as other than text; quote them, as in 'yes'"


def _text(what: str, value: Any) -> str:
    """Return a name or value as text; numbers are written out.

    Raises:
        ValueError: If it is empty, or YAML has read it as a boolean or as nothing.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{what} must be a string, got {value!r}{_QUOTES}")
    if not str(value).strip():
        raise ValueError(f"{what} must not be empty, got {value!r}")
    return str(value)
