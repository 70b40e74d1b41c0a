r"""Reliance of a model on its concepts: its accuracy with all concepts set or ablated, and effects of single ones.

.. math::
    \mathrm{completeness} = \frac{a(\text{concepts}) - \text{chance}}{a(\text{no bottleneck}) - \text{chance}}

Completeness: Yeh et al. 2020 (arXiv 1910.07969), chance being the fraction of the largest class. Each measure has a
control, the same with shuffled targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.evaluation.concepts.controls import shuffled, with_control
from ibreg.evaluation.concepts.interventions import concept_layer, intervene, intervention_values, wrong_labels
from ibreg.evaluation.concepts.predictions import ROWS_AT_ONCE, accuracy, class_probabilities, predict_concepts
from ibreg.evaluation.concepts.probes import probe
from ibreg.modes import evaluating
from ibreg.regularized import network_to_run


def concept_reliance(
    model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, training_logits: Tensor, *, seed: int = 0
) -> dict[str, float]:
    """Measure how a model depends on its concepts, each measure beside its control with shuffled targets.

    Args:
        model: a classifier with one concept layer, wrapped or not.
        x: `(samples, ...)`.
        target: `(samples,)`, classes.
        labels: `(samples, concepts)`; where they are NaN nothing is set.
        training_logits: `(training samples, concepts)`: `predict_concepts(model, x_train).logits`.
        seed: random seed of the shuffle and of incorrect values.

    Returns:
        `truth_accuracy`: accuracy with all concepts set to the truth. If it is below the plain accuracy, the head uses
        the predicted concepts for something else. `certain_accuracy`: the same, but a code of logits is set to the
        logits of probabilities 0 and 1 (`Concepts.logits`) instead of percentiles; equal for codes of probabilities.
        `ablated_accuracy`: accuracy with all concepts at their training mean; what exceeds its control bypasses the
        concepts. `sign`: mean over concepts of the fraction of samples for which the true class is more probable with
        the true value than with an incorrect one, ties counted half; 1: interventions always help, 0.5: they have no
        effect. Each with `<name>_control`.

    Raises:
        ValueError: If the model does not have one concept layer, or the shapes do not fit.
    """
    names = concept_layer(model).concepts.names
    everything = torch.ones_like(labels, dtype=torch.bool)
    truth = predict_concepts(model, x, mask=everything, labels=labels, training_logits=training_logits).output
    certain = _output_with(model, x, ~labels.isnan(), labels.nan_to_num(), "probability")
    without = ablated(model, x, names, training_logits)
    outputs = {"truth_accuracy": truth, "certain_accuracy": certain, "ablated_accuracy": without}
    gains = list(_gains_of_truth(model, x, labels, training_logits, seed))

    def measures(target: Tensor) -> dict[str, float]:
        values = {name: accuracy(output, target) for name, output in outputs.items()}
        if gains:
            fractions = [_fraction_of_positive(gain, target[rows]) for rows, gain in gains]
            values["sign"] = float(torch.stack(fractions).mean())
        return values

    return with_control(measures, target, shuffled(target, seed))


def completeness(
    concepts: Tensor, target: Tensor, *, reference: float, classes: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Measure how much of the accuracy without a bottleneck a small network reaches from the concepts alone.

    Args:
        concepts: `(samples, concepts)`, labels or decisions of a model.
        target: `(samples,)`, classes.
        reference: accuracy without a bottleneck, a fraction.
        classes: number of classes; None: that of the target.
        seed: random seed of the split into a half to fit and a half to evaluate the network, and of the shuffle.

    Returns:
        `completeness`: 0 at the fraction of the largest class, 1 at the reference; and `completeness_control`.

    Raises:
        ValueError: If the reference is not above the fraction of the largest class, and as for `probes.probe`.

    Example:
        >>> truth = torch.randint(2, (400, 3), generator=torch.Generator().manual_seed(0)).float()
        >>> measured = completeness(truth, truth[:, 0].long(), reference=1.0)
        >>> round(measured["completeness"], 1)
        1.0
    """
    chance = float(torch.bincount(target).max() / len(target))
    if not chance < reference <= 1:
        raise ValueError(
            f"the reference must be an accuracy without a bottleneck above that of the largest class, "
            f"{chance:.3f}, got {reference}"
        )
    classes = classes or int(target.max()) + 1
    everything = torch.ones(1, concepts.shape[1], dtype=torch.bool)

    def measures(target: Tensor) -> dict[str, float]:
        logits, rows = probe(concepts, F.one_hot(target, classes).float(), everything, seed=seed)
        reached = float((logits[0].argmax(1) == target[rows]).double().mean())
        return {"completeness": (reached - chance) / (reference - chance)}

    return with_control(measures, target.cpu(), shuffled(target.cpu(), seed))


