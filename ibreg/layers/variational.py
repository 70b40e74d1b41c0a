"""Variational information bottleneck and its variants: a sampled code with its rate as the penalty.

Alemi et al. 2017 (arXiv 1612.00410); conditional prior: Fischer 2020 (arXiv 2002.05379); between the information
bottleneck and the deterministic one: Strouse and Schwab 2017 (arXiv 1604.00268).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ibreg.functional.gaussian import gaussian_entropy, gaussian_log_prob
from ibreg.functional.lagrangian import LAGRANGIANS
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Above, Between, Count, OneOf, Optional
from ibreg.layers.encoder import CONSTRAINTS, build_encoder, noise_scale, reset_encoder, sample
from ibreg.layers.positions import batch_mean
from ibreg.layers.priors import PRIORS
from ibreg.layers.scope import Scope
from ibreg.precision import full_precision, tree_at_least_float32
from ibreg.registry import register

# A unit is active when its mean varies over the data by more than this variance (Burda et al. 2016, arXiv 1509.00519).
ACTIVE_VARIANCE = 1e-2


class Code(NamedTuple):
    """State that the penalty reads.

    Attributes:
        mean: of the code, `(batch, *positions, out_features)`.
        scale: its standard deviation, of the same shape, at least float32.
        noise: of the samples, `(draws, batch, *positions, out_features)`; None but for a Monte Carlo rate in training.
        prior: a `priors.Prior` with copies of the parameters.
    """

    mean: Tensor
    scale: Tensor
    noise: Tensor | None
    prior: Any


@register("variational")
class VariationalBottleneck(Bottleneck):
    r"""Encodes features as a Gaussian code z ~ N(mu(x), sigma(x)^2) and penalizes its rate, in nats.

    .. math:: \text{penalty} = u\left( \frac1n \sum_i KL(p(z|x_i) \,\|\, r) + (1 - \alpha) H(z|x_i) \right), \quad
        \sigma = \log(1 + e^{\rho}) + 10^{-30}

    with mu and rho linear in the features. In training the code is sampled, in evaluation it is the mean. For alpha 1
    and linear u the penalty is the rate, an upper bound of I(Z; X) (arXiv 1612.00410).

    Args:
        in_features: size of the feature axis.
        out_features: size of the code; None: `in_features`, so that the layer fits in place.
        beta: weight of the penalty. A rate in nats is easier to choose: see `schedules.TargetRate`.
        prior: "standard" N(0, I); "learned": one Gaussian with learned mean and variance; "conditional": one learned
            Gaussian for each class, so that information about the label is free (CEB, arXiv 2002.05379).
        classes: number of classes, for the conditional prior.
        rate: "analytic" or "monte_carlo" (log p(z|x) - log r(z) at the sampled codes).
        lagrangian: u: "linear", "power" (u = r^(1+power)) or "exponential" (u = (e^(power r) - 1) / power), of the
            batch mean.
        power: exponent of the convex Lagrangians, > 0.
        alpha: weight of the noise entropy, in [0, 1]: 1 is the information bottleneck, 0 the deterministic one,
            H(Z) - alpha H(Z|X) bounded by the prior's cross-entropy.
        start: "default": Xavier weights, small noise (sigma = 0.0067, arXiv 1612.00410); "identity": the mean is the
            input and sigma is 0.1 everywhere, so that a pretrained network keeps its predictions; needs out_features =
            in_features.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. The rate is summed over tokens or positions, without those that `mask` leaves
        out. With n samples of each row (`draws=n`) the output batch is n times as long.

    The conditional prior reads `target`: class indices `(batch,)` or one for each position (-100 is left out of the
    rate), or class probabilities `(batch, classes)`. Training needs targets; evaluation without them logs nothing.

    Logs: `rate` (nats per sample, batch mean of the analytic divergence, for every penalty), `active_units` (number
    of code units whose mean has a variance over the batch above 0.01).

    Many processes: each rank penalizes its own rows. DDP's mean over ranks is the penalty of the global batch where the
    Lagrangian is linear and no target is ignored; a convex Lagrangian acts on the mean rate of the rank's own rows.

    Raises:
        ValueError: If an option is not valid, or the shape of an input or of targets does not fit.

    Example:
        >>> layer = VariationalBottleneck(8, 4, beta=1e-2)
        >>> out = layer.measure(torch.zeros(16, 8))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([16, 4]), ['active_units', 'rate'])
    """

    stochastic = True
    undecayed = tuple({f"prior_{field}": None for prior in PRIORS.values() for field in prior.shapes(1, 1)})
    constraints = CONSTRAINTS | {
        "prior": OneOf(PRIORS),
        "classes": Optional(Count("number of classes", least=2)),
        "rate": OneOf(("analytic", "monte_carlo")),
        "lagrangian": OneOf(LAGRANGIANS),
        "power": Above(0),
        "alpha": Between(0, 1),
    }

    in_features: int
    out_features: int
    prior: str
    classes: int | None
    rate: str
    lagrangian: str
    power: float
    alpha: float
    start: str

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
                f"alpha must be 1 with lagrangian='power', got {alpha}: otherwise the penalty can be negative, and has "
                "no power; use lagrangian='exponential'"
            )
        if PRIORS[prior].conditional != (classes is not None):
            conditional = " or ".join(repr(name) for name, kind in PRIORS.items() if kind.conditional)
            raise ValueError(
                f"classes must be the number of classes with prior={conditional} and None with others, got {classes} "
                f"with prior={prior!r}"
            )
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def needs(self) -> tuple[str, ...]:
        """The target, if the prior is conditional on it."""
        return ("target",) if PRIORS[self.prior].conditional else ()

    @property
    def rate_bounds(self) -> str:
        """The information about the input; with a conditional prior, the information beyond the label."""
        return "I(X;Z|Y)" if PRIORS[self.prior].conditional else "I(X;Z)"

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder and the parameters of the prior."""
        if self.out_features is None:
            self.out_features = self.in_features
        self.encoder = build_encoder(
            self.in_features, self.out_features, self.start, noise=True, device=device, dtype=dtype
        )
        for field, shape in PRIORS[self.prior].shapes(self.out_features, self.classes).items():
            self.register_parameter(f"prior_{field}", nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))

    def reset_parameters(self) -> None:
        """Initializes the encoder by its `start`, a learned prior at N(0, I), and beta."""
        super().reset_parameters()
        reset_encoder(self.encoder, self.out_features, self.start)
        PRIORS[self.prior](**self._prior_parameters()).reset()

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Code]:
        """Returns the sampled code in training, the mean in evaluation."""
        mean, raw_scale = self.encoder(self.features_last(x)).chunk(2, dim=-1)
        # Copies: FSDP2 frees the parameters' storage before the penalty reads it.
        prior = PRIORS[self.prior](**{name: value.clone() for name, value in self._prior_parameters().items()})
        scale = noise_scale(raw_scale)
        z, noise = sample(self, mean, scale, scope)
        return z, Code(mean, scale, noise if self.rate == "monte_carlo" else None, prior)

    def penalty(self, state: Code, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns u(rate + (1 - alpha) * noise entropy) and the logs."""
        mean, scale, noise, _ = state
        prior, valid = state.prior.density(scope.target, mean.shape[:-1])
        rate = penalized = batch_mean(prior.divergence(mean, scale), scope.mask, valid)
        if noise is not None:
            # Not from z: where sigma is small beside the mean, (z - mean) / sigma has lost the noise, in the end 0 / 0.
            log_code = gaussian_log_prob(noise) - scale.log().sum(-1)
            penalized = batch_mean(prior.log_ratio(log_code, mean + scale * noise), scope.mask, valid)
        if self.alpha != 1:
            noise_entropy = gaussian_entropy(2 * scale.log())
            penalized = penalized + (1 - self.alpha) * batch_mean(noise_entropy, scope.mask, valid)
        logs = {"rate": rate, "active_units": _active_units(mean.detach(), scope.mask)}
        return LAGRANGIANS[self.lagrangian](penalized, self.power), logs

    def sample_rate(self, state: Code) -> Tensor:
        """Returns the rate of each sample in nats, `(batch,)`; with a conditional prior, that of the nearest class."""
        with full_precision(state.mean):
            mean, scale, _, prior = tree_at_least_float32(state)
            return prior.sample_rate(mean, scale)

    def _prior_parameters(self) -> dict[str, Tensor]:
        fields = PRIORS[self.prior].shapes(self.out_features, self.classes)
        return {field: getattr(self, f"prior_{field}") for field in fields}


def _active_units(mean: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the number of code units whose mean varies over samples and positions, without padding."""
    rows = mean.flatten(0, -2)
    if mask is None or mean.dim() == 2:
        variance = (rows - rows.mean(0)).square().mean(0)  # a quarter of the time of var
    else:
        weight = (mask / mask.sum().clamp(min=1)).flatten().unsqueeze(-1).to(rows.dtype)
        center = (weight * rows).sum(0)
        variance = (weight * (rows - center).square()).sum(0)
    return (variance > ACTIVE_VARIANCE).sum()
