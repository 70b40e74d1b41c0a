"""Concept bottleneck: a code of named concepts, which users can inspect and intervene on.

Koh et al. 2020 (arXiv 2007.04612).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ibreg.layers.concept.base import CODES, ConceptLayer
from ibreg.layers.concept.constraints import Matrix
from ibreg.layers.concept.head import HeadPenalty, check_prior_is_used
from ibreg.layers.concept.specification import Description
from ibreg.layers.constraints import AtLeast, Count, OneOf, Optional
from ibreg.layers.scope import Scope
from ibreg.registry import register


class LinearConceptState(NamedTuple):
    """A `ConceptState`, and the 0-dim penalty on the head's weights, if there is one."""

    logits: Tensor
    values: Tensor
    head_penalty: Tensor | None


@register("concept")
class ConceptBottleneck(ConceptLayer):
    r"""Concept bottleneck layer: replaces features by concepts, predicted linearly, and penalizes the concept loss.

    .. math:: \text{penalty} = \frac{1}{n} \sum_i \sum_c w_c \, \ell_c(x_i, c_i), \quad z = \text{head}(\text{code})

    in nats, with l the binary cross-entropy (times `pos_weight` where the label is 1), the cross-entropy of a
    categorical group, or the squared error of a continuous concept; plus the elastic net on the head's weights if
    `head_l1` or `head_l2` is above 0.

    Args:
        in_features: size of the feature axis.
        concepts: their number, their names, a list of entries (`Concepts.of`), or a `Concepts`.
        code: input of the head: "probability"; "hard", 0 or 1 (one-hot in a categorical group) with the gradient of the
            probability; or "logit", which carries more information than the concepts (leakage), and where interventions
            set logits instead of 0 or 1. A continuous concept is its value in all of them.
        residual: number of further features, linear and without labels, that bypass the concepts; 0: none.
        out_features: size of the output; None: that of the code, or with a head `in_features`.
        head: from code to output: "identity", "linear" or "mlp" (one hidden layer of 64 ReLUs); None: "linear" if
            out_features are given, else "identity".
        head_l1: weight of the L1 norm of the linear head's weights, added to the concept loss; it makes them sparse.
        head_l2: weight of their squared L2 norm: with both, an elastic net (`functional.elastic_net`).
        head_prior: matrix `(out_features, concepts)`, usually of -1, 0 and 1, from which head_l1 and head_l2 penalize
            deviations; None: 0.
        beta: weight of the penalty, a sum over concepts as in arXiv 2007.04612 (0.01 there).
        pos_weight: weight of the positive labels of binary concepts: a number, or one per concept (negatives /
            positives: `Concepts.positive_weights`); None: 1.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. Concepts belong to a sample: they are predicted from the mean over its tokens
        or positions (without those that `mask` excludes: pass it in evaluation too), and the output is the same at all
        positions. In a network for images, put this layer after the last block or the pooling.

    It reads `concepts`, labels `(batch, concepts)` from 0 to 1 (soft labels too), NaN where one is missing. They are
    required in training; in evaluation without them nothing is logged. Samples without any label are left out of the
    mean; if all are, the penalty is 0. It reads the scope in its forward: activation checkpointing is refused.

    `intervening({layer: ConceptIntervention(mask, values)})` sets concepts.

    Logs: `concept_loss` (nats), `concept_accuracy` (of binary concepts and categorical groups) and `concept_error`
    (mean squared error of continuous concepts), over the known labels; `head_penalty` if there is one.

    Many processes: each rank penalizes its own rows.

    Raises:
        ValueError: If an option is out of range, there are no concepts, or sizes or labels do not fit.

    Example:
        >>> layer = ConceptBottleneck(8, ["red", "round"])
        >>> labels = torch.tensor([[1.0, 0.0], [0.0, torch.nan]])
        >>> out = layer.measure(torch.zeros(2, 8), concepts=labels)
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([2, 2]), ['concept_accuracy', 'concept_loss'])
    """

    constraints = {
        "code": OneOf(CODES),
        "residual": Count("number of features that bypass the concepts", least=0),
        "head_l1": AtLeast(0),
        "head_l2": AtLeast(0),
        "head_prior": Optional(Matrix()),
    }

    code: str
    residual: int
    head_l1: float
    head_l2: float
    head_prior: list[list[float]] | None

    def __init__(
        self,
        in_features: int | None = None,
        concepts: Description | None = None,
        *,
        code: str = "probability",
        residual: int = 0,
        out_features: int | None = None,
        head: str | None = None,
        head_l1: float = 0.0,
        head_l2: float = 0.0,
        head_prior: Sequence[Sequence[float]] | None = None,
        beta: float = 1.0,
        pos_weight: float | Sequence[float] | None = None,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_features, concepts, out_features=out_features, head=head, beta=beta, pos_weight=pos_weight, dim=dim,
            device=device,
        )  # fmt: skip
        self.keep(code=code, residual=residual, head_l1=head_l1, head_l2=head_l2, head_prior=head_prior)
        check_prior_is_used(head_l1, head_l2, head_prior)
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def code_features(self) -> int:
        """The concepts and the residual."""
        return len(self.concepts) + self.residual

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Register the encoder of concepts and residual, and the head."""
        super().create_parameters(device=device, dtype=dtype)
        self.encoder = nn.Linear(self.in_features, self.code_features, device=device, dtype=dtype)
        self.head_penalty = None
        if self.head_l1 or self.head_l2:
            if self.head != "linear":
                raise ValueError(f"head must be 'linear' with head_l1 or head_l2 above 0, got {self.head!r}")
            self.head_penalty = HeadPenalty(
                self.head_l1, self.head_l2, self.head_prior, out_features=self.out_features,
                concepts=len(self.concepts), device=device,
            )  # fmt: skip

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, LinearConceptState]:
        """Return the concepts in the space of the code, followed by the residual."""
        encoded = self.encoder(pooled)
        logits, residual = encoded[:, : len(self.concepts)], encoded[:, len(self.concepts) :]
        read, values = self.after_intervention(logits, scope)
        code = self.coded(self.code, read, values)
        penalty = self.head_penalty(self.decoder.weight) if self.head_penalty is not None else None
        state = LinearConceptState(logits, values, penalty)
        return torch.cat([code, residual], -1) if self.residual else code, state

    def penalty(self, state: LinearConceptState, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the concept loss plus the penalty on the head, and the logs."""
        loss, logs = super().penalty(state, scope)
        if state.head_penalty is None:
            return loss, logs
        return loss + state.head_penalty, logs | {"head_penalty": state.head_penalty}
