"""Gaussian channel: the features with additive noise, and the capacity of that channel as the penalty.

Shannon 1949; Cover and Thomas, Elements of Information Theory, chapter 9 (parallel Gaussian channels).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Above, Bool
from ibreg.layers.encoder import sample
from ibreg.layers.positions import check_mask
from ibreg.layers.scope import Scope
from ibreg.precision import at_least_float32, promoted_dtype
from ibreg.registry import register


class Code(NamedTuple):
    """State that the penalty reads: features without noise, feature axis last, and the noise's standard deviation."""

    features: Tensor
    scale: Tensor


@register("gaussian_channel")
class GaussianChannelBottleneck(Bottleneck):
    r"""Adds Gaussian noise to the features and penalizes the capacity of that channel.

    .. math:: z = x + \sigma \epsilon, \qquad
        \text{penalty} = \sum_{p, d} \tfrac12 \log\left( 1 + \frac{\operatorname{var}_i x_{i p d}}{\sigma_d^2} \right)

    in nats per sample, with the variance over the samples i of the batch, for every position p and feature d by itself.
    It is an upper bound of I(X; Z): no input with these variances has more information in the noisy code, and dependent
    features and positions have less. It needs no encoder and no prior; the code is the features themselves, so it fits
    after any module of a pretrained network.

    Args:
        in_features: size of the feature axis; needed with `learned` only.
        noise: standard deviation sigma of the noise, above 0, in units of the features; with `learned` its start.
        learned: whether each feature learns a sigma of its own. The penalty alone raises it without limit; the task
            loss holds it where the feature is needed.
        beta: weight of the penalty.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has the same
        shape. A position that `mask` leaves out in some samples counts by the fraction of samples that have it, with
        the variance over these.

    Logs: `rate` (nats per sample, the penalty), `noise` (mean sigma).

    Many processes: each rank penalizes the capacity of its own batch. Under gradient accumulation the batch is the
    micro-batch. A batch of one or none has no variance, and a rate of 0.

    Raises:
        ValueError: an option out of range, or a size that does not fit.

    Example:
        >>> layer = GaussianChannelBottleneck(noise=1.0)
        >>> rows = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        >>> layer.measure(rows).penalty  # log(2) / 2
        tensor(0.3466)
    """

    stochastic = True
    constraints = {"noise": Above(0), "learned": Bool()}

    def __init__(
        self,
        in_features: int | None = None,
        *,
        beta: float = 1e-2,
        noise: float = 1.0,
        learned: bool = False,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(noise=noise, learned=learned)
        self.register_parameter("log_noise", None)
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def sized(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether there is a noise level for each feature."""
        return self.learned

    @property
    def rate_bounds(self) -> str:
        """The information about the input."""
        return "I(X;Z)"

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the noise levels, if they are learned."""
        if self.learned:
            self.log_noise = nn.Parameter(torch.empty(self.in_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Resets the noise levels and beta to their initial values."""
        super().reset_parameters()
        if self.log_noise is not None:
            nn.init.constant_(self.log_noise, math.log(self.noise))

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Code]:
        """Returns the features with noise in training, the features themselves in evaluation."""
        features = self.features_last(x)
        if self.log_noise is None:  # in half precision a small sigma would be 0
            scale = features.new_full((), self.noise, dtype=promoted_dtype(features.dtype))
        else:
            scale = at_least_float32(self.log_noise).exp()
        z, _ = sample(self, features, scale, scope)
        return z, Code(features, scale)

    def penalty(self, state: Code, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the capacity in nats, and the logs."""
        variance, fraction = _moments(state.features, scope.mask_for(state.features))
        capacity = 0.5 * torch.log1p(variance / state.scale.square()).sum(-1)
        rate = (fraction * capacity).sum()
        return rate, {"rate": rate, "noise": state.scale.mean()}


def _moments(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the variance over the samples, `(*positions, features)`, and the fraction kept by the mask."""
    batch = max(features.shape[0], 1)  # an empty batch has no variance, not NaN
    if mask is None:
        mean = features.sum(0) / batch
        return (features - mean).square().sum(0) / batch, features.new_ones(())
    check_mask(mask, features.shape[:-1])
    kept = mask.bool().unsqueeze(-1)
    samples = kept.sum(0).clamp(min=1)
    mean = torch.where(kept, features, 0).sum(0) / samples
    variance = torch.where(kept, features - mean, 0).square().sum(0) / samples
    return variance, kept.squeeze(-1).to(features.dtype).sum(0) / batch
