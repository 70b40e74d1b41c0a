"""Distance-aware bottleneck: the distance of a sample's code from a codebook of Gaussians.

Apostolopoulou et al. 2024 (arXiv 2406.02775).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ibreg.distributed import over_ranks
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import AtLeast, Count
from ibreg.layers.encoder import CONSTRAINTS, build_encoder, noise_scale, reset_encoder, sample
from ibreg.layers.positions import batch_mean
from ibreg.layers.scope import Scope
from ibreg.precision import WideBuffers, full_precision, promoted_dtype
from ibreg.registry import register
from ibreg.tracing import inside_transformation

DECAY = 0.99
DIRICHLET = 1.0  # pseudo-count of each Gaussian, added to the rows of the batch
LEAST_VARIANCE = 1e-6


class Code(NamedTuple):
    """State that the penalty reads.

    Attributes:
        mean: of the code, `(batch, *positions, out_features)`.
        raw_scale: its standard deviation before the softplus.
        centroids: a copy of the centroids' means.
    """

    mean: Tensor
    raw_scale: Tensor
    centroids: Tensor


class Moments(NamedTuple):
    """Statistics of the codes from which their divergences from the codebook are computed.

    Attributes:
        variance: of the codes, `(batch, *positions, out_features)`.
        log_determinant: sum of the logarithms of the variances, `(batch, *positions)`.
        squares: squared distances from the centroids, `(batch, *positions, gaussians, out_features)`; no gradient.
        mean: of the codes, relative to the mean of the centroids.
        centroids: relative to their mean, `(gaussians, out_features)`.
    """

    variance: Tensor
    log_determinant: Tensor
    squares: Tensor
    mean: Tensor
    centroids: Tensor


@register("distance_aware")
class DistanceAwareBottleneck(WideBuffers, Bottleneck):
    r"""Encodes features as a Gaussian and penalizes its distance from a codebook of Gaussians.

    .. math:: \text{penalty} = u(x) = \sum_j \pi(j|x) \, KL(p(z|x) \| q_j), \quad
        \pi(j|x) \propto \pi_j \exp(-\tau \, KL(p(z|x) \| q_j))

    in nats per sample. u(x) is also the uncertainty: it is large far from the training data, and takes one forward pass
    in evaluation (`ibreg.uncertainty`). No gradient goes through the responsibilities pi(j|x). The means of the
    Gaussians are parameters (`centroids`; give them a learning rate of their own as an optimizer's group, 10 to 100
    times that of the model); their variances and weights are moving averages over training batches, updated where the
    penalty is computed.

    Args:
        in_features: size of the feature axis.
        out_features: size of the code; None: `in_features`, so that the layer fits in place.
        beta: weight of the penalty.
        gaussians: number of Gaussians in the codebook; arXiv 2406.02775 takes the number of classes.
        temperature: tau, at least 0; the larger, the more the nearest Gaussian dominates the responsibilities.
        uniform_steps: number of first training batches in which all responsibilities are equal; arXiv 2406.02775 takes
            an epoch.
        start: "default": Xavier weights, small noise (sigma = 0.0067); "identity": the mean is the input and sigma is
            0.1, so that a pretrained network keeps its predictions; needs out_features = in_features.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters; variances and weights are at least float32.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. The distance is summed over tokens or positions, without those that `mask`
        leaves out. With n samples of each row (`draws=n`) the output batch is n times as long.

    Logs: `uncertainty` (nats per sample), `gaussians_used` (exp of the entropy of the weights).

    Many processes: moving averages are over the global batch; each rank has to call the layer in training.

    Raises:
        ValueError: If an option is not valid, or a size does not fit.

    Example:
        >>> layer = DistanceAwareBottleneck(8, 4, gaussians=3)
        >>> out = layer.measure(torch.zeros(16, 8))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([16, 4]), ['gaussians_used', 'uncertainty'])
    """

    stochastic = True
    constraints = CONSTRAINTS | {
        "gaussians": Count("number of Gaussians"),
        "temperature": AtLeast(0),
        "uniform_steps": Count("number of first training batches", least=0),
    }

    in_features: int
    out_features: int
    gaussians: int
    temperature: float
    uniform_steps: int
    start: str
    variances: Tensor
    weights: Tensor
    steps: Tensor

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        beta: float = 1e-3,
        gaussians: int = 10,
        temperature: float = 1.0,
        uniform_steps: int = 100,
        start: str = "default",
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(
            out_features=out_features, gaussians=gaussians, temperature=temperature, uniform_steps=uniform_steps,
            start=start,
        )  # fmt: skip
        self.materialize(in_features, device=device, dtype=dtype)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder and the codebook."""
        if self.out_features is None:
            self.out_features = self.in_features
        self.encoder = build_encoder(
            self.in_features, self.out_features, self.start, noise=True, device=device, dtype=dtype
        )
        shape = (self.gaussians, self.out_features)
        wide = promoted_dtype(dtype)
        self.centroids = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("variances", torch.empty(shape, device=device, dtype=wide))
        self.register_buffer("weights", torch.empty(shape[:1], device=device, dtype=wide))
        self.register_buffer("steps", torch.zeros((), device=device, dtype=torch.int64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initializes the encoder by its `start`, random centroids, unit variances, equal weights, and beta."""
        super().reset_parameters()
        reset_encoder(self.encoder, self.out_features, self.start)
        nn.init.normal_(self.centroids)
        self.variances.fill_(1)
        self.weights.fill_(1 / self.gaussians)
        self.steps.zero_()

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Code]:
        """Returns the sampled code in training, the mean in evaluation."""
        mean, raw_scale = self.encoder(self.features_last(x)).chunk(2, dim=-1)
        # A copy: FSDP2 frees the parameter's storage before the penalty reads it.
        code = Code(mean, raw_scale, self.centroids.clone())
        z, _ = sample(self, mean, noise_scale(raw_scale), scope)
        return z, code

    def penalty(self, state: Code, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean uncertainty and the logs; in training variances and weights are updated first."""
        mask = scope.mask_for(state.mean)
        with full_precision(state.mean):
            moments = self.moments(state)
            responsibilities = self.responsibilities(moments)
            variances, weights = self.variances, self.weights
            if self.training:
                # Value and gradient are those of the updated codebook: compiled code reads the updated buffers anyway.
                variances, weights = self._updated(moments, responsibilities, mask)
                if not inside_transformation(state.mean):
                    self._store(variances, weights)
            uncertainty = batch_mean((responsibilities * self.divergences(moments, variances)).sum(-1), mask)
        used = torch.exp(-torch.xlogy(weights, weights).sum())
        return uncertainty, {"uncertainty": uncertainty, "gaussians_used": used}

    def moments(self, state: Code) -> Moments:
        """Returns the statistics from which divergences are computed, at least in float32."""
        mean, raw_scale, centroids = (part.to(self.variances.dtype) for part in state)
        scale = noise_scale(raw_scale)
        origin = centroids.detach().mean(0)
        mean, centroids = mean - origin, centroids - origin
        squares = (mean.detach().unsqueeze(-2) - centroids.detach()).square()
        return Moments(scale.square(), 2 * scale.log().sum(-1), squares, mean, centroids)

    def divergences(self, moments: Moments, variances: Tensor) -> Tensor:
        r"""Returns the divergence from each Gaussian, `(batch, *positions, gaussians)`, in nats.

        .. math:: KL_j = \frac12 \Big[ \sum_d (\mu_d - m_{jd})^2 / v_{jd} + \sum_d \sigma_d^2 / v_{jd}
            + \sum_d \log v_{jd} - \sum_d \log \sigma_d^2 - D \Big]

        Mostly matrix products, where `gaussian_kl` would make eight passes over samples, Gaussians and features. The
        rounding error is about 1e-7 of D, the number of features. Distances have their value from differences, which
        lose no digits, and their gradient from the expanded square, which has no tensor over samples and Gaussians and
        features.
        """
        precisions = variances.reciprocal()
        distances = torch.einsum("...kd,kd->...k", moments.squares, precisions)
        if torch.is_grad_enabled():
            weighted = moments.centroids * precisions
            constant = (moments.centroids * weighted).sum(-1)
            expanded = moments.mean.square() @ precisions.mT - 2 * moments.mean @ weighted.mT + constant
            distances = distances + (expanded - expanded.detach())
        ratios = moments.variance @ precisions.mT - moments.log_determinant.unsqueeze(-1)
        return 0.5 * (distances + ratios + (variances.log().sum(-1) - variances.shape[-1]))

    def uncertainty(self, state: Code) -> Tensor:
        """Returns u(x), `(batch, *positions)`, in nats.

        Args:
            state: of `transform`.
        """
        with full_precision(state.mean):
            moments = self.moments(state)
            return (self.responsibilities(moments) * self.divergences(moments, self.variances)).sum(-1)

    @torch.no_grad()
    def responsibilities(self, moments: Moments) -> Tensor:
        """Returns pi(j|x), `(batch, *positions, gaussians)`."""
        scores = self.weights.log() - self.temperature * self.divergences(moments, self.variances)
        return (scores * (self.steps >= self.uniform_steps)).softmax(-1)

    @torch.no_grad()
    def _updated(self, moments: Moments, responsibilities: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns variances and weights, updated by the moments of the global batch."""
        rows = responsibilities.flatten(0, -2)
        rows = rows if mask is None else rows * mask.flatten().unsqueeze(-1)
        counts = over_ranks(rows.sum(0).to(self.weights.dtype))
        distances = torch.einsum("rk,rkd->kd", rows, moments.squares.flatten(0, -3))
        squares = over_ranks(rows.mT @ moments.variance.flatten(0, -2) + distances)
        variances = (squares + DIRICHLET * self.variances) / (counts + DIRICHLET).unsqueeze(-1)
        weights = (counts + DIRICHLET) / (counts + DIRICHLET).sum()
        step = (1 - DECAY) * (counts.sum() > 0)
        return self.variances.lerp(variances.clamp(min=LEAST_VARIANCE), step), self.weights.lerp(weights, step)

    @torch.no_grad()
    def _store(self, variances: Tensor, weights: Tensor) -> None:
        self.variances.copy_(variances)
        self.weights.copy_(weights)
        self.steps.add_(1)
