"""Fitted concept vectors and sparse heads: known directions, a convex optimum, a network with such a layer in it."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import nn

import ibreg
from ibreg.layers.concept.fitting import fit_concept_vectors, fit_sparse_head, pooled_features

FEATURES, SAMPLES = 6, 600
METHODS = pytest.mark.parametrize("method", ["svm", "mean_difference"])


def problem():
    """Features, three concepts that are half-spaces of them, and the directions."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(FEATURES, FEATURES)).Q[:3]
    features = torch.randn(SAMPLES, FEATURES)
    return features, (features @ directions.T > torch.tensor([0.0, 0.3, -0.3])).float(), directions


@METHODS
def test_fitted_vectors_have_the_true_directions(method):
    features, labels, directions = problem()
    layer = ibreg.PostHocConceptBottleneck(FEATURES, 3, out_features=2)
    fit_concept_vectors(layer, features, labels, method=method)
    cosines = (nn.functional.normalize(layer.vectors, dim=1) * directions).sum(1)
    assert (cosines > 0.97).all()
    logs = layer.eval().measure(features, concepts=labels).logs
    assert logs["concept_accuracy"] > 0.93
    probability = layer.predict_concepts(features).detach()
    torch.testing.assert_close(probability.mean(0), labels.mean(0), rtol=0, atol=0.01)  # Platt's scaling calibrates


def test_mean_difference_in_closed_form():
    features, labels, _ = problem()
    layer = ibreg.PostHocConceptBottleneck(FEATURES, 3, out_features=2)
    fit_concept_vectors(layer, features, labels, method="mean_difference")
    for column in range(3):
        present, absent = features[labels[:, column] == 1].mean(0), features[labels[:, column] == 0].mean(0)
        direction = nn.functional.normalize(present - absent, dim=0)
        vector = nn.functional.normalize(layer.vectors[column], dim=0)
        torch.testing.assert_close(vector, direction, rtol=1e-4, atol=1e-5)


@METHODS
def test_missing_soft_and_other_kinds_of_labels(method):
    features, labels, directions = problem()
    entries = ["a", {"name": "b", "values": [0, 1]}, {"name": "size", "kind": "continuous"}]
    group = torch.stack([labels[:, 1], 1 - labels[:, 1]], 1)
    labels = torch.cat([0.2 + 0.6 * labels[:, :1], group, (features @ directions[2]).unsqueeze(1) * 2 + 1], 1)
    labels[100:, 0] = math.nan
    layer = ibreg.PostHocConceptBottleneck(FEATURES, entries, out_features=2).eval()
    fit_concept_vectors(layer, features, labels, method=method)
    found = layer.predict_concepts(features)
    assert ((found[:, 0] > 0.5) == (features @ directions[0] > 0)).float().mean() > 0.9
    assert (found[:, 1:3].argmax(1) == labels[:, 1:3].argmax(1)).float().mean() > 0.93
    torch.testing.assert_close(found[:, 3], labels[:, 3], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda x, y: (x, y), {"method": "mean"}, "method must be one of 'svm', 'mean_difference', got 'mean'"),
        (lambda x, y: (x[:, 1:], y), {}, r"features must have shape \(600 samples of the labels, 6\), got \(600, 5\)"),
        (lambda x, y: (x[1:], y), {}, r"got \(599, 6\)"),
        (lambda x, y: (x, y[:, :2]), {}, r"labels must have shape \(batch, 3 concepts\)"),
        (lambda x, y: (x, y * torch.tensor([1, 0, 1])), {}, "all labels of concept 'concept_1' are 0: .* both"),
        (lambda x, y: (x, y * torch.tensor([1, math.nan, 1])), {}, "all labels of concept 'concept_1' are missing"),
        (lambda x, y: (x * 0, y), {"method": "mean_difference"}, "'concept_0' have the same mean features"),
    ],
)
def test_vectors_that_cannot_be_fitted(change, options, message):
    features, labels, _ = problem()
    layer = ibreg.PostHocConceptBottleneck(FEATURES, 3, out_features=2)
    before = layer.vectors.clone()
    with pytest.raises(ValueError, match=message):
        fit_concept_vectors(layer, *change(features, labels), **options)
    assert torch.equal(layer.vectors, before)


# ---- the head


def objective(weight, bias, code, target, l1, l2):
    """Elastic-net logistic loss of one class against the others, in float64 numpy."""
    margin = np.where(target, 1, -1) * (code @ weight + bias)
    return -np.log(expit(margin)).mean() + l1 * np.abs(weight).sum() + l2 * (weight**2).sum()


def fitted(out_features, target, **options):
    features, labels, _ = problem()
    options = {"code": "probability"} | options
    layer = ibreg.PostHocConceptBottleneck(FEATURES, 3, out_features=out_features, **options).eval()
    fit_concept_vectors(layer, features, labels)
    target = target(labels).long()
    fit_sparse_head(layer, features, target)
    return layer, features, target


