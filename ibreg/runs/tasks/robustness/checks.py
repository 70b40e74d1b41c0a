"""Checks of the configuration of a robustness run against its data, before anything is trained."""

from __future__ import annotations

import torch

from ibreg.evaluation.attacks.ensemble import check_ensemble
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.tasks.robustness.configuration import Attack, Corruption, RobustnessConfig
from ibreg.runs.tasks.robustness.measuring import corrupt_inputs, corruption_kinds, load_ood, radii, some_inputs


def check_robustness(cfg: RobustnessConfig, data: ClassificationData) -> None:
    """Checks the settings of attacks, corruptions and OOD data.

    Raises:
        ImportError: If the package of the ensemble is not installed.
        ValueError: If there is no radius, an attack or corruption does not fit the data, or the OOD data do not.
    """
    _check_attacks(cfg.attack, data)
    _check_corruptions(cfg.corruption, data)
    load_ood(cfg, data, some_inputs(data.test, 2, torch.device("cpu")))


def _check_attacks(options: Attack, data: ClassificationData) -> None:
    by_norm = radii(options)
    if not by_norm:
        raise ValueError(
            "attack.eps and attack.eps_l2 have no radius above 0: set one of them, such as attack.eps=[0.1]"
        )
    for eps in by_norm.values():
        if len({f"{radius:g}" for radius in eps}) < len(eps):  # as metrics name them
            raise ValueError(f"radii must differ in their first six digits, got {eps}")
    for norm in by_norm if options.ensemble else ():
        try:
            check_ensemble(
                options.ensemble, norm=norm, shape=data.input_shape, classes=data.classes, clamp=data.value_range
            )
        except ValueError as error:
            raise ValueError(f"attack.ensemble: {error}") from error


def _check_corruptions(options: Corruption, data: ClassificationData) -> None:
    if not options.rows:
        return
    for kind in corruption_kinds(options, data):
        for severity in options.severities:
            try:
                corrupt_inputs(torch.zeros(1, *data.input_shape), kind, severity, data)
            except ValueError as error:
                raise ValueError(f"corruption.kinds: {error}") from error
