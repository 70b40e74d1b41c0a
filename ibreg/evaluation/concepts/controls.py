"""Measures beside those of a control, which has no effect to measure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Subject = TypeVar("Subject")


def with_control(
    measure: Callable[[Subject], dict[str, float]], subject: Subject, control: Subject
) -> dict[str, float]:
    """Return the measures of a subject, and those of its control as `<name>_control`.

    Example:
        >>> with_control(lambda values: {"mean": sum(values) / len(values)}, [1, 2], [0, 0])
        {'mean': 1.5, 'mean_control': 0.0}
    """
    return measure(subject) | {f"{name}_control": value for name, value in measure(control).items()}


def shuffled(target: Tensor, seed: int) -> Tensor:
    """Return the entries of a tensor in a random order."""
    return target[torch.from_numpy(np.random.default_rng(seed).permutation(len(target))).to(target.device)]
