"""Sections of a configuration as pydantic models, and errors in one line: `<key> must be <valid>, got <value>`.

A model stands beside the code that reads its keys, and states type, range and choices of each. The valid values in a
message are read from the model's JSON schema.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError


class Section(BaseModel):
    """A section of a configuration: keys that it does not declare are refused, and values are not converted.

    Example:
        >>> class Attack(Section):
        ...     steps: Count
        >>> read(Attack, {"steps": 0}, "attack")
        Traceback (most recent call last):
        ValueError: attack.steps must be an integer of at least 1, got 0
        >>> read(Attack, {"step": 1}, "attack")
        Traceback (most recent call last):
        ValueError: attack has no key 'step' (did you mean 'steps'?): it has steps
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def __contains__(self, key: str) -> bool:
        """Whether the section has a key."""
        return key in type(self).model_fields


AnySection = TypeVar("AnySection", bound=Section)


def _differ(values: list) -> list:
    if len({str(value) for value in values}) < len(values):
        raise PydanticCustomError("differ", "entries must differ")
    return values


def one_of(choices: Iterable[str]) -> tuple[Any, ...]:
    """Returns the annotations of a string that is one of several, `Annotated[str, *one_of(names)]`."""
    allowed: list[Any] = list(choices)

    def check(value: str) -> str:
        if value not in allowed:
            raise PydanticCustomError("choice", "not a choice")
        return value

    return AfterValidator(check), Field(json_schema_extra={"enum": allowed})


Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]  # a probability or fraction that is never all
Name = Annotated[str, Field(min_length=1)]
Different = (AfterValidator(_differ), Field(json_schema_extra={"uniqueItems": True}))
Names = Annotated[list[Name], *Different]

_WORDS = {None: "null", True: "true", False: "false"}


