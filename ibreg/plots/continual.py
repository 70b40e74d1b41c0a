"""Plots of continual learning as PNG files: accuracy over splits, use of keys, decision regions in the plane.

Methods, colors and lines are those of `ibreg.plots.classification`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ibreg.evaluation.intervals import mean_interval
from ibreg.plots.classification import finish, method_styles, write_png

# Okabe and Ito's, with a gray and a brown: ten classes that color-blind readers tell apart, as far as ten can be.
CLASS_COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000", "#999999", "#7B4B2A",
)  # fmt: skip


CONTROL_LABELS = {"none": "linear probe", "null": "linear probe, other init"}


def learner_label(method: str) -> str:
    """Names a method for a reader: without a bottleneck it is a linear probe.

    Example:
        >>> learner_label("none"), learner_label("key_value")
        ('linear probe', 'key_value')
    """
    return CONTROL_LABELS.get(method, method)


def accuracy_over_splits(
    curves: Mapping[str, Sequence[Sequence[float]]], path: str | Path, *, chance: float | None = None
) -> Path:
    """Draws, per method, the accuracy over all classes before the first split and after each, with its interval.

    The band is the 95 % interval of the mean over seeds by Student's t. A method with two stages, before all and after
    all at once, is a horizontal line at its second.

    Args:
        curves: Of each method the accuracies of every seed, (seeds, stages), fractions.
        path: Where the PNG goes.
        chance: The accuracy of guessing, drawn where it is given.

    Raises:
        ValueError: If there is no method, a method has no seed, or seeds have not equally many stages.

    Example:
        >>> import tempfile
        >>> curves = {"none": [[0.1, 0.5, 0.4], [0.1, 0.5, 0.5]], "joint": [[0.1, 0.9], [0.2, 0.8]]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accuracy_over_splits(curves, f"{folder}/accuracy_over_splits.png").name
        'accuracy_over_splits.png'
    """
    return write_png(_draw_accuracy(curves, chance), path)


def _draw_accuracy(curves: Mapping[str, Sequence[Sequence[float]]], chance: float | None) -> Figure:
    if not curves:
        raise ValueError("there is nothing to draw: no method has a curve")
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    panel = figure.subplots()
    values = {method: _checked_curve(method, curve) for method, curve in curves.items()}
    last = max(curve.shape[1] for curve in values.values()) - 1
    for method, style in method_styles(values).items():
        curve = values[method]
        at_once = curve.shape[1] == 2 < last + 1
        if at_once:
            curve = np.repeat(curve[:, 1:], last + 1, axis=1)
        mean, low, high = mean_interval(curve)
        splits = np.arange(last + 1)
        line = {"color": style["color"], "linestyle": "--" if at_once else style["linestyle"]}
        label = f"{learner_label(method)} (all classes at once)" if at_once else learner_label(method)
        panel.plot(splits, mean, marker="" if at_once else style["marker"], markersize=4, label=label, **line)
        panel.fill_between(splits, low, high, color=style["color"], alpha=0.15, linewidth=0)
    if chance is not None:
        panel.axhline(chance, linestyle=":", color="black", linewidth=1, label="chance")
    panel.set(xlabel="splits learnt", ylabel="test accuracy over all classes (mean, 95 %)", ylim=(0, 1.02))
    return _finished(figure, panel)


def key_usage(shares: Mapping[str, Sequence[Sequence[float]]], path: str | Path) -> Path:
    """Draws, per method that has keys, the share of its pairs that were ever hit, after each split.

    Args:
        shares: Of each method the shares of every seed, (seeds, stages), fractions, the first before all splits. Methods
            without keys have none; they are there so that a method has one color in all plots.
        path: Where the PNG goes.

    Raises:
        ValueError: If no method has keys, or seeds have not equally many stages.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     key_usage({"key_value": [[0.0, 0.4, 0.7], [0.0, 0.5, 0.6]]}, f"{folder}/key_usage.png").name
        'key_usage.png'
    """
    return write_png(_draw_usage(shares), path)


def _draw_usage(shares: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    if not any(shares.values()):
        raise ValueError("there is nothing to draw: no method has keys")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = figure.subplots()
    values = {method: _checked_curve(method, curve) for method, curve in shares.items() if curve}
    styles = method_styles(shares)
    for method, curve in values.items():
        style = styles[method]
        mean, low, high = mean_interval(curve)
        splits = np.arange(curve.shape[1])
        panel.plot(
            splits, mean, style["linestyle"], color=style["color"], marker=style["marker"], label=learner_label(method)
        )
        panel.fill_between(splits, low, high, color=style["color"], alpha=0.15, linewidth=0)
    panel.set(xlabel="splits learnt", ylabel="key-value pairs ever hit in training (mean, 95 %)", ylim=(0, 1.02))
    return _finished(figure, panel)


def _finished(figure: Figure, panel: Axes) -> Figure:
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.grid(alpha=0.3)
    return finish(figure)


def _checked_curve(method: str, curve: Sequence[Sequence[float]]) -> np.ndarray:
    if not len(curve) or len({len(row) for row in curve}) > 1:
        raise ValueError(f"the curve of {method} needs one row per seed, all of them equally long")
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
    """Draws which class a method answers at each place of a plane, a column for each stage and a row for each method.

    The points on it are those of the classes learnt so far: what a method still knows lies in its own color.

    Args:
        regions: Of each method the predicted classes, (stages, height, width), the first row at the bottom.
        points: Samples, (samples, 2).
        targets: Their classes, (samples,).
        splits: The classes of each split, in their order; a stage is after each split, or one after all.
        path: Where the PNG goes.
        extent: Left, right, bottom and top of the plane.
        names: One name per class.

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
    return write_png(_draw_regions(regions, points, targets, splits, extent, names), path)


def _draw_regions(regions, points, targets, splits, extent, names) -> Figure:
    if not regions:
        raise ValueError("there is nothing to draw: no method has regions")
    if len(names) > len(CLASS_COLORS):
        raise ValueError(f"decision regions have {len(CLASS_COLORS)} colors, but there are {len(names)} classes")
    if odd := [method for method, stages in regions.items() if len(stages) not in (1, len(splits))]:
        raise ValueError(f"the regions of {odd} need a stage for each of the {len(splits)} splits, or one for all")
    columns = len(splits)
    figure = Figure(figsize=(2.2 * columns + 0.6, 2.2 * len(regions) + 0.6), layout="constrained")
    panels = figure.subplots(len(regions), columns, squeeze=False, sharex=True, sharey=True)
    colors = ListedColormap(CLASS_COLORS[: len(names)])
    for row, (method, stages) in zip(panels, regions.items(), strict=True):
        # What learns all classes at once has the last column alone.
        first = columns - len(stages)
        row[first].set_ylabel(learner_label(method))
        for panel in row[:first]:
            panel.set_visible(False)
        for place, (panel, stage) in enumerate(zip(row[first:], stages, strict=True), first):
            seen = [label for split in splits[: place + 1] for label in split]
            panel.imshow(
                stage, cmap=colors, vmin=-0.5, vmax=len(names) - 0.5, extent=extent, origin="lower", alpha=0.35,
                interpolation="nearest",
            )  # fmt: skip
            for label in seen:
                of_class = points[targets == label]
                panel.scatter(*of_class.T, s=3, color=CLASS_COLORS[label], linewidth=0, label=names[label])
            panel.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    for place, panel in enumerate(panels[0]):
        panel.set_title(f"after {', '.join(names[label] for label in splits[place])}", fontsize="small")
    return finish(figure)