@pytest.mark.parametrize("code", ["probability", "logit"])
def test_the_head_is_the_optimum_of_its_objective(code):
    layer, features, target = fitted(3, lambda labels: labels[:, :2].sum(1), head_l1=5e-3, head_l2=1e-3, code=code)
    read = layer.predict_concepts if code == "probability" else layer.concept_logits
    code = read(features).detach().double().numpy()
    for index in range(3):
        own = target.numpy() == index
        weight, bias = (p[index].detach().double() for p in layer.decoder.parameters())
        found = objective(weight.numpy(), bias.numpy(), code, own, 5e-3, 1e-3)

        def total(split, own=own):  # weights as differences of what is at least 0, so that the L1 norm is smooth
            return objective(split[:3] - split[3:6], split[6], code, own, 5e-3, 1e-3)

        best = minimize(total, np.full(7, 0.1), method="L-BFGS-B", bounds=[(0, None)] * 6 + [(None, None)]).fun
        assert found == pytest.approx(best, abs=1e-4)


def test_a_stronger_elastic_net_leaves_fewer_weights():
    weak, features, target = fitted(2, lambda labels: labels[:, 0], head_l1=1e-5)
    strong, _, _ = fitted(2, lambda labels: labels[:, 0], head_l1=3e-2)
    for layer in (weak, strong):
        assert (layer(features).argmax(1) == target).float().mean() > 0.9
    active = [layer.measure(features).logs["active_weights"] for layer in (weak, strong)]
    assert active[0] > active[1]
    assert active[1].item() == pytest.approx(1 / 3)
    assert strong.decoder.weight.abs().argmax(1).tolist() == [0, 0]


def test_one_output_and_two_are_equivalent():
    one, features, _ = fitted(1, lambda labels: labels[:, 0])
    two = ibreg.PostHocConceptBottleneck(FEATURES, 3, out_features=2, code="probability").eval()
    two.set_vectors(one.vectors, one.offsets)
    fit_sparse_head(two, features, (one(features)[:, 0] > 0).long())
    fit_sparse_head(one, features, (one(features)[:, 0] > 0).long())
    torch.testing.assert_close(two(features).softmax(1)[:, 1], one(features)[:, 0].sigmoid())


@pytest.mark.parametrize(
    ("options", "target", "message"),
    [
        ({}, torch.zeros(SAMPLES).long(), r"the target must contain each of the classes 0 to 1, got \[0\]"),
        ({}, torch.arange(SAMPLES) % 3, r"the target must contain each of the classes 0 to 1, got \[0, 1, 2\]"),
        (
            {"head_l1": 0.0, "head_l2": 0.0},
            torch.arange(SAMPLES) % 2,
            "and no head_prior: train any other head",
        ),
        ({"head_prior": [[0, 0, 1], [0, 0, 0]]}, torch.arange(SAMPLES) % 2, "no head_prior: train any other head"),
    ],
)
def test_heads_that_cannot_be_fitted(options, target, message):
    layer = ibreg.PostHocConceptBottleneck(FEATURES, 3, out_features=2, **options)
    with pytest.raises(ValueError, match=message):
        fit_sparse_head(layer, torch.randn(SAMPLES, FEATURES), target)


# ---- in a network


def test_a_frozen_network_gets_concepts_and_keeps_its_accuracy_with_the_hybrid(tmp_path):
    torch.manual_seed(3)
    x = torch.randn(SAMPLES, 1, 4, 4)
    concepts = (x[:, 0, 0, :3] > 0).float()
    target = (concepts.sum(1) > 1.5).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), target).backward()
        optimizer.step()
    net.requires_grad_(False).eval()
    keys = list(net.state_dict())
    layer = ibreg.PostHocConceptBottleneck(concepts=["a", "b", "c"], out_features=2, hybrid=True)
    ibreg.inject(net, {"2": layer}, example=x[:1])
    assert [key for key in net.state_dict() if "bottleneck" not in key] == keys
    net[3] = nn.Identity()  # the layer's head is the classifier now
    features = pooled_features(net, layer, x)
    assert features.shape == (SAMPLES, 32)
    fit_concept_vectors(layer, features, concepts)
    fit_sparse_head(layer, features, target)
    assert layer.eval().measure(features, concepts=concepts).logs["concept_accuracy"] > 0.9
    assert (net(x).argmax(1) == target).float().mean() > 0.9
    before = net(x).detach()
    path = tmp_path / "concepts.safetensors"
    ibreg.save_bottlenecks(net, path)
    with torch.no_grad():
        layer.vectors.zero_()
    ibreg.load_bottlenecks(net, path)
    assert torch.equal(net(x), before)


def test_features_of_maps_are_means_and_modes_come_back():
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Dropout(0.5)).train()
    layer = ibreg.PostHocConceptBottleneck(5, 2)
    ibreg.inject(net, {"0": layer})
    x = torch.randn(7, 1, 6, 6)
    plain = nn.functional.conv2d(x, net[0].weight, net[0].bias).mean((2, 3))
    torch.testing.assert_close(pooled_features(ibreg.Regularized(net), layer, x), plain.detach())
    assert net.training
    with pytest.raises(ValueError, match="is it part of this model"):
        pooled_features(nn.Linear(3, 3), layer, torch.zeros(2, 3))
