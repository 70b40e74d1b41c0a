"""The training loop of every recipe: build the parts of a training run, train, measure, select and save each epoch.

All randomness follows from the trial, and every epoch is saved, so that a killed run resumes at its last epoch and ends
bit-identically on a CPU. What depends on the kind of problem is a `Task`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ibreg.optimization import training_mode
from ibreg.regularized import Penalized, Regularized, RegularizedOutput
from ibreg.runs.checkpoint import (
    load_checkpoint,
    load_optimizer_state,
    model_state,
    optimizer_state,
    save_checkpoint,
)
from ibreg.runs.config.recipe import RunConfig
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.folder import CHECKPOINTS, METRICS, write_rows
from ibreg.runs.methods import build_schedule
from ibreg.runs.models.normalization import network_inputs
from ibreg.runs.optimizers import build_lr_schedule, build_optimizer
from ibreg.runs.progress import EpochProgress, described
from ibreg.runs.seeding import EpochSampler, seed_all
from ibreg.runs.tasks.robustness.adversarial import Adversary
from ibreg.runs.trials import Trial, epochs_of
from ibreg.schedules import Schedule
from ibreg.tracing import tells_not_finite

METRICS_EVERY = 10.0  # seconds between two writings of metrics.csv, whose time grows with the number of rows


@dataclass(frozen=True)
class Task:
    """Data, models and losses of a recipe, and the criterion that ranks models on validation data.

    Recipes differ in the attributes. Class-incremental learning also overrides the methods, see
    `tasks.continual.stream`.

    Attributes:
        data: the data of each seed, with the splits `train` and `validation`, which may be None.
        model: builds the model of a trial: wrapped in `Regularized`, or plain for a control.
        loss: builds the task loss of a trial, without penalty.
        measure: the metrics of a model on the validation split of its data.
        quality: orders epochs and grid points by these metrics, larger is better.
        mix: transforms a training batch, as mixup does; None: no transform.
        parameters: the trained parameters of a model, or groups of them, as an optimizer takes them.
        adversary: builds for an epoch what replaces the loss of a batch by one on attacked inputs; None: nothing does.
        label: prefix of the names of training runs, where a recipe has several tasks.
    """

    data: Mapping[int, Any]
    model: Callable[[Trial], nn.Module]
    loss: Callable[[Trial], nn.Module]
    measure: Callable[[nn.Module, Any], dict[str, float]]
    quality: Callable[[Mapping[str, float]], tuple[float, ...]]
    mix: Callable[..., Sequence[Tensor]] | None = None
    parameters: Callable[[nn.Module], Iterable[Any]] = nn.Module.parameters
    adversary: Callable[[int], Adversary | None] = lambda epoch: None
    label: str = ""

    measured_by_stage: ClassVar[bool] = False  # after each stage instead of after each epoch
    reshuffled: ClassVar[bool] = True  # whether the order of the rows changes from epoch to epoch
    noise_by_rank: ClassVar[bool] = True  # whether ranks draw different noise

    def stages(self, trial: Trial) -> Sequence[Rows]:
        """Returns the rows of each stage: all epochs on the first, then all epochs on the next."""
        return [self.data[trial.seed].train]

    def prepare(self, cfg: Any, trial: Trial, model: nn.Module) -> None:
        """Prepares a freshly built model for training."""

    def optimizer(self, cfg: Any, trial: Trial, model: nn.Module) -> Optimizer:
        """Builds the optimizer of a model."""
        decay: Any = trial.weight_decay
        return build_optimizer(cfg.optimizer, self.parameters(model), lr=cfg.lr, weight_decay=decay)

    def lr_schedule(self, cfg: Any, trial: Trial, optimizer: Optimizer) -> LRScheduler:
        """Builds the schedule of the learning rate, which is stepped once per epoch."""
        return build_lr_schedule(cfg.lr_schedule, optimizer, epochs_of(cfg, trial))

    def batch_loss(
        self, model: nn.Module, criterion: Penalized, x: Tensor, y: Tensor, concepts: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Returns the loss of a batch and the output of the model."""
        plain = getattr(model, "module", model)  # DDP hides the class of the model; FSDP keeps it
        # Only `Regularized` takes targets and concepts.
        inputs = network_inputs(plain, x)  # kernels compare the code with the network's input
        regularized = isinstance(plain, Regularized)
        output = model(x, target=y, concepts=concepts, inputs=inputs) if regularized else model(x)
        return criterion(output, y, inputs=inputs), output

    def after_step(self, model: nn.Module, accelerator: Accelerator, batch: Sequence[Tensor]) -> None:
        """Observes a batch after its optimizer step."""

    def end_stage(self, trial: Trial, model: nn.Module, stage: int, rows: Rows) -> dict[str, Any]:
        """Observes the end of a stage and returns columns for its row of `metrics.csv`."""
        return {}

    def row(self, cfg: Any, trial: Trial) -> dict[str, Any]:
        """Returns the columns of `metrics.csv` that identify a training run."""
        return trial.row()

    def validate(self, trial: Trial, model: nn.Module) -> dict[str, float] | None:
        """Returns the validation metrics of a model, None without validation data."""
        data = self.data[trial.seed]
        return None if data.validation is None else self.measure(model, data)

    def start(self, model: nn.Module) -> dict[str, Any]:
        """Returns what is kept of a model before its first epoch."""
        return {}

    def keep(
        self, cfg: Any, trial: Trial, state: Mapping[str, Any], epoch: int, validation: Any, model: nn.Module
    ) -> dict[str, Any]:
        """Returns what is kept of a model: the best epoch so far, its validation metrics and its weights."""
        last = cfg.selection == "last" or trial.stop is not None
        if last or "weights" not in state or self.quality(validation) > self.quality(state["validation"]):
            # Copies: training continues in these tensors.
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            return {"best": epoch, "validation": validation, "weights": weights}
        return {key: state[key] for key in ("best", "validation", "weights")}


