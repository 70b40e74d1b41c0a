"""Checks of the configuration of a robustness run, before anything is trained."""

from __future__ import annotations

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from ibreg.evaluation.attacks.ensemble import check_ensemble
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.tasks.robustness.measuring import corrupt_inputs, corruption_kinds, load_ood, radii, some_inputs


def check_robustness(cfg: DictConfig, data: ClassificationData) -> None:
    """Checks the settings of attacks, corruptions, OOD data and sanity checks.

    Raises:
        ImportError: If the package of the ensemble is not installed.
        ValueError: If there is no radius, an attack or corruption is unknown or does not fit the data, a list repeats
            an entry, the OOD data do not fit, or the sanity checks have no second model.
    """
    for name in ("attack.ensemble", "corruption.kinds", "corruption.severities", "sanity.steps"):
        _check_list(name, OmegaConf.select(cfg, name))
    _check_attacks(cfg.attack, data)
    _check_corruptions(cfg.corruption, data)
    if not cfg.sanity.steps or not all(type(steps) is int and steps > 0 for steps in cfg.sanity.steps):
        raise ValueError(f"sanity.steps must be integers of at least 1, such as [1,10,40], got {cfg.sanity.steps}")
    if not cfg.control and len(cfg.seeds) * len(cfg.bottlenecks) < 2:
        raise ValueError("the sanity checks need a second model: control=true, another seed or another bottleneck")
    load_ood(cfg, data, some_inputs(data.test, 2, torch.device("cpu")))


def _check_list(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, ListConfig):
        raise ValueError(f"{name} must be a list, {name}=[{value}], got {value!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"{name} must not repeat an entry, got {value}")


def _check_attacks(options: DictConfig, data: ClassificationData) -> None:
    by_norm = radii(options)
    if not by_norm:
        raise ValueError(
            "attack.eps and attack.eps_l2 have no radius above 0: set one of them, such as attack.eps=[0.1]"
        )
    for eps in by_norm.values():
        if len({f"{radius:g}" for radius in eps}) < len(eps):  # as metrics name them
            raise ValueError(f"radii must differ in their first six digits, got {eps}")
    length = options.step_size
    if length is not None and not (type(length) in (int, float) and 0 < length < float("inf")):
        raise ValueError(f"attack.step_size must be a number greater than 0, or null, got {length}")
    for norm in by_norm if options.ensemble else ():
        try:
            check_ensemble(
                options.ensemble, norm=norm, shape=data.input_shape, classes=data.classes, clamp=data.value_range
            )
        except ValueError as error:
            raise ValueError(f"attack.ensemble: {error}") from error


def _check_corruptions(options: DictConfig, data: ClassificationData) -> None:
    if not options.rows:
        return
    if not options.severities or (options.kinds is not None and not options.kinds):
        raise ValueError("corruption.kinds and corruption.severities must not be empty; for none set corruption.rows=0")
    for kind in corruption_kinds(options, data):
        for severity in options.severities:
            corrupt_inputs(torch.zeros(1, *data.input_shape), kind, severity, data)
