"""Plots of a run as PNG files: learning curves, reliability diagrams, the information curve.

A method is one of the models of a run: ``none`` is the control, ``null`` its second initialization, ``decayed`` the
control with weight decay, any other name a
bottleneck. Bottlenecks take their colors in the order in which they first appear, so a run that names them in one
order has one color per method in all plots. The colors are Okabe and Ito's, which color-blind readers tell apart.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from ibreg.evaluation.classification.metrics import calibration_bins, classification_metrics

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", ":", "-.")
CONTROL_LABELS = {"none": "none", "null": "none, other init", "decayed": "none, weight decay"}
CONTROL_STYLES = {
    "none": {"color": "#666666", "linestyle": "-", "marker": "o"},
    "null": {"color": "#BBBBBB", "linestyle": "-", "marker": "o"},
    "decayed": {"color": "#666666", "linestyle": "--", "marker": "d"},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Where a note may stand around its point, in points of print, the best place first.
NOTE_OFFSETS = [
    (radius * math.cos(angle) * 1.8, radius * math.sin(angle))
    for radius in (10, 17, 24, 31)
    for angle in np.radians([270, 90, 0, 180, 315, 225, 45, 135])
]
UNITS = {
    "accuracy": "fraction", "error": "fraction", "ece": "fraction",
    "nll": "nats", "rate": "nats", "cs_qmi": "nats", "information": "nats",
}  # fmt: skip


def sort_methods(methods: Iterable[str]) -> list[str]:
    """Puts the control first, its second initialization next, then the bottlenecks in the order given.

    Example:
        >>> sort_methods(["variational", "null", "hsic", "none", "hsic"])
        ['none', 'null', 'variational', 'hsic']
    """
    places = {method: place for place, method in enumerate(CONTROL_LABELS)}
    return sorted(dict.fromkeys(methods), key=lambda method: places.get(method, len(places)))


def method_label(method: str) -> str:
    """Names a method for a reader.

    Example:
        >>> method_label("null"), method_label("hsic")
        ('none, other init', 'hsic')
    """
    return CONTROL_LABELS.get(method, method)


def learning_curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draws every quantity over the epochs, per method the mean over seeds and a band from the least to the greatest.

    At each epoch these are the seeds that have a value there; NaN and infinity leave a gap.

    Args:
        rows: Rows of a ``metrics.csv``: ``method``, ``seed``, ``epoch``, every other key is a quantity such as
            ``validation/nll``. Numbers may be strings; a missing value is an empty string or None.
        path: Where the PNG goes.

    Raises:
        ValueError: If no row has a value of a quantity, or a value is not a number.

    Example:
        >>> import tempfile
        >>> rows = [{"method": "none", "seed": s, "epoch": e, "train/loss": 1 / (e + s)} for s in (1, 2) for e in (1, 2)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learning_curves(rows, f"{folder}/curves.png").name
        'curves.png'
    """
    return write_png(_draw_learning_curves(rows), path)


def _draw_learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    curves = values_over_seeds(rows)
    if not curves:
        raise ValueError("there is nothing to draw: no row has a value of a quantity")
    styles = method_styles(row["method"] for row in rows)
    height, width = panel_grid(len(curves), most=3)
    figure = Figure(figsize=(4 * width, 3 * height + 0.5), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).flat
    for panel, (quantity, methods) in zip(panels, curves.items(), strict=False):
        for method in sort_methods(methods):
            epochs = sorted(methods[method])
            color, line = styles[method]["color"], styles[method]["linestyle"]
            # A lone epoch has no line to show.
            marker = styles[method]["marker"] if len(epochs) == 1 else ""
            values = [np.array(methods[method][epoch]) for epoch in epochs]
            panel.plot(epochs, [v.mean() for v in values], line, color=color, marker=marker, label=method_label(method))
            panel.fill_between(
                epochs, [v.min() for v in values], [v.max() for v in values], color=color, alpha=0.2, linewidth=0
            )
        panel.set(xlabel="epoch", ylabel=_with_unit(quantity))
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        panel.grid(alpha=0.3)
    return finish(figure)


