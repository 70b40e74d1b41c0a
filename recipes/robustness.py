"""Robustness with and without a bottleneck: the same model, seeds and budget, one report.

    python recipes/robustness.py                                          # digits, about a minute, offline
    python recipes/robustness.py data=mnist model=lenet adversarial.name=pgd         # with adversarial training
    python recipes/robustness.py checkpoint=outputs/classification/default epochs=30 ...   # models of a finished run
    python recipes/robustness.py experiment=robust_mnist                  # a comparison of all bottlenecks
    accelerate launch --num_processes 2 recipes/robustness.py ...         # trains on several GPUs

Clean, corrupted and adversarial accuracy, calibration, and how well inputs of another kind are told apart. Four sanity
checks say of every model whether its gradients may be masked; where one fails, the figures under attack are marked.
`main` checks before anything is written; `run` reads top to bottom: train, measure, report. With `resume=true` a killed
run goes on at its last epoch or at the model that it was measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import nn

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
from ibreg.runs.config.checks import check_configuration, check_steps
from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.data import classification as datasets
from ibreg.runs.folder import CHECKPOINTS
from ibreg.runs.launch import Outcome, launch
from ibreg.runs.methods import build_method, build_network
from ibreg.runs.tasks.classification import classify
from ibreg.runs.tasks.robustness.adopt import adopt, check_adoptable
from ibreg.runs.tasks.robustness.adversarial import build_adversary
from ibreg.runs.tasks.robustness.distillation import Distilled, check_distillation, load_teacher, prune_smallest
from ibreg.runs.tasks.robustness.measuring import NORMS, check_robustness, measure_robustness, pixels_of, radii
from ibreg.runs.training import Task
from ibreg.runs.trials import Trial

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CURVES = ("train/loss", "train/penalty", "train/rate", "validation/nll", "validation/accuracy")
ATTACKS = {"fgsm": "FGSM", "pgd": "PGD", "ensemble": "ensemble", "linf": "L-inf", "l2": "L2"}

register_with_hydra()


@hydra.main(config_path=str(CONFIGS), config_name="robustness", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Checks all that can be checked, opens the folder and runs what is not finished in it."""
    check_configuration(cfg, CONFIGS / "robustness.yaml")
    accelerator = build_accelerator(cfg)
    data = datasets.load(**cfg.data)
    check_robustness(cfg, data)
    check_steps(cfg, rows=len(data.train), processes=accelerator.num_processes)
    check_distillation(cfg, lambda: build_network(cfg, data.input_shape, data.classes))
    pixels = pixels_of(cfg, data)
    build_adversary(cfg.adversarial, pixels, epoch=0)
    task = Task(
        data=dict.fromkeys(cfg.seeds, data),
        model=lambda trial: build_model(cfg, data, trial),
        loss=lambda trial: build_loss(cfg, data, trial),
        measure=lambda model, data: classify(
            model, data.validation, accelerator, draws=cfg.prediction_draws
        ).metrics(),
        quality=lambda validation: (validation["accuracy"], -validation["nll"]),
        adversary=lambda epoch: build_adversary(cfg.adversarial, pixels, epoch),
    )
    rehearse(cfg, task)
    if cfg.checkpoint is not None:
        check_adoptable(cfg, task)
    launch(cfg, accelerator, lambda folder: run(cfg, data, task, accelerator, folder))


def run(
    cfg: DictConfig, data: datasets.ClassificationData, task: Task, accelerator: Accelerator, folder: Path
) -> Outcome | None:
    """Trains or adopts, measures every model, and draws."""
    if cfg.checkpoint is not None and accelerator.is_main_process:
        adopt(Path(str(cfg.checkpoint)), folder)
    accelerator.wait_for_everyone()
    trained = train_all(cfg, task, accelerator, folder)
    if not accelerator.is_main_process:
        return None

    def measured(trial: Trial) -> dict[str, Any]:
        """Measures a model, or reads what was measured before the run was killed."""
        path = folder / CHECKPOINTS / "measured" / f"{trial.name}.pt"
        found = load_checkpoint(path)
        if found is None:
            model, surrogate = (
                trained.model(task, each, accelerator.device) for each in (trial, surrogate_of(trained, trial))
            )
            found = measure_robustness(model, surrogate, data, cfg, accelerator.device)
            path.parent.mkdir(exist_ok=True)
            save_checkpoint(path, found)
        print(
            f"{trial.name} measured: accuracy {found['metrics']['accuracy']:.4f}",
            *map(line_of, found["checks"]),
            sep="\n  ",
        )
        return found

    report = {method: [measured(trial) for trial in trials] for method, trials in trained.selected.items()}
    draw(cfg, folder, data, trained, report)
    return Outcome(
        data=data.name,
        tested={method: [each["metrics"] for each in seeds] for method, seeds in report.items()},
        selected=trained.choices(cfg),
        headline=columns(cfg, data, report),
        checks=[
            {"method": method, "seed": seed} | check
            for method, seeds in report.items()
            for seed, each in zip(cfg.seeds, seeds, strict=True)
            for check in each["checks"]
        ],
        doubts={
            method: [name for name in seeds[0]["metrics"] if name.startswith("attacked/")]
            for method, seeds in report.items()
            if not all(check["passed"] for each in seeds for check in each["checks"])
        },
    )


def build_model(cfg: DictConfig, data: datasets.ClassificationData, trial: Trial) -> nn.Module:
    """Builds the model of a method, on the pruned weights of the teacher where there is one."""

    def network(code_features: int | None) -> nn.Module:
        built = build_network(cfg, data.input_shape, data.classes, code_features)
        if cfg.distillation.teacher is None:
            return built
        return prune_smallest(
            load_teacher(built, cfg.distillation.teacher, trial.method, trial.seed), cfg.distillation.prune
        )

    return build_method(cfg, trial, network, example=torch.zeros(1, *data.input_shape))


