"""Plots of a concept run as PNG files: corrections, leakage, what the head does, and concepts of a few samples.

Methods, colors and lines are those of `ibreg.plots.classification`.
"""

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
from ibreg.plots.classification import finish, method_label, method_styles, panel_grid, write_png

# What leakage is drawn of, under which title; each has a control under `<name>_control`.
MEASURES = {
    "truth_accuracy": "accuracy, concepts set to the truth",
    "ablated_accuracy": "accuracy, concepts wiped out",
    "sign": "corrections that help",
    "ctl": "CTL: codes tell the task",
    "icl": "ICL: codes tell each other",
    "ois": "OIS: codes tell other concepts",
    "nis": "NIS: told outside of the niche",
    "completeness": "completeness of the concepts",
}
MOST_NAMES = 30  # with more concepts or classes their names would not be read


def intervention_plot(curves: Mapping[str, Mapping[str, Sequence[InterventionCurve]]], path: str | Path) -> Path:
    """Draws accuracy over corrected concepts: a panel per policy, the mean and its 95 % interval over seeds.

    With one seed the interval is that over the orders of a policy with randomness.

    Args:
        curves: per panel and method the curves of the seeds, all of one length.
        path: Where the PNG goes.

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
    height, width = panel_grid(len(curves), most=3)
    figure = Figure(figsize=(4 * width, 3.2 * height + 0.6), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False, sharey=True)
    for panel, (title, methods) in zip(panels.flat, curves.items(), strict=False):
        for method, of_seeds in methods.items():
            # A mean over orders counts once: orders of one training are not as independent as trainings.
            means = [each.mean for each in of_seeds] if len(of_seeds) > 1 else of_seeds[0].accuracy
            pooled = InterventionCurve(np.stack(list(means)), of_seeds[0].spent)
            counts = np.arange(len(pooled.spent))
            style = styles[method] | {"marker": styles[method]["marker"] if len(counts) <= 12 else ""}
            panel.plot(counts, pooled.mean, **style, label=method_label(method))
            low, high = pooled.mean - pooled.half_width, pooled.mean + pooled.half_width
            panel.fill_between(counts, low, high, color=style["color"], alpha=0.2, linewidth=0)
        panel.set(title=title, xlabel="corrections")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        panel.tick_params(labelleft=True)
        panel.grid(alpha=0.3)
    for panel in panels[:, 0]:
        panel.set(ylabel="accuracy (fraction)")
    return write_png(finish(figure), path)


def leakage_plot(measured: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> Path:
    """Draws each measure of leakage and reliance: the mean over seeds, its standard deviation, and the control's mean.

    Args:
        measured: per method the measures of the seeds, named as in `MEASURES`; what none has is left out.
        path: Where the PNG goes.

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
    height, width = panel_grid(len(shown), most=4)
    figure = Figure(figsize=(3.4 * width, 2.8 * height + 0.6), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False)
    for panel, name in zip(panels.flat, shown, strict=False):
        for place, (method, style) in enumerate(styles.items()):
            values = np.array([seed[name] for seed in measured[method] if name in seed])
            controls = np.array([seed[f"{name}_control"] for seed in measured[method] if f"{name}_control" in seed])
            if not len(values):
                continue
            spread = values.std(ddof=1) if len(values) > 1 else 0
            panel.bar(place, values.mean(), color=style["color"], yerr=spread, capsize=3, label=method_label(method))
            if len(controls):
                panel.plot(place, controls.mean(), "D", color="white", markeredgecolor="black", label="control")
        panel.set_title(fill(MEASURES[name], 30), fontsize="medium")
        low, high = panel.get_ylim()
        panel.set(xticks=[], ylim=(min(0, low), max(1.05, high)))
        panel.grid(axis="y", alpha=0.3)
    return write_png(finish(figure), path)


def head_plot(
    effects: Mapping[str, Tensor], path: str | Path, *, concepts: Sequence[str], classes: Sequence[str]
) -> Path:
    """Draws what setting each concept does to each class: of a linear head its weights, without what classes share.

    Args:
        effects: per method `(classes, concepts)`, as `concept_reliance.head_effects` measures them.
        path: Where the PNG goes.
        concepts: their names.
        classes: their names.

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
    height, width = panel_grid(len(effects), most=3)
    across, down = (max(2.5, 0.28 * len(names)) for names in (concepts, classes))
    figure = Figure(figsize=((across + 2.2) * width, (down + 1.8) * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False)
    for panel, (method, effect) in zip(panels.flat, effects.items(), strict=False):
        # What all classes have in common changes no decision.
        values = (effect - effect.mean(0)).detach().cpu().numpy()
        largest = max(float(abs(values).max()), 1e-12)
        image = panel.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        figure.colorbar(image, ax=panel, shrink=0.8)
        panel.set(title=method_label(method), xlabel="concept", ylabel="class")
        _names(panel.set_xticks, concepts, rotation=90)
        _names(panel.set_yticks, classes)
    for panel in list(panels.flat)[len(effects) :]:
        panel.set_visible(False)
    title = "change of the logit of a class, against the mean of all classes, as a concept is set from 0 to 1"
    figure.suptitle(fill(title, int(12 * figure.get_figwidth())), fontsize="medium")
    return write_png(figure, path)


@dataclass(frozen=True)
class ConceptSample:
    """One sample as a reader sees it.

    Attributes:
        image: `(channels, height, width)` or, of a table, `(features,)`.
        probabilities: `(concepts,)`, found.
        labels: `(concepts,)`, true; NaN where unknown.
        contributions: `(concepts,)`, by how much the logit of the predicted class would fall without each concept.
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
    """Draws a few samples: the input, the concepts that are found in it beside the true ones, what each adds.

    Args:
        samples: a row each.
        path: Where the PNG goes.
        concepts: their names.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("there is nothing to draw: no sample")
    tall = max(2.2, 0.2 * len(concepts))
    figure = Figure(figsize=(11, tall * len(samples) + 0.8), layout="constrained")
    panels = figure.subplots(len(samples), 3, squeeze=False, width_ratios=[1, 1.6, 1.6])
    places = np.arange(len(concepts))
    for (shown, found, added), sample in zip(panels, samples, strict=True):
        _draw_input(shown, sample.image)
        shown.set_title(f"predicted {sample.predicted}\ntrue {sample.true}", fontsize="medium")
        found.barh(places, sample.probabilities.numpy(), color="#56B4E9", label="found")
        found.plot(sample.labels.numpy(), places, "o", color="black", markersize=4, label="true")
        added.barh(places, sample.contributions.numpy(), color="#E69F00", label="adds to the predicted class")
        low, high = found.get_xlim()
        found.set_xlim(min(low, 0), max(high, 1.05))
        added.axvline(0, color="black", linewidth=0.8)
        _names(found.set_yticks, concepts)
        added.set_yticks(places, [""] * len(places))
        for panel in (found, added):
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
