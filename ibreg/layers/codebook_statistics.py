"""Keys that are means: sums over counts of the rows that came to them, over all ranks.

The keys are never written but as the quotient of the two, so what is done to one of them (a start, a moving average, a
key that is put elsewhere) is done to its statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from ibreg.distributed import sum_over_ranks

DECAY = 0.95
SMOOTHING = 1e-5


class WideBuffers(nn.Module):
    """Base of modules whose floating-point buffers stay at least float32 when the model becomes half precision."""

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            if self._buffers[name].dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self


class MovingCodebooks(WideBuffers):
    r"""Codebooks of keys with the sums and counts that they are the quotient of.

    .. math:: n_j \leftarrow \gamma n_j + (1 - \gamma) b_j, \quad s_j \leftarrow \gamma s_j + (1 - \gamma) \sum_i u_i,
        \quad k_j = s_j / n_j

    with b_j rows u_i of the batch that are nearest to key j. Counts are smoothed (Laplace): each key gets a row of
    weight 1e-5 where it stands, so that a key that nothing comes to neither moves nor divides by 0.

    Args:
        codebooks: how many.
        size: keys of each.
        features: of a key.
        device: of the buffers.
        dtype: of the buffers, at least float32.
    """

    keys: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, codebooks: int, size: int, features: int, *, device=None, dtype=None):
        super().__init__()
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        for name in ("keys", "sums"):
            self.register_buffer(name, torch.empty(codebooks, size, features, device=device, dtype=dtype))
        self.register_buffer("counts", torch.empty(codebooks, size, device=device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws keys from N(0, I), each with a count of 1."""
        self.sums.normal_()
        self.counts.fill_(1)
        self.keys.copy_(self.sums)

    def assign(self, sums: Tensor, counts: Tensor) -> None:
        """Sets the statistics, and the keys to their quotient."""
        self.sums.copy_(sums)
        self.counts.copy_(counts)
        self.keys.copy_(self.sums / self.counts.unsqueeze(-1))

    def follow(self, rows: Tensor, indices: Tensor, weights: Tensor | None, moving: Tensor | bool) -> Tensor:
        """Moves the keys by a batch, of all ranks together; every rank has to call it.

        Args:
            rows: `(codebooks, rows, features)`, none on a rank that has none.
            indices: `(codebooks, rows)`, of the nearest keys.
            weights: `(rows,)`, 0 for rows that do not count; None: all do.
            moving: whether they move; else everything stays as it is, bit by bit.

        Returns:
            rows that came to each key, `(codebooks, size)`.
        """
        batch_sums, batch_counts = gathered_statistics(rows, indices, weights, self.keys.shape[1])
        moved = (batch_counts.sum() > 0) & moving
        weight = ((1 - DECAY) * moved).to(self.sums.dtype)
        smoothing = (SMOOTHING * moved).to(self.sums.dtype)
        counts = self.counts.lerp(batch_counts, weight)
        total = counts.sum(1, keepdim=True)
        scale = total / (total + smoothing * counts.shape[1])
        counts = (counts + smoothing) * scale
        sums = self.sums.lerp(batch_sums, weight).add_(self.keys * smoothing).mul_(scale.unsqueeze(-1))
        self.assign(sums, counts)
        return batch_counts


def gathered_statistics(rows: Tensor, indices: Tensor, weights: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Returns the sums `(codebooks, size, features)` of rows by index and their counts, over all ranks."""
    codebooks, _, features = rows.shape
    flat = (indices + size * torch.arange(codebooks, device=indices.device).unsqueeze(1)).flatten()
    ones = rows.new_ones(indices.shape) if weights is None else weights.to(rows.dtype).expand(indices.shape)
    weighted = rows if weights is None else rows * ones.unsqueeze(-1)
    sums = rows.new_zeros(codebooks * size, features).index_add_(0, flat, weighted.flatten(0, 1))
    counts = rows.new_zeros(codebooks * size).index_add_(0, flat, ones.flatten())
    return (
        over_ranks(sums).reshape(codebooks, size, features),
        over_ranks(counts).reshape(codebooks, size),
    )


def over_ranks(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over ranks, or the tensor itself where there is one; every rank has to call it."""
    return sum_over_ranks(value) if several_ranks() else value


def several_ranks() -> bool:
    """Whether there are other processes, asked at each call: a layer may be older than its process group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
