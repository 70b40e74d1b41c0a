"""Base class of the concept bottlenecks: concepts of a sample, their loss, interventions, and the head.

A concept belongs to a sample. Tokens and maps are therefore averaged over their positions before concepts are predicted
from them, and the output of the head is repeated at every position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ibreg.layers.base import Bottleneck
from ibreg.layers.concept.constraints import IsDescription, PositiveWeight
from ibreg.layers.concept.head import HEADS, build_head
from ibreg.layers.concept.specification import Concepts, Description
from ibreg.layers.constraints import Count, OneOf, Optional
from ibreg.layers.intervention import intervention_on
from ibreg.layers.positions import batch_mean, mean_over_positions
from ibreg.layers.scope import Scope
from ibreg.tracing import assert_finite, can_assert

SPACES = ("probability", "logit")
CODES = ("probability", "hard", "logit")


class ConceptIntervention(NamedTuple):
    """An intervention, `intervening({layer: ...})`: values that replace predicted concepts of a layer.

    Attributes:
        mask: `(batch, concepts)`, bool, True where a concept is set. Of a categorical group, set all columns or none.
        values: `(batch, concepts)`, the values that are set; ignored where the mask is False.
        space: space of the values: "probability" (of a continuous concept: its value) or "logit".
    """

    mask: Tensor
    values: Tensor
    space: str = "probability"


class ConceptState(NamedTuple):
    """State of a concept layer for its penalty; states of single layers have further fields after these two.

    Attributes:
        logits: `(batch, concepts)`, the predicted logits before interventions (of a stochastic layer: the means); the
            logit of a continuous concept is its value. The concept loss is computed from them.
        values: `(batch, concepts)`, the concepts that the head reads, in probability space: after interventions (and,
            while a stochastic layer trains, sampled).
    """

    logits: Tensor
    values: Tensor


class ConceptLayer(Bottleneck):
    r"""Base class of the concept bottlenecks: features -> concepts -> code -> head.

    .. math:: \text{penalty} = \frac{1}{n} \sum_{i=1}^n \sum_c w_c \, \ell_c(x_i, c_i)

    in nats, with l the binary cross-entropy (times `pos_weight` where the label is 1), the cross-entropy of a
    categorical group, or the squared error of a continuous concept. Missing labels (NaN) have no loss; samples without
    any label are left out of the mean, and a batch of such samples has penalty 0.

    A subclass writes `code_features`, `create_parameters` and `encode`, whose state begins with the fields of
    `ConceptState`.

    Evaluations use `predict_concepts(x)` and `concept_logits(x)` for an input of the layer; in a whole model, the state
    of its record in the scope (`state.logits`, `state.values`). `intervening({layer: ConceptIntervention(...)})` sets
    concepts inside a block.

    Args:
        in_features: size of the feature axis.
        concepts: a description for `Concepts.of`: a number, names, entries, or a `Concepts`.
        out_features: size of the output; None: that of the code, or with a head `in_features`.
        head: from code to output: "identity", "linear" or "mlp"; None: "linear" if out_features are given, else
            "identity".
        beta: weight of the concept loss.
        pos_weight: weight of the positive labels of binary concepts, a number or one per concept
            (`Concepts.positive_weights`); None: 1.
        dim: feature axis.
        device: device of beta.
    """

    reads_scope = True  # interventions, masks, and in some layers the labels
    interventions_move_others = False  # whether setting a concept changes the other predicted concepts
    constraints = {
        "concepts": IsDescription(),
        "out_features": Optional(Count("size of the output")),
        "head": Optional(OneOf(HEADS)),
        "pos_weight": PositiveWeight(),
    }

    # Options: `in_features`, `concepts`, `out_features` and `head` may be None until `create_parameters`.
    in_features: int
    concepts: Concepts
    out_features: int
    head: str
    pos_weight: float | list[float] | None

    concept_weights: Tensor
    positive_weights: Tensor

    def __init__(
        self,
        in_features: int | None,
        concepts: Description | None,
        *,
        out_features: int | None,
        head: str | None,
        beta: float,
        pos_weight: float | Sequence[float] | None,
        dim: int | None,
        device,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(concepts=concepts, out_features=out_features, head=head, pos_weight=pos_weight)
        if concepts is not None and isinstance(self.pos_weight, list) and len(self.pos_weight) != len(self.concepts):
            raise ValueError(
                f"pos_weight must be one number or one for each of {len(self.concepts)} concepts, got "
                f"{len(self.pos_weight)} numbers"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The concept labels."""
        return ("concepts",)

    @property
    def code_features(self) -> int:
        """Size of the code that the head reads."""
        raise NotImplementedError

    @property
    def intervention_space(self) -> str:
        """The space of the code, in which evaluations set concepts: "logit" or "probability"."""
        return "logit" if getattr(self, "code", None) == "logit" else "probability"

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, Any]:
        """Return the code `(batch, code_features)` of features `(batch, in_features)`, and the state."""
        raise NotImplementedError

    def decode(self, code: Tensor, pooled: Tensor) -> Tensor:
        """Return the output `(batch, out_features)` of a code."""
        return self.decoder(code)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Register the head and the weights of the loss."""
        if self.concepts is None:
            raise ValueError(
                f"{type(self).__name__} has no concepts: pass their number, concepts=5, their names, or an "
                "ibreg.Concepts"
            )
        if self.head is None:
            self.head = "identity" if self.out_features is None else "linear"
        if self.out_features is None:
            self.out_features = self.code_features if self.head == "identity" else self.in_features
        self.decoder = build_head(self.head, self.code_features, self.out_features, device=device, dtype=dtype)
        for name in ("concept_weights", "positive_weights"):
            self.register_buffer(name, torch.empty(len(self.concepts), dtype=torch.float32, device=device))

    def reset_parameters(self) -> None:
        """Reset all modules to torch's initialization, beta and the weights of the loss to their initial values."""
        super().reset_parameters()
        positive = self.pos_weight if isinstance(self.pos_weight, list) else [self.pos_weight or 1.0]
        with torch.no_grad():
            self.concept_weights.copy_(torch.tensor(self.concepts.weights))
            self.positive_weights.copy_(torch.tensor(positive))
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Any]:
        """Return the output of the head, repeated at every position, and the state."""
        pooled = self.pooled(x, scope)
        code, state = self.encode(pooled, scope)
        z = self.decode(code, pooled)
        positions = self.features_last(x).shape[1:-1]
        # Repeated, not expanded, and copied in any case: operations after the layer may be in place.
        z = z.reshape(z.shape[0], *[1] * len(positions), z.shape[1]).repeat(1, *positions, 1)
        return self.features_back(z), state

    def pooled(self, x: Tensor, scope: Scope | None) -> Tensor:
        """Return the mean over the tokens or positions that the mask includes: `(batch, in_features)`."""
        features = self.features_last(x)
        if features.dim() == 2:
            return features
        return mean_over_positions(features, scope.repeated(scope.repeats).mask if scope is not None else None)

    def penalty(self, state: Any, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the concept loss, and as logs the loss and the concept accuracy."""
        labels, known = self.labels(scope, state.logits)
        losses = torch.where(known, self.concept_losses(state.logits, labels), 0).sum(-1)
        loss = batch_mean(losses, valid=known.any(-1))
        return loss, {"concept_loss": loss, **self.concept_scores(state.logits, labels, known)}

    def concept_logits(self, x: Tensor) -> Tensor:
        """Return the predicted logits for an input of the layer, `(batch, concepts)`, without interventions.

        The logit of a continuous concept is its value; a stochastic layer returns the means.
        """
        return self.transform(x)[1].logits

    def predict_concepts(self, x: Tensor) -> Tensor:
        """Return the predicted probabilities `(batch, concepts)`, of continuous concepts the predicted values."""
        return self.concepts.probabilities(self.concept_logits(x))

    def after_intervention(self, logits: Tensor, scope: Scope | None) -> tuple[Tensor, Tensor]:
        """Return logits and probabilities, replaced by the values of an open intervention where it sets concepts.

        Raises:
            ValueError: If the mask or the values of the intervention do not fit.
        """
        intervention = self.intervention(logits, scope)
        if intervention is None:
            return logits, self.concepts.probabilities(logits)
        mask, values, space = intervention
        if space == "logit":
            logits = torch.where(mask, values, logits)
            return logits, self.concepts.probabilities(logits)
        probabilities = torch.where(mask, values, self.concepts.probabilities(logits))
        return torch.where(mask, self.concepts.logits(values), logits), probabilities

    def intervention(self, logits: Tensor, scope: Scope | None) -> ConceptIntervention | None:
        """Return the open intervention on this layer, checked, in the dtype of the logits, or None.

        Raises:
            ValueError: If the mask is not a bool tensor of the logits' shape, the values have another shape, or the
                space is unknown.
        """
        intervention = intervention_on(self)
        if intervention is None:
            return None
        mask, values, space = intervention
        OneOf(SPACES).check("the space of an intervention", space)
        if mask.dtype != torch.bool:
            raise ValueError(
                "the mask of an intervention must be a bool tensor (batch, concepts), True where a concept is set, got "
                f"{mask.dtype}: convert indices to a mask"
            )
        if scope is not None and scope.repeats > 1:  # after the samples of this layer or another
            mask, values = (tensor.repeat(scope.repeats, 1) for tensor in (mask, values))
        for name, tensor in (("mask", mask), ("values", values)):
            if tensor.shape != logits.shape:
                raise ValueError(
                    f"the {name} of an intervention must have shape (batch, concepts) = {tuple(logits.shape)}, "
                    f"got {tuple(tensor.shape)}"
                )
        values = values.to(logits.dtype)
        assert_finite(torch.where(mask, values, 0), "an intervention sets concepts to finite values")
        return ConceptIntervention(mask, values, space)

    def coded(self, code: str, logits: Tensor, probabilities: Tensor) -> Tensor:
        """Return concepts in the space of the `code`, as the head reads them: "probability", "hard" or "logit"."""
        if code == "logit":
            return logits
        if code == "probability":
            return probabilities
        # Straight-through: the difference is exactly 0, so the code is exactly 0 or 1, its gradient the probability's.
        return self.concepts.decisions(probabilities.detach()) + (probabilities - probabilities.detach())

    def labels(self, scope: Scope, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels of a scope, 0 where they are missing, and a mask that is True where they are known.

        Raises:
            ValueError: If the labels have another shape.
            RuntimeError: If labels of binary or categorical concepts are outside [0, 1], where that can be asserted.
        """
        labels = cast(Tensor, scope.concepts).to(logits.dtype)
        if labels.shape != logits.shape:
            raise ValueError(
                f"bottleneck {scope.name_of(self)} takes concept labels of shape (batch, concepts) = "
                f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
            )
        known = ~labels.isnan()
        labels = torch.where(known, labels, 0)
        if can_assert(labels):
            for kind, run in self.concepts.runs:
                values = labels[:, run]
                torch._assert_async(
                    (values.isfinite() if kind == "continuous" else (values >= 0) & (values <= 1)).all(),
                    f"bottleneck {scope.name_of(self)} takes labels of {kind} concepts that are "
                    f"{'finite' if kind == 'continuous' else 'in [0, 1]'}, or NaN where they are missing",
                )
        return labels, known

    def concept_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted loss of each column, in nats; those of a categorical group sum to its cross-entropy.

        Args:
            logits: `(..., batch, concepts)`.
            labels: `(batch, concepts)`, without NaN.
        """
        losses = []
        for kind, run in self.concepts.runs:
            predicted, true = logits[..., run], labels[..., run].expand_as(logits[..., run])
            if kind == "binary":
                weight = self.positive_weights[run].to(predicted.dtype)
                losses.append(F.binary_cross_entropy_with_logits(predicted, true, pos_weight=weight, reduction="none"))
            elif kind == "categorical":
                losses.append(-true * predicted.log_softmax(-1))
            else:
                losses.append((predicted - true).square())
        return torch.cat(losses, -1) * self.concept_weights.to(logits.dtype)

    def concept_scores(self, logits: Tensor, labels: Tensor, known: Tensor) -> dict[str, Tensor]:
        """Return `concept_accuracy` (binary concepts and categorical groups) and `concept_error` (mean squared error).

        Both are means over the known labels, 0 if there is none; each exists only if there are such concepts.
        """
        predicted, true = (self.concepts.decisions(p) for p in (self.concepts.probabilities(logits), labels))
        scores: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for kind, run in self.concepts.runs:
            if kind == "continuous":
                scores.setdefault("concept_error", []).append(((predicted - true)[:, run].square(), known[:, run]))
                continue
            correct, labeled = (predicted == true)[:, run], known[:, run]
            if kind == "categorical":
                correct, labeled = correct.all(-1, keepdim=True), labeled.all(-1, keepdim=True)
            scores.setdefault("concept_accuracy", []).append((correct.to(logits.dtype), labeled))
        return {name: _mean_of_known(parts) for name, parts in scores.items()}

    def config(self) -> dict[str, Any]:
        """Return the constructor arguments that rebuild this layer, with the concepts as a list of entries."""
        config = super().config()
        return config | {"concepts": None if self.concepts is None else self.concepts.entries()}

    def extra_repr(self) -> str:
        """Describe sizes, concepts and beta."""
        count = "?" if self.concepts is None else len(self.concepts)
        return f"{self.in_features} -> {count} concepts -> {self.out_features}, beta={self._beta_value():g}"


def _mean_of_known(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean of the known values, given as pairs `(values, known)`; 0 if there is none."""
    values, known = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    return torch.where(known, values, 0).sum() / known.sum().clamp(min=1)
