"""Plots of a concept run as PNG files: interventions, leakage, effects of the head, and concepts of a few samples."""

from __future__ import annotations

import math
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
from ibreg.plots.panels import draw_curves, finish, panel_grid, within, write_png
from ibreg.plots.style import CONTROL_STYLES, method_label, method_styles, plot_name

LOWER, HIGHER = "↓ lower is better", "↑ higher is better"
# Titles of the measures, and which values are good; the control of each measure has the key `<name>_control`.
MEASURES = {
    "truth_accuracy": ("accuracy with true concepts", HIGHER),
    "ablated_accuracy": ("accuracy with all concepts at their mean", LOWER),
    "sign": ("fraction of interventions that help", HIGHER),
    "ctl": ("leakage: codes tell more about the class than their concepts do (CTL)", LOWER),
    "icl": ("leakage: codes tell more about each other than their concepts do (ICL)", LOWER),
    "ois": ("impurity: codes predict other concepts (OIS)", LOWER),
    "nis": ("impurity: concepts are predicted by the codes of unrelated ones (NIS)", "↓ 0.5 is best"),
    "completeness": ("completeness: accuracy from concepts alone, relative to the control", HIGHER),
}
# The order of the interventions, see `ibreg.evaluation.concepts.policies`.
POLICIES = {
    "random": "random order",
    "uncertainty": "most uncertain concept first",
    "expected_gain": "largest expected gain first: the decrease of the uncertainty about the class",
    "coop": "CooP: uncertain concepts with a large effect on the predicted class first",
    "greedy": "oracle that knows the class: largest gain first",
}
MOST_NAMES = 30  # names of more concepts or classes would be illegible


def intervention_plot(
    curves: Mapping[str, Mapping[str, Sequence[InterventionCurve]]],
    path: str | Path,
    *,
    control: Mapping[str, float] | None = None,
) -> Path:
    """Draws accuracy over interventions: a panel per policy, per method the mean and its 95 % CI over seeds.

    With one seed the interval is over the orders of a random policy. Both are Student's t, clipped to fractions. The
    vertical axis fits the means, since intervals of two seeds often reach over all fractions; panels share it, but for
    those of wrong values.

    Args:
        curves: per panel and method the curves of the seeds, all of the same length. A panel is named by its policy,
            and further words after a comma, as in "random, wrong values".
        path: path of the PNG file.
        control: per panel the mean accuracy of the model without a bottleneck, drawn as a horizontal line.

    Raises:
        ValueError: If there is no curve.

    Example:
        >>> import tempfile
        >>> curve = InterventionCurve(np.array([[0.5, 0.8], [0.5, 0.9]]), np.array([0.0, 1.0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     intervention_plot({"random": {"concept": [curve]}}, f"{folder}/interventions.png").name
        'interventions.png'
    """
    return write_png(path, _draw_interventions, curves, control or {})


def _draw_interventions(
    curves: Mapping[str, Mapping[str, Sequence[InterventionCurve]]], control: Mapping[str, float]
) -> Figure:
    if not curves:
        raise ValueError("there is nothing to draw: no curve of interventions")
    styles = method_styles(method for methods in curves.values() for method in methods)
    figure, panels = panel_grid(len(curves), most=3, size=(4, 3.4))
    for panel, (title, methods) in zip(panels.flat, curves.items(), strict=False):
        accuracies = {method: dict(enumerate(_accuracies(seeds).T.tolist())) for method, seeds in methods.items()}
        many = max(map(len, accuracies.values())) > 12
        lines = {method: style | ({"marker": ""} if many else {}) for method, style in styles.items()}
        draw_curves(panel, accuracies, lines, bounds=within(mean_interval, 0, 1), opacity=0.12)
        if title in control:
            line = CONTROL_STYLES["none"] | {"marker": "", "linewidth": 1.2}
            panel.axhline(control[title], **line, label="control (no bottleneck)")
        policy, *others = title.split(", ")
        panel.set_title(fill(", ".join([POLICIES.get(policy, policy), *others]), 42), fontsize="medium")
        panel.set(xlabel="number of interventions")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    # Interventions with wrong values ruin the accuracy: on one axis with the others, all others would be flat lines.
    for wrong in (True, False):
        _fit([panel for panel, title in zip(panels.flat, curves, strict=False) if ("wrong" in title) == wrong])
    for panel in panels[:, 0]:
        panel.set(ylabel="accuracy (fraction)")
    return finish(figure)


