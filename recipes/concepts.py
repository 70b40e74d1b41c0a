"""Concept bottlenecks next to the same model without one: concepts, corrections and leakage in one table.

    python recipes/concepts.py                                            # digits, about a minute, offline
    python recipes/concepts.py data=shapes model=lenet edit=[bright]      # a spurious concept, out of the head
    python recipes/concepts.py bottlenecks=[concept] training=independent
    python recipes/concepts.py experiment=cem_synthetic                   # a paper's data, all models
    accelerate launch --num_processes 2 recipes/concepts.py ...           # the same on several GPUs

`main` checks before anything is written; `run` reads top to bottom: train and select, test, ask, draw. Trainings are
functions of configuration and seed: with `resume=true` a killed run goes on at its last epoch and ends bit-identically
on a CPU. The test part is used once, at the end; percentiles and means that corrections need are of training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import hydra
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import nn

from ibreg.evaluation.concepts.metrics import concept_metrics
from ibreg.evaluation.concepts.predictions import predict_concepts
from ibreg.layers.concept.base import ConceptLayer
from ibreg.plots.classification import learning_curves
from ibreg.plots.concepts import head_plot, intervention_plot, leakage_plot, sample_plot
from ibreg.regularized import Regularized
from ibreg.runs.accelerator import build_accelerator
from ibreg.runs.config.checks import check_configuration, check_steps
from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.data import concepts as concept_data
from ibreg.runs.data.concepts import ConceptData
from ibreg.runs.data.split import load_splits
from ibreg.runs.folder import write_rows
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.methods import build_model
from ibreg.runs.tasks.classification import classify
from ibreg.runs.tasks.concepts.examination import Examined, check_interventions, examine, some_rows
from ibreg.runs.tasks.concepts.training import apart, training_of, with_concepts
from ibreg.runs.training import Task, Trained, rehearse, train_all
from ibreg.runs.trials import Trial

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
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
    ("test/truth_accuracy", "all concepts true (%)", 100, 2),
    ("test/certain_accuracy", "all certain (%)", 100, 2),
    ("test/ablated_accuracy", "all wiped out (%)", 100, 2),
    ("test/ctl", "CTL", 1, 3),
    ("test/icl", "ICL", 1, 3),
)
SHIFTED_COLUMNS = (
    ("test/shifted_accuracy", "shifted accuracy (%)", 100, 2),
    ("test/shifted_edited_accuracy", "shifted, edited (%)", 100, 2),
    ("test/shifted_truth_accuracy", "shifted, all true (%)", 100, 2),
)

register_with_hydra()


@hydra.main(config_path=str(CONFIGS), config_name="concepts", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Checks all that can be checked, opens the folder and runs what is not finished in it."""
    check_configuration(cfg, CONFIGS / "concepts.yaml")
    for method in cfg.bottlenecks:
        training_of(cfg, method)
    accelerator = build_accelerator(cfg)
    data = load_splits(cfg, concept_data.load)
    first = data[cfg.seeds[0]]
    check_interventions(cfg, first)
    for of_seed in data.values():
        check_steps(cfg, rows=len(of_seed.train), processes=accelerator.num_processes)
    cfg = with_concepts(cfg, first)
    task = Task(
        data=lambda trial: data[trial.seed],
        model=lambda trial: build_concept_model(cfg, data[trial.seed], trial),
        loss=lambda trial: nn.CrossEntropyLoss(),
        measure=lambda trial, model: measure(cfg, model, data[trial.seed], accelerator),
        quality=quality,
    )
    rehearse(cfg, task)
    launch(cfg, accelerator, lambda folder: run(cfg, data, task, accelerator, folder))


def run(
    cfg: DictConfig, data: Mapping[int, ConceptData], task: Task, accelerator: Accelerator, folder: Path
) -> Outcome | None:
    """Trains and selects, tests, asks the concept models, writes and draws."""
    trained = train_all(cfg, task, accelerator, folder)
    selected = {
        method: [(trained.model(task, trial, accelerator.device), data[trial.seed]) for trial in trials]
        for method, trials in trained.selected.items()
    }
    tested = {method: [test(cfg, *seed, accelerator) for seed in seeds] for method, seeds in selected.items()}
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
    draw(folder, data[cfg.seeds[0]], trained, examined)
    for method, seeds in examined.items():
        for metrics, each in zip(tested[method], seeds, strict=True):
            metrics |= {name: value for name, value in each.metrics.items() if name in common(seeds)}
    first = data[cfg.seeds[0]]
    return Outcome(
        data=first.name,
        tested=tested,
        selected=trained.choices(cfg),
        headline=[*COLUMNS, *(SHIFTED_COLUMNS if first.shifted is not None else ())],
    )


