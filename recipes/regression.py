"""Regression with and without a bottleneck: the same model, seeds, splits of the data and budget, one table.

    python recipes/regression.py                                          # diabetes, about a minute, offline
    python recipes/regression.py data=california_housing tune=true        # beta, weight decay selected on validation
    python recipes/regression.py experiment=cs_ib_housing                 # a paper's data and network
    accelerate launch --num_processes 2 recipes/regression.py ...         # the same on several GPUs
    torchrun --standalone --nproc_per_node 2 recipes/regression.py device=cpu ...          # and on CPU processes

`main` checks before anything is written; `run` reads top to bottom: train and select, test, attack, report. The
training loop is `ibreg/runs/training.py`; a training run depends on configuration and seed alone. With `resume=true` a
killed run resumes at its last epoch and ends bit-identically on a CPU. Every test split is used once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ibreg.plots.classification import learning_curves
from ibreg.plots.regression import attack_curves, information_plane, prediction_plot, residual_plot
from ibreg.runs.accelerator import build_accelerator
from ibreg.runs.comparison import Trained, rehearse, train_all, train_matched
from ibreg.runs.config.entry import entry_point
from ibreg.runs.config.recipe import check_steps
from ibreg.runs.data import regression as regression_data
from ibreg.runs.data.regression_rows import RegressionData
from ibreg.runs.data.split import load_splits
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.methods import build_model
from ibreg.runs.report.columns import print_columns, write_columns
from ibreg.runs.tasks.regression.measuring import (
    Regressed,
    RegressionConfig,
    build_task_loss,
    check_data,
    errors_under_attack,
    regress,
)
from ibreg.runs.training import Task
from ibreg.runs.trials import Trial

CURVES = ("train/loss", "train/penalty", "validation/rmse", "validation/r2", "validation/cs_qmi", "validation/rate")
PLANES = {"information_plane.png": "validation/cs_qmi", "rate_plane.png": "validation/rate"}


@entry_point(RegressionConfig)
def main(cfg: RegressionConfig) -> float | None:
    """Checks the data, opens the folder, runs what is not finished in it, and returns the validation RMSE."""
    accelerator = build_accelerator(cfg)
    data = load_splits(cfg.data, cfg.seeds, regression_data.load, split_by_seed=cfg.split_by_seed)
    if accelerator.is_main_process:
        print_columns(data[cfg.seeds[0]])
    for of_seed in data.values():
        check_data(of_seed)
        check_steps(cfg, rows=len(of_seed.train), processes=accelerator.num_processes)

    task = Task(
        data=data,
        model=lambda trial: build_model(
            cfg, trial, data[trial.seed].input_shape, classes=1, normalization=data[trial.seed].normalization
        ),
        loss=lambda trial: build_task_loss(cfg, trial.method),
        measure=lambda model, data: evaluate(cfg, model, data, accelerator, "validation").metrics(),
        quality=quality,
    )
    rehearse(cfg, task)
    return launch(cfg, accelerator, lambda folder: run(cfg, data, task, accelerator, folder))


def run(
    cfg: RegressionConfig, data: Mapping[int, RegressionData], task: Task, accelerator: Accelerator, folder: Path
) -> Outcome | None:
    """Trains and selects, tests, attacks and plots."""
    if accelerator.is_main_process:
        write_columns(data[cfg.seeds[0]], folder)
    trained = train_all(cfg, task, accelerator, folder)
    matched = train_matched(trained, cfg, task, accelerator, folder, error="rmse") if cfg.attack.eps else {}

    def model_of(trial: Trial) -> nn.Module:
        return trained.model(task, trial, accelerator.device)

    tested = {
        method: [evaluate(cfg, model_of(trial), data[trial.seed], accelerator, "test") for trial in trials]
        for method, trials in trained.selected.items()
    }
    if not accelerator.is_main_process:
        return None

    @cache  # several methods may share a matched control, and that may be the control itself
    def attack(trial: Trial) -> dict[str, float]:
        model, of_seed = model_of(trial), data[trial.seed]
        return errors_under_attack(model, of_seed, cfg.attack, accelerator.device, draws=cfg.prediction_draws)

    attacked = {method: list(map(attack, trials)) for method, trials in trained.selected.items()}
    beyond = {method: beyond_control(attacked[method], list(map(attack, trials))) for method, trials in matched.items()}
    draw(cfg, folder, data[cfg.seeds[0]], trained, tested, attacked)
    return Outcome(
        data=data[cfg.seeds[0]].name,
        tested={
            method: [
                regressed.metrics() | errors | differences
                for regressed, errors, differences in zip(
                    tested[method], attacked[method], beyond.get(method, [{}] * len(cfg.seeds)), strict=True
                )
            ]
            for method in tested
        },
        selected=trained.choices(cfg),
        headline=columns(cfg, data[cfg.seeds[0]]),
        validation=trained.validation("rmse"),
    )


def evaluate(
    cfg: RegressionConfig, model: nn.Module, data: RegressionData, accelerator: Accelerator, part: str
) -> Regressed:
    """Predicts the validation or the test split."""
    return regress(
        model,
        getattr(data, part),
        data,
        accelerator,
        module=cfg.inject_at if isinstance(cfg.inject_at, str) else cfg.inject_at[0],
        batch_size=cfg.batch_size,
        draws=cfg.prediction_draws,
    )


def beyond_control(
    attacked: Sequence[Mapping[str, float]], controls: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """Returns the errors under attack minus those of controls stopped at an equal clean error."""
    return [
        {f"{key}_beyond_control": own[key] - of_control[key] for key in own}
        for own, of_control in zip(attacked, controls, strict=True)
    ]


def quality(validation: Mapping[str, float]) -> tuple[float]:
    """Orders epochs and grid points by their error."""
    return (-validation["rmse"],)


def draw(
    cfg: RegressionConfig,
    folder: Path,
    data: RegressionData,
    trained: Trained,
    tested: Mapping[str, Sequence[Regressed]],
    attacked: Mapping[str, Sequence[Mapping[str, float]]],
) -> None:
    """Plots learning curves, predictions, residuals, the information planes and the errors under attack."""
    curves = trained.curves(CURVES)
    for row in curves:
        if row["method"] in cfg.task_losses:
            row |= {"train/loss": None, "train/penalty": None}  # on another scale than those of the other methods
    learning_curves(curves, folder / "learning_curves.png", units={"rmse": data.quantity})
    pooled = {
        method: (torch.cat([each.predictions for each in seeds]), torch.cat([each.targets for each in seeds]))
        for method, seeds in tested.items()
    }
    prediction_plot(pooled, folder / "predictions.png", quantity=data.quantity)
    residual_plot(pooled, folder / "residuals.png", quantity=data.quantity)
    ways = trained.curves(("validation/information", *PLANES.values()))
    for name, compression in PLANES.items():
        if any(row[compression] is not None and row["validation/information"] is not None for row in ways):
            information_plane(ways, folder / name, compression=compression)
    points = []
    for method, seeds in attacked.items():
        for seed, errors in zip(cfg.seeds, seeds, strict=True):
            for key, rmse in errors.items():
                _, attack, eps = key.split("_")
                points.append(
                    {"method": method, "seed": seed, "attack": attack.upper(), "eps": float(eps), "rmse": rmse}
                )
    if cfg.attack.eps:
        unit = "standard deviations of an input column" if data.normalization is None else "unit of the pixels"
        attack_curves(points, folder / "attacks.png", unit=data.quantity, eps_unit=unit)


def columns(cfg: RegressionConfig, data: RegressionData) -> list[tuple[str, str, int, int]]:
    """Returns the columns of the table, errors with four digits relative to the standard deviation of the target."""
    digits = max(3 - math.floor(math.log10(data.target_std)), 0)
    shown = [
        ("test/rmse", f"test RMSE, {data.quantity}", 1, digits),
        ("test/mae", "MAE", 1, digits),
        ("test/r2", "R²", 1, 4),
    ]
    if cfg.attack.eps:
        eps = sorted(cfg.attack.eps)[len(cfg.attack.eps) // 2]
        shown.append((f"test/rmse_pgd_{eps:g}", f"RMSE under PGD, eps {eps:g}", 1, digits))
        if cfg.control:
            heading = "difference to a control of equal validation error"
            shown.append((f"test/rmse_pgd_{eps:g}_beyond_control", heading, 1, digits))
    return shown


if __name__ == "__main__":
    main()
