"""Metrics of predicted concepts (accuracy, AUROC, calibration) and of a head's agreement with known relations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from ibreg.evaluation.classification.metrics import classification_metrics
from ibreg.layers.concept.specification import Concepts


def concept_metrics(logits: Tensor, labels: Tensor, concepts: Concepts) -> dict[str, float]:
    """Measure predicted concepts against labels.

    Args:
        logits: `(samples, concepts)`; of a continuous concept its value.
        labels: `(samples, concepts)`, NaN where one is missing; soft labels are rounded to 0 or 1.
        concepts: specification of the columns.

    Returns:
        For binary concepts and categorical groups `concept_accuracy` (logit above 0; the largest of a group),
        `concept_auroc` (of probabilities; each value of a group against the others, without columns whose labels are
        all the same) and `concept_ece` (expected calibration error, 15 bins), and for continuous concepts
        `concept_rmse`; means over concepts (AUROC: over columns), if there are such concepts with a label.

    Raises:
        ValueError: If the shapes do not fit, or labels are outside [0, 1].

    Example:
        >>> logits = torch.tensor([[2.0], [0.2], [-1.0], [-3.0]])
        >>> metrics = concept_metrics(logits, torch.tensor([[1.0], [0.0], [1.0], [0.0]]), Concepts.of(["red"]))
        >>> metrics["concept_accuracy"], metrics["concept_auroc"]
        (0.5, 0.75)
    """
    concepts.check_labels(labels)
    concepts.check_shape(logits, "concept logits")
    logits, labels = logits.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.float64)
    probabilities = concepts.probabilities(logits)
    metrics: dict[str, list[float]] = {}
    for columns in map(list, concepts.units.values()):
        known = ~labels[:, columns].isnan().any(1)
        if not known.any():
            continue
        p, true, raw = probabilities[known][:, columns], labels[known][:, columns], logits[known][:, columns]
        kind = concepts.kinds[columns[0]]
        if kind == "continuous":
            metrics.setdefault("concept_rmse", []).append(float((p - true).square().mean().sqrt()))
            continue
        if kind == "binary":
            target, decided = (true[:, 0] > 0.5).long(), (raw[:, 0] > 0).long()
            classes = torch.cat([1 - p, p], 1)
        else:
            target, decided, classes = true.argmax(1), raw.argmax(1), p
        metrics.setdefault("concept_accuracy", []).append(float((decided == target).double().mean()))
        metrics.setdefault("concept_ece", []).append(classification_metrics(classes, target)["ece"])
        for probability, label in zip(p.unbind(1), true.unbind(1), strict=True):
            positive = (label > 0.5).long()
            if 0 < positive.sum() < len(positive):
                metrics.setdefault("concept_auroc", []).append(float(binary_auroc(probability, positive)))
    return {name: float(np.mean(values)) for name, values in metrics.items()}


def class_concept_matrix(labels: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return the mean label of each concept in each class, `(classes, concepts)`, without missing labels.

    Args:
        labels: `(samples, concepts)`.
        target: `(samples,)`.
        classes: number of classes.

    Raises:
        ValueError: If a class has no known label of a concept.

    Example:
        >>> class_concept_matrix(torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([0, 0, 1]), 2).tolist()
        [[0.5], [1.0]]
    """
    rows = [labels[target == label].nanmean(0) for label in range(classes)]
    for label, row in enumerate(rows):
        if row.isnan().any():
            raise ValueError(f"class {label} has no known label of concept {int(row.isnan().nonzero()[0])}")
    return torch.stack(rows)


def head_agreement(weights: Tensor, matrix: Tensor) -> float:
    r"""Measure the agreement of the weights of a linear head with known relations of classes and concepts.

    .. math:: \frac{\langle W - \bar W, M - \bar M \rangle}{|W - \bar W| \, |M - \bar M|}

    with means over classes removed, to which a softmax is invariant.

    Args:
        weights: `(classes, concepts)`; a single row is that of the second of two classes.
        matrix: `(classes, concepts)`: `class_concept_matrix`, or an expert's matrix with entries -1, 0 and 1.

    Returns:
        A value between -1 and 1.

    Raises:
        ValueError: If the shapes do not fit, or the weights or the matrix are the same for all classes.

    Example:
        >>> round(head_agreement(torch.tensor([[2.0, -1.0], [-2.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])), 3)
        0.949
    """
    if weights.shape[0] == 1:
        weights = torch.cat([-weights, weights])
    if weights.shape != matrix.shape or weights.dim() != 2:
        raise ValueError(
            "weights and matrix must have the same shape (classes, concepts), got "
            f"{tuple(weights.shape)} and {tuple(matrix.shape)}"
        )
    first, second = (part.detach().to("cpu", torch.float64) for part in (weights, matrix))
    first, second = first - first.mean(0), second - second.mean(0)
    scale = float(first.norm() * second.norm())
    if scale < 1e-12:
        raise ValueError("weights and matrix must differ between classes, got rows that are the same for all classes")
    return float((first * second).sum()) / scale