def build_concept_model(cfg: DictConfig, data: ConceptData, trial: Trial) -> nn.Module:
    """Builds the model of a method; concepts and head of a concept model are trained as configured."""
    model = build_model(cfg, trial, data.input_shape, data.classes)
    return apart(model, training_of(cfg, trial.method)) if has_concepts(model) else model


def has_concepts(model: nn.Module) -> bool:
    """Whether a model has a concept layer, which a control and other bottlenecks do not."""
    return isinstance(model, Regularized) and any(isinstance(module, ConceptLayer) for module in model.modules())


def measure(cfg: DictConfig, model: nn.Module, data: ConceptData, accelerator: Accelerator) -> dict[str, float]:
    """Measures classes, and concepts where there are some, on the validation rows."""
    metrics = classify(model, data.validation, accelerator, draws=cfg.prediction_draws).metrics()
    if has_concepts(model):
        x, _, labels = some_rows(data.validation, cfg.rows, accelerator.device)
        metrics |= concept_metrics(predict_concepts(model, x).logits, labels, data.concepts)
    return metrics


def test(cfg: DictConfig, model: nn.Module, data: ConceptData, accelerator: Accelerator) -> dict[str, float]:
    """Measures classes on the test part, and on the shifted one where there is one."""
    metrics = classify(model, data.test, accelerator, draws=cfg.prediction_draws).metrics()
    if data.shifted is not None:
        shifted = classify(model, data.shifted, accelerator, draws=cfg.prediction_draws).metrics()
        metrics["shifted_accuracy"] = shifted["accuracy"]
    return metrics


def quality(validation: Mapping[str, float]) -> tuple[float, float]:
    """Orders epochs and grid points: accuracy of classes and concepts together, and among equals the likelihood."""
    return validation["accuracy"] + validation.get("concept_accuracy", 0.0), -validation["nll"]


def intervention_rows(cfg: DictConfig, examined: Mapping[str, Sequence[Examined]]) -> list[dict]:
    """Lists the points of all curves, with the interval over the orders of each training."""
    return [
        {"method": method, "seed": seed, **panel._asdict(), **row}
        for method, seeds in examined.items()
        for seed, each in zip(cfg.seeds, seeds, strict=True)
        for panel, curve in each.curves.items()
        for row in curve.rows()
    ]


def leakage_rows(cfg: DictConfig, examined: Mapping[str, Sequence[Examined]]) -> list[dict]:
    """Lists all that concept models were asked, a row for each training."""
    return [
        {"method": method, "seed": seed, **each.metrics}
        for method, seeds in examined.items()
        for seed, each in zip(cfg.seeds, seeds, strict=True)
    ]


def common(seeds: Sequence[Examined]) -> set[str]:
    """Names the metrics that every seed has: with few rows a cut may leave nothing to measure some on."""
    return set.intersection(*(set(each.metrics) for each in seeds))


def draw(folder: Path, data: ConceptData, trained: Trained, examined: Mapping[str, Sequence[Examined]]) -> None:
    """Draws learning curves, corrections, leakage, heads, and concepts of the first seed's first test samples."""
    learning_curves(trained.curves(CURVES), folder / "learning_curves.png")
    if not examined:
        return
    panels = next(iter(examined.values()))[0].curves
    curves = {
        panel.title: {method: [each.curves[panel] for each in seeds] for method, seeds in examined.items()}
        for panel in panels
    }
    if curves:
        intervention_plot(curves, folder / "interventions.png")
    leakage_plot(
        {method: [each.metrics for each in seeds] for method, seeds in examined.items()}, folder / "leakage.png"
    )
    effects = {method: seeds[0].effects for method, seeds in examined.items()}
    head_plot(effects, folder / "heads.png", concepts=data.concepts.names, classes=data.class_names)
    for method, seeds in examined.items():
        sample_plot(seeds[0].samples, folder / f"samples_{method}.png", concepts=data.concepts.names)


if __name__ == "__main__":
    main()
