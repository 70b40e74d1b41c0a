"""Accuracy of each group of samples: the average hides a group on which a spurious correlation fails."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def group_accuracies(
    predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray, groups: Tensor | np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Measures the accuracy of each group and of the worst group (Sagawa et al. 2020, arXiv 1911.08731).

    Args:
        predictions: predicted classes `(samples,)`, integers.
        targets: classes `(samples,)`, integers.
        groups: index of the group of each sample `(samples,)`, integers.
        names: names of the groups; a group may have no sample.

    Returns:
        `accuracy` of all samples, `worst_group_accuracy`, and `accuracy/<name>` of each group that has samples, all
        fractions.

    Raises:
        ValueError: If there are no samples, shapes or dtypes do not match, a group has no name, or names repeat.

    Example:
        >>> group_accuracies(np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), ["red", "green"])
        {'accuracy': 0.75, 'worst_group_accuracy': 0.5, 'accuracy/red': 1.0, 'accuracy/green': 0.5}
    """
    predictions, targets, groups = (
        _checked(kind, values)
        for kind, values in (("predictions", predictions), ("targets", targets), ("groups", groups))
    )
    lengths = len(predictions), len(targets), len(groups)
    if len(set(lengths)) > 1:
        raise ValueError(f"predictions, targets and groups must have equal lengths, got {lengths}")
    if not 0 <= groups.min() <= groups.max() < len(names):
        raise ValueError(
            f"groups must be from 0 to {len(names) - 1}, indices of {len(names)} names, got {groups.min()} to "
            f"{groups.max()}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"names of groups must be unique, got {list(names)}")
    correct = predictions == targets
    accuracies = {f"accuracy/{names[group]}": float(correct[groups == group].mean()) for group in np.unique(groups)}
    return {"accuracy": float(correct.mean()), "worst_group_accuracy": min(accuracies.values())} | accuracies


def _checked(kind: str, values: Tensor | np.ndarray) -> np.ndarray:
    values = torch.as_tensor(values).detach().cpu().numpy()
    if values.ndim != 1 or len(values) == 0 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"{kind} must be integers of shape (samples >= 1,), got {values.dtype} of shape {values.shape}"
        )
    return values
