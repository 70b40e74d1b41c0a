"""What a trained concept model is asked: its concepts, what it does without them, what leaks, what corrections do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from ibreg.evaluation.concepts.curves import InterventionCurve, intervention_curve
from ibreg.evaluation.concepts.interventions import intervention_costs, intervention_groups
from ibreg.evaluation.concepts.leakage import BINS, SAMPLES_PER_BIN, leakage
from ibreg.evaluation.concepts.metrics import class_concept_matrix, concept_metrics, head_agreement
from ibreg.evaluation.concepts.policies import POLICIES
from ibreg.evaluation.concepts.predictions import accuracy, predict_concepts
from ibreg.evaluation.concepts.probes import LEAST_SAMPLES
from ibreg.evaluation.concepts.reliance import ablated, completeness, concept_reliance, head_effects
from ibreg.layers.concept.specification import Concepts
from ibreg.plots.concepts import ConceptSample
from ibreg.runs.data.concept_rows import ConceptData, ConceptRows

SAMPLES_SHOWN = 4
# The effects of a head are means over so many samples: a forward pass for each concept and value.
SAMPLES_OF_EFFECTS = 200


class Panel(NamedTuple):
    """Which corrections a curve shows: of the test or the shifted part, by which policy, to the truth or not."""

    part: str
    policy: str
    wrong: bool

    @property
    def title(self) -> str:
        """What stands above it."""
        title = f"{self.policy}, wrong values" if self.wrong else self.policy
        return f"{title}, shifted" if self.part == "shifted" else title


@dataclass(frozen=True)
class Examined:
    """What was found out about one trained model.

    Attributes:
        metrics: by name.
        curves: accuracy against the number of corrections.
        effects: `(classes, concepts)`, see `concept_reliance.head_effects`.
        samples: the first of the test part.
    """

    metrics: dict[str, float]
    curves: dict[Panel, InterventionCurve]
    effects: Tensor
    samples: list[ConceptSample]


def examine(
    model: nn.Module, data: ConceptData, options: DictConfig, device: torch.device, *, reference: float | None
) -> Examined:
    """Asks one model everything.

    Args:
        model: with one concept layer.
        data: that it was trained on; some rows of its test part are asked, percentiles and means are those of some
            rows of its training part.
        options: `rows`, `edit`, `interventions`.
        device: where.
        reference: test accuracy of the control, for the completeness; None: without it.
    """
    concepts = data.concepts
    training_x, _, _ = some_rows(data.train, options.rows, device)
    training_logits = predict_concepts(model, training_x).logits
    x, target, labels = some_rows(data.test, options.rows, device)
    found = predict_concepts(model, x)
    metrics = concept_metrics(found.logits, labels, concepts)
    metrics |= concept_reliance(model, x, target, labels, training_logits)
    # The measures below count: a column needs some labels of either value in each half of the samples.
    counted = [column for column in range(len(concepts)) if _is_countable(concepts, labels, target, column)]
    if counted:
        metrics |= leakage(found.codes[:, counted], labels[:, counted], target)
    chance = float(torch.bincount(target).max() / len(target))
    if reference is not None and chance < reference and len(x) >= 2 * LEAST_SAMPLES:
        decided = concepts.decisions(found.values)
        metrics |= completeness(decided, target, reference=reference, classes=data.classes)
    effects = head_effects(model, x[:SAMPLES_OF_EFFECTS], training_logits)
    binary = [column for column, kind in enumerate(concepts.kinds) if kind != "continuous"]
    of_classes = [data.train.concepts[data.train.targets == label] for label in range(data.classes)]
    if binary and all((~rows.isnan()).any(0).all() for rows in of_classes):
        matrix = class_concept_matrix(data.train.concepts, data.train.targets, data.classes)
        if float((effects[:, binary] - effects[:, binary].mean(0)).norm()) > 0:
            metrics["head_agreement"] = head_agreement(effects[:, binary], matrix[:, binary])
    metrics |= _edited(model, data, options, device, training_logits)
    curves = {panel: _curve(model, data, panel, options, device, training_logits) for panel in panels(options, data)}
    for panel, curve in curves.items():
        metrics[f"area_{panel.title.replace(', ', '_').replace(' ', '_')}"] = curve.area
    return Examined(metrics, curves, effects, _samples(model, data, device, training_logits))


def some_rows(part: ConceptRows, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns inputs, targets and concepts of rows that are the same every time, from all over the part.

    The first rows would not do: a folder of images is read class by class.
    """
    rows = sorted(torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:count].tolist())
    return part.inputs[rows].to(device), part.targets[rows].to(device), part.concepts[rows].to(device)


