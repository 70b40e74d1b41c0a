"""Checks of the configuration of continual learning, before anything is loaded or written."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from ibreg.runs.config.checks import check_common, is_fraction, is_number, require
from ibreg.runs.tasks.continual import learners
from ibreg.runs.trials import CONTROLS, SECOND, methods
from ibreg.surgery.unlearning import check_unlearning


def check_continual(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Checks keys, methods, settings, seeds and numbers; learners and bottlenecks are checked where they are built.

    Args:
        cfg: the composed configuration.
        recipe_yaml: the recipe's own YAML, whose keys are the valid ones.

    Raises:
        ValueError: If something is wrong; the message names the key and what is valid.
    """
    check_common(cfg, recipe_yaml)
    known = [name for name in learners.names() if name != "linear"]
    names = list(cfg.learners) if isinstance(cfg.learners, ListConfig) else None
    valid = names is not None and len(set(names)) == len(names) and not set(names) - set(known)
    require(valid, "learners", f"different ones of {', '.join(known)} (the control is linear)", cfg.learners)
    both = (set(cfg.learners) | set(CONTROLS)) & set(cfg.bottlenecks)
    require(not both, "bottlenecks", "none of the controls and learners", ", ".join(both))
    if unknown := set(map(str, cfg.learner)) - set(known):
        raise ValueError(f"learner has no {', '.join(sorted(unknown))}: it has {', '.join(known)}")
    if not methods(cfg):
        raise ValueError("there is nothing to train: name bottlenecks or learners, or use control=true")
    _check_settings(cfg)
    for key in ("label_smoothing", "momentum"):
        require(is_fraction(cfg[key]), key, "a number in [0, 1)", cfg[key])
    require(is_number(cfg.clip, least=0), "clip", "the largest norm of a gradient, 0 for no clipping", cfg.clip)
    classes = list(cfg.unlearning.classes) if isinstance(cfg.unlearning.classes, ListConfig) else [None]
    valid = len(set(classes)) == len(classes) and all(type(label) is int and label >= 0 for label in classes)
    require(valid, "unlearning.classes", "different indices of classes, such as [3]", cfg.unlearning.classes)
    try:
        check_unlearning(cfg.unlearning.by, cfg.unlearning.pairs, cfg.unlearning.fraction)
    except ValueError as error:
        raise ValueError(f"unlearning: {error}") from error
    require(cfg.cache and type(cfg.cache) is str, "cache", "the folder of the features", cfg.cache)


def _check_settings(cfg: DictConfig) -> None:
    """Checks that every method has equally many settings, so that all are tuned as hard."""
    valid = isinstance(cfg.settings, DictConfig)
    require(valid, "settings", "a section of a list for each method, such as none=[{lr: 0.1}]", cfg.settings)
    counts = {}
    for method in methods(cfg):
        if method in SECOND:
            continue
        given = cfg.settings.get(method)
        valid = isinstance(given, ListConfig) and given and all(isinstance(setting, DictConfig) for setting in given)
        require(valid, f"settings.{method}", "a list of settings with lr, such as [{lr:0.1}]", given)
        for setting in given:
            valid = is_number(setting.get("lr")) and setting.lr > 0
            require(valid, f"lr of every setting in settings.{method}", "a number greater than 0", setting)
        if len({str(sorted(setting.items())) for setting in given}) < len(given):
            raise ValueError(f"settings.{method}: two settings are the same")
        counts[method] = len(given)
    if cfg.tune and len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {method}" for method, count in counts.items())
        raise ValueError(f"all methods must have equally many settings, so that all are tuned as hard, got {listed}")
    if cfg.tune and max(counts.values()) > 1 and not cfg.data.get("validation"):
        raise ValueError("tune=true selects on validation data: give data.validation, or tune=false")
    count = len(cfg.seeds)
    require(cfg.tuning_seeds <= count, "tuning_seeds", f"at most the number of seeds, {count}", cfg.tuning_seeds)
