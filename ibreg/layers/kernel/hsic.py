"""HSIC bottleneck: an identity layer that penalizes the dependence of the code on the input beyond the target.

Ma et al. 2020 (arXiv 1908.01580); as a regularizer: Wang et al. 2021 (HBaR, arXiv 2106.02734).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.dependence import ESTIMATORS, hsic, normalized_factor, normalized_hsic
from ibreg.functional.kernel.kernels import KERNELS
from ibreg.functional.kernel.pairs import tiled_gram
from ibreg.layers.constraints import AtLeast, Bool, OneOf, Optional
from ibreg.layers.kernel.base import IsBandwidth, KernelBottleneck
from ibreg.layers.scope import Scope
from ibreg.registry import register
from ibreg.tracing import assert_finite, can_assert

INVERTING = ("normalized", "debiased")  # the estimators that invert whole Gram matrices


@register("hsic")
class HSICBottleneck(KernelBottleneck):
    r"""Identity layer whose penalty is the dependence of the code on the input minus that on the target.

    .. math:: \text{penalty} = \lambda_x \, HSIC(x, t) - \lambda_y \, HSIC(t, y)

    The penalty has no unit and may be negative. Its size depends on the estimator: unbiased values are a few
    hundredths; CKA is between 0 and 1; normalized values (as in the papers) reach about the number of dimensions, or of
    classes minus 1, and grow with the batch even for independent variables. Weights for one estimator therefore do not
    transfer to another, and with the normalized estimators the term of the input is by far the larger.

    Args:
        in_features: size of the feature axis; only checked.
        beta: weight of the penalty.
        lambda_x: weight of the dependence on the input, at least 0.
        lambda_y: weight of the dependence on the target, at least 0. arXiv 1908.01580 uses 50, with lambda_x 1 and the
            normalized estimator.
        estimator: "unbiased", "biased", "cka", "normalized" or "debiased" (normalized, minus its mean for independent
            variables), see `functional.hsic`. The last two invert whole Gram matrices: no `block_size`, no `gather`.
        bandwidth_x: bandwidth of the Gaussian kernel of the input: a number, ("rms", s), ("dimension", s) or "median",
            see `functional.bandwidth_of`. A sigma of 5 in the papers is ("dimension", 5).
        bandwidth_t: bandwidth of the Gaussian kernel of the code. With a fixed bandwidth the code can lower the penalty
            by rescaling; "rms" and "median" are scale-invariant.
        bandwidth_y: bandwidth of the kernel of the target, if it has one.
        kernel_y: "gaussian", "inverse_multiquadric", "linear" (one-hot or soft labels) or "delta" (equality of class
            indices, which is the linear kernel of one-hot labels); None: "delta" for integers, else "gaussian".
        stop_gradient: whether the output is detached, so that the penalty alone trains the modules before the layer, up
            to the previous such layer. With one layer after each block of a network this is the layer-wise training of
            arXiv 1908.01580, without back-propagation between blocks; the task loss trains the head.
        positions: "flatten": the code of a sample is all its tokens or positions; "mean": their mean, which is cheaper
            for large maps.
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that memory is linear in the batch beyond 2,048 samples. It changes time and memory, not
            the value.
        gather: in training, use the global batch of all ranks (under DDP; every rank must call the layer) instead of
            the rank's own batch.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: device of beta.
        dtype: not used, there are no parameters.

    Shapes:
        any with the batch first; the output is the input. Positions outside `mask` are 0 in a flattened code, and left
        out of a mean. After a layer that repeats its code, each sample of the code counts as a sample of the batch.

    It reads `inputs` and `target`: class indices, class probabilities or regression targets. They are required in
    training; in evaluation without them nothing is logged.

    Logs: `hsic_x` and `hsic_y`, of the batch; except with the normalized estimators also `similarity` and
    `inputs_similarity`, the mean kernel of the codes and of the inputs of two samples. If one of them is within 0.00001
    of 0 or 1, the layer warns once (on the CPU, in eager mode).

    Distributed training: each rank penalizes its own batch, unless `gather`. Under gradient accumulation the batch is
    the micro-batch. A batch below the minimum of the estimator (4 for the unbiased, else 2) is an error in training.

    Raises:
        ValueError: If an option is out of range, the batch is too small, the inputs are integers, or the target has
            class indices and its kernel is not delta.

    Example:
        >>> layer = HSICBottleneck()
        >>> x, y = torch.randn(32, 8), torch.randint(3, (32,))
        >>> out = layer.measure(x, target=y)
        >>> torch.equal(out.z, x), sorted(out.logs)
        (True, ['hsic_x', 'hsic_y', 'inputs_similarity', 'similarity'])
    """

    sized = False
    lambda_x: float
    lambda_y: float
    estimator: str
    bandwidth_x: Bandwidth
    bandwidth_t: Bandwidth
    bandwidth_y: Bandwidth
    kernel_y: str | None
    stop_gradient: bool
    constraints = {
        "lambda_x": AtLeast(0),
        "lambda_y": AtLeast(0),
        "estimator": OneOf(ESTIMATORS),
        "bandwidth_x": IsBandwidth(),
        "bandwidth_t": IsBandwidth(),
        "bandwidth_y": IsBandwidth(),
        "kernel_y": Optional(OneOf(KERNELS)),
        "stop_gradient": Bool(),
    }

    def __init__(
        self,
        in_features: int | None = None,
        *,
        beta: float = 1.0,
        lambda_x: float = 1.0,
        lambda_y: float = 2.0,
        estimator: str = "unbiased",
        bandwidth_x: Bandwidth = "median",
        bandwidth_t: Bandwidth = "median",
        bandwidth_y: Bandwidth = "median",
        kernel_y: str | None = None,
        stop_gradient: bool = False,
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
            lambda_x=lambda_x, lambda_y=lambda_y, estimator=estimator, bandwidth_x=bandwidth_x, bandwidth_t=bandwidth_t,
            bandwidth_y=bandwidth_y, kernel_y=kernel_y, stop_gradient=stop_gradient,
        )  # fmt: skip
        if lambda_x == lambda_y == 0:
            raise ValueError("lambda_x or lambda_y must be above 0, got 0 for both: the penalty would be 0")
        if estimator in INVERTING and (gather or block_size is not None):
            raise ValueError(
                f"the {estimator} estimator inverts whole Gram matrices: with gather or block_size use 'unbiased' or "
                "'cka'"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs and the target, if their weights are not 0."""
        return tuple(name for name, weight in (("inputs", self.lambda_x), ("target", self.lambda_y)) if weight > 0)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Tensor]:
        """Returns the features; inside a scope a copy, which in-place operations may change."""
        z = x.detach() if self.stop_gradient else x
        return z if scope is None else z.clone(), self.features_last(x)

    def penalty(self, state: Tensor, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns lambda_x HSIC(x, t) - lambda_y HSIC(t, y) and the two as logs."""
        code = self.rows(state, scope.mask)
        if self.is_too_small(len(code), ESTIMATORS[self.estimator], scope):
            return code.new_zeros(()), {}
        prepare, dependence = self._estimation()
        t = prepare(code, bandwidth=self.bandwidth_t, name="code")
        x = self._inputs(scope, prepare) if self.lambda_x else None
        y = self._target(scope, prepare) if self.lambda_y else None
        hsic_x = 0.0 if x is None else dependence(x, t)
        hsic_y = 0.0 if y is None else dependence(t, y)
        logs = {} if self.estimator in INVERTING else self.similarities(t, x, scope)
        logs |= {name: value for name, value in (("hsic_x", hsic_x), ("hsic_y", hsic_y)) if isinstance(value, Tensor)}
        return cast(Tensor, self.lambda_x * hsic_x - self.lambda_y * hsic_y), logs

    def _estimation(self) -> tuple[Callable[..., Any], Callable[[Any, Any], Tensor]]:
        """Returns the function that prepares a variable, and the HSIC of two prepared variables."""
        if self.estimator in INVERTING:
            return normalized_factor, partial(normalized_hsic, debiased=self.estimator == "debiased")
        return partial(tiled_gram, **self.gram_options), partial(hsic, estimator=self.estimator)

    def _inputs(self, scope: Scope, prepare: Callable[..., Any]) -> Any:
        """Returns the prepared inputs, which layers with the same options share."""
        if self.estimator not in INVERTING:
            return self.gram_of_inputs(scope, self.bandwidth_x)
        make = partial(prepare, self.inputs_of(scope), bandwidth=self.bandwidth_x, name="inputs")
        return scope.once(("factor of inputs", self.bandwidth_x), make)

    def _target(self, scope: Scope, prepare: Callable[..., Any]) -> Any:
        """Returns the prepared target, which layers with the same options share."""
        target, kernel = self._target_and_kernel(scope)
        make = partial(prepare, target, kernel=kernel, bandwidth=self.bandwidth_y, name="target")
        kind = "factor of target" if self.estimator in INVERTING else "gram of target"
        return scope.once((kind, kernel, self.bandwidth_y, *self.gram_options.values()), make)

    def _target_and_kernel(self, scope: Scope) -> tuple[Tensor, str]:
        """Checks the target and returns it with its kernel."""
        target = cast(Tensor, scope.target)
        floating = target.is_floating_point()
        kernel = self.kernel_y or ("gaussian" if floating else "delta")
        if not floating and kernel != "delta":
            raise ValueError(
                f"bottleneck {scope.name_of(self)} got class indices and kernel_y={kernel!r}, which would compare them "
                "as numbers: use kernel_y=None ('delta' is the linear kernel of one-hot labels), one-hot labels, or "
                "floating-point regression targets"
            )
        if floating:
            assert_finite(target, f"bottleneck {scope.name_of(self)} got NaN or infinite values in its target")
        if kernel == "delta" and can_assert(target):
            torch._assert_async(
                (target >= 0).all(),
                f"bottleneck {scope.name_of(self)} takes class indices of at least 0: HSIC ignores no sample",
            )
        return target, kernel
