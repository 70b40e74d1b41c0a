"""Splitters: modules that turn features into one query for each codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ibreg.precision import WideBuffers, promoted_dtype

KEY_FEATURES = 12


class RandomProjection(WideBuffers):
    """Projects features onto fixed random directions of unit norm, sampled for each codebook (arXiv 2207.11240).

    Args:
        in_features: size of the input.
        codebooks: number of queries.
        key_features: size of a query; None: 12.
        device: of the projection.
        dtype: of the projection, at least float32.
    """

    projection: Tensor

    def __init__(self, in_features: int, codebooks: int, key_features: int | None, *, device=None, dtype=None):
        super().__init__()
        self.key_features = KEY_FEATURES if key_features is None else key_features
        self._register(torch.empty(codebooks, in_features, self.key_features, device=device), dtype)

    def _register(self, projection: Tensor, dtype: torch.dtype | None) -> None:
        self.register_buffer("projection", projection.to(promoted_dtype(dtype)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Samples the directions."""
        self.projection.normal_()
        self.projection.div_(self.projection.norm(dim=1, keepdim=True))

    def forward(self, rows: Tensor) -> Tensor:
        """Projects rows `(rows, in_features)` to queries `(codebooks, rows, key_features)`."""
        return torch.einsum("rf,cfk->crk", rows, self.projection.to(rows.dtype))


class LearnedProjection(RandomProjection):
    """A random projection that is trained."""

    def _register(self, projection: Tensor, dtype: torch.dtype | None) -> None:
        self.projection = nn.Parameter(projection.to(dtype or torch.get_default_dtype()))


class Chunks(nn.Module):
    """Splits features into equal chunks, one for each codebook.

    Args:
        in_features: size of the input, a multiple of `codebooks`.
        codebooks: number of queries.
        key_features: size of a query; None or in_features / codebooks.
        device: ignored; there are no parameters.
        dtype: ignored.

    Raises:
        ValueError: If the features cannot be split equally.
    """

    def __init__(self, in_features: int, codebooks: int, key_features: int | None, *, device=None, dtype=None):
        super().__init__()
        if in_features % codebooks or key_features not in (None, in_features // codebooks):
            raise ValueError(
                f"splitter='chunk' splits {in_features} features into {codebooks} equal chunks, one for each codebook, "
                f"got key_features={key_features}: take a number of codebooks that divides {in_features} and "
                "key_features=None, or splitter='random_projection'"
            )
        self.codebooks = codebooks
        self.key_features = in_features // codebooks

    def reset_parameters(self) -> None:
        """Does nothing, as there are no parameters."""

    def forward(self, rows: Tensor) -> Tensor:
        """Splits rows `(rows, in_features)` into queries `(codebooks, rows, key_features)`."""
        return rows.unflatten(-1, (self.codebooks, -1)).transpose(0, 1)


SPLITTERS = {"random_projection": RandomProjection, "chunk": Chunks, "learned": LearnedProjection}
