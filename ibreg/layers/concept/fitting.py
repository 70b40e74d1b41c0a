"""Fit a post-hoc concept layer to a trained network: concept vectors in its features, and a sparse head on them.

Yuksekgonul et al. 2023 (arXiv 2205.15480), after the concept activation vectors of Kim et al. 2018 (arXiv 1711.11279).
Requires scikit-learn.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.layers.concept.post_hoc_concept import PostHocConceptBottleneck
from ibreg.layers.constraints import OneOf
from ibreg.modes import captured, evaluating

METHODS = ("svm", "mean_difference")
ROWS_AT_ONCE = 1000


@torch.no_grad()
def pooled_features(model: nn.Module, layer: PostHocConceptBottleneck, x: Tensor) -> Tensor:
    """Return the input features of a post-hoc layer, averaged over positions: `(samples, in_features)`.

    Args:
        model: model that contains the layer, wrapped or not; it runs in evaluation mode, and its modes are restored.
        layer: the layer.
        x: `(samples, ...)`, inputs of the model.

    Raises:
        ValueError: If the model does not call the layer once per input.
    """
    pooled: list[Tensor] = []
    with captured(layer) as calls, evaluating(model):
        for rows in x.split(ROWS_AT_ONCE):
            model(rows)
            pooled += [layer.pooled(features, None) for features in calls]
            calls.clear()
    samples = sum(map(len, pooled))
    if samples != len(x):
        raise ValueError(
            f"the model must call {layer!r} once per input, got {samples} samples for {len(x)} inputs: is it part of "
            "this model?"
        )
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
    r"""Fit the concept vectors of a post-hoc layer to labeled features, in place.

    .. math:: m_c(x) = a_c \frac{u_c \cdot x + t_c}{|u_c|} + s_c

    with u the normal of a linear support vector machine, or the difference between the means of samples with and
    without the concept (t puts the boundary half way); a and s are the coefficients of a logistic regression of the
    label on the margin (Platt scaling), so that m is a log odds and its sigmoid a probability. A continuous concept
    gets a ridge regression.

    Args:
        layer: layer whose vectors and offsets are set.
        features: `(samples, in_features)`, features of the frozen network: see `pooled_features`.
        labels: `(samples, concepts)`; soft labels above 0.5 count as 1, samples with NaN are left out for that concept.
        method: "svm" or "mean_difference".
        regularization: C of the support vector machine; smaller is stronger.
        seed: random seed of the support vector machine.

    Raises:
        ValueError: If the method is unknown, shapes do not fit, or all labels of a concept are the same.

    Example:
        >>> x = torch.randn(200, 4)
        >>> layer = PostHocConceptBottleneck(4, ["first"], out_features=2)
        >>> fit_concept_vectors(layer, x, (x[:, :1] > 0).float(), method="mean_difference")
        >>> int(layer.vectors[0].abs().argmax())
        0
    """
    OneOf(METHODS).check("method", method)
    labels = layer.concepts.validate(labels)
    if features.shape != (len(labels), layer.in_features):
        raise ValueError(
            f"features must have shape ({len(labels)} samples of the labels, {layer.in_features}), got "
            f"{tuple(features.shape)}"
        )
    x, y = features.detach().double().cpu().numpy(), labels.double().cpu().numpy()
    fitted = []
    for name, kind, label in zip(layer.concepts.names, layer.concepts.kinds, y.T, strict=True):
        known = ~np.isnan(label)
        rows, target = x[known], label[known]
        if kind == "continuous":
            ridge = Ridge().fit(rows, target)
            fitted.append((ridge.coef_, ridge.intercept_))
            continue
        target = target > 0.5
        if target.all() or not target.any():
            raise ValueError(
                f"all labels of concept {name!r} are {int(target[0])}: a concept vector requires samples of both labels"
            )
        if method == "svm":
            normal, threshold = _support_vectors(rows, target, regularization, seed)
        else:
            normal, threshold = _mean_difference(rows, target, name)
        fitted.append(_platt_scaled(rows, target, normal, threshold))
    vectors, offsets = (torch.from_numpy(np.stack(parts)) for parts in zip(*fitted, strict=True))
    layer.set_vectors(vectors, offsets)


@torch.no_grad()
def fit_sparse_head(layer: PostHocConceptBottleneck, features: Tensor, target: Tensor, *, seed: int = 0) -> None:
    r"""Fit the head of a post-hoc layer as a one-vs-rest elastic-net classifier, in place.

    .. math:: \min_w \frac1n \sum_i \log(1 + e^{-y_i (w \cdot \text{code}_i + d)}) + l_1 |w|_1 + l_2 |w|_2^2

    with the layer's `head_l1` and `head_l2`, to convergence. (The stochastic gradient descent of the paper stays far
    from the minimum on log odds.)

    Args:
        layer: layer with fitted concept vectors, one output per class, or a single output for two classes.
        features: `(samples, in_features)`, features of the frozen network: see `pooled_features`.
        target: `(samples,)`, class indices; every class has samples.
        seed: random seed of the solver.

    Raises:
        ValueError: If the classes are not the outputs of the layer, or the layer has no elastic net or has a prior.
    """
    if layer.head_prior is not None or layer.head_l1 + layer.head_l2 == 0:
        raise ValueError(
            "the layer must have head_l1 or head_l2 above 0 and no head_prior: train any other head by gradient descent"
        )
    classes = max(layer.out_features, 2)
    present = target.unique().tolist()
    if present != list(range(classes)):
        raise ValueError(f"the target must contain each of the classes 0 to {classes - 1}, got {present}")
    logits = F.linear(features.to(layer.vectors), layer.vectors, layer.offsets)
    code = layer.coded(layer.code, logits, layer.concepts.probabilities(logits)).double().cpu().numpy()
    labels = target.cpu().numpy()
    fitted = [
        _elastic_net(code, labels == label, layer.head_l1, layer.head_l2, seed)
        for label in (range(classes) if classes > 2 else [1])
    ]
    weight, bias = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*fitted, strict=True))
    if layer.out_features == 2:  # one classifier separates two classes: half of its log odds for, half against
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    layer.decoder.weight.copy_(weight)
    layer.decoder.bias.copy_(bias)


def _elastic_net(
    code: np.ndarray, target: np.ndarray, l1: float, l2: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `(1, concepts)` and bias `(1,)` of an elastic-net logistic regression."""
    # The solver's step depends on the scale of the code: at scale 1 it converges fast, with penalties scaled likewise.
    scale = np.sqrt(np.mean(code**2)) or 1.0
    l1, l2 = l1 / scale, l2 / scale**2
    strength = l1 + 2 * l2
    model = LogisticRegression(
        C=1 / (strength * len(code)), l1_ratio=l1 / strength, solver="saga", max_iter=10_000, random_state=seed
    ).fit(code / scale, target)
    return model.coef_ / scale, model.intercept_


