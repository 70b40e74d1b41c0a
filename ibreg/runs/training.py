"""Trains what a run compares: every training resumable at its last epoch, the grid's points chosen on validation data.

Trainings are functions of configuration and seed. All that depends on the kind of problem comes in a `Task`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from omegaconf import DictConfig, ListConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ibreg.optimization import training_mode
from ibreg.regularized import Penalized, Regularized, RegularizedOutput
from ibreg.runs.checkpoint import WholeOptimizer, load_checkpoint, next_state, save_checkpoint, whole
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.folder import CHECKPOINTS, METRICS, write_rows
from ibreg.runs.methods import beta_used, build_schedule
from ibreg.runs.progress import EpochProgress as Lines
from ibreg.runs.progress import described
from ibreg.runs.seeding import EpochSampler, seed_all
from ibreg.runs.tasks.robustness.adversarial import Adversary
from ibreg.runs.trials import Trial, as_good_as, epochs_in_all, epochs_of, first_trial, methods, plan, select

METRICS_EVERY = 10.0  # seconds between two writings of all rows, which take longer the more there are


class Data(Protocol):
    """What a training needs of a data set."""

    @property
    def train(self) -> Rows:
        """The training rows."""
        ...

    @property
    def validation(self) -> Rows | None:
        """Rows to choose by, or None."""
        ...


@dataclass(frozen=True)
class Task:
    """What a recipe trains and how it judges it.

    Attributes:
        data: of a training.
        model: of a training, freshly initialized: wrapped in `Regularized`, or as it is for a control.
        loss: the task loss of a training, without penalty.
        measure: the metrics of a model on the validation rows of a training.
        quality: orders epochs and grid points by these metrics, larger is better.
        mix: turns a training batch into another one, such as mixtures of its rows; None: as it is.
        parameters: those of a model that are trained, or groups of them, as an optimizer takes them.
        label: what its trainings are called before their own name, where a run has several tasks.
        adversary: of a training in an epoch, what takes the loss of a batch on attacked inputs instead, given model,
            criterion, the output of the clean inputs, inputs and targets; None: nothing does.
    """

    data: Callable[[Trial], Data]
    model: Callable[[Trial], nn.Module]
    loss: Callable[[Trial], nn.Module]
    measure: Callable[[Trial, nn.Module], dict[str, float]]
    quality: Callable[[Mapping[str, float]], tuple[float, ...]]
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    parameters: Callable[[nn.Module], Iterable[Any]] = nn.Module.parameters
    adversary: Callable[[Trial, int], Adversary | None] = lambda trial, epoch: None
    label: str = ""


@dataclass(frozen=True)
class Trained:
    """What a run has trained.

    Attributes:
        selected: the trainings that are compared, per method in the order of the seeds.
        sweep: those of the information curve.
        states: the last state of every training, see `checkpoint.next_state`.
    """

    selected: dict[str, list[Trial]]
    sweep: list[Trial]
    states: dict[Trial, dict[str, Any]]

    def model(self, task: Task, trial: Trial, device: torch.device) -> nn.Module:
        """Returns the model of a training with its selected weights."""
        model = task.model(trial).to(device)
        model.load_state_dict(self.states[trial]["weights"])
        return model

    def rows(self) -> list[dict[str, Any]]:
        """Returns what was measured in every epoch of every training."""
        return [row for state in self.states.values() for row in state["rows"]]

    def curves(self, quantities: Sequence[str]) -> list[dict[str, Any]]:
        """Returns the epochs of the selected trainings, as the plots take them."""
        shown = ("method", "seed", "epoch", *quantities)
        rows = [row for trials in self.selected.values() for trial in trials for row in self.states[trial]["rows"]]
        return [{key: row.get(key) for key in shown} for row in rows]

    def choices(self, cfg: DictConfig) -> dict[str, Any]:
        """Returns what was chosen on validation data, for the summary."""
        return {
            method: {
                "beta": beta_used(cfg, trials, self.states),
                "weight_decay": trials[0].weight_decay,
                "epochs": [self.states[trial]["best"] for trial in trials],
            }
            | ({} if trials[0].dropout is None else {"dropout": trials[0].dropout})
            for method, trials in self.selected.items()
        }


def rehearse(cfg: DictConfig, task: Task) -> None:
    """Runs a batch through the loss of every method, so that what cannot train is found before a folder is made."""
    for method in methods(cfg):
        trial = first_trial(cfg, method, cfg.seeds[0])
        model = task.model(trial)
        schedule = build_schedule(cfg, method, model)
        train = task.data(trial).train
        # A whole batch: what pairs tell of each other depends on its size.
        batch = train.__getitems__(list(range(min(cfg.batch_size, len(train)))))
        if task.mix:
            batch = task.mix(*batch)
        with torch.no_grad():
            _, output = _loss_of(
                training_mode(model), Penalized(task.loss(trial)), *batch, regularized=isinstance(model, Regularized)
            )
        if schedule is not None:
            schedule.step(output)


def train_all(cfg: DictConfig, task: Task, accelerator: Accelerator, folder: Path) -> Trained:
    """Trains the comparison, selects, and trains what depends on the selection; all of it is in the folder then."""
    comparison, sweep = plan(cfg)
    states: dict[Trial, dict[str, Any]] = {}
    with Lines(epochs_in_all(cfg), shown=accelerator.is_main_process) as lines:
        for trial in comparison:
            states[trial] = train(trial, cfg, task, accelerator, folder, lines, states)
        selected = select(cfg, comparison, lambda trial: task.quality(states[trial]["validation"]))
        for trial in (*selected.get("null", ()), *sweep):
            states[trial] = train(trial, cfg, task, accelerator, folder, lines, states)
    trained = Trained(selected, sweep, states)
    if accelerator.is_main_process:
        write_rows(folder / METRICS, trained.rows())
    return trained


def train_matched(
    trained: Trained, cfg: DictConfig, task: Task, accelerator: Accelerator, folder: Path, *, error: str
) -> dict[str, list[Trial]]:
    """Trains controls that end as soon as their validation error is that of another method, see `as_good_as`.

    Args:
        trained: what was selected; the states of these controls are added.
        cfg: the recipe's configuration.
        task: what the recipe trains.
        accelerator: where.
        folder: of the run.
        error: the validation metric, smaller is better.

    Returns:
        per method its controls, in the order of the seeds; nothing without a control or validation data.
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
    stopped = dict.fromkeys(trial for trials in matched.values() for trial in trials if trial not in trained.states)
    with Lines(sum(epochs_of(cfg, trial) for trial in stopped), shown=accelerator.is_main_process) as lines:
        for trial in stopped:
            trained.states[trial] = train(trial, cfg, task, accelerator, folder, lines, trained.states)
    return matched


