"""Several runs in one table: what each measured, against its own control and against the first of the runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibreg.plots.style import method_label, sort_methods
from ibreg.runs.folder import CONFIG, SUMMARY
from ibreg.runs.report.summary import Column, read_summary, summarize
from ibreg.runs.report.tables import DEFAULT_COLUMNS, difference_cell, spread_cell


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        summary: what its `summary.json` holds.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def overrides(self) -> list[str]:
        """What was changed on its command line."""
        return str(self.summary.get("command", "")).split()[2:]


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Reads the runs at and below folders.

    Args:
        paths: folders of runs, or folders with such folders in them at any depth.

    Returns:
        the finished runs, in the order of the paths and of the folders' names; and what is left out, with the reason:
        runs that did not finish, summaries that cannot be read, and folders without any run.
    """
    runs: dict[Path, Run] = {}
    left_out: dict[Path, str] = {}
    for path in paths:
        if not path.is_dir():
            left_out[path] = "there is no such folder"
            continue
        folders = sorted({file.parent for name in (SUMMARY, CONFIG) for file in path.rglob(name)})
        if not folders:
            left_out[path] = f"no run: there is no {SUMMARY} in it or below"
        for folder in folders:
            if not (folder / SUMMARY).is_file():
                left_out[folder] = f"not finished: it has no {SUMMARY} yet (resume=true goes on with it)"
                continue
            try:
                runs.setdefault(folder.resolve(), Run(folder, read_summary(folder / SUMMARY)))
            except ValueError as error:
                left_out[folder] = str(error)
    return list(runs.values()), left_out


def labels(runs: Sequence[Run]) -> list[str]:
    """Names every run by the overrides that not all of them have, or by its folder where that tells nothing.

    Example:
        >>> def run(folder, command):
        ...     return Run(Path(folder), {"command": f"python recipes/classification.py {command}"})
        >>> labels([run("a", "data=mnist lr=1e-3"), run("b", "data=mnist lr=1e-2")])
        ['lr=1e-3', 'lr=1e-2']
    """
    shared = set.intersection(*(set(run.overrides) for run in runs)) if runs else set()
    own = [" ".join(override for override in run.overrides if override not in shared) for run in runs]
    return [
        label if label and own.count(label) == 1 else "/".join(run.folder.parts[-2:])
        for label, run in zip(own, runs, strict=True)
    ]


def columns(runs: Sequence[Run], metric: str | None = None) -> list[Column]:
    """Lists the columns of a table of runs: all that one of them shows, once each.

    Args:
        runs: finished ones.
        metric: the one to begin with, by its key such as `test/nll`; differences are taken of the first.

    Raises:
        ValueError: no run has that metric; those that there are, are named.
    """
    shown: dict[str, Column] = {}
    measured = {key for run in runs for metrics in run.summary["results"].values() for key in metrics}
    for run in runs:
        for column in run.summary.get("headline") or DEFAULT_COLUMNS:
            if column[0] in measured:
                shown.setdefault(column[0], column)
    if metric is None:
        return list(shown.values())
    if metric not in measured:
        raise ValueError(f"no run has the metric {metric!r}: there are {', '.join(sorted(measured))}")
    first = shown.pop(metric, (metric, metric, 1, 4))
    return [first, *shown.values()]


def compare(runs: Sequence[Run], metrics: Sequence[Column]) -> list[dict[str, Any]]:
    """Lists what every method of every run measured, with the paired differences of the first metric.

    Args:
        runs: finished ones; the first is what the others are compared with.
        metrics: (key, heading, scale, digits) each, at least one.

    Returns:
        a row for each method: `run`, `recipe`, `data`, `method`, `seeds`, `results` (an entry of `summarize` for each metric
        that it has), `to_control` and `to_first`: the paired differences, method - control of the same run and method - the
        same method of the first run. The latter is None for the first run, and where data or seeds are others.
    """
    first_metric, rows = metrics[0][0], []
    for label, run in zip(labels(runs), runs, strict=True):
        summary, reference = run.summary, runs[0].summary
        pairs = run is not runs[0] and all(summary[key] == reference[key] for key in ("recipe", "data", "seeds"))
        for method in sort_methods(summary["results"]):
            results = summary["results"][method]
            before = reference["results"].get(method, {}).get(first_metric) if pairs else None
            rows.append(
                {
                    "run": label,
                    "recipe": summary["recipe"],
                    "data": summary["data"],
                    "method": method,
                    "seeds": len(summary["seeds"]),
                    "results": {key: results[key] for key, *_ in metrics if key in results},
                    "to_control": summary["paired"].get(method, {}).get(first_metric),
                    "to_first": _difference(results.get(first_metric), before),
                }
            )
    return rows


def _difference(entry: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if entry is None or reference is None:
        return None
    # A seed that diverged is null in a summary.
    values = {
        method: {"metric": [float("nan") if value is None else value for value in each["values"]]}
        for method, each in (("first", reference), ("other", entry))
    }
    _, paired = summarize(values, control="first")
    return paired["other"]["metric"]


def cells(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Column]) -> list[list[str]]:
    """Writes the rows of `compare` as the headings and cells of a table, for `report.aligned`.

    Columns that would be the same everywhere (recipe, data), or empty, are left out.
    """
    _, heading, scale, digits = metrics[0]
    plain = re.sub(r" *\([^()]*\)$", "", heading)
    table = [["run", "recipe", "data", "bottleneck", heading, "- none [95 %]", "- first run [95 %]"]]
    table[0] += [column[1] for column in metrics[1:]]
    table[0][5:7] = [f"{plain} {name}" for name in table[0][5:7]]
    for row in rows:
        spreads = [spread_cell(row["results"].get(key), scale, digits) for key, _, scale, digits in metrics]
        differences = [difference_cell(row[key], scale, digits) for key in ("to_control", "to_first")]
        table.append(
            [
                row["run"],
                row["recipe"],
                row["data"],
                method_label(row["method"]),
                spreads[0],
                *differences,
                *spreads[1:],
            ]
        )
    dropped = {place for place in (1, 2) if len({line[place] for line in table[1:]}) < 2}
    dropped |= {place for place in (5, 6) if {line[place] for line in table[1:]} == {"-"}}
    return [[cell for place, cell in enumerate(line) if place not in dropped] for line in table]


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of `compare` as a line of a csv, in the unit of the summaries."""
    line = {key: row[key] for key in ("run", "recipe", "data", "method", "seeds")}
    for metric, entry in row["results"].items():
        line |= {f"{metric} {key}": entry[key] for key in ("mean", "std")}
    for name in ("to_control", "to_first"):
        if row[name] is not None:
            line |= {f"{name} {key}": row[name][key] for key in ("mean", "low", "high")}
    return line
