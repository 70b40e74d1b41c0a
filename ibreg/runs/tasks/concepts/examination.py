"""Examination of a trained concept model: its concepts, reliance on them, leakage, and the effect of interventions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ibreg.evaluation.concepts.curves import InterventionCurve, intervention_curve
from ibreg.evaluation.concepts.interventions import intervention_costs, intervention_groups
from ibreg.evaluation.concepts.leakage import BINS, SAMPLES_PER_BIN, leakage
from ibreg.evaluation.concepts.metrics import class_concept_matrix, concept_metrics, head_agreement
from ibreg.evaluation.concepts.policies import POLICIES
from ibreg.evaluation.concepts.predictions import accuracy, predict_concepts
from ibreg.evaluation.concepts.probes import LEAST_SAMPLES
from ibreg.evaluation.concepts.reliance import ablated, completeness, concept_reliance, head_effects
from ibreg.plots.concepts import ConceptSample
from ibreg.runs.config.section import Count, Different, Names, NotNegative, Section, did_you_mean, one_of
from ibreg.runs.data.concept_rows import ConceptData, ConceptRows

SAMPLES_SHOWN = 4
# Number of samples that effects of a head are averaged over: each concept and value takes a forward pass.
SAMPLES_OF_EFFECTS = 200


class Interventions(Section):
    """The measurement of accuracy against the number of interventions.

    Attributes:
        policies: the orders of interventions; empty: none.
        wrong: whether interventions that set wrong values are measured too.
        by: what an intervention sets: all concepts of a group, or one concept.
        costs: of interventions, by name; others cost 1.
        orders: random orders that the random policy is averaged over.
        rows: largest number of test rows that are intervened on.
    """

    policies: Annotated[list[Annotated[str, *one_of(POLICIES)]], *Different]
    wrong: bool
    by: Literal["group", "concept"]
    costs: dict[str, NotNegative]
    orders: Annotated[int, Field(ge=5)]
    rows: Count


class ExaminationConfig(Section):
    """What is examined of a trained concept model.

    Attributes:
        rows: largest number of test rows; also of the training rows of percentiles and means.
        edit: concepts that the head is evaluated without.
        interventions: their measurement.
    """

    rows: Count
    edit: Names
    interventions: Interventions


class Panel(NamedTuple):
    """The interventions that a curve shows: on which split, in the order of which policy, to wrong values or not."""

    part: str
    policy: str
    wrong: bool

    @property
    def title(self) -> str:
        """The title of the panel."""
        title = f"{self.policy}, wrong values" if self.wrong else self.policy
        return f"{title}, shifted" if self.part == "shifted" else title


@dataclass(frozen=True)
class Examined:
    """Results of examining one trained model.

    Attributes:
        metrics: values by name.
        curves: accuracy against the number of interventions.
        effects: `(classes, concepts)`, see `reliance.head_effects`.
        samples: predictions of some samples of the test split.
    """

    metrics: dict[str, float]
    curves: dict[Panel, InterventionCurve]
    effects: Tensor
    samples: list[ConceptSample]


def examine(
    model: nn.Module, data: ConceptData, options: ExaminationConfig, device: torch.device, *, reference: float | None
) -> Examined:
    """Measure everything about one model.

    Of continuous concepts, `concept_rmse` is in standard deviations of the training labels, and `concept_rmse_<name>`
    in the unit of the concept.

    Args:
        model: a model with one concept layer.
        data: its data. Rows of the test split are measured; percentiles and means are those of training rows.
        options: `rows`, `edit`, `interventions`.
        device: device of the model.
        reference: test accuracy of the control, for the completeness; None: without it.
    """
    training_x, _, _ = some_rows(data.train, options.rows, device)
    training_logits = predict_concepts(model, training_x).logits
    x, target, labels = some_rows(data.test, options.rows, device)
    predicted = predict_concepts(model, x)
    metrics = concept_metrics(predicted.logits, labels, data.concepts)
    metrics |= _errors_in_units(predicted.values, labels, data)
    metrics |= concept_reliance(model, x, target, labels, training_logits)
    measurable = [column for column in range(len(data.concepts)) if _has_enough_labels(data, labels, target, column)]
    if measurable:
        metrics |= leakage(predicted.codes[:, measurable], labels[:, measurable], target)
    chance = float(torch.bincount(target).max() / len(target))
    if reference is not None and chance < reference and len(x) >= 2 * LEAST_SAMPLES:
        decisions = data.concepts.decisions(predicted.values)
        metrics |= completeness(decisions, target, reference=reference, classes=data.classes)
    effects = head_effects(model, x[:SAMPLES_OF_EFFECTS], training_logits)
    metrics |= _agreement(effects, data) | _edited(model, data, options, device, training_logits)
    curves = {panel: _curve(model, data, panel, options, device, training_logits) for panel in panels(options, data)}
    for panel, curve in curves.items():
        metrics[f"area_{panel.title.replace(', ', '_').replace(' ', '_')}"] = curve.area
    return Examined(metrics, curves, effects, _samples(model, data, device, training_logits))


def _errors_in_units(values: Tensor, labels: Tensor, data: ConceptData) -> dict[str, float]:
    """Return the root mean squared error of each continuous concept in its own unit, if it has a label."""
    errors = (data.in_units(values) - data.in_units(labels)).square().nanmean(0).sqrt().tolist()
    return {
        f"concept_rmse_{name}": error
        for name, kind, error in zip(data.concepts.names, data.concepts.kinds, errors, strict=True)
        if kind == "continuous" and not math.isnan(error)
    }


def some_rows(split: ConceptRows, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and concepts of a fixed random subset of the rows of a split.

    Not the first rows: a folder of images is read class by class.
    """
    rows = row_numbers(split, count)
    return split.inputs[rows].to(device), split.targets[rows].to(device), split.concepts[rows].to(device)


