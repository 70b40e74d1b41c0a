"""Nonlinear information bottleneck: one learned noise level, and a rate from the distances between codes.

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

# The share of log N beyond which a rate counts as saturated: its gradient is as good as gone.
SATURATED = 0.98

# The log variance that each start goes with.
LOG_VARIANCES = {"default": 0.0, "identity": 2 * math.log(0.1)}


class Code(NamedTuple):
    """What the penalty reads: the means, features last, and the one log variance."""

    mean: Tensor
    log_variance: Tensor


@register("nonlinear")
class NonlinearBottleneck(Bottleneck):
    r"""Replaces features by a noisy code z ~ N(mu(x), sigma^2 I) and charges for what tells a batch's codes apart.

    .. math:: \text{penalty} = u\left( \log N - \frac1N \sum_i \log \sum_j
        \exp\left( -\frac{|\mu(x_i) - \mu(x_j)|^2}{2 \sigma^2} \right) \right)

    with mu linear in the features and one learned sigma. In training the code is drawn, in evaluation it is the mean.
    What u acts on is an upper bound of I(X; Z) in nats, where X is one of the N samples of the batch
    (`functional.nonlinear_rate`). Unlike the rate of a variational bottleneck it needs no prior, and codes that form
    clusters cost no more than the choice of a cluster.

    The rate is at most log N. Near that, codes lie so far apart that the distances have no gradient any more: the
    penalty is a constant, and `schedules.TargetRate` has nothing to hold: give it a rate well below log N, and a beta
    that does not saturate. Above 0.98 log N it warns, once; a larger `initial_log_variance`, a smaller code or a larger
    batch help. (It warns on the CPU, in eager mode; anywhere else, look at the logged `saturation`.)

    Args:
        in_features: size of the feature axis.
        out_features: size of the code; None: `in_features`, so that the layer fits in place.
        beta: weight of the penalty. The rate is a few nats, as a cross-entropy is: betas of 0.1 to 1 matter there.
        lagrangian: u: "linear", "power" (u = r^(1+power); power 1 is the squared one of arXiv 1808.07593) or
            "exponential" (u = (e^(power r) - 1) / power).
        power: exponent of the convex Lagrangians, > 0.
        initial_log_variance: log sigma^2 at the start; None: 0, with the identity start log(0.01).
        start: "default": Xavier weights over the root of out_features, so that the codes of standardized features start
            about one sigma apart, far from saturation; "identity": the mean is the input and sigma is 0.1, so that a
            pretrained network goes on as it was (its features are then often many sigma apart); needs out_features =
            in_features.
        block_size: rows of pairs walked at a time; None: chosen. It changes time and memory alone.
        gather: in training the batch is that of all ranks (under DDP; each has to call the layer), not the rank's own.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. The rate is about samples: all tokens or positions of a sample together are its
        code. Those that `mask` leaves out count as a mean of 0 in it. A batch of one has rate 0.

    Logs: `rate` (nats), `saturation` (the rate as a share of log N), `noise` (sigma).

    Many processes: each rank charges for its own batch, and N is the size of that one; with `gather=True`, in
    training, for the batch of all ranks. Under gradient accumulation the batch is the micro-batch.

    Raises:
        ValueError: an option out of range, sizes that do not fit.

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
        "block_size": Optional(Count("number of rows that are visited at once")),
        "gather": Bool(),
    }

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
        """The information about which sample of the batch it is: at most log(batch), so it depends on the batch."""
        return "I(X;Z) in a batch"

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder of the mean and the log variance."""
        if self.out_features is None:
            self.out_features = self.in_features
        self.encoder = build_encoder(
            self.in_features, self.out_features, self.start, noise=False, device=device, dtype=dtype
        )
        self.log_variance = nn.Parameter(torch.empty((), device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Sets encoder and noise to their `start`, beta to its first value."""
        super().reset_parameters()
        reset_encoder(self.encoder, self.out_features, self.start, gain=self.out_features**-0.5)
        start = self.initial_log_variance
        nn.init.constant_(self.log_variance, LOG_VARIANCES[self.start] if start is None else start)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Code]:
        """Returns the drawn code in training, the mean in evaluation."""
        mean = self.encoder(self.features_last(x))
        # A copy: FSDP2 frees the parameter's storage before the penalty reads it.
        code = Code(mean, self.log_variance.clone())
        z, _ = sample(self, mean, torch.exp(0.5 * self.log_variance), scope)
        return z, code

    def penalty(self, state: Code, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns u(rate) and the logs."""
        mean = state.mean
        if scope.mask is not None and mean.dim() > 2:
            check_mask(scope.mask, mean.shape[:-1])
            mean = torch.where(scope.mask.bool().unsqueeze(-1), mean, 0)
        gather = self.gather and self.training  # not all ranks need evaluate as many batches
        rate = nonlinear_rate(mean, state.log_variance, block_size=self.block_size, gather=gather)
        samples = rate.new_tensor(mean.shape[0])
        most = (over_ranks(samples) if gather else samples).log()
        saturation = rate.detach() / most.clamp(min=torch.finfo(rate.dtype).tiny)
        self._warn_of_saturation(saturation, scope)
        noise = torch.exp(0.5 * state.log_variance)
        return LAGRANGIANS[self.lagrangian](rate, self.power), {"rate": rate, "saturation": saturation, "noise": noise}

    def _warn_of_saturation(self, saturation: Tensor, scope: Scope) -> None:
        # Elsewhere than on the CPU the comparison would wait for the device.
        if self._warned_of_saturation or not self.training or torch.compiler.is_compiling():
            return
        if not can_assert(saturation) or saturation <= SATURATED:
            return
        self._warned_of_saturation = True
        warnings.warn(
            f"the rate of bottleneck {scope.name_of(self)} is above {SATURATED} of log(batch size), which no rate can "
            "exceed: the codes lie many sigma apart and the penalty has hardly a gradient. Use a larger "
            "initial_log_variance, a smaller code or a larger batch",
            stacklevel=2,
        )
