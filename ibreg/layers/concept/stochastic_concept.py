"""Stochastic concept bottleneck: concept logits with full covariance, so that an intervention updates other concepts.

Vandenhirtz et al. 2024 (arXiv 2406.19272).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.functional.conditioning import condition_gaussian, conditional_gain, move_by_gain
from ibreg.layers.concept.base import CODES, ConceptIntervention, ConceptLayer
from ibreg.layers.concept.specification import Description
from ibreg.layers.constraints import AtLeast, Count, Number, OneOf
from ibreg.layers.positions import batch_mean
from ibreg.layers.scope import Scope
from ibreg.precision import at_least_float32
from ibreg.registry import register

COVARIANCES = ("amortized", "global")

# A certainty closer to 1 corresponds to logits that no layer predicts.
MOST_CERTAIN = 0.999

# Bounds on the Cholesky factor, far from the values in practice, that keep its inverse finite for any features.
LEAST_SCALE = 1e-2
LARGEST_COVARIATION = 10.0


class StochasticConceptState(NamedTuple):
    """A `ConceptState` (logits: the means), and the covariance and noise that the penalty reads.

    Attributes:
        logits: `(batch, concepts)`.
        values: `(batch, concepts)`.
        factor: `(batch, concepts, concepts)`, Cholesky factor of the covariance.
        noise: `(samples, batch, concepts)`, standard normal; None in evaluation.
    """

    logits: Tensor
    values: Tensor
    factor: Tensor
    noise: Tensor | None


@register("stochastic_concept")
class StochasticConceptBottleneck(ConceptLayer):
    r"""Stochastic concept layer: Gaussian concept logits with full covariance; intervening on one updates the others.

    .. math:: \eta \sim N(\mu(x), L L^T), \quad
        \text{penalty} = -\frac1n \sum_i \log \frac1S \sum_s \prod_c p(c_i | \eta_i^s)^{w_c}
        + \lambda \, \overline{|(L L^T)^{-1}_{jk}|}_{j \ne k}

    in nats. An intervention sets some logits; the others get the conditional mean and covariance of the Gaussian
    (`functional.condition_gaussian`). The logits are sampled in training and are their mean in evaluation; sample them
    with `ibreg.predict(..., draws=n)`.

    Args:
        in_features: size of the feature axis.
        concepts: their number, their names, a list of entries (`Concepts.of`), or a `Concepts`. A continuous concept is
            its own logit.
        code: input of the head: "hard", 0 or 1, in training sampled with the probability and with its gradient;
            "probability"; or "logit".
        covariance: "amortized": L is linear in the features; "global": one L for all samples.
        samples: S, number of Monte Carlo samples in the concept loss in training. In evaluation the loss is that of the
            mean logits.
        precision_weight: lambda, weight of the mean absolute off-diagonal precision, at least 0.
        certainty: when other concepts are conditioned on a concept set to 1, its logit is log(certainty / (1 -
            certainty)), or the predicted mean if that is larger; 0 is the mirror image. In (0.5, 0.999].
        out_features: size of the output; None: that of the code, or with a head `in_features`.
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

    Interventions in probability space pass the given values to the head, and condition on logits according to
    `certainty`; interventions in logit space condition on the given logits.

    Logs: those of `ConceptBottleneck`, and `precision` (the mean absolute off-diagonal precision).

    Raises:
        ValueError: If an option is out of range, there are no concepts, or sizes or labels do not fit.

    Example:
        >>> layer = StochasticConceptBottleneck(8, ["red", "round"])
        >>> out = layer.measure(torch.zeros(2, 8), concepts=torch.tensor([[1.0, 0.0], [0.0, torch.nan]]))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([2, 2]), ['concept_accuracy', 'concept_loss', 'precision'])
    """

    stochastic = True
    interventions_move_others = True
    constraints = {
        "code": OneOf(CODES),
        "covariance": OneOf(COVARIANCES),
        "samples": Count("number of Monte Carlo samples in the loss"),
        "precision_weight": AtLeast(0),
        "certainty": Number(above=0.5, most=MOST_CERTAIN),
    }

    code: str
    covariance: str
    samples: int
    precision_weight: float
    certainty: float

    def __init__(
        self,
        in_features: int | None = None,
        concepts: Description | None = None,
        *,
        code: str = "hard",
        covariance: str = "amortized",
        samples: int = 100,
        precision_weight: float = 1.0,
        certainty: float = 0.95,
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
        self.keep(
            code=code, covariance=covariance, samples=samples, precision_weight=precision_weight, certainty=certainty
        )
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def code_features(self) -> int:
        """The concepts."""
        return len(self.concepts)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Register the encoders of mean and Cholesky factor, and the head."""
        super().create_parameters(device=device, dtype=dtype)
        count = len(self.concepts)
        self.encoder = nn.Linear(self.in_features, count, device=device, dtype=dtype)
        entries = count * (count + 1) // 2
        if self.covariance == "amortized":
            self.factor_encoder = nn.Linear(self.in_features, entries, device=device, dtype=dtype)
        else:
            self.factor_entries = nn.Parameter(torch.empty(entries, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Reset the encoders to torch's initialization, a global factor to independent logits of deviation log 2."""
        super().reset_parameters()
        if self.covariance == "global":
            nn.init.zeros_(self.factor_entries)

    def gaussian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean `(batch, concepts)` and the covariance of the logits, after an open intervention."""
        mean, factor = self._encoded(self.pooled(x, None))
        covariance = factor @ factor.mT
        intervention = self.intervention(mean, None)
        if intervention is None:
            return mean, covariance
        return condition_gaussian(mean, covariance, intervention.mask, self._known_logits(intervention, mean))

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, StochasticConceptState]:
        """Return the concepts of sampled logits in training, of the mean in evaluation, after interventions."""
        mean, factor = self._encoded(pooled)
        logits, draws, noise = mean, 1, None
        if self.training:
            draws = scope.claim_draws(self) if scope is not None else 1
            noise = torch.randn((draws + self.samples, *mean.shape), dtype=mean.dtype, device=mean.device)
            code_noise, noise = noise.split([draws, self.samples])  # for the head, and for the loss
            logits = _sampled_logits(mean, factor, code_noise).flatten(0, 1)
        intervention = self.intervention(logits, scope)
        values = self.concepts.probabilities(logits)
        if intervention is not None:
            mask = intervention.mask
            gain = conditional_gain((factor @ factor.mT).repeat(draws, 1, 1), mask)
            known = self._known_logits(intervention, mean.repeat(draws, 1))
            logits = move_by_gain(logits, gain, mask, known)
            values = self.concepts.probabilities(logits)
            if intervention.space == "probability":
                values = torch.where(mask, intervention.values, values)
        read = self._sampled_decisions(values) if self.training and self.code == "hard" else values
        code = self.coded(self.code, logits, read).to(pooled.dtype)
        return code, StochasticConceptState(mean, values, factor, noise)

    def penalty(self, state: StochasticConceptState, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the joint loss of all concepts plus the weighted precision, and the logs."""
        mean, _, factor, noise = state
        labels, known = self.labels(scope, mean)
        logits = mean.unsqueeze(0) if noise is None else _sampled_logits(mean, factor, noise)
        losses = torch.where(known, self.concept_losses(logits, labels), 0).sum(-1)
        loss = batch_mean(math.log(len(logits)) - (-losses).logsumexp(0), valid=known.any(-1))
        precision = batch_mean(_off_diagonal_precision(factor))
        logs = {"concept_loss": loss, "precision": precision, **self.concept_scores(mean, labels, known)}
        return loss + self.precision_weight * precision, logs

    def _encoded(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the Cholesky factor of the logits, at least in float32."""
        mean = at_least_float32(self.encoder(pooled))
        if self.covariance == "amortized":
            entries = at_least_float32(self.factor_encoder(pooled))
        else:
            entries = at_least_float32(self.factor_entries).expand(mean.shape[0], -1)
        row = torch.arange(len(self.concepts), device=mean.device).unsqueeze(1)
        column = row.mT
        index = torch.where(column <= row, row * (row + 1) // 2 + column, 0)  # of the packed lower triangle
        square = entries[:, index.flatten()].unflatten(-1, index.shape)
        scale = F.softplus(square.diagonal(dim1=-2, dim2=-1)) + LEAST_SCALE
        below = (LARGEST_COVARIATION * torch.tanh(square / LARGEST_COVARIATION)).tril(-1)
        return mean, below + torch.diag_embed(scale)

    def _known_logits(self, intervention: ConceptIntervention, mean: Tensor) -> Tensor:
        """Return the logits that the other concepts are conditioned on.

        In probability space, the logit of a concept that is set to 0 or 1 is never weaker than the predicted mean.
        """
        if intervention.space == "logit":
            return intervention.values
        probabilities = torch.where(intervention.mask, intervention.values, 0.5)
        known = []
        for kind, run in self.concepts.runs:
            value, predicted = probabilities[:, run], mean[:, run]
            bounded = value.clamp(1 - self.certainty, self.certainty)
            if kind == "binary":
                logit = bounded.logit()
                stronger = torch.where(value == 1, predicted.maximum(logit), predicted.minimum(logit))
                logit = torch.where((value == 0) | (value == 1), stronger, logit)
            elif kind == "categorical":  # a softmax does not determine the sum of its logits: it is that of the mean
                logit = bounded.log() + (predicted - bounded.log()).mean(-1, keepdim=True)
            else:
                logit = value
            known.append(logit)
        return torch.cat(known, -1)

    def _sampled_decisions(self, probabilities: Tensor) -> Tensor:
        """Sample concepts, 0 or 1, from their probabilities; the gradient is that of the probability."""
        scores = []
        for kind, run in self.concepts.runs:
            value = probabilities[:, run].detach()
            if kind == "binary":
                value = (torch.rand_like(value) < value).to(value.dtype)
            elif kind == "categorical":  # Gumbel-max: the largest of log p plus Gumbel noise
                value = value.log() - (-torch.rand_like(value).log()).log()
            scores.append(value)
        sampled = self.concepts.decisions(torch.cat(scores, -1))
        return sampled + (probabilities - probabilities.detach())


def _sampled_logits(mean: Tensor, factor: Tensor, noise: Tensor) -> Tensor:
    """Return logits `(samples, batch, concepts)` for standard normal noise of that shape."""
    return mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)


def _off_diagonal_precision(factor: Tensor) -> Tensor:
    """Return the mean absolute off-diagonal entry of `(L L^T)^-1` of each sample."""
    count = factor.shape[-1]
    identity = torch.eye(count, dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    precision = inverse.mT @ inverse
    off = precision * (1 - identity)
    return off.abs().sum((-2, -1)) / max(count * (count - 1), 1)
