"""Plots of a robustness run as PNG files: accuracy under attack and corruption, outlier scores, attacked images.

Methods, colors and lines are those of `ibreg.plots.classification`, which also has the reliability diagram.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ibreg.evaluation.intervals import accuracy_interval
from ibreg.evaluation.out_of_distribution import detection_metrics
from ibreg.plots.classification import finish, method_label, method_styles, panel_grid, write_png

SCORES = {
    "maximum_softmax": "1 - maximum softmax",
    "energy": "energy (nats)",
    "rate": "rate of the code (nats)",
}
HISTOGRAM_BINS = 40


def accuracy_under_attack(points: Sequence[Mapping[str, Any]], path: str | Path, *, samples: int) -> Path:
    """Draws the accuracy over eps, per attack a panel and per method the mean over seeds with its 95 % interval.

    Args:
        points: One per method, seed, attack and eps: ``method``, ``seed``, ``attack`` (its name), ``eps``, ``accuracy``. At
            eps 0 stands the accuracy without an attack.
        path: Where the PNG goes.
        samples: Samples that each accuracy was measured on.

    Raises:
        ValueError: If there is no point, an eps is not finite, or an accuracy is no fraction.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "attack": "PGD", "eps": e, "accuracy": 1 - 2 * e} for e in (0, 0.1)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accuracy_under_attack(points, f"{folder}/attacks.png", samples=100).name
        'attacks.png'
    """
    return write_png(_draw_attacks(points, samples), path)


def _draw_attacks(points: Sequence[Mapping[str, Any]], samples: int) -> Figure:
    curves = _accuracies(points, "attack", "eps")
    styles = method_styles(point["method"] for point in points)
    height, width = panel_grid(len(curves), most=3)
    figure = Figure(figsize=(4.5 * width, 3.6 * height + 0.5), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False, sharey=True)
    for panel in panels[:, 0]:
        panel.set(ylabel="accuracy (fraction)")
    for panel, (attack, methods) in zip(panels.flat, curves.items(), strict=False):
        _draw_curves(panel, methods, styles, samples)
        panel.set(title=attack, xlabel="eps (unit of the input)", ylim=(-0.02, 1.02))
    return finish(figure)


def accuracy_under_corruption(points: Sequence[Mapping[str, Any]], path: str | Path, *, samples: int) -> Path:
    """Draws the accuracy over the severity, mean over kinds, beside that of each kind, mean over severities.

    Lines and points are means over seeds, lines with their 95 % interval.

    Args:
        points: One per method, seed, kind and severity: ``method``, ``seed``, ``kind``, ``severity`` (1 to 5), ``accuracy``;
            with severity 0 and any kind the accuracy on clean images. Every method and seed has the same kinds.
        path: Where the PNG goes.
        samples: Samples that each accuracy was measured on.

    Raises:
        ValueError: If there is no point of a corruption, or an accuracy is no fraction.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "kind": "jpeg", "severity": s, "accuracy": 1 - s / 9} for s in (1, 2)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accuracy_under_corruption(points, f"{folder}/corruptions.png", samples=100).name
        'corruptions.png'
    """
    return write_png(_draw_corruptions(points, samples), path)


def _draw_corruptions(points: Sequence[Mapping[str, Any]], samples: int) -> Figure:
    corrupted = [point for point in points if point["severity"] != 0]
    styles = method_styles(point["method"] for point in points)
    kinds = _accuracies(_mean_over(corrupted, "kind", "severity"), None, "kind")[None]
    severities = _accuracies(_mean_over(points, "severity", "kind"), None, "severity")[None]
    # From the kind that does least harm to the one that does most.
    names = sorted({kind for method in kinds.values() for kind in method}, key=lambda kind: _mean_of(kinds, kind))
    figure = Figure(figsize=(10, max(4.2, 0.32 * len(names) + 1.4)), layout="constrained")
    by_severity, by_kind = figure.subplots(1, 2)
    _draw_curves(by_severity, severities, styles, samples)
    by_severity.set(xlabel="severity", ylabel="accuracy (fraction), mean over kinds")
    by_severity.set_xticks(sorted({point["severity"] for point in points}))
    for place, method in enumerate(method for method in styles if method in kinds):
        means = [
            accuracy_interval(kinds[method][kind], samples)[0] if kind in kinds[method] else math.nan for kind in names
        ]
        # Methods stand a little apart, so that equal ones do not cover each other.
        shift = 0.5 * (place / max(len(kinds) - 1, 1) - 0.5)
        style = styles[method] | {"linestyle": ""}
        by_kind.plot(means, np.arange(len(names)) + shift, **style, markersize=5, label=method_label(method))
    by_kind.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    by_kind.set(xlabel="accuracy (fraction), mean over severities")
    by_kind.grid(alpha=0.3)
    return finish(figure)


def outlier_histograms(
    scores: Mapping[str, Mapping[str, tuple[Any, Any]]], path: str | Path, *, inside: str, outside: str
) -> Path:
    """Draws, per method and score, how it is distributed over the training's kind of input and over another kind.

    Args:
        scores: Of each method and score the values inside and outside, each of shape (samples,), seeds pooled; the share
            of pairs in the right order, in the titles, is of these. The axes hold 99 % of both.
        path: Where the PNG goes.
        inside: Name of the training's data.
        outside: Name of the other data.

    Raises:
        ValueError: If there is nothing to draw, or scores are wrong (as in ``detection_metrics``).

    Example:
        >>> import tempfile
        >>> scores = {"none": {"energy": (np.array([-9.0, -8.0]), np.array([-4.0, -5.0]))}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     outlier_histograms(scores, f"{folder}/outliers.png", inside="mnist", outside="fashion_mnist").name
        'outliers.png'
    """
    return write_png(_draw_outliers(scores, inside, outside), path)


def _draw_outliers(scores: Mapping[str, Mapping[str, tuple[Any, Any]]], inside: str, outside: str) -> Figure:
    names = list(dict.fromkeys(name for each in scores.values() for name in each))
    if not names:
        raise ValueError("there is nothing to draw: no method has scores")
    styles = method_styles(scores)
    figure = Figure(figsize=(3.4 * len(names) + 0.4, 2.5 * len(styles) + 0.6), layout="constrained")
    panels = figure.subplots(len(styles), len(names), squeeze=False)
    for row, method in zip(panels, styles, strict=True):
        for panel, name in zip(row, names, strict=True):
            panel.set(xlabel=SCORES.get(name, name))
            if name not in scores[method]:
                continue
            values = [np.asarray(part, dtype=float) for part in scores[method][name]]
            auroc = detection_metrics(*values)["auroc"]
            edges = np.histogram_bin_edges(
                np.concatenate([part[_within(part)] for part in values]), bins=HISTOGRAM_BINS
            )
            weights = [np.full(len(part), 1 / len(part)) for part in values]
            panel.hist(values[0], edges, weights=weights[0], color=styles[method]["color"], alpha=0.6)
            panel.hist(values[1], edges, weights=weights[1], color="black", histtype="step", linewidth=1.2)
            panel.set_title(f"{method_label(method)}: AUROC {auroc:.3f}", fontsize="medium")
        row[0].set(ylabel="share of inputs")
    figure.suptitle(f"filled: {inside}, line: {outside}", fontsize="medium")
    for panel in panels.flat:
        panel.set_visible(panel.has_data())
    return figure


def attacked_images(
    images: Tensor,
    attacked: Mapping[str, Tensor],
    said: Mapping[str, Sequence[str]],
    truth: Sequence[str],
    path: str | Path,
    *,
    clamp: tuple[float, float] = (0.0, 1.0),
) -> Path:
    """Draws some images, below each what attacks made of it, and what the classifier says of them.

    Between the attacked images stand the changes: blue darkens, red brightens.

    Args:
        images: `(samples, channels, height, width)`, a few of them, of 1 or 3 channels.
        attacked: Of each attack the images that it made, in the same order.
        said: Of each attack, and of ``clean``, the names of the predicted classes.
        truth: Names of the right classes.
        path: Where the PNG goes.
        clamp: The values of black and white.

    Raises:
        ValueError: If there are no images, or numbers of images and names do not fit.

    Example:
        >>> import tempfile, torch
        >>> images = torch.rand(2, 1, 8, 8)
        >>> said = {"clean": ["0", "1"], "PGD": ["0", "7"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     attacked_images(images, {"PGD": images}, said, ["0", "1"], f"{folder}/images.png").name
        'images.png'
    """
    return write_png(_draw_images(images, attacked, said, truth, clamp), path)


def _draw_images(images, attacked, said, truth, clamp) -> Figure:
    shown = {"clean": images, **attacked}
    sizes = {len(truth), *map(len, shown.values()), *(len(said.get(name, ())) for name in shown)}
    if sizes != {len(images)} or not len(images) or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are (samples, 1 or 3, height, width), as many as names, got {tuple(images.shape)} and names or "
            f"attacked images of {sorted(sizes)} samples"
        )
    rows = 1 + 2 * len(attacked)
    figure = Figure(figsize=(1.15 * len(images) + 0.9, 1.25 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, len(images), squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    for number, (name, versions) in enumerate(shown.items()):
        line = panels[max(2 * number - 1, 0)]
        line[0].set_ylabel(fill(name, 14, break_long_words=False))  # about as wide as an image is high
        for panel, image, decision, right in zip(line, versions, said[name], truth, strict=True):
            shade = ((image - clamp[0]) / (clamp[1] - clamp[0])).clamp(0, 1)
            _show(panel, shade, cmap="gray", vmin=0, vmax=1)
            panel.set_title(decision, fontsize="small", color="black" if decision == right else "#D55E00")
        if number:
            changes = (versions - images).mean(1, keepdim=True)
            largest = float(changes.abs().max()) or 1.0
            panels[2 * number, 0].set_ylabel(f"change,\n±{largest:.2g}", fontsize="small")
            for panel, change in zip(panels[2 * number], changes, strict=True):
                _show(panel, change, cmap="RdBu_r", vmin=-largest, vmax=largest)
    said_above = "above each image what the classifier says (above clean ones the first), orange where it is wrong"
    figure.suptitle(said_above, fontsize="medium")
    return figure


def _show(panel: Axes, image: Tensor, **options) -> None:
    panel.imshow(image.detach().cpu().float().permute(1, 2, 0).numpy().squeeze(), **options)


def _accuracies(points: Sequence[Mapping[str, Any]], panel: str | None, across: str):
    """Accuracies over the seeds, as ``curves[panel][method][across]``."""
    if not points:
        raise ValueError("there is nothing to draw: no points")
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for point in points:
        numbers = [value for value in (point[across], point["accuracy"]) if not isinstance(value, str)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"a point has a number that is not finite: {dict(point)}")
        curves[panel and point[panel]][point["method"]][point[across]].append(point["accuracy"])
    return curves


def _draw_curves(panel: Axes, methods: Mapping, styles: Mapping, samples: int) -> None:
    everywhere = [value for method in methods.values() for value in method]
    drawn = [method for method in styles if method in methods]
    for place, method in enumerate(drawn):
        across = np.array(sorted(methods[method]))
        mean, low, high = np.array([accuracy_interval(methods[method][value], samples) for value in across]).T
        # Methods stand a little apart, so that their intervals do not cover each other.
        shift = 0.006 * (max(everywhere) - min(everywhere)) * (2 * place - len(drawn) + 1)
        bars = {"elinewidth": 0.8, "capsize": 2, "linewidth": 1.2, "markersize": 4}
        panel.errorbar(
            across + shift, mean, [mean - low, high - mean], **styles[method], **bars, label=method_label(method)
        )
    panel.grid(alpha=0.3)


def _mean_over(points: Sequence[Mapping[str, Any]], kept: str, averaged: str) -> list[dict[str, Any]]:
    """One point per method, seed and value of one key: the mean over those of another."""
    found = defaultdict(list)
    for point in points:
        found[point["method"], point["seed"], point[kept]].append(point["accuracy"])
    return [
        {"method": method, "seed": seed, kept: value, "accuracy": float(np.mean(accuracies))}
        for (method, seed, value), accuracies in found.items()
    ]


def _mean_of(kinds: Mapping, kind: str) -> float:
    return float(np.mean([np.mean(method[kind]) for method in kinds.values() if kind in method]))


def _within(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, [0.005, 0.995])
    return (values >= low) & (values <= high)
