"""Robustness with and without a bottleneck: the same model, seeds and budget, one report.

    python recipes/robustness.py                                          # digits, about a minute, offline
    python recipes/robustness.py data=mnist model=lenet adversarial.name=pgd         # with adversarial training
    python recipes/robustness.py checkpoint=outputs/classification/default epochs=30 ...   # models of a finished run
    python recipes/robustness.py experiment=robust_mnist                  # a comparison of all bottlenecks
    accelerate launch --num_processes 2 recipes/robustness.py ...         # trains on several GPUs

Measures clean, corrupted and adversarial accuracy, calibration, and the detection of out-of-distribution (OOD) inputs.
Four sanity checks show for every model whether its gradients may be masked; where one fails, the metrics under attack
are marked. `main` checks before anything is written; `run` trains, measures and reports. With `resume=true` a killed
run resumes at its last epoch or at the model that it was measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ibreg.evaluation.attacks.sanity import Check
from ibreg.plots.classification import learning_curves, reliability_diagram
from ibreg.plots.robustness import (
    accuracy_under_attack,
    accuracy_under_corruption,
    attacked_images,
    ood_histograms,
)
from ibreg.plots.style import method_label, sort_methods
from ibreg.runs.accelerator import build_accelerator
from ibreg.runs.checkpoint import load_checkpoint, save_checkpoint
from ibreg.runs.comparison import Trained, rehearse, train_all
from ibreg.runs.config.entry import entry_point
from ibreg.runs.config.recipe import check_steps
from ibreg.runs.data import classification as datasets
from ibreg.runs.folder import CHECKPOINTS
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.methods import build_method, build_network
from ibreg.runs.report.columns import print_columns, write_columns
from ibreg.runs.tasks.classification import classify
from ibreg.runs.tasks.robustness.adopt import adopt, check_adoptable
from ibreg.runs.tasks.robustness.adversarial import build_adversary
from ibreg.runs.tasks.robustness.checks import check_robustness
from ibreg.runs.tasks.robustness.configuration import RobustnessConfig
from ibreg.runs.tasks.robustness.distillation import Distilled, check_distillation, load_teacher, prune_smallest
from ibreg.runs.tasks.robustness.measuring import NORMS, attack_metric, corruption_metric, measure_robustness, radii
from ibreg.runs.training import Task
from ibreg.runs.trials import Trial

CURVES = ("train/loss", "train/penalty", "train/rate", "validation/nll", "validation/accuracy")
ATTACKS = {"fgsm": "FGSM", "pgd": "PGD", "ensemble": "ensemble", "linf": "L-inf", "l2": "L2"}


@entry_point(RobustnessConfig)
def main(cfg: RobustnessConfig) -> float | None:
    """Checks the data, opens the folder, runs what is not finished in it, and returns the validation accuracy."""
    accelerator = build_accelerator(cfg)
    data = datasets.load(**dict(cfg.data))
    if accelerator.is_main_process:
        print_columns(data)
    check_robustness(cfg, data)
    check_steps(cfg, rows=len(data.train), processes=accelerator.num_processes)
    check_distillation(cfg, lambda: build_network(cfg, data.input_shape, data.classes, normalization=None))
    build_adversary(cfg.adversarial, data.value_range, epoch=0)
    task = Task(
        data=dict.fromkeys(cfg.seeds, data),
        model=lambda trial: build_model(cfg, data, trial),
        loss=lambda trial: build_loss(cfg, data, trial),
        measure=lambda model, data: classify(model, data.validation, accelerator, draws=cfg.prediction_draws).metrics(),
        quality=lambda validation: (validation["accuracy"], -validation["nll"]),
        adversary=lambda epoch: build_adversary(cfg.adversarial, data.value_range, epoch),
    )
    rehearse(cfg, task)
    if cfg.checkpoint is not None:
        check_adoptable(cfg, task)
    return launch(cfg, accelerator, lambda folder: run(cfg, data, task, accelerator, folder))


def run(
    cfg: RobustnessConfig, data: datasets.ClassificationData, task: Task, accelerator: Accelerator, folder: Path
) -> Outcome | None:
    """Trains or adopts models, measures every one, and plots."""
    if cfg.checkpoint is not None and accelerator.is_main_process:
        adopt(Path(str(cfg.checkpoint)), folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_columns(data, folder)
    trained = train_all(cfg, task, accelerator, folder)
    if not accelerator.is_main_process:
        return None

    report = {
        method: [measure(cfg, data, task, trained, trial, accelerator.device, folder) for trial in trials]
        for method, trials in trained.selected.items()
    }
    plot(cfg, folder, data, trained, report)
    return Outcome(
        data=data.name,
        tested={method: [metrics_of(measured) for measured in seeds] for method, seeds in report.items()},
        selected=trained.choices(cfg),
        headline=columns(cfg, data, report),
        validation=trained.validation("accuracy"),
        checks=[
            {"method": method, "seed": seed} | check
            for method, seeds in report.items()
            for seed, measured in zip(cfg.seeds, seeds, strict=True)
            for check in measured["checks"]
        ],
        doubts={
            method: [attack_metric(row["attack"], row["norm"], row["eps"]) for row in seeds[0]["attacked"]]
            for method, seeds in report.items()
            if not all(check["passed"] for measured in seeds for check in measured["checks"])
        },
    )


def measure(
    cfg: RobustnessConfig,
    data: datasets.ClassificationData,
    task: Task,
    trained: Trained,
    trial: Trial,
    device: torch.device,
    folder: Path,
) -> dict[str, Any]:
    """Measures a model, or reads its metrics if a killed run has measured it."""
    path = folder / CHECKPOINTS / "measured" / f"{trial.name}.pt"
    measured = load_checkpoint(path)
    if measured is None:
        model, surrogate = (trained.model(task, each, device) for each in (trial, surrogate_of(trained, trial)))
        measured = measure_robustness(model, surrogate, data, cfg, device)
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, measured)
    checks = [Check(**check) for check in measured["checks"]]
    print(f"{trial.name} measured: accuracy {measured['metrics']['accuracy']:.4f}", *checks, sep="\n  ")
    return measured


def metrics_of(measured: Mapping[str, Any]) -> dict[str, float]:
    """Flattens the metrics of a model into a dict by name, as in the summary."""
    return (
        measured["metrics"]
        | {attack_metric(row["attack"], row["norm"], row["eps"]): row["accuracy"] for row in measured["attacked"]}
        | {corruption_metric(row["kind"], row["severity"]): row["accuracy"] for row in measured["corrupted"]}
    )


def build_model(cfg: RobustnessConfig, data: datasets.ClassificationData, trial: Trial) -> nn.Module:
    """Builds the model of a method, from the pruned weights of the teacher if there is one."""

    def network(code_features: int | None) -> nn.Module:
        built = build_network(cfg, data.input_shape, data.classes, code_features, normalization=data.normalization)
        if cfg.distillation.teacher is None:
            return built
        return prune_smallest(
            load_teacher(built, cfg.distillation.teacher, trial.method, trial.seed), cfg.distillation.prune
        )

    return build_method(cfg, trial, network, example=torch.zeros(1, *data.input_shape))


def build_loss(cfg: RobustnessConfig, data: datasets.ClassificationData, trial: Trial) -> nn.Module:
    """Builds the task loss: the cross-entropy, with distillation if there is a teacher."""
    if cfg.distillation.teacher is None:
        return nn.CrossEntropyLoss()
    # The loss is called with the inputs as the student's network reads them, which are normalized.
    network = build_network(cfg, data.input_shape, data.classes, normalization=None)
    teacher = load_teacher(network, cfg.distillation.teacher, trial.method, trial.seed)
    return Distilled(teacher, temperature=cfg.distillation.temperature, weight=cfg.distillation.weight)


def surrogate_of(trained: Trained, trial: Trial) -> Trial:
    """Chooses the model for transferred attacks, a control with another initialization if there is one."""
    others = [other for trials in trained.selected.values() for other in trials if other != trial]
    return min(others, key=lambda other: ({"null": 0, "none": 1}.get(other.method, 2), other.seed != trial.seed))


def plot(
    cfg: RobustnessConfig,
    folder: Path,
    data: datasets.ClassificationData,
    trained: Trained,
    report: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Plots learning curves, accuracies, reliability, OOD scores and attacked images."""
    learning_curves(trained.curves(CURVES), folder / "learning_curves.png")
    pooled = {
        method: (
            torch.cat([measured["probabilities"] for measured in seeds]),
            torch.cat([measured["targets"] for measured in seeds]),
        )
        for method, seeds in report.items()
    }
    reliability_diagram(pooled, folder / "reliability.png")
    samples = len(data.test)
    attacked = [
        row | {"attack": f"{ATTACKS[row['attack']]}, {ATTACKS[row['norm']]}"}
        for row in rows_of(cfg, report, "attacked")
    ]
    accuracy_under_attack(attacked, folder / "attacks.png", samples=min(cfg.attack.rows, samples))
    if corrupted := rows_of(cfg, report, "corrupted"):
        accuracy_under_corruption(corrupted, folder / "corruptions.png", samples=min(cfg.corruption.rows, samples))
    if cfg.ood.data is not None:
        scores = {
            method: {
                name: (
                    torch.cat([measured["ood_scores"][name][0] for measured in seeds]),
                    torch.cat([measured["ood_scores"][name][1] for measured in seeds]),
                )
                for name in seeds[0]["ood_scores"]
            }
            for method, seeds in report.items()
        }
        names = {"in_distribution": data.name, "out_of_distribution": cfg.ood.data}
        ood_histograms(scores, folder / "ood.png", **names)
    plot_attacked_images(folder, data, report)


