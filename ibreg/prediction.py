"""Predictions of a trained model: by the mean code, averaged over samples of the code, and with an uncertainty."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ibreg.layers.constraints import Count, OneOf, Optional
from ibreg.layers.distance_aware import DistanceAwareBottleneck
from ibreg.layers.scope import Scope, opened, run, unfold
from ibreg.modes import evaluating
from ibreg.regularized import named_bottlenecks, network_to_run


def predict(model: nn.Module, x: Tensor, *, draws: int = 0, seed: int | None = None, mean: str | None = None) -> Tensor:
    """Predicts in evaluation mode, by the mean code or averaged over samples of the code.

    Args:
        model: with or without bottlenecks, wrapped in `Regularized` or not; its modes are restored.
        x: the model's input, `(batch, ...)`.
        draws: number of Monte Carlo samples that the prediction is averaged over; 0: the deterministic output, the same
            as `net.eval()(x)` (logits stay logits).
        seed: of the samples, which then do not change the state of the global generator; None: the global generator.
        mean: quantity that is averaged: "softmax" (class axis 1, gives probabilities) or "output"; None: the softmax of
            an output `(batch, columns)` with two or more columns, the output with one column. A regression with several
            targets needs "output".

    Raises:
        ValueError: If `draws` or `mean` is not valid, `draws` is above 0 without a stochastic bottleneck, `mean` is
            None for an output of more than two axes, or the forward of the model runs a `Regularized`.

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(ibreg.VariationalBottleneck(4, 2), nn.Linear(2, 3))
        >>> x = torch.zeros(5, 4)
        >>> torch.equal(predict(net, x, draws=8, seed=0), predict(net, x, draws=8, seed=0))
        True
    """
    Count("number of Monte Carlo samples", least=0).check("draws", draws)
    Optional(OneOf(("softmax", "output"))).check("mean", mean)
    if draws == 0:
        with evaluating(model), torch.no_grad():
            return network_to_run(model)(x)
    with torch.no_grad():
        outputs = predict_samples(model, x, draws=draws, seed=seed)
    if mean is None:
        if outputs.dim() > 3:
            raise ValueError(
                "mean must be 'softmax' (classes on axis 1) or 'output' for an output of shape "
                f"{tuple(outputs.shape[1:])}, got None"
            )
        mean = "softmax" if outputs.dim() == 3 and outputs.shape[2] > 1 else "output"
    return (outputs.softmax(2) if mean == "softmax" else outputs).mean(0)


def predict_samples(model: nn.Module, x: Tensor, *, draws: int, seed: int | None = None) -> Tensor:
    """Returns the outputs for samples of the code, everything else in evaluation mode: `(draws, batch, ...)`.

    The part before the bottleneck runs once, unless the model does not run on a batch that grows inside it (a
    bottleneck in a residual branch): then the whole model runs for each sample.

    Args:
        model: as for `predict`.
        x: the model's input.
        draws: number of Monte Carlo samples, at least 1.
        seed: of the samples, which then do not change the state of the global generator; None: the global generator.

    Raises:
        ValueError: If `draws` is not valid, or the model calls no stochastic bottleneck.
    """
    Count("number of Monte Carlo samples").check("draws", draws)
    network = network_to_run(model)
    layers = named_bottlenecks(network)
    if not any(layer.stochastic for layer in layers):
        raise ValueError(f"draws={draws} needs a stochastic bottleneck, the model has none")
    devices = {x.device} - {torch.device("cpu")}
    with evaluating(model), torch.random.fork_rng(devices, enabled=seed is not None):
        for layer in layers:
            layer.training = layer.stochastic  # not that of its children: a dropout module inside it stays off
        if seed is not None:
            torch.manual_seed(seed)
        scope = Scope(inputs=x, draws=draws, names=layers)
        try:
            outputs = unfold(run(network, scope, x), draws, len(x))
        except RuntimeError:
            if draws == 1 or scope.repeats == 1:
                raise
            passes = (run(network, Scope(inputs=x, names=layers), x) for _ in range(draws))
            outputs = torch.stack(list(passes))
    if not any(record.layer.stochastic for record in scope.records):
        raise ValueError(f"draws={draws} needs a stochastic bottleneck that the model calls, got none")
    return outputs


class UncertainOutput(NamedTuple):
    """Output of `uncertainty`.

    Attributes:
        output: of the model.
        uncertainty: `(batch,)`, in nats.
    """

    output: Any
    uncertainty: Tensor


@torch.no_grad()
def uncertainty(model: nn.Module, x: Tensor) -> UncertainOutput:
    r"""Returns the output of a model in evaluation mode and the uncertainty by its distance-aware bottlenecks.

    .. math:: u(x) = \sum_j \pi(j|x) \, KL(p(z|x) \| q_j)

    summed over tokens or positions and over bottlenecks: small near the training data and large far from it, a score
    for the detection of out-of-distribution inputs (Apostolopoulou et al. 2024, arXiv 2406.02775).

    Args:
        model: with a `DistanceAwareBottleneck`; its modes are restored.
        x: the model's input, `(batch, ...)`.

    Raises:
        ValueError: If the model calls no distance-aware bottleneck.

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
        scores = [
            layer.uncertainty(state).reshape(len(x), -1).sum(1)
            for layer, state, _ in scope.records
            if isinstance(layer, DistanceAwareBottleneck)
        ]
    if not scores:
        raise ValueError("uncertainty needs a DistanceAwareBottleneck that the model calls, got none")
    return UncertainOutput(output, torch.stack(scores).sum(0))
