"""What can be wrong with the configuration of continual learning, found before anything is loaded or written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from ibreg.runs.config.checks import check_common
from ibreg.runs.tasks.continual import learners
from ibreg.runs.trials import CONTROLS, SECOND, methods
from ibreg.surgery.unlearning import check_unlearning


def check_continual(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Checks keys, methods, settings, seeds and numbers; learners and bottlenecks are checked where they are built.

    Args:
        cfg: the composed configuration.
        recipe_yaml: the recipe's own YAML, whose keys are the valid ones.

    Raises:
        ValueError: something is wrong; the message names the key and what is valid.
    """
    check_common(cfg, recipe_yaml)
    known = [name for name in learners.names() if name != "linear"]
    names = list(cfg.learners) if isinstance(cfg.learners, ListConfig) else None
    if names is None or len(set(names)) < len(names) or set(names) - set(known):
        raise ValueError(f"learners are some of {', '.join(known)}, once each (control is linear), got {cfg.learners}")
    if both := (set(names) | set(CONTROLS)) & set(cfg.bottlenecks):
        raise ValueError(f"bottlenecks are named once each, and not as controls or learners are, got {', '.join(both)}")
    if unknown := set(map(str, cfg.learner)) - set(known):
        raise ValueError(f"learner has no {', '.join(sorted(unknown))}: it has {', '.join(known)}")
    if not methods(cfg):
        raise ValueError("there is nothing to train: name bottlenecks or learners, or leave control=true")
    _check_settings(cfg)
    if not (_is_number(cfg.label_smoothing) and 0 <= cfg.label_smoothing < 1):
        raise ValueError(f"label_smoothing is a number in [0, 1), got {cfg.label_smoothing}")
    if not (_is_number(cfg.momentum) and 0 <= cfg.momentum < 1):
        raise ValueError(f"momentum is a number in [0, 1), got {cfg.momentum}")
    if not (_is_number(cfg.clip) and cfg.clip >= 0):
        raise ValueError(f"clip is the longest gradient, at least 0 (any), got {cfg.clip}")
    classes = list(cfg.unlearning.classes) if isinstance(cfg.unlearning.classes, ListConfig) else [None]
    if len(set(classes)) < len(classes) or not all(type(label) is int and label >= 0 for label in classes):
        raise ValueError(f"unlearning.classes are numbers of classes, such as [3], got {cfg.unlearning.classes}")
    try:
        check_unlearning(cfg.unlearning.by, cfg.unlearning.pairs, cfg.unlearning.fraction)
    except ValueError as error:
        raise ValueError(f"unlearning: {error}") from error
    if not (cfg.cache and type(cfg.cache) is str):
        raise ValueError(f"cache is the folder of the features, got {cfg.cache}")


def _check_settings(cfg: DictConfig) -> None:
    """Every method has equally many settings, so that all are tuned as hard."""
    if not isinstance(cfg.settings, DictConfig):
        raise ValueError(f"settings has those of each method, such as none=[{{lr: 0.1}}], got {cfg.settings}")
    counts = {}
    for method in methods(cfg):
        if method in SECOND:
            continue
        given = cfg.settings.get(method)
        if not isinstance(given, ListConfig) or not given or not all(isinstance(point, DictConfig) for point in given):
            raise ValueError(
                f"settings.{method} is a list of settings with lr, such as settings.{method}=[{{lr:0.1}}], got {given}"
            )
        for point in given:
            if not (_is_number(point.get("lr")) and point.lr > 0):
                raise ValueError(f"settings.{method}: every setting has an lr greater than 0, got {point}")
        if len({str(sorted(point.items())) for point in given}) < len(given):
            raise ValueError(f"settings.{method}: two settings are the same")
        counts[method] = len(given)
    if cfg.tune and len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {method}" for method, count in counts.items())
        raise ValueError(f"all methods are tuned as hard: give equally many settings, not {listed}")
    if cfg.tune and max(counts.values()) > 1 and not cfg.data.get("validation"):
        raise ValueError("tune=true chooses on validation data: give data.validation, or tune=false")
    if cfg.tuning_seeds > len(cfg.seeds):
        raise ValueError(f"tuning_seeds={cfg.tuning_seeds} are some of the {len(cfg.seeds)} seeds")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
