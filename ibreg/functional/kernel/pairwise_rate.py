"""Information that a noisy code carries about the samples of a batch, bounded by the distances between their means."""

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

    X is one of the N samples of the batch, each as likely: the bound is about this empirical distribution, and no code
    has more than log N nats about it. It is 0, and exact, where all means are equal, and log N where all are many sigma
    apart. There it is flat: beyond 0.98 log N its gradient is as good as gone.

    Args:
        mean: `(batch, ...)`, mu; all but the first axis make up one code.
        log_variance: 0-dim, log sigma^2, the same for all samples and features.
        block_size: rows of pairs walked at a time; None: as many as make a million pairs. The value does not depend
            on it, and a matrix of all pairs is not kept for the backward pass.
        gather: the batch is that of all ranks; every rank has to call. The gradient is by the rank's own rows, times
            the number of ranks, as `DistributedDataParallel` averages.

    Returns:
        0-dim, in [0, log N], in the dtype of `mean`, differentiable in both arguments; NaN where `mean` holds any.

    Raises:
        ValueError: an empty batch, integers, more than one log variance, a block size below 1.

    Source: Kolchinsky, Tracey and Wolpert 2019, arXiv 1705.02436; the pairwise bound with Kullback-Leibler distances,
    which equal variances reduce to distances of means.

    Example:
        >>> far = torch.tensor([[0.0], [0.0], [50.0], [50.0]])
        >>> nonlinear_rate(far, torch.zeros(())), math.log(2)
        (tensor(0.6931), 0.6931471805599453)
    """
    if log_variance.numel() != 1:
        raise ValueError(
            f"log_variance is one number for all samples and features, got shape {tuple(log_variance.shape)}"
        )
    rows = as_rows(mean, "mean")
    if not rows.shape[0]:
        raise ValueError("mean is an empty batch: the rate needs at least one sample")
    dtype = wide_dtype(rows)
    # Beyond these, squares in units of the noise would overflow or underflow.
    most = 0.5 * math.log(torch.finfo(dtype).max)
    deviation = torch.exp(0.5 * log_variance.to(dtype).clamp(-most, most)).reshape(())
    codes = (rows.to(dtype) / deviation).unsqueeze(0)
    if gather and several_ranks():
        return _rate_over_ranks(codes, block_size).to(mean.dtype)
    count = codes.new_tensor(rows.shape[0])
    return (count.log() - log_gaussian_sums(codes, codes, block_size=block_size)).mean().to(mean.dtype)


def _rate_over_ranks(codes: Tensor, block_size: int | None) -> Tensor:
    everyone, lengths, _ = gather_rows(codes.detach().squeeze(0))
    everyone = everyone.unsqueeze(0)
    sums = log_gaussian_sums(codes, everyone, block_size=block_size)
    of_everyone, _, _ = gather_rows(sums.detach().mT)
    # The codes of this rank are in the sums of all others too, with weights that add up to this. Its value is a
    # constant of no interest, its gradient is what those sums have here.
    weights = log_gaussian_sums(codes, everyone, bias=-of_everyone.squeeze(-1), block_size=block_size).exp()
    own = (-sums - weights).sum()
    total = over_ranks(-sums.sum())
    return math.log(sum(lengths)) + (total + len(lengths) * (own - own.detach())) / sum(lengths)
