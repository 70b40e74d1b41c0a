r"""Kernel dependence of two variables of a batch: HSIC, CKA and the Cauchy-Schwarz mutual information.

All are functions of a few sums over pairs of samples (`ibreg.functional.kernel.pairs`), except the normalized HSIC,
which inverts the Gram matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.kernels import kernel_named
from ibreg.functional.kernel.pairs import TILE, TiledGram, Walk, pair_sums, tiled_gram
from ibreg.precision import promoted_dtype, wide_dtype

ESTIMATORS = {"biased": 2, "unbiased": 4, "cka": 2, "normalized": 2, "debiased": 2}
"""The estimators of `hsic`, and the minimum number of samples of each."""

LARGEST_CHOLESKY = 512  # rows of the largest matrix that is inverted by one factorization

# Lower bound of the denominators of ratios: a collapsed variable gives 0, with finite gradients even in float32.
LEAST_DENOMINATOR = 1e-36


def hsic(
    x: Tensor | TiledGram,
    y: Tensor | TiledGram,
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

    With Gram matrices K and L, :math:`H = I - 11^\top / n`, and :math:`\tilde K`, which is K with a diagonal of 0:

    .. math::
        \text{biased} &= \operatorname{tr}(K H L H) / (n - 1)^2 \\
        \text{unbiased} &= \frac{1}{n (n - 3)} \Big[ \operatorname{tr}(\tilde K \tilde L)
            + \frac{1^\top \tilde K 1 \; 1^\top \tilde L 1}{(n - 1)(n - 2)}
            - \frac{2}{n - 2} 1^\top \tilde K \tilde L 1 \Big] \\
        \text{cka} &= HSIC(x, y) / \sqrt{HSIC(x, x) HSIC(y, y)} \\
        \text{normalized} &= \operatorname{tr}(R_x R_y), \quad R = K_c (K_c + \epsilon n I)^{-1}, \quad K_c = H K H,
            \quad \epsilon = 10^{-5} \\
        \text{debiased} &= \operatorname{tr}(R_x R_y) - \operatorname{tr}(R_x) \operatorname{tr}(R_y) / (n - 1)

    For independent variables the biased estimator (also within CKA) is above 0 by about 1/n. The normalized estimator
    is above 0 by tr(R_x) tr(R_y) / (n - 1), its mean over all permutations of y, which depends on the batch size; the
    debiased estimator subtracts that mean, so that its expectation is exactly 0. With a constant variable all
    estimators are 0.

    Args:
        x: `(batch, ...)`, integer labels `(batch,)` with `kernel_x="delta"`; or its `tiled_gram`, whose kernel,
            bandwidth, block size and ranks are then used.
        y: the other variable, with the same number of samples.
        bandwidth_x: see `bandwidth_of`; a constant for gradients, the median of at most 1,024 rows.
        bandwidth_y: the same for y.
        kernel_x: "gaussian", "inverse_multiquadric", "linear" or "delta" (equality of labels, which may be any
            integers).
        kernel_y: the same for y.
        estimator: "biased", "unbiased" (at least 4 samples), "cka", "normalized" or "debiased" (at least 2).
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that memory is linear in the batch beyond 2,048 samples. It changes time and memory, not
            the value. "normalized" and "debiased" take None only.
        gather: use the global batch, of all ranks; every rank must call the function. The gradient is that with
            respect to the rank's own rows, times the number of ranks, as `DistributedDataParallel` averages. Not for
            "normalized" and "debiased".

    Returns:
        0-dim, in the dtype of the inputs (float32 for half precision); NaN if they contain NaN. It can be
        differentiated once.

    Raises:
        ValueError: If there are too few samples, the numbers of samples differ, or an option is invalid.

    Source: Gretton et al. 2005 (biased); Song et al. 2007, arXiv 0704.2668, eq. 5 (unbiased); Kornblith et al. 2019,
    arXiv 1905.00414 (cka); Ma et al. 2020, arXiv 1908.01580 (normalized).

    Example:
        >>> x = torch.linspace(-1, 1, 6)
        >>> hsic(x, x**2), hsic(x, x**2, estimator="cka")
        (tensor(-0.0077), tensor(0.2915))
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, got {estimator!r}")
    if estimator in ("normalized", "debiased"):
        if block_size is not None or gather or isinstance(x, TiledGram) or isinstance(y, TiledGram):
            raise ValueError(
                f"the {estimator} estimator inverts whole Gram matrices: it takes tensors, no block_size and no "
                "gather; to share a variable between calls use normalized_factor and normalized_hsic"
            )
        _check_samples(x.shape[0], y.shape[0], estimator)
        factor_x = normalized_factor(x, bandwidth=bandwidth_x, kernel=kernel_x, name="x")
        factor_y = normalized_factor(y, bandwidth=bandwidth_y, kernel=kernel_y, name="y")
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
    x: Tensor | TiledGram,
    t: Tensor | TiledGram,
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

    The logarithms cancel for wide kernels. An equal form is computed instead: with
    :math:`H = \overline{K_c \circ Q_c}` of the centered matrices, and c the covariance of the row means,
    :math:`I = \log(1 + (C H - c^2) / (C + c)^2)`.

    The normalized information is :math:`I(x; t) / \sqrt{I(x; x) I(t; t)}`: 1 for a variable with itself, but not
    bounded by 1. With a constant variable it is 0, with finite gradients.

    Args:
        x: `(batch, ...)`; or its `tiled_gram`, whose bandwidth, block size and ranks are then used.
        t: the other variable, with the same number of samples.
        bandwidth_x: see `bandwidth_of`; a constant for gradients.
        bandwidth_t: the same for t.
        normalized: whether to return the normalized information.
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that memory is linear in the batch beyond 2,048 samples. It changes time and memory, not
            the value.
        gather: use the global batch, of all ranks; every rank must call the function. The gradient is that with
            respect to the rank's own rows, times the number of ranks, as `DistributedDataParallel` averages.

    Returns:
        0-dim, at least 0 up to rounding, in the dtype of the inputs (float32 for half precision); NaN if they contain
        NaN. It can be differentiated once.

    Raises:
        ValueError: If there are fewer than 2 samples, the numbers of samples differ, a variable has integers, or a
            bandwidth is not above 0.

    Source: Yu et al. 2024, arXiv 2404.17951.

    Example:
        >>> x = torch.linspace(-1, 1, 6)
        >>> cs_qmi(x, x**2), cs_qmi(x, x, normalized=True)
        (tensor(0.7019), tensor(1.))
    """
    x = _gram(x, "gaussian", bandwidth_x, block_size, gather, "x")
    t = _gram(t, "gaussian", bandwidth_t, block_size, gather, "t")
    if x.kernel != "gaussian" or t.kernel != "gaussian":
        raise ValueError(f"the kernels of x and t must be 'gaussian', got {x.kernel!r} and {t.kernel!r}")
    samples = x.walk.total
    _check_samples(samples, t.walk.total, "cs_qmi")
    sums, means_x, means_t = pair_sums(x, t, own=normalized)
    centered = sums / samples**2
    value = _information(centered[0], means_x, means_t)
    if normalized:
        value = _ratio(value, _information(centered[1], means_x, means_x), _information(centered[2], means_t, means_t))
    return value.to(_dtype(x.points, t.points))


