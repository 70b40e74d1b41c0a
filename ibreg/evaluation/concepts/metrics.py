"""Metrics of concepts: how often, how surely and how honestly they are found, and what a head makes of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from ibreg.evaluation.classification.metrics import classification_metrics
from ibreg.layers.concept.specification import Concepts


def concept_metrics(logits: Tensor, labels: Tensor, concepts: Concepts) -> dict[str, float]:
    """Measures how well concepts are found.

    Args:
        logits: `(samples, concepts)`; of a continuous concept its value.
        labels: `(samples, concepts)`, NaN where one is missing; soft ones count as the nearer of 0 and 1.
        concepts: what the columns are.

    Returns:
        of binary concepts and categorical groups `concept_accuracy` (logit above 0; the largest of a group),
        `concept_auroc` (on probabilities; each value of a group against the others, without columns that have one
        value here) and `concept_ece` (calibration error, 15 bins), and of continuous concepts `concept_rmse`; means
        over concepts (of the AUROC: over columns), as far as there are such concepts with a label.

    Raises:
        ValueError: shapes that do not fit, labels outside [0, 1].

    Example:
        >>> logits = torch.tensor([[2.0], [0.2], [-1.0], [-3.0]])
        >>> found = concept_metrics(logits, torch.tensor([[1.0], [0.0], [1.0], [0.0]]), Concepts.of(["red"]))
        >>> found["concept_accuracy"], found["concept_auroc"]
        (0.5, 0.75)
    """
    concepts.check_labels(labels)
    concepts.check_shape(logits, "concept logits")
    logits, labels = logits.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.float64)
    probabilities = concepts.probabilities(logits)
    found: dict[str, list[float]] = {}
    for kind, columns in _variables(concepts):
        known = ~labels[:, columns].isnan().any(1)
        if not known.any():
            continue
        p, true, raw = probabilities[known][:, columns], labels[known][:, columns], logits[known][:, columns]
        if kind == "continuous":
            found.setdefault("concept_rmse", []).append(float((p - true).square().mean().sqrt()))
            continue
        if kind == "binary":
            target, decided = (true[:, 0] > 0.5).long(), (raw[:, 0] > 0).long()
            classes = torch.cat([1 - p, p], 1)
        else:
            target, decided, classes = true.argmax(1), raw.argmax(1), p
        found.setdefault("concept_accuracy", []).append(float((decided == target).double().mean()))
        found.setdefault("concept_ece", []).append(classification_metrics(classes, target)["ece"])
        for place in range(len(columns)):
            positive = (true[:, place] > 0.5).long()
            if 0 < positive.sum() < len(positive):
                found.setdefault("concept_auroc", []).append(float(binary_auroc(p[:, place], positive)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def class_concept_matrix(labels: Tensor, target: Tensor, classes: int) -> Tensor:
    """Returns how often each concept is there in each class: `(classes, concepts)`, missing labels left out.

    Args:
        labels: `(samples, concepts)`.
        target: `(samples,)`.
        classes: how many.

    Raises:
        ValueError: a class in which no label of a concept is known.

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
    r"""Measures how far the weights of a linear head agree with what is known of classes and concepts.

    .. math:: \frac{\langle W - \bar W, M - \bar M \rangle}{|W - \bar W| \, |M - \bar M|}

    with means over classes removed, since a softmax does not see them.

    Args:
        weights: `(classes, concepts)`; one row stands for a class against another.
        matrix: `(classes, concepts)`: `class_concept_matrix`, or what an expert says, in {-1, 0, 1}.

    Returns:
        between -1 and 1.

    Raises:
        ValueError: shapes that do not fit; weights or a matrix that are the same for all classes.

    Example:
        >>> round(head_agreement(torch.tensor([[2.0, -1.0], [-2.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])), 3)
        0.949
    """
    if weights.shape[0] == 1:
        weights = torch.cat([-weights, weights])
    if weights.shape != matrix.shape or weights.dim() != 2:
        raise ValueError(
            f"weights and matrix are (classes, concepts), got {tuple(weights.shape)} and {tuple(matrix.shape)}"
        )
    first, second = (part.detach().to("cpu", torch.float64) for part in (weights, matrix))
    first, second = first - first.mean(0), second - second.mean(0)
    scale = float(first.norm() * second.norm())
    if scale < 1e-12:
        raise ValueError("weights or matrix are the same for all classes: there is nothing to agree about")
    return float((first * second).sum()) / scale


def _variables(concepts: Concepts) -> list[tuple[str, list[int]]]:
    """Lists what is decided as one: a categorical group, else a column."""
    found = []
    for columns in concepts.members.values():
        kinds = [concepts.kinds[column] for column in columns]
        if kinds[0] == "categorical":
            found.append(("categorical", list(columns)))
        else:
            found += [(kind, [column]) for kind, column in zip(kinds, columns, strict=True)]
    return found
