"""Tables of a run, made from its summary: on the terminal, in Markdown, in the README.

`python -m ibreg.runs.report.tables README.md` updates the tables of a text: the lines between `<!-- table: NAME -->`
and `<!-- end table -->` are replaced by the table of `recipes/results/NAME.json`.
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ibreg.plots.style import method_label, sort_methods
from ibreg.runs.folder import CHECKPOINTS, LOCK, SUMMARY, replace
from ibreg.runs.report.summary import Column, read_summary

DEFAULT_COLUMNS = (
    ("test/error", "test error (%)", 100, 2),
    ("test/nll", "test NLL (nats)", 1, 4),
    ("test/ece", "test ECE (%)", 100, 2),
    ("test/rate", "rate (nats)", 1, 2),
)

DOUBTFUL = "(!)"  # after a number
DOUBT = f"{DOUBTFUL} not reliable: a sanity check of the attacks failed, so gradients may be masked."
EQUAL = "(=)"  # after a difference without an interval
SAME = (
    f"{EQUAL} the difference is the same for every seed, which tells nothing about its variation: there is no 95 % CI."
)
INTERVAL = "95 % CI: Student's t over the paired differences of the seeds."


def console_table(summary: Mapping[str, Any], metrics: Sequence[Column]) -> Table:
    """Makes the table of a run for the terminal.

    Each method has a row: mean ± standard deviation over the seeds, and for the first metric the paired difference to
    the control with its 95 % CI. A dash marks a metric that a method does not have, `nan` a value that is not finite.

    Args:
        summary: summary of the run, as returned by `read_summary`.
        metrics: columns, each (key, heading, scale, digits), as in `("test/error", "test error (%)", 100, 2)`.

    Raises:
        ValueError: If there is no metric.
    """
    headings, *rows = _cells(summary, metrics)
    table = Table()
    for column, heading in enumerate(headings):
        # Names of methods are not wrapped in a narrow terminal.
        table.add_column(Text(heading), justify="right" if column else "left", overflow="fold", no_wrap=column == 0)
    for row in rows:
        # As Text: the brackets of an interval are not markup.
        table.add_row(*map(Text, row))
    return table


def print_run(folder: Path, state: str) -> None:
    """Prints the table of a run, its state and the files in its folder."""
    summary = read_summary(folder / SUMMARY)
    table = console_table(summary, summary["headline"])
    console = Console()
    if not sys.stdout.isatty():  # a log file has no width
        console.width = max(140, console.measure(table, options=console.options.update(width=10_000)).minimum)
    console.print(table)
    notes = [*([INTERVAL] if summary["paired"] else []), *_notes(summary, summary["headline"])]
    files = sorted(path for path in folder.iterdir() if path.name not in (CHECKPOINTS, LOCK))
    for line in [*notes, f"{state}: {folder}", *(f"  {path}" for path in files)]:
        # As Text: brackets in the name of a folder are not markup.
        console.print(Text(line), soft_wrap=True)


def markdown_table(summary: Mapping[str, Any], metrics: Sequence[Column]) -> str:
    """Makes the table of `console_table` in Markdown, with aligned columns.

    Args:
        summary: summary of the run, as returned by `read_summary`.
        metrics: columns, each (key, heading, scale, digits).

    Raises:
        ValueError: If there is no metric.

    Example:
        >>> from ibreg.runs.report.summary import summarize
        >>> results, paired = summarize({"none": {"test/error": [0.03, 0.05]}, "hsic": {"test/error": [0.02, 0.03]}})
        >>> summary = {"results": results, "paired": paired}
        >>> print(markdown_table(summary, [("test/error", "test error (%)", 100, 1)]))
        | method  | test error (%) | difference to control [95 % CI] |
        |:--------|---------------:|--------------------------------:|
        | control |      4.0 ± 1.4 |                               - |
        | hsic    |      2.5 ± 0.7 |               -1.5 [-7.9, +4.9] |
    """
    return aligned(_cells(summary, metrics))


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Makes a Markdown table of headings and rows, the first column left-aligned and the others right-aligned."""
    # A bar would end its cell, a line break its row.
    headings, *rows = [[" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in cells]
    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    rule = [":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines = []
    for label, *numbers in (headings, *rows):
        # Not `ljust` and `rjust`: characters of Chinese and emoji are two columns wide.
        padded = [" " * (width - cell_len(cell)) + cell for cell, width in zip(numbers, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([label + ' ' * (widths[0] - cell_len(label)), *padded])} |")
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _cells(summary: Mapping[str, Any], metrics: Sequence[Column]) -> list[list[str]]:
    """Lists the headings and a row per method, the control first; differences follow the first metric."""
    if not metrics:
        raise ValueError("a table must have at least one metric")
    results, paired = summary["results"], summary["paired"]
    table = [["method", *(heading for _, heading, _, _ in metrics)]]
    for method in sort_methods(results):
        cells = [spread_cell(results[method].get(key), scale, digits) for key, _, scale, digits in metrics]
        table.append([method_label(method), *cells])
    if paired:
        first, _, scale, digits = metrics[0]
        table[0].insert(2, "difference to control [95 % CI]")
        for method, row in zip(sort_methods(results), table[1:], strict=True):
            row.insert(2, difference_cell(paired.get(method, {}).get(first), scale, digits))
    return table


def spread_cell(entry: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    """Formats mean ± standard deviation of an entry of `results`; None is a dash."""
    if entry is None:
        return "-"
    mean, std = _formatted(entry["mean"], scale, digits), entry["std"]
    shown = mean if mean == "nan" or std is None else f"{mean} ± {_formatted(std, scale, digits)}"
    return f"{shown} {DOUBTFUL}" if entry.get("doubtful") else shown


def difference_cell(entry: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    """Formats the mean difference and 95 % CI of an entry of `paired`; None is a dash.

    There is no interval for one seed, nor for several whose differences are equal, which `EQUAL` marks.
    """
    if entry is None:
        return "-"
    mean, low, high = (_formatted(entry[key], scale, digits, sign="+") for key in ("mean", "low", "high"))
    if mean == "nan" or low != "nan":
        return mean if mean == "nan" else f"{mean} [{low}, {high}]"
    return f"{mean} {EQUAL}" if len(entry["values"]) > 1 else mean


def _formatted(number: float | None, scale: float, digits: int, sign: str = "") -> str:
    """Formats a number; one that is not finite is None after JSON."""
    if number is None or not math.isfinite(number):
        return "nan"
    return f"{scale * number:{sign}z.{digits}f}"


def render_readme(text: str, results_folder: str | Path) -> str:
    """Replaces the lines between the table markers of a text by the tables of committed summaries.

    Below each table is a line with the command, seeds, versions and hardware. The columns are the summary's `headline`,
    by default test error, NLL, ECE and rate, as far as any method has them.

    Args:
        text: Markdown with `<!-- table: NAME -->` ... `<!-- end table -->`.
        results_folder: folder of `NAME.json`.

    Raises:
        ValueError: If there is no such summary, it is invalid, or a marker is not closed.

    Example:
        >>> render_readme("No table here.", "recipes/results")
        'No table here.'
    """
    markers = re.findall(r"<!-- *(table: *\S+|end table) *-->", text)
    for opening, closing in zip_longest(markers[::2], markers[1::2]):
        if opening == "end table":
            raise ValueError("an <!-- end table --> closes nothing")
        if closing != "end table":
            raise ValueError(f"<!-- {opening} --> is not closed by <!-- end table -->")

    def filled(block: re.Match[str]) -> str:
        opening, name, closing = block.groups()
        return f"{opening}\n\n{_readme_table(Path(results_folder), name)}\n\n{closing}"

    return re.sub(r"(<!-- *table: *(\S+) *-->).*?(<!-- *end table *-->)", filled, text, flags=re.DOTALL)


def _readme_table(folder: Path, name: str) -> str:
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "no summary"
        raise ValueError(f"there is no table {name!r}: {folder} holds {known}")
    summary = read_summary(path)
    measured = {key for metrics in summary["results"].values() for key in metrics}
    columns = summary.get("headline") or [column for column in DEFAULT_COLUMNS if column[0] in measured]
    return "\n\n".join([markdown_table(summary, columns), *_notes(summary, columns), _provenance(summary)])


def _notes(summary: Mapping[str, Any], metrics: Sequence[Column]) -> list[str]:
    """Lists the explanations of the marks in a table."""
    doubt = [DOUBT] if is_doubtful(summary) else []
    return doubt + equality_note(_cells(summary, metrics))


def equality_note(cells: Sequence[Sequence[str]]) -> list[str]:
    """Returns the explanation of `EQUAL` if a cell of a table has this mark."""
    return [SAME] if any(cell.endswith(f" {EQUAL}") for row in cells for cell in row) else []


def is_doubtful(summary: Mapping[str, Any]) -> bool:
    """Tells whether a number of a summary is marked as not reliable."""
    return any(entry.get("doubtful") for metrics in summary["results"].values() for entry in metrics.values())


def _provenance(summary: Mapping[str, Any]) -> str:
    command = [f"`{summary['command']}`"] if "command" in summary else []
    seeds = f"seeds {', '.join(map(str, summary['seeds']))}"
    versions = ", ".join(f"{package} {number}" for package, number in summary["versions"].items())
    hardware = summary["hardware"]
    machine = f"{hardware['cpus']} CPUs, {hardware['threads']} threads, {hardware['device']}"
    return "; ".join([*command, seeds, versions, machine]) + "."


def main(arguments: Sequence[str] | None = None) -> int:
    """Updates the tables of a text in place, or checks that they agree with the summaries."""
    parser = argparse.ArgumentParser(prog="python -m ibreg.runs.report.tables", description=main.__doc__)
    parser.add_argument("text", type=Path, help="Markdown file with table markers, such as README.md")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"), help="folder of the summaries")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a table would change")
    options = parser.parse_args(arguments)
    try:
        text = options.text.read_text(encoding="utf-8")
        rendered = render_readme(text, options.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if rendered == text:
        return 0
    if options.check:
        print(f"the tables of {options.text} do not agree with {options.results}")
        return 1
    replace(options.text, rendered.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
