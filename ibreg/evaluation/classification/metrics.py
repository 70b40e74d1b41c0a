"""Metrics of a classifier's probabilities, and a lower bound of the information of its code about the labels."""

import math
from typing import Any

import numpy as np
import torch
from scipy.stats import entropy
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torch import Tensor


def classification_metrics(
    probabilities: Tensor | np.ndarray, targets: Tensor | np.ndarray, *, bins: int = 15
) -> dict[str, float]:
    r"""Measures accuracy, error, negative log-likelihood, Brier score and calibration error of predictions.

    .. math::
        \mathrm{nll} = -\frac1n \sum_i \log p_{i y_i}, \qquad
        \mathrm{brier} = \frac1n \sum_i \sum_c (p_{ic} - [y_i = c])^2, \qquad
        \mathrm{ece} = \sum_b \frac{n_b}{n} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    All metrics are computed in float64. For the logarithm probabilities are clipped to [eps, 1 - eps], eps = 2.2e-16,
    as scikit-learn does: a class of probability zero that occurs costs 36.04 nats, not infinity.

    Args:
        probabilities: class probabilities `(samples, classes)`; each row sums to one.
        targets: class indices `(samples,)`, integers. A class may be missing.
        bins: number of bins of the calibration error, see `calibration_bins`.

    Returns:
        `accuracy` and `error` (fractions that sum to one), `nll` (nats per sample), `brier` (in [0, 2]) and `ece` (a
        fraction).

    Raises:
        ValueError: If there are no samples, shapes or dtypes are wrong, a probability is NaN or negative, a row does
            not sum to one within 1e-3, or a target is not a class index.

    Example:
        >>> probabilities = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]])
        >>> metrics = classification_metrics(probabilities, torch.tensor([0, 1, 1, 1]))
        >>> {name: round(value, 3) for name, value in metrics.items()}
        {'accuracy': 0.75, 'error': 0.25, 'nll': 0.511, 'brier': 0.35, 'ece': 0.35}
    """
    probabilities, targets = checked_predictions(probabilities, targets)
    counts, accuracy, confidence = calibration_bins(probabilities, targets, bins=bins)
    labels = np.arange(probabilities.shape[1])
    accurate = float(accuracy_score(targets, probabilities.argmax(axis=1)))
    full: Any = False  # the sum over classes, not half of it; scikit-learn's annotation of the option is a string
    return {
        "accuracy": accurate,
        "error": 1 - accurate,
        "nll": float(log_loss(targets, probabilities, labels=labels)),
        "brier": float(brier_score_loss(targets, probabilities, labels=labels, scale_by_half=full)),
        "ece": float(np.nansum(counts * abs(accuracy - confidence)) / len(targets)),
    }


def calibration_bins(
    probabilities: Tensor | np.ndarray, targets: Tensor | np.ndarray, *, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Groups predictions into bins of equal width by their confidence, the probability of the most probable class.

    A bin includes its lower edge, the last one both edges. (torchmetrics 1.9 puts confidences of exactly 1, which are
    frequent in float32, into a separate bin, which raises the calibration error.)

    Args:
        probabilities: class probabilities `(samples, classes)`; each row sums to one.
        targets: class indices `(samples,)`, integers.
        bins: number of bins between 0 and 1.

    Returns:
        Number of samples, accuracy and mean confidence of each bin, each `(bins,)`; the latter two are NaN in an empty
        bin.

    Raises:
        ValueError: As in `classification_metrics`, or if `bins` is below 1.

    Example:
        >>> probabilities = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]])
        >>> counts, accuracy, confidence = calibration_bins(probabilities, torch.tensor([0, 1, 1, 1]), bins=2)
        >>> counts, accuracy, confidence.round(2)
        (array([0, 4]), array([ nan, 0.75]), array([ nan, 0.75]))
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    probabilities, targets = checked_predictions(probabilities, targets)
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == targets).astype(float)
    counts, _ = np.histogram(confidence, bins, (0, 1))
    correct_sum, _ = np.histogram(confidence, bins, (0, 1), weights=correct)
    confidence_sum, _ = np.histogram(confidence, bins, (0, 1), weights=confidence)
    filled = np.where(counts > 0, counts, np.nan)
    return counts, correct_sum / filled, confidence_sum / filled


