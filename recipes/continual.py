"""Class-incremental learning: a key-value bottleneck, the linear probe and other learners after a frozen encoder.

    python recipes/continual.py                                           # eight Gaussians, under a minute, offline
    python recipes/continual.py experiment=dkvb_fashion_mnist             # features of a pretrained network
    accelerate launch --num_processes 2 recipes/continual.py ...          # the same on several GPUs
    torchrun --standalone --nproc_per_node 2 recipes/continual.py device=cpu ...           # and on CPU processes

`main` checks before the run's folder is made; `run` reads top to bottom: encode, train and select, test, plot. The
training loop is `ibreg/runs/training.py`, with the splits as its stages; a training run depends on configuration and
seed alone. With `resume=true` a killed run resumes at its last epoch and ends bit-identically on a CPU. The test rows
are used once, at the end, with the learners as they were after each split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from ibreg.plots.continual import accuracy_over_splits, decision_regions, key_usage
from ibreg.runs.accelerator import build_accelerator
from ibreg.runs.comparison import Trained, rehearse, train_all
from ibreg.runs.config.entry import entry_point
from ibreg.runs.config.recipe import check_steps
from ibreg.runs.data import streams as continual_data
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import data_folder
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.models import encoders
from ibreg.runs.models.features import encode, standardized
from ibreg.runs.tasks.continual.configuration import ContinualConfig
from ibreg.runs.tasks.continual.stream import Stream, predicted_classes, random_stream, setting_of, stream_task
from ibreg.runs.tasks.continual.testing import Tested, examine, restored
from ibreg.runs.trials import SECOND, Trial

PLANE = 150  # points along a side of the plane of the decision regions


@entry_point(ContinualConfig)
def main(cfg: ContinualConfig) -> float | None:
    """Checks the data, opens the folder, runs what is not finished in it, and returns the validation accuracy."""
    accelerator = build_accelerator(cfg)
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("a learner is whole in every process: launch without --use_fsdp")
    data = continual_data.load(**dict(cfg.data))
    unlabeled = load_unlabeled(cfg, data)
    if not set(cfg.unlearning.classes) < set(range(data.classes)):
        raise ValueError(f"unlearning.classes must be some of the {data.classes} classes, got {cfg.unlearning.classes}")
    for split in {split for splits in class_splits(cfg, data).values() for split in splits}:
        rows = torch.isin(data.train.targets, torch.tensor(split)).sum()
        check_steps(cfg, rows=int(rows), processes=accelerator.num_processes)
    encoder = build_encoder(cfg, data.input_shape)
    features, others = (encoder(inputs[[0]]).shape[1] for inputs in (data.test.inputs, unlabeled))
    if features != others:
        raise ValueError(
            f"inputs of {cfg.unlabeled.name} have {others} features, those of {data.name} {features}: take another "
            "set, or unlabeled.name=null"
        )
    stream = random_stream(rows=cfg.batch_size, features=features, classes=data.classes, unlabeled=len(unlabeled))
    rehearse(cfg, stream_task(cfg, dict.fromkeys(cfg.seeds, stream), accelerator.device))
    return launch(cfg, accelerator, lambda folder: run(cfg, data, unlabeled, encoder, accelerator, folder))


def load_unlabeled(cfg: ContinualConfig, data: ClassificationData):
    """Loads the inputs that keys are initialized with: those of another data set, or the set's own."""
    if cfg.unlabeled.name is None:
        return continual_data.unlabeled_inputs(data, cfg.unlabeled.limit)
    return load_other(cfg, "unlabeled").train.inputs


def load_other(cfg: ContinualConfig, section: str) -> ClassificationData:
    """Loads the data set of a section other than `data`, from the same root."""
    shared = {"root": cfg.data.root, "download": cfg.data.download, "validation": 0}
    return continual_data.load(**dict(continual_data.request({**shared, **dict(getattr(cfg, section))}, section)))


def class_splits(cfg: ContinualConfig, data: ClassificationData) -> dict[int, list[tuple[int, ...]]]:
    """Returns the classes of each split, for every seed in its own order."""
    splits = {}
    for seed in cfg.seeds:
        order = continual_data.class_order(data.classes, seed if cfg.shuffle_classes else None)
        splits[seed] = continual_data.class_splits(order, cfg.classes_per_split)
    return splits


def build_encoder(cfg: ContinualConfig, input_shape: Sequence[int]) -> nn.Module:
    """Builds the frozen encoder; one that a previous run has trained is read from the cache."""
    root = data_folder(cfg.data.root)
    return encoders.build(**cfg.encoder, input_shape=input_shape, root=root, cache=Path(cfg.cache))