def values_over_seeds(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Mapping[int, list[float]]]]:
    """Values over the seeds, as ``curves[quantity][method][epoch]``."""
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        for quantity, value in row.items():
            if quantity not in ("method", "seed", "epoch") and value not in (None, ""):
                curves[quantity][row["method"]][int(row["epoch"])].append(float(value))
    return curves


def reliability_diagram(predictions: Mapping[str, tuple[Any, Any]], path: str | Path) -> Path:
    """Draws, per method, accuracy over confidence with the gap between the two, above a histogram of the confidence.

    Args:
        predictions: Of each method the probabilities of shape (samples, classes) and the targets of shape (samples,), all
            seeds pooled; the calibration error of these, in the titles, is not the mean of the seeds' errors.
        path: Where the PNG goes.

    Raises:
        ValueError: If there is no method, or predictions are wrong (as in ``classification_metrics``).

    Example:
        >>> import tempfile
        >>> predictions = {"none": (np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1]))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     reliability_diagram(predictions, f"{folder}/reliability.png").name
        'reliability.png'
    """
    return write_png(_draw_reliability_diagram(predictions), path)


def _draw_reliability_diagram(predictions: Mapping[str, tuple[Any, Any]]) -> Figure:
    if not predictions:
        raise ValueError("there is nothing to draw: no method has predictions")
    styles = method_styles(predictions)
    height, width = panel_grid(len(predictions), most=4)
    figure = Figure(figsize=(3 * width + 0.4, 4.2 * height + 0.5), layout="constrained")
    panels = figure.subplots(2 * height, width, squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1] * height)
    diagrams, histograms = panels[::2].flat, panels[1::2].flat
    for diagram, histogram, method in zip(diagrams, histograms, styles, strict=False):
        probabilities, targets = predictions[method]
        counts, accuracy, confidence = calibration_bins(probabilities, targets)
        calibration_error = classification_metrics(probabilities, targets)["ece"]
        width_of_bin = 1 / len(counts)
        centers = (np.arange(len(counts)) + 0.5) * width_of_bin
        diagram.bar(centers, accuracy, width_of_bin, color=styles[method]["color"], edgecolor="white", label="accuracy")
        diagram.bar(
            centers,
            confidence - accuracy,
            width_of_bin,
            bottom=accuracy,
            facecolor="none",
            edgecolor="black",
            hatch="////",
            linewidth=0.8,
            label="gap",
        )
        diagram.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="calibrated")
        diagram.set(
            title=f"{method_label(method)}\nECE of pooled seeds {100 * calibration_error:.2f} %",
            xlim=(0, 1),
            ylim=(0, 1),
        )
        histogram.bar(centers, counts / counts.sum(), width_of_bin, color=styles[method]["color"], edgecolor="white")
        histogram.set(xlabel="confidence")
        histogram.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        histogram.tick_params(labelbottom=True)
    for row in range(height):
        panels[2 * row, 0].set(ylabel="accuracy")
        panels[2 * row + 1, 0].set(ylabel="fraction\nof samples")
    return finish(figure)


def information_curve(points: Sequence[Mapping[str, Any]], path: str | Path, *, label_entropy: float) -> Path:
    """Draws what the code tells about the labels, and the accuracy, over what it tells about the input.

    Dashed lines are the two ceilings of I(Z;Y): H(Y), and I(Z;X), since no code carries more about Y than about X,
    where some of it is below H(Y).
    Where rates span more than a decade their axis is logarithmic, but linear below 0.01 nats.

    Args:
        points: One per method and beta: ``method``, ``beta``, ``rate`` (upper bound of I(Z;X), nats; with a conditional prior
            that is the layer's rate + H(Y)), ``information`` (lower bound of I(Z;Y), nats), ``accuracy`` (fraction).
        path: Where the PNG goes.
        label_entropy: H(Y), nats.

    Raises:
        ValueError: If there is no point, or one of its numbers is not finite.

    Example:
        >>> import tempfile
        >>> points = [{"method": "variational", "beta": 1e-3, "rate": 12.0, "information": 2.1, "accuracy": 0.97}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     information_curve(points, f"{folder}/information.png", label_entropy=2.3).name
        'information.png'
    """
    return write_png(_draw_information_curve(points, label_entropy), path)


