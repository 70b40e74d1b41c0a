"""Nonlinear information bottleneck: one learned noise level, and a rate from the pairwise distances of codes.

Kolchinsky, Tracey and Wolpert 2019 (arXiv 1705.02436).
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ibreg.distributed import over_ranks
from ibreg.functional.kernel.pairwise_rate import nonlinear_rate
from ibreg.functional.lagrangian import LAGRANGIANS
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Above, Bool, Count, Number, OneOf, Optional
from ibreg.layers.encoder import CONSTRAINTS, build_encoder, reset_encoder, sample
from ibreg.layers.positions import check_mask
from ibreg.layers.scope import Scope
from ibreg.registry import register
from ibreg.tracing import can_assert

# The fraction of log N above which the rate is saturated: its gradient is close to 0.
SATURATED = 0.98

# Initial log variance by `start`.
LOG_VARIANCES = {"default": 0.0, "identity": 2 * math.log(0.1)}


class Code(NamedTuple):
    """State that the penalty reads.

    Attributes:
        mean: of the code, `(batch, *positions, out_features)`.
        log_variance: of the noise, 0-dim.
    """

    mean: Tensor
    log_variance: Tensor


@register("nonlinear")
class NonlinearBottleneck(Bottleneck):
    r"""Encodes features as z ~ N(mu(x), sigma^2 I) and penalizes a rate from pairwise distances of codes.

    .. math:: \text{penalty} = u\left( \log N - \frac1N \sum_i \log \sum_j
        \exp\left( -\frac{|\mu(x_i) - \mu(x_j)|^2}{2 \sigma^2} \right) \right)

    with mu linear in the features and one learned sigma. In training the code is sampled, in evaluation it is the mean.
    The argument of u, the rate, is an upper bound of I(X; Z) in nats, where X is one of the N samples of the batch
    (`functional.nonlinear_rate`). Unlike the rate of a variational bottleneck it needs no prior, and codes that form
    clusters cost no more than the choice of a cluster.

    The rate is at most log N. Close to it the codes are so far apart that their distances have no gradient: the penalty
    is a constant, and `schedules.TargetRate` cannot act on it. Choose a target rate well below log N, and a beta that
    does not saturate. Above 0.98 log N the layer warns once; a larger `initial_log_variance`, a smaller code or a
    larger batch help. (It warns on the CPU in eager mode; elsewhere, see the logged `saturation`.)

    Args:
        in_features: size of the feature axis.
        out_features: size of the code; None: `in_features`, so that the layer fits in place.
        beta: weight of the penalty. The rate is a few nats, as a cross-entropy is: useful betas are 0.1 to 1.
        lagrangian: u: "linear", "power" (u = r^(1+power); power 1 is the squared one of arXiv 1808.07593) or
            "exponential" (u = (e^(power r) - 1) / power).
        power: exponent of the convex Lagrangians, > 0.
        initial_log_variance: initial log sigma^2; None: 0, with the identity start log(0.01).
        start: "default": Xavier weights over the root of out_features, so that the codes of standardized features start
            about one sigma apart, far from saturation; "identity": the mean is the input and sigma is 0.1, so that a
            pretrained network keeps its predictions (its features are then often many sigma apart); needs
            out_features = in_features.
        block_size: number of rows of the matrix of pairs that are computed at once; None: chosen. It changes time and
            memory alone.
        gather: whether the penalty in training is over the global batch of all ranks (under DDP; each rank has to call
            the layer), not the rank's own.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. The code of a sample is that of all its tokens or positions together, with a
        mean of 0 where `mask` leaves a position out. A batch of one has rate 0.

    Logs: `rate` (nats), `saturation` (the rate as a fraction of log N), `noise` (sigma).

    Many processes: each rank penalizes its own batch, and N is its size; with `gather=True`, in training, the global
    batch. Under gradient accumulation the batch is the micro-batch.

    Raises:
        ValueError: If an option is not valid, or a size does not fit.

    Example:
        >>> layer = NonlinearBottleneck(8, 4)
        >>> out = layer.measure(torch.zeros(16, 8))
        >>> out.z.shape, out.logs
        (torch.Size([16, 4]), {'rate': tensor(0.), 'saturation': tensor(0.), 'noise': tensor(1.)})
    """

    stochastic = True
    constraints = CONSTRAINTS | {
        "lagrangian": OneOf(LAGRANGIANS),
        "power": Above(0),
        "initial_log_variance": Optional(Number()),
        "block_size": Optional(Count("number of rows of pairs that are computed at once")),
        "gather": Bool(),
    }

    in_features: int
    out_features: int
    lagrangian: str
    power: float
    initial_log_variance: float | None
    start: str
    block_size: int | None
    gather: bool

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        beta: float = 0.1,
        lagrangian: str = "linear",
        power: float = 1.0,
        initial_log_variance: float | None = None,
        start: str = "default",
        block_size: int | None = None,
        gather: bool = False,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(
            out_features=out_features, lagrangian=lagrangian, power=power, initial_log_variance=initial_log_variance,
            start=start, block_size=block_size, gather=gather,
        )  # fmt: skip
        self._warned_of_saturation = False
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def rate_bounds(self) -> str:
        """The information about which sample of the batch the input is, at most log(batch)."""
        return "I(X;Z) in a batch"

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder of the mean, and the log variance."""
        if self.out_features is None:
            self.out_features = self.in_features
        self.encoder = build_encoder(
            self.in_features, self.out_features, self.start, noise=False, device=device, dtype=dtype
        )
        self.log_variance = nn.Parameter(torch.empty((), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Initializes encoder and noise by their `start`, and beta."""
        super().reset_parameters()
        reset_encoder(self.encoder, self.out_features, self.start, gain=self.out_features**-0.5)
        initial = self.initial_log_variance
        nn.init.constant_(self.log_variance, LOG_VARIANCES[self.start] if initial is None else initial)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Code]:
        """Returns the sampled code in training, the mean in evaluation."""
        mean = self.encoder(self.features_last(x))
        # A copy: FSDP2 frees the parameter's storage before the penalty reads it.
        code = Code(mean, self.log_variance.clone())
        z, _ = sample(self, mean, torch.exp(0.5 * self.log_variance), scope)
        return z, code

    def penalty(self, state: Code, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns u(rate) and the logs."""
        mean, mask = state.mean, scope.mask_for(state.mean)
        if mask is not None:
            check_mask(mask, mean.shape[:-1])
            mean = torch.where(mask.bool().unsqueeze(-1), mean, 0)
        gather = self.gather and self.training  # in evaluation ranks may have different numbers of batches
        rate = nonlinear_rate(mean, state.log_variance, block_size=self.block_size, gather=gather)
        samples = rate.new_tensor(mean.shape[0])
        maximum = (over_ranks(samples) if gather else samples).log()
        saturation = rate.detach() / maximum.clamp(min=torch.finfo(rate.dtype).tiny)
        self._warn_of_saturation(saturation, scope)
        noise = torch.exp(0.5 * state.log_variance)
        return LAGRANGIANS[self.lagrangian](rate, self.power), {"rate": rate, "saturation": saturation, "noise": noise}

    def _warn_of_saturation(self, saturation: Tensor, scope: Scope) -> None:
        # On other devices than the CPU the comparison would synchronize.
        if self._warned_of_saturation or not self.training or torch.compiler.is_compiling():
            return
        if not can_assert(saturation) or saturation <= SATURATED:
            return
        self._warned_of_saturation = True
        warnings.warn(
            f"the rate of bottleneck {scope.name_of(self)} is above {SATURATED} of log(batch size), its maximum: the "
            "codes are many sigma apart and the gradient of the penalty is close to 0. Use a larger "
            "initial_log_variance, a smaller code or a larger batch",
            stacklevel=2,
        )
