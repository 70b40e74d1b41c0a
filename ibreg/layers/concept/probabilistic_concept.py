"""Probabilistic concept bottleneck: each concept is a Gaussian vector, whose variance is its uncertainty.

Kim et al. 2023 (arXiv 2306.01574).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.functional.gaussian import gaussian_rate
from ibreg.layers.concept.base import ConceptLayer
from ibreg.layers.concept.specification import Description
from ibreg.layers.constraints import AtLeast, Count
from ibreg.layers.encoder import build_encoder, noise_scale, reset_encoder
from ibreg.layers.positions import batch_mean
from ibreg.layers.scope import Scope
from ibreg.precision import at_least_float32, full_precision
from ibreg.registry import register

INITIAL_SHARPNESS = 5.0


class ProbabilisticConceptState(NamedTuple):
    """A `ConceptState` (logits: at the mean vectors), and the vectors and anchors that the penalty reads.

    Attributes:
        logits: `(batch, concepts)`.
        values: `(batch, concepts)`.
        mean: `(batch, concepts, embedding_features)`, of length 1.
        scale: the same shape, standard deviations.
        anchors: `(2, concepts, embedding_features)`, of absence and presence, of length 1.
        sharpness: 0-dim.
        noise: `(samples, batch, concepts, embedding_features)`, standard normal; None in evaluation.
    """

    logits: Tensor
    values: Tensor
    mean: Tensor
    scale: Tensor
    anchors: Tensor
    sharpness: Tensor
    noise: Tensor | None


@register("probabilistic_concept")
class ProbabilisticConceptBottleneck(ConceptLayer):
    r"""Probabilistic concept layer: one Gaussian vector per concept, classified by its distances to two anchors.

    .. math:: z_c \sim N(\mu_c(x), \sigma_c(x)^2), \quad
        p(c | x) = E_z \, \sigma(a (|z_c - z_c^-| - |z_c - z_c^+|)), \quad
        \text{penalty} = \text{concept loss of } p + \kappa \frac1n \sum_i \sum_c KL(p(z_c|x_i) \,\|\, N(0, I))

    in nats, with mean and anchors of length 1. The vectors are sampled in training and are their means in evaluation;
    sample them with `ibreg.predict(..., draws=n)`. An intervention replaces the vector of a concept by its anchor.
    `concept_uncertainty` and `class_uncertainty` return the uncertainty of concepts and classes.

    Args:
        in_features: size of the feature axis.
        concepts: their number, their names, a list of entries (`Concepts.of`), or a `Concepts`. A categorical group
            shares a softmax; continuous concepts have no anchors, which is an error.
        embedding_features: size of a concept's vector.
        samples: number of Monte Carlo samples in the concept loss in training. In evaluation the loss is that of the
            mean vectors.
        rate_weight: kappa, weight of the divergence, at least 0.
        out_features: size of the output; None: that of the code (concepts times embedding_features), or with a head
            `in_features`.
        head: from code to output: "identity", "linear" or "mlp" (one hidden layer of 64 ReLUs); None: "linear" if
            out_features are given, else "identity".
        beta: weight of the penalty.
        pos_weight: weight of the positive labels of binary concepts: a number, or one per concept (negatives /
            positives: `Concepts.positive_weights`); None: 1.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. Concepts belong to a sample: they are predicted from the mean over its tokens
        or positions, and the output is the same at all of them. See `ConceptBottleneck`, also for labels, interventions
        and many processes. After n training draws the batch is n times as long.

    Logs: those of `ConceptBottleneck`, and `rate` (the divergence).

    Raises:
        ValueError: If an option is out of range, there are no concepts or continuous ones, or sizes or labels do not
            fit.

    Example:
        >>> layer = ProbabilisticConceptBottleneck(8, ["red", "round"], embedding_features=4, out_features=3)
        >>> x, labels = torch.zeros(2, 8), torch.tensor([[1.0, 0.0], [0.0, torch.nan]])
        >>> sorted(layer.measure(x, concepts=labels).logs)
        ['concept_accuracy', 'concept_loss', 'rate']
        >>> layer.concept_uncertainty(x).shape, layer.class_uncertainty(x).shape
        (torch.Size([2, 2]), torch.Size([2, 3]))
    """

    stochastic = True
    constraints = {
        "embedding_features": Count("size of a concept's vector"),
        "samples": Count("number of Monte Carlo samples in the loss"),
        "rate_weight": AtLeast(0),
    }

    embedding_features: int
    samples: int
    rate_weight: float

    def __init__(
        self,
        in_features: int | None = None,
        concepts: Description | None = None,
        *,
        embedding_features: int = 16,
        samples: int = 16,
        rate_weight: float = 5e-5,
        out_features: int | None = None,
        head: str | None = None,
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
        self.keep(embedding_features=embedding_features, samples=samples, rate_weight=rate_weight)
        if self.concepts is not None and "continuous" in self.concepts.kinds:
            name = self.concepts.names[self.concepts.kinds.index("continuous")]
            raise ValueError(f"concept {name!r} must be binary or categorical, got a continuous one: use another layer")
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def code_features(self) -> int:
        """One vector per concept."""
        return len(self.concepts) * self.embedding_features

    @property
    def rate_bounds(self) -> str:
        """The information about the input."""
        return "I(X;Z)"

    def sample_rate(self, state: ProbabilisticConceptState) -> Tensor:
        """Returns the divergence of each sample, summed over concepts, in nats, `(batch,)`."""
        with full_precision(state.mean):
            return gaussian_rate(at_least_float32(state.mean), state.scale).sum(-1)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Register the encoder of means and scales, the anchors, their sharpness, and the head."""
        super().create_parameters(device=device, dtype=dtype)
        self.encoder = build_encoder(
            self.in_features, self.code_features, "default", noise=True, device=device, dtype=dtype
        )
        shape = (2, len(self.concepts), self.embedding_features)
        self.anchors = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.log_sharpness = nn.Parameter(torch.empty((), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Reset the encoder to Xavier weights and small noise, the anchors to random directions, the sharpness to 5."""
        super().reset_parameters()
        reset_encoder(self.encoder, self.code_features, "default")
        nn.init.normal_(self.anchors)
        nn.init.constant_(self.log_sharpness, math.log(INITIAL_SHARPNESS))

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, ProbabilisticConceptState]:
        """Return sampled vectors in training, means in evaluation, and anchors of concepts set by an intervention."""
        mean, scale, anchors = self._gaussians(pooled)
        sharpness = self.log_sharpness.exp()
        logits = _logits(mean, anchors, sharpness)
        code, noise = mean, None
        if self.training:
            draws = scope.claim_draws(self) if scope is not None else 1
            noise = torch.randn((draws + self.samples, *mean.shape), dtype=mean.dtype, device=mean.device)
            code_noise, noise = noise.split([draws, self.samples])  # for the head, and for the loss
            code = (mean + scale.to(mean.dtype) * code_noise).flatten(0, 1)
        _, values = self.after_intervention(_logits(code, anchors, sharpness), scope)
        intervention = self.intervention(values, scope)
        if intervention is not None:
            weight = values.unsqueeze(-1)
            anchored = weight * anchors[1] + (1 - weight) * anchors[0]
            code = torch.where(intervention.mask.unsqueeze(-1), anchored, code)
        return code.flatten(1), ProbabilisticConceptState(logits, values, mean, scale, anchors, sharpness, noise)

    def penalty(self, state: ProbabilisticConceptState, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the mean probabilities plus the weighted divergence, and the logs."""
        labels, known = self.labels(scope, state.logits)
        logits = state.logits
        if state.noise is not None:
            vectors = state.mean + state.scale * state.noise
            logits = self.concepts.mixed_logits(_logits(vectors, state.anchors, state.sharpness))
        losses = torch.where(known, self.concept_losses(logits, labels), 0).sum(-1)
        loss = batch_mean(losses, valid=known.any(-1))
        rate = batch_mean(self.sample_rate(state))
        logs = {"concept_loss": loss, "rate": rate, **self.concept_scores(state.logits, labels, known)}
        return loss + self.rate_weight * rate, logs

    def concept_uncertainty(self, x: Tensor) -> Tensor:
        r"""Return the uncertainty of each concept, the geometric mean of its variances: `(batch, concepts)`.

        .. math:: \det(\Sigma_c)^{1/m}
        """
        _, scale, _ = self._gaussians(self.pooled(x, None))
        return (2 * scale.log().mean(-1)).exp()

    def class_uncertainty(self, x: Tensor) -> Tensor:
        r"""Return the variance of each output of a linear head that is due to the noise of the concepts.

        .. math:: \text{diag}(W \Sigma W^T)

        Returns:
            `(batch, out_features)`.

        Raises:
            ValueError: If the head is not linear.
        """
        if self.head != "linear":
            raise ValueError(
                f"class_uncertainty must be of a layer with head='linear', got head={self.head!r}: build it with "
                "out_features=classes, or compute the variance over ibreg.predict_samples"
            )
        _, scale, _ = self._gaussians(self.pooled(x, None))
        weight = cast(nn.Linear, self.decoder).weight
        return scale.flatten(1).square() @ weight.square().to(scale.dtype).mT

    def _gaussians(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and standard deviations of the vectors, and the anchors."""
        shape = (len(self.concepts), self.embedding_features)
        mean, raw_scale = (part.unflatten(-1, shape) for part in self.encoder(pooled).chunk(2, dim=-1))
        return F.normalize(mean, dim=-1), noise_scale(raw_scale), F.normalize(self.anchors, dim=-1)


def _logits(vectors: Tensor, anchors: Tensor, sharpness: Tensor) -> Tensor:
    """Return a (|z - absent| - |z - present|) for vectors `(..., concepts, embedding_features)`."""
    absent, present = ((vectors - anchor).norm(dim=-1) for anchor in anchors)
    return sharpness * (absent - present)
