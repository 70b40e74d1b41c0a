"""Post-hoc concept bottleneck: directions of concepts in a frozen network's features, and a sparse head behind them.

Yuksekgonul et al. 2023 (arXiv 2205.15480).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.layers.concept.base import CODES, ConceptLayer
from ibreg.layers.concept.head import HeadPenalty, checked_penalty
from ibreg.layers.concept.specification import Description
from ibreg.layers.constraints import Bool, OneOf
from ibreg.layers.scope import Scope
from ibreg.registry import register

# A weight below this is as good as none to somebody who reads the head.
LEAST_WEIGHT = 1e-3


class PostHocConceptState(NamedTuple):
    """A `ConceptState`, the penalty on the head's weights and the share of those that are not small, both 0-dim."""

    logits: Tensor
    values: Tensor
    head_penalty: Tensor
    active_weights: Tensor


@register("post_hoc_concept")
class PostHocConceptBottleneck(ConceptLayer):
    r"""Replaces features by how far they lie along fixed concept vectors, and charges for the weights of the head.

    .. math:: m_c = v_c \cdot x + b_c, \quad z = W \, \text{code}(m) + d \; [+ \, R x], \quad
        \text{penalty} = l_1 |W|_1 + l_2 |W|_2^2

    The vectors are buffers, not trained: `ibreg.layers.concept.fitting.fit_concept_vectors` finds them in the
    features of a frozen network, from a few labeled samples; before that they are random directions. The head is
    trained by the task loss and the penalty, or fitted by `ibreg.layers.concept.fitting.fit_sparse_head`.

    Args:
        in_features: size of the feature axis.
        concepts: their number, their names, a list of entries (`Concepts.of`), or a `Concepts`.
        code: what the head reads: "logit" (m), "probability" or "hard".
        hybrid: whether R x is added, a linear map of all features (PCBM-h, `residual_decoder`). It starts at 0, and
            wins accuracy back where concepts are incomplete: train it after the head, with the head frozen.
        out_features: size of the output; None: `in_features`, so that the layer fits in place.
        head_l1: weight of the head's absolute weights. The paper's elastic net is about this and head_l2's default.
        head_l2: weight of their squares.
        head_prior: matrix `(out_features, concepts)`, usually of -1, 0 and 1, around which head_l1 and head_l2 are
            taken; None: 0.
        beta: weight of the penalty.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of parameters and vectors.
        dtype: of parameters and vectors.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. Concepts are those of a sample, read from the mean over its tokens or
        positions, and the output is the same at all of them: see `ConceptBottleneck`, as for corrections.

    It needs no labels. Where `concepts` are given, their loss and accuracy are logged.

    Logs: `head_penalty`, `active_weights` (share of the head's weights above 1e-3 in size); with labels those of
    `ConceptBottleneck`.

    Many processes: the penalty is that of the weights, the same on all ranks.

    Raises:
        ValueError: an option out of range, no concepts, sizes or labels that do not fit.

    Example:
        >>> layer = PostHocConceptBottleneck(8, ["red", "round"], out_features=3)
        >>> out = layer.measure(torch.zeros(2, 8))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([2, 3]), ['active_weights', 'head_penalty'])
    """

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
            in_features,
            concepts,
            out_features=out_features,
            head="linear",
            beta=beta,
            pos_weight=None,
            dim=dim,
            device=device,
        )
        OneOf(CODES).check("code", code)
        Bool().check("hybrid", hybrid)
        self.code = code
        self.hybrid = hybrid
        self.head_l1 = head_l1
        self.head_l2 = head_l2
        self.head_prior = checked_penalty(head_l1, head_l2, head_prior)
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing: the vectors are fitted beforehand."""
        return ()

    @property
    def code_features(self) -> int:
        """The concepts."""
        return len(self.concepts)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the vectors as buffers, the head, and with `hybrid` the map past it."""
        super().create_parameters(device=device, dtype=dtype)
        count = len(self.concepts)
        self.register_buffer("vectors", torch.empty((count, self.in_features), device=device, dtype=dtype))
        self.register_buffer("offsets", torch.empty(count, device=device, dtype=dtype))
        self.head_penalty = HeadPenalty(
            self.head_l1,
            self.head_l2,
            self.head_prior,
            out_features=self.out_features,
            concepts=count,
            device=device,
        )
        if self.hybrid:
            self.residual_decoder = nn.Linear(
                self.in_features, self.out_features, bias=False, device=device, dtype=dtype
            )

    def reset_parameters(self) -> None:
        """Sets the vectors to random directions, the head to torch's own start, the map past it to 0."""
        super().reset_parameters()
        with torch.no_grad():
            self.vectors.copy_(F.normalize(torch.randn_like(self.vectors), dim=-1))
            self.offsets.zero_()
            if self.hybrid:
                self.residual_decoder.weight.zero_()

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor, offsets: Tensor) -> None:
        """Puts fitted concept vectors in place of those that are there.

        Args:
            vectors: `(concepts, in_features)`, v.
            offsets: `(concepts,)`, b.

        Raises:
            ValueError: other shapes, values that are not finite.
        """
        for name, own, new in (("vectors", self.vectors, vectors), ("offsets", self.offsets, offsets)):
            if new.shape != own.shape:
                raise ValueError(f"{name} have shape {tuple(own.shape)}, got {tuple(new.shape)}")
            if not new.isfinite().all():
                raise ValueError(f"{name} have NaN or infinite values")
        self.vectors.copy_(vectors)
        self.offsets.copy_(offsets)

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, PostHocConceptState]:
        """Returns how far features lie along the vectors, in the space of the code, after corrections."""
        logits = F.linear(pooled, self.vectors, self.offsets)
        corrected, values = self.corrected(logits, scope)
        code = self.coded(self.code, corrected, values)
        weight = self.decoder.weight
        active = (weight.abs() > LEAST_WEIGHT).float().mean()
        return code, PostHocConceptState(logits, values, self.head_penalty(weight), active)

    def decode(self, code: Tensor, pooled: Tensor) -> Tensor:
        """Returns what the head makes of the code, and with `hybrid` what all features add."""
        z = self.decoder(code)
        return z + self.residual_decoder(pooled) if self.hybrid else z

    def penalty(self, state: PostHocConceptState, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the penalty on the head, and the logs."""
        logs = {"head_penalty": state.head_penalty, "active_weights": state.active_weights}
        if scope.concepts is not None:
            logs |= super().penalty(state, scope)[1]
        return state.head_penalty, logs