def _fit(panels: Sequence[Axes]) -> None:
    """Gives panels one vertical axis that fits their lines."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for panel in panels for line in panel.get_lines()]
    if lines:
        drawn = np.concatenate(lines)
        margin = max(0.1 * np.ptp(drawn), 0.02)
        for panel in panels:
            panel.set_ylim(drawn.min() - margin, drawn.max() + margin)


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
    return write_png(path, _draw_leakage, measured)


def _draw_leakage(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    shown = [name for name in MEASURES if any(name in seeds[0] for seeds in measured.values() if seeds)]
    if not shown:
        raise ValueError("there is nothing to draw: no method has a measure of leakage")
    styles = method_styles(measured)
    figure, panels = panel_grid(len(shown), most=4, size=(3.4, 3.2))
    for panel, name in zip(panels.flat, shown, strict=False):
        for position, (method, style) in enumerate(styles.items()):
            values = np.array([seed[name] for seed in measured[method] if name in seed])
            controls = np.array([seed[f"{name}_control"] for seed in measured[method] if f"{name}_control" in seed])
            if not len(values):
                continue
            mean, spread = values.mean(), values.std(ddof=1) if len(values) > 1 else 0
            # Values within [0, 1] are those of a fraction, which has no deviation beyond.
            inside = values.min() >= 0 and values.max() <= 1
            spreads = [[min(spread, mean)], [min(spread, 1 - mean)]] if inside else spread
            label = plot_name(method_label(method))
            panel.bar(position, mean, color=style["color"], yerr=spreads, capsize=3, label=label)
            if len(controls):
                diamond = {"marker": "D", "color": "white", "markeredgecolor": "black", "linestyle": ""}
                panel.plot(position, controls.mean(), **diamond, label="the measure on shuffled data")
        title, direction = MEASURES[name]
        panel.set_title(f"{fill(title, 34)}\n{direction}", fontsize="medium")
        low, high = panel.get_ylim()
        panel.set(xticks=[], ylim=(min(0, low), max(1.05, high)))
        panel.grid(axis="y", alpha=0.3)
    return finish(figure)


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
    return write_png(path, _draw_heads, effects, concepts, classes)


def _draw_heads(effects: Mapping[str, Tensor], concepts: Sequence[str], classes: Sequence[str]) -> Figure:
    if not effects:
        raise ValueError("there is nothing to draw: no method has a head")
    width, height = (max(2.5, 0.28 * min(len(names), MOST_NAMES)) for names in (concepts, classes))
    figure, panels = panel_grid(len(effects), most=3, size=(width + 3.0, height + 2.4))
    for panel, (method, effect) in zip(panels.flat, effects.items(), strict=False):
        # A term that all classes share changes no decision.
        values = (effect - effect.mean(0)).detach().cpu().numpy()
        largest = max(float(abs(values).max()), 1e-12)
        image = panel.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        figure.colorbar(image, ax=panel, shrink=0.8)
        panel.set(title=plot_name(method_label(method), 28), xlabel="concept", ylabel="class")
        _names(panel.set_xticks, concepts, rotation=90)
        _names(panel.set_yticks, classes)
    for panel in list(panels.flat)[len(effects) :]:
        panel.set_visible(False)
    title = "change of a class's logit relative to the mean over classes, as a concept is set from 0 to 1"
    figure.suptitle(fill(title, int(12 * figure.get_figwidth())), fontsize="medium")
    return figure


@dataclass(frozen=True)
class ConceptSample:
    """One sample with its concepts.

    Attributes:
        row: number of its row in the test split, from 0.
        image: `(channels, height, width)` or, of tabular data, `(features,)`.
        values: `(concepts,)`, predicted: probabilities, or the standardized values of continuous concepts.
        labels: `(concepts,)`, true; NaN where unknown.
        contributions: `(concepts,)`, decrease of the predicted class's logit as a concept is set to its mean.
        predicted: name of the predicted class.
        true: name of the true class.
    """

    row: int
    image: Tensor
    values: Tensor
    labels: Tensor
    contributions: Tensor
    predicted: str
    true: str


def sample_plot(
    samples: Sequence[ConceptSample],
    path: str | Path,
    *,
    concepts: Sequence[str],
    units: Mapping[str, tuple[float, float]] | None = None,
    inputs: Sequence[str] = (),
) -> Path:
    """Draws a few samples: the input, its predicted and true concepts, and the contribution of each concept.

    Args:
        samples: one per row.
        path: path of the PNG file.
        concepts: names of the concepts.
        units: for each continuous concept the mean and the standard deviation that its values are standardized with;
            they are drawn apart from probabilities, and written in their own unit.
        inputs: names of the columns of a table; empty for images.

    Raises:
        ValueError: If there is no sample.
    """
    return write_png(path, _draw_samples, samples, concepts, units or {}, inputs)


def _draw_samples(
    samples: Sequence[ConceptSample],
    concepts: Sequence[str],
    units: Mapping[str, tuple[float, float]],
    inputs: Sequence[str],
) -> Figure:
    if not samples:
        raise ValueError("there is nothing to draw: no sample")
    everything = range(len(concepts))
    apart = {
        "probability": [place for place in everything if concepts[place] not in units],
        "standard deviations from the mean": [place for place in everything if concepts[place] in units],
    }
    apart = {quantity: places for quantity, places in apart.items() if places}
    height = max(2.2, 0.2 * max(len(concepts), len(inputs) if len(inputs) <= MOST_NAMES else 0))
    figure = Figure(figsize=(7.4 + 3.6 * len(apart), height * len(samples) + 0.8), layout="constrained")
    widths = [1.2, *[1.6] * len(apart), 1.6]
    panels = figure.subplots(len(samples), len(widths), squeeze=False, width_ratios=widths)
    for (image, *predictions, contribution), sample in zip(panels, samples, strict=True):
        _draw_input(image, sample.image, inputs)
        classes = f"predicted {plot_name(sample.predicted, 24)}\ntrue {plot_name(sample.true, 24)}"
        image.set_title(f"test row {sample.row}\n{classes}", fontsize="medium")
        for panel, (quantity, places) in zip(predictions, apart.items(), strict=True):
            _draw_concepts(panel, sample, places, [_valued(concepts[place], sample, place, units) for place in places])
            panel.set(xlabel=quantity)
            low, high = panel.get_xlim()
            if quantity == "probability":
                panel.set_xlim(min(low, 0), max(high, 1.05))
        contribution.barh(everything, sample.contributions.numpy(), color="#E69F00", label="contribution")
        contribution.axvline(0, color="black", linewidth=0.8)
        contribution.set(xlabel="change of the logit against\nthe concept at its mean")
        contribution.set_yticks(everything, [""] * len(concepts))
        if len(apart) > 1:  # no panel beside it has the same concepts
            _names(contribution.set_yticks, concepts)
        contribution.invert_yaxis()
        contribution.grid(axis="x", alpha=0.3)
    for panel in panels[:-1, 1:].flat:
        panel.set(xlabel="")
    return finish(figure)


def _valued(name: str, sample: ConceptSample, place: int, units: Mapping[str, tuple[float, float]]) -> str:
    """Names a concept, a continuous one with its value in its own unit."""
    if name not in units:
        return plot_name(name, 28)
    mean, deviation = units[name]
    predicted, true = (mean + deviation * float(values[place]) for values in (sample.values, sample.labels))
    return f"{plot_name(name, 28)}\n{predicted:.3g} (true {'unknown' if math.isnan(true) else f'{true:.3g}'})"


def _draw_concepts(panel: Axes, sample: ConceptSample, places: Sequence[int], names: Sequence[str]) -> None:
    positions = np.arange(len(places))
    panel.barh(positions, sample.values[places].numpy(), color="#56B4E9", label="predicted")
    panel.plot(sample.labels[places].numpy(), positions, "o", color="black", markersize=4, label="true")
    panel.set_yticks(positions, names if len(names) <= MOST_NAMES else [""] * len(names))
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)


def _draw_input(panel: Axes, values: Tensor, names: Sequence[str]) -> None:
    if values.dim() == 3 and values.shape[0] in (1, 3):
        low, high = values.min(), values.max()
        pixels = ((values - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
        panel.imshow(pixels.squeeze(), cmap="gray")
        panel.set_axis_off()
        return
    flat = values.flatten().numpy()
    if len(names) == len(flat) <= MOST_NAMES:
        panel.barh(np.arange(len(flat)), flat, color="#999999")
        panel.set_yticks(np.arange(len(flat)), [plot_name(name, 20) for name in names])
        panel.invert_yaxis()
        panel.set(xlabel="input")
    else:
        panel.bar(np.arange(len(flat)), flat, color="#999999")
        panel.set(xlabel="column of the input")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _names(set_ticks, names: Sequence[str], **style) -> None:
    if len(names) <= MOST_NAMES:
        set_ticks(np.arange(len(names)), [plot_name(name, 28) for name in names], **style)
