"""Mutual information of a noisy code and the samples of a batch, bounded by the distances between the codes' means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ibreg.distributed import gather_rows, over_ranks, several_ranks
from ibreg.functional.kernel.log_sums import log_gaussian_sums
from ibreg.functional.kernel.rows import as_rows
from ibreg.precision import wide_dtype


def nonlinear_rate(
    mean: Tensor, log_variance: Tensor, *, block_size: int | None = None, gather: bool = False
) -> Tensor:
    r"""Upper bound of the mutual information between the samples of a batch and their noisy codes, in nats.

    .. math:: I(X; T) \le \log N - \frac1N \sum_i \log \sum_j \exp\left( -\frac{|\mu_i - \mu_j|^2}{2 \sigma^2} \right),
        \quad T | x_i \sim N(\mu_i, \sigma^2 I)

    X is uniform over the N samples of the batch: the bound is for this empirical distribution, about which no code has
    more than log N nats. It is 0, and exact, if all means are equal, and log N if all are many sigma apart. There it
    saturates: above 0.98 log N its gradient nearly vanishes.

    Args:
        mean: `(batch, ...)`, mu; all axes but the first make up one code.
        log_variance: 0-dim, log sigma^2, the same for all samples and features.
        block_size: rows of a block of the Gram matrix, which is evaluated block by block; None: chosen automatically,
            so that a block has at most a million pairs. It changes time and memory, not the value.
        gather: use the global batch, of all ranks; every rank must call the function. The gradient is that with
            respect to the rank's own rows, times the number of ranks, as `DistributedDataParallel` averages.

    Returns:
        0-dim, in [0, log N], in the dtype of `mean`, differentiable in both arguments; NaN if `mean` contains NaN.

    Raises:
        ValueError: If the batch is empty or has integers, there is more than one log variance, or the block size is
            below 1.

    Source: Kolchinsky, Tracey and Wolpert 2019, arXiv 1705.02436: the pairwise bound with Kullback-Leibler divergences,
    which for equal variances are squared distances between means.

    Example:
        >>> far = torch.tensor([[0.0], [0.0], [50.0], [50.0]])
        >>> nonlinear_rate(far, torch.zeros(())), math.log(2)
        (tensor(0.6931), 0.6931471805599453)
    """
    if log_variance.numel() != 1:
        raise ValueError(
            f"log_variance must be one number for all samples and features, got shape {tuple(log_variance.shape)}"
        )
    rows = as_rows(mean, "mean")
    if not rows.shape[0]:
        raise ValueError("mean must have at least one sample, got an empty batch")
    dtype = wide_dtype(rows)
    # Beyond it, squares in units of the noise would overflow or underflow.
    most = 0.5 * math.log(torch.finfo(dtype).max)
    deviation = torch.exp(0.5 * log_variance.to(dtype).clamp(-most, most)).reshape(())
    codes = (rows.to(dtype) / deviation).unsqueeze(0)
    if gather and several_ranks():
        return _rate_over_ranks(codes, block_size).to(mean.dtype)
    count = codes.new_tensor(rows.shape[0])
    return (count.log() - log_gaussian_sums(codes, codes, block_size=block_size)).mean().to(mean.dtype)


def _rate_over_ranks(codes: Tensor, block_size: int | None) -> Tensor:
    r"""Rate of the global batch, with the gradient of this rank's codes.

    With :math:`S_i = \sum_j e^{-d_{ij}}` over the codes of all ranks, :math:`d_{ij} = |c_i - c_j|^2 / 2`, a code c_k of
    this rank is in :math:`\sum_i \log S_i` as row i = k, and as column k of all rows i, there with the gradient

    .. math:: \sum_i \frac{\nabla_{c_k} e^{-d_{ik}}}{S_i} = \nabla_{c_k} w_k, \quad w_k = \sum_i e^{-d_{ik} - \log S_i}

    with S constant in w. The value is the sum over ranks; its gradient is that of the surrogate
    :math:`\sum_k \log S_k + w_k` over the codes of this rank, with all other codes constant.
    """
    gathered, lengths, _ = gather_rows(codes.detach().squeeze(0))
    all_codes, samples, ranks = gathered.unsqueeze(0), sum(lengths), len(lengths)
    log_sums = log_gaussian_sums(codes, all_codes, block_size=block_size)
    all_log_sums, _, _ = gather_rows(log_sums.detach().mT)
    weights = log_gaussian_sums(codes, all_codes, bias=-all_log_sums.squeeze(-1), block_size=block_size).exp()
    value = over_ranks(-log_sums.sum())
    surrogate = (-log_sums - weights).sum()
    # Surrogate minus its value is 0, with its gradient; times the ranks, as DDP averages gradients.
    return math.log(samples) + (value + ranks * (surrogate - surrogate.detach())) / samples
