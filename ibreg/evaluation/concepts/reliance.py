r"""How far a model relies on its concepts: what it does where they are all set, all wiped out, or turned round.

.. math::
    \mathrm{completeness} = \frac{a(\text{concepts}) - \text{chance}}{a(\text{no bottleneck}) - \text{chance}}

Completeness: Yeh et al. 2020 (arXiv 1910.07969), chance being the largest class. Each number has a control, the same
against shuffled targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.evaluation.concepts.curves import corrections
from ibreg.evaluation.concepts.interventions import (
    ROWS_AT_ONCE,
    as_corrections,
    class_probabilities,
    concept_layer,
    find_concepts,
    intervene,
    wrong_labels,
)
from ibreg.evaluation.concepts.probes import probe
from ibreg.modes import evaluating
from ibreg.regularized import network_to_run


def concept_reliance(
    model: nn.Module, x: Tensor, target: Tensor, labels: Tensor, training_logits: Tensor, *, seed: int = 0
) -> dict[str, float]:
    """Measures what a model does when its concepts are set, each beside the same against shuffled targets.

    Args:
        model: a classifier with one concept layer, wrapped or not.
        x: `(samples, ...)`.
        target: `(samples,)`, classes.
        labels: `(samples, concepts)`; where it is NaN nothing is set.
        training_logits: `(training samples, concepts)`: `find_concepts(model, x_train).logits`.
        seed: of the shuffle and of wrong values.

    Returns:
        `truth_accuracy`: all concepts set to the truth. Where it is lower than the plain accuracy, the head reads
        something else from them. `certain_accuracy`: the same with a code of logits set to those of probabilities 0 and
        1 (`Concepts.logits`) in place of percentiles; equal for codes of probabilities. `ablated_accuracy`: all set to
        their training mean, so that what is above its control goes past the concepts. `sign`: of single concepts, the
        share of samples where the true class is more probable with the true value than with a wrong one, ties half; 1:
        corrections help always, 0.5: they do nothing. Each with `<name>_control`.

    Raises:
        ValueError: not one concept layer, shapes that do not fit.
    """
    layer = concept_layer(model)
    shuffled = target[torch.from_numpy(np.random.default_rng(seed).permutation(len(target))).to(target.device)]
    everything = torch.ones_like(labels, dtype=torch.bool)
    set_to_truth = find_concepts(model, x, mask=everything, labels=labels, training_logits=training_logits).output
    set_to_certain = _set_to(model, x, ~labels.isnan(), labels.nan_to_num(), "probability")
    wiped = silenced(model, x, layer.concepts.names, training_logits)
    wrong = wrong_labels(layer.concepts, labels, seed=seed)
    binary_or_categorical = [
        columns
        for columns in corrections(layer.concepts, "concept").values()
        if layer.concepts.kinds[columns[0]] != "continuous"
    ]
    better, better_shuffled = [], []
    for columns in binary_or_categorical:
        mask = torch.zeros_like(everything)
        mask[:, list(columns)] = True
        rows = ~labels[:, list(columns)].isnan().any(1)
        if not rows.any():
            continue
        right, turned = (
            class_probabilities(
                find_concepts(model, x, mask=mask, labels=those, training_logits=training_logits).output
            )
            for those in (labels, wrong)
        )
        for shares, true in ((better, target), (better_shuffled, shuffled)):
            difference = (right - turned).gather(1, true.unsqueeze(1))[rows, 0]
            shares.append((difference.sign() + 1).mean() / 2)
    found = {}
    for ending, true, shares in (("", target, better), ("_control", shuffled, better_shuffled)):
        found[f"truth_accuracy{ending}"] = _accuracy(set_to_truth, true)
        found[f"certain_accuracy{ending}"] = _accuracy(set_to_certain, true)
        found[f"ablated_accuracy{ending}"] = _accuracy(wiped, true)
        if shares:
            found[f"sign{ending}"] = float(torch.stack(shares).mean())
    return found


def completeness(
    concepts: Tensor, target: Tensor, *, reference: float, classes: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Measures how much of the accuracy without a bottleneck a small network reaches from the concepts alone.

    Args:
        concepts: `(samples, concepts)`, labels or what a model decided.
        target: `(samples,)`, classes.
        reference: accuracy without a bottleneck, a fraction.
        classes: how many there are; None: as many as the target has.
        seed: of the halves that the network is fitted and judged on, and of the shuffle.

    Returns:
        `completeness`: 0 at the share of the largest class, 1 at the reference; and `completeness_control`.

    Raises:
        ValueError: a reference that is no better than the largest class; what `probes.probe` raises.

    Example:
        >>> truth = torch.randint(2, (400, 3), generator=torch.Generator().manual_seed(0)).float()
        >>> found = completeness(truth, truth[:, 0].long(), reference=1.0)
        >>> round(found["completeness"], 1)
        1.0
    """
    chance = float(torch.bincount(target).max() / len(target))
    if not chance < reference <= 1:
        raise ValueError(
            f"completeness compares with an accuracy without a bottleneck above the largest class's share "
            f"{chance:.3f}, got {reference}"
        )
    shuffled = target[torch.from_numpy(np.random.default_rng(seed).permutation(len(target)))]
    everything = torch.ones(1, concepts.shape[1], dtype=torch.bool)
    found = {}
    for ending, true in (("", target), ("_control", shuffled)):
        one_hot = F.one_hot(true.cpu(), classes or int(target.max()) + 1).float()
        logits, rows = probe(concepts, one_hot, everything, seed=seed)
        accuracy = float((logits[0].argmax(1) == true.cpu()[rows]).double().mean())
        found[f"completeness{ending}"] = (accuracy - chance) / (reference - chance)
    return found


