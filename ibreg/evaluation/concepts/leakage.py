r"""How much more than its concepts a concept bottleneck passes on, measured on the codes of a set of samples.

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

Entropies are those of cells: a code of more than `bins` values is cut at its quantiles, equal values always into one
cell, and a value that more than a cell's share of the samples have into a cell of its own, so that ties and saturated
probabilities do no harm; an embedding is cut into `bins` cells by k-means. Counts are corrected for the number of cells
that are not empty (Miller and Madow).

Every measure has a control, the same estimate of a code that cannot leak: each concept's code shuffled among the
samples with the same label of that concept, which leaves it all that it says of its own concept and nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ibreg.evaluation.concepts.probes import probed_auroc

BINS = 10
# Samples per cell that an entropy takes; with fewer its error is as large as what is measured.
SAMPLES_PER_BIN = 5
NICHES = tuple(round(0.1 * step, 1) for step in range(10))


def leakage(codes: Tensor, concepts: Tensor, target: Tensor, *, bins: int = BINS, seed: int = 0) -> dict[str, float]:
    """Measures the leakage of a bottleneck's codes in four ways, each beside its control.

    Args:
        codes: `(samples, concepts)` or, of embeddings, `(samples, concepts, width)`.
        concepts: `(samples, concepts)`, true labels in [0, 1], NaN where there is none; soft ones count as the nearer
            of 0 and 1 where a label is predicted.
        target: `(samples,)`, classes.
        bins: cells of a code, at least 2.
        seed: of the probes, of k-means and of the control's shuffle.

    Returns:
        `ctl` and `icl` (means over concepts and pairs; 0: no leak), `ois` (0: none, 1: every code tells every
        concept), `nis` (0.5: none, also where every code tells everything and so is in every niche; 1: every concept
        can be told from codes of others), and `<name>_control`. There is no `icl` without a pair of concepts that
        enough samples have labels of.

    Raises:
        ValueError: shapes that do not fit, concepts outside [0, 1], a concept with too few labeled samples, or whose
            labels or classes are all the same.

    Example:
        >>> truth = torch.randint(2, (500, 3), generator=torch.Generator().manual_seed(0)).float()
        >>> found = leakage(truth, truth, (truth.sum(1) > 1).long())
        >>> found["ctl"], found["icl"], round(found["ois"], 2)
        (0.0, 0.0, 0.0)
    """
    codes, concepts, target = _checked(codes, concepts, target, bins)
    rng = np.random.default_rng(seed)
    shuffled = _shuffled_within_concepts(codes, concepts, rng)
    found = {}
    for ending, those in (("", codes), ("_control", shuffled)):
        found[f"ctl{ending}"] = float(concept_task_leakage(those, concepts, target, bins=bins, seed=seed).mean())
        pairs = inter_concept_leakage(those, concepts, bins=bins, seed=seed)[np.triu_indices(concepts.shape[1], 1)]
        if not np.isnan(pairs).all():
            found[f"icl{ending}"] = float(np.nanmean(pairs))
        found[f"ois{ending}"] = oracle_impurity(those, concepts, seed=seed)
        found[f"nis{ending}"] = niche_impurity(those, concepts, seed=seed)
    return found


def concept_task_leakage(
    codes: Tensor, concepts: Tensor, target: Tensor, *, bins: int = BINS, seed: int = 0
) -> np.ndarray:
    """Measures what each code tells about the task beyond its concept, as a share of the task's entropy.

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        target: `(samples,)`, classes.
        bins: cells of a code.
        seed: of k-means.

    Returns:
        `(concepts,)`, in [0, 1].

    Raises:
        ValueError: as for `leakage`.

    Example:
        >>> y = torch.arange(200) % 2
        >>> concept = torch.arange(200) // 2 % 2
        >>> code = (2 * concept + y).float().unsqueeze(1)     # says the class, which the concept does not
        >>> concept_task_leakage(code, concept.float().unsqueeze(1), y).round(2).tolist()
        [1.0]
    """
    codes, concepts, target = _checked(codes, concepts, target, bins)
    found = []
    for code, concept in zip(codes.unbind(1), concepts.unbind(1), strict=True):
        known = ~concept.isnan()
        label = target[known].numpy()
        more = mutual_information(cells(code[known], bins, seed=seed), label) - mutual_information(
            cells(concept[known], bins), label
        )
        found.append(max(0.0, more / entropy(label)))
    return np.clip(found, 0, 1)


def inter_concept_leakage(codes: Tensor, concepts: Tensor, *, bins: int = BINS, seed: int = 0) -> np.ndarray:
    """Measures what the codes of two concepts have in common beyond what the concepts have.

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        bins: cells of a code.
        seed: of k-means.

    Returns:
        `(concepts, concepts)`, symmetric, in [0, 1], with zeros on the diagonal; NaN where too few samples have labels
        of both concepts.

    Raises:
        ValueError: as for `leakage`.
    """
    codes, concepts, _ = _checked(codes, concepts, None, bins)
    count = concepts.shape[1]
    code_cells = [cells(code, bins, seed=seed) for code in codes.unbind(1)]
    known = [~concept.isnan().numpy() for concept in concepts.unbind(1)]
    concept_cells = [cells(torch.nan_to_num(concept), bins) for concept in concepts.unbind(1)]
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            rows = known[i] & known[j]
            if rows.sum() < SAMPLES_PER_BIN * bins:
                found[i, j] = found[j, i] = np.nan
                continue
            more = _shared(code_cells[i][rows], code_cells[j][rows]) - _shared(
                concept_cells[i][rows], concept_cells[j][rows]
            )
            found[i, j] = found[j, i] = min(max(0.0, more), 1.0)
    return found


def oracle_impurity(codes: Tensor, concepts: Tensor, *, seed: int = 0) -> float:
    """Measures how far each code tells other concepts more, or less, than its own concept does (OIS).

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        seed: of the probes.

    Returns:
        0 where codes tell what concepts tell, 1 where each code tells all of many independent concepts.

    Raises:
        ValueError: as for `leakage`, or one of the halves that probes are fitted and judged on has one value alone.
    """
    codes, concepts, _ = _checked(codes, concepts, None, 2)
    count, labels = concepts.shape[1], concepts.round()
    width = codes.flatten(1).shape[1] // count
    own = torch.eye(count).bool()
    of_codes = probed_auroc(codes.flatten(1), labels, own.repeat_interleave(width, 1), seed=seed)
    # A missing label is no feature: it stands in the middle.
    of_concepts = probed_auroc(torch.nan_to_num(concepts, nan=0.5), labels, own, seed=seed)
    return float(np.linalg.norm(of_codes - of_concepts) * 2 / count)


def niche_impurity(codes: Tensor, concepts: Tensor, *, seed: int = 0) -> float:
    """Measures how well each concept can be told from the codes that do not correlate with it (NIS).

    The niche of a concept are the codes whose correlation with it is above beta; of an embedding the largest
    correlation of its entries counts. Beta runs from 0 to 0.9 in steps of 0.1; where nothing is outside, 0.5 counts. A
    noisy code, which correlates with its own concept by less than 0.9, is outside of the last niches: compare with the
    control.

    Args:
        codes: as for `leakage`.
        concepts: as for `leakage`.
        seed: of the probes.

    Returns:
        between 0.5 (nothing can be told) and 1.

    Raises:
        ValueError: as for `oracle_impurity`.
    """
    codes, concepts, _ = _checked(codes, concepts, None, 2)
    count = concepts.shape[1]
    features = codes.reshape(len(codes), -1)
    width = features.shape[1] // count
    labels = concepts.round()
    correlation = torch.zeros(count, count)  # [code, concept]
    for place in range(count):
        known = ~labels[:, place].isnan()
        each = _correlation(features[known], labels[known, place])
        correlation[:, place] = each.abs().unflatten(0, (count, width)).amax(1)
    outside = torch.stack([beta >= correlation.T for beta in NICHES])  # [beta, concept, code]
    # Many niches are the same for several beta and concepts.
    masks, place = outside.flatten(0, 1).unique(dim=0, return_inverse=True)
    found = probed_auroc(features, labels, masks.repeat_interleave(width, 1), seed=seed)
    return float(found[place.view(len(NICHES), count), np.arange(count)].mean())


def cells(values: Tensor, bins: int = BINS, *, seed: int = 0) -> np.ndarray:
    """Puts values into cells: each value its own where there are few, else quantiles, or k-means for vectors.

    A value that more than one in `bins` samples have keeps a cell for itself; the others share the cells that are left.

    Args:
        values: `(samples,)` or `(samples, width)`.
        bins: the most cells.
        seed: of k-means.

    Returns:
        `(samples,)`, integers; equal values are in one cell.

    Example:
        >>> cells(torch.tensor([0.0, 0.0, 0.0, 0.2, 0.7, 1.0]), 2).tolist()
        [0, 0, 0, 1, 1, 1]
    """
    values = values.squeeze(1) if values.dim() == 2 and values.shape[1] == 1 else values
    numbers = values.detach().to("cpu", torch.float64).numpy()
    different, place, counts = np.unique(numbers, axis=0, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    if len(different) <= bins:
        return place
    if numbers.ndim == 2:
        scale = numbers.std(0)
        return KMeans(bins, n_init=1, random_state=seed).fit_predict(numbers / np.where(scale > 0, scale, 1))
    frequent = counts * bins > len(numbers)
    counts = np.where(frequent, 0, counts)
    middle = (counts.cumsum() - counts / 2) / counts.sum()  # of the samples without the frequent values
    shared = np.floor(middle * (bins - frequent.sum())).astype(int)
    cell = np.where(frequent, bins + np.arange(len(different)), shared)
    return np.unique(cell[place], return_inverse=True)[1]


def entropy(labels: np.ndarray) -> float:
    r"""Estimates the entropy of discrete labels in nats: :math:`-\sum p \log p + (m - 1) / 2n`, m values in n samples.

    Example:
        >>> round(entropy(np.arange(1000) % 2), 4)     # log 2 + 1 / 2000
        0.6936
    """
    counts = np.unique(labels, return_counts=True)[1]
    shares = counts / len(labels)
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * len(labels)))


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Estimates the mutual information of two discrete labels in nats, at least 0, by corrected entropies.

    Example:
        >>> x = np.arange(1000) % 4
        >>> round(mutual_information(x, x % 2), 2), mutual_information(x % 2, x // 2)
        (0.69, 0.0)
    """
    joint = np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].reshape(-1)
    return max(0.0, entropy(first) + entropy(second) - entropy(joint))


