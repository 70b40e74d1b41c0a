"""Continual learning on the common training loop: a task whose stages are the splits of a stream of classes.

After each split a snapshot of the network is kept, so that the selected learners are tested at every stage at the end;
nothing here reads the test split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ibreg.layers.key_value.codebooks import MovingCodebooks
from ibreg.regularized import Penalized
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.data.streams import rows_of
from ibreg.runs.optimizers import constant
from ibreg.runs.tasks.continual import learners
from ibreg.runs.tasks.continual.bottlenecked import Bottlenecked
from ibreg.runs.tasks.continual.configuration import ContinualConfig
from ibreg.runs.tasks.continual.learners import Learner
from ibreg.runs.training import Task
from ibreg.runs.trials import CONTROLS, Trial, settings_of


@dataclass(frozen=True)
class Stream:
    """Features and classes, split by split.

    Attributes:
        train: training rows of all splits.
        validation: rows to select by, or None.
        test: rows that are used once, at the end.
        ood: test rows of another data set, or None.
        unlabeled: `(rows, features)`, that keys are initialized with.
        splits: the classes of each split, in their order of arrival.
        classes: number of classes of all splits.
    """

    train: Rows
    validation: Rows | None
    test: Rows
    ood: Rows | None
    unlabeled: Tensor
    splits: Sequence[tuple[int, ...]]
    classes: int

    @property
    def features(self) -> int:
        """The size of a row."""
        return self.unlabeled.shape[1]

    def stages(self, method: str) -> list[tuple[int, ...]]:
        """Returns the classes that a method learns together: split by split, or all at once."""
        return [tuple(sum(self.splits, ()))] if method in learners.ALL_AT_ONCE else list(self.splits)


def random_stream(*, rows: int, features: int, classes: int, unlabeled: int) -> Stream:
    """Returns a stream of random rows, to rehearse learners before the data are encoded."""
    train = Rows(torch.randn(rows, features), torch.arange(rows) % classes)
    return Stream(train, None, train, None, torch.zeros(unlabeled, features), [tuple(range(classes))], classes)


@dataclass(frozen=True)
class StreamTask(Task):
    """Learners that are trained split by split, see `stream_task`."""

    measured_by_stage: ClassVar[bool] = True
    reshuffled: ClassVar[bool] = False
    noise_by_rank: ClassVar[bool] = False  # rows that a memory samples have to be the same on all ranks

    def stages(self, trial: Trial) -> Sequence[Rows]:
        """Returns the training rows of each split."""
        stream = self.data[trial.seed]
        return [rows_of(stream.train, classes) for classes in stream.stages(trial.method)]

    def prepare(self, cfg: ContinualConfig, trial: Trial, model: nn.Module) -> None:
        """Initializes keys with the unlabeled rows."""
        unlabeled, described = self.data[trial.seed].unlabeled, str(cfg.bottleneck.get(trial.method))
        _learner(model).prepare(unlabeled, dict(cfg.initialize), Path(cfg.cache), described=described)

    def optimizer(self, cfg: ContinualConfig, trial: Trial, model: nn.Module) -> Optimizer:
        """Builds SGD with the learning rate of the setting."""
        return torch.optim.SGD(_learner(model).parameter_groups(setting_of(cfg, trial)["lr"]), momentum=cfg.momentum)

    def lr_schedule(self, cfg: ContinualConfig, trial: Trial, optimizer: Optimizer) -> LRScheduler:
        """Keeps the learning rate."""
        return constant(optimizer, cfg.epochs)

    def batch_loss(
        self, model: nn.Module, criterion: Penalized, x: Tensor, y: Tensor, concepts: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Returns the loss of a batch, which a learner computes itself."""
        return model(x, y), None

    def after_step(self, model: nn.Module, accelerator: Accelerator, batch: Sequence[Tensor]) -> None:
        """Passes the batch of all ranks to the learner."""
        x, y = accelerator.gather(tuple(batch))
        _learner(model).after_step(x, y)

    def end_stage(self, trial: Trial, model: nn.Module, stage: int, rows: Rows) -> dict[str, Any]:
        """Passes the rows of the split to a learner that is told boundaries."""
        learner = _learner(model)
        if learner.is_told_boundaries:
            learner.end_split(rows, torch.Generator().manual_seed(trial.seed + stage))
        classes = self.data[trial.seed].stages(trial.method)[stage]
        return {"split": stage + 1, "classes": " ".join(map(str, classes))}

    def row(self, cfg: ContinualConfig, trial: Trial) -> dict[str, Any]:
        """Returns method, seed, index of the setting, and learning rate."""
        return {
            "method": trial.method,
            "seed": trial.seed,
            "setting": trial.value("setting"),
            "lr": setting_of(cfg, trial)["lr"],
        }

    def validate(self, trial: Trial, model: nn.Module) -> dict[str, float]:
        """Measures a learner, without validation rows its usage alone."""
        return self.measure(model, self.data[trial.seed])

    def start(self, model: nn.Module) -> dict[str, Any]:
        """Returns the snapshot before the first split."""
        return {"snapshots": [_changed(_learner(model).network, {})]}

    def keep(
        self,
        cfg: ContinualConfig,
        trial: Trial,
        state: Mapping[str, Any],
        epoch: int,
        validation: Any,
        model: nn.Module,
    ) -> dict[str, Any]:
        """Returns the snapshots so far with that of this stage, and its validation metrics."""
        snapshots = state["snapshots"]
        return {"validation": validation, "snapshots": [*snapshots, _changed(_learner(model).network, snapshots[0])]}


