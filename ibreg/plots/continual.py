"""Plots of continual learning as PNG files: accuracy over splits, usage of keys, decision regions in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ibreg.evaluation.intervals import mean_interval
from ibreg.plots.panels import draw_curves, finish, within, write_png
from ibreg.plots.style import method_label, method_styles, plot_name

# Okabe and Ito's colors, a gray and a brown: color-blind readers can tell the ten classes apart, as far as that goes.
CLASS_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000", "#999999", "#7B4B2A",
)  # fmt: skip
INTERVAL = "(mean and 95 % CI over seeds)"

learner_label = partial(method_label, control="linear probe")  # a network without a bottleneck, on frozen features


def accuracy_over_splits(
    curves: Mapping[str, Sequence[Sequence[float]]], path: str | Path, *, chance: float | None = None
) -> Path:
    """Draws, per method, the accuracy over all classes before the first split and after each split, with its 95 % CI.

    The band is the interval of the mean over seeds by Student's t. A method with two stages, before and after training
    on all classes at once, is a horizontal line at its second stage.

    Args:
        curves: per method the accuracies of every seed `(seeds, stages)`, fractions.
        path: path of the PNG file.
        chance: accuracy of guessing, drawn if given.

    Raises:
        ValueError: If there is no method, a method has no seed, or seeds differ in their number of stages.

    Example:
        >>> import tempfile
        >>> curves = {"none": [[0.1, 0.5, 0.4], [0.1, 0.5, 0.5]], "joint": [[0.1, 0.9], [0.2, 0.8]]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accuracy_over_splits(curves, f"{folder}/accuracy_over_splits.png").name
        'accuracy_over_splits.png'
    """
    return write_png(path, _draw_accuracy, curves, chance)


def _draw_accuracy(curves: Mapping[str, Sequence[Sequence[float]]], chance: float | None) -> Figure:
    if not curves:
        raise ValueError("there is nothing to draw: no method has a curve")
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    panel = figure.subplots()
    values = {method: _checked_curve(method, curve) for method, curve in curves.items()}
    last = max(curve.shape[1] for curve in values.values()) - 1
    for method, style in method_styles(values).items():
        curve, label = values[method], learner_label(method)
        if curve.shape[1] == 2 < last + 1:
            curve, label = np.repeat(curve[:, 1:], last + 1, axis=1), f"{label} (all classes at once)"
            style = style | {"linestyle": "--", "marker": ""}
        _draw_stages(panel, curve, style, label)
    if chance is not None:
        panel.axhline(chance, linestyle=":", color="black", linewidth=1, label="chance")
    panel.set(xlabel="splits learned", ylabel=f"test accuracy over all classes\n{INTERVAL}", ylim=(0, 1.02))
    return _finished(figure, panel)


def key_usage(shares: Mapping[str, Sequence[Sequence[float]]], path: str | Path) -> Path:
    """Draws, per method that has keys, the fraction of its key-value pairs used so far, after each split.

    Args:
        shares: per method the fractions of every seed `(seeds, stages)`, the first before all splits; empty for methods
            without keys, which are listed so that a method has one color in all plots.
        path: path of the PNG file.

    Raises:
        ValueError: If no method has keys, or seeds differ in their number of stages.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     key_usage({"key_value": [[0.0, 0.4, 0.7], [0.0, 0.5, 0.6]]}, f"{folder}/key_usage.png").name
        'key_usage.png'
    """
    return write_png(path, _draw_usage, shares)


def _draw_usage(shares: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    if not any(shares.values()):
        raise ValueError("there is nothing to draw: no method has keys")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = figure.subplots()
    for method, style in method_styles(shares).items():
        if shares[method]:
            _draw_stages(panel, _checked_curve(method, shares[method]), style, learner_label(method))
    panel.set(xlabel="splits learned", ylabel=f"key-value pairs used so far\n{INTERVAL}", ylim=(0, 1.02))
    return _finished(figure, panel)


def _draw_stages(panel: Axes, curve: np.ndarray, style: Mapping[str, Any], label: str) -> None:
    values = {label: dict(enumerate(curve.T.tolist()))}
    draw_curves(panel, values, {label: style}, bounds=within(mean_interval, 0, 1), label=str)


def _finished(figure: Figure, panel: Axes) -> Figure:
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    return finish(figure)


def _checked_curve(method: str, curve: Sequence[Sequence[float]]) -> np.ndarray:
    if not len(curve) or len({len(row) for row in curve}) > 1:
        raise ValueError(f"the curve of {method} must have one row per seed, all of the same length")
    return np.asarray(curve, dtype=float)


def decision_regions(
    regions: Mapping[str, np.ndarray],
    points: np.ndarray,
    targets: np.ndarray,
    splits: Sequence[Sequence[int]],
    path: str | Path,
    *,
    extent: tuple[float, float, float, float],
    names: Sequence[str],
) -> Path:
    """Draws the predicted class over a plane, a row for each method and a column for each stage of training.

    The points are samples of the classes learned so far: those that a method still classifies correctly lie in a region
    of their own color.

    Args:
        regions: per method the predicted classes `(stages, height, width)`, the first row at the bottom.
        points: samples `(samples, 2)`.
        targets: their classes `(samples,)`.
        splits: classes of each split, in order of training; there is a stage after each split, or one after all.
        path: path of the PNG file.
        extent: left, right, bottom and top of the plane.
        names: names of the classes.

    Raises:
        ValueError: If there is no method, or a method has neither a stage for each split nor one for all.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     decision_regions(
        ...         {"none": np.zeros((2, 4, 4), dtype=int)}, np.zeros((2, 2)), np.array([0, 1]), [(0,), (1,)],
        ...         f"{folder}/regions.png", extent=(-1, 1, -1, 1), names=["a", "b"],
        ...     ).name
        'regions.png'
    """
    return write_png(path, _draw_regions, regions, points, targets, splits, extent, names)


def _draw_regions(regions, points, targets, splits, extent, names) -> Figure:
    if not regions:
        raise ValueError("there is nothing to draw: no method has regions")
    if len(names) > len(CLASS_COLORS):
        raise ValueError(f"decision regions must have at most {len(CLASS_COLORS)} classes, got {len(names)}")
    if wrong := [method for method, stages in regions.items() if len(stages) not in (1, len(splits))]:
        raise ValueError(
            f"the regions of {wrong} must have a stage for each of the {len(splits)} splits, or one for all"
        )
    columns = len(splits)
    figure = Figure(figsize=(2.2 * columns + 0.6, 2.2 * len(regions) + 0.6), layout="constrained")
    panels = figure.subplots(len(regions), columns, squeeze=False, sharex=True, sharey=True)
    colors = ListedColormap(CLASS_COLORS[: len(names)])
    for row, (method, stages) in zip(panels, regions.items(), strict=True):
        # A method that trains on all classes at once is in the last column only.
        first = columns - len(stages)
        row[first].set_ylabel(plot_name(learner_label(method), 24))
        row[first].yaxis.label.set_in_layout(first == 0)  # beside hidden panels there is room for it
        for panel in row[:first]:
            panel.set_visible(False)
        for column, (panel, stage) in enumerate(zip(row[first:], stages, strict=True), first):
            seen = [label for split in splits[: column + 1] for label in split]
            panel.imshow(
                stage, cmap=colors, vmin=-0.5, vmax=len(names) - 0.5, extent=extent, origin="lower", alpha=0.35,
                interpolation="nearest",
            )  # fmt: skip
            for label in seen:
                of_class = points[targets == label]
                panel.scatter(*of_class.T, s=3, color=CLASS_COLORS[label], linewidth=0)
                panel.plot([], [], "o", color=CLASS_COLORS[label], label=plot_name(names[label]))  # for the legend
            panel.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    for panel, split in zip(panels[0], splits, strict=True):
        learned = ", ".join(plot_name(names[label], 20) for label in split)
        panel.set_title(fill(f"after {learned}", 30), fontsize="small")
    return finish(figure)
