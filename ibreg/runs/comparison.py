"""The comparison of a run: all methods are trained, their grid points selected on validation data, the results kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ibreg.optimization import training_mode
from ibreg.regularized import Penalized
from ibreg.runs.config.recipe import RunConfig
from ibreg.runs.controls import take_control
from ibreg.runs.folder import METRICS, write_rows
from ibreg.runs.methods import beta_used, build_schedule
from ibreg.runs.progress import EpochProgress
from ibreg.runs.training import Run, Task, train
from ibreg.runs.trials import (
    ComparisonConfig,
    Trial,
    as_good_as,
    epochs_in_all,
    epochs_of,
    methods,
    plan,
    points_of,
    select,
)


@dataclass(frozen=True)
class Trained:
    """The training runs of a comparison.

    Attributes:
        selected: the trials that are compared, per method in the order of the seeds.
        sweep: those of the information curve.
        states: the last state of every trial, see `training.Run`.
    """

    selected: dict[str, list[Trial]]
    sweep: list[Trial]
    states: dict[Trial, dict[str, Any]]

    def model(self, task: Task, trial: Trial, device: torch.device) -> nn.Module:
        """Returns the model of a trial with its selected weights."""
        model = task.model(trial).to(device)
        model.load_state_dict(self.states[trial]["weights"])
        return model

    def rows(self) -> list[dict[str, Any]]:
        """Returns the measured epochs of every trial."""
        return [row for state in self.states.values() for row in state["rows"]]

    def curves(self, quantities: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the epochs of the selected trials, with these quantities alone, for the plots."""
        shown = ("method", "seed", "epoch", *quantities)
        rows = [row for trials in self.selected.values() for trial in trials for row in self.states[trial]["rows"]]
        return [{key: row.get(key) for key in shown} for row in rows]

    def validation(self, metric: str) -> dict[str, list[float]]:
        """Returns a validation metric of the selected trials, for each method in the order of the seeds."""
        return {
            method: [self.states[trial]["validation"][metric] for trial in trials]
            for method, trials in self.selected.items()
            if all(metric in (self.states[trial]["validation"] or ()) for trial in trials)
        }

    def choices(self, cfg: ComparisonConfig) -> dict[str, Any]:
        """Returns what was selected on validation data, for the summary."""
        return {
            method: {
                "beta": beta_used(cfg, trials, self.states),
                "weight_decay": trials[0].weight_decay,
                "epochs": [self.states[trial]["best"] for trial in trials],
            }
            | dict([trials[0].setting] if trials[0].setting is not None else [])
            for method, trials in self.selected.items()
        }


def rehearse(cfg: RunConfig, task: Task) -> None:
    """Runs one batch through every method at every grid point, so that errors occur before a folder is made."""
    for method in methods(cfg):
        for point in points_of(cfg, method):
            trial = Trial(method, cfg.seeds[0], *point)
            model = task.model(trial)
            schedule = build_schedule(cfg, method, model)
            rows = task.stages(trial)[0]
            # A whole batch: estimators over pairs of samples need a minimum.
            batch: Sequence[torch.Tensor] = rows.__getitems__(list(range(min(cfg.batch_size, len(rows)))))
            if task.mix is not None:
                batch = task.mix(*batch)
            with torch.no_grad():
                _, output = task.batch_loss(training_mode(model), Penalized(task.loss(trial)), *batch)
            if schedule is not None:
                schedule.step(output)


def train_all(cfg: RunConfig, task: Task, accelerator: Accelerator, folder: Path) -> Trained:
    """Trains the comparison, selects, and trains the remaining trials of the selected points and the sweep."""
    comparison, sweep = plan(cfg)
    epochs = epochs_in_all(cfg, lambda cfg, trial: epochs_of(cfg, trial) * len(task.stages(trial)))
    with EpochProgress(epochs, shown=accelerator.is_main_process) as progress:
        run = Run(cfg, task, accelerator, folder, progress)
        _train_missing(comparison, run)
        selected = select(cfg, comparison, lambda trial: task.quality(run.states[trial]["validation"]))
        _train_missing(chain(*selected.values()), run)
        curve = [trial for trial in sweep if _trained_or_left_out(trial, run)]
    trained = Trained(selected, curve, run.states)
    if accelerator.is_main_process:
        write_rows(folder / METRICS, trained.rows())
    return trained


def train_matched(
    trained: Trained, cfg: RunConfig, task: Task, accelerator: Accelerator, folder: Path, *, error: str
) -> dict[str, list[Trial]]:
    """Trains controls that end at the epoch where they reach the validation error of a method, see `as_good_as`.

    Args:
        trained: the selected trials; the states of these controls are added.
        cfg: the recipe's configuration.
        task: what the recipe trains.
        accelerator: trains on one process or several.
        folder: of the run.
        error: the validation metric, smaller is better.

    Returns:
        for each method its controls, in the order of the seeds; nothing without a control or validation data.
    """
    if not cfg.control or any(trained.states[trial]["validation"] is None for trial in trained.selected["none"]):
        return {}

    def curve(trial: Trial) -> list[float]:
        state = trained.states[trial]
        return [row[f"validation/{error}"] for row in state["rows"][: state["best"]]]

    control = trained.selected["none"]
    matched = {
        method: as_good_as(control, trials, curve) for method, trials in trained.selected.items() if method != "none"
    }
    stopped = set(chain(*matched.values())) - trained.states.keys()
    with EpochProgress(sum(epochs_of(cfg, trial) for trial in stopped), shown=accelerator.is_main_process) as progress:
        _train_missing(chain(*matched.values()), Run(cfg, task, accelerator, folder, progress, trained.states))
    return matched


def _trained_or_left_out(trial: Trial, run: Run) -> bool:
    """Trains a point of the information curve; one that diverges, as at a large beta, is left out."""
    try:
        _train_missing([trial], run)
    except FloatingPointError as error:
        run.states.pop(trial, None)
        run.progress.advance(f"{error}; this point of the information curve is left out")
        return False
    return True


def _train_missing(trials: Iterable[Trial], run: Run) -> None:
    """Trains the trials that have not been trained yet; a sweep trains its controls once."""
    for trial in trials:
        if trial not in run.states:
            take_control(trial, run)
            train(trial, run)
