"""The command line of a recipe as Hydra's grammar takes it, so that keys and values can be typed plainly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser


def prepared(arguments: Sequence[str], groups: Iterable[str]) -> list[str]:
    """Returns arguments that Hydra takes, and that set what they name.

    A value that is outside of Hydra's grammar, such as `~/data` or `größe`, is quoted. A key is set whether or not the
    composed configuration has it (`++` in Hydra): the recipe's own check then names the closest valid key.

    Args:
        arguments: of the command line.
        groups: the groups of the configuration, in which an argument chooses a file.

    Raises:
        ValueError: If an argument is no `key=value`.

    Example:
        >>> prepared(["data=csv", "data.root=~/data", "epoch=3", "--multirun"], ["data"])
        ['data=csv', "++data.root='~/data'", '++epoch=3', '--multirun']
    """
    kept, option = [], False
    for argument in arguments:
        follows, option = option, argument in ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
        option = option or argument in ("--package", "-p", "--info", "-i", "--cfg", "-c")
        if argument.startswith("-") or follows:
            kept.append(argument)
            continue
        kept.append(_set(_readable(argument), groups))
    return kept


def value_of(arguments: Iterable[str], key: str) -> Any:
    """Returns the value of a key on the command line, None if it is not there.

    Example:
        >>> value_of(["imports=[my_layers,other]", "epochs=1"], "imports")
        ['my_layers', 'other']
    """
    values = [value for name, _, value in (argument.partition("=") for argument in arguments) if name == key]
    return yaml.safe_load(values[-1]) if values else None


def _set(argument: str, groups: Iterable[str]) -> str:
    key = argument.partition("=")[0]
    plain = "=" in argument and key[:1] not in ("+", "~") and not any(mark in key for mark in "@/:")
    is_value = plain and key not in groups and key.partition(".")[0] != "hydra"
    return f"++{argument}" if is_value else argument


def _readable(argument: str) -> str:
    """Quotes the value of an argument where Hydra's grammar does not read it."""
    key, equals, value = argument.partition("=")
    if not equals and not key.startswith("~"):
        raise ValueError(f"an argument must be key=value, got {argument!r}")
    if not equals or _parses(argument):
        return argument
    try:
        parsed = yaml.load(value, yaml.BaseLoader)  # every scalar as the text that stands there
    except yaml.YAMLError:
        parsed = value
    quoted = f"{key}={_written(parsed if isinstance(parsed, list | dict) else value)}"
    return quoted if _parses(quoted) else argument


def _parses(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except Exception:  # Hydra's own, or one of its lexer, which it does not wrap
        return False
    return True


def _written(value: Any) -> str:
    """Writes a value in Hydra's grammar, strings in quotes where they need them."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_written(key)}:{_written(entry)}' for key, entry in value.items())}}}"
    if value and not any(mark in value for mark in ",[]{}()") and _parses(f"key={value}"):
        return value
    # A backslash counts in front of a quote alone, and a quote at the end would be taken for the closing one.
    escaped = value.replace("\\'", "\\\\\\'").replace("'", "\\'")
    return f"'{escaped}'"
