"""Scores that are high for inputs of another kind than those of the training, and how well they tell them apart."""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from ibreg.functional import gaussian_kl, gaussian_rate
from ibreg.layers.encoder import noise_scale
from ibreg.layers.scope import Scope, opened
from ibreg.layers.variational import Code
from ibreg.modes import evaluating
from ibreg.prediction import predict_samples
from ibreg.regularized import named_bottlenecks, network_to_run


@torch.no_grad()
def outlier_scores(
    model: nn.Module, x: Tensor, *, draws: int = 0, seed: int = 0, batch_size: int = 500
) -> dict[str, Tensor]:
    r"""Scores each input, the higher the stranger: by the softmax, by the energy and by the rate of the code.

    .. math::
        s_\mathrm{softmax} = 1 - \max_c p_c, \qquad
        s_\mathrm{energy} = -\log \sum_c e^{z_c}, \qquad
        s_\mathrm{rate} = \sum_l \mathrm{KL}(p(z_l|x) \,\|\, r)

    Maximum softmax: Hendrycks and Gimpel 2017 (arXiv 1610.02136); energy: Liu et al. 2020 (arXiv 2010.03759); rate:
    Alemi et al. 2018 (arXiv 1807.00906). With a conditional prior the rate is that to the nearest class, since there
    is no label.

    Args:
        model: a classifier, wrapped in `Regularized` or not, which returns logits; its modes come back as they were.
        x: `(samples, ...)`.
        draws: 0: the mean code; n: the softmax is averaged over n draws of the noise, and so is the energy.
        seed: of the draws.
        batch_size: inputs at a time.

    Returns:
        `maximum_softmax`, `energy` (nats) and, where there is a variational bottleneck, `rate` (nats, summed over the
        positions of a code and over the bottlenecks), each `(samples,)`.

    Raises:
        ValueError: the model does not return logits `(samples, classes)`, no input.

    Example:
        >>> import ibreg
        >>> model = nn.Sequential(ibreg.VariationalBottleneck(4, 2), nn.Linear(2, 3))
        >>> {name: tuple(score.shape) for name, score in outlier_scores(model, torch.zeros(5, 4)).items()}
        {'maximum_softmax': (5,), 'energy': (5,), 'rate': (5,)}
    """
    if len(x) == 0:
        raise ValueError("there is no input to score")
    found: dict[str, list[Tensor]] = {}
    for place, batch in enumerate(x.split(batch_size)):
        for name, score in _scores(model, batch, draws, seed + place).items():
            found.setdefault(name, []).append(score)
    return {name: torch.cat(scores) for name, scores in found.items()}


def detection_metrics(inside: Tensor | np.ndarray, outside: Tensor | np.ndarray) -> dict[str, float]:
    """Measures how well a score tells inputs of another kind from those of the training's kind.

    Args:
        inside: scores of the training's kind, `(samples,)`.
        outside: scores of the other kind, `(samples,)`, which should be the higher ones.

    Returns:
        `auroc`, the share of pairs in the right order, ties counting half: 0.5 at chance; `fpr95`, the share of the
        other kind that passes where 95 % of the training's kind do: 0 at best.

    Raises:
        ValueError: no score, or one that is not finite.

    Example:
        >>> detection_metrics(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0]))
        {'auroc': 0.8333333333333334, 'fpr95': 0.5}
    """
    inside, outside = _checked("inside", inside), _checked("outside", outside)
    # scikit-learn's: that of torchmetrics squeezes scores through a float32 sigmoid, where high ones become equal.
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    # The smallest score that accepts 95 % of what is inside; 19 of 20 are 95 %, whatever the rounding of 0.95.
    threshold = np.sort(inside)[math.ceil(0.95 * len(inside) - 1e-9) - 1]
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
        raise ValueError(f"outliers are scored by logits (samples, classes), the model returns {got}")
    logits = predict_samples(model, x, draws=draws, seed=seed) if draws else logits.unsqueeze(0)
    scores = {
        "maximum_softmax": 1 - logits.softmax(2).mean(0).amax(1),
        "energy": -logits.logsumexp(2).mean(0),
    }
    rates = [_rate(record.state) for record in scope.records if isinstance(record.state, Code)]
    return scores | ({"rate": torch.stack(rates).sum(0)} if rates else {})


def _rate(code: Code) -> Tensor:
    """Rate of each sample in nats, `(batch,)`."""
    scale = noise_scale(code.raw_scale)
    if code.prior_mean is None or code.prior_log_variance is None:
        rate = gaussian_rate(code.mean, scale)
    elif code.prior_mean.dim() == 1:
        rate = gaussian_kl(code.mean, 2 * scale.log(), code.prior_mean, code.prior_log_variance)
    else:
        mean, log_variance = code.mean.unsqueeze(-2), 2 * scale.log().unsqueeze(-2)  # (batch, ..., 1, features)
        rate = gaussian_kl(mean, log_variance, code.prior_mean, code.prior_log_variance)  # (batch, ..., classes)
        positions = tuple(range(1, rate.dim() - 1))
        return (rate.sum(positions) if positions else rate).amin(-1)
    return rate.flatten(1).sum(1) if rate.dim() > 1 else rate


def _checked(kind: str, scores: Tensor | np.ndarray) -> np.ndarray:
    scores = torch.as_tensor(scores).detach().to("cpu", torch.float64).numpy()
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores {kind} need shape (samples >= 1,), got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"scores {kind} have {np.count_nonzero(~np.isfinite(scores))} values that are not finite")
    return scores
