"""Calibration of a classifier, and its accuracy on the samples of highest confidence."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ibreg.evaluation.classification.metrics import checked_predictions, classification_metrics


def calibration_metrics(
    probabilities: Tensor | np.ndarray,
    targets: Tensor | np.ndarray,
    *,
    bins: int = 15,
    coverages: Sequence[float] = (0.8, 0.9),
) -> dict[str, float]:
    r"""Measures calibration error, negative log-likelihood, Brier score and selective accuracy.

    .. math::
        \mathrm{aurc} = \frac1n \sum_{k=1}^n \big(1 - \mathrm{accuracy\ of\ the\ } k \mathrm{\ most\ confident}\big)

    Args:
        probabilities: class probabilities `(samples, classes)`; each row sums to one.
        targets: class indices `(samples,)`, integers.
        bins: number of bins of the calibration error.
        coverages: fractions of samples, the most confident ones, for the selective accuracy.

    Returns:
        `ece` (a fraction), `nll` (nats per sample) and `brier` (in [0, 2]) of `classification_metrics`;
        `accuracy_at_80` and so on, fractions; `aurc`, the area under the risk-coverage curve (Geifman and El-Yaniv
        2017, arXiv 1705.08500), at best 0.

    Raises:
        ValueError: If predictions are invalid, or a coverage is not in (0, 1].

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]])
        >>> metrics = calibration_metrics(probabilities, np.array([0, 1, 1, 1]), coverages=[0.5])
        >>> {name: round(value, 3) for name, value in metrics.items()}
        {'ece': 0.35, 'nll': 0.511, 'brier': 0.35, 'accuracy_at_50': 1.0, 'aurc': 0.146}
    """
    metrics = classification_metrics(probabilities, targets, bins=bins)
    selective = {f"accuracy_at_{100 * c:g}": selective_accuracy(probabilities, targets, c) for c in coverages}
    risk = 1 - _accuracy_of_most_confident(probabilities, targets)
    return {name: metrics[name] for name in ("ece", "nll", "brier")} | selective | {"aurc": float(risk.mean())}


def selective_accuracy(probabilities: Tensor | np.ndarray, targets: Tensor | np.ndarray, coverage: float) -> float:
    """Measures the accuracy on the fraction of samples with the highest confidence.

    Samples of equal confidence are in random order: the result is the expectation over that order.

    Args:
        probabilities: class probabilities `(samples, classes)`; each row sums to one.
        targets: class indices `(samples,)`, integers.
        coverage: fraction of the samples, in (0, 1]; at least one sample is kept.

    Raises:
        ValueError: If predictions are invalid, or the coverage is not in (0, 1].

    Example:
        >>> selective_accuracy(np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]), np.array([0, 0, 1]), 2 / 3)
        1.0
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be above 0 and at most 1, got {coverage}")
    accuracy = _accuracy_of_most_confident(probabilities, targets)
    return float(accuracy[max(round(coverage * len(accuracy)), 1) - 1])


def _accuracy_of_most_confident(probabilities: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> np.ndarray:
    """Computes the accuracy of the k most confident samples, for k = 1 ... samples."""
    probabilities, targets = checked_predictions(probabilities, targets)
    correct = (probabilities.argmax(axis=1) == targets).astype(float)
    # By decreasing confidence; samples of equal confidence share their mean, the expectation over a random order.
    _, group, size = np.unique(-probabilities.max(axis=1), return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=correct) / size
    return np.repeat(shared, size).cumsum() / np.arange(1, len(correct) + 1)
