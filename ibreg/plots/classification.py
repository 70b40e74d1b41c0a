"""Plots of a classification run as PNG files: learning curves, reliability diagrams, the information curve."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from ibreg.evaluation.classification.metrics import calibration_bins, classification_metrics
from ibreg.plots.panels import check_finite, draw_curves, finish, panel_grid, plain_numbers, write_png
from ibreg.plots.style import method_label, method_styles, plot_name

# Candidate positions of a note around its point, in typographic points, in order of preference.
NOTE_OFFSETS = [
    (radius * math.cos(angle) * 1.8, radius * math.sin(angle))
    for radius in (10, 17, 24, 31)
    for angle in np.radians([270, 90, 0, 180, 315, 225, 45, 135])
]
SPLITS = {"train": "training", "validation": "validation", "test": "test"}
# Metrics in words with their unit; other keys are shown with blanks for their underscores.
METRICS = {
    "loss": "loss",
    "penalty": "penalty (part of the loss)",
    "accuracy": "accuracy (fraction)",
    "error": "error (fraction)",
    "ece": "calibration error, ECE (fraction)",
    "nll": "NLL (nats)",
    "rate": "rate of the code (nats)",
    "cs_qmi": "CS-QMI(X;Z) (nats)",
    "information": "information about the target (nats)",
    "rmse": "RMSE",
    "r2": "R²",
    "concept_accuracy": "concept accuracy (fraction)",
    "concept_auroc": "concept AUROC (fraction)",
}
FEW = 5  # bins of the reliability diagram with fewer samples are drawn faintly


def learning_curves(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, units: Mapping[str, str] | None = None
) -> Path:
    """Draws each quantity over the epochs: per method the mean over seeds and a band from the least to the greatest.

    Each epoch takes the seeds that have a value; NaN and infinity leave a gap.

    Args:
        rows: rows of a `metrics.csv`: `method`, `seed`, `epoch`; every other key is a quantity such as
            `validation/nll`. Numbers may be strings; a missing value is an empty string or None.
        path: path of the PNG file.
        units: units of metrics that depend on the data, such as `{"rmse": "price (€)"}`.

    Raises:
        ValueError: If no row has a value of a quantity, or a value is not a number.

    Example:
        >>> import tempfile
        >>> rows = [{"method": "none", "seed": s, "epoch": e, "train/loss": 1 / (e + s)} for s in (1, 2) for e in (1,)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learning_curves(rows, f"{folder}/curves.png").name
        'curves.png'
    """
    return write_png(path, _draw_learning_curves, rows, units or {})


def _draw_learning_curves(rows: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> Figure:
    curves = values_over_seeds(rows)
    if not curves:
        raise ValueError("there is nothing to draw: no row has a value of a quantity")
    styles = method_styles(row["method"] for row in rows)
    figure, panels = panel_grid(len(curves), most=3, size=(4, 3))
    for panel, (quantity, methods) in zip(panels.flat, curves.items(), strict=False):
        # A single epoch has no line to show, only its marker.
        lines = {
            method: style | {"marker": style["marker"] if len(methods.get(method, ())) == 1 else ""}
            for method, style in styles.items()
        }
        draw_curves(panel, methods, lines)
        panel.set(xlabel="epoch", ylabel=fill(_in_words(quantity, units), 32))
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    return finish(figure)


def values_over_seeds(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Mapping[int, list[float]]]]:
    """Collects the values over seeds, as `curves[quantity][method][epoch]`."""
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        for quantity, value in row.items():
            if quantity not in ("method", "seed", "epoch") and value not in (None, ""):
                curves[quantity][row["method"]][int(row["epoch"])].append(float(value))
    return curves


def reliability_diagram(predictions: Mapping[str, tuple[Any, Any]], path: str | Path) -> Path:
    """Draws, per method, accuracy over confidence with the gap between the two, above a histogram of the confidence.

    Bins with fewer than `FEW` samples are faint: their accuracy is hardly an estimate.

    Args:
        predictions: per method the probabilities `(samples, classes)` and the targets `(samples,)`, all seeds pooled.
            The calibration error (ECE) of pooled predictions, in the titles, is not the mean of the seeds' errors.
        path: path of the PNG file.

    Raises:
        ValueError: If there is no method, or predictions are invalid (as in `classification_metrics`).

    Example:
        >>> import tempfile
        >>> predictions = {"none": (np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1]))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     reliability_diagram(predictions, f"{folder}/reliability.png").name
        'reliability.png'
    """
    return write_png(path, _draw_reliability_diagram, predictions)


def _draw_reliability_diagram(predictions: Mapping[str, tuple[Any, Any]]) -> Figure:
    if not predictions:
        raise ValueError("there is nothing to draw: no method has predictions")
    styles = method_styles(predictions)
    height = math.ceil(len(predictions) / 4)
    width = math.ceil(len(predictions) / height)
    figure = Figure(figsize=(3 * width + 0.4, 4.2 * height + 0.5), layout="constrained")
    panels = figure.subplots(2 * height, width, squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1] * height)
    diagrams, histograms = panels[::2].flat, panels[1::2].flat
    for diagram, histogram, method in zip(diagrams, histograms, styles, strict=False):
        color, error = styles[method]["color"], classification_metrics(*predictions[method])["ece"]
        counts, accuracy, confidence = calibration_bins(*predictions[method])
        bin_width = 1 / len(counts)
        centers = (np.arange(len(counts)) + 0.5) * bin_width
        strength = np.where(counts < FEW, 0.25, 1)
        solid = {"color": [to_rgba(color, each) for each in strength], "edgecolor": "white"}
        hatched = {"facecolor": "none", "edgecolor": [to_rgba("black", each) for each in strength], "hatch": "////"}
        accurate = f"accuracy (faint: fewer than {FEW} samples)"
        diagram.bar(centers, accuracy, bin_width, **solid, label="_faint")
        gap = {"bottom": accuracy, "linewidth": 0.8, **hatched}
        diagram.bar(centers, confidence - accuracy, bin_width, **gap, label="_faint")
        diagram.fill_between([], [], [], color=color, label=accurate)
        diagram.fill_between([], [], [], facecolor="none", edgecolor="black", hatch="////", label="gap")
        diagram.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="calibrated")
        name = plot_name(method_label(method), 28)
        diagram.set(title=f"{name}\nECE of pooled seeds {100 * error:.2f} %", xlim=(0, 1), ylim=(0, 1))
        histogram.bar(centers, counts / counts.sum(), bin_width, color=color, edgecolor="white")
        histogram.set(xlabel="confidence")
        histogram.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        histogram.tick_params(labelbottom=True)
    for row in range(height):
        panels[2 * row, 0].set(ylabel="accuracy")
        panels[2 * row + 1, 0].set(ylabel="fraction\nof samples")
    return finish(figure)


def information_curve(points: Sequence[Mapping[str, Any]], path: str | Path, *, label_entropy: float) -> Path:
    """Draws the information of the code about the labels, and the accuracy, over its information about the input.

    Dashed lines are the two upper limits of I(Z;Y): H(Y), and I(Z;X) by the data processing inequality, as far as it
    lies below H(Y). The axis of rates that span more than a decade is logarithmic, but linear below 0.01 nats.

    Args:
        points: one per method and beta: `method`, `beta`, `rate` (upper bound of I(Z;X) in nats; with a conditional
            prior the layer's rate + H(Y)), `information` (lower bound of I(Z;Y) in nats), `accuracy` (fraction).
        path: path of the PNG file.
        label_entropy: H(Y) in nats.

    Raises:
        ValueError: If there is no point, or one of its numbers is not finite.

    Example:
        >>> import tempfile
        >>> points = [{"method": "variational", "beta": 1e-3, "rate": 12.0, "information": 2.1, "accuracy": 0.97}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     information_curve(points, f"{folder}/information.png", label_entropy=2.3).name
        'information.png'
    """
    return write_png(path, _draw_information_curve, points, label_entropy)


def _draw_information_curve(points: Sequence[Mapping[str, Any]], label_entropy: float) -> Figure:
    check_finite(points, "beta", "rate", "information", "accuracy")
    styles = method_styles(point["method"] for point in points)
    figure = Figure(figsize=(7, 7), layout="constrained")
    plane, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for method, style in styles.items():
        curve = sorted((point for point in points if point["method"] == method), key=lambda point: point["beta"])
        rates = [point["rate"] for point in curve]
        for panel, key in ((plane, "information"), (accuracy, "accuracy")):
            panel.plot(
                rates, [point[key] for point in curve], **style, linewidth=0.7, label=plot_name(method_label(method))
            )
    scale_rates(plane, [point["rate"] for point in points])
    _draw_ceilings(plane, label_entropy)
    title = (
        "The code Z keeps at most the information on the horizontal axis about the input X, and at least that on the "
        "vertical axis about the label Y. Beside each point: its beta."
    )
    figure.suptitle(fill(title, 88), fontsize="medium")
    plane.set(ylabel="I(Z;Y), lower bound: H(Y) - NLL (nats)")
    accuracy.set(
        xlabel="I(Z;X), upper bound (nats): rate; with a conditional prior, rate + H(Y)", ylabel="accuracy (fraction)"
    )
    for panel in (plane, accuracy):
        panel.grid(alpha=0.3)
    _annotate_betas(finish(figure), plane, points, styles)
    return figure


def scale_rates(panel: Axes, rates: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic if rates span more than a decade, but linear below 0.01 nats."""
    panel.margins(0.1)
    if min(rates) < 0.01 <= max(rates):
        panel.set_xscale("symlog", linthresh=0.01)
    elif max(rates) > 10 * min(rates) >= 0.1:
        panel.set_xscale("log")
    if panel.get_xscale() != "linear":
        plain_numbers(panel.xaxis)


def _draw_ceilings(panel: Axes, label_entropy: float) -> None:
    left, right = panel.get_xlim()
    # Equal steps along the axis, not in the rate: on a logarithmic axis the diagonal is a curve.
    steps = np.column_stack([np.linspace(0, 1, 500), np.zeros(500)])
    rates = panel.transData.inverted().transform(panel.transAxes.transform(steps))[:, 0]
    diagonal = np.where(rates <= label_entropy, rates, np.nan)
    panel.axhline(label_entropy, linestyle="--", color="black", linewidth=1, label="H(Y)")
    if np.isfinite(diagonal).any():
        panel.plot(rates, diagonal, "--", color="#888888", linewidth=1, label="I(Z;Y) = I(Z;X)")
    panel.set_xlim(left, right)


def _annotate_betas(figure: Figure, panel: Axes, points: Sequence[Mapping[str, Any]], styles: Mapping) -> None:
    """Writes beta beside each point, at the first position around it without a marker or another beta."""
    figure.draw_without_rendering()
    # Positions are compared in pixels, which are known once the layout is computed.
    markers = panel.transData.transform([(point["rate"], point["information"]) for point in points])
    taken = [Bbox.from_extents(*(marker - 5), *(marker + 5)) for marker in markers]
    for point in points:
        note = panel.annotate(
            f"{point['beta']:g}".replace("e-0", "e-"),
            (point["rate"], point["information"]),
            xytext=(0, 0),
            textcoords="offset points",
            horizontalalignment="center",
            verticalalignment="center",
            fontsize=8,
            color=styles[point["method"]]["color"],
        )
        for offset in NOTE_OFFSETS:
            note.set_position(offset)
            if not any(note.get_window_extent().overlaps(other) for other in taken):
                break
        taken.append(note.get_window_extent())


def _in_words(quantity: str, units: Mapping[str, str]) -> str:
    split, _, metric = quantity.rpartition("/")
    words = METRICS.get(metric, metric.replace("_", " "))
    unit = f", {plot_name(units[metric])}" if metric in units else ""
    return f"{SPLITS.get(split, split)} {words}{unit}".strip()
