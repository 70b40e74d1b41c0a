"""Comparison of runs in one table and one plot: results of each method, paired differences over equal seeds.

    python recipes/compare.py outputs/classification                          # every finished run below
    python recipes/compare.py outputs/a outputs/b --metric test/nll           # the first run is the reference
    python recipes/compare.py multirun/2025-01-31 --output figures            # a sweep of Hydra

It reads the `summary.json` of each run and writes comparison.md, comparison.csv and comparison.png. Runs that did not
finish, and summaries that cannot be read, are reported and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ibreg.plots.comparison import comparison_plot
from ibreg.runs.folder import replace, write_rows
from ibreg.runs.report.comparison import cells, columns, compare, flat, read_runs
from ibreg.runs.report.tables import aligned


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

    rows = compare(runs, metrics)
    table = aligned(cells(rows, metrics))
    print(table)
    output = options.output or next(folder for folder in options.folders if folder.is_dir())
    output.mkdir(parents=True, exist_ok=True)
    replace(output / "comparison.md", f"{table}\n".encode())
    write_rows(output / "comparison.csv", [flat(row) for row in rows])
    key, heading, scale, _ = metrics[0]
    drawn = [
        {"run": row["run"], "method": row["method"], "values": row["results"][key]["values"]}
        for row in rows
        if key in row["results"]
    ]
    comparison_plot(drawn, output / "comparison.png", heading=heading, scale=scale)
    print(f"\n{len(runs)} runs: {', '.join(str(output / f'comparison.{kind}') for kind in ('md', 'csv', 'png'))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
