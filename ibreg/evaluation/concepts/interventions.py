"""Interventions on concepts at test time: which values are set, and in which space.

Koh et al. 2020 (arXiv 2007.04612, section 5). How accuracy grows with the number of interventions:
`ibreg.evaluation.concepts.curves`.

In a code of probabilities an intervention sets the label itself. In a code of logits no value is "true": there the 95th
and the 5th percentile of the concept's logits on training data represent labels of 1 and 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.layers.concept.base import ConceptIntervention, ConceptLayer
from ibreg.layers.concept.specification import Concepts
from ibreg.layers.constraints import OneOf
from ibreg.layers.intervention import intervening
from ibreg.regularized import named_bottlenecks, unwrap

SPACES = ("probability", "logit", "percentile")
UNITS = ("group", "concept")
FALSE_PERCENTILE, TRUE_PERCENTILE = 5.0, 95.0


def concept_layer(model: nn.Module) -> ConceptLayer:
    """Return the concept layer of a model, wrapped or not.

    Raises:
        ValueError: If there is none, or more than one.
    """
    layers = _concept_layers(model)
    if len(layers) != 1:
        names = ", ".join(layers.values()) or "none"
        raise ValueError(f"the model must have one concept bottleneck, got {len(layers)}: {names}")
    return next(iter(layers))


@contextmanager
def intervene(
    model: nn.Module,
    mask: Tensor,
    values: Tensor,
    space: str = "probability",
    *,
    training_logits: Tensor | None = None,
) -> Iterator[None]:
    """Set concepts of every concept layer in a model inside a `with` block.

    Args:
        model: model with at least one concept layer, wrapped or not; several layers must have the same concepts.
        mask: `(batch, concepts)`, bool, True where a concept is set; of a categorical group all columns or none.
        values: `(batch, concepts)`, the values that are set; read where the mask is True.
        space: space of the values: "probability" (of a continuous concept its value), "logit", or "percentile", from 0
            to 100, of the concept's logits on training data.
        training_logits: `(samples, concepts)`, from which percentiles are computed: `predict_concepts(model, x).logits`
            of training inputs.

    Raises:
        ValueError: If there is no concept layer, the space is unknown, the mask is not a bool tensor of the right shape
            (such as indices) or covers a part of a categorical group, probabilities are outside [0, 1] or do not sum
            to 1 in a categorical group, or percentiles lack training logits or are outside [0, 100].

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(ibreg.ConceptBottleneck(4, ["red", "round"]), nn.Linear(2, 3)).eval()
        >>> x, truth = torch.zeros(5, 4), torch.ones(5, 2)
        >>> with intervene(net, torch.ones(5, 2).bool(), truth):
        ...     torch.equal(net(x), net[1](truth))
        True
    """
    layers = _concept_layers(model)
    if not layers:
        raise ValueError("the model must have a concept bottleneck to intervene on, got none")
    OneOf(SPACES).check("the space of an intervention", space)
    for layer, name in layers.items():
        check_mask(mask, layer.concepts, name)
        if values.shape != mask.shape:
            raise ValueError(f"values must have the shape of the mask {tuple(mask.shape)}, got {tuple(values.shape)}")
        if space == "probability":
            layer.concepts.check_labels(torch.where(mask, values, torch.nan), "values")
    if space == "percentile":
        if training_logits is None:
            raise ValueError(
                "percentiles are those of training data: pass training_logits=predict_concepts(model, x_train).logits"
            )
        values, space = percentiles(training_logits, torch.where(mask, values, 50.0)), "logit"
    with intervening(dict.fromkeys(layers, ConceptIntervention(mask, values, space))):
        yield


def check_mask(mask: Any, concepts: Concepts, name: str) -> None:
    """Check the mask of an intervention on a layer of some name.

    Raises:
        ValueError: If it is not a bool tensor `(batch, concepts)`, such as indices, or covers a part of a categorical
            group.
    """
    count = len(concepts)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != count:
        got = f"{tuple(mask.shape)} of {mask.dtype}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(
            f"the mask for {name} must be a bool tensor (batch, {count} concepts), True where a concept is set, got "
            f"{got}; indices become one by torch.zeros(batch, concepts).bool().index_fill(1, indices, True)"
        )
    for group, columns in concepts.members.items():
        covered = mask[:, list(columns)]
        if concepts.kinds[columns[0]] == "categorical" and (covered.any(1) != covered.all(1)).any():
            raise ValueError(f"the mask covers a part of the categorical group {group!r}: set all its columns or none")


def percentiles(training_logits: Tensor, percent: Tensor) -> Tensor:
    """Compute percentiles of each concept's logits, with linear interpolation.

    Args:
        training_logits: `(samples, concepts)`.
        percent: `(batch, concepts)`, from 0 to 100.

    Returns:
        `(batch, concepts)`.

    Raises:
        ValueError: If the shapes do not fit, or a percentile is outside [0, 100].

    Example:
        >>> percentiles(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.0], [75.0]])).tolist()
        [[0.0], [2.5]]
    """
    if training_logits.dim() != 2 or training_logits.shape[1:] != percent.shape[1:]:
        raise ValueError(
            f"training logits must have shape (samples, {percent.shape[1]} concepts), got "
            f"{tuple(training_logits.shape)}"
        )
    if not ((percent >= 0) & (percent <= 100)).all():
        raise ValueError(
            f"percentiles must be from 0 to 100, got {float(percent.min()):g} ... {float(percent.max()):g}"
        )
    ordered = training_logits.detach().to(percent.device).sort(0).values
    rank = percent.to(ordered.dtype) / 100 * (len(ordered) - 1)
    below, above = rank.floor().long(), rank.ceil().long()
    return torch.lerp(ordered.gather(0, below), ordered.gather(0, above), rank - below)


def intervention_values(
    layer: ConceptLayer, labels: Tensor, training_logits: Tensor | None = None
) -> tuple[Tensor, str]:
    """Return the values that an intervention has to set for some labels, and their space.

    In a code of probabilities they are the labels. In a code of logits they are the 5th percentile of the training
    logits for a label of 0, the 95th for 1, and in proportion between them; of a continuous concept the label.

    Args:
        layer: layer whose code decides on the space.
        labels: `(batch, concepts)`; NaN becomes 0.
        training_logits: `(samples, concepts)`, required for a code of logits.

    Raises:
        ValueError: If training logits are required and missing.
    """
    labels = torch.nan_to_num(labels)
    if layer.intervention_space == "probability":
        return labels, "probability"
    if training_logits is None:
        raise ValueError(
            "in a code of logits an intervention sets percentiles of training data: pass "
            "training_logits=predict_concepts(model, x_train).logits"
        )
    continuous = torch.tensor([kind == "continuous" for kind in layer.concepts.kinds], device=labels.device)
    percent = FALSE_PERCENTILE + (TRUE_PERCENTILE - FALSE_PERCENTILE) * torch.where(continuous, 0, labels)
    return torch.where(continuous, labels, percentiles(training_logits, percent)), "logit"


def wrong_labels(concepts: Concepts, labels: Tensor, *, seed: int = 0) -> Tensor:
    """Return labels that are all incorrect: binary labels are flipped, categorical ones moved to another value.

    No value of a continuous concept is exactly incorrect: its label becomes NaN, which is not set.

    Args:
        concepts: specification of the columns.
        labels: `(batch, concepts)`; NaN stays.
        seed: random seed of the choice among the other values of a categorical concept.

    Example:
        >>> wrong_labels(Concepts.of(2), torch.tensor([[1.0, 0.0]])).tolist()
        [[0.0, 1.0]]
    """
    generator = torch.Generator().manual_seed(seed)
    wrong = []
    for kind, run in concepts.runs:
        true = labels[:, run]
        if kind == "binary":
            wrong.append(1 - true)
        elif kind == "continuous":
            wrong.append(torch.full_like(true, torch.nan))
        else:
            values = true.shape[1]
            steps = torch.randint(1, values, (len(true), 1), generator=generator).to(true.device)
            wrong.append(true.gather(1, (torch.arange(values, device=true.device) - steps) % values))
    return torch.cat(wrong, 1)


def intervention_groups(concepts: Concepts, by: str) -> dict[str, tuple[int, ...]]:
    """Return the columns that one intervention sets together, by name.

    Args:
        concepts: specification of the columns.
        by: "group": all concepts of a group are one intervention; "concept": each concept is one, a categorical group
            always as a whole.

    Raises:
        ValueError: If `by` is neither.

    Example:
        >>> intervention_groups(Concepts.of([{"name": "a", "group": "g"}, {"name": "b", "group": "g"}]), "concept")
        {'a': (0,), 'b': (1,)}
    """
    OneOf(UNITS).check("by", by)
    return concepts.members if by == "group" else concepts.units


def intervention_costs(groups: Mapping[str, Sequence[int]], costs: Mapping[str, float] | None) -> Tensor:
    """Return the cost of each intervention, `(interventions,)`, 1 where none is given.

    Raises:
        ValueError: If a cost is that of no intervention, or is not a finite number above 0.
    """
    unknown = set(costs or ()) - set(groups)
    if unknown:
        raise ValueError(f"costs must be those of {', '.join(groups)}, got costs of {', '.join(sorted(unknown))}")
    complete = [float((costs or {}).get(name, 1.0)) for name in groups]
    if not all(math.isfinite(cost) and cost > 0 for cost in complete):
        raise ValueError(f"costs must be finite numbers above 0, got {costs}")
    return torch.tensor(complete)


def _concept_layers(model: nn.Module) -> dict[ConceptLayer, str]:
    named = named_bottlenecks(unwrap(model))
    return {layer: name or "the model" for layer, name in named.items() if isinstance(layer, ConceptLayer)}
