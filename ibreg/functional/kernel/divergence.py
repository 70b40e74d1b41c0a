"""Cauchy-Schwarz divergences between samples, estimated by Gaussian kernels.

Yu et al. 2024 (arXiv 2404.17951). All sums are computed in log space: values and gradients do not under- or overflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ibreg.distributed import all_rows
from ibreg.functional.kernel.bandwidths import MEDIAN_ROWS, Bandwidth, bandwidth_of
from ibreg.functional.kernel.log_sums import log_gaussian_sums
from ibreg.functional.kernel.rows import as_rows, check_block_size
from ibreg.precision import wide_dtype

# Exponents a, b of the weights r_j^a K_ji r_i^b, where r_j is the reciprocal of the row sum of K.
WEIGHTINGS: dict[str, tuple[float, float]] = {
    "symmetric": (1.0, 1.0),
    "symmetric_root": (0.5, 0.5),
    "paper": (2.0, 0.0),
}
MODES = (*WEIGHTINGS, "released")


def cs_divergence(p: Tensor, q: Tensor, *, bandwidth: Bandwidth, block_size: int | None = None) -> Tensor:
    r"""Cauchy-Schwarz divergence between the distributions of two samples, in nats.

    .. math:: D = \log \operatorname{mean}_{ij} k(p_i, p_j) + \log \operatorname{mean}_{ij} k(q_i, q_j)
        - 2 \log \operatorname{mean}_{ij} k(p_i, q_j), \quad k(a, b) = e^{-|a - b|^2 / 2 h^2}

    It is -2 log of the cosine between the two mean embeddings: at least 0, 0 for equal samples, symmetric in p and q.

    Args:
        p: `(batch, ...)`, flattened to rows.
        q: `(other_batch, ...)`, with as many features as `p`.
        bandwidth: h, see `bandwidth_of`; computed from both samples together (the median from at most 1,024 rows).
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that a block has at most a million pairs. It changes time and memory, not the value.

    Returns:
        0-dim, in the dtype of p and q (half precision: float32), differentiable in both.

    Raises:
        ValueError: If a sample is empty or has integers, the numbers of features differ, or the bandwidth is not above
            0.

    Example:
        >>> p = torch.tensor([[0.0], [1.0]])
        >>> cs_divergence(p, p, bandwidth=1.0), cs_divergence(p, p + 1e3, bandwidth=1.0)
        (tensor(0.), tensor(998003.3125))
    """
    p, q = as_rows(p, "p"), as_rows(q, "q")
    if p.shape[1] != q.shape[1]:
        raise ValueError(f"p and q must have the same number of features, got {p.shape[1]} and {q.shape[1]}")
    for name, sample in (("p", p), ("q", q)):
        if not sample.shape[0]:
            raise ValueError(f"{name} must have at least one row, got an empty sample")
    together = torch.cat((p, q))
    h = _bandwidth(together, bandwidth)
    dtype = together.dtype
    p, q = p.to(wide_dtype(p)) / h, q.to(wide_dtype(q)) / h

    def log_sum(left: Tensor, right: Tensor) -> Tensor:
        return log_gaussian_sums(left.unsqueeze(0), right.unsqueeze(0), block_size=block_size).logsumexp((0, 1))

    # The numbers of pairs, which turn sums into means, cancel.
    return (log_sum(p, p) + log_sum(q, q) - 2 * log_sum(p, q)).to(dtype)


def conditional_cs_divergence(
    x: Tensor,
    y: Tensor,
    y_hat: Tensor,
    *,
    bandwidth_x: Bandwidth = ("rms", 0.1),
    bandwidth_y: Bandwidth = 1.0,
    mode: str = "symmetric",
    block_size: int | None = None,
    gather: bool = False,
) -> Tensor:
    r"""Conditional Cauchy-Schwarz divergence between p(y|x) of targets and p(y_hat|x) of predictions, in nats.

    .. math:: D = \log S(L) + \log S(\hat L) - 2 \log S(\tilde L), \quad S(M) = \sum_{ji} W_{ji} M_{ji}, \quad
        r_j = \frac{1}{\sum_i K_{ji}}

    with the Gaussian kernels K of x, L of y, :math:`\hat L` of y_hat, :math:`\tilde L_{ji} = k(\hat y_j, y_i)`, and
    weights W by `mode`:

    - `"symmetric"`: :math:`r_j K_{ji} r_i`. D is -2 log of the cosine between two embeddings of the pairs (x, y) and
      (x, y_hat): at least 0, and 0 if the predictions equal the targets.
    - `"symmetric_root"`: :math:`\sqrt{r_j} K_{ji} \sqrt{r_i}`. Also a divergence, with less weight on isolated samples.
    - `"paper"`: :math:`r_j^2 K_{ji}`, as published. Not a divergence: it can be below 0, and its minimizer is not y.
    - `"released"`: :math:`\sum_j |\hat y_j - y_j|^2 / (h_y^2 \ln 2)`, which the authors' released script computes.

    A wide bandwidth of x compares little more than the marginals of y and y_hat; a narrow one compares sample by
    sample. With a narrow bandwidth of y, distant predictions get little gradient.

    Args:
        x: `(batch, ...)`, the conditioning variable, flattened to rows.
        y: `(batch, ...)`, targets; `(batch,)` is the same as `(batch, 1)`.
        y_hat: `(batch, ...)`, predictions, with as many values per sample as `y`.
        bandwidth_x: h of K, see `bandwidth_of` (the median from at most 1,024 rows).
        bandwidth_y: h of the other three kernels, computed from the targets.
        mode: "symmetric", "symmetric_root", "paper" or "released".
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that a block has at most a million pairs. It changes time and memory, not the value.
        gather: use the global batch, of all ranks; every rank must call the function. The gradient is that with
            respect to the rank's own rows, times the number of ranks, as `DistributedDataParallel` averages.
            Every rank evaluates all pairs.

    Returns:
        0-dim, in the dtype of y and y_hat (half precision: float32), differentiable in all three; the bandwidths are
        constants.

    Raises:
        ValueError: If the batch is empty, the numbers of samples or values differ, a tensor has integers, a bandwidth
            is not above 0, or the mode is unknown.

    Source: Yu et al. 2024, arXiv 2404.17951 (`"paper"`); the symmetric weights are not published elsewhere.

    Example:
        >>> x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 4.0])
        >>> conditional_cs_divergence(x, y, y), conditional_cs_divergence(x, y, 0 * y)
        (tensor(0.), tensor(1.2487))
    """
    check_block_size(block_size)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
    x, y, y_hat = _batch(x, y, y_hat, gather)
    h_x, h_y = _bandwidth(x, bandwidth_x), _bandwidth(y, bandwidth_y)
    dtype = torch.promote_types(y.dtype, y_hat.dtype)
    x, y, y_hat = (rows.to(wide_dtype(rows)) / h for rows, h in ((x, h_x), (y, h_y), (y_hat, h_y)))
    if mode == "released":
        return ((y_hat - y).square().sum() / math.log(2)).to(dtype)
    log_r = -log_gaussian_sums(x.unsqueeze(0), x.unsqueeze(0), block_size=block_size).squeeze(0)
    row, column = WEIGHTINGS[mode]
    sums = log_gaussian_sums(
        torch.stack((y, y_hat, y_hat)),
        torch.stack((y, y_hat, y)),
        bias=column * log_r,
        shared=x,
        block_size=block_size,
    )
    targets, predictions, across = (sums + row * log_r).logsumexp(-1)
    return (targets + predictions - 2 * across).to(dtype)


def _batch(x: Tensor, y: Tensor, y_hat: Tensor, gather: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the three variables of a batch and returns them as rows, with `gather` those of all ranks.

    Raises:
        ValueError: If the batch is empty, the numbers of samples or values differ, or a tensor has integers.
    """
    x, y, y_hat = as_rows(x), as_rows(y, "y"), as_rows(y_hat, "y_hat")
    samples = [rows.shape[0] for rows in (x, y, y_hat)]
    if len(set(samples)) > 1:
        raise ValueError(
            f"x, y and y_hat must have the same number of samples, got {samples[0]}, {samples[1]} and {samples[2]}"
        )
    if gather:
        x, y, y_hat = all_rows(x), all_rows(y), all_rows(y_hat)
    if not x.shape[0]:
        raise ValueError("x, y and y_hat must have at least one sample, got an empty batch")
    if y.shape != y_hat.shape:
        raise ValueError(
            f"y and y_hat must have the same number of values per sample, got {y.shape[1]} and {y_hat.shape[1]}"
        )
    return x, y, y_hat


def _bandwidth(rows: Tensor, bandwidth: Bandwidth) -> Tensor:
    """Returns the bandwidth of rows in `wide_dtype`."""
    return bandwidth_of(rows, bandwidth, rows=MEDIAN_ROWS).to(wide_dtype(rows))
