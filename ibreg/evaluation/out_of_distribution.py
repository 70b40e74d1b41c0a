"""Detection of out-of-distribution (OOD) inputs: scores, and how well they separate them from in-distribution ones."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ibreg.layers.base import Bottleneck
from ibreg.layers.scope import Scope, opened
from ibreg.modes import evaluating
from ibreg.prediction import predict_samples
from ibreg.regularized import named_bottlenecks, network_to_run


@torch.no_grad()
def ood_scores(
    model: nn.Module, x: Tensor, *, draws: int = 0, seed: int = 0, batch_size: int = 500
) -> dict[str, Tensor]:
    r"""Scores inputs by the softmax, by the energy and by the rate of the code; higher is more likely OOD.

    .. math::
        s_\mathrm{softmax} = 1 - \max_c p_c, \qquad
        s_\mathrm{energy} = -\log \sum_c e^{z_c}, \qquad
        s_\mathrm{rate} = \sum_l \mathrm{KL}(p(z_l|x) \,\|\, r)

    Maximum softmax: Hendrycks and Gimpel 2017 (arXiv 1610.02136); energy: Liu et al. 2020 (arXiv 2010.03759); rate:
    Alemi et al. 2018 (arXiv 1807.00906). With a conditional prior the rate is that to the nearest class, since there
    is no label (`Bottleneck.sample_rate`).

    Args:
        model: a classifier, wrapped in `Regularized` or not, which returns logits; its modes are restored.
        x: `(samples, ...)`.
        draws: number of Monte Carlo samples of the code that softmax and energy are averaged over; 0: the mean code.
        seed: of the samples.
        batch_size: number of inputs per forward pass.

    Returns:
        `maximum_softmax`, `energy` (nats) and, where a bottleneck has a rate per sample, `rate` (nats, summed over the
        positions of a code and over the bottlenecks), each `(samples,)`.

    Raises:
        ValueError: If the model does not return logits `(samples, classes)`, or there is no input.

    Example:
        >>> import ibreg
        >>> model = nn.Sequential(ibreg.VariationalBottleneck(4, 2), nn.Linear(2, 3))
        >>> {name: tuple(score.shape) for name, score in ood_scores(model, torch.zeros(5, 4)).items()}
        {'maximum_softmax': (5,), 'energy': (5,), 'rate': (5,)}
    """
    if len(x) == 0:
        raise ValueError("x must have at least one input to score, got none")
    batches = [_scores(model, batch, draws, seed + step) for step, batch in enumerate(x.split(batch_size))]
    return {name: torch.cat([scores[name] for scores in batches]) for name in batches[0]}


def detection_metrics(inside: Tensor | np.ndarray, outside: Tensor | np.ndarray) -> dict[str, float]:
    """Measures how well a score separates out-of-distribution from in-distribution inputs.

    Args:
        inside: scores of in-distribution inputs, `(samples,)`.
        outside: scores of out-of-distribution inputs, `(samples,)`, which should be the higher ones.

    Returns:
        `auroc`, the fraction of pairs in the right order, ties counting half: 0.5 at chance, 1 at best; `fpr95`, the
        fraction of out-of-distribution inputs that are accepted where 95 % of the in-distribution ones are: 0 at best.

    Raises:
        ValueError: If there is no score, or one is not finite.

    Example:
        >>> detection_metrics(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0]))
        {'auroc': 0.8333333333333334, 'fpr95': 0.5}
    """
    inside, outside = _checked("inside", inside), _checked("outside", outside)
    # scikit-learn's, as torchmetrics' passes scores through a float32 sigmoid, which makes high ones equal.
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    # The smallest score that accepts 95 % of what is inside.
    threshold = np.sort(inside)[math.ceil(95 * len(inside) / 100) - 1]
    return {
        "auroc": float(roc_auc_score(is_outside, np.concatenate([inside, outside]))),
        "fpr95": float((outside <= threshold).mean()),
    }


def _scores(model: nn.Module, x: Tensor, draws: int, seed: int) -> dict[str, Tensor]:
    network = network_to_run(model)
    scope = Scope(inputs=x, names=named_bottlenecks(network))
    with evaluating(model), opened(scope):
        logits = network(x)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must return logits (samples, classes) to be scored, got {got}")
    logits = predict_samples(model, x, draws=draws, seed=seed) if draws else logits.unsqueeze(0)
    scores = {
        "maximum_softmax": 1 - logits.softmax(2).mean(0).amax(1),
        "energy": -logits.logsumexp(2).mean(0),
    }
    rates = [cast(Bottleneck, layer).sample_rate(state) for layer, state, _ in scope.records]
    rates = [rate for rate in rates if rate is not None]
    return scores | ({"rate": torch.stack(rates).sum(0)} if rates else {})


def _checked(kind: str, scores: Tensor | np.ndarray) -> np.ndarray:
    scores = torch.as_tensor(scores).detach().to("cpu", torch.float64).numpy()
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores {kind} must have shape (samples,) with at least one, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores {kind} must be finite, got {np.count_nonzero(~np.isfinite(scores))} that are not")
    return scores