def _accuracy(output: Tensor, target: Tensor) -> float:
    return float((class_probabilities(output).argmax(1) == target).double().mean())


@torch.no_grad()
def silenced(model: nn.Module, x: Tensor, names: Sequence[str], training_logits: Tensor) -> Tensor:
    """Returns the output with some concepts at their training mean: what a head without their weights says.

    Args:
        model: a classifier with one concept layer, wrapped or not.
        x: `(samples, ...)`.
        names: of the concepts; of a categorical group all of them.
        training_logits: as for `concept_reliance`.

    Returns:
        `(samples, outputs)`.

    Raises:
        ValueError: a name that no concept has.
    """
    layer = concept_layer(model)
    space = layer.intervention_space
    training = training_logits if space == "logit" else layer.concepts.probabilities(training_logits)
    mask = torch.zeros(len(x), len(layer.concepts), dtype=torch.bool, device=x.device)
    mask[:, [layer.concepts.index(name) for name in names]] = True
    values = training.mean(0).expand_as(mask)
    return _set_to(model, x, *_held(model, x, mask, values, space), space)


def _held(model: nn.Module, x: Tensor, mask: Tensor, values: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """Returns a mask and values that also set all other concepts to what was found, where corrections move them."""
    if not concept_layer(model).interventions_move_others:
        return mask, values
    found = find_concepts(model, x)
    return torch.ones_like(mask), torch.where(mask, values, found.logits if space == "logit" else found.values)


@torch.no_grad()
def _set_to(model: nn.Module, x: Tensor, mask: Tensor, values: Tensor, space: str) -> Tensor:
    """Returns the output with some concepts set."""
    outputs = []
    with evaluating(model):
        for rows in torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE):
            with intervene(model, mask[rows], values[rows], space):
                outputs.append(network_to_run(model)(x[rows]))
    return torch.cat(outputs)


@torch.no_grad()
def head_effects(model: nn.Module, x: Tensor, training_logits: Tensor) -> Tensor:
    """Measures what setting a concept from 0 to 1 does to the output, on average: the weights of a linear head.

    Of a value of a categorical concept it is the output with this value minus the mean over all values. Of a continuous
    concept it is that of its training mean plus one standard deviation minus that of its mean.

    Args:
        model: a classifier with one concept layer, wrapped or not.
        x: `(samples, ...)`, over which the mean is.
        training_logits: as for `concept_reliance`.

    Returns:
        `(outputs, concepts)`; nothing but the head's weights where the head is linear and reads probabilities.

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(ibreg.ConceptBottleneck(4, 2), nn.Linear(2, 3))
        >>> torch.allclose(head_effects(net, torch.randn(5, 4), torch.zeros(9, 2)), net[1].weight, atol=1e-6)
        True
    """
    layer = concept_layer(model)
    concepts = layer.concepts
    mask = torch.zeros(len(x), len(concepts), dtype=torch.bool, device=x.device)

    def set_to(columns, values) -> Tensor:
        own, labels = mask.clone(), torch.zeros(mask.shape, device=x.device)
        own[:, columns], labels[:, columns] = True, torch.as_tensor(values, device=x.device, dtype=labels.dtype)
        set_values, space = as_corrections(layer, labels, training_logits)
        return _set_to(model, x, *_held(model, x, own, set_values, space), space).mean(0)

    effects = []
    for kind, run in concepts.runs:
        columns = list(range(run.start, run.stop))
        if kind == "categorical":
            each = torch.stack([set_to(columns, row) for row in torch.eye(len(columns))])
            effects += list(each - each.mean(0))
        elif kind == "binary":
            effects += [set_to([column], 1.0) - set_to([column], 0.0) for column in columns]
        else:
            means, deviations = training_logits[:, run].mean(0), training_logits[:, run].std(0)
            effects += [
                set_to([column], mean + deviation) - set_to([column], mean)
                for column, mean, deviation in zip(columns, means, deviations, strict=True)
            ]
    return torch.stack(effects, 1)
