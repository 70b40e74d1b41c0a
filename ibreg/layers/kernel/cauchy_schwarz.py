"""Cauchy-Schwarz information bottleneck: penalizes the quadratic mutual information of input and code.

Yu et al. 2024 (arXiv 2404.17951).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.dependence import cs_qmi
from ibreg.functional.kernel.pairs import tiled_gram
from ibreg.layers.constraints import Bool
from ibreg.layers.encoder import CONSTRAINTS, build_encoder, noise_scale, reset_encoder, sample
from ibreg.layers.kernel.base import IsBandwidth, KernelBottleneck, scale_free
from ibreg.layers.scope import Scope
from ibreg.registry import register


@register("cauchy_schwarz")
class CauchySchwarzBottleneck(KernelBottleneck):
    r"""Bottleneck whose penalty is the Cauchy-Schwarz mutual information of input and code.

    .. math:: \text{penalty} = I_{CS}(x; t)

    It is in nats. By default the code is the features themselves. With `out_features` it is a linear map of them, with
    `stochastic` also with Gaussian noise of learned scale, sampled in training only.

    The information depends on the bandwidths: with narrow kernels all samples differ for any code, with wide ones none
    do. The logged similarities, the mean kernels of two samples of code and of input, show this; the penalty is
    informative for similarities between about 0.001 and 0.999. Within 0.00001 of 0 or 1 the layer warns once (on the
    CPU, in eager mode).

    Args:
        in_features: size of the feature axis; only needed with parameters.
        out_features: size of the code; None: the features themselves, or with `stochastic` their size.
        beta: weight of the penalty.
        bandwidth_x: bandwidth of the Gaussian kernel of the input: a number, ("rms", s), ("dimension", s) or "median",
            see `functional.bandwidth_of`.
        bandwidth_t: bandwidth of the Gaussian kernel of the code.
        normalized: whether to divide by the geometric mean of the information of input and of code with themselves.
        normalize_code: whether to divide the code, within the penalty, by its root mean squared distance, with
            gradient. Otherwise the code lowers the penalty by growing, even if the bandwidth is relative to its
            scale. A number as `bandwidth_t` is then in units of that distance.
        stochastic: whether the code is noisy in training.
        start: initialization of the parameters: "default": Xavier weights, noise 0.0067; "identity": the code is the
            features, noise 0.1, so that a pretrained network keeps its behavior.
        positions: "flatten": the code of a sample is all its tokens or positions; "mean": their mean.
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that memory is linear in the batch beyond 2,048 samples. It changes time and memory, not
            the value.
        gather: in training, use the global batch of all ranks (under DDP; every rank must call the layer) instead of
            the rank's own batch.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shapes:
        any with the batch first; the output has the code on the feature axis. Positions outside `mask` are 0 in a
        flattened code, and left out of a mean. With several Monte Carlo samples of the code the penalty uses the first.

    It reads `inputs`, which are required in training; in evaluation without them nothing is logged.

    Logs: `cs_qmi` (nats, of the batch; without unit if normalized), `similarity` and `inputs_similarity` (mean kernel
    of the codes and of the inputs of two samples).

    Distributed training: each rank penalizes its own batch, unless `gather`. Under gradient accumulation the batch is
    the micro-batch. A batch of one sample is an error in training.

    Raises:
        ValueError: an option out of range, a batch that is too small, inputs of integers.

    Example:
        >>> import torch
        >>> layer = CauchySchwarzBottleneck(8, 4)
        >>> out = layer.measure(torch.randn(16, 8))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([16, 4]), ['cs_qmi', 'inputs_similarity', 'similarity'])
    """

    out_features: int | None
    bandwidth_x: Bandwidth
    bandwidth_t: Bandwidth
    normalized: bool
    normalize_code: bool
    start: str
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
    def sized(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the code is a linear map of the features instead of the features themselves."""
        return self.stochastic or self.out_features is not None

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs."""
        return ("inputs",)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder, if the code is not the features themselves."""
        if not self.sized:
            return
        in_features = cast(int, self.in_features)
        self.out_features = in_features if self.out_features is None else self.out_features
        self.encoder = build_encoder(
            in_features, self.out_features, self.start, noise=self.stochastic, device=device, dtype=dtype
        )

    def reset_parameters(self) -> None:
        """Resets the encoder to its `start` and beta to its initial value."""
        super().reset_parameters()
        if self.encoder is not None:
            reset_encoder(self.encoder, cast(int, self.out_features), self.start)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Tensor]:
        """Returns the code, without noise in evaluation."""
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
        """Returns I(x; t) and the logs."""
        code = self.rows(state, scope.mask)
        if self.is_too_small(len(code), 2, scope):
            return code.new_zeros(()), {}
        if self.normalize_code:
            code = scale_free(code, gather=self.gram_options["gather"])
        x = self.gram_of_inputs(scope, self.bandwidth_x)
        t = tiled_gram(code, bandwidth=self.bandwidth_t, name="code", **self.gram_options)
        information = cs_qmi(x, t, normalized=self.normalized)
        return information, {"cs_qmi": information} | self.similarities(t, x, scope)
