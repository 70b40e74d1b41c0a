"""What a run leaves in writing: its summary as JSON, and the tables made from it.

``python -m ibreg.training.report README.md`` writes the tables of committed summaries into a text: what stands between
``<!-- table: NAME -->`` and ``<!-- end table -->`` is replaced by the table of ``recipes/results/NAME.json``.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student_t

import ibreg
from ibreg.evaluation.plots import arm_label, sort_arms

Column = Sequence[Any]  # (key, heading, scale, digits), as in ("test/error", "test error (%)", 100, 2)

KEYS = ("recipe", "data", "seeds", "results", "paired", "selected", "wall_s", "versions", "hardware")
PACKAGES = ("torch", "torchvision", "accelerate", "hydra-core", "numpy", "scipy", "scikit-learn")
DEFAULT_COLUMNS = (
    ("test/error", "test error (%)", 100, 2),
    ("test/nll", "test NLL (nats)", 1, 4),
    ("test/ece", "test ECE (%)", 100, 2),
    ("test/rate", "rate (nats)", 1, 2),
)


def summarize(
    values: Mapping[str, Mapping[str, Sequence[float]]], *, control: str = "none"
) -> tuple[dict[str, Any], dict[str, Any]]:
    r"""Reduces the values of every seed to mean and spread, and to paired differences to the control.

    The interval of the difference d over n seeds is :math:`\bar d \pm t_{0.975, n-1} s_d / \sqrt n`.
    A seed that diverged is not dropped: a value that is not finite makes its metric NaN.

    Args:
        values: Per arm and metric one value per seed, the seeds in the same order everywhere.
        control: The arm to compare with; without it there are no differences.

    Returns:
        ``{arm: {metric: {"mean", "std", "values"}}}``, the standard deviation that of a sample (None for one seed), and
        ``{arm: {metric: {"mean", "low", "high", "values"}}}``: the differences arm - control with their 95 % interval
        (None for one seed), for the metrics that both have.

    Raises:
        ValueError: If a metric has no value, or not as many as the control.

    Example:
        >>> results, paired = summarize({"none": {"error": [3.0, 5.0]}, "hsic": {"error": [2.0, 3.0]}})
        >>> results["none"]["error"]
        {'mean': 4.0, 'std': 1.4142135623730951, 'values': [3.0, 5.0]}
        >>> {key: np.round(value, 2).tolist() for key, value in paired["hsic"]["error"].items()}
        {'mean': -1.5, 'low': -7.85, 'high': 4.85, 'values': [-1.0, -2.0]}
    """
    rows = {arm: {metric: _finite(numbers) for metric, numbers in metrics.items()} for arm, metrics in values.items()}
    results = {arm: {metric: _spread(row) for metric, row in metrics.items()} for arm, metrics in rows.items()}
    if control not in rows:
        return results, {}
    paired = {
        arm: {
            metric: _difference(metric, row, rows[control][metric])
            for metric, row in metrics.items()
            if metric in rows[control]
        }
        for arm, metrics in rows.items()
        if arm != control
    }
    return results, paired


def _finite(numbers: Sequence[float]) -> np.ndarray:
    """A seed that diverged counts as NaN, whether it ended at NaN or at infinity."""
    row = np.asarray(numbers, dtype=float)
    return np.where(np.isfinite(row), row, np.nan)


def _spread(row: np.ndarray) -> dict[str, Any]:
    if row.size == 0:
        raise ValueError("a metric has no value: leave it out of the arm that does not have it")
    std = float(row.std(ddof=1)) if row.size > 1 else None
    return {"mean": float(row.mean()), "std": std, "values": row.tolist()}


def _difference(metric: str, row: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    if row.size != control.size:
        raise ValueError(f"{metric}: {row.size} values cannot be paired with {control.size} of the control")
    spread = _spread(row - control)
    mean, low, high = spread["mean"], None, None
    if spread["std"] is not None:
        half = float(student_t.ppf(0.975, row.size - 1)) * spread["std"] / math.sqrt(row.size)
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "values": spread["values"]}


def write_summary(
    path: str | Path,
    *,
    recipe: str,
    data: str,
    seeds: Sequence[int],
    results: Mapping[str, Any],
    paired: Mapping[str, Any],
    selected: Mapping[str, Any],
    wall_s: float,
    device: str | torch.device | None = None,
    command: str | None = None,
    headline: Sequence[Column] | None = None,
) -> Path:
    """Writes the ``summary.json`` of a run, all of it or nothing, and notes versions and hardware in it.

    NaN and infinity, which JSON does not have, become null.

    Args:
        path: Where the file goes.
        recipe: Name of the recipe.
        data: Name of the data.
        seeds: Seeds, in the order of the values.
        results: First part of what :func:`summarize` returns.
        paired: Second part.
        selected: What was chosen on validation data.
        wall_s: Duration of the run in seconds.
        device: Where it ran; by default the accelerator that torch finds, else the CPU.
        command: The command that repeats the run.
        headline: The columns of its table, (key, heading, scale, digits) each.

    Example:
        >>> import tempfile
        >>> results, paired = summarize({"none": {"test/error": [0.02, 0.03]}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_summary(
        ...         f"{folder}/summary.json", recipe="classification", data="digits", seeds=[0, 1], results=results,
        ...         paired=paired, selected={}, wall_s=12.5,
        ...     )
        ...     read_summary(path)["results"]["none"]["test/error"]["mean"]
        0.025
    """
    summary = {
        "recipe": recipe,
        "data": data,
        "seeds": list(seeds),
        "results": results,
        "paired": paired,
        "selected": selected,
        "wall_s": wall_s,
        "versions": _versions(),
        "hardware": _hardware(device),
    }
    if command is not None:
        summary["command"] = command
    if headline is not None:
        summary["headline"] = headline
    return _replace(path, json.dumps(_without_nan(summary), indent=2, allow_nan=False) + "\n")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "ibreg": ibreg.__version__}
    for package in PACKAGES:
        # An evaluation without torchvision, say, leaves a summary too.
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _hardware(device: str | torch.device | None) -> dict[str, Any]:
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    return {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "device": name}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: str | Path, text: str) -> Path:
    """Writes under a temporary name and renames: a killed process leaves the old file or the new one, never a part."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(path)


def read_summary(path: str | Path) -> dict[str, Any]:
    """Reads a ``summary.json``.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is cut short, no JSON, or misses a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no summary at {path}: the run has not finished, or its folder is another")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut short or no JSON: {error}") from error
    missing = [key for key in KEYS if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ValueError(f"{path} is no summary of a run: it misses {', '.join(missing)}")
    return summary


def console_table(summary: Mapping[str, Any], metrics: Sequence[Column]) -> Table:
    """Makes the table of a run for the terminal.

    A row per arm: mean ± standard deviation over the seeds, and for the first metric the paired difference to the
    control with its 95 % interval. A dash where an arm does not have a metric, ``nan`` where its value is not finite.

    Args:
        summary: A summary, as :func:`read_summary` returns it.
        metrics: (key, heading, scale, digits) each, as in ``("test/error", "test error (%)", 100, 2)``.

    Raises:
        ValueError: If there is no metric.
    """
    headings, *rows = _cells(summary, metrics)
    table = Table()
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place else "left", no_wrap=True)
    for row in rows:
        # As Text, so that the brackets of an interval are not taken for markup.
        table.add_row(*map(Text, row))
    return table


def markdown_table(summary: Mapping[str, Any], metrics: Sequence[Column]) -> str:
    """Makes the same table as :func:`console_table` in Markdown, with aligned columns.

    Args:
        summary: A summary, as :func:`read_summary` returns it.
        metrics: (key, heading, scale, digits) each.

    Raises:
        ValueError: If there is no metric.

    Example:
        >>> results, paired = summarize({"none": {"test/error": [0.03, 0.05]}, "hsic": {"test/error": [0.02, 0.03]}})
        >>> summary = {"results": results, "paired": paired}
        >>> print(markdown_table(summary, [("test/error", "test error (%)", 100, 1)]))
        | bottleneck | test error (%) | difference to none [95 %] |
        |:-----------|---------------:|--------------------------:|
        | none       |      4.0 ± 1.4 |                         - |
        | hsic       |      2.5 ± 0.7 |         -1.5 [-7.9, +4.9] |
    """
    headings, *rows = _cells(summary, metrics)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rule = [":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines = []
    for label, *numbers in (headings, *rows):
        padded = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([label.ljust(widths[0]), *padded])} |")
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _cells(summary: Mapping[str, Any], metrics: Sequence[Column]) -> list[list[str]]:
    """The headings and then a row per arm, the control first; differences stand behind the first metric."""
    if not metrics:
        raise ValueError("a table needs a metric")
    results, paired = summary["results"], summary["paired"]
    table = [["bottleneck", *(heading for _, heading, _, _ in metrics)]]
    for arm in sort_arms(results):
        cells = [_spread_cell(results[arm].get(key), scale, digits) for key, _, scale, digits in metrics]
        table.append([arm_label(arm), *cells])
    if paired:
        first, _, scale, digits = metrics[0]
        table[0].insert(2, "difference to none [95 %]")
        for arm, row in zip(sort_arms(results), table[1:], strict=True):
            row.insert(2, _difference_cell(paired.get(arm, {}).get(first), scale, digits))
    return table


def _spread_cell(entry: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if entry is None:
        return "-"
    mean, std = _formatted(entry["mean"], scale, digits), entry["std"]
    return mean if mean == "nan" or std is None else f"{mean} ± {_formatted(std, scale, digits)}"


def _difference_cell(entry: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if entry is None:
        return "-"
    mean, low, high = (_formatted(entry[key], scale, digits, sign="+") for key in ("mean", "low", "high"))
    return mean if "nan" in (mean, low) else f"{mean} [{low}, {high}]"


def _formatted(number: float | None, scale: float, digits: int, sign: str = "") -> str:
    """A number that was not finite is None once it went through JSON."""
    if number is None or not math.isfinite(number):
        return "nan"
    return f"{scale * number:{sign}z.{digits}f}"


def render_readme(text: str, results_folder: str | Path) -> str:
    """Replaces what stands between the table markers of a text by the tables of committed summaries.

    Under each table stands a line with the command, seeds, versions and hardware. The columns are the summary's
    ``headline``, else test error, NLL, ECE and rate, as far as an arm has them.

    Args:
        text: Markdown with ``<!-- table: NAME -->`` ... ``<!-- end table -->``.
        results_folder: Folder of ``NAME.json``.

    Raises:
        ValueError: If there is no such summary, it is broken, or a marker is not closed.

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
    return f"{markdown_table(summary, columns)}\n\n{_provenance(summary)}"


def _provenance(summary: Mapping[str, Any]) -> str:
    command = [f"`{summary['command']}`"] if "command" in summary else []
    seeds = f"seeds {', '.join(map(str, summary['seeds']))}"
    versions = ", ".join(f"{package} {number}" for package, number in summary["versions"].items())
    hardware = summary["hardware"]
    machine = f"{hardware['cpus']} CPUs, {hardware['threads']} threads, {hardware['device']}"
    return "; ".join([*command, seeds, versions, machine]) + "."


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the tables of a text in place, or checks that they are those of the summaries."""
    parser = argparse.ArgumentParser(prog="python -m ibreg.training.report", description=main.__doc__)
    parser.add_argument("text", type=Path, help="Markdown with table markers, as README.md")
    parser.add_argument("--results", type=Path, default=Path("recipes/results"), help="folder of the summaries")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 if something would change")
    options = parser.parse_args(arguments)
    try:
        text = options.text.read_text(encoding="utf-8")
        rendered = render_readme(text, options.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if rendered == text:
        return 0
    if options.check:
        print(f"the tables of {options.text} are not those of {options.results}")
        return 1
    _replace(options.text, rendered)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
