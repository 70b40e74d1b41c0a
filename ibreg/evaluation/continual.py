"""Metrics of class-incremental learning: what is known of all classes, passed on, and forgotten, split after split.

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
    r"""Measures the accuracy on the classes of every split, at every stage of learning.

    .. math::
        R_{ij} = \frac{1}{n_j} \sum_{k: y_k \in S_j} [\hat y^{(i)}_k = y_k]

    Predictions are over all classes: a learner does not know from which split a sample comes.

    Args:
        predictions: Predicted classes, integers of shape (stages, samples): before the first split, and after each.
        targets: Classes, integers of shape (samples,).
        splits: The classes of each split, in the order in which they are learnt.

    Returns:
        Accuracies of shape (stages, splits), fractions, float64.

    Raises:
        ValueError: If shapes do not fit, or a split has no sample.

    Example:
        >>> stages = [[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 2, 3]]
        >>> accuracy_matrix(torch.tensor(stages), torch.tensor([0, 1, 2, 3]), [(0, 1), (2, 3)])
        array([[0.5, 0. ],
               [1. , 0. ],
               [0. , 1. ]])
    """
    predictions, targets = (torch.as_tensor(part).detach().cpu().numpy() for part in (predictions, targets))
    if predictions.ndim != 2 or targets.ndim != 1 or predictions.shape[1] != len(targets):
        raise ValueError(
            f"predictions need shape (stages, samples) and targets (samples,), got {predictions.shape} and "
            f"{targets.shape}"
        )
    if len(predictions) != len(splits) + 1:
        raise ValueError(
            f"{len(splits)} splits have {len(splits) + 1} stages, one of them before the first split, got "
            f"{len(predictions)} rows of predictions"
        )
    of_split = [np.isin(targets, np.asarray(classes)) for classes in splits]
    if empty := [list(classes) for classes, rows in zip(splits, of_split, strict=True) if not rows.any()]:
        raise ValueError(f"no sample is of the classes {empty}")
    right = predictions == targets
    return np.stack([right[:, rows].mean(axis=1) for rows in of_split], axis=1)


def overall_accuracy(
    predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray, splits: Sequence[Sequence[int]]
) -> np.ndarray:
    r"""Measures the accuracy over the samples of all splits, those still to come included, at every stage.

    .. math::
        A_i = \sum_j \frac{n_j}{n} R_{ij}

    Args:
        predictions: As in `accuracy_matrix`.
        targets: As there.
        splits: As there.

    Returns:
        Accuracies of shape (stages,), fractions, float64; 0 to 1, at stage i at most the share of the classes seen.

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
    r"""Measures what learning later splits did to earlier ones: negative where they were forgotten.

    .. math::
        \mathrm{BWT} = \frac{1}{T-1} \sum_{j=1}^{T-1} R_{Tj} - R_{jj}

    Args:
        matrix: Accuracies of shape (T + 1, T), as `accuracy_matrix` returns them.

    Returns:
        A difference of fractions, in [-1, 1]; NaN where there is one split.

    Raises:
        ValueError: If the matrix has another shape.

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 3.

    Example:
        >>> backward_transfer(np.array([[0.5, 0.0], [1.0, 0.0], [0.25, 1.0]]))
        -0.75
    """
    learnt = _after_splits(matrix)
    return _mean((learnt[-1] - learnt.diagonal())[:-1])


def forward_transfer(matrix: np.ndarray) -> float:
    r"""Measures what earlier splits did for a later one, before it was learnt.

    .. math::
        \mathrm{FWT} = \frac{1}{T-1} \sum_{j=2}^{T} R_{j-1,j} - R_{0j}

    A learner of one head over all classes has not seen the later classes: its forward transfer is about minus the
    accuracy of its start, which is luck.

    Args:
        matrix: Accuracies of shape (T + 1, T), as `accuracy_matrix` returns them.

    Returns:
        A difference of fractions, in [-1, 1]; NaN where there is one split.

    Raises:
        ValueError: If the matrix has another shape.

    Source: Lopez-Paz and Ranzato 2017, arXiv 1706.08840, equation 4.

    Example:
        >>> forward_transfer(np.array([[0.5, 0.0], [1.0, 0.5], [0.25, 1.0]]))
        0.5
    """
    _after_splits(matrix)
    return _mean((matrix[:-1].diagonal() - matrix[0])[1:])


def forgetting(matrix: np.ndarray) -> float:
    r"""Measures how far the accuracy on earlier splits fell from its best.

    .. math::
        F = \frac{1}{T-1} \sum_{j=1}^{T-1} \max_{1 \le i \le T-1} R_{ij} - R_{Tj}

    Args:
        matrix: Accuracies of shape (T + 1, T), as `accuracy_matrix` returns them.

    Returns:
        A difference of fractions, in [-1, 1]; NaN where there is one split.

    Raises:
        ValueError: If the matrix has another shape.

    Source: Chaudhry et al. 2018, arXiv 1801.10112, section 3.

    Example:
        >>> forgetting(np.array([[0.5, 0.0], [1.0, 0.0], [0.25, 1.0]]))
        0.75
    """
    learnt = _after_splits(matrix)
    return _mean((learnt[:-1].max(axis=0, initial=0) - learnt[-1])[:-1])


def _after_splits(matrix: np.ndarray) -> np.ndarray:
    """The square part of the matrix: after each split."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(f"a matrix of accuracies has one row more than columns, got shape {matrix.shape}")
    return matrix[1:]


def _mean(differences: np.ndarray) -> float:
    return float(differences.mean()) if differences.size else float("nan")
