"""Metrics of class-incremental learning: accuracy, transfer and forgetting over splits.

All of them follow from one matrix: the accuracy on the classes of each split, before the first split and after each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def accuracy_matrix(
    predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray, splits: Sequence[Sequence[int]]
) -> np.ndarray:
    r"""Measures the accuracy on the classes of each split, at each stage of training.

    .. math::
        R_{ij} = \frac{1}{n_j} \sum_{k: y_k \in S_j} [\hat y^{(i)}_k = y_k]

    Predictions are over all classes: a learner is not told the split of a sample.

    Args:
        predictions: predicted classes `(stages, samples)`, integers: before the first split, and after each.
        targets: classes `(samples,)`, integers.
        splits: classes of each split, in the order of training.

    Returns:
        Accuracies `(stages, splits)`, fractions, float64.

    Raises:
        ValueError: If shapes do not match, or a split has no sample.

    Example:
        >>> stages = [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 2, 3]]
        >>> accuracy_matrix(torch.tensor(stages), torch.tensor([0, 1, 2, 3]), [(0, 1), (2, 3)])
        array([[0.5, 0. ],
               [1. , 0. ],
               [0. , 1. ]])
    """
    predictions, targets = (torch.as_tensor(values).detach().cpu().numpy() for values in (predictions, targets))
    if predictions.ndim != 2 or targets.ndim != 1 or predictions.shape[1] != len(targets):
        raise ValueError(
            f"predictions must have shape (stages, samples) and targets (samples,), got {predictions.shape} and "
            f"{targets.shape}"
        )
    if len(predictions) != len(splits) + 1:
        raise ValueError(
            f"predictions must have {len(splits) + 1} stages for {len(splits)} splits, one of them before the first "
            f"split, got {len(predictions)}"
        )
    in_split = [np.isin(targets, np.asarray(classes)) for classes in splits]
    if empty := [list(classes) for classes, rows in zip(splits, in_split, strict=True) if not rows.any()]:
        raise ValueError(f"each split must have a sample, got none of the classes {empty}")
    correct = predictions == targets
    return np.stack([correct[:, rows].mean(axis=1) for rows in in_split], axis=1)


def overall_accuracy(
    predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray, splits: Sequence[Sequence[int]]
) -> np.ndarray:
    r"""Measures the accuracy over the samples of all splits, including later ones, at each stage.

    .. math::
        A_i = \sum_j \frac{n_j}{n} R_{ij}

    Args:
        predictions: as in `accuracy_matrix`.
        targets: as in `accuracy_matrix`.
        splits: as in `accuracy_matrix`.

    Returns:
        Accuracies `(stages,)`, fractions, float64.

    Raises:
        ValueError: As in `accuracy_matrix`.

    Example:
        >>> stages = [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 2, 3]]
        >>> overall_accuracy(torch.tensor(stages), torch.tensor([0, 1, 2, 3]), [(0, 1), (2, 3)])
        array([0.25, 0.5 , 0.5 ])
    """
    matrix = accuracy_matrix(predictions, targets, splits)
    targets = torch.as_tensor(targets).detach().cpu().numpy()
    samples = np.array([np.isin(targets, np.asarray(classes)).sum() for classes in splits])
    return matrix @ (samples / samples.sum())


def backward_transfer(matrix: np.ndarray) -> float:
    r"""Measures the effect of later splits on the accuracy of earlier ones, negative if they are forgotten.

    .. math::
        \mathrm{BWT} = \frac{1}{T-1} \sum_{j=1}^{T-1} R_{Tj} - R_{jj}

    Args:
        matrix: accuracies `(T + 1, T)`, as returned by `accuracy_matrix`.

    Returns:
        A difference of fractions in [-1, 1]; NaN for one split.

    Raises:
        ValueError: If the matrix does not have that shape.

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 3.

    Example:
        >>> backward_transfer(np.array([[0.5, 0.0], [1.0, 0.0], [0.25, 1.0]]))
        -0.75
    """
    learned = _after_splits(matrix)
    return _mean((learned[-1] - learned.diagonal())[:-1])


def forward_transfer(matrix: np.ndarray) -> float:
    r"""Measures the effect of earlier splits on the accuracy of a later one, before training on it.

    .. math::
        \mathrm{FWT} = \frac{1}{T-1} \sum_{j=2}^{T} R_{j-1,j} - R_{0j}

    A learner with one head over all classes has not seen the later classes: its forward transfer is about minus its
    accuracy at initialization, which is chance.

    Args:
        matrix: accuracies `(T + 1, T)`, as returned by `accuracy_matrix`.

    Returns:
        A difference of fractions in [-1, 1]; NaN for one split.

    Raises:
        ValueError: If the matrix does not have that shape.

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 4.

    Example:
        >>> forward_transfer(np.array([[0.5, 0.0], [1.0, 0.5], [0.25, 1.0]]))
        0.5
    """
    _after_splits(matrix)
    return _mean((matrix[:-1].diagonal() - matrix[0])[1:])


def forgetting(matrix: np.ndarray) -> float:
    r"""Measures the decrease of the accuracy on earlier splits from its maximum.

    .. math::
        F = \frac{1}{T-1} \sum_{j=1}^{T-1} \max_{1 \le i \le T-1} R_{ij} - R_{Tj}

    Args:
        matrix: accuracies `(T + 1, T)`, as returned by `accuracy_matrix`.

    Returns:
        A difference of fractions in [-1, 1]; NaN for one split.

    Raises:
        ValueError: If the matrix does not have that shape.

    Source: Chaudhry et al. 2018, arXiv 1801.10112, section 3.

    Example:
        >>> forgetting(np.array([[0.5, 0.0], [1.0, 0.0], [0.25, 1.0]]))
        0.75
    """
    learned = _after_splits(matrix)
    return _mean((learned[:-1].max(axis=0, initial=0) - learned[-1])[:-1])


def _after_splits(matrix: np.ndarray) -> np.ndarray:
    """Returns the square part of the matrix: after each split."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(f"a matrix of accuracies must have one row more than columns, got shape {matrix.shape}")
    return matrix[1:]


def _mean(differences: np.ndarray) -> float:
    return float(differences.mean()) if differences.size else float("nan")
