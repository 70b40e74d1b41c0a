"""Penalties on the weights of a linear head that people read."""

from __future__ import annotations

from torch import Tensor


def elastic_net(weight: Tensor, *, l1: float = 0.0, l2: float = 0.0, prior: Tensor | float = 0.0) -> Tensor:
    r"""Elastic net on the weights of a linear head, around a prior.

    .. math:: l_1 \sum_{kc} |W_{kc} - P_{kc}| + l_2 \sum_{kc} (W_{kc} - P_{kc})^2

    With P = 0 it makes weights few (Yuksekgonul et al. 2023, arXiv 2205.15480); with l1 alone and P of -1, 0 and 1 it
    says which concept speaks for or against which class (Yang et al. 2024, arXiv 2405.14839).

    Args:
        weight: `(classes, concepts)`.
        l1: weight of the absolute deviations, at least 0.
        l2: weight of the squared deviations, at least 0.
        prior: `(classes, concepts)` or a number, P.

    Returns:
        0-dim.

    Example:
        >>> import torch
        >>> elastic_net(torch.tensor([[1.0, -2.0]]), l1=1.0, l2=0.5)
        tensor(5.5000)
    """
    deviation = weight - prior
    return l1 * deviation.abs().sum() + l2 * deviation.square().sum()