@dataclass
class Run:
    """Configuration, task, devices and folder that the training runs of a recipe share.

    Attributes:
        cfg: the recipe's configuration.
        task: what is trained.
        accelerator: trains on one process or several.
        folder: of the run.
        progress: reports epochs.
        states: the last state of each training run: `epoch`, `rows` of `metrics.csv`, and what `Task.keep` returns.
        written: time of the last writing of `metrics.csv`.
    """

    cfg: RunConfig
    task: Task
    accelerator: Accelerator
    folder: Path
    progress: EpochProgress
    states: dict[Trial, dict[str, Any]] = field(default_factory=dict)
    written: float = field(default_factory=time.monotonic)

    def name(self, trial: Trial) -> str:
        """Returns the name of a training run in logs."""
        return f"{self.task.label}{trial.name}"

    def path(self, trial: Trial) -> Path:
        """Returns the file of the checkpoint of a training run."""
        return self.folder / CHECKPOINTS / f"{trial.name}.pt"

    def save(self, trial: Trial, *, complete: bool) -> None:
        """Writes the state of a training run, and at most every few seconds the rows of all."""
        if not self.accelerator.is_main_process:
            return
        save_checkpoint(self.path(trial), self.states[trial])
        if complete or time.monotonic() > self.written + METRICS_EVERY:
            write_rows(self.folder / METRICS, [row for state in self.states.values() for row in state["rows"]])
            self.written = time.monotonic()


def train(trial: Trial, run: Run) -> dict[str, Any]:
    """Trains one model, from its checkpoint if there is one, and returns its last state."""
    name, epochs = run.name(trial), epochs_of(run.cfg, trial) * len(run.task.stages(trial))
    state = load_checkpoint(run.path(trial))
    if state is not None and state["epoch"] == epochs:
        run.states[trial] = state
        run.progress.advance(f"{name}: done before", epochs)
        return state

    run.accelerator.free_memory()  # of the previous training run
    seed_all(*trial.key)
    parts = build_parts(trial, run, state)
    if state is None:
        state = {"epoch": 0, "rows": [], **run.task.start(parts.plain)}
    else:
        run.progress.advance(f"{name}: resumed", state["epoch"])
    for epoch in range(state["epoch"], epochs):
        with divergence_told(name, epoch):
            losses = train_epoch(trial, run, parts, epoch)
            if not math.isfinite(losses["loss"]):
                raise _diverged(name, epoch, losses["loss"])
            parts.gather()
            state = judge(trial, run, parts, state, epoch, losses)
        if epoch + 1 < epochs:
            state |= parts.state_dict()
        run.states[trial] = state
        run.save(trial, complete=epoch + 1 == epochs)
    return state


