"""Corruptions of tables at 5 severities: noise on the features, and missing features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def corrupt_table(rows: Tensor, kind: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupts the rows of a standardized table.

    Args:
        rows: `(batch, features)`, floats, each column standardized by the training rows; missing values are imputed by
            the mean, 0.
        kind: one of `names()`: "feature_noise" adds Gaussian noise of deviation 0.1 to 1, "missing_features" removes
            5 to 50 % of the values.
        severity: 1 (mild) to 5 (severe).
        seed: seed of the noise; with the same seed, a value that is missing at one severity is missing at the next.

    Raises:
        ValueError: If the kind or severity is unknown, or rows have another shape or dtype, or are not finite.

    Example:
        >>> (corrupt_table(torch.ones(1000, 20), "missing_features", 5) == 0).float().mean().round(decimals=1)
        tensor(0.5000)
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"the corruption of a table must be one of {', '.join(names())}, got {kind!r}")
    if type(severity) is not int or severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if rows.dim() != 2 or not rows.is_floating_point():
        raise ValueError(f"rows must be floats (batch, features), got {rows.dtype} of shape {tuple(rows.shape)}")
    if not rows.isfinite().all():
        raise ValueError("rows must be finite: impute missing values by 0, the mean")
    function, amounts = CORRUPTIONS[kind]
    return function(rows, amounts[severity - 1], torch.Generator().manual_seed(seed))


def names() -> list[str]:
    """Lists the kinds that `corrupt_table` knows.

    Example:
        >>> names()
        ['feature_noise', 'missing_features']
    """
    return sorted(CORRUPTIONS)


def _feature_noise(rows: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return rows + deviation * torch.randn(rows.shape, generator=generator).to(rows)


def _missing_features(rows: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    return rows.masked_fill(torch.rand(rows.shape, generator=generator).to(rows.device) < fraction, 0)


Change = Callable[[Tensor, float, torch.Generator], Tensor]
CORRUPTIONS: dict[str, tuple[Change, tuple[float, ...]]] = {
    "feature_noise": (_feature_noise, (0.1, 0.2, 0.35, 0.6, 1.0)),  # standard deviations
    "missing_features": (_missing_features, (0.05, 0.1, 0.2, 0.35, 0.5)),  # fraction of the values
}
