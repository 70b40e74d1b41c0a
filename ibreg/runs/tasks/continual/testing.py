"""What learners of a stream are worth: on the test rows stage by stage, after unlearning, and on strange data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
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
from ibreg.runs.tasks.continual.learners import Learner
from ibreg.runs.tasks.continual.stream import Stream, Training, build_learner, predicted_classes
from ibreg.surgery.unlearning import unlearn


def restored(cfg: DictConfig, training: Training, stream: Stream, state: Mapping[str, Any], stage: int) -> Learner:
    """Returns a learner as it was after a stage; stage 0 is before the first split."""
    learner = build_learner(cfg, training, features=stream.features, classes=stream.classes)
    snapshots = state["snapshots"]
    learner.network.load_state_dict(snapshots[0] | snapshots[stage])
    return learner.eval()


@dataclass(frozen=True)
class Tested:
    """What a learner knows of the test rows.

    Attributes:
        metrics: `accuracy` over all classes at the end, and `error`; with several stages `backward_transfer`,
            `forward_transfer` and `forgetting`; with keys `used`, the share of the pairs that were ever hit, and what
            `unlearned` returns where classes are to be forgotten; with strange rows what `strangeness` returns.
        accuracies: over all classes, before the first split and after each.
        used: the share of pairs at these stages; empty without keys.
    """

    metrics: dict[str, float]
    accuracies: list[float]
    used: list[float]


def examine(
    cfg: DictConfig, training: Training, stream: Stream, state: Mapping[str, Any], device: torch.device
) -> Tested:
    """Measures on the test rows what a learner was before the first split and after each."""
    learners = [restored(cfg, training, stream, state, stage).to(device) for stage in range(len(state["snapshots"]))]
    stages = stream.stages(learners[0])
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
    if stream.strange is not None:
        metrics |= strangeness(learners[-1], stream.test, stream.strange, device)
    return Tested(metrics, accuracies, used)


@torch.no_grad()
def unlearned(learner: Learner, stream: Stream, options: DictConfig, device: torch.device) -> dict[str, float]:
    """Lets a learner with keys forget classes by its training rows, measures it on the test rows, and undoes it.

    Args:
        learner: with a key-value bottleneck.
        stream: the rows.
        options: `classes` to forget; `by`, `pairs` and `fraction` as of `ibreg.unlearn`.
        device: of the learner.

    Returns:
        `forgotten_before`, `forgotten_after`, `retained_before` and `retained_after`: accuracies on the test rows of
        these classes and of the others; `unlearning_undone`: the share of answers that are those from before, once the
        masks are taken away.
    """
    classes = tuple(options.classes)
    others = tuple(sorted({label for split in stream.splits for label in split} - set(classes)))
    before = predicted_classes(learner, stream.test, device)
    batches = loader(rows_of(stream.train, classes), 512)
    report = unlearn(learner.network, batches, by=options.by, pairs=options.pairs, fraction=options.fraction)
    after = predicted_classes(learner, stream.test, device)
    report.undo()
    found = {}
    for name, part in (("forgotten", classes), ("retained", others)):
        rows = torch.isin(stream.test.targets, torch.tensor(part))
        for time, predictions in (("before", before), ("after", after)):
            found[f"{name}_{time}"] = (predictions == stream.test.targets)[rows].double().mean().item()
    undone = predicted_classes(learner, stream.test, device) == before
    return found | {"unlearning_undone": undone.double().mean().item()}


@torch.no_grad()
def strangeness(
    learner: Learner, rows: Rows, strange: Rows, device: torch.device, batch_size: int = 512
) -> dict[str, float]:
    """Measures how well a learner's uncertainty tells strange rows from its own, as area under the ROC curve.

    Args:
        learner: says `uncertainty` of a batch.
        rows: of the data that it learnt.
        strange: of other data.
        device: of the learner.
        batch_size: rows at a time.

    Returns:
        `ood_auroc`: the probability that a strange row is more uncertain than one of its own.
    """
    learner.eval()
    scores = [
        torch.cat([learner.uncertainty(x.to(device)).cpu() for x, _ in loader(part, batch_size)])
        for part in (rows, strange)
    ]
    labels = torch.cat([torch.full_like(score, place) for place, score in enumerate(scores)])
    return {"ood_auroc": float(roc_auc_score(labels.numpy(), torch.cat(scores).double().numpy()))}
