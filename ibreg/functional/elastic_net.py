"""Elastic net on the weights of an interpretable linear head."""

from __future__ import annotations

from torch import Tensor


def elastic_net(weight: Tensor, *, l1: float = 0.0, l2: float = 0.0, prior: Tensor | float = 0.0) -> Tensor:
    r"""Elastic-net penalty on the deviation of a linear head's weights from a prior.

    .. math:: l_1 \sum_{kc} |W_{kc} - P_{kc}| + l_2 \sum_{kc} (W_{kc} - P_{kc})^2

    With P = 0 it makes the weights sparse (Yuksekgonul et al. 2023, arXiv 2205.15480); with l1 alone and entries of -1,
    0 and 1 in P it favors weights by which concepts speak for or against classes (Yang et al. 2024, arXiv 2405.14839).

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
