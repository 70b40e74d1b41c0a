"""Chooses a function by name; its keyword-only arguments are the options, checked by their annotations.

def huber(*, delta: Annotated[float, Field(gt=0)] = 1.0): ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, get_type_hints

from pydantic import create_model

from ibreg.runs.config.section import AnySection, Section, did_you_mean, read, shown


def choose(
    kind: str, name: str, functions: Mapping[str, Callable], options: Mapping[str, Any], section: str = ""
) -> Callable:
    """Returns the function of a name with its options, after checking them.

    Args:
        kind: what the functions make, for messages.
        name: one of the keys of `functions`.
        functions: functions by name.
        options: values of the keyword-only arguments of the function.
        section: dotted key of the options in a configuration, for messages.

    Raises:
        ValueError: For an unknown name or option, a missing option, or a value that is not valid.

    Example:
        >>> def mlp(features, *, hidden: list[int]): ...
        >>> choose("model", "mlp", {"mlp": mlp}, {"hiden": [3]}, "model")
        Traceback (most recent call last):
        ValueError: model has no key 'hiden' (did you mean 'hidden'?): it has hidden
    """
    function = find(kind, name, functions, section)
    checked = read(options_of(function), options, section or name)
    return partial(function, **{option: getattr(checked, option) for option in options})


def find(kind: str, name: Any, functions: Mapping[str, Callable], section: str = "") -> Callable:
    """Returns the function of a name.

    Raises:
        ValueError: If there is none; the message suggests the closest name and lists all.
    """
    known = ", ".join(sorted(functions))
    if not isinstance(name, str):
        key = f"{section}.name" if section else f"the name of the {kind}"
        raise ValueError(f"{key} must be one of {known}, got {shown(name)}")
    if name not in functions:
        where = f"{section}.name: " if section else ""
        raise ValueError(f"{where}no {kind} {name!r}{did_you_mean(name, functions)}: it is one of {known}")
    return functions[name]


def name_in(options: Any, functions: Mapping[str, Callable], section: str) -> Any:
    """Returns the name in a section of a name and its options.

    Args:
        options: the section.
        functions: functions by name.
        section: dotted key of the section, for messages.

    Raises:
        ValueError: If it is not a section, or has no name.
    """
    names = ", ".join(sorted(functions))
    if not isinstance(options, Mapping):
        raise ValueError(f"{section} must be a section with the key name, one of {names}, got {shown(options)}")
    if options.get("name") is None:
        raise ValueError(f"{section}.name has no value: choose {section}=NAME, one of {names}")
    return options["name"]


@cache
def options_of(function: Callable, base: type[AnySection] = Section) -> type[AnySection]:
    """Returns the model of the options of a function, in addition to the keys of a base."""
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    defaults = keyword_options(function)
    fields: Any = {
        name: (hints.get(name, Any), ... if default is inspect.Parameter.empty else default)
        for name, default in defaults.items()
    }
    return create_model(getattr(function, "__name__", "Options"), __base__=base, **fields)


def keyword_options(function: Callable) -> dict[str, Any]:
    """Lists the keyword-only arguments of a function with their defaults, `inspect.Parameter.empty` where none."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
