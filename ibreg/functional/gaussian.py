"""Diagonal Gaussians: entropy, density, Kullback-Leibler divergence, and the geometric mean of several.

All but `gaussian_rate` take the *logarithm of the variance*, log sigma^2; they sum over the last axis, in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_entropy(log_variance: Tensor) -> Tensor:
    r"""Differential entropy of a diagonal Gaussian, in nats.

    .. math:: H = \frac12 \sum_d \log(2 \pi e \sigma_d^2)

    Args:
        log_variance: `(..., dim)`, log sigma^2.

    Returns:
        `(...)`.

    Example:
        >>> round(float(gaussian_entropy(torch.zeros(1))), 4)
        1.4189
    """
    return 0.5 * (log_variance + (1 + math.log(2 * math.pi))).sum(-1)


def gaussian_log_prob(z: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | float = 0.0) -> Tensor:
    r"""Log density of a diagonal Gaussian at `z`, in nats.

    .. math:: \log p(z) = -\frac12 \sum_d \left[ (z_d - \mu_d)^2 / \sigma_d^2 + \log \sigma_d^2 + \log 2\pi \right]

    Args:
        z: `(..., dim)`.
        mean: `(..., dim)` or a number.
        log_variance: `(..., dim)` or a number, log sigma^2.

    Returns:
        `(...)`.

    Example:
        >>> round(float(gaussian_log_prob(torch.zeros(1))), 4)
        -0.9189
    """
    log_variance = torch.as_tensor(log_variance, dtype=z.dtype, device=z.device)
    standardized = (z - mean) * torch.exp(-0.5 * log_variance)
    return -0.5 * (standardized.square() + log_variance + math.log(2 * math.pi)).sum(-1)


def gaussian_kl(
    mean: Tensor, log_variance: Tensor, prior_mean: Tensor | float = 0.0, prior_log_variance: Tensor | float = 0.0
) -> Tensor:
    r"""Kullback-Leibler divergence from a diagonal Gaussian to a prior, in nats; at least 0.

    .. math:: KL = \frac12 \sum_d \left[ (\mu_d - m_d)^2 / v_d + \sigma_d^2 / v_d - 1 - \log(\sigma_d^2 / v_d) \right]

    With the standard prior (m = 0, v = 1) it is the rate of the variational information bottleneck
    (Alemi et al. 2017, arXiv 1612.00410); its minimum, 0, is at mean 0 and variance 1.

    Args:
        mean: `(..., dim)`.
        log_variance: `(..., dim)`, log sigma^2; finite down to -100 and below.
        prior_mean: `(..., dim)` or a number, m.
        prior_log_variance: `(..., dim)` or a number, log v.

    Returns:
        `(...)`.

    Example:
        >>> gaussian_kl(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.zeros(2, 2))
        tensor([0.0000, 0.5000])
    """
    if isinstance(prior_mean, float) and isinstance(prior_log_variance, float):
        distance = ((mean - prior_mean) if prior_mean else mean).square() * math.exp(-prior_log_variance)
        log_ratio = (log_variance - prior_log_variance) if prior_log_variance else log_variance
    else:
        prior_log_variance = torch.as_tensor(prior_log_variance, dtype=mean.dtype, device=mean.device)
        distance = ((mean - prior_mean) * torch.exp(-0.5 * prior_log_variance)).square()
        log_ratio = log_variance - prior_log_variance
    # expm1(r) - r, not exp(r) - 1 - r: near its minimum the divergence would be lost in the rounding error of 1.
    return 0.5 * (distance + torch.expm1(log_ratio) - log_ratio).sum(-1)


def gaussian_rate(mean: Tensor, scale: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence from a diagonal Gaussian, given by its standard deviation, to N(0, I), in nats.

    .. math:: KL = \frac12 \sum_d \mu_d^2 + \sigma_d^2 - 1 - \log \sigma_d^2

    At least 0. The same as `gaussian_kl(mean, 2 * scale.log())`, in half of its time.

    Args:
        mean: `(..., dim)`.
        scale: `(..., dim)`, sigma, greater than 0.

    Returns:
        `(...)`.

    Example:
        >>> gaussian_rate(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2))
        tensor([0.0000, 0.5000])
    """
    # (s - 1)(s + 1), not s^2 - 1: near its minimum the divergence would be lost in the rounding error of s^2.
    return 0.5 * ((scale - 1) * (scale + 1) + mean * mean).sum(-1) - scale.log().sum(-1)


def gaussian_pool(means: Tensor, log_variances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weighted geometric mean of diagonal Gaussians: a Gaussian, and minus its log normalizing factor.

    .. math:: \prod_k b_k(z)^{w_k} = e^{-g}\, \bar b(z)
        \quad\Rightarrow\quad \sum_k w_k KL(e \,\|\, b_k) = KL(e \,\|\, \bar b) + g

    The expected divergence under soft labels is thus one divergence, without a `(batch, classes, dim)` tensor.

    Args:
        means: `(classes, dim)`.
        log_variances: `(classes, dim)`.
        weights: `(..., classes)`, at least 0, each row summing to 1.

    Returns:
        Mean `(..., dim)`, log variance `(..., dim)` and g `(...)`, at least 0 up to rounding.

    Example:
        >>> means, log_variances = torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1)
        >>> mean, log_variance, gap = gaussian_pool(means, log_variances, torch.tensor([0.5, 0.5]))
        >>> mean, gap
        (tensor([0.]), tensor(0.5000))
    """
    # The spread is a difference of squares: far from the origin it would be lost in their rounding errors.
    origin = means.detach().mean(0)
    means = means - origin
    precisions = torch.exp(-log_variances)
    precision = weights @ precisions
    mean = (weights @ (precisions * means)) / precision
    spread = weights @ (precisions * means.square()) - precision * mean.square()
    gap = 0.5 * (spread + weights @ log_variances + precision.log()).sum(-1)
    return mean + origin, -precision.log(), gap