def _support_vectors(
    rows: np.ndarray, target: np.ndarray, regularization: float, seed: int
) -> tuple[np.ndarray, float]:
    """Return the normal and the threshold of a linear support vector machine."""
    machine = LinearSVC(C=regularization, class_weight="balanced", random_state=seed, max_iter=20_000)
    machine.fit(rows, target)
    return machine.coef_[0], float(np.ravel(machine.intercept_)[0])


def _mean_difference(rows: np.ndarray, target: np.ndarray, name: str) -> tuple[np.ndarray, float]:
    """Return the difference of two means, and the threshold half way between them."""
    present, absent = rows[target].mean(0), rows[~target].mean(0)
    normal = present - absent
    if not normal.any():
        raise ValueError(f"samples with and without concept {name!r} have the same mean features")
    return normal, -normal @ (present + absent) / 2


def _platt_scaled(
    rows: np.ndarray, target: np.ndarray, normal: np.ndarray, threshold: float
) -> tuple[np.ndarray, float]:
    """Return the vector and the offset whose sum is the log odds of the label given the margin."""
    length = float(np.linalg.norm(normal))
    normal, threshold = normal / length, threshold / length
    scaling = LogisticRegression().fit((rows @ normal + threshold)[:, None], target)
    slope = scaling.coef_.item()
    return slope * normal, slope * threshold + scaling.intercept_.item()
