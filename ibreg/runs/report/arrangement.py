"""The runs of a comparison: read from their folders, in the order of what was swept, named by how they differ."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ibreg.runs.config.composition import NOT_PART_OF_A_RUN
from ibreg.runs.folder import CONFIG, SUMMARY
from ibreg.runs.report.summary import read_summary


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: its folder.
        summary: contents of its `summary.json`.
        options: its resolved configuration by key, as in `optimizer.lr`; `data.name` and the like are `data`.
    """

    folder: Path
    summary: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        """The keys that its command line set, in that order."""
        return [key for key, _ in _given(self.summary)]


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Reads the runs in and below folders.

    Args:
        paths: folders of runs, or folders that contain such folders at any depth.

    Returns:
        The finished runs, in the order of the paths and of the folders' names; and the folders left out, with the
        reason: runs that did not finish, summaries that cannot be read, and folders without any run.
    """
    runs: dict[Path, Run] = {}
    left_out: dict[Path, str] = {}
    for path in paths:
        if not path.is_dir():
            left_out[path] = "no such folder"
            continue
        folders = sorted({file.parent for name in (SUMMARY, CONFIG) for file in path.rglob(name)})
        if not folders:
            left_out[path] = f"no run: it has no {SUMMARY} in it or below"
        for folder in folders:
            if not (folder / SUMMARY).is_file():
                left_out[folder] = f"not finished: it has no {SUMMARY} yet (continue it with resume=true)"
                continue
            try:
                summary = read_summary(folder / SUMMARY)
            except ValueError as error:
                left_out[folder] = str(error)
                continue
            runs.setdefault(folder.resolve(), Run(folder, summary, read_options(folder, summary)))
    return list(runs.values()), left_out


def read_options(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of a run: its configuration, and what only its command line tells, such as the experiment.

    A summary without its configuration, as those in `recipes/results/`, has the options of its command line alone.
    """
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG), resolve=True)
    except (OSError, OmegaConfBaseException, YAMLError, ValueError):
        config = {}
    options = {"recipe": summary["recipe"], **_flat(config if isinstance(config, dict) else {})}
    for key, text in _given(summary):
        if key not in options and not any(other.startswith(f"{key}.") for other in options):
            options[key] = _parsed(text)
    return {key: value for key, value in options.items() if key not in NOT_PART_OF_A_RUN}


