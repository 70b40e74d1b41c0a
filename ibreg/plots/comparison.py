"""Plots of several runs: their seeds and means below each other, or a metric over the number that was swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ibreg.evaluation.intervals import mean_interval
from ibreg.plots.panels import curves_of, draw_curves, finish, plain_numbers, within, write_png
from ibreg.plots.style import method_label, method_styles, plot_name

LONGEST = 70  # characters in a line of a run's name, which has the width of the figure


def comparison_plot(rows: Sequence[Mapping[str, Any]], path: str | Path, *, heading: str, scale: float = 1) -> Path:
    """Draws the values of a metric: per run and method a faint point for each seed and a large one for their mean.

    Args:
        rows: `run`, `method` and `values`, one value per seed, the rows of a run one after the other; None and values
            that are not finite are not drawn.
        path: path of the PNG file.
        heading: name of the metric with its unit.
        scale: factor that converts the values to that unit.

    Raises:
        ValueError: If no row has a finite value.

    Example:
        >>> import tempfile
        >>> rows = [{"run": "lr=0.1", "method": "none", "values": [0.1, 0.2]}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     comparison_plot(rows, f"{folder}/comparison.png", heading="error (%)", scale=100).name
        'comparison.png'
    """
    return write_png(path, _draw, rows, heading, scale)


def _draw(rows: Sequence[Mapping[str, Any]], heading: str, scale: float) -> Figure:
    drawn = _finite(rows, scale)
    styles = method_styles(method for _, method, _ in drawn)
    # The name of a run stands above its methods, not beside them: however long, it leaves the axes their width.
    names, ticks, labels, line = [], [], [], 0
    points = []
    for run, of_run in groupby(drawn, key=lambda row: row[0]):
        name = fill(plot_name(run, most=1500), LONGEST)
        line += 1 + name.count("\n")
        names.append((line - 0.6, name))
        for _, method, values in of_run:
            points.append((line, method, values))
            ticks.append(line)
            labels.append(plot_name(method_label(method), 28))
            line += 1
    figure = Figure(figsize=(8, 1.2 + 0.3 * line), layout="constrained")
    axes = figure.subplots()
    for place, method, values in points:
        color, marker = styles[method]["color"], styles[method]["marker"]
        axes.plot(values, np.full(len(values), place), linestyle="", marker=marker, color=color, alpha=0.35)
        axes.plot(values.mean(), place, linestyle="", marker=marker, color=color, markersize=9)
    for place, name in names:
        axes.text(
            0.01, place, name, transform=axes.get_yaxis_transform(), fontsize="small", fontweight="bold", va="bottom",
            in_layout=False,
        )  # fmt: skip
    axes.set_yticks(ticks, labels)
    axes.set_ylim(line - 0.3, -0.3)
    axes.set_xlabel(fill(plot_name(heading, 100), 70))
    axes.set_title("faint: one seed each, large: their mean", fontsize="medium", loc="right")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _finite(rows: Sequence[Mapping[str, Any]], scale: float) -> list[tuple[str, str, np.ndarray]]:
    """Returns run, method and the finite values of each row that has some."""
    drawn = []
    for row in rows:
        values = scale * np.array([np.nan if value is None else value for value in row["values"]], dtype=float)
        if np.isfinite(values).any():
            drawn.append((row["run"], row["method"], values[np.isfinite(values)]))
    if not drawn:
        raise ValueError("there is nothing to draw: no row has a finite value")
    return drawn


def sweep_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, swept: str, heading: str, scale: float = 1
) -> Path:
    """Draws a metric over the number that was swept: per method the mean over seeds and its 95 % CI (Student's t).

    The axis of the number is logarithmic where all are positive and span a decade or more; that of the metric fits the
    values of the seeds, and intervals may reach beyond it.

    Args:
        rows: `value` (the swept number), `method` and `values`, one value per seed; a seed that diverged, None or not
            finite, leaves a gap.
        path: path of the PNG file.
        swept: name of the number.
        heading: name of the metric with its unit.
        scale: factor that converts the values to that unit.

    Raises:
        ValueError: If no row has a finite value.

    Example:
        >>> import tempfile
        >>> rows = [{"value": lr, "method": "none", "values": [0.1, 0.2 + lr]} for lr in (0.01, 0.1)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sweep_plot(rows, f"{folder}/comparison.png", swept="lr", heading="error (%)", scale=100).name
        'comparison.png'
    """
    return write_png(path, _draw_sweep, rows, swept, heading, scale)


def _draw_sweep(rows: Sequence[Mapping[str, Any]], swept: str, heading: str, scale: float) -> Figure:
    _finite([{"run": "", **row} for row in rows], scale)
    points = [
        {"method": row["method"], "x": row["value"], "y": np.nan if value is None else scale * value}
        for row in rows
        for value in row["values"]
    ]
    numbers = sorted({row["value"] for row in rows})
    # Columns in percent are those of fractions.
    bounds = within(mean_interval, 0, scale) if scale == 100 else mean_interval
    styles = method_styles(row["method"] for row in rows)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    draw_curves(axes, curves_of(points, x="x", y="y")[None], styles, bounds=bounds, opacity=0.12)
    # The axis fits the values of the seeds: intervals of two seeds often reach far beyond.
    values = np.array([point["y"] for point in points], dtype=float)
    low, high = values[np.isfinite(values)].min(), values[np.isfinite(values)].max()
    margin = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)
    if numbers[0] > 0 and numbers[-1] >= 10 * numbers[0]:
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    axes.set_xlabel(fill(plot_name(swept, 100), 60))
    axes.set_ylabel(fill(plot_name(heading, 100), 45))
    axes.set_title("mean and 95 % CI over seeds (t)", fontsize="medium", loc="right")
    return finish(figure)
