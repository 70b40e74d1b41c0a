"""Logarithms of sums of Gaussian kernels, the terms of entropies and divergences of samples.

Small batches are one expression for autograd. Larger Gram matrices are evaluated in blocks of rows, forward and
backward, in memory that is allocated once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ibreg.functional.kernel.rows import check_block_size, origin_of
from ibreg.precision import wide_dtype

# Without a block size, blocks have at most this number of pairs and at least this number of rows: more pairs leave the
# cache, and with fewer rows most of the time goes to the gradient of the columns.
PAIRS = 2**20
ROWS = 64


def log_gaussian_sums(
    left: Tensor,
    right: Tensor,
    *,
    bias: Tensor | None = None,
    shared: Tensor | None = None,
    block_size: int | None = None,
) -> Tensor:
    r"""Logarithm of the sum of Gaussian kernels between each row and all others, finite at any distance.

    .. math:: \ell_j = \log \sum_i \exp\left( b_i - \tfrac12 |l_j - r_i|^2 - \tfrac12 |s_j - s_i|^2 \right)

    It is computed in `wide_dtype`: such logarithms are subtracted from each other, and their difference would be below
    the rounding of float32.

    Args:
        left: `(sums, batch, dim)`, l, in units of the bandwidth; the first axis counts independent sums.
        right: `(sums, other_batch, dim)`, r.
        bias: `(other_batch,)`, b; None: 0.
        shared: `(batch, features)`, s, of a second kernel that all sums have in common (with equal batches); None: no
            such kernel.
        block_size: rows of a block of the Gram matrix, which is evaluated block by block; None: chosen automatically,
            so that a block has at most a million pairs. It changes time and memory, not the value.
            With several blocks no matrix of all pairs exists.

    Returns:
        `(sums, batch)`, in `wide_dtype`, differentiable; if one block has all pairs, also twice and within
        torch.func.vmap.

    Raises:
        ValueError: If the block size is below 1.

    Example:
        >>> log_gaussian_sums(torch.tensor([[[0.0], [1e9]]]), torch.tensor([[[0.0], [0.0]]])).exp()
        tensor([[2., 0.]], dtype=torch.float64)
    """
    check_block_size(block_size)
    dtype = wide_dtype(left)
    left, right = left.to(dtype), right.to(dtype)
    origin = origin_of(right.flatten(0, 1))
    left, right = left - origin, right - origin
    if bias is not None:
        bias = bias.to(dtype)
    if shared is not None:
        shared = shared.to(dtype)
        shared = shared - origin_of(shared)
    row_of_pairs = left.shape[0] * right.shape[1]
    if block_size is None and left.shape[1] * row_of_pairs > PAIRS:
        block_size = max(PAIRS // row_of_pairs, ROWS)
    if block_size is not None and block_size < left.shape[1]:
        return _LogGaussianSums.apply(left, right, bias, shared, block_size)
    squares = _squared_distances(left @ right.mT, left, right)
    if shared is not None:
        squares = squares + _squared_distances(shared @ shared.mT, shared, shared)
    exponents = -0.5 * squares
    return (exponents if bias is None else exponents + bias).logsumexp(-1)


def _squared_distances(products: Tensor, rows: Tensor, columns: Tensor, start: int = 0) -> Tensor:
    """Turns the products of rows, from `start` on, with all columns into squared distances, in place."""
    squares = products.mul_(-2).add_(rows.square().sum(-1, keepdim=True))
    squares = squares.add_(columns.square().sum(-1).unsqueeze(-2)).clamp_min_(0)
    # On the diagonal, where the smallest distances are, they are computed without the rounding of the squares.
    partners = columns[..., start : start + rows.shape[-2], :]
    exact = (rows[..., : partners.shape[-2], :] - partners).square().sum(-1)
    squares.diagonal(start, -2, -1).copy_(exact)
    return squares


class _LogGaussianSums(torch.autograd.Function):
    @staticmethod
    def forward(left, right, bias, shared, block_size):
        sums = left.new_empty(left.shape[:-1])
        for rows, exponents in _walk(left, right, bias, shared, block_size):
            largest = exponents.amax(-1, keepdim=True)
            sums[:, rows] = exponents.sub_(largest).exp_().sum(-1).log_().add_(largest.squeeze(-1))
        return sums

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.block_size = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        left, right, bias, shared, sums = ctx.saved_tensors
        grad_left, grad_right = torch.empty_like(left), torch.zeros_like(right)
        totals = right.new_zeros(right.shape[:-1])  # of the weights of each column
        grad_shared = torch.zeros_like(shared) if ctx.needs_input_grad[3] else None
        for rows, exponents in _walk(left, right, bias, shared, ctx.block_size):
            block = left[:, rows]
            weights = exponents.sub_(sums[:, rows].unsqueeze(-1)).exp_().mul_(grad[:, rows].unsqueeze(-1))
            grad_left[:, rows] = (weights @ right).sub_(weights.sum(-1, keepdim=True) * block)
            grad_right.baddbmm_(weights.mT, block)
            totals.add_(weights.sum(-2))
            if grad_shared is not None:
                weights = weights.sum(0)
                grad_shared[rows] += (weights @ shared).sub_(weights.sum(-1, keepdim=True) * shared[rows])
                grad_shared.addmm_(weights.mT, shared[rows]).sub_(weights.sum(0).unsqueeze(-1) * shared)
        grad_right.sub_(totals.unsqueeze(-1) * right)
        return grad_left, grad_right, totals.sum(0) if ctx.needs_input_grad[2] else None, grad_shared, None


def _walk(
    left: Tensor, right: Tensor, bias: Tensor | None, shared: Tensor | None, block_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yields the rows of each block and their exponents `(sums, rows, other_batch)`, in the same memory each time.

    Memory that is allocated for each block leaves gaps that the next one does not fit in: gigabytes, on Linux.
    """
    sums, batch, _ = left.shape
    memory = left.new_empty(sums + (shared is not None), min(block_size, batch), right.shape[1])
    for start in range(0, batch, block_size):
        rows = slice(start, min(start + block_size, batch))
        block, products = left[:, rows], memory[:, : rows.stop - start]
        squares = _squared_distances(products[:sums].baddbmm_(block, right.mT, beta=0), block, right, start)
        if shared is not None:
            shared_products = products[sums].addmm_(shared[rows], shared.mT, beta=0)
            squares.add_(_squared_distances(shared_products, shared[rows], shared, start))
        exponents = squares.mul_(-0.5)
        yield rows, exponents if bias is None else exponents.add_(bias)
