"""Several runs in one table, each compared with its own control and with the first run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ibreg.plots.style import method_label, sort_methods
from ibreg.runs.report.arrangement import Arranged, Run
from ibreg.runs.report.summary import Column, summarize
from ibreg.runs.report.tables import DEFAULT_COLUMNS, difference_cell, spread_cell


def columns(runs: Sequence[Run], metric: str | None = None) -> list[Column]:
    """Lists the columns of a table of runs: the union of their columns.

    Args:
        runs: finished runs.
        metric: key of the first column, such as `test/nll`; differences are those of the first column.

    Raises:
        ValueError: If no run has that metric.
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
        raise ValueError(f"metric must be one of {', '.join(sorted(measured))}, got {metric!r}")
    first = shown.pop(metric, (metric, metric, 1, 4))
    return [first, *shown.values()]


def compare(arranged: Arranged, metrics: Sequence[Column]) -> list[dict[str, Any]]:
    """Lists the results of each method of each run, with the paired differences of the first metric.

    Args:
        arranged: finished runs; the others are compared with the first.
        metrics: columns, each (key, heading, scale, digits), at least one.

    Returns:
        A row for each method: `run` (its name), `folder`, `recipe`, `data`, `method`, `seeds`, `results` (an entry of
        `summarize` for each metric that it has), and the paired differences `to_control` (method - control of the same
        run) and `to_first` (method - same method of the first run). The latter is None for the first run, and for runs
        with other data or seeds.
    """
    first_metric, rows = metrics[0][0], []
    first = arranged.runs[0]
    for name, run in zip(arranged.names, arranged.runs, strict=True):
        summary, reference = run.summary, first.summary
        pairs = run is not first and all(summary[key] == reference[key] for key in ("recipe", "data", "seeds"))
        for method in sort_methods(summary["results"]):
            results = summary["results"][method]
            before = reference["results"].get(method, {}).get(first_metric) if pairs else None
            rows.append(
                {
                    "run": name,
                    "folder": str(run.folder),
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
    # The value of a diverged seed is null in JSON.
    values = {
        method: {"metric": [float("nan") if value is None else value for value in metric["values"]]}
        for method, metric in (("first", reference), ("other", entry))
    }
    _, paired = summarize(values, control="first")
    return paired["other"]["metric"]


def cells(rows: Sequence[Mapping[str, Any]], metrics: Sequence[Column]) -> list[list[str]]:
    """Formats the rows of `compare` as headings and cells of a table, for `ibreg.runs.report.tables.aligned`.

    A column of recipe or data with a single value is left out, and so are differences that no row has.
    """
    _, heading, scale, digits = metrics[0]
    plain = re.sub(r" *\([^()]*\)$", "", heading)
    differences = [f"{plain} - {reference} [95 % CI]" for reference in ("control", "first run")]
    table = [["run", "recipe", "data", "method", heading, *differences, *(column[1] for column in metrics[1:])]]
    for row in rows:
        spreads = [spread_cell(row["results"].get(key), scale, digits) for key, _, scale, digits in metrics]
        differences = [difference_cell(row[key], scale, digits) for key in ("to_control", "to_first")]
        names = [row["run"], row["recipe"], row["data"], method_label(row["method"])]
        table.append([*names, spreads[0], *differences, *spreads[1:]])
    dropped = {column for column in (1, 2) if len({line[column] for line in table[1:]}) < 2}
    dropped |= {column for column in (5, 6) if {line[column] for line in table[1:]} == {"-"}}
    return [[cell for column, cell in enumerate(line) if column not in dropped] for line in table]


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a row of `compare` to a line of a csv file, in the unit of the summaries."""
    line = {key: row[key] for key in ("run", "folder", "recipe", "data", "method", "seeds")}
    for metric, entry in row["results"].items():
        line |= {f"{metric} {key}": entry[key] for key in ("mean", "std")}
    for name in ("to_control", "to_first"):
        if row[name] is not None:
            line |= {f"{name} {key}": row[name][key] for key in ("mean", "low", "high")}
    return line
