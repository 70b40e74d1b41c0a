"""Kernel quantities as in textbooks and published code: the reference forms of `benchmarks/cost.py`.

The dense forms keep whole Gram matrices and compute as little else as possible. The published forms follow the authors'
repositories: the trace of a product of matrices instead of a sum of products, row sums that are repeated to a matrix,
an explicit inverse. They are for measurements only: they cancel for wide kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Quantity = Callable[[Tensor, Tensor], Tensor]


def gram(x: Tensor, bandwidth: float) -> Tensor:
    """Returns the Gaussian Gram matrix."""
    squares = x.square().sum(1)
    distances = (squares.unsqueeze(1) + squares - 2 * x @ x.mT).clamp(min=0)
    return torch.exp(-distances / (2 * bandwidth**2))


def cross_gram(x: Tensor, y: Tensor, bandwidth: float) -> Tensor:
    """Returns the Gaussian Gram matrix of two samples."""
    distances = (x.square().sum(1).unsqueeze(1) + y.square().sum(1) - 2 * x @ y.mT).clamp(min=0)
    return torch.exp(-distances / (2 * bandwidth**2))


def repeated_gram(x: Tensor, bandwidth: float) -> Tensor:
    """Returns the Gaussian Gram matrix, its squares repeated to matrices first."""
    squares, samples = x.square().sum(1, keepdim=True), x.shape[0]
    distances = squares.repeat(1, samples) + squares.mT.repeat(samples, 1) - 2 * x @ x.mT
    return torch.exp(-distances / (2 * bandwidth**2))


def dense_hsic(k: Tensor, q: Tensor) -> Tensor:
    """Returns the biased HSIC from Gram matrices."""
    k = k - k.mean(0)
    return ((k - k.mean(1, keepdim=True)) * q).sum() / (k.shape[0] - 1) ** 2


def published_hsic(k: Tensor, q: Tensor) -> Tensor:
    """Returns the biased HSIC by the trace of four matrices."""
    centering = torch.eye(k.shape[0], dtype=k.dtype) - 1 / k.shape[0]
    return torch.trace(k @ centering @ q @ centering) / (k.shape[0] - 1) ** 2


def dense_unbiased_hsic(k: Tensor, q: Tensor) -> Tensor:
    """Returns the unbiased HSIC from Gram matrices."""
    samples = k.shape[0]
    k, q = (matrix - torch.diag(matrix.diagonal()) for matrix in (k, q))
    total = k.sum() * q.sum() / ((samples - 1) * (samples - 2))
    return ((k * q).sum() + total - 2 * (k.sum(0) * q.sum(0)).sum() / (samples - 2)) / (samples * (samples - 3))


def published_unbiased_hsic(k: Tensor, q: Tensor) -> Tensor:
    """Returns the unbiased HSIC by the trace of a product and products with ones."""
    samples = k.shape[0]
    ones = torch.ones(samples, 1, dtype=k.dtype)
    k, q = (matrix * (1 - torch.eye(samples, dtype=k.dtype)) for matrix in (k, q))
    total = (ones.mT @ k @ ones * (ones.mT @ q @ ones)).squeeze() / ((samples - 1) * (samples - 2))
    cross = (ones.mT @ k @ q @ ones).squeeze() / (samples - 2)
    return (torch.trace(k @ q) + total - 2 * cross) / (samples * (samples - 3))


def dense_cka(k: Tensor, q: Tensor) -> Tensor:
    """Returns CKA from Gram matrices."""
    return dense_hsic(k, q) / (dense_hsic(k, k) * dense_hsic(q, q)).sqrt()


def published_cka(k: Tensor, q: Tensor) -> Tensor:
    """Returns CKA by three traces."""
    return published_hsic(k, q) / (published_hsic(k, k) * published_hsic(q, q)).sqrt()


def dense_cs_qmi(k: Tensor, q: Tensor) -> Tensor:
    """Returns the Cauchy-Schwarz mutual information from Gram matrices."""
    return (k * q).mean().log() + (k.mean() * q.mean()).log() - 2 * (k.mean(0) * q.mean(0)).mean().log()


def published_cs_qmi(k: Tensor, q: Tensor) -> Tensor:
    """Returns the Cauchy-Schwarz mutual information by the trace of a product and products with ones."""
    samples = k.shape[0]
    ones = torch.ones(samples, 1, dtype=k.dtype)
    joint = torch.trace(k @ q) / samples**2
    cross = (ones.mT @ k @ q @ ones).squeeze() / samples**3
    return joint.log() + (k.sum() * q.sum() / samples**4).log() - 2 * cross.log()


def normalized(information: Quantity) -> Quantity:
    """Returns the information over the geometric mean of both variables' own."""
    return lambda k, q: information(k, q) / (information(k, k) * information(q, q)).sqrt()


def dense_normalized_hsic(k: Tensor, q: Tensor) -> Tensor:
    """Returns the normalized HSIC by solving with whole matrices."""
    return (_solved(k) * _solved(q).mT).sum()


def published_normalized_hsic(k: Tensor, q: Tensor) -> Tensor:
    """Returns the normalized HSIC by explicit inverses and the trace of a product."""
    return torch.trace(_inverted(k) @ _inverted(q))


def dense_debiased_hsic(k: Tensor, q: Tensor) -> Tensor:
    """Returns the normalized HSIC minus its mean over permutations, by solving with whole matrices."""
    first, second = _solved(k), _solved(q)
    return (first * second.mT).sum() - first.trace() * second.trace() / (k.shape[0] - 1)


def dense_cs_divergence(p: Tensor, q: Tensor, bandwidth: float) -> Tensor:
    """Returns the Cauchy-Schwarz divergence of two samples."""
    own = gram(p, bandwidth).mean().log() + gram(q, bandwidth).mean().log()
    return own - 2 * cross_gram(p, q, bandwidth).mean().log()


def dense_conditional_cs_divergence(
    x: Tensor, y: Tensor, y_hat: Tensor, bandwidth_x: float, bandwidth_y: float
) -> Tensor:
    """Returns the symmetric conditional Cauchy-Schwarz divergence."""
    k = gram(x, bandwidth_x)
    weights = k / (k.sum(1, keepdim=True) * k.sum(1))
    own = ((weights * gram(rows, bandwidth_y)).sum().log() for rows in (y, y_hat))
    return sum(own) - 2 * (weights * cross_gram(y_hat, y, bandwidth_y)).sum().log()


def dense_nonlinear_rate(mean: Tensor, deviation: float) -> Tensor:
    """Returns the pairwise upper bound of the rate."""
    return -gram(mean, deviation).mean(1).log().mean()


def _solved(k: Tensor) -> Tensor:
    k = k - k.mean(0)
    k = k - k.mean(1, keepdim=True)
    ridge = 1e-5 * k.shape[0] * torch.eye(k.shape[0], dtype=k.dtype)
    return torch.linalg.solve(k + ridge, k)


def _inverted(k: Tensor) -> Tensor:
    identity = torch.eye(k.shape[0], dtype=k.dtype)
    centered = k @ (identity - 1 / k.shape[0])
    return centered @ torch.inverse(centered + 1e-5 * k.shape[0] * identity)
