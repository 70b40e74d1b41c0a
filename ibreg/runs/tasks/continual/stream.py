"""Trains learners on a stream of splits, resumable at the last epoch, and keeps what each of them was after each split.

What is kept is enough to test a learner at every stage once all is chosen; nothing here looks at the test part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ibreg.layers.key_value.codebooks import MovingCodebooks
from ibreg.runs.checkpoint import load_checkpoint, save_checkpoint
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.data.streams import rows_of
from ibreg.runs.folder import CHECKPOINTS, METRICS, write_rows
from ibreg.runs.progress import EpochProgress as Lines
from ibreg.runs.seeding import EpochSampler, seed_all
from ibreg.runs.tasks.continual import learners
from ibreg.runs.tasks.continual.bottlenecked import Bottlenecked
from ibreg.runs.tasks.continual.learners import Learner
from ibreg.runs.trials import CONTROLS, methods


@dataclass(frozen=True)
class Stream:
    """Features and classes, split by split.

    Attributes:
        train: training rows of all splits.
        validation: rows to choose by, or None.
        test: rows that are looked at once, at the end.
        strange: test rows of another data set, or None.
        unlabeled: `(rows, features)`, for keys.
        splits: the classes of each split, in the order in which they come.
        classes: of all splits.
    """

    train: Rows
    validation: Rows | None
    test: Rows
    strange: Rows | None
    unlabeled: Tensor
    splits: Sequence[tuple[int, ...]]
    classes: int

    @property
    def features(self) -> int:
        """The numbers in one row."""
        return self.unlabeled.shape[1]

    def stages(self, learner: Learner) -> list[tuple[int, ...]]:
        """Returns the classes that a learner gets together: split by split, or all at once."""
        return [tuple(sum(self.splits, ()))] if learner.sees_all_classes else list(self.splits)


@dataclass(frozen=True)
class Training:
    """One learner on one stream.

    Attributes:
        method: "none" (the linear probe), "null" (the same from another initialization), a learner or a bottleneck.
        seed: of the order of classes, of initialization, and of the order of rows.
        point: place among the settings of the method.
    """

    method: str
    seed: int
    point: int = 0

    @property
    def name(self) -> str:
        """Stem of the checkpoint's file."""
        return f"{self.method}-setting{self.point}-seed{self.seed}"

    @property
    def key(self) -> tuple[int, int]:
        """What all randomness follows from, but for the order of classes, which is the seed's alone."""
        return self.seed, int(self.method == "null")


def all_methods(cfg: DictConfig) -> list[str]:
    """Lists what is compared: the linear probe and its second initialization, other learners, and bottlenecks."""
    controls = [method for method in methods(cfg) if method in CONTROLS]
    return [*controls, *cfg.learners, *cfg.bottlenecks]


def settings_of(cfg: DictConfig, method: str) -> list[dict[str, Any]]:
    """Returns the settings that a method is tried with, lr and options: all of them with `tune`, else the first."""
    given: Any = OmegaConf.to_container(cfg.settings["none" if method == "null" else method], resolve=True)
    return given if cfg.tune else given[:1]


def build_learner(cfg: DictConfig, training: Training, *, features: int, classes: int) -> Learner:
    """Builds the learner of a training, freshly initialized; keys are random yet."""
    options = dict(settings_of(cfg, training.method)[training.point])
    del options["lr"]
    criterion = nn.CrossEntropyLoss(label_smoothing=cfg.label_smoothing)
    if training.method in cfg.bottlenecks:
        # Its code is the logits, unless another size is asked for.
        size = options.pop("out_features", None) or cfg.bottleneck[training.method].get("out_features") or classes
        layer = build_bottleneck(cfg, training.method, in_features=features, out_features=size, **options)
        return Bottlenecked(layer, classes, criterion)
    name = "linear" if training.method in CONTROLS else training.method
    shared: Any = OmegaConf.to_container(cfg.learner.get(name, OmegaConf.create({})), resolve=True)
    return learners.build(name, features=features, classes=classes, criterion=criterion, options=shared | options)


