"""Plot of several runs: a line per run and method with the values of its seeds and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ibreg.plots.panels import write_png
from ibreg.plots.style import method_label, method_styles


def comparison_plot(rows: Sequence[Mapping[str, Any]], path: str | Path, *, heading: str, scale: float = 1) -> Path:
    """Draws the values of a metric: per run and method a faint point for each seed and a large one for their mean.

    Args:
        rows: `run`, `method` and `values`, one value per seed; None and values that are not finite are not drawn.
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
    return write_png(_draw(rows, heading, scale), path)


def _draw(rows: Sequence[Mapping[str, Any]], heading: str, scale: float) -> Figure:
    drawn = []
    for row in rows:
        values = scale * np.array([np.nan if value is None else value for value in row["values"]], dtype=float)
        if np.isfinite(values).any():
            drawn.append((f"{row['run']}  {method_label(row['method'])}", row["method"], values[np.isfinite(values)]))
    if not drawn:
        raise ValueError("there is nothing to draw: no row has a finite value")
    styles = method_styles(method for _, method, _ in drawn)
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for line, (_, method, values) in enumerate(drawn):
        color, marker = styles[method]["color"], styles[method]["marker"]
        axes.plot(values, np.full(len(values), line), linestyle="", marker=marker, color=color, alpha=0.35)
        axes.plot(values.mean(), line, linestyle="", marker=marker, color=color, markersize=9)
    axes.set_yticks(range(len(drawn)), [label for label, _, _ in drawn])
    axes.invert_yaxis()
    axes.set_xlabel(heading)
    axes.grid(axis="x", alpha=0.3)
    return figure
