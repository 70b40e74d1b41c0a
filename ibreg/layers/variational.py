"""Variational information bottleneck and its relatives: one stochastic layer that charges for the rate of its code.

Alemi et al. 2017 (arXiv 1612.00410); conditional prior: Fischer 2020 (arXiv 2002.05379); between the information
bottleneck and the deterministic one: Strouse and Schwab 2017 (arXiv 1604.00268).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.functional.gaussian import (
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_pool,
    gaussian_rate,
)
from ibreg.functional.lagrangian import LAGRANGIANS
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Above, Between, Count, OneOf, Optional
from ibreg.layers.encoder import CONSTRAINTS, build_encoder, noise_scale, reset_encoder, sample
from ibreg.layers.positions import batch_mean
from ibreg.layers.scope import Scope
from ibreg.registry import register
from ibreg.tracing import can_assert

# A unit is active when its mean varies over the data by more than this variance (Burda et al. 2016, arXiv 1509.00519).
ACTIVE_VARIANCE = 1e-2

# The class index that torch's losses leave out.
IGNORED = -100


class Code(NamedTuple):
    """What the penalty reads: the encoder's Gaussians and the prior's, features last."""

    mean: Tensor
    raw_scale: Tensor
    scale: Tensor | None = None
    noise: Tensor | None = None
    prior_mean: Tensor | None = None
    prior_log_variance: Tensor | None = None


@register("variational")
class VariationalBottleneck(Bottleneck):
    r"""Replaces features by a noisy code z ~ N(mu(x), sigma(x)^2) and charges for the information in it, in nats.

    .. math:: \text{penalty} = u\left( \frac1n \sum_i KL(p(z|x_i) \,\|\, r) + (1 - \alpha) H(z|x_i) \right), \quad
        \sigma = \log(1 + e^{\rho}) + 10^{-30}

    with mu and rho linear in the features. In training the code is drawn, in evaluation it is the mean. With alpha = 1
    and u the identity the penalty is the rate, an upper bound of I(Z; X) (arXiv 1612.00410).

    Args:
        in_features: size of the feature axis.
        out_features: size of the code; None: `in_features`, so that the layer fits in place.
        beta: weight of the penalty. A rate in nats is easier to choose: see `schedules.TargetRate`.
        prior: "standard" N(0, I); "learned": one Gaussian with learned mean and variance; "conditional": one learned
            Gaussian for each class, so that information about the label is free (CEB, arXiv 2002.05379).
        classes: number of classes, for the conditional prior.
        rate: "analytic" or "monte_carlo" (log p(z|x) - log r(z) at the drawn codes).
        lagrangian: u: "linear", "power" (u = r^(1+power)) or "exponential" (u = (e^(power r) - 1) / power), of the
            batch mean.
        power: exponent of the convex Lagrangians, > 0.
        alpha: weight of the noise entropy, in [0, 1]: 1 is the information bottleneck, 0 the deterministic one,
            H(Z) - alpha H(Z|X) bounded by the prior's cross-entropy.
        start: "default": Xavier weights, small noise (sigma = 0.0067, arXiv 1612.00410); "identity": the mean is the
            input and sigma is 0.1 everywhere, so that a pretrained network goes on as it was; needs out_features =
            in_features.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. The rate is summed over tokens or positions, without those that `mask` leaves
        out. Behind n training draws the batch is n times as long.

    The conditional prior reads `target`: class indices `(batch,)` or one for each position (-100 is left out of the
    rate), or class probabilities `(batch, classes)`. In training it needs them, in evaluation without them nothing is
    logged.

    Logs: `rate` (nats per sample, batch mean of the KL, whatever the penalty), `active_units` (code units whose mean
    has a variance over the batch of more than 0.01).

    Many processes: each rank charges for its own rows. DDP's mean over ranks is the penalty of the whole batch where
    the Lagrangian is linear and no target is ignored; a convex Lagrangian sees the mean rate of its own rows.

    Raises:
        ValueError: an option out of range, sizes that do not fit, targets that do not fit.

    Example:
        >>> layer = VariationalBottleneck(8, 4, beta=1e-2)
        >>> out = layer.measure(torch.zeros(16, 8))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([16, 4]), ['active_units', 'rate'])
    """

    stochastic = True
    undecayed = ("prior_mean", "prior_log_variance")
    constraints = CONSTRAINTS | {
        "prior": OneOf(("standard", "learned", "conditional")),
        "classes": Optional(Count("number of classes", least=2)),
        "rate": OneOf(("analytic", "monte_carlo")),
        "lagrangian": OneOf(LAGRANGIANS),
        "power": Above(0),
        "alpha": Between(0, 1),
    }

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        beta: float = 1e-3,
        prior: str = "standard",
        classes: int | None = None,
        rate: str = "analytic",
        lagrangian: str = "linear",
        power: float = 1.0,
        alpha: float = 1.0,
        start: str = "default",
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(
            out_features=out_features, prior=prior, classes=classes, rate=rate, lagrangian=lagrangian, power=power,
            alpha=alpha, start=start,
        )  # fmt: skip
        if lagrangian == "power" and alpha != 1:
            raise ValueError(
                "alpha below 1 can make the penalty negative, which has no power: use the exponential Lagrangian"
            )
        if (prior == "conditional") != (classes is not None):
            raise ValueError(
                "classes=number of classes belongs to prior='conditional', which needs it, and to no other"
            )
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def needs(self) -> tuple[str, ...]:
        """The target, where the prior is conditional on it."""
        return ("target",) if self.prior == "conditional" else ()

    @property
    def rate_bounds(self) -> str:
        """The information about the input; with a conditional prior, what the label does not tell."""
        return "I(X;Z|Y)" if self.prior == "conditional" else "I(X;Z)"

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder and the learned prior."""
        if self.out_features is None:
            self.out_features = self.in_features
        self.encoder = build_encoder(
            self.in_features, self.out_features, self.start, noise=True, device=device, dtype=dtype
        )
        if self.prior != "standard":
            shape = (self.out_features,) if self.prior == "learned" else (self.classes, self.out_features)
            self.prior_mean = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.prior_log_variance = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Sets the encoder to its `start`, the learned prior to N(0, I), beta to its first value."""
        super().reset_parameters()
        reset_encoder(self.encoder, self.out_features, self.start)
        if self.prior != "standard":
            nn.init.zeros_(self.prior_mean)
            nn.init.zeros_(self.prior_log_variance)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Code]:
        """Returns the drawn code in training, the mean in evaluation."""
        mean, raw_scale = self.encoder(self.features_last(x)).chunk(2, dim=-1)
        code = Code(mean, raw_scale)
        if self.prior != "standard":
            # Copies: FSDP2 frees the parameters' storage before the penalty reads it.
            code = code._replace(prior_mean=self.prior_mean.clone(), prior_log_variance=self.prior_log_variance.clone())
        scale = noise_scale(raw_scale)
        z, noise = sample(self, mean, scale, scope)
        return z, code._replace(scale=scale, noise=noise if self.rate == "monte_carlo" else None)

    def penalty(self, state: Code, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns u(rate) and the logs."""
        mean = state.mean
        scale = noise_scale(state.raw_scale) if state.scale is None else state.scale
        prior_mean, prior_log_variance, gap, valid = self._prior(state, scope.target)
        if self.prior == "standard":
            divergence = gaussian_rate(mean, scale)
        else:
            divergence = gaussian_kl(mean, 2 * scale.log(), prior_mean, prior_log_variance) + gap
        rate = charged = batch_mean(divergence, scope.mask, valid)
        if state.noise is not None:
            # Not from z: where sigma is small beside the mean, (z - mean) / sigma has lost the noise, in the end 0 / 0.
            log_code = gaussian_log_prob(state.noise) - scale.log().sum(-1)
            z = mean + scale * state.noise
            log_ratio = (log_code - gaussian_log_prob(z, prior_mean, prior_log_variance)).mean(0) + gap
            charged = batch_mean(log_ratio, scope.mask, valid)
        if self.alpha != 1:
            noise_entropy = gaussian_entropy(2 * scale.log())
            charged = charged + (1 - self.alpha) * batch_mean(noise_entropy, scope.mask, valid)
        penalty = LAGRANGIANS[self.lagrangian](charged, self.power)
        logs = {"rate": rate, "active_units": _active_units(mean.detach(), scope.mask)}
        return penalty, logs

    def _prior(self, code: Code, target: Tensor | None):
        """Returns the prior's mean, log variance, what to add to a divergence from it, and where targets are valid."""
        if self.prior == "standard":
            return 0.0, 0.0, 0.0, None
        if self.prior == "learned":
            return code.prior_mean, code.prior_log_variance, 0.0, None
        batch, *positions = code.mean.shape[:-1]
        spread = [1] * len(positions)  # a sample's label stands for all of its positions
        if target.is_floating_point():
            if target.shape not in ((batch, self.classes), (batch, *positions, self.classes)):
                expected = (batch, self.classes)
                raise ValueError(f"soft targets are class probabilities of shape {expected}, got {tuple(target.shape)}")
            weights = target.to(code.mean.dtype)
            if can_assert(weights):
                torch._assert_async(
                    ((weights >= 0).all(-1) & ((weights.sum(-1) - 1).abs() < 1e-2)).all(),
                    "soft targets are class probabilities: at least 0, and each row sums to 1",
                )
            weights = weights.reshape(batch, *spread, self.classes) if target.dim() == 2 else weights
            return *gaussian_pool(code.prior_mean, code.prior_log_variance, weights), None
        if target.shape not in ((batch,), (batch, *positions)):
            raise ValueError(f"targets are class indices of shape {(batch,)}, got {tuple(target.shape)}")
        target = target.long()
        valid = target != IGNORED
        known = torch.where(valid, target, 0)
        if can_assert(known):
            torch._assert_async(
                ((known >= 0) & (known < self.classes)).all(),
                f"targets are class indices from 0 to {self.classes - 1}, or {IGNORED} to be left out",
            )
        known = known.reshape(batch, *spread) if target.dim() == 1 else known
        # Not prior_mean[known], which takes -1 for the last class.
        return F.embedding(known, code.prior_mean), F.embedding(known, code.prior_log_variance), 0.0, valid


def _active_units(mean: Tensor, mask: Tensor | None) -> Tensor:
    """Counts the code units whose mean varies over samples and positions, padding left out."""
    rows = mean.flatten(0, -2)
    if mask is None or mean.dim() == 2:
        variance = (rows - rows.mean(0)).square().mean(0)  # a quarter of the time of var
    else:
        weight = (mask / mask.sum().clamp(min=1)).flatten().unsqueeze(-1).to(rows.dtype)
        center = (weight * rows).sum(0)
        variance = (weight * (rows - center).square()).sum(0)
    return (variance > ACTIVE_VARIANCE).sum()