def panels(options: DictConfig, data: ConceptData) -> list[Panel]:
    """Lists the curves: every policy on the test part, random wrong values, the first policy on the shifted part."""
    asked = options.interventions
    found = [Panel("test", policy, False) for policy in asked.policies]
    if asked.wrong:
        found.append(Panel("test", "random", True))
    if data.shifted is not None and asked.policies:
        found.append(Panel("shifted", asked.policies[0], False))
    return found


def check_interventions(cfg: DictConfig, data: ConceptData) -> None:
    """Checks what can be wrong with the questions before anything is trained.

    Raises:
        ValueError: a policy, an order of corrections, a cost or a concept to edit that there is not.
    """
    asked = cfg.interventions
    for key, value in (("interventions.policies", asked.policies), ("edit", cfg.edit)):
        if not isinstance(value, ListConfig):
            raise ValueError(f"{key} is a list of names, got {value}")
    if not isinstance(asked.costs, DictConfig):
        raise ValueError(f"interventions.costs has the costs of some corrections, {{even: 2}}, got {asked.costs}")
    unknown = [policy for policy in asked.policies if policy not in POLICIES]
    if unknown:
        raise ValueError(f"interventions.policies has {', '.join(unknown)}: choose from {', '.join(POLICIES)}")
    try:
        intervention_costs(intervention_groups(data.concepts, asked.by), OmegaConf.to_container(asked.costs))
    except (TypeError, ValueError) as error:  # a text where a number belongs is a TypeError
        raise ValueError(f"interventions.costs: {error}") from error
    for name in cfg.edit:
        data.concepts.index(name)


def _curve(model, data: ConceptData, panel: Panel, options: DictConfig, device, training_logits) -> InterventionCurve:
    asked = options.interventions
    x, target, labels = some_rows(getattr(data, panel.part), asked.rows, device)
    return intervention_curve(
        model,
        x,
        target,
        labels,
        policy=panel.policy,
        wrong=panel.wrong,
        by=asked.by,
        costs=OmegaConf.to_container(asked.costs),
        orders=asked.orders,
        training_logits=training_logits,
    )


def _edited(model, data: ConceptData, options: DictConfig, device, training_logits) -> dict[str, float]:
    """Measures accuracy with some concepts out of the head, and on the shifted part also with the truth set."""
    found = {}
    for part, beginning in ((data.test, ""), (data.shifted, "shifted_")):
        if part is None:
            continue
        x, target, labels = some_rows(part, options.rows, device)
        if options.edit:
            output = ablated(model, x, list(options.edit), training_logits)
            found[f"{beginning}edited_accuracy"] = accuracy(output, target)
        if beginning:
            everything = torch.ones_like(labels, dtype=torch.bool)
            truth = predict_concepts(model, x, mask=everything, labels=labels, training_logits=training_logits)
            found["shifted_truth_accuracy"] = accuracy(truth.output, target)
            found |= {
                f"shifted_{name}": value
                for name, value in concept_metrics(predict_concepts(model, x).logits, labels, data.concepts).items()
            }
    return found


def _samples(model: nn.Module, data: ConceptData, device, training_logits) -> list[ConceptSample]:
    x, target, labels = some_rows(data.test, SAMPLES_SHOWN, device)
    found = predict_concepts(model, x)
    predicted = found.output.argmax(1, keepdim=True)
    own = found.output.gather(1, predicted)
    contributions = torch.zeros_like(found.values)
    for columns in data.concepts.units.values():
        names = [data.concepts.names[column] for column in columns]
        added = own - ablated(model, x, names, training_logits).gather(1, predicted)
        # What a categorical concept adds stands beside the value that it has.
        place = found.values[:, list(columns)].argmax(1, keepdim=True) + columns[0]
        contributions.scatter_(1, place, added)
    return [
        ConceptSample(
            x[row].cpu(),
            found.values[row].cpu(),
            labels[row].cpu(),
            contributions[row].cpu(),
            data.class_names[int(predicted[row])],
            data.class_names[int(target[row])],
        )
        for row in range(len(x))
    ]


def _is_countable(concepts: Concepts, labels: Tensor, target: Tensor, column: int) -> bool:
    labeled = ~labels[:, column].isnan()
    known = labels[labeled, column].round()
    return (
        concepts.kinds[column] != "continuous"
        and len(known) >= max(BINS * SAMPLES_PER_BIN, 2 * LEAST_SAMPLES)
        and min((known == 0).sum(), (known == 1).sum()) >= LEAST_SAMPLES
        and len(target[labeled].unique()) > 1
    )
