"""Predictions of a trained model: with the mean code, averaged over sampled codes, and with an uncertainty."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ibreg.layers.distance_aware import DistanceAwareBottleneck
from ibreg.layers.scope import Scope, opened, run, unfold
from ibreg.modes import evaluating
from ibreg.regularized import named_bottlenecks, network_to_run


def predict(model: nn.Module, x: Tensor, *, draws: int = 0, seed: int | None = None, mean: str | None = None) -> Tensor:
    """Predicts in evaluation mode, with the mean code or averaged over several drawn codes.

    Args:
        model: with or without bottlenecks, wrapped in `Regularized` or not; its modes come back as they were.
        x: the model's input, `(batch, ...)`.
        draws: 0: the deterministic output, the same as `net.eval()(x)` (logits stay logits); n: the average over n
            draws.
        seed: makes the draws reproducible, and leaves the global generator alone.
        mean: what is averaged over draws: "softmax" (class axis 1, gives probabilities) or "output"; None: the softmax
            of an output `(batch, columns)` with two or more columns, the output where there is one. A regression of
            several targets has to say "output".

    Raises:
        ValueError: draws below 0, draws of a model without a stochastic bottleneck, another `mean`, or none for an
            output of more than two axes; a module whose own forward runs a `Regularized`.

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(ibreg.VariationalBottleneck(4, 2), nn.Linear(2, 3))
        >>> x = torch.zeros(5, 4)
        >>> torch.equal(predict(net, x, draws=8, seed=0), predict(net, x, draws=8, seed=0))
        True
    """
    if mean not in (None, "softmax", "output"):
        raise ValueError(f"mean is 'softmax', 'output' or None, got {mean!r}")
    if draws == 0:
        with evaluating(model), torch.no_grad():
            return network_to_run(model)(x)
    with torch.no_grad():
        outputs = predict_samples(model, x, draws=draws, seed=seed)
    if mean is None:
        if outputs.dim() > 3:
            raise ValueError(
                f"the output has shape {tuple(outputs.shape[1:])}: say mean='softmax' (classes on axis 1) "
                "or mean='output'"
            )
        mean = "softmax" if outputs.dim() == 3 and outputs.shape[2] > 1 else "output"
    return (outputs.softmax(2) if mean == "softmax" else outputs).mean(0)


def predict_samples(model: nn.Module, x: Tensor, *, draws: int, seed: int | None = None) -> Tensor:
    """Returns the outputs of several drawn codes, everything else in evaluation mode: `(draws, batch, ...)`.

    Args:
        model: as for `predict`.
        x: the model's input.
        draws: how many, at least 1.
        seed: makes them reproducible, and leaves the global generator alone.

    What stands before the bottleneck runs once, unless the model does not run on a batch that grows inside it (a
    bottleneck in a residual branch): then it runs as a whole for each draw.
    """
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is an integer of at least 0, got {draws!r}")
    network = network_to_run(model)
    layers = named_bottlenecks(network)
    if not any(layer.stochastic for layer in layers):
        raise ValueError(f"draws={draws} needs a stochastic bottleneck, the model has none")
    devices = {x.device} - {torch.device("cpu")}
    with evaluating(model), torch.random.fork_rng(devices, enabled=seed is not None):
        for layer in layers:
            layer.training = layer.stochastic  # its noise alone: a dropout inside it stays off
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
        raise ValueError(f"draws={draws} needs a stochastic bottleneck that the model calls, none of them was")
    return outputs


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