def normalized_factor(
    x: Tensor,
    *,
    bandwidth: Bandwidth = "median",
    kernel: str = "gaussian",
    epsilon: float = 1e-5,
    name: str = "x",
) -> Tensor:
    r"""Regularized projection on the range of a centered Gram matrix; the normalized HSIC is a product of two of them.

    .. math:: R = K_c (K_c + \epsilon n I)^{-1} = I - \epsilon n (K_c + \epsilon n I)^{-1}, \quad K_c = H K H

    It is computed by Cholesky factorization, in float64 where the device supports it: most eigenvalues of a Gram matrix
    are far below epsilon n, where float32 has rounding errors alone. For the same reason epsilon n is at least
    2e-13 tr(K) for the linear kernel, which has no upper bound.

    Args:
        x: `(batch, ...)`; integer labels `(batch,)` for the delta kernel.
        bandwidth: see `bandwidth_of`; the median is computed from at most 1,024 rows. Linear and delta kernels have
            none.
        kernel: "gaussian", "inverse_multiquadric", "linear" or "delta".
        epsilon: regularization, above 0.
        name: name of the variable in error messages.

    Returns:
        `(batch, batch)`, symmetric, with eigenvalues in [0, 1); float64.

    Raises:
        ValueError: If the kernel is unknown or does not take the variable, or a bandwidth or epsilon is not above 0.

    Source: Ma et al. 2020, arXiv 1908.01580.

    Example:
        >>> normalized_factor(torch.tensor([[-1.0], [1.0]]), kernel="linear")
        tensor([[ 0.5000, -0.5000],
                [-0.5000,  0.5000]], dtype=torch.float64)
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon!r}")
    form = kernel_named(kernel)
    rows = form.rows(x, name)
    with torch.autocast(rows.device.type, enabled=False):
        points, scale = form.points(rows.detach(), bandwidth)
        ridge = torch.tensor(epsilon * rows.shape[0], dtype=wide_dtype(rows), device=rows.device)
        if not form.labels:
            points = points.to(ridge.dtype)
        if kernel == "linear":  # it has no upper bound: the ridge would be below the rounding of a large one
            ridge = torch.maximum(ridge, 1e3 * torch.finfo(ridge.dtype).eps * points.square().sum())
        factor, _ = _Factor.apply(rows, kernel, points, scale, ridge)
    return factor


def normalized_hsic(factor_x: Tensor, factor_y: Tensor, *, debiased: bool = False) -> Tensor:
    r"""Normalized HSIC from the factors of two variables, which several calls may share.

    .. math:: \operatorname{tr}(R_x R_y) \;\text{ or, debiased, }\;
        \operatorname{tr}(R_x R_y) - \operatorname{tr}(R_x) \operatorname{tr}(R_y) / (n - 1)

    Args:
        factor_x: `(batch, batch)`, from `normalized_factor`.
        factor_y: the same for the other variable.
        debiased: whether to subtract the mean over all permutations of y.

    Returns:
        0-dim, in the dtype of the factors.

    Raises:
        ValueError: If the numbers of samples differ.

    Example:
        >>> factor = normalized_factor(torch.randn(8, 2))
        >>> bool(normalized_hsic(factor, factor) > normalized_hsic(factor, factor, debiased=True))
        True
    """
    _check_samples(factor_x.shape[0], factor_y.shape[0], "normalized")
    if debiased:
        factor_x, factor_y = _debiased(factor_x), _debiased(factor_y)
    return torch.dot(factor_x.flatten(), factor_y.flatten())


def _debiased(factor: Tensor) -> Tensor:
    """Returns R - tr(R) / (n - 1) H; the product of two of them is debiased without a difference of large numbers."""
    samples = factor.shape[0]
    centering = torch.eye(samples, dtype=factor.dtype, device=factor.device) - 1 / samples
    return factor - factor.trace() / max(samples - 1, 1) * centering


def _inverse(matrix: Tensor) -> Tensor:
    """Inverts a positive definite matrix by blocks, mostly by matrix products; NaN if it is not positive definite.

    One Cholesky factorization of the whole matrix is 1.5 times slower on two cores, which its triangular solves leave
    idle in part.
    """
    size = matrix.shape[0]
    if size <= LARGEST_CHOLESKY:
        # torch.linalg.cholesky would wait for the device, to check its result.
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
        residual = _inverse(gram).mul_(ridge)  # I - R
        factor = residual.neg()
        factor.diagonal().add_(1)
        return factor, residual.sub_(1 / points.shape[0]).to(scale.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.kernel, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        # dR/dK: with S = H - R (kept, as R has fewer of its digits) and G = dL/dR, dL/dK = S G S / ridge. It is
        # symmetrized, S (G + G^T) S / 2, and half of its tiles suffice. Matrix products are in the dtype of x.
        kernel = kernel_named(ctx.kernel)
        points, scale, ridge, residual = ctx.saved_tensors
        grad = grad.to(residual.dtype)
        product = residual @ (grad + grad.mT)
        gradient = torch.zeros_like(points)
        for rows, columns, mirrored in Walk((points.shape[0],), 0, TILE).visits():
            weights = (product[rows] @ residual[:, columns]).to(points.dtype)
            if kernel.derivative is not None:
                weights.mul_(kernel.derivative(kernel.tile(points, rows, columns)))
            a, b = points[rows], points[columns]
            kernel.add_gradient(weights, a, b, gradient[rows])
            if mirrored:
                kernel.add_gradient(weights.mT, b, a, gradient[columns])
        return (gradient * (scale / (2 * ridge))).to(scale.dtype), None, None, None, None


def _information(centered: Tensor, means_x: Tensor, means_y: Tensor) -> Tensor:
    mean_x, mean_y = means_x.mean(), means_y.mean()
    product = (1 + mean_x) * (1 + mean_y)
    covariance = ((means_x - mean_x) * (means_y - mean_y)).mean()
    return torch.log1p((product * centered - covariance.square()) / (product + covariance).square())


def _ratio(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    return xy / (xx.clamp(min=LEAST_DENOMINATOR).sqrt() * yy.clamp(min=LEAST_DENOMINATOR).sqrt())


def _gram(
    x: Tensor | TiledGram, kernel: str, bandwidth: Bandwidth, block_size: int | None, gather: bool, name: str
) -> TiledGram:
    if isinstance(x, TiledGram):
        return x
    return tiled_gram(x, kernel=kernel, bandwidth=bandwidth, block_size=block_size, gather=gather, name=name)


def _check_samples(samples_x: int, samples_y: int, estimator: str) -> None:
    if samples_x != samples_y:
        raise ValueError(f"both variables must have the same number of samples, got {samples_x} and {samples_y}")
    least = ESTIMATORS.get(estimator, 2)
    if samples_x < least:
        raise ValueError(f"{estimator} takes at least {least} samples, got {samples_x}")


def _dtype(*variables: Tensor) -> torch.dtype:
    """Returns the dtype of a result: that of the variables that are not labels, at least float32."""
    return promoted_dtype(*([variable.dtype for variable in variables if variable.is_floating_point()] or [None]))
