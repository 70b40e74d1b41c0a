"""Types of the options of tables, as a configuration has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field


def _as_text(value: Any) -> Any:
    """Turns a number into the text of a cell or a column name: YAML reads a column called 5 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_mark(value: Any) -> Any:
    """Turns a null, which YAML makes of the text, into that text too."""
    return "null" if value is None else _as_text(value)


ColumnName = Annotated[str, BeforeValidator(_as_text), Field(json_schema_extra={"valid": "the name of a column"})]
ColumnNames = Annotated[
    Sequence[ColumnName], Field(json_schema_extra={"valid": "a list of columns, such as [name, id]"})
]
Kinds = Annotated[
    Mapping[ColumnName, Literal["number", "boolean", "text", "date"]],
    Field(json_schema_extra={"valid": "kinds by column, number, boolean, text or date, such as {zip: text}"}),
]
Marks = Annotated[
    Sequence[Annotated[str, BeforeValidator(_as_mark)]],
    Field(json_schema_extra={"valid": "a list of cells, such as ['', NA]"}),
]
