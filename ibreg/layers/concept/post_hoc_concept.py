"""Post-hoc concept bottleneck: directions of concepts in a frozen network's features, and a sparse head on them.

Yuksekgonul et al. 2023 (arXiv 2205.15480).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.layers.concept.base import CODES, ConceptLayer
from ibreg.layers.concept.constraints import Matrix
from ibreg.layers.concept.head import HeadPenalty, check_prior_is_used
from ibreg.layers.concept.specification import Description
from ibreg.layers.constraints import AtLeast, Bool, OneOf, Optional
from ibreg.layers.scope import Scope
from ibreg.registry import register

# Weights whose absolute value is at most this count as zero in the log `active_weights`.
LEAST_WEIGHT = 1e-3


class PostHocConceptState(NamedTuple):
    """A `ConceptState`, and two 0-dim tensors: the penalty on the head's weights and the fraction of active weights."""

    logits: Tensor
    values: Tensor
    head_penalty: Tensor
    active_weights: Tensor


@register("post_hoc_concept")
class PostHocConceptBottleneck(ConceptLayer):
    r"""Post-hoc concept layer: projects features on fixed concept vectors and penalizes the weights of the head.

    .. math:: m_c = v_c \cdot x + b_c, \quad z = W \, \text{code}(m) + d \; [+ \, R x], \quad
        \text{penalty} = l_1 |W|_1 + l_2 |W|_2^2

    The vectors are buffers, not trained: `ibreg.layers.concept.fitting.fit_concept_vectors` fits them to the features
    of a frozen network, from a few labeled samples; before that they are random directions. The head is trained by the
    task loss and the penalty, or fitted by `ibreg.layers.concept.fitting.fit_sparse_head`.

    Args:
        in_features: size of the feature axis.
        concepts: their number, their names, a list of entries (`Concepts.of`), or a `Concepts`.
        code: input of the head: "logit" (m), "probability" or "hard".
        hybrid: whether R x is added, a linear map of all features (PCBM-h, `residual_decoder`). It is initialized to 0,
            and recovers accuracy that incomplete concepts cost: train it after the head, with the head frozen.
        out_features: size of the output; None: `in_features`.
        head_l1: weight of the L1 norm of the head's weights; the defaults of head_l1 and head_l2 are close to the
            elastic net of the paper.
        head_l2: weight of their squared L2 norm.
        head_prior: matrix `(out_features, concepts)`, usually of -1, 0 and 1, from which head_l1 and head_l2 penalize
            deviations; None: 0.
        beta: weight of the penalty.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of parameters and vectors.
        dtype: of parameters and vectors.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. Concepts belong to a sample: they are predicted from the mean over its tokens
        or positions, and the output is the same at all of them. See `ConceptBottleneck`, also for interventions.

    It needs no labels. If `concepts` are given, their loss and accuracy are logged.

    Logs: `head_penalty`, `active_weights` (fraction of the head's weights with an absolute value above 1e-3); with
    labels also the logs of `ConceptBottleneck`.

    Many processes: the penalty depends on the weights alone and is the same on all ranks.

    Raises:
        ValueError: If an option is out of range, there are no concepts, or sizes or labels do not fit.

    Example:
        >>> layer = PostHocConceptBottleneck(8, ["red", "round"], out_features=3)
        >>> out = layer.measure(torch.zeros(2, 8))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([2, 3]), ['active_weights', 'head_penalty'])
    """

    constraints = {
        "code": OneOf(CODES),
        "hybrid": Bool(),
        "head_l1": AtLeast(0),
        "head_l2": AtLeast(0),
        "head_prior": Optional(Matrix()),
    }

    code: str
    hybrid: bool
    head_l1: float
    head_l2: float
    head_prior: list[list[float]] | None
    decoder: nn.Linear

    vectors: Tensor
    offsets: Tensor

    def __init__(
        self,
        in_features: int | None = None,
        concepts: Description | None = None,
        *,
        code: str = "logit",
        hybrid: bool = False,
        out_features: int | None = None,
        head_l1: float = 1e-5,
        head_l2: float = 5e-8,
        head_prior: Sequence[Sequence[float]] | None = None,
        beta: float = 1.0,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_features, concepts, out_features=out_features, head="linear", beta=beta, pos_weight=None, dim=dim,
            device=device,
        )  # fmt: skip
        self.keep(code=code, hybrid=hybrid, head_l1=head_l1, head_l2=head_l2, head_prior=head_prior)
        check_prior_is_used(head_l1, head_l2, head_prior)
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing: the vectors are fitted before training."""
        return ()

    @property
    def code_features(self) -> int:
        """The concepts."""
        return len(self.concepts)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Register the vectors as buffers, the head, and with `hybrid` the residual map."""
        super().create_parameters(device=device, dtype=dtype)
        count = len(self.concepts)
        self.register_buffer("vectors", torch.empty((count, self.in_features), device=device, dtype=dtype))
        self.register_buffer("offsets", torch.empty(count, device=device, dtype=dtype))
        self.head_penalty = HeadPenalty(
            self.head_l1, self.head_l2, self.head_prior, out_features=self.out_features, concepts=count, device=device
        )
        if self.hybrid:
            self.residual_decoder = nn.Linear(
                self.in_features, self.out_features, bias=False, device=device, dtype=dtype
            )

    def reset_parameters(self) -> None:
        """Reset the vectors to random directions, the head to torch's initialization, the residual map to 0."""
        super().reset_parameters()
        with torch.no_grad():
            self.vectors.copy_(F.normalize(torch.randn_like(self.vectors), dim=-1))
            self.offsets.zero_()
            if self.hybrid:
                self.residual_decoder.weight.zero_()

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor, offsets: Tensor) -> None:
        """Replace the concept vectors.

        Args:
            vectors: `(concepts, in_features)`, v.
            offsets: `(concepts,)`, b.

        Raises:
            ValueError: If the shapes do not fit, or values are not finite.
        """
        for name, current, new in (("vectors", self.vectors, vectors), ("offsets", self.offsets, offsets)):
            if new.shape != current.shape:
                raise ValueError(f"{name} must have shape {tuple(current.shape)}, got {tuple(new.shape)}")
            if not new.isfinite().all():
                raise ValueError(f"{name} must be finite, got NaN or infinite values")
        self.vectors.copy_(vectors)
        self.offsets.copy_(offsets)

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, PostHocConceptState]:
        """Return the projections on the vectors, in the space of the code, after interventions."""
        logits = F.linear(pooled, self.vectors, self.offsets)
        read, values = self.after_intervention(logits, scope)
        code = self.coded(self.code, read, values)
        weight = self.decoder.weight
        active = (weight.abs() > LEAST_WEIGHT).float().mean()
        return code, PostHocConceptState(logits, values, self.head_penalty(weight), active)

    def decode(self, code: Tensor, pooled: Tensor) -> Tensor:
        """Return the output of the head, with `hybrid` plus the residual map of all features."""
        z = self.decoder(code)
        return z + self.residual_decoder(pooled) if self.hybrid else z

    def penalty(self, state: PostHocConceptState, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the penalty on the head, and the logs."""
        logs = {"head_penalty": state.head_penalty, "active_weights": state.active_weights}
        if scope.concepts is not None:
            logs |= super().penalty(state, scope)[1]
        return state.head_penalty, logs
