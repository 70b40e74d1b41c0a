"""From features to one query for each codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ibreg.precision import WideBuffers, promoted_dtype

KEY_FEATURES = 12


class RandomProjection(WideBuffers):
    """Projects features on fixed random directions of unit length, other ones for each codebook (arXiv 2207.11240).

    Args:
        in_features: of the input.
        codebooks: how many queries.
        key_features: of a query; None: 12.
        device: of the projection.
        dtype: of the projection, at least float32.
    """

    projection: Tensor

    def __init__(self, in_features: int, codebooks: int, key_features: int | None, *, device=None, dtype=None):
        super().__init__()
        self.key_features = KEY_FEATURES if key_features is None else key_features
        self._hold(torch.empty(codebooks, in_features, self.key_features, device=device), dtype)

    def _hold(self, projection: Tensor, dtype) -> None:
        dtype = promoted_dtype(dtype)
        self.register_buffer("projection", projection.to(dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the directions."""
        self.projection.normal_()
        self.projection.div_(self.projection.norm(dim=1, keepdim=True))

    def forward(self, rows: Tensor) -> Tensor:
        """Returns `(codebooks, rows, key_features)` of `(rows, in_features)`."""
        return torch.einsum("rf,cfk->crk", rows, self.projection.to(rows.dtype))


class LearnedProjection(RandomProjection):
    """A projection that starts at random and is learned."""

    def _hold(self, projection: Tensor, dtype) -> None:
        self.projection = nn.Parameter(projection.to(dtype or torch.get_default_dtype()))


class Chunks(nn.Module):
    """Cuts features into as many equal parts as there are codebooks."""

    def __init__(self, in_features: int, codebooks: int, key_features: int | None, *, device=None, dtype=None):
        super().__init__()
        if in_features % codebooks or key_features not in (None, in_features // codebooks):
            raise ValueError(
                f"splitter='chunk' cuts {in_features} features into {codebooks} equal parts, one for each codebook, "
                f"of key_features={key_features}: take a number of codebooks that divides {in_features} and leave "
                "key_features away, or splitter='random_projection'"
            )
        self.codebooks = codebooks
        self.key_features = in_features // codebooks

    def reset_parameters(self) -> None:
        """Does nothing, there is nothing to set."""

    def forward(self, rows: Tensor) -> Tensor:
        """Returns `(codebooks, rows, key_features)` of `(rows, in_features)`."""
        return rows.unflatten(-1, (self.codebooks, -1)).transpose(0, 1)


SPLITTERS = {"random_projection": RandomProjection, "chunk": Chunks, "learned": LearnedProjection}