def _given(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lists the keys and values of a command line."""
    command = str(summary.get("command", ""))
    try:
        words = shlex.split(command)[2:]
    except ValueError:  # a quote of a name in a command that was not quoted
        words = command.split()[2:]
    parted = [word.lstrip("+").partition("=") for word in words if "=" in word]
    return [(key.removesuffix(".name"), text) for key, _, text in parted]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        name = prefix.removesuffix(".") if key == "name" and prefix else f"{prefix}{key}"
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {name: value}
    return flat


def _parsed(text: str) -> Any:
    try:
        return OmegaConf.from_dotlist([f"value={text}"])["value"]
    except (OmegaConfBaseException, YAMLError, ValueError):
        return text


@dataclass(frozen=True)
class Arranged:
    """Runs in order.

    Attributes:
        runs: those of the largest sweep in the order of its values, then the others.
        names: one for each run.
        swept: the key of the number in which the runs of that sweep differ, if that is all they differ in.
        numbers: its values in the runs of that sweep.
    """

    runs: Sequence[Run]
    names: Sequence[str]
    swept: str | None = None
    numbers: Sequence[float] = ()


def arrange(runs: Sequence[Run]) -> Arranged:
    """Orders runs by the values of the keys that were swept, several keys in the order of the command line.

    The runs of a sweep set the same keys of the same recipe; a run with default values is one of them where it differs
    in nothing else. Runs of a sweep are named by the values of these keys, others by all in which they differ from the
    first run.

    Example:
        >>> commands = {rate: {"command": f"python recipes/classification.py lr={rate}"} for rate in (0.1, 0.001, 0.01)}
        >>> arranged = arrange([Run(Path("run"), commands[rate], {"lr": rate, "epochs": 3}) for rate in commands])
        >>> arranged.names, arranged.swept
        (['lr=0.001', 'lr=0.01', 'lr=0.1'], 'lr')
    """
    first, *others = [_in_order(group) for group in _sweeps(runs)]
    keys = differing(first)
    names = [_name(run, keys) for run in first]
    rest = [run for group in others for run in group]
    if len(first) == 1:  # no sweep at all: the first run differs from the others as they differ from it
        names = [_name(first[0], differing([first[0], *rest]))]
    names += [_name(run, differing([first[0], run])) for run in rest]
    ordered = [*first, *rest]
    unique = [
        name if name and names.count(name) == 1 else f"{name} {'/'.join(run.folder.parts[-2:])}".strip()
        for name, run in zip(names, ordered, strict=True)
    ]
    numbers = [run.options.get(keys[0]) for run in first] if len(keys) == 1 else []
    if not numbers or not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return Arranged(ordered, unique)
    return Arranged(ordered, unique, keys[0], [float(number) for number in numbers if number is not None])


def differing(runs: Sequence[Run]) -> list[str]:
    """Lists keys by which runs can be told apart: the recipe, those of the command lines in which they differ, others.

    Of the others only as many as are needed: most follow from the former, as `sweep.epochs` does from `epochs`. Keys
    that only one of several recipes has tell nothing.
    """
    given = list(dict.fromkeys(["recipe", *(key for run in runs for key in run.overrides)]))
    keys = dict.fromkeys([*given, "data", "model", *(key for run in runs for key in run.options)])
    one_recipe = len({_frozen(run, "recipe") for run in runs}) == 1
    found: list[str] = []
    for key in keys:
        everywhere = all(key in run.options for run in runs) or one_recipe or key == "experiment"
        if len({_frozen(run, key) for run in runs}) < 2 or not everywhere:
            continue
        apart = len({tuple(_frozen(run, each) for each in found) for run in runs})
        if key in given or len({tuple(_frozen(run, each) for each in [*found, key]) for run in runs}) > apart:
            found.append(key)
    return found


def _frozen(run: Run, key: str) -> str | None:
    return json.dumps(run.options[key], sort_keys=True, default=str) if key in run.options else None


def _sweeps(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups runs by the sweep that they belong to, the largest first."""
    by_keys: dict[Any, list[Run]] = {}
    for run in runs:
        by_keys.setdefault((run.options.get("recipe"), frozenset(run.overrides)), []).append(run)
    sweeps: list[list[Run]] = []
    for group in sorted(by_keys.values(), key=len, reverse=True):
        for sweep in sweeps:
            if _is_of(group, sweep):
                sweep += group
                break
        else:
            sweeps.append(list(group))
    return sorted(sweeps, key=len, reverse=True)


def _is_of(group: Sequence[Run], sweep: Sequence[Run]) -> bool:
    """Whether runs differ from those of a sweep in nothing else than the sweep's runs among themselves."""
    same_recipe = group[0].options.get("recipe") == sweep[0].options.get("recipe")
    together, alone = differing([*sweep, *group]), differing(sweep)
    return same_recipe and (set(together) <= set(alone) or (len(sweep) == 1 and len(together) < 2))


def _in_order(runs: Sequence[Run]) -> list[Run]:
    keys = differing(runs)
    return sorted(runs, key=lambda run: [_rank(run.options.get(key)) for key in keys])


def _rank(value: Any) -> tuple[int, float, str]:
    """Orders values of any type: null, then numbers by size, then everything else by its text."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, written(value))


def _name(run: Run, keys: Iterable[str]) -> str:
    return " ".join(f"{key}={written(run.options[key])}" for key in keys if key in run.options)


def written(value: Any) -> str:
    """Writes a value as on the command line.

    Example:
        >>> written(1e-05), written([64, "relu"]), written(None)
        ('1e-05', '[64,relu]', 'null')
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
