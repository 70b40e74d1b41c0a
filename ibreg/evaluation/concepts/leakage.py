r"""Leakage: the information that the codes of a concept bottleneck carry beyond their concepts.

.. math::
    \mathrm{CTL}_i = \max\big(0, [I(\hat c_i; y) - I(c_i; y)] / H(y)\big), \qquad
    \mathrm{ICL}_{ij} = \max\Big(0, \frac{I(\hat c_i; \hat c_j)}{\sqrt{H(\hat c_i) H(\hat c_j)}}
    - \frac{I(c_i; c_j)}{\sqrt{H(c_i) H(c_j)}}\Big)

.. math::
    \mathrm{OIS} = \tfrac2k \|P(\hat c, c) - P(c, c)\|_F, \qquad
    \mathrm{NIS} = \operatorname{mean}_\beta\, \operatorname{mean}_i\,
    \mathrm{AUROC}\big(\{\hat c_j : |\mathrm{corr}(\hat c_j, c_i)| \le \beta\} \to c_i\big)

Concept-task and inter-concept leakage: Parisini et al. 2025 (arXiv 2504.14094). Oracle and niche impurity: Espinosa
Zarlenga et al. 2023 (arXiv 2301.10367), P_ij the AUROC of predicting c_j from code i by a small network.

Entropies are estimated on discretized codes: a code with more than `bins` values is discretized at its quantiles, equal
values always in one cell, and a value more frequent than 1 / `bins` in a cell of its own, so that ties and saturated
probabilities are handled; an embedding is discretized by k-means. Entropies are corrected for the number of cells that
are not empty (Miller and Madow).

Each measure has a control, the same estimate for a code that cannot leak: each concept's code shuffled among the
samples with the same label of that concept, which keeps its information on its own concept and nothing else.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ibreg.evaluation.concepts.controls import with_control
from ibreg.evaluation.concepts.probes import probed_auroc

BINS = 10
# Least number of samples per cell; with fewer, the error of an entropy is as large as the quantities that are measured.
SAMPLES_PER_BIN = 5
NICHES = tuple(round(0.1 * step, 1) for step in range(10))


def leakage(codes: Tensor, concepts: Tensor, target: Tensor, *, bins: int = BINS, seed: int = 0) -> dict[str, float]:
    """Measure the leakage of codes in four ways, each beside its control.

    Args:
        codes: `(samples, concepts)` or, for embeddings, `(samples, concepts, features)`.
        concepts: `(samples, concepts)`, true labels in [0, 1], NaN where one is missing; soft labels are rounded where
            they are predicted.
        target: `(samples,)`, classes.
        bins: number of cells of a code, at least 2.
        seed: random seed of the probes, of k-means and of the control's shuffle.

    Returns:
        `ctl` and `icl` (means over concepts and pairs; 0: no leakage), `ois` (0: none, 1: every code predicts every
        concept), `nis` (0.5: none, also if every code predicts everything and is therefore in every niche; 1: every
        concept can be predicted from codes of others), and `<name>_control`. There is no `icl` without a pair of
        concepts with enough labels in common.

    Raises:
        ValueError: If the shapes do not fit, concepts are outside [0, 1], a concept has too few labeled samples, or
            their labels or classes are all the same.

    Example:
        >>> truth = torch.randint(2, (500, 3), generator=torch.Generator().manual_seed(0)).float()
        >>> measured = leakage(truth, truth, (truth.sum(1) > 1).long())
        >>> measured["ctl"], measured["icl"], round(measured["ois"], 2)
        (0.0, 0.0, 0.0)
    """
    codes, concepts, target = _checked(codes, concepts, target, bins)
    control = _shuffled_within_concepts(codes, concepts, np.random.default_rng(seed))

    def measures(codes: Tensor) -> dict[str, float]:
        values = {"ctl": float(concept_task_leakage(codes, concepts, target, bins=bins, seed=seed).mean())}
        pairs = inter_concept_leakage(codes, concepts, bins=bins, seed=seed)[np.triu_indices(concepts.shape[1], 1)]
        if not np.isnan(pairs).all():
            values["icl"] = float(np.nanmean(pairs))
        values["ois"] = oracle_impurity(codes, concepts, seed=seed)
        values["nis"] = niche_impurity(codes, concepts, seed=seed)
        return values

    return with_control(measures, codes, control)


def concept_task_leakage(
    codes: Tensor, concepts: Tensor, target: Tensor, *, bins: int = BINS, seed: int = 0
) -> np.ndarray:
    """Measure the information of each code on the task beyond that of its concept, relative to the task's entropy.

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        target: `(samples,)`, classes.
        bins: number of cells of a code.
        seed: random seed of k-means.

    Returns:
        `(concepts,)`, in [0, 1].

    Raises:
        ValueError: As for `leakage`.

    Example:
        >>> y = torch.arange(200) % 2
        >>> concept = torch.arange(200) // 2 % 2
        >>> code = (2 * concept + y).float().unsqueeze(1)     # encodes the class, which the concept does not
        >>> concept_task_leakage(code, concept.float().unsqueeze(1), y).round(2).tolist()
        [1.0]
    """
    codes, concepts, target = _checked(codes, concepts, target, bins)
    leaked = []
    for code, concept in zip(codes.unbind(1), concepts.unbind(1), strict=True):
        known = ~concept.isnan()
        label = target[known].numpy()
        of_code = mutual_information(cells(code[known], bins, seed=seed), label)
        of_concept = mutual_information(cells(concept[known], bins), label)
        leaked.append(max(0.0, (of_code - of_concept) / entropy(label)))
    return np.clip(leaked, 0, 1)


def inter_concept_leakage(codes: Tensor, concepts: Tensor, *, bins: int = BINS, seed: int = 0) -> np.ndarray:
    """Measure the information that the codes of two concepts share beyond that of the concepts.

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        bins: number of cells of a code.
        seed: random seed of k-means.

    Returns:
        `(concepts, concepts)`, symmetric, in [0, 1], with zeros on the diagonal; NaN where too few samples have labels
        of both concepts.

    Raises:
        ValueError: As for `leakage`.
    """
    codes, concepts, _ = _checked(codes, concepts, None, bins)
    count = concepts.shape[1]
    code_cells = [cells(code, bins, seed=seed) for code in codes.unbind(1)]
    known = [~concept.isnan().numpy() for concept in concepts.unbind(1)]
    concept_cells = [cells(torch.nan_to_num(concept), bins) for concept in concepts.unbind(1)]
    leaked = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            rows = known[i] & known[j]
            if rows.sum() < SAMPLES_PER_BIN * bins:
                leaked[i, j] = leaked[j, i] = np.nan
                continue
            of_codes = _normalized_information(code_cells[i][rows], code_cells[j][rows])
            of_concepts = _normalized_information(concept_cells[i][rows], concept_cells[j][rows])
            leaked[i, j] = leaked[j, i] = min(max(0.0, of_codes - of_concepts), 1.0)
    return leaked


def oracle_impurity(codes: Tensor, concepts: Tensor, *, seed: int = 0) -> float:
    """Measure how much better or worse a code predicts other concepts than its own concept does (OIS).

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        seed: random seed of the probes.

    Returns:
        0 if codes predict as concepts do, 1 if each code predicts all of many independent concepts.

    Raises:
        ValueError: As for `leakage`, or if a label has a single value in one of the halves of `probes.probe`.
    """
    codes, concepts, _ = _checked(codes, concepts, None, 2)
    count, labels = concepts.shape[1], concepts.round()
    width = codes.flatten(1).shape[1] // count
    own = torch.eye(count).bool()
    of_codes = probed_auroc(codes.flatten(1), labels, own.repeat_interleave(width, 1), seed=seed)
    # A missing label is not a feature: it is replaced by the middle.
    of_concepts = probed_auroc(torch.nan_to_num(concepts, nan=0.5), labels, own, seed=seed)
    return float(np.linalg.norm(of_codes - of_concepts) * 2 / count)


def niche_impurity(codes: Tensor, concepts: Tensor, *, seed: int = 0) -> float:
    """Measure how well each concept can be predicted from the codes that do not correlate with it (NIS).

    The niche of a concept is the set of codes whose correlation with it is above beta; for an embedding, the largest
    correlation of its entries. Beta runs from 0 to 0.9 in steps of 0.1; an empty complement counts 0.5. A noisy code,
    whose correlation with its own concept is below 0.9, is outside of the last niches: compare with the control.

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        seed: random seed of the probes.

    Returns:
        A value between 0.5 (nothing can be predicted) and 1.

    Raises:
        ValueError: As for `oracle_impurity`.
    """
    codes, concepts, _ = _checked(codes, concepts, None, 2)
    count = concepts.shape[1]
    features = codes.reshape(len(codes), -1)
    width = features.shape[1] // count
    labels = concepts.round()
    correlation = torch.zeros(count, count)  # [code, concept]
    for concept in range(count):
        known = ~labels[:, concept].isnan()
        of_features = _correlation(features[known], labels[known, concept])
        correlation[:, concept] = of_features.abs().unflatten(0, (count, width)).amax(1)
    outside = torch.stack([beta >= correlation.T for beta in NICHES])  # [beta, concept, code]
    # Many niches are equal for several beta and concepts.
    masks, index = outside.flatten(0, 1).unique(dim=0, return_inverse=True)
    areas = probed_auroc(features, labels, masks.repeat_interleave(width, 1), seed=seed)
    return float(areas[index.view(len(NICHES), count), np.arange(count)].mean())


def cells(values: Tensor, bins: int = BINS, *, seed: int = 0) -> np.ndarray:
    """Discretize values: one cell per value if there are at most `bins`, else quantiles, or k-means for vectors.

    A value more frequent than 1 / `bins` has a cell of its own; the others share the cells that are left.

    Args:
        values: `(samples,)` or `(samples, features)`.
        bins: largest number of cells.
        seed: random seed of k-means.

    Returns:
        `(samples,)`, integers; equal values are in the same cell.

    Example:
        >>> cells(torch.tensor([0.0, 0.0, 0.0, 0.2, 0.7, 1.0]), 2).tolist()
        [0, 0, 0, 1, 1, 1]
    """
    values = values.squeeze(1) if values.dim() == 2 and values.shape[1] == 1 else values
    numbers = values.detach().to("cpu", torch.float64).numpy()
    different, index, counts = np.unique(numbers, axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    if len(different) <= bins:
        return index
    if numbers.ndim == 2:
        scale = numbers.std(0)
        return KMeans(bins, n_init=cast(Any, 1), random_state=seed).fit_predict(numbers / np.where(scale > 0, scale, 1))
    frequent = counts * bins > len(numbers)
    counts = np.where(frequent, 0, counts)
    middle = (counts.cumsum() - counts / 2) / counts.sum()  # of the samples without the frequent values
    shared = np.floor(middle * (bins - frequent.sum())).astype(int)
    cell = np.where(frequent, bins + np.arange(len(different)), shared)
    return np.unique(cell[index], return_inverse=True)[1]


def entropy(labels: np.ndarray) -> float:
    r"""Estimate the entropy of discrete labels in nats: :math:`-\sum p \log p + (m - 1) / 2n`, m values in n samples.

    Example:
        >>> round(entropy(np.arange(1000) % 2), 4)     # log 2 + 1 / 2000
        0.6936
    """
    counts = np.unique(labels, return_counts=True)[1]
    shares = counts / len(labels)
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * len(labels)))


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Estimate the mutual information of two discrete labels in nats, at least 0, by corrected entropies.

    Example:
        >>> x = np.arange(1000) % 4
        >>> round(mutual_information(x, x % 2), 2), mutual_information(x % 2, x // 2)
        (0.69, 0.0)
    """
    joint = np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].reshape(-1)
    return max(0.0, entropy(first) + entropy(second) - entropy(joint))


