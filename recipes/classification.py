"""Classification with and without a bottleneck: the same model, seeds and budget, one table.

    python recipes/classification.py                                      # digits, about a minute, offline
    python recipes/classification.py data=mnist model=lenet tune=true     # beta and weight decay chosen on validation
    python recipes/classification.py experiment=vib_mnist                 # a paper's settings
    accelerate launch --num_processes 2 recipes/classification.py ...     # the same on several GPUs
    torchrun --standalone --nproc_per_node 2 recipes/classification.py device=cpu ...      # and on CPU processes

`main` checks before anything is written; `run` reads top to bottom: plan, train, select, test, report. Trainings are
functions of configuration and seed: with `resume=true` a killed run goes on at its last epoch and ends bit-identically
on a CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ibreg
from ibreg.evaluation.metrics import label_entropy
from ibreg.evaluation.plots import information_curve, learning_curves, reliability_diagram
from ibreg.training import data as datasets
from ibreg.training import models
from ibreg.training.arms import beta_used, build_arm, build_bottleneck, build_schedule
from ibreg.training.checkpoint import load_checkpoint, next_state, save_checkpoint
from ibreg.training.checks import check_batch_size, check_configuration
from ibreg.training.classification import Classified, classify
from ibreg.training.configuration import command_of, register_with_hydra
from ibreg.training.folder import CHECKPOINTS, METRICS, SUMMARY, open_folder, write_rows
from ibreg.training.loop import EpochSampler, Lines, build_accelerator, described, quantities, seed_all
from ibreg.training.report import print_run
from ibreg.training.summary import by_metric, summarize, write_summary
from ibreg.training.trials import Trial, arms, epochs_in_all, epochs_of, plan, select

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CURVES = ("train/loss", "train/penalty", "train/rate", "validation/nll", "validation/accuracy", "validation/rate")

register_with_hydra()


@hydra.main(config_path=str(CONFIGS), config_name="classification", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Checks all that can be checked, opens the folder and runs what is not finished in it."""
    check_configuration(cfg, CONFIGS / "classification.yaml")
    accelerator = build_accelerator(cfg)
    data = datasets.load(**cfg.data)
    check_batch_size(cfg, rows=len(data.train), processes=accelerator.num_processes)
    for arm in arms(cfg):
        build_schedule(cfg, arm, build_model(cfg, data, Trial(arm, seed=0, weight_decay=0.0)))
    with open_folder(cfg, accelerator) as folder:
        finished = (folder / SUMMARY).is_file()
        if not finished:
            run(cfg, data, accelerator, folder)
        if accelerator.is_main_process:
            print_run(folder, "finished before" if finished else "finished")
    # What still holds a model wrapped for several processes would outlive the process group.
    accelerator.free_memory()
    accelerator.end_training()


def run(cfg: DictConfig, data: datasets.ClassificationData, accelerator: Accelerator, folder: Path) -> None:
    """Plans, trains, selects, tests and reports."""
    started = time.monotonic()
    resumed = any((folder / CHECKPOINTS).iterdir())
    comparison, sweep = plan(cfg)
    states: dict[Trial, dict[str, Any]] = {}
    with Lines(epochs_in_all(cfg), shown=accelerator.is_main_process) as lines:
        for trial in comparison:
            states[trial] = train(trial, cfg, data, accelerator, folder, lines, states)
        selected = select(cfg, comparison, lambda trial: quality(states[trial]["validation"]))
        for trial in (*selected.get("null", ()), *sweep):
            states[trial] = train(trial, cfg, data, accelerator, folder, lines, states)

    def evaluated(trial: Trial, part: datasets.Rows, draws: int) -> Classified:
        model = build_model(cfg, data, trial).to(accelerator.device)
        model.load_state_dict(states[trial]["weights"])
        return classify(model, part, accelerator, draws=draws)

    # Nothing is selected by the curve: without validation data, the test part serves for it.
    held_out = data.test if data.validation is None else data.validation
    curve = {trial: evaluated(trial, held_out, draws=max(cfg.prediction_draws, 1)) for trial in sweep}
    tested = {
        arm: [evaluated(trial, data.test, draws=cfg.prediction_draws) for trial in trials]
        for arm, trials in selected.items()
    }
    if not accelerator.is_main_process:
        return
    write_rows(folder / METRICS, [row for state in states.values() for row in state["rows"]])
    draw(cfg, folder, selected, states, tested, curve)
    results, paired = summarize(by_metric({arm: [each.metrics() for each in seeds] for arm, seeds in tested.items()}))
    write_summary(
        folder / SUMMARY,
        recipe="classification",
        data=data.name,
        seeds=list(cfg.seeds),
        results=results,
        paired=paired,
        selected={
            arm: {
                "beta": beta_used(cfg, trials, states),
                "weight_decay": trials[0].weight_decay,
                "epochs": [states[trial]["best"] for trial in trials],
            }
            for arm, trials in selected.items()
        },
        wall_s=time.monotonic() - started,
        resumed=resumed,
        device=accelerator.device,
        command=command_of("classification"),
        headline=columns(cfg),
    )