def label_entropy(targets: Tensor | np.ndarray) -> float:
    r"""Computes the entropy of the empirical distribution of the labels, in nats.

    .. math::
        H(Y) = -\sum_c \frac{n_c}{n} \log \frac{n_c}{n}

    Args:
        targets: class indices `(samples,)`, integers.

    Raises:
        ValueError: If there are no targets, or they are not a vector of integers >= 0.

    Example:
        >>> round(label_entropy(torch.tensor([0, 1, 2, 3])), 4)
        1.3863
    """
    return float(entropy(np.bincount(_checked_targets(targets))))


def information_bound(cross_entropy: float, targets: Tensor | np.ndarray) -> float:
    r"""Computes a lower bound of the information of a code about the labels, in nats.

    .. math::
        I(Z; Y) = H(Y) - H(Y \mid Z) \ge H(Y) - \mathbb{E}[-\log q(y \mid z)]

    The bound holds for every decoder q and is tight for the true conditional distribution. It is negative if the
    decoder is worse than the frequencies of the labels.

    Args:
        cross_entropy: mean of -log q(y|z) over inputs and over samples of z, in nats; probabilities are not averaged
            over samples before the logarithm.
        targets: class indices of the same inputs `(samples,)`, integers.

    Raises:
        ValueError: If the cross-entropy is negative or not finite, or targets are not class indices.

    Source: Alemi et al. 2017, arXiv 1612.00410.

    Example:
        >>> round(information_bound(0.1, torch.tensor([0, 1, 0, 1])), 4)
        0.5931
    """
    if not (math.isfinite(cross_entropy) and cross_entropy >= 0):
        raise ValueError(f"cross_entropy must be finite and at least 0 nats, got {cross_entropy}")
    return label_entropy(targets) - cross_entropy


def checked_predictions(
    probabilities: Tensor | np.ndarray, targets: Tensor | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Checks predictions, and returns probabilities in float64 and targets as integers.

    Raises:
        ValueError: As in `classification_metrics`.
    """
    probabilities = torch.as_tensor(probabilities).detach().to("cpu", torch.float64).numpy()
    targets = _checked_targets(targets)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(f"probabilities must have shape (samples, classes >= 2), got {probabilities.shape}")
    samples, classes = probabilities.shape
    if samples != len(targets):
        raise ValueError(f"probabilities and targets must have equal lengths, got {samples} and {len(targets)}")
    if targets.max() >= classes:
        raise ValueError(f"targets must be below {classes}, the number of classes, got {targets.max()}")
    if not (probabilities >= 0).all():
        raise ValueError("probabilities must be at least 0 and not NaN: apply a softmax to logits")
    totals = probabilities.sum(axis=1, keepdims=True)
    if not np.allclose(totals, 1, rtol=0, atol=1e-3):
        raise ValueError(f"rows of probabilities must sum to one, got sums of {totals.min():g} to {totals.max():g}")
    # The sum of a float32 softmax differs from one by 1e-7, of which scikit-learn warns in float64.
    return probabilities / totals, targets


def _checked_targets(targets: Tensor | np.ndarray) -> np.ndarray:
    targets = torch.as_tensor(targets).detach().cpu().numpy()
    if targets.ndim != 1 or len(targets) == 0:
        raise ValueError(f"targets must have shape (samples >= 1,), got {targets.shape}")
    if not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"targets must be integers, got {targets.dtype}")
    if targets.min() < 0:
        raise ValueError(f"targets must be at least 0, got {targets.min()}")
    return targets