def build_loss(cfg: DictConfig, data: datasets.ClassificationData, trial: Trial) -> nn.Module:
    """Builds the task loss: the cross-entropy, with what the teacher says where there is one."""
    if cfg.distillation.teacher is None:
        return nn.CrossEntropyLoss()
    network = build_network(cfg, data.input_shape, data.classes)
    teacher = load_teacher(network, cfg.distillation.teacher, trial.method, trial.seed)
    return Distilled(teacher, temperature=cfg.distillation.temperature, weight=cfg.distillation.weight)


def surrogate_of(trained: Trained, trial: Trial) -> Trial:
    """Chooses the model that transferred attacks are made on, a control of another initialization if there is one."""
    others = [other for trials in trained.selected.values() for other in trials if other != trial]
    return min(others, key=lambda other: ({"null": 0, "none": 1}.get(other.method, 2), other.seed != trial.seed))


def line_of(check: Mapping[str, Any]) -> str:
    """Says how a sanity check ended."""
    figures = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in check["figures"].items())
    return f"{'passed' if check['passed'] else 'FAILED'}: {check['name']} ({figures})"


def draw(
    cfg: DictConfig,
    folder: Path,
    data: datasets.ClassificationData,
    trained: Trained,
    report: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Draws learning curves, accuracies, reliability, outlier scores and attacked images."""
    learning_curves(trained.curves(CURVES), folder / "learning_curves.png")
    pooled = {
        method: tuple(torch.cat([each[key] for each in seeds]) for key in ("probabilities", "targets"))
        for method, seeds in report.items()
    }
    reliability_diagram(pooled, folder / "reliability.png")
    attacked, corrupted = [], []
    for method, seeds in report.items():
        for seed, each in zip(cfg.seeds, seeds, strict=True):
            for name, accuracy in each["metrics"].items():
                point = {"method": method, "seed": seed, "accuracy": accuracy}
                match name.split("/"):
                    case ["attacked", attack, norm, eps]:
                        attacked.append(point | {"attack": f"{ATTACKS[attack]}, {ATTACKS[norm]}", "eps": float(eps)})
                    case ["corrupted", kind, severity]:
                        corrupted.append(point | {"kind": kind, "severity": int(severity)})
    samples = len(data.test)
    accuracy_under_attack(attacked, folder / "attacks.png", samples=min(cfg.attack.rows, samples))
    if corrupted:
        rows = min(cfg.corruption.rows, samples)
        accuracy_under_corruption(corrupted, folder / "corruptions.png", samples=rows)
    if cfg.outliers.data is not None:
        scores = {
            method: {
                name: tuple(torch.cat([each["outliers"][name][side] for each in seeds]) for side in (0, 1))
                for name in seeds[0]["outliers"]
            }
            for method, seeds in report.items()
        }
        names = {"in_distribution": data.name, "out_of_distribution": cfg.outliers.data}
        ood_histograms(scores, folder / "outliers.png", **names)
    firsts = {method: report[method][0]["examples"] for method in sort_methods(report) if report[method][0]["examples"]}
    if firsts and data.input_shape[0] in (1, 3):
        first = next(iter(firsts.values()))
        names = data.class_names
        said = {"clean": first["said_of_clean"]} | {
            method_label(method): each["said_of_attacked"] for method, each in firsts.items()
        }
        attacked_images(
            first["clean"],
            {method_label(method): each["attacked"] for method, each in firsts.items()},
            {name: [names[label] for label in labels] for name, labels in said.items()},
            [names[int(label)] for label in report[next(iter(firsts))][0]["targets"][: len(first["clean"])]],
            folder / "attacked_images.png",
        )


def columns(
    cfg: DictConfig, data: datasets.ClassificationData, report: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[tuple[str, str, int, int]]:
    """Lists the columns of the table; those of a part of the test rows say of how many."""
    rows = len(data.test)
    shown = [("test/accuracy", "clean accuracy (%)", 100, 2)]
    if data.groups is not None:
        shown.append(("test/worst_group_accuracy", "worst group (%)", 100, 2))
    expectation = f", EOT-{cfg.attack.draws}" if any(seeds[0]["stochastic"] for seeds in report.values()) else ""
    attacks = {"pgd": f"PGD-{cfg.attack.steps}"} | ({"ensemble": "ensemble"} if cfg.attack.ensemble else {})
    unit = f"(%, {min(cfg.attack.rows, rows)} rows)"
    for norm, eps in radii(cfg).items():
        for attack, name in attacks.items():
            heading, figures = f"{name}{expectation}, {ATTACKS[NORMS[norm]]}", f"test/attacked/{attack}/{NORMS[norm]}"
            shown += [(f"{figures}/{each:g}", f"{heading} {each:g} {unit}", 100, 1) for each in eps]
    if cfg.corruption.rows:
        shown.append(("test/corrupted_accuracy", f"corrupted (%, {min(cfg.corruption.rows, rows)} rows)", 100, 1))
    shown.append(("test/ece", "ECE (%)", 100, 2))
    if cfg.outliers.data is not None:
        shown.append(("test/auroc_maximum_softmax", f"AUROC against {cfg.outliers.data} (%)", 100, 1))
        if any("auroc_rate" in seeds[0]["metrics"] for seeds in report.values()):
            shown.append(("test/auroc_rate", "the same by the rate (%)", 100, 1))
    return [*shown, ("test/checks_passed", "checks passed, of 4", 1, 1)]


if __name__ == "__main__":
    main()