@torch.no_grad()
def ablated(model: nn.Module, x: Tensor, names: Sequence[str], training_logits: Tensor) -> Tensor:
    """Return the output with some concepts at their training mean, as that of a head without their weights.

    Args:
        model: a classifier with one concept layer, wrapped or not.
        x: `(samples, ...)`.
        names: names of the concepts; of a categorical group all of them.
        training_logits: as for `concept_reliance`.

    Returns:
        `(samples, outputs)`.

    Raises:
        ValueError: If no concept has one of the names.
    """
    layer = concept_layer(model)
    space = layer.intervention_space
    training = training_logits if space == "logit" else layer.concepts.probabilities(training_logits)
    mask = torch.zeros(len(x), len(layer.concepts), dtype=torch.bool, device=x.device)
    mask[:, [layer.concepts.index(name) for name in names]] = True
    values = training.mean(0).expand_as(mask)
    return _output_with(model, x, *_others_held(model, x, mask, values, space), space)


@torch.no_grad()
def head_effects(model: nn.Module, x: Tensor, training_logits: Tensor) -> Tensor:
    """Measure the mean change of the output when a concept is set from 0 to 1: the weights of a linear head.

    For a value of a categorical concept, it is the output with this value minus the mean over all values. For a
    continuous concept, it is the change from its training mean to the mean plus one standard deviation.

    Args:
        model: a classifier with one concept layer, wrapped or not.
        x: `(samples, ...)`, over which the mean is taken.
        training_logits: as for `concept_reliance`.

    Returns:
        `(outputs, concepts)`; equal to the head's weights if the head is linear and reads probabilities.

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(ibreg.ConceptBottleneck(4, 2), nn.Linear(2, 3))
        >>> torch.allclose(head_effects(net, torch.randn(5, 4), torch.zeros(9, 2)), net[1].weight, atol=1e-6)
        True
    """
    effects = []
    for kind, run in concept_layer(model).concepts.runs:
        columns = list(range(run.start, run.stop))
        if kind == "categorical":
            outputs = torch.stack(
                [_mean_output(model, x, columns, value, training_logits) for value in torch.eye(len(columns))]
            )
            effects += list(outputs - outputs.mean(0))
            continue
        if kind == "binary":
            low, high = torch.zeros(len(columns)), torch.ones(len(columns))
        else:
            low = training_logits[:, run].mean(0)
            high = low + training_logits[:, run].std(0)
        effects += [
            _mean_output(model, x, [column], after, training_logits)
            - _mean_output(model, x, [column], before, training_logits)
            for column, before, after in zip(columns, low, high, strict=True)
        ]
    return torch.stack(effects, 1)


def _gains_of_truth(
    model: nn.Module, x: Tensor, labels: Tensor, training_logits: Tensor, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each concept its labeled rows, and class probabilities with the true minus those with a wrong value."""
    concepts = concept_layer(model).concepts
    wrong = wrong_labels(concepts, labels, seed=seed)
    for columns in map(list, concepts.units.values()):
        rows = ~labels[:, columns].isnan().any(1)
        if concepts.kinds[columns[0]] == "continuous" or not rows.any():
            continue
        mask = torch.zeros_like(labels, dtype=torch.bool)
        mask[:, columns] = True
        with_truth, with_wrong = (
            predict_concepts(model, x, mask=mask, labels=values, training_logits=training_logits).output
            for values in (labels, wrong)
        )
        yield rows, (class_probabilities(with_truth) - class_probabilities(with_wrong))[rows]


def _fraction_of_positive(gain: Tensor, target: Tensor) -> Tensor:
    """Return the fraction of samples with a positive gain of the target class, ties counted half."""
    return (gain.gather(1, target.unsqueeze(1))[:, 0].sign() + 1).mean() / 2


def _mean_output(model: nn.Module, x: Tensor, columns: list[int], value: Tensor, training_logits: Tensor) -> Tensor:
    """Return the mean output with some columns set to a label in all samples."""
    layer = concept_layer(model)
    mask = torch.zeros(len(x), len(layer.concepts), dtype=torch.bool, device=x.device)
    labels = torch.zeros(mask.shape, device=x.device)
    mask[:, columns], labels[:, columns] = True, value.to(labels)
    values, space = intervention_values(layer, labels, training_logits)
    return _output_with(model, x, *_others_held(model, x, mask, values, space), space).mean(0)


def _others_held(model: nn.Module, x: Tensor, mask: Tensor, values: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """Return a mask and values that also fix the other concepts at their predictions, if interventions move them."""
    if not concept_layer(model).interventions_move_others:
        return mask, values
    predicted = predict_concepts(model, x)
    others = predicted.logits if space == "logit" else predicted.values
    return torch.ones_like(mask), torch.where(mask, values, others)


@torch.no_grad()
def _output_with(model: nn.Module, x: Tensor, mask: Tensor, values: Tensor, space: str) -> Tensor:
    """Return the output with some concepts set."""
    outputs = []
    with evaluating(model):
        for rows in torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE):
            with intervene(model, mask[rows], values[rows], space):
                outputs.append(network_to_run(model)(x[rows]))
    return torch.cat(outputs)
