"""Concept bottlenecks and the same model without one: concepts, interventions and leakage in one table.

    python recipes/concepts.py                                            # digits, about a minute, offline
    python recipes/concepts.py data=shapes model=lenet edit=[bright]      # no spurious concept in the head
    python recipes/concepts.py bottlenecks=[concept] training=independent
    python recipes/concepts.py experiment=cem_synthetic                   # a paper's data, all models
    accelerate launch --num_processes 2 recipes/concepts.py ...           # the same on several GPUs

`main` checks the configuration before anything is written; `run` trains and selects, tests, examines and plots. The
training loop of all recipes is `ibreg/runs/training.py`. A training run is a function of configuration
and seed: `resume=true` continues a killed run at its last epoch, bit-identically on a CPU. The test split is used once,
at the end; the percentiles and means that interventions need are those of training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeGuard

from accelerate import Accelerator
from torch import nn

from ibreg.evaluation.concepts.metrics import concept_metrics
from ibreg.evaluation.concepts.predictions import predict_concepts
from ibreg.layers.concept.base import ConceptLayer
from ibreg.plots.classification import learning_curves
from ibreg.plots.concepts import head_plot, intervention_plot, leakage_plot, sample_plot
from ibreg.regularized import Regularized
from ibreg.runs.accelerator import build_accelerator
from ibreg.runs.comparison import Trained, rehearse, train_all
from ibreg.runs.config.entry import entry_point
from ibreg.runs.config.recipe import check_steps
from ibreg.runs.data import concepts as concept_data
from ibreg.runs.data.concepts import ConceptData
from ibreg.runs.data.split import load_splits
from ibreg.runs.folder import write_rows
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.methods import build_model
from ibreg.runs.report.columns import print_columns, write_columns
from ibreg.runs.tasks.classification import classify
from ibreg.runs.tasks.concepts.examination import Examined, check_interventions, examine, some_rows
from ibreg.runs.tasks.concepts.training import ConceptsConfig, trained_as, training_of, with_concepts
from ibreg.runs.training import Task
from ibreg.runs.trials import Trial

CURVES = (
    "train/loss",
    "train/penalty",
    "validation/nll",
    "validation/accuracy",
    "validation/concept_accuracy",
    "validation/concept_auroc",
)
COLUMNS = (
    ("test/accuracy", "test accuracy (%)", 100, 2),
    ("test/concept_auroc", "concept AUROC (%)", 100, 2),
    ("test/truth_accuracy", "with true concepts (%)", 100, 2),
    ("test/certain_accuracy", "with certain concepts (%)", 100, 2),
    ("test/ablated_accuracy", "without concepts (%)", 100, 2),
    ("test/ctl", "CTL", 1, 3),
    ("test/icl", "ICL", 1, 3),
)
SHIFTED_COLUMNS = (
    ("test/shifted_accuracy", "shifted accuracy (%)", 100, 2),
    ("test/shifted_edited_accuracy", "shifted, edited head (%)", 100, 2),
    ("test/shifted_truth_accuracy", "shifted, true concepts (%)", 100, 2),
)


@entry_point(ConceptsConfig)
def main(cfg: ConceptsConfig) -> float | None:
    """Check the data, open the run folder, run what is not finished in it, and return the validation accuracy."""
    accelerator = build_accelerator(cfg)
    data = load_splits(cfg.data, cfg.seeds, concept_data.load, split_by_seed=cfg.split_by_seed)
    first = data[cfg.seeds[0]]
    if accelerator.is_main_process:
        print_columns(first)
    check_interventions(cfg, first)
    for of_seed in data.values():
        check_steps(cfg, rows=len(of_seed.train), processes=accelerator.num_processes)
    cfg = with_concepts(cfg, first)
    task = Task(
        data=data,
        model=lambda trial: build_concept_model(cfg, data[trial.seed], trial),
        loss=lambda trial: nn.CrossEntropyLoss(),
        measure=lambda model, data: measure(cfg, model, data, accelerator),
        quality=quality,
    )
    rehearse(cfg, task)
    return launch(cfg, accelerator, lambda folder: run(cfg, data, task, accelerator, folder))


def run(
    cfg: ConceptsConfig, data: Mapping[int, ConceptData], task: Task, accelerator: Accelerator, folder: Path
) -> Outcome | None:
    """Train and select, test, examine the concept models, write tables and plots."""
    if accelerator.is_main_process:
        write_columns(data[cfg.seeds[0]], folder)
    trained = train_all(cfg, task, accelerator, folder)
    selected = {
        method: [(trained.model(task, trial, accelerator.device), data[trial.seed]) for trial in trials]
        for method, trials in trained.selected.items()
    }
    tested = {method: [test_metrics(cfg, *seed, accelerator) for seed in seeds] for method, seeds in selected.items()}
    if not accelerator.is_main_process:
        return None
    examined = {
        method: [
            examine(model, of_seed, cfg, accelerator.device, reference=control["accuracy"] if cfg.control else None)
            for (model, of_seed), control in zip(seeds, tested["none" if cfg.control else method], strict=True)
        ]
        for method, seeds in selected.items()
        if has_concepts(seeds[0][0])
    }
    write_rows(folder / "interventions.csv", intervention_rows(cfg, examined))
    write_rows(folder / "leakage.csv", leakage_rows(cfg, examined))
    plot(folder, data[cfg.seeds[0]], trained, examined, tested["none"] if cfg.control else [])
    for method, seeds in examined.items():
        for metrics, of_seed in zip(tested[method], seeds, strict=True):
            metrics |= {name: value for name, value in of_seed.metrics.items() if name in common(seeds)}
    first = data[cfg.seeds[0]]
    return Outcome(
        data=first.name,
        tested=tested,
        selected=trained.choices(cfg),
        headline=[*COLUMNS, *(SHIFTED_COLUMNS if first.shifted is not None else ())],
        validation=trained.validation("accuracy"),
    )


def build_concept_model(cfg: ConceptsConfig, data: ConceptData, trial: Trial) -> nn.Module:
    """Build the model of a method; a concept model gets the configured training of concepts and head."""
    model = build_model(cfg, trial, data.input_shape, data.classes, data.normalization)
    return trained_as(model, training_of(cfg, trial.method)) if has_concepts(model) else model


def has_concepts(model: nn.Module) -> TypeGuard[Regularized]:
    """Whether a model has a concept layer; controls and other bottlenecks do not."""
    return isinstance(model, Regularized) and any(isinstance(module, ConceptLayer) for module in model.modules())


def measure(cfg: ConceptsConfig, model: nn.Module, data: ConceptData, accelerator: Accelerator) -> dict[str, float]:
    """Measure predicted classes, and concepts if there are any, on the validation split."""
    assert data.validation is not None  # the engine measures on validation rows only if there are any
    metrics = classify(model, data.validation, accelerator, draws=cfg.prediction_draws).metrics()
    if has_concepts(model):
        x, _, labels = some_rows(data.validation, cfg.rows, accelerator.device)
        metrics |= concept_metrics(predict_concepts(model, x).logits, labels, data.concepts)
    return metrics


def test_metrics(
    cfg: ConceptsConfig, model: nn.Module, data: ConceptData, accelerator: Accelerator
) -> dict[str, float]:
    """Measure predicted classes on the test split, and on the shifted one if there is one."""
    metrics = classify(model, data.test, accelerator, draws=cfg.prediction_draws).metrics()
    if data.shifted is not None:
        shifted = classify(model, data.shifted, accelerator, draws=cfg.prediction_draws).metrics()
        metrics["shifted_accuracy"] = shifted["accuracy"]
    return metrics


def quality(validation: Mapping[str, float]) -> tuple[float, float]:
    """Rank epochs and grid points by the accuracy of classes plus concepts, ties by the likelihood."""
    return validation["accuracy"] + validation.get("concept_accuracy", 0.0), -validation["nll"]


def intervention_rows(cfg: ConceptsConfig, examined: Mapping[str, Sequence[Examined]]) -> list[dict]:
    """List the points of all curves, with the interval over the orders of each training run."""
    return [
        {"method": method, "seed": seed, **panel._asdict(), **row}
        for method, seeds in examined.items()
        for seed, of_seed in zip(cfg.seeds, seeds, strict=True)
        for panel, curve in of_seed.curves.items()
        for row in curve.rows()
    ]


def leakage_rows(cfg: ConceptsConfig, examined: Mapping[str, Sequence[Examined]]) -> list[dict]:
    """List all metrics of concept models, one row per training run."""
    return [
        {"method": method, "seed": seed, **of_seed.metrics}
        for method, seeds in examined.items()
        for seed, of_seed in zip(cfg.seeds, seeds, strict=True)
    ]


def common(seeds: Sequence[Examined]) -> set[str]:
    """Return the names of the metrics that every seed has: with few rows, some cannot be measured in every split."""
    return set.intersection(*(set(of_seed.metrics) for of_seed in seeds))


def plot(
    folder: Path,
    data: ConceptData,
    trained: Trained,
    examined: Mapping[str, Sequence[Examined]],
    control: Sequence[Mapping[str, float]],
) -> None:
    """Plot learning curves, interventions, leakage, heads, and concepts of some test samples of the first seed."""
    learning_curves(trained.curves(CURVES), folder / "learning_curves.png")
    if not examined:
        return
    panels = next(iter(examined.values()))[0].curves
    curves = {
        panel.title: {method: [of_seed.curves[panel] for of_seed in seeds] for method, seeds in examined.items()}
        for panel in panels
    }
    keys = {panel.title: "shifted_accuracy" if panel.part == "shifted" else "accuracy" for panel in panels}
    accuracies = {title: fmean(metrics[key] for metrics in control) for title, key in keys.items() if control}
    if curves:
        intervention_plot(curves, folder / "interventions.png", control=accuracies)
    measured = {method: [of_seed.metrics for of_seed in seeds] for method, seeds in examined.items()}
    leakage_plot(measured, folder / "leakage.png")
    effects = {method: seeds[0].effects for method, seeds in examined.items()}
    head_plot(effects, folder / "heads.png", concepts=data.concepts.names, classes=data.class_names)
    columns = zip(data.concepts.names, data.concepts.kinds, data.label_means, data.label_stds, strict=True)
    units = {name: (mean, deviation) for name, kind, mean, deviation in columns if kind == "continuous"}
    for method, seeds in examined.items():
        path = folder / f"samples_{method}.png"
        names = data.concepts.names
        sample_plot(seeds[0].samples, path, concepts=names, units=units, inputs=data.input_names)


if __name__ == "__main__":
    main()
