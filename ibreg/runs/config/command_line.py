"""The command line of a recipe as Hydra's grammar takes it, so that keys and values can be typed plainly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, cast

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from ibreg.runs.config.mapping_keys import encoded
from ibreg.runs.config.section import did_you_mean

QUOTED = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")(?=\s*(?:[]},]|$))"""
# A bracket, a comma, or what stands between them, in which strings in quotes and interpolations may have brackets.
TOKEN = re.compile(rf"[][{{}},]|\s*{QUOTED}|(?:\$\{{[^{{}}]*\}}|:\s*{QUOTED}|[^][{{}},])+")
# The key of a mapping: in quotes, or up to the colon, with brackets that are closed.
KEY = re.compile(r"""\s*(?:('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|((?:[^][{},:]|\{[^{}]*\}|\[[^][]*\])+?))\s*:""")
SWEEP = re.compile(r"(choice|shuffle|sort|glob)\((.*)\)", re.DOTALL)

WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p",
              "--info", "-i", "--experimental-rerun")  # fmt: skip
WITHOUT_VALUE = ("--multirun", "-m", "--run", "-r", "--help", "-h", "--hydra-help", "--version", "--resolve",
                 "--shell-completion", "-sc")  # fmt: skip

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
    options, kept, takes_value = [], [], False
    for argument in arguments:
        # The value of --info may be left out.
        if takes_value and not (options[-1] in ("--info", "-i") and "=" in argument):
            options.append(argument)
            takes_value = False
        elif argument.startswith("-"):
            options.append(_option(argument))
            takes_value = argument in WITH_VALUE
        else:
            kept.append(_set(_readable(argument), groups))
    return [*kept, *options]  # argparse refuses a key=value after an option that follows one


def check_options(arguments: Sequence[str]) -> None:
    """Checks the options of Hydra, which would end with the usage of all of them.

    Args:
        arguments: as `prepared` returns them.

    Raises:
        ValueError: If a value is missing or is not one of the choices.

    Example:
        >>> check_options(["--cfg", "jobs"])
        Traceback (most recent call last):
        ValueError: argument --cfg/-c: invalid choice: 'jobs' (choose from 'job', 'hydra', 'all')
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    parser = get_args_parser()
    parser.error = refuse
    parser.parse_args(arguments)


def _option(argument: str) -> str:
    name, equals, value = argument.partition("=")
    known = [*WITH_VALUE, *WITHOUT_VALUE]
    if name not in known:
        key = name.lstrip("-")
        raise ValueError(
            f"{name} is no option{did_you_mean(name, known)}: the options are "
            f"{', '.join(other for other in known if other.startswith('--'))}; keys are set without dashes, "
            f"{key or 'key'}={value if equals else '...'}"
        )
    return argument


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
    arguments = list(arguments)
    for swept in swept_keys(arguments):
        values = [argument.lstrip("+~").partition("=") for argument in arguments]
        value = next(value for key, _, value in values if key == swept)
        raise ValueError(
            f"{swept} must be one value, got {value}: a list is {swept}=[{value}], and --multirun runs each of several "
            "values"
        )


def swept_keys(arguments: Iterable[str]) -> list[str]:
    """Returns the keys that have several values, each of which is a run of `--multirun`.

    Args:
        arguments: as `prepared` returns them.
    """
    overrides = [argument for argument in arguments if "=" in argument and _parses(argument)]
    parsed = [OverridesParser.create().parse_override(override) for override in overrides]
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def value_of(arguments: Iterable[str], key: str) -> Any:
    """Returns the value of a key on the command line, None if it is not there.

    Example:
        >>> value_of(["imports=[my_layers,other]", "epochs=1"], "imports")
        ['my_layers', 'other']
    """
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    return OverridesParser.create().parse_override(_readable(given[-1])).value() if given else None


def _set(argument: str, groups: Iterable[str]) -> str:
    key, _, value = argument.partition("=")
    if key in groups and isinstance(value_of([argument], key), bool | int | float | dict):
        return f"{key}={_quoted(value)}"  # the name of no file, which Hydra says with those that there are
    plain = "=" in argument and key[:1] not in ("+", "~") and not any(mark in key for mark in "@/:")
    is_value = plain and key not in groups and key.partition(".")[0] != "hydra"
    return f"++{argument}" if is_value else argument


def _readable(argument: str) -> str:
    """Quotes the value of an argument where Hydra's grammar does not read it."""
    key, equals, value = argument.partition("=")
    if not (equals or key.startswith("~")) or not key.strip("+~"):
        raise ValueError(f"an argument must be key=value, got {argument!r}")
    # Keys of a mapping are strings, but Hydra reads {2019:text} as a number.
    if not equals or (_parses(argument) and not value.startswith(SERVER) and "{" not in value):
        return argument
    # First the entries of a list, a mapping or a sweep alone, then the whole as a string.
    candidates = [f"{key}={_entries_quoted(value)}", f"{key}={_quoted(value)}"]
    for readable in filter(_parses, candidates):
        return readable
    above, _, last = key.rpartition(".")
    raise ValueError(
        f"a key on the command line must be of ASCII letters, digits and _, got {argument}: "
        + (f"write {above}={{{last}:{value}}}, or " if above else "")
        + "set others in a YAML of your own, with --config-dir"
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
    sections, written, place, is_key = [], "", 0, False
    while place < len(value):
        if is_key and (found := KEY.match(value, place)):
            key = value_of([f"key={found[1]}"], "key") if found[1] else found[2]
            token, is_key = f"{encoded(key)}:", False
        else:
            found = cast(re.Match, TOKEN.match(value, place))
            token = found[0]
            if token in ("[", "{"):
                sections.append(token)
            elif token in ("]", "}") and sections:
                sections.pop()
            elif token not in "]},":
                token = _plain_or_quoted(token)
            is_key = sections[-1:] == ["{"] and token in ("{", ",")
        written, place = written + token, found.end()
    return written


def _plain_or_quoted(entry: str) -> str:
    entry = entry.strip()
    plain = entry[:1] in ("'", '"') or not (entry.startswith(SERVER) or any(mark in entry for mark in "()"))
    return entry if not entry or (plain and _parses(f"key={entry}")) else _quoted(entry)


def _quoted(text: str) -> str:
    # Backslashes count in front of a quote alone, be it one of the text or the closing one.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"