def train(
    trial: Trial,
    cfg: DictConfig,
    task: Task,
    accelerator: Accelerator,
    folder: Path,
    lines: Lines,
    earlier: Mapping[Trial, dict[str, Any]],
) -> dict[str, Any]:
    """Trains one model and returns its last state: selected weights, epoch and validation metrics, all rows."""
    path, epochs = folder / CHECKPOINTS / f"{trial.name}.pt", epochs_of(cfg, trial)
    name = f"{task.label}{trial.name}"
    state = load_checkpoint(path)
    if state is not None and state["epoch"] == epochs:
        lines.advance(f"{name}: done before", epochs)
        return state

    accelerator.free_memory()  # of the training before
    seed_all(*trial.key)
    data, model = task.data(trial), task.model(trial)
    regularized = isinstance(model, Regularized)
    criterion = Penalized(task.loss(trial))
    optimizer = torch.optim.AdamW(
        task.parameters(model), lr=cfg.lr, betas=tuple(cfg.adam_betas), weight_decay=trial.weight_decay, fused=True
    )
    lr_schedule = build_lr_schedule(cfg, optimizer, epochs)
    beta_schedule = build_schedule(cfg, trial.method, model)
    sampler = EpochSampler(len(data.train), seed=trial.key[0] + 1_000_003 * trial.key[1])
    batches = loader(data.train, cfg.batch_size, sampler=sampler, drop_last=True)
    if state is not None:
        model.load_state_dict(state["model"])
    # Measures run parts of a model and read its weights, of which FSDP leaves a rank a shard: they get a whole one.
    gathered = copy.deepcopy(model).to(accelerator.device) if accelerator.is_fsdp2 else None
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    plain = accelerator.unwrap_model(model)
    ema = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema)) if cfg.ema else None
    saved = plain if gathered is None else gathered
    evaluated = ema.module if ema else saved

    parts = {"optimizer": WholeOptimizer(optimizer), "lr_schedule": lr_schedule}
    parts |= {"ema": ema} if ema else {}
    parts |= {"beta_schedule": beta_schedule} if beta_schedule else {}
    if state is not None:
        for key, part in parts.items():
            part.load_state_dict(state[key])
        lines.advance(f"{name}: resumed", state["epoch"])
    parts["model"] = saved  # which has its state already

    written = time.monotonic()
    for epoch in range(state["epoch"] if state else 0, epochs):
        seed_all(*trial.key, epoch, accelerator.process_index)
        data.train.seed_augmentation(*trial.key, epoch, accelerator.process_index)
        batches.set_epoch(epoch)
        training_mode(model)
        adversary = task.adversary(trial, epoch)
        running: dict[str, Tensor] = {}
        for batch in batches:
            if task.mix:
                batch = task.mix(*batch)
            with accelerator.accumulate(model):
                loss, output = _loss_of(model, criterion, *batch, regularized=regularized)
                if adversary is not None:
                    loss = adversary(model, criterion, output, *batch)
                if loss.requires_grad:  # not where all of a model is frozen: such a control stays as it was loaded
                    accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    if beta_schedule:
                        beta_schedule.step(output)
                    if ema:
                        ema.update_parameters(plain)
            for quantity, value in quantities(loss, output).items():
                running[quantity] = running.get(quantity, 0) + value
        lr_schedule.step()

        means = {key: accelerator.reduce(value / len(batches), "mean").item() for key, value in running.items()}
        if not math.isfinite(means["loss"]):
            raise RuntimeError(f"{name}: the loss of epoch {epoch + 1} is {means['loss']}: lower lr or beta")
        row = asdict(trial) | {"epoch": epoch + 1} | {f"train/{key}": value for key, value in means.items()}
        if gathered is not None:
            broadcast(list(plain.buffers()))  # those of the main process are everybody's, as with DDP
            gathered.load_state_dict(whole(plain.state_dict()))
        validation = None
        if data.validation is not None:
            validation = task.measure(trial, evaluated)
            row |= {f"validation/{key}": value for key, value in validation.items()}
        keeps_last = cfg.selection == "last" or trial.stop is not None
        better = keeps_last or state is None or task.quality(validation) > task.quality(state["validation"])
        state = next_state(
            state, row, validation, selected=evaluated if better else None, parts=parts if epoch + 1 < epochs else {}
        )
        accelerator.log({f"{name}/{key}": value for key, value in row.items() if "/" in key}, step=epoch + 1)
        if accelerator.is_main_process:
            save_checkpoint(path, state)
            if epoch + 1 == epochs or time.monotonic() > written + METRICS_EVERY:
                write_rows(folder / METRICS, [row for other in (*earlier.values(), state) for row in other["rows"]])
                written = time.monotonic()
        lines.advance(f"{name} epoch {epoch + 1}/{epochs}  {described(row)}")
    return state