def rehearse(cfg: DictConfig, *, features: int, classes: int, unlabeled: int) -> None:
    """Runs a few rows through every learner with every setting, so that what cannot train is found beforehand.

    Args:
        cfg: the recipe's configuration.
        features: of the encoder.
        classes: of all splits.
        unlabeled: rows that keys start from.

    Raises:
        ValueError: a setting that cannot train, or fewer rows than keys.
    """
    rows, targets = torch.randn(4, features), torch.arange(4) % classes
    for method in all_methods(cfg):
        for point in range(len(settings_of(cfg, method))):
            try:
                learner = build_learner(cfg, Training(method, cfg.seeds[0], point), features=features, classes=classes)
                learner(rows, targets)
                keys = max((part.size for part in learner.modules() if isinstance(part, MovingCodebooks)), default=0)
                if keys > unlabeled:
                    raise ValueError(f"{unlabeled} unlabeled rows are too few for {keys} keys in each codebook")
            except (TypeError, ValueError) as error:
                raise ValueError(f"setting {point + 1} of {method}: {error}") from error


def train_all(
    cfg: DictConfig, streams: Mapping[int, Stream], accelerator: Accelerator, folder: Path
) -> tuple[dict[str, list[Training]], dict[Training, dict[str, Any]]]:
    """Tries the settings of every method on the first seeds, and trains the best on the others.

    Args:
        cfg: the recipe's configuration.
        streams: one for each seed.
        accelerator: trains.
        folder: of the run.

    Returns:
        the chosen trainings of each method, in the order of the seeds, and the last state of every training.
    """
    states: dict[Training, dict[str, Any]] = {}
    chosen: dict[str, list[Training]] = {}
    tried = {method: plan(cfg, method) for method in all_methods(cfg)}
    trainings = sum(
        len(of_method) + len(cfg.seeds) - (cfg.tuning_seeds if of_method else 0) for of_method in tried.values()
    )
    with Lines(trainings, shown=accelerator.is_main_process) as lines:
        for method in all_methods(cfg):
            accelerator.free_memory()  # of the method before
            for training in tried[method]:
                states[training] = train(training, cfg, streams[training.seed], accelerator, folder, lines, states)
            # The second initialization of the linear probe has the setting of the first.
            point = chosen["none"][0].point if method == "null" else best_point(tried[method], states)
            chosen[method] = [Training(method, seed, point) for seed in cfg.seeds]
            for training in chosen[method]:
                if training not in states:
                    states[training] = train(training, cfg, streams[training.seed], accelerator, folder, lines, states)
    if accelerator.is_main_process:
        write_rows(folder / METRICS, [row for state in states.values() for row in state["rows"]])
    return chosen, states


def plan(cfg: DictConfig, method: str) -> list[Training]:
    """Lists the trainings that the setting of a method is chosen by; none where there is no choice."""
    points = range(len(settings_of(cfg, method)))
    if method == "null" or len(points) == 1:
        return []
    return [Training(method, seed, point) for point in points for seed in cfg.seeds[: cfg.tuning_seeds]]


def best_point(tried: Sequence[Training], states: Mapping[Training, dict[str, Any]]) -> int:
    """Chooses by the validation accuracy over all classes after the last split, the mean over the seeds tried."""
    found: dict[int, list[float]] = {}
    for training in tried:
        found.setdefault(training.point, []).append(states[training]["rows"][-1]["validation/accuracy"])
    return max(found, key=lambda point: fmean(found[point]), default=0)


