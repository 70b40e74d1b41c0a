"""Lagrangians of the information bottleneck: the objective has beta * u(rate), with u linear or convex.

Where the information curve has a linear piece, a linear u cannot reach all of its points; a strictly convex u can
(Kolchinsky et al. 2019, arXiv 1808.07593; Rodriguez-Galvez et al. 2020, arXiv 1911.11000). u acts on the *batch mean*
of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def linear_lagrangian(rate: Tensor, power: float = 1.0) -> Tensor:
    r"""Linear Lagrangian: the rate itself.

    .. math:: u(r) = r

    Args:
        rate: nats, 0-dim.
        power: ignored, as all Lagrangians have one signature.

    Example:
        >>> linear_lagrangian(torch.tensor(3.0))
        tensor(3.)
    """
    return rate


def power_lagrangian(rate: Tensor, power: float = 1.0) -> Tensor:
    r"""Convex power of a rate.

    .. math:: u(r) = r^{1 + p}

    Args:
        rate: nats, 0-dim; negative estimates are clamped to 0.
        power: p > 0; 1 is the squared information bottleneck (arXiv 1808.07593).

    Example:
        >>> power_lagrangian(torch.tensor(3.0))
        tensor(9.)
    """
    return rate.clamp(min=0) ** (1 + power)


def exponential_lagrangian(rate: Tensor, power: float = 1.0, *, threshold: float = 10.0) -> Tensor:
    r"""Convex exponential of a rate, continued by its tangent before it overflows.

    .. math:: u(r) = (e^{p r} - 1) / p \text{ for } p r \le t, \text{ else } u(t/p) + e^t (r - t/p)

    Args:
        rate: nats, 0-dim.
        power: p > 0 (arXiv 1911.11000).
        threshold: t; the plain exponential overflows float32 at p r = 89.

    Example:
        >>> exponential_lagrangian(torch.tensor([0.0, 1.0, 500.0]))
        tensor([0.0000e+00, 1.7183e+00, 1.0815e+07])
    """
    scaled = power * rate
    curved = torch.expm1(scaled.clamp(max=threshold))
    tangent = math.expm1(threshold) + math.exp(threshold) * (scaled - threshold)
    return torch.where(scaled < threshold, curved, tangent) / power


LAGRANGIANS: dict[str, Callable[..., Tensor]] = {
    "linear": linear_lagrangian,
    "power": power_lagrangian,
    "exponential": exponential_lagrangian,
}
