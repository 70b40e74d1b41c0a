"""Cauchy-Schwarz information bottleneck: charges for the quadratic mutual information of input and code.

Yu et al. 2024 (arXiv 2404.17951).
"""

from __future__ import annotations

from torch import Tensor

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.dependence import cs_qmi
from ibreg.functional.kernel.pairs import gram
from ibreg.layers.constraints import Bool
from ibreg.layers.encoder import CONSTRAINTS, build_encoder, noise_scale, reset_encoder, sample
from ibreg.layers.kernel.base import IsBandwidth, KernelBottleneck, scale_free
from ibreg.layers.scope import Scope
from ibreg.registry import register


@register("cauchy_schwarz")
class CauchySchwarzBottleneck(KernelBottleneck):
    r"""Charges for the Cauchy-Schwarz mutual information of input and code, in nats, without a distribution assumed.

    .. math:: \text{penalty} = I_{CS}(x; t)

    By default the code is the features themselves. With `out_features` it is a linear map of them, with `stochastic`
    also with Gaussian noise of learned size, drawn in training alone.

    The information depends on the kernels' widths: with narrow ones all samples differ, whatever the code, with wide
    ones none do. The logged similarities say where code and input stand: the mean kernel of two samples, useful between
    about 0.001 and 0.999. Within 0.00001 of 0 or 1 it warns, once (on the CPU, in eager mode).

    Args:
        in_features: size of the feature axis; needed with parameters only.
        out_features: size of the code; None: the features themselves, or with `stochastic` as many.
        beta: weight of the penalty.
        bandwidth_x: of the input's Gaussian kernel: a length, ("rms", s) or "median", see `functional.cs_qmi`.
        bandwidth_t: of the code's Gaussian kernel.
        normalized: divide by the geometric mean of the information of input and of code with themselves.
        normalize_code: divide the code, within the penalty, by its root mean squared distance, with gradient:
            otherwise inflating the code lowers the penalty where the bandwidth is a fixed share of its size. A
            length as `bandwidth_t` is then in units of that distance.
        stochastic: whether the code is noisy in training.
        start: of the parameters: "default": Xavier weights, noise 0.0067; "identity": the code is the features, noise
            0.1, so that a pretrained network goes on as it was.
        positions: "flatten": all tokens or positions of a sample are its code; "mean": their mean is.
        block_size: rows and columns of pairs that are visited at once, so that memory is linear in the batch; None:
            chosen, and linear too beyond 2,048 samples.
        gather: in training the batch is that of all ranks (under DDP; each has to call the layer), not the rank's own.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        any with the batch first; the output has the code on the feature axis. Positions that `mask` leaves out are 0
        in a flattened code, and not in a mean. Of several training draws the penalty sees the first.

    It reads `inputs`, needed in training; in evaluation without them nothing is logged.

    Logs: `cs_qmi` (nats, of the batch, normalized or not), `similarity` and `inputs_similarity` (mean kernel of the
    codes and of the inputs of two samples).

    Many processes: each rank charges for its own batch, unless `gather`. Under gradient accumulation the batch is the
    micro-batch. A batch of one is an error in training.

    Raises:
        ValueError: an option out of range, a batch that is too small, inputs of integers.

    Example:
        >>> import torch
        >>> layer = CauchySchwarzBottleneck(8, 4)
        >>> out = layer.measure(torch.randn(16, 8))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([16, 4]), ['cs_qmi', 'inputs_similarity', 'similarity'])
    """

    constraints = CONSTRAINTS | {
        "bandwidth_x": IsBandwidth(),
        "bandwidth_t": IsBandwidth(),
        "normalized": Bool(),
        "normalize_code": Bool(),
        "stochastic": Bool(),
    }

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        beta: float = 1e-2,
        bandwidth_x: Bandwidth = ("rms", 0.25),
        bandwidth_t: Bandwidth = ("rms", 0.25),
        normalized: bool = False,
        normalize_code: bool = True,
        stochastic: bool = False,
        start: str = "default",
        positions: str = "flatten",
        block_size: int | None = None,
        gather: bool = False,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_features, beta=beta, positions=positions, block_size=block_size, gather=gather, dim=dim, device=device
        )
        self.keep(
            out_features=out_features, bandwidth_x=bandwidth_x, bandwidth_t=bandwidth_t, normalized=normalized,
            normalize_code=normalize_code, stochastic=stochastic, start=start,
        )  # fmt: skip
        self.register_module("encoder", None)
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def sized(self) -> bool:
        """Whether the code is another one than the features, by a linear map."""
        return self.stochastic or self.out_features is not None

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs."""
        return ("inputs",)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder, where the code is not the features themselves."""
        if not self.sized:
            return
        if self.out_features is None:
            self.out_features = self.in_features
        self.encoder = build_encoder(
            self.in_features, self.out_features, self.start, noise=self.stochastic, device=device, dtype=dtype
        )

    def reset_parameters(self) -> None:
        """Sets the encoder to its `start`, beta to its first value."""
        super().reset_parameters()
        if self.encoder is not None:
            reset_encoder(self.encoder, self.out_features, self.start)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Tensor]:
        """Returns the code: in evaluation without noise."""
        features = self.features_last(x)
        if self.encoder is None:
            return x if scope is None else x.clone(), features  # in-place operations may change the copy
        if not self.stochastic:
            code = self.encoder(features)
            return self.features_back(code.clone()), code
        mean, raw_scale = self.encoder(features).chunk(2, dim=-1)
        z, _ = sample(self, mean, noise_scale(raw_scale), scope)
        return z, self.features_last(z)[: len(mean)].clone() if self.training else mean

    def penalty(self, state: Tensor, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the information, and how similar codes are."""
        code = self.rows(state, scope.mask)
        if self.is_too_small(len(code), 2, scope):
            return code.new_zeros(()), {}
        if self.normalize_code:
            code = scale_free(code, gather=self.walk_options["gather"])
        gram_of_code = gram(code, bandwidth=self.bandwidth_t, name="code", **self.walk_options)
        gram_of_inputs = self.gram_of_inputs(scope, self.bandwidth_x)
        information = cs_qmi(gram_of_inputs, gram_of_code, normalized=self.normalized)
        return information, {"cs_qmi": information} | self.similarities(gram_of_code, gram_of_inputs, scope)
