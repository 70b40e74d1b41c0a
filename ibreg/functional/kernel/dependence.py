r"""How much two variables of a batch depend on each other, by kernels: HSIC, CKA, and the Cauchy-Schwarz information.

All are functions of a few sums over pairs of samples (`ibreg.functional.kernel.pairs`), except the normalized HSIC,
which inverts the Gram matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.kernels import kernel_named
from ibreg.functional.kernel.pairs import TILE, Gram, Walk, gram, pair_sums
from ibreg.precision import promoted_dtype, wide_dtype

ESTIMATORS = {"biased": 2, "unbiased": 4, "cka": 2, "normalized": 2, "debiased": 2}
"""The estimators of `hsic`, and the least number of samples that each takes."""

LARGEST_WHOLE = 512  # rows of a matrix that is inverted as one

# What a ratio takes for 0 in its denominator: a collapsed variable gives 0, with finite gradients even in float32.
_NOTHING = 1e-36


def hsic(
    x: Tensor | Gram,
    y: Tensor | Gram,
    *,
    bandwidth_x: Bandwidth = "median",
    bandwidth_y: Bandwidth = "median",
    kernel_x: str = "gaussian",
    kernel_y: str = "gaussian",
    estimator: str = "unbiased",
    block_size: int | None = None,
    gather: bool = False,
) -> Tensor:
    r"""Hilbert-Schmidt independence criterion of two variables: 0 where they are independent.

    With Gram matrices K and L, :math:`H = I - 11^\top / n`, and :math:`\tilde K` which is K with a diagonal of 0:

    .. math::
        \text{biased} &= \operatorname{tr}(K H L H) / (n - 1)^2 \\
        \text{unbiased} &= \frac{1}{n (n - 3)} \Big[ \operatorname{tr}(\tilde K \tilde L)
            + \frac{1^\top \tilde K 1 \; 1^\top \tilde L 1}{(n - 1)(n - 2)}
            - \frac{2}{n - 2} 1^\top \tilde K \tilde L 1 \Big] \\
        \text{cka} &= HSIC(x, y) / \sqrt{HSIC(x, x) HSIC(y, y)} \\
        \text{normalized} &= \operatorname{tr}(R_x R_y), \quad R = K_c (K_c + \epsilon n I)^{-1}, \quad K_c = H K H,
            \quad \epsilon = 10^{-5} \\
        \text{debiased} &= \operatorname{tr}(R_x R_y) - \operatorname{tr}(R_x) \operatorname{tr}(R_y) / (n - 1)

    The biased estimator (also within CKA) is above 0 for independent variables, by about 1/n. The normalized one is far
    above, by an amount that depends on the batch size: tr(R_x) tr(R_y) / (n - 1), its mean over all permutations of y.
    The debiased one subtracts that mean: for independent variables its expectation is exactly 0. A constant variable
    gives 0 by all of them.

    Args:
        x: `(batch, ...)`, integer labels `(batch,)` with `kernel_x="delta"`; or what `gram` made of it, whose kernel,
            bandwidth, block size and ranks then hold.
        y: the same, with as many samples.
        bandwidth_x: see `bandwidth_of`; found without gradient, the median on at most 1,024 rows.
        bandwidth_y: the same for y.
        kernel_x: `gaussian`, `inverse_multiquadric`, `linear` or `delta` (equality of labels; any integers will do).
        kernel_y: the same for y.
        estimator: `biased`, `unbiased` (at least 4 samples), `cka`, `normalized` or `debiased` (at least 2).
        block_size: rows and columns that are visited at once; time is quadratic in the batch and memory linear. None:
            chosen, so that memory stays linear beyond 2,048 samples. `normalized` and `debiased` take None only.
        gather: the batch is that of all ranks; every rank has to call. The gradient is by the rank's own rows, times
            the number of ranks, as `DistributedDataParallel` averages. Not for `normalized` and `debiased`.

    Returns:
        0-dim, in the dtype of the inputs (float32 for half precision); NaN where they hold any. The gradient has no
        gradient of its own.

    Raises:
        ValueError: too few samples, different numbers of samples, or an option that is unknown or does not fit.

    Sources: Gretton et al. 2005 (biased); Song et al. 2007, arXiv 0704.2668, eq. 5 (unbiased); Kornblith et al. 2019,
    arXiv 1905.00414 (cka); Ma et al. 2020, arXiv 1908.01580 (normalized).

    Example:
        >>> x = torch.linspace(-1, 1, 6)
        >>> hsic(x, x**2), hsic(x, x**2, estimator="cka")
        (tensor(-0.0077), tensor(0.2915))
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"there is no estimator {estimator!r}: take one of {', '.join(ESTIMATORS)}")
    if estimator in ("normalized", "debiased"):
        if block_size is not None or gather or isinstance(x, Gram) or isinstance(y, Gram):
            raise ValueError(
                f"the {estimator} HSIC inverts whole Gram matrices: it takes tensors, no block_size and no gather; "
                "where one variable serves several calls, use normalized_factor and normalized_hsic"
            )
        _check_samples(x.shape[0], y.shape[0], estimator)
        factor_x = normalized_factor(x, bandwidth=bandwidth_x, kernel=kernel_x)
        factor_y = normalized_factor(y, bandwidth=bandwidth_y, kernel=kernel_y)
        return normalized_hsic(factor_x, factor_y, debiased=estimator == "debiased").to(_dtype(x, y))
    x = _gram(x, kernel_x, bandwidth_x, block_size, gather, "x")
    y = _gram(y, kernel_y, bandwidth_y, block_size, gather, "y")
    samples = x.walk.total
    _check_samples(samples, y.walk.total, estimator)
    sums, _, _ = pair_sums(x, y, unbiased=estimator == "unbiased", own=estimator == "cka")
    if estimator == "biased":
        value = sums[0] / (samples - 1) ** 2
    elif estimator == "unbiased":
        value = sums[0] / (samples * (samples - 3))
    else:
        value = _ratio(*sums / samples**2)
    return value.to(_dtype(x.points, y.points))


