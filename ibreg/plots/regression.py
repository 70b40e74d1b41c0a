"""Plots of a regression run as PNG files: predictions, residuals, the information plane, the error under attack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ibreg.evaluation.regression import checked_pairs, regression_metrics
from ibreg.plots.classification import scale_rates, values_over_seeds
from ibreg.plots.panels import check_finite, curves_of, draw_curves, finish, panel_grid, write_png
from ibreg.plots.style import method_label, method_styles, plot_name

COMPRESSION = {"cs_qmi": "CS-QMI(X;Z) (nats)", "rate": "rate: I(X;Z), upper bound (nats)"}
RESIDUAL_BINS = 15  # bins of equally many residuals, whose means are drawn
# Quantile of all points that limits the axes: a single diverged prediction would squeeze the points of all panels.
FRAMED = 0.999


def prediction_plot(predictions: Mapping[str, tuple[Any, Any]], path: str | Path, *, quantity: str) -> Path:
    """Draws, per method, predictions over targets, with the line of equality.

    Args:
        predictions: per method the predictions and the targets, each `(samples,)` or `(samples, 1)`, all seeds pooled,
            in the unit of the target. The error of pooled predictions, in the titles, is not the mean of the seeds'
            errors.
        path: path of the PNG file.
        quantity: name of the target with its unit.

    Raises:
        ValueError: If there is no method, or predictions are invalid (as in `regression_metrics`).

    Example:
        >>> import tempfile
        >>> predictions = {"none": (np.array([1.1, 1.9, 3.2]), np.array([1.0, 2.0, 3.0]))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prediction_plot(predictions, f"{folder}/predictions.png", quantity="length (m)").name
        'predictions.png'
    """
    return write_png(path, _draw_predictions, predictions, quantity)


def _draw_predictions(predictions: Mapping[str, tuple[Any, Any]], quantity: str) -> Figure:
    figure, panels = _panel_per_method(predictions, x="truth", y="prediction", quantity=quantity)
    for panel, (method, (predicted, truth)) in panels:
        _scatter(panel, truth, predicted, method, predictions)
        metrics = regression_metrics(predicted, truth)
        name = plot_name(method_label(method), 28)
        panel.set(title=f"{name}\nRMSE {metrics['rmse']:.4g}, R² {metrics['r2']:.3f}")
        panel.axline((float(truth[0]),) * 2, slope=1, linestyle="--", color="black", linewidth=1, label="agreement")
    _frame({panel: (truth, predicted) for panel, (_, (predicted, truth)) in panels})
    return finish(figure)


def residual_plot(predictions: Mapping[str, tuple[Any, Any]], path: str | Path, *, quantity: str) -> Path:
    """Draws, per method, residuals (prediction - truth) over the prediction, with their mean in bins.

    A mean other than 0 shows where predictions are biased, a varying spread where they are less accurate.

    Args:
        predictions: as in `prediction_plot`.
        path: path of the PNG file.
        quantity: name of the target with its unit.

    Raises:
        ValueError: As in `prediction_plot`.

    Example:
        >>> import tempfile
        >>> predictions = {"none": (np.array([1.1, 1.9, 3.2]), np.array([1.0, 2.0, 3.0]))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     residual_plot(predictions, f"{folder}/residuals.png", quantity="length (m)").name
        'residuals.png'
    """
    return write_png(path, _draw_residuals, predictions, quantity)


def _draw_residuals(predictions: Mapping[str, tuple[Any, Any]], quantity: str) -> Figure:
    figure, panels = _panel_per_method(predictions, x="prediction", y="prediction - truth", quantity=quantity)
    for panel, (method, (predicted, truth)) in panels:
        residuals = predicted - truth
        _scatter(panel, predicted, residuals, method, predictions)
        bins = np.array_split(np.argsort(predicted), min(RESIDUAL_BINS, len(predicted)))
        means = [(predicted[rows].mean(), residuals[rows].mean()) for rows in bins]
        panel.plot(*zip(*means, strict=True), color="black", linewidth=1.5, label="mean")
        panel.axhline(0, linestyle="--", color="black", linewidth=1, label="agreement")
        panel.set(
            title=f"{plot_name(method_label(method), 28)}\nmean {residuals.mean():.2g}, std {residuals.std():.3g}"
        )
    _frame({panel: (predicted, predicted - truth) for panel, (_, (predicted, truth)) in panels})
    return finish(figure)


def _panel_per_method(predictions: Mapping[str, tuple[Any, Any]], *, x: str, y: str, quantity: str):
    """Creates a figure with a panel per method, all with the same axes, and pairs panels with checked predictions."""
    if not predictions:
        raise ValueError("there is nothing to draw: no method has predictions")
    checked = {method: checked_pairs(*predictions[method]) for method in method_styles(predictions)}
    figure, panels = panel_grid(len(checked), most=4, size=(3.1, 3.2), sharex=True, sharey=True)
    figure.suptitle(f"{plot_name(quantity)}, seeds pooled", fontsize="medium")
    for panel in panels.flat:
        panel.set(xlabel=x)
        panel.tick_params(labelbottom=True)  # the last row may have fewer panels
    for panel in panels[:, 0]:
        panel.set(ylabel=y)
    return figure, list(zip(panels.flat, checked.items(), strict=False))


def _frame(points: Mapping[Axes, tuple[np.ndarray, np.ndarray]]) -> None:
    """Fits the shared axes to the quantile `FRAMED` of all points; titles state the number of points outside."""
    limits = []
    for axis in (0, 1):
        low, high = np.quantile(np.concatenate([values[axis] for values in points.values()]), [1 - FRAMED, FRAMED])
        margin = 0.1 * (high - low) or 1.0
        limits.append((low - margin, high + margin))
    for panel, coordinates in points.items():
        panel.set(xlim=limits[0], ylim=limits[1])
        inside = [(low <= values) & (values <= high) for values, (low, high) in zip(coordinates, limits, strict=True)]
        outside = int((~(inside[0] & inside[1])).sum())
        if outside:
            panel.set_title(f"{panel.get_title()}\n{outside} of {len(coordinates[0])} points outside")


def _scatter(panel: Axes, x: np.ndarray, y: np.ndarray, method: str, methods: Mapping) -> None:
    # Many points are drawn fainter, so that their density shows.
    opacity = max(0.04, min(0.7, 500 / len(x)))
    panel.scatter(x, y, s=5, color=method_styles(methods)[method]["color"], alpha=opacity, linewidth=0)
    panel.grid(alpha=0.3)


def information_plane(
    rows: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    compression: str = "validation/cs_qmi",
    prediction: str = "validation/information",
) -> Path:
    """Draws, per method, the trajectory of training through the information plane, first epoch hollow, last one filled.

    The vertical axis is the information of the predictions about the target, the horizontal one that of the code about
    the input. Each point is an epoch, the mean over the seeds that have a value. An axis whose information about the
    input spans more than a decade is logarithmic.

    Args:
        rows: rows of a `metrics.csv`: `method`, `seed`, `epoch` and quantities. Numbers may be strings; a missing value
            is an empty string or None, and methods without both quantities are left out.
        path: path of the PNG file.
        compression: key of the information about the input in nats; its last part is `cs_qmi` or `rate`.
        prediction: key of 0.5 log(var y / mse) in nats, see `gaussian_information`.

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
    return write_png(path, _draw_information_plane, rows, compression, prediction)


def _draw_information_plane(rows: Sequence[Mapping[str, Any]], compression: str, prediction: str) -> Figure:
    trajectories = _trajectories(rows, compression, prediction)
    if not trajectories:
        raise ValueError(f"there is nothing to draw: no row has a finite {compression} and {prediction}")
    styles = method_styles(row["method"] for row in rows)
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    panel = figure.subplots()
    for method in (method for method in styles if method in trajectories):
        trajectory, color, marker = trajectories[method], styles[method]["color"], styles[method]["marker"]
        panel.plot(
            *trajectory.T,
            linestyle=styles[method]["linestyle"],
            color=color,
            marker=marker,
            linewidth=0.8,
            markersize=3,
        )
        panel.plot(*trajectory[0], linestyle="", color=color, marker=marker, markersize=8, markerfacecolor="white")
        # The legend entry is that of the last epoch: its marker is the largest, and it gets the method's line style.
        last = {"linestyle": styles[method]["linestyle"], "markersize": 8, "label": plot_name(method_label(method))}
        panel.plot(*trajectory[-1], color=color, marker=marker, **last)
    scale_rates(panel, [point[0] for trajectory in trajectories.values() for point in trajectory])
    kind = compression.rpartition("/")[2]
    information = "information about the target: 0.5 log(var y / MSE) (nats)"
    panel.set(xlabel=COMPRESSION.get(kind, compression), ylabel=information)
    title = (
        "Each point: an epoch, from the first (hollow) to the last (filled). "
        "Up: better predictions; left: the code keeps less of the input."
    )
    panel.set_title(fill(title, 80), fontsize="medium")
    panel.grid(alpha=0.3)
    return finish(figure)


def _trajectories(rows: Sequence[Mapping[str, Any]], compression: str, prediction: str) -> dict[str, np.ndarray]:
    """Computes per method the mean over seeds of both quantities, `(epochs, 2)`, of the epochs that have both."""
    curves = values_over_seeds(
        [{key: row.get(key) for key in ("method", "seed", "epoch", compression, prediction)} for row in rows]
    )
    trajectories = {}
    for method, x in curves[compression].items():
        y = curves[prediction][method]
        means = np.array([(np.mean(x[epoch]), np.mean(y[epoch])) for epoch in sorted(x.keys() & y.keys())])
        means = means[np.isfinite(means).all(axis=1)] if len(means) else means
        if len(means):
            trajectories[method] = means
    return trajectories


def attack_curves(
    points: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    unit: str = "",
    eps_unit: str = "unit of the model's input",
) -> Path:
    """Draws the error under attack over eps: per method the mean over seeds and a band from the least to the greatest.

    Each attack has a panel; all panels share the axis of the error.

    Args:
        points: one per method, seed, attack and eps: `method`, `seed`, `attack` (its name), `eps`, `rmse`; eps 0 is the
            error without an attack.
        path: path of the PNG file.
        unit: unit of the error.
        eps_unit: unit of eps, the largest change of an input.

    Raises:
        ValueError: If there is no point, or one of its numbers is not finite.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "attack": "PGD", "eps": e, "rmse": 1 + e} for e in (0, 0.1)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     attack_curves(points, f"{folder}/attacks.png").name
        'attacks.png'
    """
    return write_png(path, _draw_attack_curves, points, unit, eps_unit)


def _draw_attack_curves(points: Sequence[Mapping[str, Any]], unit: str, eps_unit: str) -> Figure:
    check_finite(points, "eps", "rmse")
    curves = curves_of(points, panel="attack", x="eps", y="rmse")
    styles = method_styles(point["method"] for point in points)
    figure, panels = panel_grid(len(curves), most=3, size=(4.5, 3.6), sharey=True)
    for panel in panels[:, 0]:
        panel.set(ylabel=fill(f"RMSE ({plot_name(unit)})", 36) if unit else "RMSE")
    for panel, (attack, methods) in zip(panels.flat, curves.items(), strict=False):
        draw_curves(panel, methods, styles)
        panel.set(title=attack, xlabel=f"eps ({eps_unit})")
    return finish(figure)