def build_lr_schedule(cfg: DictConfig, optimizer: torch.optim.Optimizer, epochs: int) -> LRScheduler:
    """Builds what multiplies lr by `lr_factor`: after every `lr_every` epochs, or at each of a list of them."""
    if isinstance(cfg.lr_every, ListConfig):
        return MultiStepLR(optimizer, list(cfg.lr_every), cfg.lr_factor)
    return StepLR(optimizer, cfg.lr_every or epochs, cfg.lr_factor if cfg.lr_every else 1.0)


def _loss_of(
    model: nn.Module, criterion: Penalized, x: Tensor, y: Tensor, concepts: Tensor | None = None, *, regularized: bool
) -> tuple[Tensor, Any]:
    """Returns the loss of a batch and what the model returned; only a `Regularized` takes targets and concepts."""
    output = model(x, target=y, concepts=concepts) if regularized else model(x)
    return criterion(output, y, inputs=x), output


def quantities(loss: Tensor, output: Any) -> dict[str, Tensor]:
    """Names what an epoch averages; the rate is summed over bottlenecks."""
    if not isinstance(output, RegularizedOutput):
        return {"loss": loss.detach()}
    rates = [value for name, value in output.logs.items() if name.endswith("/rate")]
    return {"loss": loss.detach(), "penalty": output.penalty.detach()} | ({"rate": sum(rates)} if rates else {})
