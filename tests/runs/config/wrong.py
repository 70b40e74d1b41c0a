"""Wrong configurations, generated from the JSON schema of a section: misspelt keys, wrong types and ranges."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from ibreg.runs.config.section import shown

# Of each key, some are wrong.
CANDIDATES = ("wrong value", 7.25, -3, True, {"wrong": 1}, [["wrong"]], math.nan, None)


class Wrong(NamedTuple):
    """A section with one mistake.

    Attributes:
        path: the keys that lead to it.
        value: the wrong value; for a misspelt key that key.
        values: the section.
        misspelt: whether the key is misspelt, rather than its value wrong.
    """

    path: tuple[str, ...]
    value: Any
    values: dict[str, Any]
    misspelt: bool

    def problem(self, read, section: str = "") -> str:
        """Returns what is not as it should be when a function reads the section; empty: nothing.

        Args:
            read: the function; it should raise a ValueError.
            section: dotted key of the section.
        """
        *above, key = (*([section] if section else []), *self.path)
        try:
            read(self.values)
        except ValueError as error:
            message = str(error)
        else:
            return f"{self}: accepted"
        dotted = ".".join([*above, key])
        if self.misspelt:
            told = f"no key {self.value!r} (did you mean {key!r}?): it has " in message
            # A section without a key that it cannot do without, or with any further keys, lacks the right one.
            told = told or re.search(rf"needs the key {key!r}|{re.escape(dotted)} has no value", message)
        else:
            place = re.escape(f"{dotted}.wrong" if self.value == {"wrong": 1} else dotted)
            got = re.escape(shown(1 if self.value == {"wrong": 1} else self.value))
            told = re.search(rf"^{place} must be .+, got {got}( |$)", message)
            told = told or re.search(
                rf"^{re.escape(dotted)} must be .+, got {re.escape(shown(self.value))}( |$)", message
            )
            told = told or (
                self.value == {"wrong": 1} and re.search(r"has no key 'wrong'|needs the key '|has no value: ", message)
            )
            told = told or re.search(
                rf"^{re.escape(dotted)}: no .* {re.escape(repr(self.value))}.*: it is one of ", message
            )
            told = told or (self.value is None and re.search(rf"^{re.escape(dotted)} has no value: choose ", message))
        vague = re.search(
            "another value|a section with the keys? (,|$)|None|True|False|\\{\\}", message.partition(", got ")[0]
        )
        return "" if told and not vague and "\n" not in message else f"{dotted}={self.value!r}: {message}"


def wrong_sections(model, values: dict[str, Any]) -> Iterator[Wrong]:
    """Yields a section with one mistake each: every key misspelt, and with each kind of value that it refuses.

    Args:
        model: the class of the section.
        values: a valid section.
    """
    root = model.model_json_schema()
    for path, schema in _keys(root, root, values):
        misspelt = f"{path[-1]}q"
        yield Wrong(path, misspelt, _changed(values, path, misspelt), True)
        for value in CANDIDATES:
            if not allows(schema, value, root):
                yield Wrong(path, value, _changed(values, path, path[-1], value), False)


def allows(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Whether a JSON schema allows a value."""
    if "$ref" in schema:
        return allows(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        return any(allows(option, value, root) for option in schema["anyOf"])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if schema.get("valid") == "the name of a column" and number:
        return True  # YAML reads a column called 5 as a number
    kinds = {
        "null": value is None, "boolean": isinstance(value, bool), "string": isinstance(value, str),
        "integer": number and isinstance(value, int), "number": number and math.isfinite(value),
        "array": isinstance(value, list), "object": isinstance(value, dict), None: True,
    }  # fmt: skip
    if not kinds[schema.get("type")] or value not in schema.get("enum", [value]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if number:
        return schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf) and schema.get(
            "exclusiveMinimum", -math.inf
        ) < value < schema.get("exclusiveMaximum", math.inf)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0)
    if isinstance(value, list):
        distinct = len({str(entry) for entry in value}) == len(value) or not schema.get("uniqueItems")
        counted = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)
        return distinct and counted and all(allows(schema.get("items", {}), entry, root) for entry in value)
    if isinstance(value, dict):
        known, further = schema.get("properties", {}), schema.get("additionalProperties", True)
        unknown = further is not False or value.keys() <= known.keys()
        inner = further if isinstance(further, dict) else {}
        return unknown and all(allows(known.get(key, inner), entry, root) for key, entry in value.items())
    return True


def _keys(schema, root, values, above=()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yields the path and the schema of each key of a section, and of the sections in it."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    for key, described in schema.get("properties", {}).items():
        path = (*above, key)
        if key in values:
            yield path, described
            if isinstance(values[key], dict):
                yield from _keys(described, root, values[key], path)


def _changed(values, path, key, *value) -> dict[str, Any]:
    first, *rest = path
    if rest:
        return values | {first: _changed(values[first], rest, key, *value)}
    kept = {name: entry for name, entry in values.items() if name != first}
    return kept | {key: value[0] if value else values[first]}
