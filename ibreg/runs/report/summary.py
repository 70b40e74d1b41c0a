"""What a run leaves in numbers: mean, spread and paired differences over its seeds, as `summary.json`."""

import contextlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ibreg
from ibreg.evaluation.intervals import paired_interval
from ibreg.runs.folder import replace

Column = Sequence[Any]  # (key, heading, scale, digits), as in ("test/error", "test error (%)", 100, 2)

KEYS = ("recipe", "data", "seeds", "results", "paired", "selected", "wall_s", "versions", "hardware")
PACKAGES = ("torch", "torchvision", "accelerate", "hydra-core", "numpy", "scipy", "scikit-learn")


def summarize(
    values: Mapping[str, Mapping[str, Sequence[float]]], *, control: str = "none"
) -> tuple[dict[str, Any], dict[str, Any]]:
    r"""Reduces the values of every seed to mean and spread, and to paired differences to the control.

    The interval of the difference d over n seeds is :math:`\bar d \pm t_{0.975, n-1} s_d / \sqrt n`.
    A seed that diverged is not dropped: a value that is not finite makes its metric NaN.

    Args:
        values: Per method and metric one value per seed, the seeds in the same order everywhere.
        control: The method to compare with; without it there are no differences.

    Returns:
        `{method: {metric: {"mean", "std", "values"}}}`, the standard deviation that of a sample (None for one seed), and
        `{method: {metric: {"mean", "low", "high", "values"}}}`: the differences method - control with their 95 % interval
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
    rows = {
        method: {metric: _finite(numbers) for metric, numbers in metrics.items()} for method, metrics in values.items()
    }
    results = {method: {metric: _spread(row) for metric, row in metrics.items()} for method, metrics in rows.items()}
    if control not in rows:
        return results, {}
    paired = {
        method: {
            metric: _difference(metric, row, rows[control][metric])
            for metric, row in metrics.items()
            if metric in rows[control]
        }
        for method, metrics in rows.items()
        if method != control
    }
    return results, paired


def by_metric(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Turns the test metrics of every seed into the values of every metric, as `summarize` takes them.

    Example:
        >>> by_metric({"none": [{"error": 3.0}, {"error": 5.0}]})
        {'none': {'test/error': [3.0, 5.0]}}
    """
    return {
        method: {f"test/{metric}": [of_seed[metric] for of_seed in seeds] for metric in seeds[0]}
        for method, seeds in measured.items()
    }


def _finite(numbers: Sequence[float]) -> np.ndarray:
    """A seed that diverged counts as NaN, whether it ended at NaN or at infinity."""
    row = np.asarray(numbers, dtype=float)
    return np.where(np.isfinite(row), row, np.nan)


def _spread(row: np.ndarray) -> dict[str, Any]:
    if row.size == 0:
        raise ValueError("a metric has no value: leave it out of the method that does not have it")
    std = float(row.std(ddof=1)) if row.size > 1 else None
    return {"mean": float(row.mean()), "std": std, "values": row.tolist()}


def _difference(metric: str, row: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    if row.size != control.size:
        raise ValueError(f"{metric}: {row.size} values cannot be paired with {control.size} of the control")
    mean, *bounds = map(float, paired_interval(row, control))
    low, high = bounds if row.size > 1 else (None, None)
    return {"mean": mean, "low": low, "high": high, "values": (row - control).tolist()}


def write_summary(
    path: str | Path,
    *,
    recipe: str,
    data: str,
    seeds: Sequence[int],
    results: Mapping[str, Any],
    paired: Mapping[str, Any],
    selected: Mapping[str, Any],
    wall_s: float,
    resumed: bool = False,
    device: str | torch.device | None = None,
    command: str | None = None,
    headline: Sequence[Column] | None = None,
    checks: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes the `summary.json` of a run, all of it or nothing, and notes versions and hardware in it.

    NaN and infinity, which JSON does not have, become null.

    Args:
        path: Where the file goes.
        recipe: Name of the recipe.
        data: Name of the data.
        seeds: Seeds, in the order of the values.
        results: First part of what `summarize` returns.
        paired: Second part.
        selected: What was chosen on validation data.
        wall_s: Duration in seconds of the process that finished the run.
        resumed: Whether other processes had begun the run.
        device: Where it ran; by default the accelerator that torch finds, else the CPU.
        command: The command that repeats the run.
        headline: The columns of its table, (key, heading, scale, digits) each.
        checks: Outcomes of checks, where there are some.

    Example:
        >>> import tempfile
        >>> results, paired = summarize({"none": {"test/error": [0.02, 0.03]}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_summary(
        ...         f"{folder}/summary.json", recipe="classification", data="digits", seeds=[0, 1], results=results,
        ...         paired=paired, selected={}, wall_s=12.5,
        ...     )
        ...     read_summary(path)["results"]["none"]["test/error"]["mean"]
        0.025
    """
    summary = {
        "recipe": recipe,
        "data": data,
        "seeds": list(seeds),
        "results": results,
        "paired": paired,
        "selected": selected,
        "wall_s": wall_s,
        "resumed": resumed,
        "versions": _versions(),
        "hardware": _hardware(device),
    }
    if command is not None:
        summary["command"] = command
    if headline is not None:
        summary["headline"] = headline
    if checks:
        summary["checks"] = list(checks)
    path = Path(path)
    replace(path, (json.dumps(_without_nan(summary), indent=2, allow_nan=False) + "\n").encode())
    return path


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "ibreg": ibreg.__version__}
    for package in PACKAGES:
        # An evaluation without torchvision, say, leaves a summary too.
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _hardware(device: str | torch.device | None) -> dict[str, Any]:
    device = torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processes": processes, "device": name}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_summary(path: str | Path) -> dict[str, Any]:
    """Reads a `summary.json`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is cut short, no JSON, or misses a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no summary at {path}: the run has not finished, or its folder is another")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut short or no JSON: {error}") from error
    missing = [key for key in KEYS if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ValueError(f"{path} is no summary of a run: it misses {', '.join(missing)}")
    return summary
