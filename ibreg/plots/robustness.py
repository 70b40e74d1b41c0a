"""Plots of robustness as PNG files: accuracy under attack and corruption, OOD scores, attacked images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ibreg.evaluation.intervals import accuracy_interval
from ibreg.evaluation.out_of_distribution import detection_metrics
from ibreg.plots.panels import Curves, check_finite, curves_of, draw_bars, finish, panel_grid, sides, write_png
from ibreg.plots.style import method_label, method_styles, plot_name

SCORES = {
    "maximum_softmax": "1 - maximum softmax probability",
    "energy": "energy (nats)",
    "rate": "rate of the code (nats)",
}
HISTOGRAM_BINS = 40


def accuracy_under_attack(points: Sequence[Mapping[str, Any]], path: str | Path, *, samples: int) -> Path:
    """Draws the accuracy over eps: a panel per attack, and per method the mean over seeds with its 95 % CI.

    The interval is Student's over several seeds, Wilson's over the samples of a single seed.

    Args:
        points: one per method, seed, attack and eps: `method`, `seed`, `attack` (its name), `eps`, `accuracy`; eps 0 is
            the accuracy without an attack.
        path: path of the PNG file.
        samples: number of samples that each accuracy was measured on.

    Raises:
        ValueError: If there is no point, an eps is not finite, or an accuracy is not a fraction.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "attack": "PGD", "eps": e, "accuracy": 1 - 2 * e} for e in (0, 0.1)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accuracy_under_attack(points, f"{folder}/attacks.png", samples=100).name
        'attacks.png'
    """
    return write_png(path, _draw_attacks, points, samples)


def _draw_attacks(points: Sequence[Mapping[str, Any]], samples: int) -> Figure:
    check_finite(points, "eps", "accuracy")
    curves = curves_of(points, panel="attack", x="eps", y="accuracy")
    styles = method_styles(point["method"] for point in points)
    figure, panels = panel_grid(len(curves), most=3, size=(4.5, 3.6), sharey=True)
    for panel in panels[:, 0]:
        panel.set(ylabel="accuracy (fraction)")
    for panel, (attack, methods) in zip(panels.flat, curves.items(), strict=False):
        _draw_accuracies(panel, methods, styles, samples)
        panel.set(title=attack, xlabel="eps (unit of the input)", ylim=(-0.02, 1.02))
    return finish(figure)


def accuracy_under_corruption(points: Sequence[Mapping[str, Any]], path: str | Path, *, samples: int) -> Path:
    """Draws the accuracy over the severity, mean over kinds, and the accuracy of each kind, mean over severities.

    Lines and points are means over seeds; lines have a 95 % CI, as in `accuracy_under_attack`.

    Args:
        points: one per method, seed, kind and severity: `method`, `seed`, `kind`, `severity` (1 to 5), `accuracy`;
            severity 0 with any kind is the accuracy on clean images. Every method and seed has the same kinds and
            severities.
        path: path of the PNG file.
        samples: number of samples that each accuracy was measured on.

    Raises:
        ValueError: If there is no point of a corruption, or an accuracy is not a fraction.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "kind": "jpeg", "severity": s, "accuracy": 1 - s / 9} for s in (1,)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     accuracy_under_corruption(points, f"{folder}/corruptions.png", samples=100).name
        'corruptions.png'
    """
    return write_png(path, _draw_corruptions, points, samples)


def _draw_corruptions(points: Sequence[Mapping[str, Any]], samples: int) -> Figure:
    corrupted = [point for point in points if point["severity"] != 0]
    check_finite(corrupted, "severity", "accuracy")
    check_finite(points, "severity", "accuracy")
    styles = method_styles(point["method"] for point in points)
    severities = [
        {"method": method, "severity": severity, "accuracy": float(np.mean(values))}
        for seed in curves_of(points, panel="seed", x="severity", y="accuracy").values()
        for method, curve in seed.items()
        for severity, values in curve.items()
    ]
    kinds = {
        method: {kind: float(np.mean(values)) for kind, values in curve.items()}
        for method, curve in curves_of(corrupted, x="kind", y="accuracy")[None].items()
    }
    # The most harmful kind first, at the bottom of the panel.
    names = sorted(
        {name for means in kinds.values() for name in means},
        key=lambda name: float(np.mean([means[name] for means in kinds.values() if name in means])),
    )
    figure = Figure(figsize=(10, max(4.2, 0.32 * len(names) + 1.4)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_accuracies(left, curves_of(severities, x="severity", y="accuracy")[None], styles, samples)
    left.set(xlabel="severity", ylabel="accuracy (fraction), mean over kinds")
    left.set_xticks(sorted({point["severity"] for point in points}))
    drawn = [method for method in styles if method in kinds]
    for method, side in zip(drawn, sides(len(drawn)), strict=True):
        # Methods lie a little apart, so that equal ones do not cover each other.
        line = styles[method] | {"linestyle": "", "markersize": 5, "label": plot_name(method_label(method))}
        right.plot([kinds[method].get(name, np.nan) for name in names], np.arange(len(names)) + 0.25 * side, **line)
    right.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    right.set(xlabel="accuracy (fraction), mean over severities")
    right.grid(alpha=0.3)
    return finish(figure)


def _draw_accuracies(panel: Axes, curves: Curves, styles: Mapping[str, Any], samples: int) -> None:
    draw_bars(panel, curves, styles, bounds=partial(accuracy_interval, samples=samples))


def ood_histograms(
    scores: Mapping[str, Mapping[str, tuple[Any, Any]]],
    path: str | Path,
    *,
    in_distribution: str,
    out_of_distribution: str,
) -> Path:
    """Draws, per method and score, its histogram over in-distribution and out-of-distribution (OOD) inputs.

    Args:
        scores: per method and score the values of in-distribution and of OOD inputs, each `(samples,)`, seeds pooled.
            The titles give the AUROC of these values. The axes hold 99 % of both.
        path: path of the PNG file.
        in_distribution: name of the data set of the training run.
        out_of_distribution: name of the OOD data set.

    Raises:
        ValueError: If there is nothing to draw, or scores are invalid (as in `detection_metrics`).

    Example:
        >>> import tempfile
        >>> scores = {"none": {"energy": (np.array([-9.0, -8.0]), np.array([-4.0, -5.0]))}}
        >>> names = {"in_distribution": "mnist", "out_of_distribution": "fashion_mnist"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ood_histograms(scores, f"{folder}/ood.png", **names).name
        'ood.png'
    """
    return write_png(path, _draw_histograms, scores, in_distribution, out_of_distribution)


def _draw_histograms(
    scores: Mapping[str, Mapping[str, tuple[Any, Any]]], in_distribution: str, out_of_distribution: str
) -> Figure:
    styles = method_styles(scores)
    names = list(dict.fromkeys(name for by_name in scores.values() for name in by_name))
    drawn = [(name, method) for name in names for method in styles if name in scores[method]]
    if not drawn:
        raise ValueError("there is nothing to draw: no method has scores")
    figure, panels = panel_grid(len(drawn), most=4, size=(3.4, 2.6))
    for panel, (name, method) in zip(panels.flat, drawn, strict=False):
        inside, outside = (np.asarray(values, dtype=float) for values in scores[method][name])
        edges = np.histogram_bin_edges(np.concatenate([_central(inside), _central(outside)]), bins=HISTOGRAM_BINS)
        filled = {"color": styles[method]["color"], "alpha": 0.6}
        panel.hist(inside, edges, weights=np.full(len(inside), 1 / len(inside)), **filled)
        line = {"color": "black", "histtype": "step", "linewidth": 1.2}
        panel.hist(outside, edges, weights=np.full(len(outside), 1 / len(outside)), **line)
        auroc = detection_metrics(inside, outside)["auroc"]
        panel.set_title(f"{plot_name(method_label(method), 24)}: AUROC {auroc:.3f}", fontsize="medium")
        panel.set(xlabel=SCORES.get(name, name))
    for row in panels:
        row[0].set(ylabel="fraction of inputs")
    title = (
        f"Scores of in-distribution inputs ({plot_name(in_distribution)}, filled) and of out-of-distribution (OOD) "
        f"inputs ({plot_name(out_of_distribution)}, line). AUROC: how well the score detects OOD inputs, 0.5 by chance."
    )
    figure.suptitle(fill(title, int(13 * figure.get_figwidth())), fontsize="medium")
    return finish(figure)


def _central(values: np.ndarray) -> np.ndarray:
    """Returns the values without the lowest and highest 0.5 %."""
    low, high = np.quantile(values, [0.005, 0.995])
    return values[(values >= low) & (values <= high)]


def attacked_images(
    images: Tensor,
    attacked: Mapping[str, Tensor],
    predicted: Mapping[str, Sequence[str]],
    truth: Sequence[str],
    path: str | Path,
    *,
    clamp: tuple[float, float] = (0.0, 1.0),
) -> Path:
    """Draws images, below each its attacked versions, and above each the predicted class.

    Below the attacked images are their changes: blue darkens, red brightens.

    Args:
        images: a few of them `(samples, channels, height, width)`, with 1 or 3 channels.
        attacked: per attack the attacked images, in the same order.
        predicted: per attack, and of `clean`, the names of the predicted classes.
        truth: names of the true classes.
        path: path of the PNG file.
        clamp: values of black and white.

    Raises:
        ValueError: If there are no images, or the numbers of images and names differ.

    Example:
        >>> import tempfile, torch
        >>> images = torch.rand(2, 1, 8, 8)
        >>> predicted = {"clean": ["0", "1"], "PGD": ["0", "7"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     attacked_images(images, {"PGD": images}, predicted, ["0", "1"], f"{folder}/images.png").name
        'images.png'
    """
    return write_png(path, _draw_images, images, attacked, predicted, truth, clamp)


def _draw_images(images, attacked, predicted, truth, clamp) -> Figure:
    versions = {"clean": images, **attacked}
    sizes = {len(truth), *map(len, versions.values()), *(len(predicted.get(name, ())) for name in versions)}
    if sizes != {len(images)} or not len(images) or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "images must be (samples, 1 or 3, height, width), with as many attacked images and names, got "
            f"{tuple(images.shape)} and names or attacked images of {sorted(sizes)} samples"
        )
    rows = 1 + 2 * len(attacked)
    figure = Figure(figsize=(1.15 * len(images) + 0.9, 1.25 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, len(images), squeeze=False)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    for number, (name, version) in enumerate(versions.items()):
        row = panels[max(2 * number - 1, 0)]
        row[0].set_ylabel(fill(plot_name(name), 14, break_long_words=False))  # about the height of an image
        for panel, image, prediction, label in zip(row, version, predicted[name], truth, strict=True):
            shade = ((image - clamp[0]) / (clamp[1] - clamp[0])).clamp(0, 1)
            _show(panel, shade, cmap="gray", vmin=0, vmax=1)
            color = "black" if prediction == label else "#D55E00"
            panel.set_title(plot_name(prediction, 16), fontsize="small", color=color)
        if number:
            changes = (version - images).mean(1, keepdim=True)
            largest = float(changes.abs().max()) or 1.0
            panels[2 * number, 0].set_ylabel(f"change,\n±{largest:.2g}", fontsize="small")
            for panel, change in zip(panels[2 * number], changes, strict=True):
                _show(panel, change, cmap="RdBu_r", vmin=-largest, vmax=largest)
    title = "above each image its predicted class (clean: by the first method), orange if incorrect"
    figure.suptitle(fill(title, int(13 * figure.get_figwidth())), fontsize="medium")
    return figure


def _show(panel: Axes, image: Tensor, **options: Any) -> None:
    panel.imshow(image.detach().cpu().float().permute(1, 2, 0).numpy().squeeze(), **options)