def rows_of(cfg: RobustnessConfig, report: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> list[dict[str, Any]]:
    """Lists the rows of all models, with method and seed."""
    return [
        {"method": method, "seed": seed} | row
        for method, seeds in report.items()
        for seed, measured in zip(cfg.seeds, seeds, strict=True)
        for row in measured[key]
    ]


def plot_attacked_images(
    folder: Path, data: datasets.ClassificationData, report: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Plots the attacked images of the first seed, with the predicted classes."""
    firsts = {method: report[method][0]["examples"] for method in sort_methods(report) if report[method][0]["examples"]}
    if not firsts or data.input_shape[0] not in (1, 3):
        return
    first = next(iter(firsts.values()))
    predicted = {"clean": first["predicted_clean"]} | {
        method_label(method): examples["predicted_attacked"] for method, examples in firsts.items()
    }
    names = data.class_names
    attacked_images(
        first["clean"],
        {method_label(method): examples["attacked"] for method, examples in firsts.items()},
        {name: [names[label] for label in labels] for name, labels in predicted.items()},
        [names[int(label)] for label in report[next(iter(firsts))][0]["targets"][: len(first["clean"])]],
        folder / "attacked_images.png",
    )


def columns(
    cfg: RobustnessConfig, data: datasets.ClassificationData, report: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[tuple[str, str, int, int]]:
    """Lists the columns of the table; those of a subset of the test rows name its size."""
    rows = len(data.test)
    shown = [("test/accuracy", "clean accuracy (%)", 100, 2)]
    if data.groups is not None:
        shown.append(("test/worst_group_accuracy", "worst group (%)", 100, 2))
    expectation = f", EOT-{cfg.attack.draws}" if any(seeds[0]["stochastic"] for seeds in report.values()) else ""
    attacks = {"pgd": f"PGD-{cfg.attack.steps}"} | ({"ensemble": "ensemble"} if cfg.attack.ensemble else {})
    unit = f"(%, {min(cfg.attack.rows, rows)} rows)"
    for norm, eps in radii(cfg.attack).items():
        for attack, name in attacks.items():
            heading = f"{name}{expectation}, {ATTACKS[NORMS[norm]]}"
            shown += [
                (f"test/{attack_metric(attack, NORMS[norm], radius)}", f"{heading} {radius:g} {unit}", 100, 1)
                for radius in eps
            ]
    if cfg.corruption.rows:
        shown.append(("test/corrupted_accuracy", f"corrupted (%, {min(cfg.corruption.rows, rows)} rows)", 100, 1))
    shown.append(("test/ece", "ECE (%)", 100, 2))
    if cfg.ood.data is not None:
        shown.append(("test/auroc_maximum_softmax", f"AUROC against {cfg.ood.data} (%)", 100, 1))
        if any("auroc_rate" in seeds[0]["metrics"] for seeds in report.values()):
            shown.append(("test/auroc_rate", f"AUROC by the rate against {cfg.ood.data} (%)", 100, 1))
    return [*shown, ("test/checks_passed", "checks passed, of 4", 1, 1)]


if __name__ == "__main__":
    main()
