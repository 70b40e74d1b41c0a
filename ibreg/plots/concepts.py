"""Plots of a concept run as PNG files: interventions, leakage, effects of the head, and concepts of a few samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ibreg.evaluation.concepts.curves import InterventionCurve
from ibreg.evaluation.intervals import mean_interval
from ibreg.plots.panels import draw_curves, finish, panel_grid, write_png
from ibreg.plots.style import method_label, method_styles

# Titles of the measures of leakage; the control of each has the key `<name>_control`.
MEASURES = {
    "truth_accuracy": "accuracy, concepts set to the truth",
    "ablated_accuracy": "accuracy, concepts ablated",
    "sign": "interventions that help",
    "ctl": "CTL: codes predict the task",
    "icl": "ICL: codes predict each other",
    "ois": "OIS: codes predict other concepts",
    "nis": "NIS: predicted outside of the niche",
    "completeness": "completeness of the concepts",
}
MOST_NAMES = 30  # names of more concepts or classes would be illegible


def intervention_plot(curves: Mapping[str, Mapping[str, Sequence[InterventionCurve]]], path: str | Path) -> Path:
    """Draws accuracy over interventions: a panel per policy, per method the mean and its 95 % CI over seeds.

    With one seed the interval is over the orders of a random policy. Both are Student's t.

    Args:
        curves: per panel and method the curves of the seeds, all of the same length.
        path: path of the PNG file.

    Raises:
        ValueError: If there is no curve.

    Example:
        >>> import tempfile
        >>> curve = InterventionCurve(np.array([[0.5, 0.8], [0.5, 0.9]]), np.array([0.0, 1.0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     intervention_plot({"random": {"concept": [curve]}}, f"{folder}/interventions.png").name
        'interventions.png'
    """
    if not curves:
        raise ValueError("there is nothing to draw: no curve of interventions")
    styles = method_styles(method for methods in curves.values() for method in methods)
    figure, panels = panel_grid(len(curves), most=3, size=(4, 3.2), sharey=True)
    for panel, (title, methods) in zip(panels.flat, curves.items(), strict=False):
        accuracies = {method: dict(enumerate(_accuracies(seeds).T.tolist())) for method, seeds in methods.items()}
        many = max(map(len, accuracies.values())) > 12
        lines = {method: style | ({"marker": ""} if many else {}) for method, style in styles.items()}
        draw_curves(panel, accuracies, lines, bounds=mean_interval)
        panel.set(title=title, xlabel="interventions")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        panel.tick_params(labelleft=True)
    for panel in panels[:, 0]:
        panel.set(ylabel="accuracy (fraction)")
    return write_png(finish(figure), path)


def _accuracies(seeds: Sequence[InterventionCurve]) -> np.ndarray:
    """Returns accuracies `(seeds or orders, interventions + 1)` whose mean has the interval that is drawn.

    Each seed counts once, by its mean over orders: orders of one training run are less independent than training runs.
    """
    return np.stack([curve.mean for curve in seeds]) if len(seeds) > 1 else seeds[0].accuracy


def leakage_plot(measured: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> Path:
    """Draws each measure of leakage and reliance: mean and standard deviation over seeds, and the mean of its control.

    Args:
        measured: per method the measures of the seeds, named as in `MEASURES`; measures that no method has are left
            out.
        path: path of the PNG file.

    Raises:
        ValueError: If no method has a measure.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     leakage_plot({"concept": [{"ctl": 0.2, "ctl_control": 0.0}]}, f"{folder}/leakage.png").name
        'leakage.png'
    """
    shown = [name for name in MEASURES if any(name in seeds[0] for seeds in measured.values() if seeds)]
    if not shown:
        raise ValueError("there is nothing to draw: no method has a measure of leakage")
    styles = method_styles(measured)
    figure, panels = panel_grid(len(shown), most=4, size=(3.4, 2.8))
    for panel, name in zip(panels.flat, shown, strict=False):
        for position, (method, style) in enumerate(styles.items()):
            values = np.array([seed[name] for seed in measured[method] if name in seed])
            controls = np.array([seed[f"{name}_control"] for seed in measured[method] if f"{name}_control" in seed])
            if not len(values):
                continue
            spread = values.std(ddof=1) if len(values) > 1 else 0
            panel.bar(position, values.mean(), color=style["color"], yerr=spread, capsize=3, label=method_label(method))
            if len(controls):
                diamond = {"marker": "D", "color": "white", "markeredgecolor": "black", "linestyle": ""}
                panel.plot(position, controls.mean(), **diamond, label="control of the measure")
        panel.set_title(fill(MEASURES[name], 30), fontsize="medium")
        low, high = panel.get_ylim()
        panel.set(xticks=[], ylim=(min(0, low), max(1.05, high)))
        panel.grid(axis="y", alpha=0.3)
    return write_png(finish(figure), path)


def head_plot(
    effects: Mapping[str, Tensor], path: str | Path, *, concepts: Sequence[str], classes: Sequence[str]
) -> Path:
    """Draws the effect of each concept on each class: of a linear head the weights, minus their mean over classes.

    Args:
        effects: per method `(classes, concepts)`, as measured by `ibreg.evaluation.concepts.reliance.head_effects`.
        path: path of the PNG file.
        concepts: names of the concepts.
        classes: names of the classes.

    Raises:
        ValueError: If there is no method.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     head_plot({"concept": torch.eye(2)}, f"{folder}/head.png", concepts=["a", "b"], classes=["0", "1"]).name
        'head.png'
    """
    if not effects:
        raise ValueError("there is nothing to draw: no method has a head")
    width, height = (max(2.5, 0.28 * len(names)) for names in (concepts, classes))
    figure, panels = panel_grid(len(effects), most=3, size=(width + 2.2, height + 1.8))
    for panel, (method, effect) in zip(panels.flat, effects.items(), strict=False):
        # A term that all classes share changes no decision.
        values = (effect - effect.mean(0)).detach().cpu().numpy()
        largest = max(float(abs(values).max()), 1e-12)
        image = panel.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        figure.colorbar(image, ax=panel, shrink=0.8)
        panel.set(title=method_label(method), xlabel="concept", ylabel="class")
        _names(panel.set_xticks, concepts, rotation=90)
        _names(panel.set_yticks, classes)
    for panel in list(panels.flat)[len(effects) :]:
        panel.set_visible(False)
    title = "change of a class's logit relative to the mean over classes, as a concept is set from 0 to 1"
    figure.suptitle(fill(title, int(12 * figure.get_figwidth())), fontsize="medium")
    return write_png(figure, path)


@dataclass(frozen=True)
class ConceptSample:
    """One sample with its concepts.

    Attributes:
        image: `(channels, height, width)` or, of tabular data, `(features,)`.
        probabilities: `(concepts,)`, predicted.
        labels: `(concepts,)`, true; NaN where unknown.
        contributions: `(concepts,)`, decrease of the predicted class's logit as a concept is set to its mean.
        predicted: name of the predicted class.
        true: name of the true class.
    """

    image: Tensor
    probabilities: Tensor
    labels: Tensor
    contributions: Tensor
    predicted: str
    true: str


def sample_plot(samples: Sequence[ConceptSample], path: str | Path, *, concepts: Sequence[str]) -> Path:
    """Draws a few samples: the input, its predicted and true concepts, and the contribution of each concept.

    Args:
        samples: one per row.
        path: path of the PNG file.
        concepts: names of the concepts.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("there is nothing to draw: no sample")
    figure = Figure(figsize=(11, max(2.2, 0.2 * len(concepts)) * len(samples) + 0.8), layout="constrained")
    panels = figure.subplots(len(samples), 3, squeeze=False, width_ratios=[1, 1.6, 1.6])
    positions = np.arange(len(concepts))
    for (image, prediction, contribution), sample in zip(panels, samples, strict=True):
        _draw_input(image, sample.image)
        image.set_title(f"predicted {sample.predicted}\ntrue {sample.true}", fontsize="medium")
        prediction.barh(positions, sample.probabilities.numpy(), color="#56B4E9", label="predicted")
        prediction.plot(sample.labels.numpy(), positions, "o", color="black", markersize=4, label="true")
        contribution.barh(positions, sample.contributions.numpy(), color="#E69F00", label="contribution")
        low, high = prediction.get_xlim()
        prediction.set_xlim(min(low, 0), max(high, 1.05))
        contribution.axvline(0, color="black", linewidth=0.8)
        _names(prediction.set_yticks, concepts)
        contribution.set_yticks(positions, [""] * len(positions))
        for panel in (prediction, contribution):
            panel.invert_yaxis()
            panel.grid(axis="x", alpha=0.3)
    panels[-1, 1].set(xlabel="probability")
    panels[-1, 2].set(xlabel="logit minus logit with the concept at its mean")
    return write_png(finish(figure), path)


def _draw_input(panel: Axes, values: Tensor) -> None:
    if values.dim() == 3 and values.shape[0] in (1, 3):
        low, high = values.min(), values.max()
        pixels = ((values - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
        panel.imshow(pixels.squeeze(), cmap="gray")
        panel.set_axis_off()
    else:
        flat = values.flatten().numpy()
        panel.bar(np.arange(len(flat)), flat, color="#999999")
        panel.set(xlabel="input")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _names(set_ticks, names: Sequence[str], **style) -> None:
    if len(names) <= MOST_NAMES:
        set_ticks(np.arange(len(names)), names, **style)