def stream_task(cfg: ContinualConfig, streams: Mapping[int, Stream], device: torch.device) -> StreamTask:
    """Builds the task of a run.

    Args:
        cfg: the recipe's configuration.
        streams: one for each seed.
        device: of the learners.
    """
    return StreamTask(
        data=streams,
        model=lambda trial: build_learner(cfg, trial, streams[trial.seed]),
        loss=lambda trial: nn.Identity(),  # a learner has its own
        measure=lambda model, stream: measure(_learner(model), stream.validation, device),
        quality=lambda validation: (validation["accuracy"],),  # over all classes, after the last split
    )


def setting_of(cfg: ContinualConfig, trial: Trial) -> dict[str, Any]:
    """Returns the setting of a trial: `lr` and options of its method."""
    index: Any = trial.value("setting")
    return settings_of(cfg, trial.method)[index]


def build_learner(cfg: ContinualConfig, trial: Trial, stream: Stream) -> Learner:
    """Builds the learner of a trial, freshly initialized, its keys not initialized yet.

    Raises:
        ValueError: If an option of the setting is wrong, or there are fewer unlabeled rows than keys.
    """
    options = {option: value for option, value in setting_of(cfg, trial).items() if option != "lr"}
    try:
        learner = _build(cfg, trial.method, options, features=stream.features, classes=stream.classes)
        keys = max((part.size for part in learner.modules() if isinstance(part, MovingCodebooks)), default=0)
        if keys > len(stream.unlabeled):
            raise ValueError(f"{len(stream.unlabeled)} unlabeled rows are too few for {keys} keys in each codebook")
    except (TypeError, ValueError) as error:
        raise ValueError(f"setting {int(trial.value('setting') or 0) + 1} of {trial.method}: {error}") from error
    return learner


def _build(cfg: ContinualConfig, method: str, options: dict[str, Any], *, features: int, classes: int) -> Learner:
    criterion = nn.CrossEntropyLoss(label_smoothing=cfg.label_smoothing)
    if method in cfg.bottlenecks:
        # Its code is the logits, unless another size is configured.
        size = options.pop("out_features", None) or cfg.bottleneck[method].get("out_features") or classes
        layer = build_bottleneck(cfg, method, in_features=features, out_features=size, **options)
        return Bottlenecked(layer, classes, criterion)
    name = "linear" if method in CONTROLS else method
    own = cfg.learner.get(name, {}) | options
    section = f"learner.{name}"
    return learners.build(name, features=features, classes=classes, criterion=criterion, options=own, section=section)


def measure(learner: Learner, validation: Rows | None, device: torch.device) -> dict[str, float]:
    """Measures the usage of a learner, and its accuracy over the validation rows of all classes."""
    metrics = learner.usage()
    if validation is not None:
        correct = predicted_classes(learner, validation, device) == validation.targets
        metrics["accuracy"] = correct.double().mean().item()
    return metrics


@torch.no_grad()
def predicted_classes(learner: Learner, rows: Rows, device: torch.device, batch_size: int = 512) -> Tensor:
    """Returns the most probable of all classes for each row, `(rows,)`."""
    learner.eval()
    return torch.cat([learner.logits(x.to(device)).argmax(1).cpu() for x, _ in loader(rows, batch_size)])


def _learner(model: nn.Module) -> Learner:
    assert isinstance(model, Learner)
    return model


def _changed(network: nn.Module, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies the entries of a state that differ from the start: frozen keys are kept once."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return {
        name: tensor.clone()
        for name, tensor in state.items()
        if name not in start or not torch.equal(tensor, start[name])
    }
