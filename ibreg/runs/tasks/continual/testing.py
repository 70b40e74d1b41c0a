"""Tests of learners of a stream: after each split, after unlearning, and on out-of-distribution rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import roc_auc_score

from ibreg.evaluation.continual import (
    accuracy_matrix,
    backward_transfer,
    forgetting,
    forward_transfer,
    overall_accuracy,
)
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.data.streams import rows_of
from ibreg.runs.tasks.continual.configuration import ContinualConfig, Unlearning
from ibreg.runs.tasks.continual.learners import Learner
from ibreg.runs.tasks.continual.stream import Stream, build_learner, predicted_classes
from ibreg.runs.trials import Trial
from ibreg.surgery.unlearning import unlearn


def restored(cfg: ContinualConfig, trial: Trial, stream: Stream, state: Mapping[str, Any], stage: int) -> Learner:
    """Returns a learner as it was after a stage; stage 0 is before the first split."""
    learner = build_learner(cfg, trial, stream)
    snapshots = state["snapshots"]
    learner.network.load_state_dict(snapshots[0] | snapshots[stage])
    return learner.eval()


@dataclass(frozen=True)
class Tested:
    """Test results of a learner.

    Attributes:
        metrics: `accuracy` over all classes at the end, and `error`; with several stages `backward_transfer`,
            `forward_transfer` and `forgetting`; with keys `used`, the fraction of the pairs that were ever hit, and the
            metrics of `unlearned` where classes are to be forgotten; with out-of-distribution rows `ood_auroc`.
        accuracies: over all classes, before the first split and after each.
        used: the fraction of pairs that were hit up to these stages; empty without keys.
    """

    metrics: dict[str, float]
    accuracies: list[float]
    used: list[float]


def examine(
    cfg: ContinualConfig, trial: Trial, stream: Stream, state: Mapping[str, Any], device: torch.device
) -> Tested:
    """Measures on the test rows what a learner was before the first split and after each."""
    learners = [restored(cfg, trial, stream, state, stage).to(device) for stage in range(len(state["snapshots"]))]
    stages = stream.stages(trial.method)
    predictions = torch.stack([predicted_classes(learner, stream.test, device) for learner in learners])
    accuracies = overall_accuracy(predictions, stream.test.targets, stages).tolist()
    used = [learner.usage()["used"] for learner in learners if learner.usage()]
    metrics = {"accuracy": accuracies[-1], "error": 1 - accuracies[-1]}
    if len(stages) > 1:
        matrix = accuracy_matrix(predictions, stream.test.targets, stages)
        metrics["backward_transfer"] = backward_transfer(matrix)
        metrics["forward_transfer"] = forward_transfer(matrix)
        metrics["forgetting"] = forgetting(matrix)
    if used:
        metrics["used"] = used[-1]
        if cfg.unlearning.classes:
            metrics |= unlearned(learners[-1], stream, cfg.unlearning, device)
    if stream.ood is not None:
        metrics["ood_auroc"] = ood_auroc(learners[-1], stream.test, stream.ood, device)
    return Tested(metrics, accuracies, used)


@torch.no_grad()
def unlearned(learner: Learner, stream: Stream, options: Unlearning, device: torch.device) -> dict[str, float]:
    """Makes a learner with keys forget classes, measures it on the test rows, and undoes the unlearning.

    Args:
        learner: with a key-value bottleneck.
        stream: whose training rows of the classes are unlearned.
        options: `classes` to forget; `by`, `pairs` and `fraction` as of `ibreg.unlearn`.
        device: of the learner.

    Returns:
        `forgotten_before`, `forgotten_after`, `retained_before` and `retained_after`: accuracies on the test rows of
        these classes and of the others; `unlearning_undone`: the fraction of predictions that are equal to those before
        once the unlearning is undone.
    """
    classes = tuple(options.classes)
    others = tuple(sorted({label for split in stream.splits for label in split} - set(classes)))
    before = predicted_classes(learner, stream.test, device)
    batches = loader(rows_of(stream.train, classes), 512)
    report = unlearn(learner.network, batches, by=options.by, pairs=options.pairs, fraction=options.fraction)
    after = predicted_classes(learner, stream.test, device)
    report.undo()
    accuracies = {}
    for name, group in (("forgotten", classes), ("retained", others)):
        rows = torch.isin(stream.test.targets, torch.tensor(group))
        for time, predictions in (("before", before), ("after", after)):
            accuracies[f"{name}_{time}"] = (predictions == stream.test.targets)[rows].double().mean().item()
    undone = predicted_classes(learner, stream.test, device) == before
    return accuracies | {"unlearning_undone": undone.double().mean().item()}


@torch.no_grad()
def ood_auroc(learner: Learner, rows: Rows, ood: Rows, device: torch.device, batch_size: int = 512) -> float:
    """Measures how well the uncertainty of a learner separates out-of-distribution rows from in-distribution ones.

    Args:
        learner: has an `uncertainty` of each row.
        rows: in-distribution.
        ood: rows of another data set.
        device: of the learner.
        batch_size: rows at a time.

    Returns:
        the area under the ROC curve: the probability that an out-of-distribution row is the more uncertain of a pair.
    """
    learner.eval()
    scores = [
        torch.cat([learner.uncertainty(x.to(device)).cpu() for x, _ in loader(part, batch_size)])
        for part in (rows, ood)
    ]
    labels = torch.cat([torch.full_like(score, label) for label, score in enumerate(scores)])
    return float(roc_auc_score(labels.numpy(), torch.cat(scores).double().numpy()))
