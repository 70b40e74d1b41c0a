"""What a run leaves in writing: its summary as JSON, and the tables made from it.

``python -m ibreg.training.report README.md`` writes the tables of committed summaries into a text: what stands between
``<!-- table: NAME -->`` and ``<!-- end table -->`` is replaced by the table of ``recipes/results/NAME.json``.
"""

import argparse
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student_t

import ibreg
from ibreg.evaluation.plots import arm_label, sort_arms

Column = Sequence[Any]  # (key, heading, scale, digits), as in ("test/error", "test error (%)", 100, 2)

KEYS = ("recipe", "data", "seeds", "results", "paired", "selected", "wall_s", "versions", "hardware")
PACKAGES = ("torch", "torchvision", "accelerate", "hydra-core", "numpy", "scipy", "scikit-learn")
DEFAULT_COLUMNS = (
    ("test/error", "test error (%)", 100, 2),
    ("test/nll", "test NLL (nats)", 1, 4),
    ("test/ece", "test ECE (%)", 100, 2),
    ("test/rate", "rate (nats)", 1, 2),
)


def summarize(
    values: Mapping[str, Mapping[str, Sequence[float]]], *, control: str = "none"
) -> tuple[dict[str, Any], dict[str, Any]]:
    r"""Reduces the values of every seed to mean and spread, and to paired differences to the control.

    The interval of the difference d over n seeds is :math:`\bar d \pm t_{0.975, n-1} s_d / \sqrt n`.

    Args:
        values: Per arm and metric one value per seed, the seeds in the same order everywhere.
        control: The arm to compare with; without it there are no differences.

    Returns:
        ``{arm: {metric: {"mean", "std", "values"}}}``, the standard deviation that of a sample (None for one seed), and
        ``{arm: {metric: {"mean", "low", "high", "values"}}}``: the differences arm - control with their 95 % interval
        (None for one seed), for the metrics that both have.

    Raises:
        ValueError: If a metric has no value, or not as many as the control.

    Example:
        >>> results, paired = summarize({"none": {"error": [3.0, 5.0]}, "hsic": {"error": [2.0, 3.0]}})
        >>> results["none"]["error"]
        {'mean': 4.0, 'std': 1.4142135623730951, 'values': [3.0, 5.0]}
        >>> {key: np.round(value, 2).tolist() for key, value in paired["hsic"]["error"].items()}
        {'mean': -1.5, 'low': -7.85, 'high': 4.85, 'values': [-1.0, -2.0]}
    """
    results, paired = {}, {}
    for arm, metrics in values.items():
        results[arm] = {metric: _spread(f"{arm} {metric}", numbers) for metric, numbers in metrics.items()}
    for arm in values.keys() - {control} if control in values else ():
        paired[arm] = {}
        for metric in results[arm].keys() & results[control].keys():
            ours, theirs = results[arm][metric]["values"], results[control][metric]["values"]
            if len(ours) != len(theirs):
                raise ValueError(f"{metric}: {len(ours)} seeds of {arm!r}, but {len(theirs)} of {control!r}")
            paired[arm][metric] = _difference(np.subtract(ours, theirs))
    return results, paired