def row_numbers(split: ConceptRows, count: int) -> list[int]:
    """Return the numbers of the rows of `some_rows`."""
    return sorted(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count].tolist())


def panels(options: ExaminationConfig, data: ConceptData) -> list[Panel]:
    """List the curves: each policy on the test split, random wrong values, the first policy on the shifted split."""
    policies = options.interventions.policies
    listed = [Panel("test", policy, False) for policy in policies]
    if options.interventions.wrong:
        listed.append(Panel("test", "random", True))
    if data.shifted is not None and policies:
        listed.append(Panel("shifted", policies[0], False))
    return listed


def check_interventions(cfg: ExaminationConfig, data: ConceptData) -> None:
    """Check the options of the examination before anything is trained.

    Raises:
        ValueError: If a cost is of no intervention, or a concept to edit does not exist.
    """
    options = cfg.interventions
    try:
        intervention_costs(intervention_groups(data.concepts, options.by), options.costs)
    except ValueError as error:
        raise ValueError(f"interventions.costs: {error}") from error
    for name in cfg.edit:
        if name not in data.concepts.names:
            known = data.concepts.names
            raise ValueError(f"edit must be of {', '.join(known)}, got {name}{did_you_mean(name, known)}")


def _curve(
    model: nn.Module,
    data: ConceptData,
    panel: Panel,
    options: ExaminationConfig,
    device: torch.device,
    training_logits: Tensor,
) -> InterventionCurve:
    """Measure the curve of one panel."""
    asked = options.interventions
    x, target, labels = some_rows(getattr(data, panel.part), asked.rows, device)
    return intervention_curve(
        model, x, target, labels, policy=panel.policy, wrong=panel.wrong, by=asked.by, costs=asked.costs,
        orders=asked.orders, training_logits=training_logits,
    )  # fmt: skip


def _agreement(effects: Tensor, data: ConceptData) -> dict[str, float]:
    """Measure the agreement of a head with the training labels, if each class has labels of each concept."""
    columns = [column for column, kind in enumerate(data.concepts.kinds) if kind != "continuous"]
    by_class = [data.train.concepts[data.train.targets == label] for label in range(data.classes)]
    if not columns or not all((~labels.isnan()).any(0).all() for labels in by_class):
        return {}
    effects = effects[:, columns]
    if not float((effects - effects.mean(0)).norm()) > 0:
        return {}
    matrix = class_concept_matrix(data.train.concepts, data.train.targets, data.classes)
    return {"head_agreement": head_agreement(effects, matrix[:, columns])}


def _edited(
    model: nn.Module, data: ConceptData, options: ExaminationConfig, device: torch.device, training_logits: Tensor
) -> dict[str, float]:
    """Measure the accuracy without the edited concepts, and on the shifted split also with the true concepts."""
    metrics = {}
    for split, prefix in ((data.test, ""), (data.shifted, "shifted_")):
        if split is None:
            continue
        x, target, labels = some_rows(split, options.rows, device)
        if options.edit:
            output = ablated(model, x, list(options.edit), training_logits)
            metrics[f"{prefix}edited_accuracy"] = accuracy(output, target)
        if split is data.shifted:
            everything = torch.ones_like(labels, dtype=torch.bool)
            truth = predict_concepts(model, x, mask=everything, labels=labels, training_logits=training_logits)
            metrics["shifted_truth_accuracy"] = accuracy(truth.output, target)
            shifted = concept_metrics(predict_concepts(model, x).logits, labels, data.concepts)
            metrics |= {f"shifted_{name}": value for name, value in shifted.items()}
    return metrics


def _samples(model: nn.Module, data: ConceptData, device: torch.device, training_logits: Tensor) -> list[ConceptSample]:
    """Return predictions of some test samples, with the contribution of each concept to the predicted class.

    Continuous concepts are standardized, as the labels of the data are.
    """
    x, target, labels = some_rows(data.test, SAMPLES_SHOWN, device)
    output, _, values, _ = predict_concepts(model, x)
    predicted = output.argmax(1, keepdim=True)
    logit = output.gather(1, predicted)
    contributions = torch.zeros_like(values)
    for columns in map(list, data.concepts.units.values()):
        names = [data.concepts.names[column] for column in columns]
        contribution = logit - ablated(model, x, names, training_logits).gather(1, predicted)
        # The contribution of a categorical concept is shown at its predicted value.
        shown = values[:, columns].argmax(1, keepdim=True) + columns[0]
        contributions.scatter_(1, shown, contribution)
    return [
        ConceptSample(
            number, x[row].cpu(), values[row].cpu(), labels[row].cpu(), contributions[row].cpu(),
            data.class_names[int(predicted[row])], data.class_names[int(target[row])],
        )
        for row, number in enumerate(row_numbers(data.test, SAMPLES_SHOWN))
    ]  # fmt: skip


def _has_enough_labels(data: ConceptData, labels: Tensor, target: Tensor, column: int) -> bool:
    """Whether a concept has enough labels of either value, and classes, in each half of the samples for leakage."""
    labeled = ~labels[:, column].isnan()
    known = labels[labeled, column].round()
    return (
        data.concepts.kinds[column] != "continuous"
        and len(known) >= max(BINS * SAMPLES_PER_BIN, 2 * LEAST_SAMPLES)
        and min(int((known == 0).sum()), int((known == 1).sum())) >= LEAST_SAMPLES
        and len(target[labeled].unique()) > 1
    )
