"""Corrections of concepts at test time: setting them, right or wrong, and what a model makes of it.

Koh et al. 2020 (arXiv 2007.04612, section 5). How accuracy grows with corrections: `intervention_curves`.

A code of probabilities is corrected to the label itself. A code of logits has no value that is "true": there the 95th
and the 5th percentile of the concept's logits on training data stand for a label of 1 and 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ibreg.layers.concept.base import ConceptIntervention, ConceptLayer
from ibreg.layers.concept.specification import Concepts
from ibreg.layers.intervention import intervening
from ibreg.layers.scope import Scope, opened
from ibreg.modes import captured, evaluating
from ibreg.regularized import named_bottlenecks, network_to_run, unwrap

SPACES = ("probability", "logit", "percentile")
FALSE_PERCENTILE, TRUE_PERCENTILE = 5.0, 95.0
ROWS_AT_ONCE = 1000


def concept_layer(model: nn.Module) -> ConceptLayer:
    """Returns the one concept layer of a model, wrapped or not.

    Raises:
        ValueError: there is none, or there are several.
    """
    layers = _concept_layers(model)
    if len(layers) != 1:
        names = ", ".join(layers.values()) or "none"
        raise ValueError(f"this takes a model with one concept bottleneck, it has {len(layers)}: {names}")
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
    """Sets concepts of every concept layer in a model, for the length of a `with` block.

    Args:
        model: with at least one concept layer, wrapped or not. Several have the same concepts.
        mask: `(batch, concepts)`, bool, True where a concept is set; of a categorical group all columns or none.
        values: `(batch, concepts)`, what it is set to; read where the mask is True.
        space: of the values: "probability" (of a continuous concept its value), "logit", or "percentile", from 0 to
            100, of the concept's logits on training data.
        training_logits: `(samples, concepts)`, which percentiles are taken of: `find_concepts(model, x).logits` of
            training inputs.

    Raises:
        ValueError: no concept layer, another space, a mask that is none or is of another shape, indices in its place,
            a mask over a part of a categorical group, probabilities outside [0, 1] or that do not sum to 1 in a
            categorical group, percentiles without training logits or outside [0, 100].

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
        raise ValueError("there is no concept bottleneck in the model whose concepts could be set")
    if space not in SPACES:
        raise ValueError(f"the space of an intervention is one of {', '.join(map(repr, SPACES))}, got {space!r}")
    for layer, name in layers.items():
        check_mask_of_concepts(mask, len(layer.concepts), name)
        if values.shape != mask.shape:
            raise ValueError(f"values have the shape of the mask {tuple(mask.shape)}, got {tuple(values.shape)}")
        _check_groups(mask, layer.concepts)
        if space == "probability":
            layer.concepts.check_labels(torch.where(mask, values, torch.nan), "values")
    if space == "percentile":
        if training_logits is None:
            raise ValueError(
                "percentiles are those of training data: pass training_logits=find_concepts(model, x_train).logits"
            )
        values, space = percentiles(training_logits, torch.where(mask, values, 50.0)), "logit"
    with intervening(dict.fromkeys(layers, ConceptIntervention(mask, values, space))):
        yield


