"""How far a sample is from what a distance-aware bottleneck was trained on, by one forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ibreg.layers.distance_aware import DistanceAwareBottleneck
from ibreg.layers.scope import Scope, opened
from ibreg.regularized import evaluating, network_to_run


class UncertainOutput(NamedTuple):
    """What `uncertainty` returns.

    Attributes:
        output: the model's own output.
        uncertainty: `(batch,)`, in nats.
    """

    output: Any
    uncertainty: Tensor


@torch.no_grad()
def uncertainty(model: nn.Module, x: Tensor) -> UncertainOutput:
    r"""Runs a model in evaluation mode and returns its output, and how uncertain its distance-aware bottlenecks are.

    .. math:: u(x) = \sum_j \pi(j|x) \, KL(p(z|x) \| q_j)

    summed over tokens or positions and over bottlenecks: small near the training data, large away from it, so it is a
    score of being out of distribution (Apostolopoulou et al. 2024, arXiv 2406.02775).

    Args:
        model: with a `DistanceAwareBottleneck`; its modes come back as they were.
        x: the model's input, `(batch, ...)`.

    Raises:
        ValueError: no distance-aware bottleneck was called.

    Example:
        >>> import ibreg
        >>> model = nn.Sequential(ibreg.DistanceAwareBottleneck(4, 2, gaussians=3), nn.Linear(2, 5))
        >>> output, score = uncertainty(model, torch.randn(8, 4))
        >>> output.shape, score.shape
        (torch.Size([8, 5]), torch.Size([8]))
    """
    network = network_to_run(model)
    with evaluating(network), opened(Scope(inputs=x)) as scope:
        output = network(x)
        layers = [record for record in scope.records if isinstance(record.layer, DistanceAwareBottleneck)]
        scores = [layer.uncertainty(state).reshape(len(x), -1).sum(1) for layer, state, _ in layers]
    if not scores:
        raise ValueError("no distance-aware bottleneck was called, and only that one knows its distance from the data")
    return UncertainOutput(output, torch.stack(scores).sum(0))