def _shared(first: np.ndarray, second: np.ndarray) -> float:
    scale = np.sqrt(entropy(first) * entropy(second))
    return mutual_information(first, second) / scale if scale > 0 else 0.0


def _correlation(features: Tensor, label: Tensor) -> Tensor:
    """Correlates each feature with a label; 0 for one that is constant."""
    centered, other = features - features.mean(0), label - label.mean()
    scale = centered.norm(dim=0) * other.norm()
    return torch.where(scale > 0, (centered * other.unsqueeze(1)).sum(0) / scale.clamp(min=1e-30), 0).clamp(-1, 1)


def _shuffled_within_concepts(codes: Tensor, concepts: Tensor, rng: np.random.Generator) -> Tensor:
    """Shuffles each concept's code among the samples that have the same label of that concept."""
    shuffled = codes.clone()
    for place in range(concepts.shape[1]):
        label = torch.nan_to_num(concepts[:, place].round(), nan=-1.0)
        for value in label.unique():
            rows = torch.nonzero(label == value).squeeze(1)
            shuffled[rows, place] = codes[rows[torch.from_numpy(rng.permutation(len(rows)))], place]
    return shuffled


def _checked(codes: Tensor, concepts: Tensor, target: Tensor | None, bins: int):
    codes, concepts = (torch.as_tensor(part).detach().to("cpu", torch.float64) for part in (codes, concepts))
    if concepts.dim() != 2 or codes.dim() not in (2, 3) or codes.shape[:2] != concepts.shape:
        raise ValueError(
            f"codes are (samples, concepts) or (samples, concepts, width) and concepts (samples, concepts), got "
            f"{tuple(codes.shape)} and {tuple(concepts.shape)}"
        )
    if not codes.isfinite().all():
        raise ValueError("codes have NaN or infinite values")
    if bins < 2:
        raise ValueError(f"bins={bins} is a number of cells: 2 or more")
    known = concepts[~concepts.isnan()]
    if known.numel() and not ((known >= 0) & (known <= 1)).all():
        raise ValueError(f"concept labels are in [0, 1], got {float(known.min()):g} ... {float(known.max()):g}")
    target = None if target is None else torch.as_tensor(target).detach().cpu()
    if target is not None and target.shape != concepts.shape[:1]:
        raise ValueError(f"the target has one class per sample, got shape {tuple(target.shape)}")
    for place, concept in enumerate(concepts.unbind(1)):
        labeled = ~concept.isnan()
        if labeled.sum() < SAMPLES_PER_BIN * bins:
            raise ValueError(
                f"{bins} cells take {SAMPLES_PER_BIN * bins} labeled samples or more, concept {place} has "
                f"{int(labeled.sum())}: lower bins, or leave it out"
            )
        for what, values in (("value", concept.round()), ("class", target)):
            if values is not None and len(values[labeled].unique()) < 2:
                raise ValueError(
                    f"the {int(labeled.sum())} samples with a label of concept {place} have one {what} alone, so "
                    "nothing can be said of its leakage: give more samples, or leave it out"
                )
    return codes, concepts, target
