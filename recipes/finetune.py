"""Fine-tuning with and without a bottleneck: the same pretrained network, images, seeds and budget, one table.

    python recipes/finetune.py                                            # digits from few images, a minute, offline
    python recipes/finetune.py data=image_folder data.path=pets model=torchvision model.weights=DEFAULT \
        pretraining.classes=[] shots=[10,100] mode=last_stage tune=true
    python recipes/finetune.py experiment=finetune_cifar_jpeg             # a pretrained file, degraded images
    accelerate launch --num_processes 2 recipes/finetune.py ...           # the same on several GPUs

`main` checks before anything is written; `run` reads top to bottom: for each number of labeled images train and
select, then test on clean, corrupted and shifted images, report. The training loop is `ibreg/runs/training.py`. A
fraction of the labeled images is held out to select epochs, beta, weight decay and dropout: with five images per class
there are no others. A training run depends on configuration and seed alone; with `resume=true` a killed run resumes at
its last epoch and ends bit-identically on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ibreg.optimization import learning_rate_groups
from ibreg.plots.classification import learning_curves, reliability_diagram
from ibreg.plots.few_shot import images_curve
from ibreg.runs.accelerator import build_accelerator
from ibreg.runs.comparison import Trained, rehearse, train_all
from ibreg.runs.config.entry import entry_point
from ibreg.runs.config.recipe import check_steps
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.few_shot import few_shot
from ibreg.runs.folder import CHECKPOINTS, METRICS, write_rows
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.methods import build_method
from ibreg.runs.tasks.classification import Classified, classify, mixup
from ibreg.runs.tasks.finetuning import FinetuneConfig, backbone_of, load, measure, new_parts, sets_to_test
from ibreg.runs.training import Task

CURVES = ("train/loss", "train/penalty", "train/rate", "validation/nll", "validation/accuracy", "validation/rate")
SHOWN = {
    "accuracy": "accuracy (%)",
    "ece": "calibration error (%)",
    "accuracy_corrupted": "accuracy, corrupted images (%)",
    "accuracy_shifted": "accuracy, shifted images (%)",
    "accuracy_other": "accuracy, other data (%)",
}


@dataclass(frozen=True)
class Part:
    """The task for one number of labeled images per class.

    Attributes:
        name: as in "5_per_class".
        images: labeled images per class, on average.
        cfg: the configuration, with epochs and batch size for this number of images.
        task: what is trained.
    """

    name: str
    images: float
    cfg: FinetuneConfig
    task: Task


@entry_point(FinetuneConfig)
def main(cfg: FinetuneConfig) -> float | None:
    """Checks the data, opens the folder, runs what is not finished in it, and returns the validation error."""
    accelerator = build_accelerator(cfg)
    source, data = load(cfg)
    tests = sets_to_test(cfg, data)
    backbone = backbone_of(cfg, data, source)
    new = new_parts(backbone)
    if cfg.mode == "frozen" and new:
        raise ValueError(f"mode=frozen trains bottlenecks alone, but no weights were loaded into {', '.join(new[:5])}")
    if cfg.mode == "frozen" and cfg.control and accelerator.num_processes > 1:
        raise ValueError("mode=frozen leaves the controls nothing to train: use one process, or control=false")
    parts = [part_of(cfg, shots, data, backbone, accelerator) for shots in cfg.shots]
    for part in parts:
        rehearse(part.cfg, part.task)
    untouched = None if new else backbone
    return launch(cfg, accelerator, lambda folder: run(cfg, data.name, parts, untouched, tests, accelerator, folder))


def part_of(
    cfg: FinetuneConfig,
    shots: int,
    data: ClassificationData,
    backbone: Callable[[int | None], nn.Module],
    accelerator: Accelerator,
) -> Part:
    """Samples the labeled images of every seed and builds their task."""
    name = f"{shots}_per_class" if shots else "all"
    few = {seed: few_shot(data, shots, validation=cfg.data.validation, seed=seed) for seed in cfg.seeds}
    rows = len(few[cfg.seeds[0]].train)
    processes = accelerator.num_processes
    batch = min(cfg.batch_size, rows // processes * processes)
    own = cfg.model_copy(update={"batch_size": batch, "epochs": max(cfg.epochs, -(-cfg.steps // (rows // batch)))})
    check_steps(own, rows=rows, processes=processes)
    task = Task(
        data=few,
        model=lambda trial: build_method(own, trial, backbone, example=torch.zeros(1, *data.input_shape)),
        loss=lambda trial: nn.CrossEntropyLoss(label_smoothing=cfg.label_smoothing),
        measure=lambda model, data: classify(model, data.validation, accelerator, draws=cfg.prediction_draws).metrics(),
        quality=lambda validation: (-validation["nll"],),  # accuracy on a few images is a noisy criterion
        mix=mixup(cfg.mixup, data.classes) if cfg.mixup else None,
        parameters=lambda model: learning_rate_groups(model, lr=cfg.lr, lr_backbone=cfg.lr_backbone),
        label=f"{name}/",
    )
    images = shots or len(data.train) / data.classes
    return Part(name, images, own, task)


def run(
    cfg: FinetuneConfig,
    data: str,
    parts: Sequence[Part],
    untouched: Callable[[int | None], nn.Module] | None,
    tests: Mapping[str, Sequence[Any]],
    accelerator: Accelerator,
    folder: Path,
) -> Outcome | None:
    """Trains and selects with each number of images, tests and plots."""

    def tested(model: nn.Module) -> tuple[Classified, dict[str, float]]:
        return measure(model, tests, accelerator, draws=cfg.prediction_draws)

    before = None if untouched is None else tested(untouched(None).to(accelerator.device))[1]
    rows, points, selected, results, validation = [], [], {}, {}, {}
    for part in parts:
        place = folder / CHECKPOINTS / part.name
        if accelerator.is_main_process:
            (place / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        trained = train_all(part.cfg, part.task, accelerator, place)
        found = {
            method: [tested(trained.model(part.task, trial, accelerator.device)) for trial in trials]
            for method, trials in trained.selected.items()
        }
        metrics = {method: [of_seed for _, of_seed in seeds] for method, seeds in found.items()}
        metrics |= {} if before is None else {"pretrained": [before] * len(cfg.seeds)}
        for method, seeds in metrics.items():
            for of_seed, collected in zip(seeds, results.setdefault(method, [{} for _ in seeds]), strict=True):
                collected |= {f"{key}_{part.name}": value for key, value in of_seed.items()}
        points += points_of(part, cfg.seeds, metrics)
        rows += [{"images": part.name} | row for row in trained.rows()]
        selected[part.name] = trained.choices(part.cfg)
        validation = validation or trained.validation("error")  # of the first number of images, as the headline
        if accelerator.is_main_process:
            draw(folder, part.name, trained, {method: [each for each, _ in seeds] for method, seeds in found.items()})
    if not accelerator.is_main_process:
        return None
    write_rows(folder / METRICS, rows)
    images_curve(points, folder / "images.png")
    return Outcome(
        data=data, tested=results, selected=selected, headline=columns(cfg, parts, results), validation=validation
    )


def points_of(
    part: Part, seeds: Sequence[int], metrics: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[dict[str, Any]]:
    """Returns the points of one number of images in the plot of metrics over images."""
    return [
        {"method": method, "seed": seed, "images": part.images}
        | {label: 100 * of_seed[key] for key, label in SHOWN.items() if key in of_seed}
        for method, of_method in metrics.items()
        for seed, of_seed in zip(seeds, of_method, strict=True)
    ]


def draw(folder: Path, name: str, trained: Trained, tested: Mapping[str, Sequence[Classified]]) -> None:
    """Plots learning curves and reliability."""
    learning_curves(trained.curves(CURVES), folder / f"learning_curves_{name}.png")
    pooled = {
        method: (torch.cat([each.probabilities for each in seeds]), torch.cat([each.targets for each in seeds]))
        for method, seeds in tested.items()
    }
    reliability_diagram(pooled, folder / f"reliability_{name}.png")


def columns(
    cfg: FinetuneConfig, parts: Sequence[Part], results: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[tuple[str, str, int, int]]:
    """Returns the columns of the table: the error for every number of images, other metrics for the middle one."""
    middle = parts[len(parts) // 2].name
    shown = [(f"test/error_{part.name}", f"test error, {_told(part.name)} (%)", 100, 1) for part in parts]
    others = {
        "ece": "ECE",
        "error_corrupted": "error corrupted",
        "error_shifted": "error shifted",
        "error_other": "other",
    }
    measured = {key for seeds in results.values() for key in seeds[0]}
    return shown + [
        (f"test/{key}_{middle}", f"{heading}, {_told(middle)} (%)", 100, 1)
        for key, heading in others.items()
        if f"{key}_{middle}" in measured
    ]


def _told(name: str) -> str:
    return name.replace("_", " ")


if __name__ == "__main__":
    main()