def read(model: type[AnySection], values: Any, path: str = "") -> AnySection:
    """Validates a section.

    Args:
        model: its class.
        values: a mapping of its keys.
        path: dotted key of the section, empty for a whole configuration.

    Raises:
        ValueError: If a key is unknown or missing, or a value is not valid; the message is about the first of them.
    """
    if not isinstance(values, Mapping):
        keys = ", ".join(model.model_fields)
        raise ValueError(f"{path} must be a section with the keys {keys}, got {shown(values)}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors(include_url=False)
        # An unknown key first: a misspelt one is missing as well.
        first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
        raise ValueError(_message(model, values, path, first)) from None


def no_key(section: str, key: str, known: Iterable[str]) -> str:
    """Words the message on a key that a section does not have."""
    known = list(known)
    return f"{section} has no key {key!r}{did_you_mean(key, known)}: it has {', '.join(known) or 'no options'}"


def check_known(key: str, named: Iterable[str], known: Iterable[str]) -> None:
    """Checks that all names that a key has are known, such as those of methods.

    Raises:
        ValueError: If some are not; the message lists the known ones and suggests the closest.

    Example:
        >>> check_known("places", ["hsc"], ["hsic", "variational"])
        Traceback (most recent call last):
        ValueError: places must be of hsic, variational, got hsc (did you mean 'hsic'?)
    """
    known = list(known)
    if unknown := [name for name in named if name not in known]:
        close = did_you_mean(unknown[0], known)
        raise ValueError(f"{key} must be of {', '.join(known)}, got {', '.join(unknown)}{close}")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Suggests the closest of the known names, whatever their case; empty where none is close."""
    folded = {other.lower(): other for other in map(str, known)}
    close = difflib.get_close_matches(name.lower(), folded, n=1) if isinstance(name, str) else []
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


def shown(value: Any) -> str:
    """Writes a value as it stands in a configuration, in one line of limited length.

    Example:
        >>> shown(True), shown("true"), shown("1e-3"), shown("adam")
        ('true', "'true'", "'1e-3'", 'adam')
    """
    if isinstance(value, BaseModel):
        value = value.model_dump()
    text = _WORDS[value] if isinstance(value, bool | None) else " ".join(str(value).split())
    # A string that looks like something else is in quotes, which are what is wrong with it.
    text = repr(value) if isinstance(value, str) and (text in ("", *_WORDS.values()) or _is_number(text)) else text
    return text if len(text) <= 200 else f"{text[:197]}..."


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def _message(model: type[Section], values: Any, path: str, detail: ErrorDetails) -> str:
    """Words an error of pydantic; the key that it names is the deepest one with a schema of its own."""
    root = _schema_of(model)
    value: Any
    schema, value, place = root, values, path
    for part in detail["loc"]:
        inner = _resolved(schema, root)
        if isinstance(part, str) and isinstance(value, Mapping):
            described = inner.get("properties", {}).get(part, inner.get("additionalProperties"))
            if not isinstance(described, dict) or (part not in value and detail["type"] != "missing"):
                break
            place = f"{place}.{part}" if place else part
        elif isinstance(part, int) and _resolved(inner.get("items", {}), root).get("type") == "object":
            described, place = inner["items"], f"{place}[{part}]"
        else:
            break
        schema, value = described, value.get(part) if isinstance(value, Mapping) else value[part]
    inner = _resolved(schema, root)
    if detail["type"] == "extra_forbidden":
        return no_key(place or _title(model), str(detail["loc"][-1]), inner.get("properties", ()))
    if detail["type"] == "missing":
        owner, _, key = place.rpartition(".")
        return f"{owner or _title(model)} needs the key {key!r}: give it a value, {place}=..."
    if detail["type"] == "value_error":
        return str(detail.get("ctx", {}).get("error", detail["msg"]))
    wrong, choices = value, inner.get("enum", ())
    if isinstance(value, list):  # one of its entries
        wrong, choices = detail["input"], _resolved(inner.get("items", {}), root).get("enum", ())
    return f"{place} must be {valid(schema, root)}, got {shown(value)}{did_you_mean(wrong, choices)}"


@cache
def _schema_of(model: type[Section]) -> dict[str, Any]:
    return model.model_json_schema()


def _title(model: type[Section]) -> str:
    return str(model.model_config.get("title") or "the configuration")


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follows a reference, and a schema that may also be null."""
    if "$ref" in schema:
        return _resolved(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    others = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    return _resolved(others[0], root) if len(others) == 1 else schema


def valid(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Describes the values that a JSON schema allows.

    Example:
        >>> valid({"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 1}, {})
        'a list of one or more numbers above 0'
    """
    if "valid" in schema:
        return schema["valid"]
    if "$ref" in schema:
        return valid(_resolved(schema, root), root)
    if "anyOf" in schema:
        *most, last = dict.fromkeys(valid(option, root) for option in schema["anyOf"])
        return f"{', '.join(most)} or {last}" if most else last
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(map(shown, choices))}"
    kind = schema.get("type")
    if kind == "array":
        return _valid_list(schema, root)
    if kind == "object":
        keys = list(schema.get("properties", ()))
        inner = schema.get("additionalProperties")
        entries = f" whose values are each {valid(inner, root)}" if isinstance(inner, dict) and inner else ""
        if keys:
            return f"a section with the key{'s' if len(keys) > 1 else ''} {', '.join(keys)}"
        return f"a section{entries}"
    named = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
    if kind == "string":
        return "a string that is not empty" if schema.get("minLength") else "a string"
    return f"{named.get(str(kind), 'another value')}{_limits(schema)}"


def _limits(schema: Mapping[str, Any]) -> str:
    words = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"),
             ("exclusiveMaximum", "below"))  # fmt: skip
    limits = [f"{word} {schema[key]:.15g}" for key, word in words if key in schema]
    stated = " and ".join(limits)
    return f" {'of ' if stated.startswith('at') else ''}{stated}".rstrip()


def _valid_list(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Describes a list: how many entries it has, whether they differ, and what each of them is."""
    items = schema.get("items", {})
    entry = valid(items, root) if items else "any value"
    plural = {"an integer": "integers", "a number": "numbers", "a string": "strings", "a section": "sections"}
    for one, many in plural.items():
        if entry.startswith(one) and " or " not in entry:
            entry = many + entry.removeprefix(one)
    entry = entry.replace("strings that is not empty", "strings")
    least, most = schema.get("minItems"), schema.get("maxItems")
    count = f"{least} " if least and least == most else "one or more " if least == 1 else ""
    different = "different " if schema.get("uniqueItems") else ""
    apart = "" if entry.startswith(tuple(plural.values())) else "entries, each "
    # Without spaces and quotes: as it is typed in a shell.
    example = shown(schema["examples"][0]).replace(", ", ",").replace("'", "") if schema.get("examples") else ""
    example = f", such as {example}" if example else ""
    return f"a list of {count}{different}{apart}{entry}{example}"
