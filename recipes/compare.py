"""Comparison of runs in one table and one plot: results of each method, paired differences over equal seeds.

    python recipes/compare.py outputs/classification                          # every finished run below
    python recipes/compare.py outputs/a outputs/b --metric test/nll           # another metric first
    python recipes/compare.py multirun/2025-01-31 --output figures            # a sweep of Hydra

It reads `summary.json` and `config.yaml` of each run and writes comparison.md, comparison.csv and comparison.png. Runs
of a sweep are ordered by the values that were swept and named by them; all runs are compared with the first. Where one
number was swept, the plot is drawn over it. Runs that did not finish, and summaries that cannot be read, are reported
and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ibreg.plots.comparison import comparison_plot, sweep_plot
from ibreg.runs.folder import replace, write_rows
from ibreg.runs.report.arrangement import Arranged, arrange, read_runs
from ibreg.runs.report.comparison import cells, columns, compare, flat
from ibreg.runs.report.summary import Column
from ibreg.runs.report.tables import INTERVAL, aligned, equality_note


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares finished runs; returns 1 if there is none, 2 for a metric that no run has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs, or folders that contain such folders")
    parser.add_argument(
        "--metric", help="key of the metric to compare, such as test/nll; default: that of the first column"
    )
    parser.add_argument("--output", type=Path, help="folder of table and plot; default: the first of the folders")
    options = parser.parse_args(arguments)

    runs, left_out = read_runs(options.folders)
    for folder, reason in left_out.items():
        print(f"left out {folder}: {reason}", file=sys.stderr)
    if not runs:
        print("no finished run to compare", file=sys.stderr)
        return 1
    try:
        metrics = columns(runs, options.metric)
    except ValueError as error:
        parser.error(str(error))

    arranged = arrange(runs)
    rows = compare(arranged, metrics)
    table = cells(rows, metrics)
    first = f"first run: {arranged.names[0]} ({arranged.runs[0].folder})"
    interval = [INTERVAL] if any("95 % CI" in heading for heading in table[0]) else []
    text = "\n\n".join([aligned(table), first, *interval, *equality_note(table)])
    print(text)
    output = options.output or next(folder for folder in options.folders if folder.is_dir())
    output.mkdir(parents=True, exist_ok=True)
    replace(output / "comparison.md", f"{text}\n".encode())
    write_rows(output / "comparison.csv", [flat(row) for row in rows])
    draw(arranged, rows, metrics[0], output / "comparison.png")
    print(f"\n{len(runs)} runs: {', '.join(str(output / f'comparison.{kind}') for kind in ('md', 'csv', 'png'))}")
    return 0


def draw(arranged: Arranged, rows: Sequence[Mapping[str, Any]], metric: Column, path: Path) -> None:
    """Plots a metric over the number that was swept, or else the runs below each other."""
    key, heading, scale, _ = metric
    drawn = [
        {"run": row["run"], "method": row["method"], "values": row["results"][key]["values"]}
        for row in rows
        if key in row["results"]
    ]
    if arranged.swept is None:
        comparison_plot(drawn, path, heading=heading, scale=scale)
        return
    numbers = dict(zip(arranged.names, arranged.numbers, strict=False))
    of_sweep = [row | {"value": numbers[row["run"]]} for row in drawn if row["run"] in numbers]
    sweep_plot(of_sweep, path, swept=arranged.swept, heading=heading, scale=scale)


if __name__ == "__main__":
    raise SystemExit(main())
