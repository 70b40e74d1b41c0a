"""Whether a classifier knows when it is right: calibration, and accuracy on what it is surest of."""

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
        \mathrm{aurc} = \frac1n \sum_{k=1}^n \big(1 - \mathrm{accuracy\ of\ the\ } k \mathrm{\ surest}\big)

    Args:
        probabilities: Probability of each class, float of shape (samples, classes), every row summing to one.
        targets: Class indices, integers of shape (samples,).
        bins: Number of bins of the calibration error.
        coverages: Shares of the samples, the surest ones, of which the accuracy is taken.

    Returns:
        ``ece`` (a fraction), ``nll`` (nats per sample) and ``brier`` (in [0, 2]), see
        :func:`ibreg.evaluation.classification.metrics.classification_metrics`; ``accuracy_at_80`` and so on,
        fractions; ``aurc``, the area under the risk over the coverage (Geifman and El-Yaniv 2017,
        arXiv 1705.08500), 0 at best.

    Raises:
        ValueError: If predictions are wrong, or a coverage is not above 0 and at most 1.

    Example:
        >>> probabilities = np.array([[0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]])
        >>> found = calibration_metrics(probabilities, np.array([0, 1, 1, 1]), coverages=[0.5])
        >>> {name: round(value, 3) for name, value in found.items()}
        {'ece': 0.35, 'nll': 0.511, 'brier': 0.35, 'accuracy_at_50': 1.0, 'aurc': 0.146}
    """
    found = classification_metrics(probabilities, targets, bins=bins)
    selective = {f"accuracy_at_{100 * c:g}": selective_accuracy(probabilities, targets, c) for c in coverages}
    risk = 1 - _accuracy_of_surest(probabilities, targets)
    return {name: found[name] for name in ("ece", "nll", "brier")} | selective | {"aurc": float(risk.mean())}


def selective_accuracy(probabilities: Tensor | np.ndarray, targets: Tensor | np.ndarray, coverage: float) -> float:
    """Measures the accuracy on the share of samples whose most probable class is the most probable.

    Of samples that are equally sure, which one is left out is left to chance: their mean counts.

    Args:
        probabilities: Probability of each class, float of shape (samples, classes), every row summing to one.
        targets: Class indices, integers of shape (samples,).
        coverage: The share, above 0 and at most 1; at least one sample is kept.

    Raises:
        ValueError: If predictions are wrong, or the coverage is out of range.

    Example:
        >>> selective_accuracy(np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]), np.array([0, 0, 1]), 2 / 3)
        1.0
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"a coverage is a share, above 0 and at most 1, got {coverage}")
    accuracy = _accuracy_of_surest(probabilities, targets)
    return float(accuracy[max(round(coverage * len(accuracy)), 1) - 1])


def _accuracy_of_surest(probabilities: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> np.ndarray:
    """Accuracy of the k surest samples, for k = 1 ... samples."""
    probabilities, targets = checked_predictions(probabilities, targets)
    right = (probabilities.argmax(axis=1) == targets).astype(float)
    # From the surest on; equally sure samples share their mean, as if in a random order.
    _, group, size = np.unique(-probabilities.max(axis=1), return_inverse=True, return_counts=True)
    shared = np.bincount(group, weights=right) / size
    return np.repeat(shared, size).cumsum() / np.arange(1, len(right) + 1)
