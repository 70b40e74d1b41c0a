"""HSIC bottleneck: an identity layer that charges for what a code knows of the input beyond the target.

Ma et al. 2020 (arXiv 1908.01580); as a regularizer: Wang et al. 2021 (HBaR, arXiv 2106.02734).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.dependence import ESTIMATORS, hsic, normalized_factor, normalized_hsic
from ibreg.functional.kernel.kernels import KERNELS
from ibreg.functional.kernel.pairs import gram
from ibreg.layers.constraints import AtLeast, Bool, OneOf, Optional
from ibreg.layers.kernel.base import IsBandwidth, KernelBottleneck
from ibreg.layers.scope import Scope
from ibreg.registry import register
from ibreg.tracing import assert_finite, can_assert

INVERTING = ("normalized", "debiased")  # the estimators that invert whole Gram matrices


@register("hsic")
class HSICBottleneck(KernelBottleneck):
    r"""Lets features pass as they are, and charges for their dependence on the input, less that on the target.

    .. math:: \text{penalty} = \lambda_x \, HSIC(x, t) - \lambda_y \, HSIC(t, y)

    It has no unit and may be negative. The estimators differ in size: unbiased values are a few hundredths, CKA goes
    from 0 to 1, the normalized one (which the papers train) up to about the number of dimensions, or of classes less 1,
    and grows with the batch even for independent variables. So weights of one estimator mean nothing for another, and
    with the normalized ones the input's term is by far the larger.

    Args:
        in_features: size of the feature axis; only checked.
        beta: weight of the penalty.
        lambda_x: weight of the dependence on the input, at least 0.
        lambda_y: weight of the dependence on the target, at least 0. arXiv 1908.01580 takes 50 and lambda_x 1, with the
            normalized estimator.
        estimator: "unbiased", "biased", "cka", "normalized" or "debiased" (normalized, less its value for independent
            variables), see `functional.hsic`; the last two invert whole Gram matrices: no `block_size`, no `gather`.
        bandwidth_x: of the input's Gaussian kernel: a length, ("rms", s), ("dimension", s) or "median", see
            `functional.hsic`; a sigma of 5 in the papers is ("dimension", 5), a length of 5 sqrt(features).
        bandwidth_t: of the code's Gaussian kernel. A length invites the code to change its size instead of what it
            knows; the other two follow its size.
        bandwidth_y: of the target's kernel, where that has one.
        kernel_y: "gaussian", "inverse_multiquadric", "linear" (one-hot or soft labels) or "delta" (equality of class
            indices, which is the linear kernel of their one-hot labels); None: delta for integers, else gaussian.
        stop_gradient: whether the output lets no gradient back, so that the penalty alone trains what stands before the
            layer, back to the next such layer. With one behind each block of a network this is the layer-wise training
            of arXiv 1908.01580, without back-propagation between blocks; the task loss trains the head.
        positions: "flatten": all tokens or positions of a sample are its code; "mean": their mean is, which is cheaper
            for large maps.
        block_size: rows and columns of pairs that are visited at once, so that memory is linear in the batch; None:
            chosen, and linear too beyond 2,048 samples.
        gather: in training the batch is that of all ranks (under DDP; each has to call the layer), not the rank's own.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of beta.
        dtype: not used, there are no parameters.

    Shapes:
        any with the batch first; the output is the input. Positions that `mask` leaves out are 0 in a flattened code,
        and not in a mean. Behind several training draws the draws of a sample count as samples of their own.

    It reads `inputs` and `target`: class indices, class probabilities, or numbers to predict. Needed in training; in
    evaluation without them nothing is logged.

    Logs: `hsic_x` and `hsic_y`, of the batch; but for the normalized and the debiased estimator also `similarity` and
    `inputs_similarity`, the mean kernel of the codes and of the inputs of two samples. Where one of them is 0 or 1, to
    within 0.00001, it warns, once (on the CPU, in eager mode).

    Many processes: each rank charges for its own batch, unless `gather`. Under gradient accumulation the batch is the
    micro-batch. A batch below the estimator's minimum (4 for the unbiased, else 2) is an error in training.

    Raises:
        ValueError: an option out of range, a batch that is too small, inputs of integers, class indices as the target
            with a kernel other than delta.

    Example:
        >>> layer = HSICBottleneck()
        >>> x, y = torch.randn(32, 8), torch.randint(3, (32,))
        >>> out = layer.measure(x, target=y)
        >>> torch.equal(out.z, x), sorted(out.logs)
        (True, ['hsic_x', 'hsic_y', 'inputs_similarity', 'similarity'])
    """

    sized = False
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
            raise ValueError("lambda_x and lambda_y are both 0: nothing is left to charge for")
        if estimator in INVERTING and (gather or block_size is not None):
            raise ValueError(
                f"the {estimator} estimator inverts whole Gram matrices: for gather or block_size take 'unbiased' or "
                "'cka'"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs and the target, where their weights are not 0."""
        return tuple(name for name, weight in (("inputs", self.lambda_x), ("target", self.lambda_y)) if weight > 0)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Tensor]:
        """Returns the features themselves; inside a scope a copy, which in-place operations may change."""
        z = x.detach() if self.stop_gradient else x
        return z if scope is None else z.clone(), self.features_last(x)

    def penalty(self, state: Tensor, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns lambda_x HSIC(x, t) - lambda_y HSIC(t, y) and the two as logs."""
        code = self.rows(state, scope.mask)
        if self.is_too_small(len(code), ESTIMATORS[self.estimator], scope):
            return code.new_zeros(()), {}
        prepare, compare = self._estimation()
        t = prepare(code, bandwidth=self.bandwidth_t, name="code")
        x = self._of_inputs(scope, prepare) if self.lambda_x > 0 else None
        y = self._of_target(scope, prepare) if self.lambda_y > 0 else None
        hsic_x = 0.0 if x is None else compare(x, t)
        hsic_y = 0.0 if y is None else compare(t, y)
        logs = {} if self.estimator in INVERTING else self.similarities(t, x, scope)
        logs |= {name: value for name, value in (("hsic_x", hsic_x), ("hsic_y", hsic_y)) if isinstance(value, Tensor)}
        return self.lambda_x * hsic_x - self.lambda_y * hsic_y, logs

    def _estimation(self) -> tuple[Callable[..., Any], Callable[[Any, Any], Tensor]]:
        """Returns what prepares a variable, its Gram matrix or its factor, and what compares two that are prepared."""
        if self.estimator in INVERTING:
            return _factor, partial(normalized_hsic, debiased=self.estimator == "debiased")
        return partial(gram, **self.walk_options), partial(hsic, estimator=self.estimator)

    def _of_inputs(self, scope: Scope, prepare: Callable[..., Any]) -> Any:
        if self.estimator not in INVERTING:
            return self.gram_of_inputs(scope, self.bandwidth_x)
        make = partial(prepare, self.inputs_of(scope), bandwidth=self.bandwidth_x, name="inputs")
        return scope.once(("factor of inputs", self.bandwidth_x), make)

    def _of_target(self, scope: Scope, prepare: Callable[..., Any]) -> Any:
        target, kernel = self._target(scope)
        make = partial(prepare, target, kernel=kernel, bandwidth=self.bandwidth_y, name="target")
        kind = "factor of target" if self.estimator in INVERTING else "gram of target"
        return scope.once((kind, kernel, self.bandwidth_y, *self.walk_options.values()), make)

    def _target(self, scope: Scope) -> tuple[Tensor, str]:
        target = scope.target
        floating = target.is_floating_point()
        kernel = self.kernel_y or ("gaussian" if floating else "delta")
        if not floating and kernel != "delta":
            raise ValueError(
                f"bottleneck {scope.name_of(self)} got class indices and kernel_y={kernel!r}, which would compare them "
                "as numbers: leave kernel_y=None ('delta' is the linear kernel of one-hot labels), or give one-hot "
                "labels, or numbers as floating point"
            )
        if floating:
            assert_finite(target, f"bottleneck {scope.name_of(self)} got NaN or infinite values in its target")
        if kernel == "delta" and can_assert(target):
            torch._assert_async(
                (target >= 0).all(),
                f"bottleneck {scope.name_of(self)} takes class indices of at least 0: HSIC leaves no sample out",
            )
        return target, kernel


def _factor(x: Tensor, *, bandwidth: Bandwidth, kernel: str = "gaussian", name: str) -> Tensor:
    """Returns the factor of a variable, whose name no error needs."""
    return normalized_factor(x, bandwidth=bandwidth, kernel=kernel)
