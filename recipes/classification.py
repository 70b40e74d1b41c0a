"""Classification with and without a bottleneck: the same model, seeds and budget, one table.

    python recipes/classification.py                                      # digits, about a minute, offline
    python recipes/classification.py data=mnist model=lenet tune=true     # beta and weight decay chosen on validation
    python recipes/classification.py experiment=vib_mnist                 # a paper's settings
    accelerate launch --num_processes 2 recipes/classification.py ...     # the same on several GPUs
    torchrun --standalone --nproc_per_node 2 recipes/classification.py device=cpu ...      # and on CPU processes

`main` reads top to bottom: check, plan, train, select, test, report. Trainings are functions of configuration and seed:
with `resume=true` a killed run goes on at its last epoch and ends bit-identically on a CPU.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ibreg
from ibreg.evaluation.metrics import label_entropy
from ibreg.evaluation.plots import information_curve, learning_curves, reliability_diagram
from ibreg.training import data as datasets
from ibreg.training import models
from ibreg.training.checkpoint import load_checkpoint, save_checkpoint
from ibreg.training.configuration import build_bottleneck, check_keys, is_part_of_a_run, register_with_hydra
from ibreg.training.folder import CHECKPOINTS, METRICS, SUMMARY, open_folder, write_rows
from ibreg.training.loop import EpochSampler, Evaluation, Lines, described, evaluate, quantities, seed_all
from ibreg.training.report import console_table
from ibreg.training.summary import read_summary, summarize, write_summary
from ibreg.training.trials import CONTROLS, Trial, arms, epochs_of, plan, select

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
COLUMNS = [
    ("test/error", "test error (%)", 100, 2),
    ("test/nll", "test NLL (nats)", 1, 4),
    ("test/ece", "test ECE (%)", 100, 2),
    ("test/rate", "rate (nats)", 1, 2),
]
CURVES = ("train/loss", "train/penalty", "train/rate", "validation/nll", "validation/accuracy", "validation/rate")

register_with_hydra()


@hydra.main(config_path=str(CONFIGS), config_name="classification", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Checks, plans, trains, selects, tests and reports."""
    started = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 120)
    accelerator = Accelerator(
        cpu=cfg.device == "cpu",
        mixed_precision=str(cfg.precision),
        gradient_accumulation_steps=cfg.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    check(cfg)
    if cfg.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision=fp16 needs an accelerator: on the CPU use bf16 or no")
    data = datasets.load(**cfg.data)
    for arm in arms(cfg):
        model = build_model(cfg, data, Trial(arm, seed=0, weight_decay=0.0))
        if isinstance(model, ibreg.Regularized):
            SCHEDULES[cfg.schedule.name](model, cfg, arm)
    if len(data.train) < cfg.batch_size:
        raise ValueError(f"batch_size={cfg.batch_size} is more than the {len(data.train)} training rows")
    with accelerator.main_process_first():
        folder = open_folder(cfg) if accelerator.is_main_process else Path(cfg.output_dir)
    if (folder / SUMMARY).is_file():
        if accelerator.is_main_process:
            console.print(console_table(read_summary(folder / SUMMARY), COLUMNS), f"\nfinished before: {folder}")
        return

    resumed = any((folder / CHECKPOINTS).iterdir())

    comparison, sweep = plan(cfg)
    rows: list[dict[str, Any]] = []
    outcomes: dict[Trial, dict[str, Any]] = {}
    epochs = sum(epochs_of(cfg, trial) for trial in (*comparison, *sweep))
    with Lines(epochs, shown=accelerator.is_main_process) as lines:
        for trial in (*comparison, *sweep):
            outcomes[trial] = train(trial, cfg, data, accelerator, folder, lines, rows)
            rows += outcomes[trial]["rows"]
    if accelerator.is_main_process:
        write_rows(folder / METRICS, rows)

    selected = select(cfg, comparison, lambda trial: rank_of(outcomes[trial]["validation"]))
    evaluations = {
        trial: test(trial, cfg, data, accelerator, outcomes[trial]) for trials in selected.values() for trial in trials
    }
    curve = information_points(sweep, cfg, data, accelerator, outcomes)
    if accelerator.is_main_process:
        report(folder, cfg, data, selected, outcomes, evaluations, curve, accelerator.device, resumed, started)
        console.print(console_table(read_summary(folder / SUMMARY), COLUMNS))
        for path in sorted(path for path in folder.iterdir() if path.name != CHECKPOINTS):
            console.print(f"  {path}", highlight=False, soft_wrap=True)
    accelerator.end_training()


def check(cfg: DictConfig) -> None:
    """Finds what can be wrong with a configuration before anything is loaded or written."""
    check_keys(cfg, CONFIGS / "classification.yaml")
    names, seeds = list(cfg.bottlenecks), list(cfg.seeds) if OmegaConf.is_list(cfg.seeds) else []
    if len(set(names)) < len(names) or set(CONTROLS) & set(names):
        raise ValueError(f"bottlenecks are named once each, and none and null are the controls, got {names}")
    if not names and not cfg.control:
        raise ValueError("there is nothing to train: name bottlenecks, or leave control=true")
    if len(set(seeds)) < max(len(seeds), 1) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(
            f"seeds are one or more different whole numbers of at least 0, such as [0,1,2], got {cfg.seeds}"
        )
    for key in ("control", "tune", "resume", "overwrite"):
        if not isinstance(cfg[key], bool):
            raise ValueError(f"{key} is true or false, got {cfg[key]}")
    if not cfg.inject_at:
        raise ValueError("inject_at names at least one module")
    for key, least in (("epochs", 1), ("batch_size", 1), ("draws", 1), ("prediction_draws", 0), ("accumulate", 1)):
        if type(cfg[key]) is not int or cfg[key] < least:
            raise ValueError(f"{key} is a whole number of at least {least}, got {cfg[key]}")
    if type(cfg.sweep.epochs) is not int or cfg.sweep.epochs < 1 or not 0 <= cfg.ema < 1:
        raise ValueError(f"sweep.epochs is at least 1 and ema in [0, 1), got {cfg.sweep.epochs} and {cfg.ema}")
    if min([*cfg.grid.beta, *cfg.grid.weight_decay, *cfg.sweep.betas], default=0) < 0:
        raise ValueError("betas and weight decays are at least 0")
    for key, valid in (
        ("selection", ("best", "last")),
        ("device", ("auto", "cpu")),
        ("precision", ("no", "bf16", "fp16")),
    ):
        if str(cfg[key]) not in valid:
            raise ValueError(f"{key} is one of {', '.join(valid)}, got {cfg[key]}")
    rates = cfg.schedule.rate
    if isinstance(rates, DictConfig) and set(names) - set(rates):
        raise ValueError(f"schedule.rate has no rate for {', '.join(set(names) - set(rates))}")
    if cfg.schedule.name not in SCHEDULES:
        raise ValueError(f"schedule.name is one of {', '.join(SCHEDULES)}, got {cfg.schedule.name}")
    if (cfg.tune or cfg.selection == "best") and not cfg.data.validation:
        raise ValueError(
            "tune=true and selection=best choose on validation data: give data.validation, or selection=last"
        )
    if cfg.tune and not len(cfg.grid.beta) == len(cfg.grid.weight_decay) > 0:
        raise ValueError(
            "grid.beta and grid.weight_decay have equally many values, so that the control is tuned as hard"
        )
    for name in names:
        build_bottleneck(cfg, name)
    trainings = [trial.name for trials in plan(cfg) for trial in trials]
    if len(set(trainings)) < len(trainings):
        raise ValueError(
            "two trainings are the same: the values of grid.beta, grid.weight_decay and sweep.betas differ"
        )


def build_model(cfg: DictConfig, data: datasets.ClassificationData, trial: Trial) -> nn.Module:
    """Builds the model of an arm: the control as it is, the others with their bottleneck in it."""
    options = {
        key: value for key, value in OmegaConf.to_container(cfg.model, resolve=True).items() if key != "inject_at"
    }
    if trial.arm in CONTROLS:
        return models.build(**options, input_shape=data.input_shape, classes=data.classes)
    settings = {} if trial.beta is None else {"beta": trial.beta}
    places = [cfg.inject_at] if isinstance(cfg.inject_at, str) else list(cfg.inject_at)
    layers = {place: build_bottleneck(cfg, trial.arm, **settings) for place in places}
    code_features = getattr(layers[places[-1]], "out_features", None)
    network = models.build(**options, input_shape=data.input_shape, classes=data.classes, code_features=code_features)
    example = data.train[0][0].unsqueeze(0)
    return ibreg.Regularized(ibreg.inject(network, layers, example=example), draws=cfg.draws)


def train(
    trial: Trial,
    cfg: DictConfig,
    data: datasets.ClassificationData,
    accelerator: Accelerator,
    folder: Path,
    lines: Lines,
    rows_before: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Trains one model and returns its last checkpoint: selected weights, epoch and validation metrics, all rows."""
    path = folder / CHECKPOINTS / f"{trial.name}.pt"
    state = load_checkpoint(path)
    epochs = epochs_of(cfg, trial)
    if state is not None and state["epoch"] == epochs:
        lines.advance(f"{trial.name}: done before", epochs)
        return state

    # The null row is the control from another initialisation: it says how large luck is.
    key = (trial.seed, 1) if trial.arm == "null" else (trial.seed, 0)
    seed_all(*key)
    model = build_model(cfg, data, trial)
    regularized = isinstance(model, ibreg.Regularized)
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=tuple(cfg.adam_betas), weight_decay=trial.weight_decay, fused=True
    )
    lr_schedule = torch.optim.lr_scheduler.StepLR(
        optimizer, cfg.lr_every or epochs, cfg.lr_factor if cfg.lr_every else 1.0
    )
    sampler = EpochSampler(len(data.train), seed=trial.seed + 1_000_003 * key[1])
    loader = datasets.loader(data.train, cfg.batch_size, sampler=sampler, drop_last=True)
    beta_schedule = SCHEDULES[cfg.schedule.name](model, cfg, trial.arm) if regularized else None
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    plain = accelerator.unwrap_model(model)
    ema = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema)) if cfg.ema else None
    evaluated = ema.module if ema else plain

    if state is None:
        state = {"epoch": 0, "rows": [], "best": None}
    else:
        plain.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        lr_schedule.load_state_dict(state["lr_schedule"])
        if ema:
            ema.load_state_dict(state["ema"])
        if beta_schedule:
            beta_schedule.load_state_dict(state["beta_schedule"])
        lines.advance(f"{trial.name}: resumed", state["epoch"])

    for epoch in range(state["epoch"], epochs):
        seed_all(*key, epoch, accelerator.process_index)
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

        row = {"arm": trial.arm, "seed": trial.seed, "beta": trial.beta, "weight_decay": trial.weight_decay}
        row |= {"sweep": trial.sweep, "epoch": epoch + 1}
        row |= {
            f"train/{name}": accelerator.reduce(value / len(loader), "mean").item() for name, value in running.items()
        }
        if not torch.isfinite(torch.tensor(row["train/loss"])):
            raise RuntimeError(f"{trial.name}: the loss of epoch {epoch + 1} is {row['train/loss']}: lower lr or beta")
        validation = None
        if data.validation is not None:
            validation = predicted(cfg, evaluated, data.validation, accelerator).metrics()
            row |= {f"validation/{name}": value for name, value in validation.items()}
        state["rows"].append(row)
        state["epoch"] = epoch + 1
        if cfg.selection == "last" or state["best"] is None or rank_of(validation) > rank_of(state["validation"]):
            state["best"], state["validation"] = epoch + 1, validation
            state["weights"] = {name: tensor.clone() for name, tensor in evaluated.state_dict().items()}
        if epoch + 1 < epochs:
            state |= {
                "model": plain.state_dict(),
                "optimizer": optimizer.state_dict(),
                "lr_schedule": lr_schedule.state_dict(),
            }
            state |= {"ema": ema.state_dict()} if ema else {}
            state |= {"beta_schedule": beta_schedule.state_dict()} if beta_schedule else {}
        else:
            state = {key: state[key] for key in ("epoch", "rows", "best", "validation", "weights")}
        if accelerator.is_main_process:
            save_checkpoint(path, state)
            write_rows(folder / METRICS, [*rows_before, *state["rows"]])
        lines.advance(f"{trial.name} epoch {epoch + 1}/{epochs}  {described(row)}")
    accelerator.free_memory()
    return state


def rank_of(validation: dict[str, float]) -> tuple[float, float]:
    """Orders epochs and grid points: accuracy, and among equals the likelihood."""
    return validation["accuracy"], -validation["nll"]


def predicted(cfg: DictConfig, model: nn.Module, part: Any, accelerator: Accelerator) -> Evaluation:
    """Evaluates as the recipe is told to predict."""
    return evaluate(model, part, accelerator, batch_size=1000, draws=cfg.prediction_draws)


def test(
    trial: Trial, cfg: DictConfig, data: datasets.ClassificationData, accelerator: Accelerator, state: dict
) -> Evaluation:
    """Evaluates the selected weights on the test part, which nothing else has seen."""
    model = build_model(cfg, data, trial).to(accelerator.device)
    model.load_state_dict(state["weights"])
    return predicted(cfg, model, data.test, accelerator)


def information_points(sweep, cfg, data, accelerator, outcomes) -> list[dict[str, Any]]:
    """Measures rate and I(Z; Y) over the betas of the sweep, on validation data or else on the test part."""
    part = data.test if data.validation is None else data.validation
    points = []
    for trial in sweep:
        model = build_model(cfg, data, trial).to(accelerator.device)
        model.load_state_dict(outcomes[trial]["weights"])
        measured = evaluate(model, part, accelerator, batch_size=1000, draws=max(cfg.prediction_draws, 1)).metrics()
        if "rate" in measured:
            points.append(
                {"arm": trial.arm, "beta": trial.beta}
                | {key: measured[key] for key in ("rate", "information", "accuracy")}
            )
    return points


def report(folder, cfg, data, selected, outcomes, evaluations, curve, device, resumed, started) -> None:
    """Writes summary and plots."""
    values: dict[str, dict[str, list]] = {}
    for arm, trials in selected.items():
        for trial in trials:
            for name, value in evaluations[trial].metrics().items():
                values.setdefault(arm, {}).setdefault(f"test/{name}", []).append(value)
    results, paired = summarize(values)
    choices = {
        arm: {
            "beta": trials[0].beta,
            "weight_decay": trials[0].weight_decay,
            "epochs": [outcomes[trial]["best"] for trial in trials],
        }
        for arm, trials in selected.items()
    }
    if curve:
        part = data.test if data.validation is None else data.validation
        entropy = label_entropy(torch.cat([y for _, y in datasets.loader(part, 1000)]))
        information_curve(curve, folder / "information_curve.png", label_entropy=entropy)
    drawn = [
        {key: row.get(key) for key in ("arm", "seed", "epoch", *CURVES)}
        for trials in selected.values()
        for trial in trials
        for row in outcomes[trial]["rows"]
    ]
    learning_curves(drawn, folder / "learning_curves.png")
    pooled = {
        arm: (
            torch.cat([evaluations[trial].probabilities for trial in trials]),
            torch.cat([evaluations[trial].targets for trial in trials]),
        )
        for arm, trials in selected.items()
    }
    reliability_diagram(pooled, folder / "reliability.png")
    write_summary(
        folder / SUMMARY,
        recipe="classification",
        data=data.name,
        seeds=list(cfg.seeds),
        results=results,
        paired=paired,
        selected=choices,
        wall_s=time.monotonic() - started,
        resumed=resumed,
        device=device,
        command=" ".join(["python recipes/classification.py", *(a for a in sys.argv[1:] if is_part_of_a_run(a))]),
        headline=COLUMNS,
    )


def target_rate(model: nn.Module, cfg: DictConfig, arm: str) -> ibreg.schedules.TargetRate:
    """Holds the arm's rate."""
    rates = cfg.schedule.rate
    return ibreg.schedules.TargetRate(model, float(rates[arm] if isinstance(rates, DictConfig) else rates))


SCHEDULES = {
    "none": lambda model, cfg, arm: None,
    "linear_warmup": lambda model, cfg, arm: ibreg.schedules.LinearWarmup(model, cfg.schedule.steps),
    "cosine": lambda model, cfg, arm: ibreg.schedules.Cosine(model, cfg.schedule.steps),
    "target_rate": target_rate,
}


if __name__ == "__main__":
    main()