def train(
    training: Training,
    cfg: DictConfig,
    stream: Stream,
    accelerator: Accelerator,
    folder: Path,
    lines: Lines,
    earlier: Mapping[Training, dict[str, Any]],
) -> dict[str, Any]:
    """Trains one learner on its stream and returns its last state.

    Returns:
        `epoch` (over all splits), `rows` (what was measured after each split) and `snapshots`: the state of its network
        before the first split, and of those after each split what differs from that.
    """
    path = folder / CHECKPOINTS / f"{training.name}.pt"
    seed_all(*training.key)
    learner = build_learner(cfg, training, features=stream.features, classes=stream.classes)
    stages = stream.stages(learner)
    epochs = cfg.epochs * len(stages)
    state = load_checkpoint(path)
    if state is not None and state["epoch"] == epochs:
        lines.advance(f"{training.name}: done before")
        return state

    options = settings_of(cfg, training.method)[training.point]
    learner.prepare(
        stream.unlabeled, cfg.initialize, Path(cfg.cache), described=str(cfg.bottleneck.get(training.method))
    )
    optimizer = torch.optim.SGD(learner.parameter_groups(options["lr"]), momentum=cfg.momentum)
    model, optimizer = accelerator.prepare(learner, optimizer)
    if state is None:
        state = {"epoch": 0, "rows": [], "snapshots": [_changed(learner.network, {})]}
    else:
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        lines.advance(f"{training.name}: resumed", 0)

    for epoch in range(state["epoch"], epochs):
        stage, epoch_of_stage = divmod(epoch, cfg.epochs)
        rows = rows_of(stream.train, stages[stage])
        # Of no rank: a memory that is drawn is the same on all of them.
        seed_all(*training.key, epoch)
        sampler = EpochSampler(len(rows), seed=training.key[0] + 1_000_003 * training.key[1])
        sampler.set_epoch(epoch)
        batches = accelerator.prepare_data_loader(loader(rows, cfg.batch_size, sampler=sampler, drop_last=True))
        loss = train_epoch(model, learner, batches, optimizer, accelerator, clip=cfg.clip)
        if not math.isfinite(loss):
            raise RuntimeError(f"{training.name}: the loss of epoch {epoch + 1} is {loss}: lower its lr in settings")
        if epoch_of_stage + 1 == cfg.epochs:
            if learner.is_told_boundaries:
                learner.end_split(rows, torch.Generator().manual_seed(training.seed + stage))
            row = {"method": training.method, "seed": training.seed, "setting": training.point, "lr": options["lr"]}
            row |= {"split": stage + 1, "epoch": epoch + 1, "classes": " ".join(map(str, stages[stage]))}
            row |= {"train/loss": loss, **measure(learner, stream.validation, accelerator)}
            snapshots = [*state["snapshots"], _changed(learner.network, state["snapshots"][0])]
            state = state | {"rows": [*state["rows"], row], "snapshots": snapshots}
            tracked = {f"{training.name}/{key}": value for key, value in row.items() if "/" in key}
            accelerator.log(tracked, step=stage + 1)
            lines.advance(_described(training, row, len(stages)), int(epoch + 1 == epochs))
        state = {**state, "epoch": epoch + 1}
        if accelerator.is_main_process:
            goes_on = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(path, state | (goes_on if epoch + 1 < epochs else {}))
    if accelerator.is_main_process:
        write_rows(folder / METRICS, [row for other in (*earlier.values(), state) for row in other["rows"]])
    return {key: state[key] for key in ("epoch", "rows", "snapshots")}


def train_epoch(
    model: nn.Module,
    learner: Learner,
    batches: DataLoader,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    *,
    clip: float,
) -> float:
    """Learns the batches and returns their mean loss; `model` is the learner, wrapped where there are processes."""
    model.train()
    losses = []
    for x, y in batches:
        loss = model(x, y)
        accelerator.backward(loss)
        if clip:
            accelerator.clip_grad_norm_(learner.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        seen: Any = accelerator.gather((x, y))
        learner.after_step(*seen)
        losses.append(loss.detach())
    mean: Any = accelerator.reduce(torch.stack(losses).mean(), "mean")
    return mean.item()


def measure(learner: Learner, validation: Rows | None, accelerator: Accelerator) -> dict[str, float]:
    """Measures the accuracy over the validation rows of all classes, and what the learner says of itself."""
    found = {f"validation/{name}": value for name, value in learner.usage().items()}
    if validation is not None:
        right = predicted_classes(learner, validation, accelerator.device) == validation.targets
        found["validation/accuracy"] = right.double().mean().item()
    return found


@torch.no_grad()
def predicted_classes(learner: Learner, rows: Rows, device: torch.device, batch_size: int = 512) -> Tensor:
    """Returns the most probable of all classes for each row, `(rows,)`."""
    learner.eval()
    return torch.cat([learner.logits(x.to(device)).argmax(1).cpu() for x, _ in loader(rows, batch_size)])


def _changed(network: nn.Module, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies what differs from the start: keys that are frozen are kept once."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return {
        name: tensor.clone()
        for name, tensor in state.items()
        if name not in start or not torch.equal(tensor, start[name])
    }


def _described(training: Training, row: Mapping[str, Any], stages: int) -> str:
    accuracy = f"  validation accuracy {row['validation/accuracy']:.4f}" if "validation/accuracy" in row else ""
    return f"{training.name} split {row['split']}/{stages}  loss {row['train/loss']:.4f}{accuracy}"
