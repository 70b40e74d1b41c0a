"""Concepts of a network that was trained without them: directions in its features, and a sparse head that reads those.

Yuksekgonul et al. 2023 (arXiv 2205.15480), after the concept activation vectors of Kim et al. 2018 (arXiv 1711.11279).
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.layers.concept.post_hoc_concept import PostHocConceptBottleneck
from ibreg.modes import captured, evaluating

METHODS = ("svm", "mean_difference")
ROWS_AT_ONCE = 1000


@torch.no_grad()
def pooled_features(model: nn.Module, layer: PostHocConceptBottleneck, x: Tensor) -> Tensor:
    """Returns what a post-hoc layer gets to see of inputs: `(samples, in_features)`, means over positions.

    Args:
        model: with the layer in it, wrapped or not; it runs in evaluation mode and keeps its modes.
        layer: the layer.
        x: `(samples, ...)`, the model's inputs.

    Raises:
        ValueError: the model does not call the layer.
    """
    pooled: list[Tensor] = []
    with captured(layer) as calls, evaluating(model):
        for rows in x.split(ROWS_AT_ONCE):
            model(rows)
            pooled += [layer.pooled(features, None) for features in calls]
            calls.clear()
    if sum(len(rows) for rows in pooled) != len(x):
        raise ValueError(f"the model calls {layer!r} not once for each input: is it part of this model?")
    return torch.cat(pooled)


def fit_concept_vectors(
    layer: PostHocConceptBottleneck,
    features: Tensor,
    labels: Tensor,
    *,
    method: str = "svm",
    regularization: float = 0.1,
    seed: int = 0,
) -> None:
    r"""Fits the concept vectors of a post-hoc layer to labeled features, in place.

    .. math:: m_c(x) = a_c \frac{u_c \cdot x + t_c}{|u_c|} + s_c

    with u the normal of a linear support vector machine, or the difference of the means of samples with and without the
    concept (t puts the boundary half way); a and s are those of a logistic regression of the label on the margin
    (Platt's scaling), so that m is a log odds and its sigmoid a probability. A continuous concept gets a ridge
    regression.

    Args:
        layer: gets vectors and offsets.
        features: `(samples, in_features)`, of the frozen network: see `pooled_features`.
        labels: `(samples, concepts)`; soft ones count as 1 above 0.5, NaN leaves the sample out for that concept.
        method: "svm" or "mean_difference".
        regularization: C of the support vector machine, smaller is stronger.
        seed: of the support vector machine's order.

    Raises:
        ValueError: another method, shapes that do not fit, a concept of which one side has no sample.

    Example:
        >>> x = torch.randn(200, 4)
        >>> layer = PostHocConceptBottleneck(4, ["first"], out_features=2)
        >>> fit_concept_vectors(layer, x, (x[:, :1] > 0).float(), method="mean_difference")
        >>> int(layer.vectors[0].abs().argmax())
        0
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(map(repr, METHODS))}, got {method!r}")
    concepts = layer.concepts
    labels = concepts.validate(labels)
    if features.shape != (len(labels), layer.in_features):
        raise ValueError(
            f"features are ({len(labels)} samples of the labels, {layer.in_features}), got {tuple(features.shape)}"
        )
    x = features.detach().double().cpu().numpy()
    y = labels.double().cpu().numpy()
    fitted = []
    for column, (name, kind) in enumerate(zip(concepts.names, concepts.kinds, strict=True)):
        known = ~np.isnan(y[:, column])
        rows, target = x[known], y[known, column]
        if kind == "continuous":
            ridge = Ridge().fit(rows, target)
            fitted.append((ridge.coef_, ridge.intercept_))
            continue
        target = target > 0.5
        if target.all() or not target.any():
            raise ValueError(f"all labels of concept {name!r} are {int(target[0])}: a direction needs samples of both")
        normal, threshold = (
            _support_vectors(rows, target, regularization, seed)
            if method == "svm"
            else _mean_difference(rows, target, name)
        )
        length = np.linalg.norm(normal)
        normal, threshold = normal / length, threshold / length
        scaling = LogisticRegression().fit((rows @ normal + threshold)[:, None], target)
        slope = scaling.coef_.item()
        fitted.append((slope * normal, slope * threshold + scaling.intercept_.item()))
    vectors, offsets = (torch.from_numpy(np.stack(parts)) for parts in zip(*fitted, strict=True))
    layer.set_vectors(vectors, offsets)