def _draw_information_curve(points: Sequence[Mapping[str, Any]], label_entropy: float) -> Figure:
    if not points:
        raise ValueError("there is nothing to draw: no points")
    for point in points:
        if not all(math.isfinite(point[key]) for key in ("beta", "rate", "information", "accuracy")):
            raise ValueError(f"a point of the information curve has a number that is not finite: {dict(point)}")
    styles = method_styles(point["method"] for point in points)
    figure = Figure(figsize=(7, 7), layout="constrained")
    plane, accuracy = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for method, style in styles.items():
        curve = sorted((point for point in points if point["method"] == method), key=lambda point: point["beta"])
        rates = [point["rate"] for point in curve]
        for panel, key in ((plane, "information"), (accuracy, "accuracy")):
            panel.plot(rates, [point[key] for point in curve], **style, linewidth=0.7, label=method_label(method))
    scale_rates(plane, [point["rate"] for point in points])
    _draw_ceilings(plane, label_entropy)
    plane.set_title("beside each point: its beta", loc="right", fontsize="medium")
    plane.set(ylabel="I(Z;Y), lower bound (nats)")
    accuracy.set(
        xlabel="I(Z;X), upper bound (nats): rate; with a conditional prior, rate + H(Y)", ylabel="accuracy (fraction)"
    )
    for panel in (plane, accuracy):
        panel.grid(alpha=0.3)
    _annotate_betas(finish(figure), plane, points, styles)
    return figure


def scale_rates(panel: Axes, rates: Sequence[float]) -> None:
    """Makes the axis across logarithmic where rates span more than a decade, but linear below 0.01 nats."""
    panel.margins(0.1)
    if min(rates) < 0.01 <= max(rates):
        panel.set_xscale("symlog", linthresh=0.01)
    elif max(rates) > 10 * min(rates) >= 0.1:
        panel.set_xscale("log")


def _draw_ceilings(panel: Axes, label_entropy: float) -> None:
    left, right = panel.get_xlim()
    # Even steps along the axis, not in the rate: on a logarithmic axis the diagonal is a curve.
    steps = np.column_stack([np.linspace(0, 1, 500), np.zeros(500)])
    rates = panel.transData.inverted().transform(panel.transAxes.transform(steps))[:, 0]
    diagonal = np.where(rates <= label_entropy, rates, np.nan)
    panel.axhline(label_entropy, linestyle="--", color="black", linewidth=1, label="H(Y)")
    if np.isfinite(diagonal).any():
        panel.plot(rates, diagonal, "--", color="#888888", linewidth=1, label="I(Z;Y) = I(Z;X)")
    panel.set_xlim(left, right)


def _annotate_betas(figure: Figure, panel: Axes, points: Sequence[Mapping[str, Any]], styles: Mapping) -> None:
    """Writes beta beside each point, at the first place around it where no marker and no other beta stands."""
    figure.draw_without_rendering()
    # Places are compared in pixels, which are known once the layout is settled.
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


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color, line and marker per method, the control first; the line changes where the colors start again."""
    styles = {}
    for method in sort_methods(methods):
        if method in CONTROL_STYLES:
            styles[method] = dict(CONTROL_STYLES[method])
        else:
            turn, place = divmod(len(styles.keys() - CONTROL_STYLES.keys()), len(COLORS))
            styles[method] = {"color": COLORS[place], "linestyle": LINES[turn % len(LINES)], "marker": MARKERS[place]}
    return styles


def panel_grid(panels: int, most: int) -> tuple[int, int]:
    """Rows and columns for so many panels, at most so many in a row, rows filled evenly."""
    rows = math.ceil(panels / most)
    return rows, math.ceil(panels / rows)


def _with_unit(quantity: str) -> str:
    unit = UNITS.get(quantity.rpartition("/")[2])
    return f"{quantity} ({unit})" if unit else quantity


def finish(figure: Figure) -> Figure:
    """Hides the panels left over, and puts one legend for all under the figure."""
    entries = {}
    for panel in figure.axes:
        panel.set_visible(panel.has_data())
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = int(figure.get_figwidth() // 2)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.align_labels()
    return figure


def write_png(figure: Figure, path: str | Path) -> Path:
    """Writes a figure and returns its path."""
    figure.savefig(path, format="png", dpi=150)
    return Path(path)