def cs_qmi(
    x: Tensor | Gram,
    t: Tensor | Gram,
    *,
    bandwidth_x: Bandwidth = ("rms", 0.25),
    bandwidth_t: Bandwidth = ("rms", 0.25),
    normalized: bool = False,
    block_size: int | None = None,
    gather: bool = False,
) -> Tensor:
    r"""Cauchy-Schwarz quadratic mutual information of two variables, in nats; 0 where they are independent.

    With Gaussian Gram matrices K and Q and their row means :math:`r_K, r_Q`:

    .. math:: I = \log A + \log C - 2 \log B, \quad
        A = \overline{K \circ Q}, \; B = \overline{r_K \circ r_Q}, \; C = \bar K \bar Q

    The logarithms cancel for wide kernels. Computed instead, and equal: with :math:`H = \overline{K_c \circ Q_c}` of
    the centered matrices, and c the covariance of the row means, :math:`I = \log(1 + (C H - c^2) / (C + c)^2)`.

    Normalized, it is :math:`I(x; t) / \sqrt{I(x; x) I(t; t)}`: 1 for a variable with itself, but not bounded by 1. A
    constant variable gives 0, with finite gradients.

    Args:
        x: `(batch, ...)`; or what `gram` made of it, whose bandwidth, block size and ranks then hold.
        t: the same, with as many samples.
        bandwidth_x: see `bandwidth_of`; found without gradient.
        bandwidth_t: the same for t.
        normalized: divide as above.
        block_size: rows and columns that are visited at once; time is quadratic in the batch and memory linear. None:
            chosen, so that memory stays linear beyond 2,048 samples.
        gather: the batch is that of all ranks; every rank has to call. The gradient is by the rank's own rows, times
            the number of ranks, as `DistributedDataParallel` averages.

    Returns:
        0-dim, at least 0 up to rounding, in the dtype of the inputs (float32 for half precision); NaN where they hold
        any. The gradient has no gradient of its own.

    Raises:
        ValueError: fewer than 2 samples, different numbers of samples, integers, or a bandwidth that is not above 0.

    Source: Yu et al. 2024, arXiv 2404.17951.

    Example:
        >>> x = torch.linspace(-1, 1, 6)
        >>> cs_qmi(x, x**2), cs_qmi(x, x, normalized=True)
        (tensor(0.7019), tensor(1.))
    """
    x = _gram(x, "gaussian", bandwidth_x, block_size, gather, "x")
    t = _gram(t, "gaussian", bandwidth_t, block_size, gather, "t")
    if x.kernel != "gaussian" or t.kernel != "gaussian":
        raise ValueError(f"cs_qmi is of Gaussian kernels, got {x.kernel} and {t.kernel}")
    samples = x.walk.total
    _check_samples(samples, t.walk.total, "cs_qmi")
    sums, means_x, means_t = pair_sums(x, t, own=normalized)
    pairs = ((means_x, means_t), (means_x, means_x), (means_t, means_t))
    informations = [
        _information(total, *means) for total, means in zip(sums / samples**2, pairs[: len(sums)], strict=True)
    ]
    value = _ratio(*informations) if normalized else informations[0]
    return value.to(_dtype(x.points, t.points))


