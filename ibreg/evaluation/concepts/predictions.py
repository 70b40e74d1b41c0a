"""Predictions of a concept model: output, concepts and codes, with or without an intervention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ibreg.evaluation.concepts.interventions import check_mask, concept_layer, intervention_values
from ibreg.layers.concept.base import ConceptIntervention, ConceptLayer
from ibreg.layers.intervention import intervening
from ibreg.layers.scope import Scope, opened
from ibreg.modes import captured, evaluating
from ibreg.regularized import named_bottlenecks, network_to_run

ROWS_AT_ONCE = 1000


class ConceptPredictions(NamedTuple):
    """Predictions of a model for a set of samples.

    Attributes:
        output: `(samples, classes)`.
        logits: `(samples, concepts)`, the predicted logits, before any intervention.
        values: `(samples, concepts)`, probabilities (continuous: values) after the intervention.
        codes: `(samples, concepts, features)`, the code of each concept that the head reads, without the residual.
    """

    output: Tensor
    logits: Tensor
    values: Tensor
    codes: Tensor


@torch.no_grad()
def predict_concepts(
    model: nn.Module,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    training_logits: Tensor | None = None,
) -> ConceptPredictions:
    """Run a model in evaluation mode and return output and concepts, some of which may be set to labels.

    Args:
        model: model with one concept layer, wrapped or not; its modes are restored.
        x: `(samples, ...)`.
        mask: `(samples, concepts)`, bool, True where a concept is set; None: nowhere. A concept whose label is NaN is
            not set.
        labels: `(samples, concepts)`, the labels that concepts are set to.
        training_logits: `(samples, concepts)`, required for a code of logits: see `intervention_values`.

    Raises:
        ValueError: If the model does not have one concept layer that runs once in a forward pass, or the mask or the
            labels do not fit.
    """
    layer = concept_layer(model)
    intervention = None
    if mask is not None:
        intervention = _intervention(model, layer, x, mask, labels, training_logits)
    batches = []
    with evaluating(model):
        for rows in torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE):
            setting = {}
            if intervention is not None:
                setting[layer] = intervention._replace(mask=intervention.mask[rows], values=intervention.values[rows])
            batches.append(_predict(model, layer, x[rows], setting))
    output, logits, values, codes = (torch.cat(parts) for parts in zip(*batches, strict=True))
    labeled = codes.shape[1] - getattr(layer, "residual", 0)
    return ConceptPredictions(output, logits, values, codes[:, :labeled].unflatten(1, (len(layer.concepts), -1)))


def class_probabilities(output: Tensor) -> Tensor:
    """Return class probabilities `(samples, classes)` for logits; a single column is the logit of the second class.

    Raises:
        ValueError: If the output is not two-dimensional.
    """
    if output.dim() != 2:
        raise ValueError(f"the output of a classifier must have shape (samples, classes), got {tuple(output.shape)}")
    if output.shape[1] > 1:
        return output.softmax(1)
    return torch.cat([-output, output], 1).sigmoid()


def accuracy(output: Tensor, target: Tensor) -> float:
    """Return the fraction of samples whose most probable class is the target."""
    return float((class_probabilities(output).argmax(1) == target).double().mean())


def _intervention(
    model: nn.Module,
    layer: ConceptLayer,
    x: Tensor,
    mask: Tensor,
    labels: Tensor | None,
    training_logits: Tensor | None,
) -> ConceptIntervention:
    """Return the checked intervention that sets concepts to labels."""
    check_mask(mask, layer.concepts, named_bottlenecks(network_to_run(model))[layer])
    if labels is None or not len(x) == len(mask) == len(labels):
        counts = [len(part) if part is not None else "no" for part in (x, mask, labels)]
        raise ValueError("inputs, mask and labels must be equally many, got {}, {} and {}".format(*counts))
    layer.concepts.check_labels(labels)
    return ConceptIntervention(mask & ~labels.isnan(), *intervention_values(layer, labels, training_logits))


def _predict(model: nn.Module, layer: ConceptLayer, x: Tensor, interventions: Mapping[Any, Any]) -> tuple[Tensor, ...]:
    """Return output, concept logits, concept values and code of one batch."""
    network = network_to_run(model)
    names = named_bottlenecks(network)
    scope = Scope(inputs=x, names=names)
    with opened(scope), intervening(interventions), captured(cast(nn.Module, layer.decoder)) as codes:
        output = network(x)
    states = [record.state for record in scope.records if record.layer is layer]
    if len(states) != 1:
        raise ValueError(f"bottleneck {names[layer]} must run once in a forward pass, got {len(states)} calls")
    return output, states[0].logits, states[0].values, codes[-1]
