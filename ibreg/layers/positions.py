"""Masks of padding, means over the tokens or positions of a sample, and means over the batch."""

from __future__ import annotations

import torch
from torch import Tensor


def check_mask(mask: Tensor, positions: torch.Size) -> None:
    """Checks the shape of a mask.

    Args:
        mask: `(batch, *positions)`.
        positions: the shape of a bottleneck's features without the feature axis, `(batch, *positions)`.

    Raises:
        ValueError: If the shapes differ.
    """
    if mask.shape != positions:
        raise ValueError(
            f"the mask must have the shape of the bottleneck's positions, {tuple(positions)}, got {tuple(mask.shape)}"
        )


def mean_over_positions(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the mean over tokens or positions without padding; 0 for a sample that is all padding.

    Args:
        features: `(batch, *positions, features)`.
        mask: `(batch, *positions)`, True or 1 where a position is not padding.

    Raises:
        ValueError: If the shape of the mask is not that of the positions.
    """
    if mask is None:
        return features.flatten(1, -2).mean(1)
    check_mask(mask, features.shape[:-1])
    kept = mask.bool().unsqueeze(-1)
    return torch.where(kept, features, 0).flatten(1, -2).sum(1) / kept.flatten(1, -2).sum(1).clamp(min=1)


def batch_mean(values: Tensor, mask: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """Returns the mean over samples of the sum over positions.

    Args:
        values: `(batch, *positions)`.
        mask: `(batch, *positions)`, True or 1 where a position is not padding. Ignored where there are no positions.
        valid: `(batch,)` or `(batch, *positions)`, False where a sample or a position has no target. Samples without
            any target are left out of the mean.

    Raises:
        ValueError: If the shape of the mask is not that of the positions.
    """
    if mask is not None and values.dim() > 1:
        check_mask(mask, values.shape)
        values = torch.where(mask.bool(), values, 0)
    samples = values.shape[0]
    if valid is not None:
        values = torch.where(valid.reshape(valid.shape + (1,) * (values.dim() - valid.dim())), values, 0)
        samples = valid.unsqueeze(-1).flatten(1).any(1).sum().clamp(min=1)
    return values.sum() / (samples if isinstance(samples, Tensor) else max(samples, 1))
