"""Codebooks whose keys are the means of the rows assigned to them, over all processes.

The keys are only ever set as the quotient of the two, so that every change of a key (initialization, moving average,
replacement) is a change of its statistics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ibreg.distributed import over_ranks
from ibreg.functional.lookup.nearest import nearest, squared_distances_to
from ibreg.functional.lookup.product import product_nearest
from ibreg.precision import WideBuffers, promoted_dtype

DECAY = 0.95
SMOOTHING = 1e-5


class MovingCodebooks(WideBuffers):
    r"""Codebooks of keys, or of sub-keys whose pairs are the keys, with the sums and counts that define them.

    .. math:: n_j \leftarrow \gamma n_j + (1 - \gamma) b_j, \quad s_j \leftarrow \gamma s_j + (1 - \gamma) \sum_i u_i,
        \quad k_j = s_j / n_j

    with the b_j rows u_i of the batch whose nearest key is j. Counts have Laplace smoothing: each key gets a row of
    weight 1e-5 equal to itself, so that a key to which no row is assigned stays, and is not divided by 0.

    Args:
        codebooks: number of codebooks.
        pairs: number of keys in each.
        features: size of a key.
        halves: 1, or 2: each half of a key is one of sqrt(pairs) sub-keys, so that there are 2 * codebooks books of
            sub-keys.
        device: of the buffers.
        dtype: of the buffers, at least float32.

    Attributes:
        keys: the (sub-)keys, `(codebooks * halves, size, features / halves)`.
        sums: of the assigned rows, as keys.
        counts: of the assigned rows, `(codebooks * halves, size)`.
    """

    keys: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, codebooks: int, pairs: int, features: int, *, halves: int = 1, device=None, dtype=None):
        super().__init__()
        dtype = promoted_dtype(dtype)
        self.halves = halves
        self.size = math.isqrt(pairs) if halves == 2 else pairs
        shape = (codebooks * halves, self.size, features // halves)
        self.register_buffer("keys", torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("sums", torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("counts", torch.empty(shape[:2], device=device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Samples keys from N(0, I), each with a count of 1."""
        self.sums.normal_()
        self.assign(self.sums, torch.ones_like(self.counts))

    def assign(self, sums: Tensor, counts: Tensor) -> None:
        """Sets the statistics, and the keys to their quotient."""
        self.sums.copy_(sums)
        self.counts.copy_(counts)
        self.keys.copy_(self.sums / self.counts.unsqueeze(-1))

    def pairs(self) -> Tensor:
        """Returns the keys, `(codebooks, pairs, features)`; with halves they are all pairs of sub-keys."""
        if self.halves == 1:
            return self.keys
        first, second = self.keys.unflatten(0, (-1, 2)).unbind(1)
        halves = (
            first.unsqueeze(2).expand(-1, -1, self.size, -1),
            second.unsqueeze(1).expand(-1, self.size, -1, -1),
        )
        return torch.cat(halves, -1).flatten(1, 2)

    def find(self, queries: Tensor, count: int = 1, usable: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns squared distances and indices of the keys nearest to queries, see `functional.nearest`."""
        if self.halves == 1:
            return nearest(queries, self.keys, top_k=count, usable=usable)
        return product_nearest(queries, self.keys.unflatten(0, (-1, 2)), top_k=count, usable=usable)

    def distances_to(self, queries: Tensor, indices: Tensor) -> Tensor:
        """Returns squared distances of queries to keys `(codebooks, rows, count)`, with gradient to the queries."""
        if self.halves == 1:
            return squared_distances_to(queries, self.keys, indices)
        halves = queries.unflatten(-1, (2, -1)).unbind(-2), self.keys.unflatten(0, (-1, 2)).unbind(1)
        first, second = map(squared_distances_to, *halves, (indices // self.size, indices % self.size))
        return first + second

    def halved(self, queries: Tensor) -> Tensor:
        """Returns queries `(codebooks, rows, features)` as `(codebooks * halves, rows, features / halves)`."""
        return queries.unflatten(-1, (self.halves, -1)).movedim(2, 1).flatten(0, 1)

    def halved_indices(self, indices: Tensor) -> Tensor:
        """Returns the indices of the (sub-)keys of keys `(codebooks, ...)`: `(codebooks * halves, ...)`."""
        if self.halves == 1:
            return indices
        return torch.stack([indices // self.size, indices % self.size], 1).flatten(0, 1)

    def statistics(self, queries: Tensor, indices: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns sums and counts of the rows assigned to each (sub-)key, over the global batch.

        All processes must call it.

        Args:
            queries: `(codebooks, rows, features)`; a process may have no rows.
            indices: of the key that each query is assigned to, `(codebooks, rows)`.
            weights: as indices, 0 for rows that do not count; None: all count.
        """
        rows, indices = self.halved(queries).to(self.sums.dtype), self.halved_indices(indices)
        ones = rows.new_ones(indices.shape)
        if weights is not None:
            ones = weights.to(rows.dtype).repeat_interleave(self.halves, 0)
            rows = rows * ones.unsqueeze(-1)
        books, size, features = self.keys.shape
        flat = (indices + size * torch.arange(books, device=indices.device).unsqueeze(1)).flatten()
        sums = rows.new_zeros(books * size, features).index_add_(0, flat, rows.flatten(0, 1))
        counts = rows.new_zeros(books * size).index_add_(0, flat, ones.flatten())
        return over_ranks(sums).view_as(self.keys), over_ranks(counts).view_as(self.counts)

    def follow(
        self, queries: Tensor, indices: Tensor, weights: Tensor | None = None, moving: Tensor | bool = True
    ) -> Tensor:
        """Updates the moving averages with the global batch.

        All processes must call it.

        Args:
            queries: see `statistics`.
            indices: see `statistics`.
            weights: see `statistics`.
            moving: False leaves keys and statistics unchanged, bit by bit, as does a global batch without rows.

        Returns:
            the counts of the batch, as `counts`.
        """
        batch_sums, batch_counts = self.statistics(queries, indices, weights)
        moved = ((batch_counts.sum() > 0) & moving).to(self.sums.dtype)
        weight, smoothing = (1 - DECAY) * moved, SMOOTHING * moved
        counts = self.counts.lerp(batch_counts, weight)
        total = counts.sum(1, keepdim=True)
        scale = total / (total + smoothing * self.size)
        sums = self.sums.lerp(batch_sums, weight).add_(self.keys * smoothing).mul_(scale.unsqueeze(-1))
        self.assign(sums, (counts + smoothing) * scale)
        return batch_counts

    def _apply(self, fn, recurse=True):
        dtype = self.keys.dtype
        super()._apply(fn, recurse)
        if self.keys.dtype != dtype:
            self.keys.copy_(self.sums / self.counts.unsqueeze(-1))
        return self
