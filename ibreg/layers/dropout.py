"""Dropout as a bottleneck: Bernoulli noise without a penalty, Hinton et al. 2012 (arXiv 1207.0580)."""

from __future__ import annotations

from einops import repeat
from torch import Tensor
from torch.nn import functional as F

from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Between
from ibreg.layers.scope import Scope
from ibreg.registry import register


@register("dropout")
class DropoutBottleneck(Bottleneck):
    r"""Randomly sets entries of the code to 0 in training; a control for the other bottlenecks.

    .. math:: z = \frac{m \odot x}{1 - p}, \qquad m \sim \text{Bernoulli}(1 - p)

    with p = `rate`, so that the mean of z is x. In evaluation z is x. The penalty is always 0. For one sample it is
    `torch.nn.Dropout`, bit by bit; unlike that module it takes several samples (`draws`) in `Regularized` and
    `predict` (Monte Carlo dropout), and can be injected.

    Args:
        in_features: size of the feature axis; only checked, the layer has no parameters.
        beta: weight of the penalty; without effect, as that is 0.
        rate: probability p that an entry is set to 0, in [0, 1]; with 1 all are, as in `torch.nn.Dropout`.
        dim: feature axis; entries are dropped independently on every axis, so it only locates `in_features`.
        device: of beta.
        dtype: without effect, as there are no parameters.

    Shapes:
        `(batch, *)` with at least one more axis; the output has the same shape.

    Raises:
        ValueError: If an option is out of range.

    Sources: Hinton et al. 2012, arXiv 1207.0580; Srivastava et al. 2014, JMLR 15:1929-1958.

    Example:
        >>> import torch
        >>> layer = DropoutBottleneck(rate=0.25)
        >>> layer.eval()(torch.ones(1, 3))
        tensor([[1., 1., 1.]])
    """

    stochastic = True
    sized = False
    constraints = {"rate": Between(0, 1)}

    rate: float

    def __init__(
        self,
        in_features: int | None = None,
        *,
        beta: float = 1.0,
        rate: float = 0.5,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(rate=rate)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Tensor]:
        """Returns the sampled code in training, the features in evaluation."""
        draws = scope.claim_draws(self) if scope is not None and self.training else 1
        samples = x if draws == 1 else repeat(x, "b ... -> (n b) ...", n=draws)
        return F.dropout(samples, self.rate, self.training), x[:0]

    def penalty(self, state: Tensor, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns 0, without logs."""
        return state.sum(), {}  # of no rows: a 0 with a graph, on which a caller can run `backward`
