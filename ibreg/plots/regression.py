"""Plots of a regression run as PNG files: predictions, residuals, the information plane, the error under attack.

Methods, colors and lines are those of `ibreg.plots.classification`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ibreg.evaluation.regression import checked_pairs, regression_metrics
from ibreg.plots.classification import (
    finish,
    method_label,
    method_styles,
    panel_grid,
    scale_rates,
    values_over_seeds,
    write_png,
)

COMPRESSION = {"cs_qmi": "CS-QMI(X;Z) (nats)", "rate": "rate: I(X;Z), upper bound (nats)"}
# Of so many residuals each the mean is drawn.
RESIDUAL_BINS = 15
# Of all points so many set the axes: one prediction that ran away would make lines of all panels.
FRAMED = 0.999


def prediction_plot(predictions: Mapping[str, tuple[Any, Any]], path: str | Path, *, quantity: str) -> Path:
    """Draws, per method, predictions over truth, with the line on which they would agree.

    Args:
        predictions: Of each method the predictions and the targets, each of shape (samples,) or (samples, 1), all seeds
            pooled, in the unit of the target; the error of these, in the titles, is not the mean of the seeds' errors.
        path: Where the PNG goes.
        quantity: What the target is, with its unit.

    Raises:
        ValueError: If there is no method, or predictions are wrong (as in ``regression_metrics``).

    Example:
        >>> import tempfile
        >>> predictions = {"none": (np.array([1.1, 1.9, 3.2]), np.array([1.0, 2.0, 3.0]))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prediction_plot(predictions, f"{folder}/predictions.png", quantity="length (m)").name
        'predictions.png'
    """
    return write_png(_draw_predictions(predictions, quantity), path)


def _draw_predictions(predictions: Mapping[str, tuple[Any, Any]], quantity: str) -> Figure:
    figure, panels = _panel_per_method(predictions, across="truth", up="prediction", quantity=quantity)
    for panel, (method, (predicted, truth)) in panels:
        _scatter(panel, truth, predicted, method, predictions)
        metrics = regression_metrics(predicted, truth)
        panel.set(title=f"{method_label(method)}\nRMSE {metrics['rmse']:.4g}, R² {metrics['r2']:.3f}")
        panel.axline((float(truth[0]),) * 2, slope=1, linestyle="--", color="black", linewidth=1, label="agreement")
    _frame({panel: (truth, predicted) for panel, (_, (predicted, truth)) in panels})
    return finish(figure)


def residual_plot(predictions: Mapping[str, tuple[Any, Any]], path: str | Path, *, quantity: str) -> Path:
    """Draws, per method, prediction minus truth over the prediction, with its mean along the way.

    A mean away from 0 says where predictions are too high or too low, a fan where they are less certain.

    Args:
        predictions: As in ``prediction_plot``.
        path: Where the PNG goes.
        quantity: What the target is, with its unit.

    Raises:
        ValueError: As in ``prediction_plot``.

    Example:
        >>> import tempfile
        >>> predictions = {"none": (np.array([1.1, 1.9, 3.2]), np.array([1.0, 2.0, 3.0]))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     residual_plot(predictions, f"{folder}/residuals.png", quantity="length (m)").name
        'residuals.png'
    """
    return write_png(_draw_residuals(predictions, quantity), path)


def _draw_residuals(predictions: Mapping[str, tuple[Any, Any]], quantity: str) -> Figure:
    figure, panels = _panel_per_method(predictions, across="prediction", up="prediction - truth", quantity=quantity)
    for panel, (method, (predicted, truth)) in panels:
        residuals = predicted - truth
        _scatter(panel, predicted, residuals, method, predictions)
        bins = np.array_split(np.argsort(predicted), min(RESIDUAL_BINS, len(predicted)))
        means = [(predicted[rows].mean(), residuals[rows].mean()) for rows in bins]
        panel.plot(*zip(*means, strict=True), color="black", linewidth=1.5, label="mean")
        panel.axhline(0, linestyle="--", color="black", linewidth=1, label="agreement")
        panel.set(title=f"{method_label(method)}\nmean {residuals.mean():.2g}, deviation {residuals.std():.3g}")
    _frame({panel: (predicted, predicted - truth) for panel, (_, (predicted, truth)) in panels})
    return finish(figure)


def _panel_per_method(predictions: Mapping[str, tuple[Any, Any]], *, across: str, up: str, quantity: str):
    """A figure, and per method a panel with its checked predictions and targets; all panels have the same axes."""
    if not predictions:
        raise ValueError("there is nothing to draw: no method has predictions")
    checked = {method: checked_pairs(*predictions[method]) for method in method_styles(predictions)}
    height, width = panel_grid(len(checked), most=4)
    figure = Figure(figsize=(3 * width + 0.6, 3.2 * height + 0.6), layout="constrained")
    figure.suptitle(f"{quantity}, seeds pooled", fontsize="medium")
    panels = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat:
        panel.set(xlabel=across)
        panel.tick_params(labelbottom=True)  # below a panel there may be none
    for panel in panels[:, 0]:
        panel.set(ylabel=up)
    return figure, list(zip(panels.flat, checked.items(), strict=False))


def _frame(points: Mapping[Axes, tuple[np.ndarray, np.ndarray]]) -> None:
    """Fits the axes that all panels share to nearly all points, and says in a panel's title how many lie outside."""
    limits = []
    for axis in (0, 1):
        low, high = np.quantile(np.concatenate([of[axis] for of in points.values()]), [1 - FRAMED, FRAMED])
        margin = 0.1 * (high - low) or 1.0
        limits.append((low - margin, high + margin))
    for panel, of in points.items():
        panel.set(xlim=limits[0], ylim=limits[1])
        inside = [(low <= values) & (values <= high) for values, (low, high) in zip(of, limits, strict=True)]
        outside = int((~(inside[0] & inside[1])).sum())
        if outside:
            panel.set_title(f"{panel.get_title()}\n{outside} of {len(of[0])} points outside")


def _scatter(panel: Axes, across: np.ndarray, up: np.ndarray, method: str, methods: Mapping) -> None:
    # Many points are drawn fainter, so that their density shows.
    opacity = max(0.04, min(0.7, 500 / len(across)))
    panel.scatter(across, up, s=5, color=method_styles(methods)[method]["color"], alpha=opacity, linewidth=0)
    panel.grid(alpha=0.3)


def information_plane(
    rows: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    compression: str = "validation/cs_qmi",
    prediction: str = "validation/information",
) -> Path:
    """Draws, per method, the way of its training through the information plane, from a hollow first epoch to a filled one.

    Up stands what the predictions tell about the target, across what the code tells about the input; each point is an
    epoch, the mean over the seeds that have a value there. Where the information about the input spans more than a
    decade its axis is logarithmic.

    Args:
        rows: Rows of a ``metrics.csv``: ``method``, ``seed``, ``epoch`` and quantities. Numbers may be strings; a missing
            value is an empty string or None, and methods without both quantities are left out.
        path: Where the PNG goes.
        compression: Key of the information about the input, its last part ``cs_qmi`` or ``rate``, nats.
        prediction: Key of 0.5 log(var y / mse), nats, see ``gaussian_information``.

    Raises:
        ValueError: If no row has both quantities, or a value is not a number.

    Example:
        >>> import tempfile
        >>> rows = [{"method": "hsic", "seed": 0, "epoch": e, "validation/rate": 9 / e, "validation/information": e / 9}
        ...         for e in (1, 2, 3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     information_plane(rows, f"{folder}/plane.png", compression="validation/rate").name
        'plane.png'
    """
    return write_png(_draw_information_plane(rows, compression, prediction), path)


def _draw_information_plane(rows: Sequence[Mapping[str, Any]], compression: str, prediction: str) -> Figure:
    ways = _ways(rows, compression, prediction)
    if not ways:
        raise ValueError(f"there is nothing to draw: no row has a finite {compression} and {prediction}")
    styles = method_styles(row["method"] for row in rows)
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    panel = figure.subplots()
    for method in (method for method in styles if method in ways):
        way, color, marker = ways[method], styles[method]["color"], styles[method]["marker"]
        panel.plot(
            *way.T, linestyle=styles[method]["linestyle"], color=color, marker=marker, linewidth=0.8, markersize=3
        )
        panel.plot(*way[0], linestyle="", color=color, marker=marker, markersize=8, markerfacecolor="white")
        # The legend shows the last epoch's marker, the largest one, on the method's line, which a point does not have.
        last = {"linestyle": styles[method]["linestyle"], "markersize": 8, "label": method_label(method)}
        panel.plot(*way[-1], color=color, marker=marker, **last)
    scale_rates(panel, [point[0] for way in ways.values() for point in way])
    if panel.get_xscale() == "log":
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
    kind = compression.rpartition("/")[2]
    panel.set(xlabel=COMPRESSION.get(kind, compression), ylabel="0.5 log(var y / MSE) (nats)")
    panel.set_title("hollow: first epoch, filled: last", loc="right", fontsize="medium")
    panel.grid(alpha=0.3)
    return finish(figure)


def _ways(rows: Sequence[Mapping[str, Any]], compression: str, prediction: str) -> dict[str, np.ndarray]:
    """Per method the mean over seeds of both quantities, `(epochs, 2)`; epochs where one is missing are left out."""
    curves = values_over_seeds(
        [{key: row.get(key) for key in ("method", "seed", "epoch", compression, prediction)} for row in rows]
    )
    ways = {}
    for method, across in curves[compression].items():
        up = curves[prediction][method]
        means = np.array([(np.mean(across[epoch]), np.mean(up[epoch])) for epoch in sorted(across.keys() & up.keys())])
        means = means[np.isfinite(means).all(axis=1)] if len(means) else means
        if len(means):
            ways[method] = means
    return ways


def attack_curves(points: Sequence[Mapping[str, Any]], path: str | Path, *, unit: str = "") -> Path:
    """Draws the error under attack over eps, per method the mean over seeds and a band from the least to the greatest.

    Each attack has a panel of its own, all with the same axis of the error.

    Args:
        points: One per method, seed, attack and eps: ``method``, ``seed``, ``attack`` (its name), ``eps``, ``rmse``. At eps 0
            stands the error without an attack.
        path: Where the PNG goes.
        unit: Unit of the error.

    Raises:
        ValueError: If there is no point, or one of its numbers is not finite.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "attack": "PGD", "eps": eps, "rmse": 1 + eps} for eps in (0, 0.1, 0.2)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     attack_curves(points, f"{folder}/attacks.png").name
        'attacks.png'
    """
    return write_png(_draw_attack_curves(points, unit), path)


def _draw_attack_curves(points: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    if not points:
        raise ValueError("there is nothing to draw: no points")
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for point in points:
        if not (math.isfinite(point["eps"]) and math.isfinite(point["rmse"])):
            raise ValueError(f"a point of the attack curves has a number that is not finite: {dict(point)}")
        curves[point["attack"]][point["method"]][point["eps"]].append(point["rmse"])
    styles = method_styles(point["method"] for point in points)
    height, width = panel_grid(len(curves), most=3)
    figure = Figure(figsize=(4.5 * width, 3.6 * height + 0.5), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False, sharey=True)
    for panel in panels[:, 0]:
        panel.set(ylabel=fill(f"RMSE ({unit})", 36) if unit else "RMSE")
    for panel, (attack, methods) in zip(panels.flat, curves.items(), strict=False):
        for method in (method for method in styles if method in methods):
            eps = sorted(methods[method])
            values = [np.array(methods[method][radius]) for radius in eps]
            panel.plot(
                eps,
                [v.mean() for v in values],
                **styles[method],
                linewidth=1.2,
                markersize=4,
                label=method_label(method),
            )
            panel.fill_between(
                eps,
                [v.min() for v in values],
                [v.max() for v in values],
                color=styles[method]["color"],
                alpha=0.2,
                linewidth=0,
            )
        panel.set(title=attack, xlabel="eps (unit of the model's input)")
        panel.grid(alpha=0.3)
    return finish(figure)
