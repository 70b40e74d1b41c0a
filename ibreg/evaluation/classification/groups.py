"""Accuracy of each group of samples: an average hides the one that a spurious correlation fails."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def group_accuracies(
    predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray, groups: Tensor | np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Measures the accuracy of each group and the least of them (Sagawa et al. 2020, arXiv 1911.08731).

    Args:
        predictions: Predicted classes, integers of shape (samples,).
        targets: Classes, integers of shape (samples,).
        groups: Index of the group of each sample, integers of shape (samples,).
        names: One name per group; a group may have no sample.

    Returns:
        ``accuracy`` of all samples, ``worst_group_accuracy``, and ``accuracy/<name>`` of each group that has samples,
        all fractions.

    Raises:
        ValueError: If there are no samples, shapes or dtypes do not fit, a group has no name, or two have the same.

    Example:
        >>> group_accuracies(np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), ["red", "green"])
        {'accuracy': 0.75, 'worst_group_accuracy': 0.5, 'accuracy/red': 1.0, 'accuracy/green': 0.5}
    """
    predictions, targets, groups = (
        _checked(kind, values)
        for kind, values in (("predictions", predictions), ("targets", targets), ("groups", groups))
    )
    if not len(predictions) == len(targets) == len(groups):
        raise ValueError(f"{len(predictions)} predictions, {len(targets)} targets and {len(groups)} groups do not fit")
    if not 0 <= groups.min() <= groups.max() < len(names):
        raise ValueError(f"groups go from {groups.min()} to {groups.max()}, there are {len(names)} names")
    if len(set(names)) < len(names):
        raise ValueError(f"names of groups stand twice: {list(names)}")
    right = predictions == targets
    each = {f"accuracy/{names[group]}": float(right[groups == group].mean()) for group in np.unique(groups)}
    return {"accuracy": float(right.mean()), "worst_group_accuracy": min(each.values())} | each


def _checked(kind: str, values: Tensor | np.ndarray) -> np.ndarray:
    values = torch.as_tensor(values).detach().cpu().numpy()
    if values.ndim != 1 or len(values) == 0 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{kind} are integers of shape (samples >= 1,), got {values.dtype} of shape {values.shape}")
    return values