def build_model(cfg: DictConfig, data: datasets.ClassificationData, trial: Trial) -> nn.Module:
    """Builds the model of an arm: the control as it is, the others with their bottleneck in it."""
    options = {key: value for key, value in cfg.model.items() if key != "inject_at"}

    def network(code_features: int | None) -> nn.Module:
        return models.build(**options, input_shape=data.input_shape, classes=data.classes, code_features=code_features)

    return build_arm(cfg, trial, network, example=torch.zeros(1, *data.input_shape))


def train(
    trial: Trial,
    cfg: DictConfig,
    data: datasets.ClassificationData,
    accelerator: Accelerator,
    folder: Path,
    lines: Lines,
    earlier: Mapping[Trial, dict[str, Any]],
) -> dict[str, Any]:
    """Trains one model and returns its last state: selected weights, epoch and validation metrics, all rows."""
    path, epochs = folder / CHECKPOINTS / f"{trial.name}.pt", epochs_of(cfg, trial)
    state = load_checkpoint(path)
    if state is not None and state["epoch"] == epochs:
        lines.advance(f"{trial.name}: done before", epochs)
        return state

    accelerator.free_memory()  # of the training before
    seed_all(*trial.key)
    model = build_model(cfg, data, trial)
    regularized = isinstance(model, ibreg.Regularized)
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=tuple(cfg.adam_betas), weight_decay=trial.weight_decay, fused=True
    )
    lr_schedule = torch.optim.lr_scheduler.StepLR(
        optimizer, cfg.lr_every or epochs, cfg.lr_factor if cfg.lr_every else 1.0
    )
    beta_schedule = build_schedule(cfg, trial.arm, model)
    sampler = EpochSampler(len(data.train), seed=trial.key[0] + 1_000_003 * trial.key[1])
    loader = datasets.loader(data.train, cfg.batch_size, sampler=sampler, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    plain = accelerator.unwrap_model(model)
    ema = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema)) if cfg.ema else None
    evaluated = ema.module if ema else plain

    parts = {"model": plain, "optimizer": optimizer, "lr_schedule": lr_schedule}
    parts |= {"ema": ema} if ema else {}
    parts |= {"beta_schedule": beta_schedule} if beta_schedule else {}
    if state is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        lines.advance(f"{trial.name}: resumed", state["epoch"])

    for epoch in range(state["epoch"] if state else 0, epochs):
        seed_all(*trial.key, epoch, accelerator.process_index)
        data.train.seed_augmentation(*trial.key, epoch, accelerator.process_index)
        loader.set_epoch(epoch)
        model.train()
        running: dict[str, torch.Tensor] = {}
        for x, y in loader:
            with accelerator.accumulate(model):
                output = model(x, target=y) if regularized else model(x)
                loss = criterion(output, y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    if beta_schedule:
                        beta_schedule.step(output)
                    if ema:
                        ema.update_parameters(plain)
            for name, value in quantities(loss, output).items():
                running[name] = running.get(name, 0) + value
        lr_schedule.step()

        means = {name: accelerator.reduce(value / len(loader), "mean").item() for name, value in running.items()}
        if not math.isfinite(means["loss"]):
            raise RuntimeError(f"{trial.name}: the loss of epoch {epoch + 1} is {means['loss']}: lower lr or beta")
        row = asdict(trial) | {"epoch": epoch + 1} | {f"train/{name}": value for name, value in means.items()}
        validation = None
        if data.validation is not None:
            validation = classify(evaluated, data.validation, accelerator, draws=cfg.prediction_draws).metrics()
            row |= {f"validation/{name}": value for name, value in validation.items()}
        better = cfg.selection == "last" or state is None or quality(validation) > quality(state["validation"])
        state = next_state(
            state, row, validation, selected=evaluated if better else None, parts=parts if epoch + 1 < epochs else {}
        )
        if accelerator.is_main_process:
            save_checkpoint(path, state)
            write_rows(folder / METRICS, [row for other in (*earlier.values(), state) for row in other["rows"]])
        lines.advance(f"{trial.name} epoch {epoch + 1}/{epochs}  {described(row)}")
    return state


def quality(validation: Mapping[str, float]) -> tuple[float, float]:
    """Orders epochs and grid points: accuracy, and among equals the likelihood."""
    return validation["accuracy"], -validation["nll"]


def draw(
    cfg: DictConfig,
    folder: Path,
    selected: Mapping[str, Sequence[Trial]],
    states: Mapping[Trial, dict[str, Any]],
    tested: Mapping[str, Sequence[Classified]],
    curve: Mapping[Trial, Classified],
) -> None:
    """Draws learning curves, reliability and, where there is a sweep of rates, the information curve."""
    rows = [row for trials in selected.values() for trial in trials for row in states[trial]["rows"]]
    shown = ("arm", "seed", "epoch", *CURVES)
    learning_curves([{key: row.get(key) for key in shown} for row in rows], folder / "learning_curves.png")
    pooled = {
        arm: (torch.cat([each.probabilities for each in seeds]), torch.cat([each.targets for each in seeds]))
        for arm, seeds in tested.items()
    }
    reliability_diagram(pooled, folder / "reliability.png")
    points = []
    for trial, measured in curve.items():
        metrics = measured.metrics()
        if "rate" in metrics:
            entropy = label_entropy(measured.targets)
            # I(Z; X) = I(Z; X | Y) + I(Z; Y), and the rate of a conditional prior bounds the first part alone.
            bound = metrics["rate"] + (entropy if is_conditional(cfg, trial.arm) else 0)
            points.append(
                {"arm": trial.arm, "beta": trial.beta, "rate": bound}
                | {key: metrics[key] for key in ("information", "accuracy")}
            )
    if points:
        information_curve(points, folder / "information_curve.png", label_entropy=entropy)


def columns(cfg: DictConfig) -> list[tuple[str, str, int, int]]:
    """Lists the columns of the table; that of the rate says what it bounds from above."""
    conditional = [arm for arm in cfg.bottlenecks if is_conditional(cfg, arm)]
    if len(conditional) == len(cfg.bottlenecks) > 0:
        bounded = "I(X;Z|Y)"
    else:
        bounded = ", ".join(["I(X;Z)", *(f"{arm}: I(X;Z|Y)" for arm in conditional)])
    return [
        ("test/error", "test error (%)", 100, 2),
        ("test/nll", "test NLL (nats)", 1, 4),
        ("test/ece", "test ECE (%)", 100, 2),
        ("test/rate", f"rate ≥ {bounded} (nats)", 1, 2),
    ]


def is_conditional(cfg: DictConfig, arm: str) -> bool:
    """Whether the rate of an arm is that over a prior of the label, which leaves out what the code knows of it."""
    return getattr(build_bottleneck(cfg, arm), "prior", None) == "conditional"


if __name__ == "__main__":
    main()
