"""Classification with and without a bottleneck: the same model, seeds and budget, one table.

    python recipes/classification.py                                      # digits, about a minute, offline
    python recipes/classification.py data=mnist model=lenet tune=true     # beta, weight decay selected on validation
    python recipes/classification.py experiment=vib_mnist                 # a paper's settings
    accelerate launch --num_processes 2 recipes/classification.py ...     # the same on several GPUs
    torchrun --standalone --nproc_per_node 2 recipes/classification.py device=cpu ...      # and on CPU processes

`main` checks before anything is written; `run` reads top to bottom: train and select, test, report. The training loop
is `ibreg/runs/training.py`; a training run depends on configuration and seed alone. With `resume=true` a killed run
resumes at its last epoch and ends bit-identically on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from ibreg.evaluation.classification.metrics import label_entropy
from ibreg.plots.classification import information_curve, learning_curves, reliability_diagram
from ibreg.runs.accelerator import build_accelerator
from ibreg.runs.comparison import Trained, rehearse, train_all
from ibreg.runs.config.composition import rate_bounds
from ibreg.runs.config.entry import entry_point
from ibreg.runs.config.recipe import check_steps
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.rows import Rows
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.methods import build_model
from ibreg.runs.report.columns import print_columns, write_columns
from ibreg.runs.tasks.classification import ClassificationConfig, Classified, classify, mixup
from ibreg.runs.training import Task
from ibreg.runs.trials import Trial

CURVES = ("train/loss", "train/penalty", "train/rate", "validation/nll", "validation/accuracy", "validation/rate")


@entry_point(ClassificationConfig)
def main(cfg: ClassificationConfig) -> float | None:
    """Checks the data, opens the folder, runs what is not finished in it, and returns the validation error."""
    accelerator = build_accelerator(cfg)
    data = datasets.load(**dict(cfg.data))
    if accelerator.is_main_process:
        print_columns(data)
    check_steps(cfg, rows=len(data.train), processes=accelerator.num_processes)
    task = Task(
        data=dict.fromkeys(cfg.seeds, data),
        model=lambda trial: build_model(cfg, trial, data.input_shape, data.classes, data.normalization),
        loss=lambda trial: nn.CrossEntropyLoss(label_smoothing=cfg.label_smoothing),
        measure=lambda model, data: classify(model, data.validation, accelerator, draws=cfg.prediction_draws).metrics(),
        quality=quality,
        mix=mixup(cfg.mixup, data.classes) if cfg.mixup else None,
    )
    rehearse(cfg, task)
    return launch(cfg, accelerator, lambda folder: run(cfg, data, task, accelerator, folder))


def run(
    cfg: ClassificationConfig, data: datasets.ClassificationData, task: Task, accelerator: Accelerator, folder: Path
) -> Outcome | None:
    """Trains and selects, tests and plots."""
    if accelerator.is_main_process:
        write_columns(data, folder)
    trained = train_all(cfg, task, accelerator, folder)

    def evaluated(trial: Trial, part: Rows, draws: int) -> Classified:
        return classify(trained.model(task, trial, accelerator.device), part, accelerator, draws=draws)

    # Nothing is selected by the curve: without validation data it is measured on the test split.
    held_out = data.test if data.validation is None else data.validation
    curve = {trial: evaluated(trial, held_out, draws=max(cfg.prediction_draws, 1)) for trial in trained.sweep}
    tested = {
        method: [evaluated(trial, data.test, draws=cfg.prediction_draws) for trial in trials]
        for method, trials in trained.selected.items()
    }
    if not accelerator.is_main_process:
        return None
    draw(cfg, folder, trained, tested, curve)
    return Outcome(
        data=data.name,
        tested={method: [each.metrics() for each in seeds] for method, seeds in tested.items()},
        selected=trained.choices(cfg),
        headline=columns(cfg),
        validation=trained.validation("error"),
    )


def quality(validation: Mapping[str, float]) -> tuple[float, float]:
    """Orders epochs and grid points by accuracy, equal ones by likelihood."""
    return validation["accuracy"], -validation["nll"]


def draw(
    cfg: ClassificationConfig,
    folder: Path,
    trained: Trained,
    tested: Mapping[str, Sequence[Classified]],
    curve: Mapping[Trial, Classified],
) -> None:
    """Plots learning curves, reliability and, with a sweep of beta, the information curve."""
    learning_curves(trained.curves(CURVES), folder / "learning_curves.png")
    pooled = {
        method: (torch.cat([each.probabilities for each in seeds]), torch.cat([each.targets for each in seeds]))
        for method, seeds in tested.items()
    }
    reliability_diagram(pooled, folder / "reliability.png")
    points, bounds, entropy = [], rate_bounds(cfg, cfg.bottlenecks), 0.0
    for trial, measured in curve.items():
        metrics = measured.metrics()
        if "rate" in metrics:
            entropy = label_entropy(measured.targets)
            # I(Z; X) = I(Z; X | Y) + I(Z; Y), and the rate of a conditional prior bounds the first term alone.
            bound = metrics["rate"] + (entropy if bounds[trial.method] == "I(X;Z|Y)" else 0)
            points.append(
                {"method": trial.method, "beta": trial.beta, "rate": bound}
                | {key: metrics[key] for key in ("information", "accuracy")}
            )
    if points:
        information_curve(points, folder / "information_curve.png", label_entropy=entropy)


def columns(cfg: ClassificationConfig) -> list[tuple[str, str, int, int]]:
    """Returns the columns of the table; the heading of the rate names the information that it bounds from above."""
    bounds = rate_bounds(cfg, cfg.bottlenecks)
    most = next(iter(bounds.values()), "I(X;Z)")
    bounded = ", ".join([most, *(f"{method}: {bound}" for method, bound in bounds.items() if bound != most)])
    return [
        ("test/error", "test error (%)", 100, 2),
        ("test/nll", "test NLL (nats)", 1, 4),
        ("test/ece", "test ECE (%)", 100, 2),
        ("test/rate", f"rate ≥ {bounded} (nats)", 1, 2),
    ]


if __name__ == "__main__":
    main()
