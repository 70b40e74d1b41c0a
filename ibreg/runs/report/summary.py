"""The summary of a run, `summary.json`: mean, standard deviation and paired differences over its seeds."""

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

from ibreg.evaluation.intervals import paired_interval
from ibreg.runs.folder import replace
from ibreg.version import __version__

Column = Sequence[Any]  # (key, heading, scale, digits), as in ("test/error", "test error (%)", 100, 2)

KEYS = ("recipe", "data", "seeds", "results", "paired", "selected", "wall_s", "versions", "hardware")
PACKAGES = ("torch", "torchvision", "accelerate", "hydra-core", "numpy", "scipy", "scikit-learn")


def summarize(
    values: Mapping[str, Mapping[str, Sequence[float]]], *, control: str = "none"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Computes mean and standard deviation over seeds, and paired differences to the control.

    The interval of a difference is that of `ibreg.evaluation.intervals.paired_interval`. A seed that diverged is not
    dropped: a value that is not finite makes its metric NaN.

    Args:
        values: per method and metric one value per seed, with the same order of seeds everywhere.
        control: method to compare with; without it there are no differences.

    Returns:
        `{method: {metric: {"mean", "std", "values"}}}` with the sample standard deviation (None for one seed), and
        `{method: {metric: {"mean", "low", "high", "values"}}}`: the differences method - control with their 95 % CI
        (None for one seed, and where the differences of all seeds are equal), for the metrics that both have.

    Raises:
        ValueError: If a metric has no value, or their number differs from that of the control.

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
    """Collects the test metrics of each seed by metric, as `summarize` takes them.

    Example:
        >>> by_metric({"none": [{"error": 3.0}, {"error": 5.0}]})
        {'none': {'test/error': [3.0, 5.0]}}
    """
    return {
        method: {f"test/{metric}": [metrics[metric] for metrics in seeds] for metric in seeds[0]}
        for method, seeds in measured.items()
    }


def _finite(numbers: Sequence[float]) -> np.ndarray:
    """Replaces infinities by NaN: a seed diverged, whichever of them it ended at."""
    row = np.asarray(numbers, dtype=float)
    return np.where(np.isfinite(row), row, np.nan)


def _spread(row: np.ndarray) -> dict[str, Any]:
    if row.size == 0:
        raise ValueError("a metric must have a value per seed, got none: leave it out of methods that do not have it")
    std = float(row.std(ddof=1)) if row.size > 1 else None
    return {"mean": float(row.mean()), "std": std, "values": row.tolist()}


def _difference(metric: str, row: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    if row.size != control.size:
        raise ValueError(f"{metric} must have as many values as the control ({control.size}), got {row.size}")
    mean, *bounds = map(float, paired_interval(row, control))
    low, high = (None if math.isnan(bound) else bound for bound in bounds)
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
    validation: Mapping[str, Sequence[float]] | None = None,
    checks: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes the `summary.json` of a run atomically, with versions and hardware.

    NaN and infinity, which JSON does not have, become null.

    Args:
        path: path of the file.
        recipe: name of the recipe.
        data: name of the data set.
        seeds: seeds, in the order of the values.
        results: first part of the result of `summarize`.
        paired: second part.
        selected: options that were selected on validation data.
        wall_s: duration in seconds of the process that finished the run.
        resumed: whether other processes had started the run.
        device: device of the run; by default the current accelerator, or the CPU if there is none.
        command: command that repeats the run.
        headline: columns of its table, each (key, heading, scale, digits).
        validation: the metric of the first column on validation data, of every seed, for each method.
        checks: outcomes of sanity checks, if there are any.

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
    if validation is not None:
        summary["validation"] = validation
    if checks:
        summary["checks"] = list(checks)
    path = Path(path)
    replace(path, (json.dumps(_without_nan(summary), indent=2, allow_nan=False) + "\n").encode())
    return path


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "ibreg": __version__}
    for package in PACKAGES:
        # Not every evaluation has all of them installed.
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
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, not JSON, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no summary at {path}: the run has not finished, or this is not its folder")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or not JSON: {error}") from error
    missing = [key for key in KEYS if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ValueError(f"{path} is not the summary of a run: it lacks {', '.join(missing)}")
    return summary
