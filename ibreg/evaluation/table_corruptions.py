"""Corruptions of tables, at 5 severities: noise on the features, and features that are missing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def corrupt_table(rows: Tensor, kind: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupts the rows of a standardized table.

    Args:
        rows: `(batch, features)`, floats, every column standardized by the training rows: a deviation is 1 and the mean
            0, which is also what stands in for a missing value.
        kind: one of `names()`: "feature_noise" adds Gaussian noise of deviation 0.1 to 1, "missing_features" loses
            5 to 50 % of the values.
        severity: 1 (mild) to 5 (severe).
        seed: of the draws; the same for all severities, so that what is missing at one is missing at the next.

    Raises:
        ValueError: an unknown kind or severity, rows of another shape or dtype, or values that are not finite.

    Example:
        >>> (corrupt_table(torch.ones(1000, 20), "missing_features", 5) == 0).float().mean().round(decimals=1)
        tensor(0.5000)
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"corruptions of tables are {', '.join(names())}, got {kind!r}")
    if type(severity) is not int or severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity is 1, 2, 3, 4 or 5, got {severity!r}")
    if rows.dim() != 2 or not rows.is_floating_point():
        raise ValueError(f"rows are floats (batch, features), got {rows.dtype} of shape {tuple(rows.shape)}")
    if not rows.isfinite().all():
        raise ValueError("rows have values that are not finite: put 0, the mean, where one is missing")
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


def _missing_features(rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    return rows.masked_fill(torch.rand(rows.shape, generator=generator).to(rows.device) < share, 0)


Change = Callable[[Tensor, float, torch.Generator], Tensor]
CORRUPTIONS: dict[str, tuple[Change, tuple[float, ...]]] = {
    "feature_noise": (_feature_noise, (0.1, 0.2, 0.35, 0.6, 1.0)),  # standard deviations
    "missing_features": (_missing_features, (0.05, 0.1, 0.2, 0.35, 0.5)),  # share of the values
}