def normalized_factor(
    x: Tensor, *, bandwidth: Bandwidth = "median", kernel: str = "gaussian", epsilon: float = 1e-5
) -> Tensor:
    r"""Regularized projection on what a kernel sees of a variable; the normalized HSIC is the product of two of them.

    .. math:: R = K_c (K_c + \epsilon n I)^{-1} = I - \epsilon n (K_c + \epsilon n I)^{-1}, \quad K_c = H K H

    By Cholesky factorization, in float64 where the device has it: what a kernel hardly sees has eigenvalues far
    below epsilon n, and would be rounding. For the same reason epsilon n is at least 2e-13 tr(K) for the linear kernel,
    which has no upper bound.

    Args:
        x: `(batch, ...)`; integer labels `(batch,)` for the delta kernel.
        bandwidth: see `bandwidth_of`; the median is taken of at most 1,024 rows. Linear and delta kernels have none.
        kernel: `gaussian`, `inverse_multiquadric`, `linear` or `delta`.
        epsilon: above 0.

    Returns:
        `(batch, batch)`, symmetric, eigenvalues in [0, 1); float64.

    Raises:
        ValueError: an unknown kernel, an input that it does not take, or a bandwidth or epsilon that is not above 0.

    Source: Ma et al. 2020, arXiv 1908.01580.

    Example:
        >>> normalized_factor(torch.tensor([[-1.0], [1.0]]), kernel="linear")
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]], dtype=torch.float64)
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon has to be above 0, got {epsilon!r}")
    form = kernel_named(kernel)
    rows = form.rows(x, "x")
    with torch.autocast(rows.device.type, enabled=False):
        points, scale = form.points(rows.detach(), bandwidth)
        ridge = torch.tensor(epsilon * rows.shape[0], dtype=wide_dtype(rows), device=rows.device)
        if not form.labels:
            points = points.to(ridge.dtype)
        if kernel == "linear":  # has no upper bound: where it is large, the ridge would be lost in its rounding
            ridge = torch.maximum(ridge, 1e3 * torch.finfo(ridge.dtype).eps * points.square().sum())
        factor, _ = _Factor.apply(rows, kernel, points, scale, ridge)
    return factor


def normalized_hsic(factor_x: Tensor, factor_y: Tensor, *, debiased: bool = False) -> Tensor:
    r"""Normalized HSIC from the factors of two variables, so that several calls can share one.

    .. math:: \operatorname{tr}(R_x R_y) \;\text{ or, debiased, }\;
        \operatorname{tr}(R_x R_y) - \operatorname{tr}(R_x) \operatorname{tr}(R_y) / (n - 1)

    Args:
        factor_x: `(batch, batch)`, what `normalized_factor` returned.
        factor_y: the same, of the other variable.
        debiased: subtract the mean over all permutations of y.

    Returns:
        0-dim, in the dtype of the factors.

    Raises:
        ValueError: different numbers of samples.

    Example:
        >>> factor = normalized_factor(torch.randn(8, 2))
        >>> bool(normalized_hsic(factor, factor) > normalized_hsic(factor, factor, debiased=True))
        True
    """
    _check_samples(factor_x.shape[0], factor_y.shape[0], "normalized")
    if debiased:
        factor_x, factor_y = _less_its_mean(factor_x), _less_its_mean(factor_y)
    return torch.dot(factor_x.flatten(), factor_y.flatten())


def _less_its_mean(factor: Tensor) -> Tensor:
    """Returns R - tr(R) / (n - 1) H: the product of two of them is debiased, without a difference of large numbers."""
    samples = factor.shape[0]
    centering = torch.eye(samples, dtype=factor.dtype, device=factor.device) - 1 / samples
    return factor - factor.trace() / max(samples - 1, 1) * centering


def _inverse(matrix: Tensor) -> Tensor:
    """Inverts a positive definite matrix by its quarters, products of matrices for the most part; NaN for another.

    A Cholesky factorization of the whole takes half as long again on two cores: its triangles keep one of them waiting.
    """
    size = matrix.shape[0]
    if size <= LARGEST_WHOLE:
        # Not the checking form: that waits for the device.
        triangle, failed = torch.linalg.cholesky_ex(matrix)
        return torch.cholesky_inverse(triangle).masked_fill(failed > 0, torch.nan)
    half = size // 2
    first = _inverse(matrix[:half, :half])
    weights = matrix[half:, :half] @ first
    second = _inverse(matrix[half:, half:] - weights @ matrix[:half, half:])
    mixed = second @ weights
    return torch.cat((torch.cat((first + weights.mT @ mixed, -mixed.mT), 1), torch.cat((-mixed, second), 1)))


class _Factor(torch.autograd.Function):
    @staticmethod
    def forward(rows, kernel, points, scale, ridge):
        everything = slice(0, points.shape[0])
        gram = kernel_named(kernel).tile(points, everything, everything).to(ridge.dtype)
        gram.sub_(gram.mean(0))
        gram.sub_(gram.mean(1, keepdim=True))
        gram.diagonal().add_(ridge)
        rest = _inverse(gram).mul_(ridge)
        factor = rest.neg()
        factor.diagonal().add_(1)
        return factor, rest.sub_(1 / points.shape[0]).to(scale.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.kernel, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        # With S = H - R (which R itself would give fewer digits of) and G the gradient by R, that by the Gram matrix is
        # S G S / ridge. It is symmetric: half of its tiles will do. The matrix products are in the dtype of x.
        kernel = kernel_named(ctx.kernel)
        points, scale, ridge, rest = ctx.saved_tensors
        grad = grad.to(rest.dtype)
        product = rest @ (grad + grad.mT)
        gradient = torch.zeros_like(points)
        for rows, columns, mirrored in Walk((points.shape[0],), 0, TILE).visits():
            weights = (product[rows] @ rest[:, columns]).to(points.dtype)
            if kernel.slope is not None:
                weights.mul_(kernel.slope(kernel.tile(points, rows, columns)))
            here, there = points[rows], points[columns]
            kernel.pull(weights, here, there, gradient[rows])
            if mirrored:
                kernel.pull(weights.mT, there, here, gradient[columns])
        return (gradient * (scale / (2 * ridge))).to(scale.dtype), None, None, None, None


def _information(centered: Tensor, means_x: Tensor, means_y: Tensor) -> Tensor:
    mean_x, mean_y = means_x.mean(), means_y.mean()
    product = (1 + mean_x) * (1 + mean_y)
    covariance = ((means_x - mean_x) * (means_y - mean_y)).mean()
    return torch.log1p((product * centered - covariance.square()) / (product + covariance).square())


def _ratio(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    return xy / (xx.clamp(min=_NOTHING).sqrt() * yy.clamp(min=_NOTHING).sqrt())


def _gram(x: Tensor | Gram, kernel: str, bandwidth: Bandwidth, block_size: int | None, gather: bool, name: str) -> Gram:
    if isinstance(x, Gram):
        return x
    return gram(x, kernel=kernel, bandwidth=bandwidth, block_size=block_size, gather=gather, name=name)


def _check_samples(of_x: int, of_y: int, estimator: str) -> None:
    if of_x != of_y:
        raise ValueError(f"the two variables have to have as many samples, got {of_x} and {of_y}")
    least = ESTIMATORS.get(estimator, 2)
    if of_x < least:
        raise ValueError(f"{estimator} takes at least {least} samples, got {of_x}")


def _dtype(*variables: Tensor) -> torch.dtype:
    """Returns the dtype of a result: that of the variables which are not labels, and float32 at least."""
    return promoted_dtype(*([variable.dtype for variable in variables if variable.is_floating_point()] or [None]))
