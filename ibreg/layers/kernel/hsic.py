"""HSIC bottleneck: an identity layer that charges for what a code knows of the input beyond the target.

Ma et al. 2020 (arXiv 1908.01580); as a regularizer: Wang et al. 2021 (HBaR, arXiv 2106.02734).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.dependence import ESTIMATORS, hsic, normalized_factor, normalized_hsic
from ibreg.functional.kernel.kernels import KERNELS
from ibreg.functional.kernel.pairs import gram
from ibreg.layers.constraints import check_choice, check_number, check_switch
from ibreg.layers.kernel.base import KernelBottleneck, checked_bandwidth
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
        check_choice("estimator", estimator, ESTIMATORS)
        if kernel_y is not None:
            check_choice("kernel_y", kernel_y, KERNELS)
        check_number("lambda_x", lambda_x, least=0)
        check_number("lambda_y", lambda_y, least=0)
        if lambda_x == lambda_y == 0:
            raise ValueError("lambda_x and lambda_y are both 0: nothing is left to charge for")
        check_switch("stop_gradient", stop_gradient)
        if estimator in INVERTING and (gather or block_size is not None):
            raise ValueError(
                f"the {estimator} estimator inverts whole Gram matrices: for gather or block_size take 'unbiased' or "
                "'cka'"
            )
        self.lambda_x = lambda_x
        self.lambda_y = lambda_y
        self.estimator = estimator
        self.bandwidth_x = checked_bandwidth("bandwidth_x", bandwidth_x)
        self.bandwidth_t = checked_bandwidth("bandwidth_t", bandwidth_t)
        self.bandwidth_y = checked_bandwidth("bandwidth_y", bandwidth_y)
        self.kernel_y = kernel_y
        self.stop_gradient = stop_gradient

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs and the target, where their weights are not 0."""
        return ("inputs",) * (self.lambda_x > 0) + ("target",) * (self.lambda_y > 0)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Tensor]:
        """Returns the features themselves; inside a scope a copy, which in-place operations may change."""
        z = x.detach() if self.stop_gradient else x
        return z if scope is None else z.clone(), self.features_last(x)

    def penalty(self, state: Tensor, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns lambda_x HSIC(x, t) - lambda_y HSIC(t, y) and the two as logs."""
        code = self.rows(state, scope.mask)
        if self.is_too_small(len(code), ESTIMATORS[self.estimator], scope):
            return code.new_zeros(()), {}
        logs = (self._by_factors if self.estimator in INVERTING else self._by_pairs)(code, scope)
        return self.lambda_x * logs.get("hsic_x", 0) - self.lambda_y * logs.get("hsic_y", 0), logs

    def _by_factors(self, code: Tensor, scope: Scope) -> dict[str, Tensor]:
        factor, debiased = normalized_factor(code, bandwidth=self.bandwidth_t), self.estimator == "debiased"
        found = {}
        if self.lambda_x > 0:
            of_inputs = scope.once(
                ("factor of inputs", self.bandwidth_x),
                lambda: normalized_factor(self.inputs_of(scope), bandwidth=self.bandwidth_x),
            )
            found["hsic_x"] = normalized_hsic(of_inputs, factor, debiased=debiased)
        if self.lambda_y > 0:
            target, kernel = self._target(scope)
            of_target = scope.once(
                ("factor of target", kernel, self.bandwidth_y),
                lambda: normalized_factor(target, bandwidth=self.bandwidth_y, kernel=kernel),
            )
            found["hsic_y"] = normalized_hsic(factor, of_target, debiased=debiased)
        return found

    def _by_pairs(self, code: Tensor, scope: Scope) -> dict[str, Tensor]:
        options = self.walk_options
        of_code = gram(code, bandwidth=self.bandwidth_t, name="code", **options)
        found, grams = {}, {"similarity": of_code}
        if self.lambda_x > 0:
            of_inputs = grams["inputs_similarity"] = self.gram_of_inputs(scope, self.bandwidth_x)
            found["hsic_x"] = hsic(of_inputs, of_code, estimator=self.estimator)
        if self.lambda_y > 0:
            target, kernel = self._target(scope)
            of_target = scope.once(
                ("gram of target", kernel, self.bandwidth_y, *options.values()),
                lambda: gram(target, kernel=kernel, bandwidth=self.bandwidth_y, name="target", **options),
            )
            found["hsic_y"] = hsic(of_code, of_target, estimator=self.estimator)
        return found | self.similarities(grams, scope)

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