def check_mask_of_concepts(mask: Any, concepts: int, name: str = "the concept layer") -> None:
    """Raises a ValueError for what is no bool tensor `(batch, concepts)`, such as indices."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] != concepts:
        got = f"{tuple(mask.shape)} of {mask.dtype}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(
            f"a mask is a bool tensor (batch, {concepts} concepts) for {name}, True where a concept is set, got {got}; "
            "indices become one by torch.zeros(batch, concepts).bool().index_fill(1, indices, True)"
        )


def _check_groups(mask: Tensor, concepts: Concepts) -> None:
    for group, columns in concepts.members.items():
        those = mask[:, list(columns)]
        if concepts.kinds[columns[0]] == "categorical" and (those.any(1) != those.all(1)).any():
            raise ValueError(f"the mask sets a part of the categorical group {group!r}: set all of its columns or none")


def percentiles(training_logits: Tensor, percent: Tensor) -> Tensor:
    """Returns percentiles of each concept's logits, linear between neighbors.

    Args:
        training_logits: `(samples, concepts)`.
        percent: `(batch, concepts)`, from 0 to 100.

    Returns:
        `(batch, concepts)`.

    Raises:
        ValueError: other shapes, a percentile outside [0, 100].

    Example:
        >>> percentiles(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.0], [75.0]])).tolist()
        [[0.0], [2.5]]
    """
    if training_logits.dim() != 2 or training_logits.shape[1:] != percent.shape[1:]:
        raise ValueError(
            f"training logits are (samples, {percent.shape[1]} concepts), got {tuple(training_logits.shape)}"
        )
    if not ((percent >= 0) & (percent <= 100)).all():
        raise ValueError(f"percentiles are from 0 to 100, got {float(percent.min()):g} ... {float(percent.max()):g}")
    ordered = training_logits.detach().to(percent.device).sort(0).values
    place = percent.to(ordered.dtype) / 100 * (len(ordered) - 1)
    below, above = place.floor().long(), place.ceil().long()
    return torch.lerp(ordered.gather(0, below), ordered.gather(0, above), place - below)


class Findings(NamedTuple):
    """What a model makes of inputs.

    Attributes:
        output: `(samples, classes)`.
        logits: `(samples, concepts)`, the layer's own, before any correction.
        values: `(samples, concepts)`, probabilities (continuous: values) after corrections.
        codes: `(samples, concepts, width)`, what the head reads of each concept, without the residual.
    """

    output: Tensor
    logits: Tensor
    values: Tensor
    codes: Tensor


@torch.no_grad()
def find_concepts(
    model: nn.Module,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    training_logits: Tensor | None = None,
) -> Findings:
    """Runs a model in evaluation mode and returns output and concepts, some of them set to labels if wanted.

    Args:
        model: with one concept layer, wrapped or not; its modes come back as they were.
        x: `(samples, ...)`.
        mask: `(samples, concepts)`, bool, True where a concept is set; None: nowhere. Where the label is NaN it stays.
        labels: `(samples, concepts)`, what they are set to.
        training_logits: `(samples, concepts)`, for a code of logits: see `as_corrections`.

    Raises:
        ValueError: not one concept layer, one that does not run once in a pass, a mask or labels that do not fit.
    """
    layer, network = concept_layer(model), network_to_run(model)
    names, parts = named_bottlenecks(network), []
    if mask is not None:
        check_mask_of_concepts(mask, len(layer.concepts), names[layer])
        if labels is None or not len(x) == len(mask) == len(labels):
            counts = [len(part) if part is not None else "no" for part in (x, mask, labels)]
            raise ValueError("{} inputs, {} masks, {} labels: give as many of each".format(*counts))
        layer.concepts.check_labels(labels)
        _check_groups(mask, layer.concepts)
        mask = mask & ~labels.isnan()
        values, space = as_corrections(layer, labels, training_logits)
    with evaluating(model), captured(layer.decoder) as decoded:
        for rows in torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE):
            scope = Scope(inputs=x[rows], names=names)
            with ExitStack() as stack:
                stack.enter_context(opened(scope))
                if mask is not None:
                    # Checked above, once for all rows.
                    correction = ConceptIntervention(mask[rows], values[rows], space)
                    stack.enter_context(intervening({layer: correction}))
                output = network(x[rows])
            states = [record.state for record in scope.records if record.layer is layer]
            if len(states) != 1:
                raise ValueError(f"bottleneck {names[layer]} ran {len(states)} times in one pass: it has to run once")
            parts.append((output, states[0].logits, states[0].values, decoded.pop()))
    output, logits, values, codes = (torch.cat(part) for part in zip(*parts, strict=True))
    labeled = codes.shape[1] - getattr(layer, "residual", 0)
    return Findings(output, logits, values, codes[:, :labeled].unflatten(1, (len(layer.concepts), -1)))


def as_corrections(layer: ConceptLayer, labels: Tensor, training_logits: Tensor | None = None) -> tuple[Tensor, str]:
    """Returns what an intervention sets where it means these labels, and in which space.

    A probability is the label itself. A logit is the 5th percentile of the training logits for a label of 0, the 95th
    for 1, between them in proportion; of a continuous concept the label.

    Args:
        layer: says which of the two it wants.
        labels: `(batch, concepts)`; NaN becomes 0.
        training_logits: `(samples, concepts)`, for logits.

    Raises:
        ValueError: logits without training logits.
    """
    labels = torch.nan_to_num(labels)
    if layer.intervention_space == "probability":
        return labels, "probability"
    if training_logits is None:
        raise ValueError(
            "in a code of logits a correction is a percentile of training data: pass "
            "training_logits=find_concepts(model, x_train).logits"
        )
    continuous = torch.tensor([kind == "continuous" for kind in layer.concepts.kinds], device=labels.device)
    percent = FALSE_PERCENTILE + (TRUE_PERCENTILE - FALSE_PERCENTILE) * torch.where(continuous, 0, labels)
    return torch.where(continuous, labels, percentiles(training_logits, percent)), "logit"


def wrong_labels(concepts: Concepts, labels: Tensor, *, seed: int = 0) -> Tensor:
    """Returns labels that are wrong everywhere: binary ones turned round, categorical ones moved to another value.

    Of a continuous concept nothing is exactly wrong: its label becomes NaN, which is not set.

    Args:
        concepts: what the columns are.
        labels: `(batch, concepts)`; NaN stays.
        seed: of the choice among the other values of a categorical concept.

    Example:
        >>> wrong_labels(Concepts.of(2), torch.tensor([[1.0, 0.0]])).tolist()
        [[0.0, 1.0]]
    """
    generator = torch.Generator().manual_seed(seed)
    wrong = []
    for kind, run in concepts.runs:
        those = labels[:, run]
        if kind != "categorical":
            wrong.append(1 - those if kind == "binary" else torch.full_like(those, torch.nan))
            continue
        width = those.shape[1]
        steps = torch.randint(1, width, (len(those), 1), generator=generator).to(those.device)
        places = (torch.arange(width, device=those.device) - steps) % width
        wrong.append(those.gather(1, places))
    return torch.cat(wrong, 1)


def class_probabilities(output: Tensor) -> Tensor:
    """Returns probabilities of classes `(samples, classes)` of logits; of one column, by its sigmoid, of two."""
    if output.dim() != 2:
        raise ValueError(f"a classifier's output is (samples, classes), got {tuple(output.shape)}")
    if output.shape[1] > 1:
        return output.softmax(1)
    return torch.cat([-output, output], 1).sigmoid()


def _concept_layers(model: nn.Module) -> dict[ConceptLayer, str]:
    named = named_bottlenecks(unwrap(model))
    return {layer: name or "the model" for layer, name in named.items() if isinstance(layer, ConceptLayer)}