def run(
    cfg: ContinualConfig,
    data: ClassificationData,
    unlabeled,
    encoder: nn.Module,
    accelerator: Accelerator,
    folder: Path,
) -> Outcome | None:
    """Encodes, trains and selects, tests and plots."""
    streams = build_streams(cfg, data, unlabeled, encoder, accelerator)
    trained = train_all(cfg, stream_task(cfg, streams, accelerator.device), accelerator, folder)
    if not accelerator.is_main_process:
        return None

    def tested_learner(trial: Trial) -> Tested:
        return examine(cfg, trial, streams[trial.seed], trained.states[trial], accelerator.device)

    tested = {method: list(map(tested_learner, trials)) for method, trials in trained.selected.items()}
    draw(folder, data, tested)
    stream = streams[cfg.seeds[0]]
    if stream.features == 2:
        draw_plane(cfg, folder, data, stream, trained, accelerator)
    return Outcome(
        data=data.name,
        tested={method: [of_seed.metrics for of_seed in seeds] for method, seeds in tested.items()},
        selected={method: setting_of(cfg, trials[0]) for method, trials in trained.selected.items()},
        headline=columns(cfg, tested),
        validation=trained.validation("accuracy"),
    )


def build_streams(
    cfg: ContinualConfig, data: ClassificationData, unlabeled, encoder: nn.Module, accelerator: Accelerator
) -> dict[int, Stream]:
    """Encodes all rows once, and orders them by splits for every seed."""

    def features(inputs) -> torch.Tensor:
        return encode(encoder, inputs, cache=Path(cfg.cache), device=accelerator.device)

    others = features(unlabeled)

    def part(rows: Rows) -> Rows:
        return Rows(standardized(features(rows.inputs), by=others), rows.targets)

    ood = None
    if cfg.ood.name is not None:
        ood = part(load_other(cfg, "ood").test)
    parts = {
        "train": part(data.train),
        "validation": None if data.validation is None else part(data.validation),
        "test": part(data.test),
        "ood": ood,
        "unlabeled": standardized(others, by=others),
    }
    splits = class_splits(cfg, data)
    return {seed: Stream(**parts, splits=splits[seed], classes=data.classes) for seed in cfg.seeds}


def draw(folder: Path, data: ClassificationData, tested: Mapping[str, Sequence[Tested]]) -> None:
    """Plots the accuracy over splits and the usage of keys."""
    accuracies = {method: [of_seed.accuracies for of_seed in seeds] for method, seeds in tested.items()}
    accuracy_over_splits(accuracies, folder / "accuracy_over_splits.png", chance=1 / data.classes)
    used = {method: [of_seed.used for of_seed in seeds if of_seed.used] for method, seeds in tested.items()}
    if any(used.values()):
        key_usage(used, folder / "key_usage.png")


def draw_plane(
    cfg: ContinualConfig,
    folder: Path,
    data: ClassificationData,
    stream: Stream,
    trained: Trained,
    accelerator: Accelerator,
) -> None:
    """Plots the decision regions of the first seed's learners in the plane of two features, after each split."""
    corners = stream.unlabeled.min(0).values, stream.unlabeled.max(0).values
    (left, bottom), (right, top) = (corner.tolist() for corner in corners)
    across, up = np.linspace(left, right, PLANE), np.linspace(bottom, top, PLANE)
    places = torch.tensor(np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2), dtype=torch.float32)
    plane = Rows(places, torch.zeros(len(places), dtype=torch.long))
    regions = {}
    for method, (trial, *_) in trained.selected.items():
        if method in SECOND:
            continue
        state = trained.states[trial]
        learners = [restored(cfg, trial, stream, state, stage) for stage in range(1, len(state["snapshots"]))]
        answers = [predicted_classes(learner.to(accelerator.device), plane, accelerator.device) for learner in learners]
        regions[method] = torch.stack(answers).view(-1, PLANE, PLANE).numpy()
    decision_regions(
        regions,
        stream.test.inputs.numpy(),
        stream.test.targets.numpy(),
        stream.splits,
        folder / "decision_regions.png",
        extent=(left, right, bottom, top),
        names=data.class_names,
    )


def columns(cfg: ContinualConfig, tested: Mapping[str, Sequence[Tested]]) -> list[tuple[str, str, int, int]]:
    """Returns the columns of the table: the metrics that at least one method has."""
    shown = {
        "accuracy": "accuracy, all classes (%)",
        "forgetting": "forgetting (%)",
        "backward_transfer": "backward transfer (%)",
        "forward_transfer": "forward transfer (%)",
        "used": "pairs used (%)",
        "forgotten_before": "accuracy on unlearned classes, before (%)",
        "forgotten_after": "after (%)",
        "retained_before": "other classes, before (%)",
        "retained_after": "after (%)",
        "ood_auroc": f"AUROC against {cfg.ood.name} (%)",
    }
    measured = {metric for seeds in tested.values() for metric in seeds[0].metrics}
    return [(f"test/{metric}", heading, 100, 1) for metric, heading in shown.items() if metric in measured]


if __name__ == "__main__":
    main()