@torch.no_grad()
def fit_sparse_head(layer: PostHocConceptBottleneck, features: Tensor, target: Tensor, *, seed: int = 0) -> None:
    r"""Fits the head of a post-hoc layer as an elastic-net classifier, one class against the others, in place.

    .. math:: \min_w \frac1n \sum_i \log(1 + e^{-y_i (w \cdot \text{code}_i + d)}) + l_1 |w|_1 + l_2 |w|_2^2

    with the layer's `head_l1` and `head_l2`, to convergence. The paper descends stochastically, which on log odds stays
    far from the minimum.

    Args:
        layer: with fitted concept vectors; its outputs are the classes, or one output for two classes.
        features: `(samples, in_features)`, of the frozen network: see `pooled_features`.
        target: `(samples,)`, class indices; each class has samples.
        seed: of the order of samples.

    Raises:
        ValueError: classes that are not the layer's outputs, a layer without an elastic net or with a prior.
    """
    if layer.head_prior is not None or layer.head_l1 + layer.head_l2 == 0:
        raise ValueError("an elastic net has head_l1 or head_l2 above 0 and no head_prior: train this head by gradient")
    classes = max(layer.out_features, 2)
    found = target.unique().tolist()
    if found != list(range(classes)):
        raise ValueError(f"the head is for classes 0 to {classes - 1} with samples of each, the target has {found}")
    logits = F.linear(features.to(layer.vectors), layer.vectors, layer.offsets)
    code = layer.coded(layer.code, logits, layer.concepts.probabilities(logits)).double().cpu().numpy()
    # The solver steps by the size of the code: at size 1 it needs few steps, and the penalties move along.
    scale = np.sqrt(np.mean(code**2)) or 1.0
    l1, l2 = layer.head_l1 / scale, layer.head_l2 / scale**2
    strength = l1 + 2 * l2
    classes_apart = [target.cpu().numpy() == place for place in (range(classes) if classes > 2 else [1])]
    fitted = [
        LogisticRegression(
            C=1 / (strength * len(code)), l1_ratio=l1 / strength, solver="saga", max_iter=10_000, random_state=seed
        ).fit(code / scale, is_class)
        for is_class in classes_apart
    ]
    weight = torch.from_numpy(np.concatenate([each.coef_ for each in fitted]) / scale)
    bias = torch.from_numpy(np.concatenate([each.intercept_ for each in fitted]))
    if layer.out_features == 2:  # one classifier tells two classes apart: half of its log odds for, half against
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    layer.decoder.weight.copy_(weight)
    layer.decoder.bias.copy_(bias)


def _support_vectors(rows: np.ndarray, target: np.ndarray, regularization: float, seed: int):
    """Returns the normal and the threshold of a linear support vector machine."""
    machine = LinearSVC(C=regularization, class_weight="balanced", random_state=seed, max_iter=20_000)
    machine.fit(rows, target)
    return machine.coef_[0], machine.intercept_[0]


def _mean_difference(rows: np.ndarray, target: np.ndarray, name: str):
    """Returns the difference of two means, and the threshold half way between them."""
    present, absent = rows[target].mean(0), rows[~target].mean(0)
    normal = present - absent
    if not normal.any():
        raise ValueError(f"samples with and without concept {name!r} have the same mean features")
    return normal, -normal @ (present + absent) / 2