def _normalized_information(first: np.ndarray, second: np.ndarray) -> float:
    """Estimate the mutual information divided by the geometric mean of the entropies; 0 if one of them is 0."""
    scale = np.sqrt(entropy(first) * entropy(second))
    return mutual_information(first, second) / scale if scale > 0 else 0.0


def _correlation(features: Tensor, label: Tensor) -> Tensor:
    """Return the correlation of each feature with a label, 0 for constant features."""
    centered, other = features - features.mean(0), label - label.mean()
    scale = centered.norm(dim=0) * other.norm()
    return torch.where(scale > 0, (centered * other.unsqueeze(1)).sum(0) / scale.clamp(min=1e-30), 0).clamp(-1, 1)


def _shuffled_within_concepts(codes: Tensor, concepts: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the codes with each concept's code shuffled among the samples with the same label of that concept."""
    shuffled = codes.clone()
    for concept in range(concepts.shape[1]):
        label = torch.nan_to_num(concepts[:, concept].round(), nan=-1.0)
        for value in label.unique():
            rows = torch.nonzero(label == value).squeeze(1)
            shuffled[rows, concept] = codes[rows[torch.from_numpy(rng.permutation(len(rows)))], concept]
    return shuffled


def _checked(codes: Tensor, concepts: Tensor, target: Any, bins: int) -> tuple[Tensor, Tensor, Any]:
    """Return codes, concepts and target (which may be None) as CPU tensors, the first two in float64.

    Raises:
        ValueError: As for `leakage`.
    """
    codes, concepts = (torch.as_tensor(part).detach().to("cpu", torch.float64) for part in (codes, concepts))
    target = None if target is None else torch.as_tensor(target).detach().cpu()
    if concepts.dim() != 2 or codes.dim() not in (2, 3) or codes.shape[:2] != concepts.shape:
        raise ValueError(
            "codes must have shape (samples, concepts) or (samples, concepts, features), and concepts (samples, "
            f"concepts), got {tuple(codes.shape)} and {tuple(concepts.shape)}"
        )
    if not codes.isfinite().all():
        raise ValueError("codes must be finite, got NaN or infinite values")
    if bins < 2:
        raise ValueError(f"bins must be a number of cells of at least 2, got {bins}")
    known = concepts[~concepts.isnan()]
    if known.numel() and not ((known >= 0) & (known <= 1)).all():
        raise ValueError(f"concept labels must be in [0, 1], got {float(known.min()):g} ... {float(known.max()):g}")
    if target is not None and target.shape != concepts.shape[:1]:
        raise ValueError(f"the target must have one class per sample, got shape {tuple(target.shape)}")
    for column, concept in enumerate(concepts.unbind(1)):
        labeled = ~concept.isnan()
        _check_concept(column, concept[labeled], None if target is None else target[labeled], bins)
    return codes, concepts, target


def _check_concept(column: int, labels: Tensor, classes: Tensor | None, bins: int) -> None:
    """Raise a ValueError if a concept has too few labels for the cells, or one value or one class only."""
    if len(labels) < SAMPLES_PER_BIN * bins:
        raise ValueError(
            f"concept {column} must have {SAMPLES_PER_BIN * bins} or more labeled samples for {bins} cells, got "
            f"{len(labels)}: lower bins, or leave it out"
        )
    for what, values in (("value", labels.round()), ("class", classes)):
        if values is not None and len(values.unique()) < 2:
            raise ValueError(
                f"the {len(labels)} labeled samples of concept {column} must have more than one {what} to measure "
                "leakage: give more samples, or leave it out"
            )