@contextmanager
def divergence_told(name: str, epoch: int) -> Iterator[None]:
    """Words what layers and metrics say of values that are not finite as what it is: a training run that diverges.

    Args:
        name: of the training run.
        epoch: counted from 0.

    Raises:
        FloatingPointError: If the block raises such an error.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not tells_not_finite(error):
            raise
        raise _diverged(name, epoch, math.nan) from error


def _diverged(name: str, epoch: int, loss: float) -> FloatingPointError:
    return FloatingPointError(f"{name}: the loss must be finite, got {loss} in epoch {epoch + 1}: lower lr or beta")


def train_epoch(trial: Trial, run: Run, parts: Parts, epoch: int) -> dict[str, float]:
    """Trains for an epoch and returns the mean loss, penalty and rate of its batches over all ranks."""
    task, accelerator = run.task, run.accelerator
    rows, batches = parts.stages[epoch // epochs_of(run.cfg, trial)]
    rank = accelerator.process_index
    seed_all(*trial.key, epoch, rank if task.noise_by_rank else 0)
    rows.seed_augmentation(*trial.key, epoch, rank)
    batches.set_epoch(epoch if task.reshuffled else 0)
    training_mode(parts.model)
    adversary = task.adversary(epoch)
    totals: dict[str, Any] = {}
    for batch in batches:
        for quantity, value in train_batch(run, parts, batch, adversary).items():
            totals[quantity] = totals.get(quantity, 0) + value
    parts.lr_schedule.step()
    means: dict[str, Any] = {key: accelerator.reduce(total / len(batches), "mean") for key, total in totals.items()}
    return {key: mean.item() for key, mean in means.items()}


def train_batch(run: Run, parts: Parts, batch: Sequence[Tensor], adversary: Adversary | None) -> dict[str, Tensor]:
    """Takes an optimizer step on a batch, or accumulates its gradient, and returns its loss, penalty and rate."""
    task, accelerator, clip = run.task, run.accelerator, run.cfg.clip
    if task.mix is not None:
        batch = task.mix(*batch)
    with accelerator.accumulate(parts.model):
        loss, output = task.batch_loss(parts.model, parts.criterion, *batch)
        if adversary is not None:
            loss = adversary(parts.model, parts.criterion, output, *batch)
        if loss.requires_grad:  # a control whose parameters are all frozen has no gradient
            accelerator.backward(loss)
        if clip and accelerator.sync_gradients:
            accelerator.clip_grad_norm_(parts.model.parameters(), clip)
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        if accelerator.sync_gradients:
            if parts.beta_schedule is not None:
                parts.beta_schedule.step(output)
            if parts.ema is not None:
                parts.ema.update_parameters(parts.plain)
    task.after_step(parts.plain, accelerator, batch)
    return quantities(loss, output)


def judge(
    trial: Trial, run: Run, parts: Parts, state: Mapping[str, Any], epoch: int, losses: Mapping[str, float]
) -> dict[str, Any]:
    """Measures a model after an epoch and returns the next state: epoch, rows and kept model."""
    task, epochs = run.task, epochs_of(run.cfg, trial)
    stage, epoch_of_stage = divmod(epoch, epochs)
    ends_stage = epoch_of_stage + 1 == epochs
    if task.measured_by_stage and not ends_stage:
        return {**state, "epoch": epoch + 1}
    row = task.row(run.cfg, trial) | {"epoch": epoch + 1}
    if ends_stage:
        row |= task.end_stage(trial, parts.plain, stage, parts.stages[stage][0])
    row |= {f"train/{key}": value for key, value in losses.items()}
    validation = task.validate(trial, parts.evaluated)
    row |= {f"validation/{key}": value for key, value in (validation or {}).items()}
    rows, name = [*state["rows"], row], run.name(trial)
    run.accelerator.log({f"{name}/{key}": value for key, value in row.items() if "/" in key}, step=len(rows))
    steps = epochs if task.measured_by_stage else 1
    run.progress.advance(f"{name} epoch {epoch + 1}/{epochs * len(parts.stages)}  {described(row)}", steps)
    kept = task.keep(run.cfg, trial, state, epoch + 1, validation, parts.evaluated)
    return {"epoch": epoch + 1, "rows": rows, **kept}


@dataclass
class Parts:
    """The parts of one training run.

    Attributes:
        model: as the accelerator has wrapped it.
        plain: the model without wrappers.
        whole: `plain`, or where FSDP shards it a copy with whole weights, which metrics and checkpoints read.
        criterion: task loss plus penalty.
        optimizer: of the trained parameters.
        lr_schedule: of the learning rate, stepped once per epoch.
        stages: rows and batches of each stage.
        beta_schedule: of beta, stepped once per optimizer step; None for a constant beta.
        ema: an average of the weights, which is evaluated instead of them; None for none.
    """

    model: nn.Module
    plain: nn.Module
    whole: nn.Module
    criterion: Penalized
    optimizer: AcceleratedOptimizer
    lr_schedule: LRScheduler
    stages: Sequence[tuple[Rows, Any]]
    beta_schedule: Schedule | None
    ema: AveragedModel | None

    @property
    def evaluated(self) -> nn.Module:
        """The model that is measured and kept."""
        return self.whole if self.ema is None else self.ema.module

    def gather(self) -> None:
        """Updates `whole`; every rank must call it."""
        if self.whole is not self.plain:
            broadcast(list(self.plain.buffers()))  # all ranks take those of the main process, as with DDP
            self.whole.load_state_dict(model_state(self.plain))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that training resumes from; every rank must call it."""
        parts = {name: part.state_dict() for name, part in self._stateful().items()}
        return {"model": self.whole.state_dict(), "optimizer": optimizer_state(self.plain, self.optimizer), **parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state, except for the model, which is loaded before it is wrapped."""
        load_optimizer_state(self.plain, self.optimizer, state["optimizer"])
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        parts = {"lr_schedule": self.lr_schedule, "beta_schedule": self.beta_schedule, "ema": self.ema}
        return {name: part for name, part in parts.items() if part is not None}


def build_parts(trial: Trial, run: Run, state: Mapping[str, Any] | None) -> Parts:
    """Builds the parts of a training run, with the weights and states of a checkpoint if there is one."""
    cfg, task, accelerator = run.cfg, run.task, run.accelerator
    model = task.model(trial)
    task.prepare(cfg, trial, model)
    criterion = Penalized(task.loss(trial))
    optimizer = task.optimizer(cfg, trial, model)
    lr_schedule = task.lr_schedule(cfg, trial, optimizer)
    beta_schedule = build_schedule(cfg, trial.method, model)
    if state is not None:
        model.load_state_dict(state["model"])
    whole = copy.deepcopy(model).to(accelerator.device) if accelerator.is_fsdp2 else None
    stages = [(rows, accelerator.prepare_data_loader(batches_of(trial, cfg, rows))) for rows in task.stages(trial)]
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    ema = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema)) if cfg.ema else None
    parts = Parts(model, plain, whole or plain, criterion, optimizer, lr_schedule, stages, beta_schedule, ema)
    if state is not None:
        parts.load_state_dict(state)
    return parts


def batches_of(trial: Trial, cfg: RunConfig, rows: Rows) -> DataLoader:
    """Returns the training batches of a trial, in an order determined by its key and the epoch."""
    sampler = EpochSampler(len(rows), seed=trial.key[0] + 1_000_003 * trial.key[1])
    return loader(rows, cfg.batch_size, sampler=sampler, drop_last=True)


def quantities(loss: Tensor, output: Any) -> dict[str, Tensor]:
    """Returns the quantities that an epoch averages; the rate is summed over bottlenecks."""
    averaged: dict[str, Any] = {"loss": loss.detach()}
    if isinstance(output, RegularizedOutput):
        averaged["penalty"] = output.penalty.detach()
        if rates := [value for name, value in output.logs.items() if name.endswith("/rate")]:
            averaged["rate"] = sum(rates)
    return averaged
