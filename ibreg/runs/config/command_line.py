"""The command line of a recipe as Hydra's grammar takes it, so that keys and values can be typed plainly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

QUOTED = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")(?=\s*(?:[]},]|$))"""
# A bracket, a comma, or what stands between them, in which strings in quotes and interpolations may have brackets.
TOKEN = re.compile(rf"[][{{}},]|\s*{QUOTED}|(?:\$\{{[^{{}}]*\}}|:\s*{QUOTED}|[^][{{}},])+")
SWEEP = re.compile(r"(choice|shuffle|sort|glob)\((.*)\)", re.DOTALL)

SERVER = "\\\\"  # a path on a Windows server begins with two backslashes, which Hydra would take for one


def prepared(arguments: Sequence[str], groups: Iterable[str]) -> list[str]:
    """Returns arguments that Hydra takes, and that set what they name.

    A value that is outside of Hydra's grammar, such as `~/data` or `größe`, is quoted. A key is set whether or not the
    composed configuration has it (`++` in Hydra): the recipe's own check then names the closest valid key.

    Args:
        arguments: of the command line.
        groups: the groups of the configuration, in which an argument chooses a file.

    Raises:
        ValueError: If an argument is no `key=value`, or its key is outside of Hydra's grammar.

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


def check_one_run(arguments: Iterable[str]) -> None:
    """Checks that no argument has several values, each of which would be a run of `--multirun`.

    Args:
        arguments: as `prepared` returns them.

    Raises:
        ValueError: If one has.

    Example:
        >>> check_one_run(["++lr=1,2"])
        Traceback (most recent call last):
        ValueError: lr must be one value, got 1,2: a list is lr=[1,2], and --multirun runs each of several values
    """
    for argument in arguments:
        key, equals, value = argument.lstrip("+~").partition("=")
        if equals and _parses(argument) and OverridesParser.create().parse_override(argument).is_sweep_override():
            raise ValueError(
                f"{key} must be one value, got {value}: a list is {key}=[{value}], and --multirun runs each of several "
                "values"
            )


def value_of(arguments: Iterable[str], key: str) -> Any:
    """Returns the value of a key on the command line, None if it is not there.

    Example:
        >>> value_of(["imports=[my_layers,other]", "epochs=1"], "imports")
        ['my_layers', 'other']
    """
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    return OverridesParser.create().parse_override(_readable(given[-1])).value() if given else None


def _set(argument: str, groups: Iterable[str]) -> str:
    key = argument.partition("=")[0]
    plain = "=" in argument and key[:1] not in ("+", "~") and not any(mark in key for mark in "@/:")
    is_value = plain and key not in groups and key.partition(".")[0] != "hydra"
    return f"++{argument}" if is_value else argument


def _readable(argument: str) -> str:
    """Quotes the value of an argument where Hydra's grammar does not read it."""
    key, equals, value = argument.partition("=")
    if not (equals or key.startswith("~")) or not key.strip("+~"):
        raise ValueError(f"an argument must be key=value, got {argument!r}")
    if not equals or (_parses(argument) and not value.startswith(SERVER)):
        return argument
    # First the entries of a list, a mapping or a sweep alone, then the whole as a string.
    candidates = [f"{key}={_entries_quoted(value)}", f"{key}={_quoted(value)}"]
    for readable in filter(_parses, candidates):
        return readable
    raise ValueError(
        f"a key on the command line must be of ASCII letters, digits and _, got {argument}: set others in a YAML of "
        "your own, with --config-dir"
    )


def _parses(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except Exception:  # Hydra's own, or one of its lexer, which it does not wrap
        return False
    return True


def _entries_quoted(value: str) -> str:
    """Quotes each entry of lists, mappings and sweeps where Hydra's grammar does not read it."""
    if sweep := SWEEP.fullmatch(value):
        return f"{sweep[1]}({_entries_quoted(sweep[2])})"
    sections, written, is_key = [], "", False
    for token in TOKEN.findall(value):
        if token in ("[", "{"):
            sections.append(token)
        elif token in ("]", "}") and sections:
            sections.pop()
        elif len(token) > 1 or token not in "[]{},":
            key, colon, entry = token.partition(":") if is_key else ("", "", token)
            token = f"{key}{colon}{_plain_or_quoted(entry)}"  # the grammar has no quoted keys
        written += token
        is_key = sections[-1:] == ["{"] and token in ("{", ",")
    return written


def _plain_or_quoted(entry: str) -> str:
    entry = entry.strip()
    plain = entry[:1] in ("'", '"') or not (entry.startswith(SERVER) or any(mark in entry for mark in "()"))
    return entry if not entry or (plain and _parses(f"key={entry}")) else _quoted(entry)


def _quoted(text: str) -> str:
    # Backslashes count in front of a quote alone, be it one of the text or the closing one.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"
