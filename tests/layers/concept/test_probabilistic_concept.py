"""Probabilistic concepts against numpy: distances to anchors, the divergence, uncertainty of concepts and classes."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import nn

import ibreg
from ibreg.layers.concept.base import ConceptIntervention
from ibreg.layers.intervention import intervening

FEATURES, BATCH, SIZE = 5, 6, 4
ENTRIES = ["red", {"name": "digit", "values": [0, 1, 2]}]


def build(**options):
    layer = ibreg.ProbabilisticConceptBottleneck(FEATURES, ENTRIES, embedding_features=SIZE, **options)
    with torch.no_grad():
        layer.encoder.bias.normal_()
    return layer


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def gaussians(layer, x):
    """Means and standard deviations of the vectors, and the anchors, in float64 numpy."""
    weight, bias = (p.detach().double().numpy() for p in layer.encoder.parameters())
    mean, raw_scale = np.split(x.double().numpy() @ weight.T + bias, 2, axis=1)
    shape = (len(x), 4, SIZE)
    anchors = unit(layer.anchors.detach().double().numpy())
    return unit(mean.reshape(shape)), np.logaddexp(0, raw_scale.reshape(shape)), anchors


def logits_of(layer, vectors, anchors):
    absent, present = (np.linalg.norm(vectors - anchor, axis=-1) for anchor in anchors)
    return np.exp(layer.log_sharpness.item()) * (absent - present)


def labels():
    labels = torch.zeros(BATCH, 4)
    labels[::2, 0] = labels[:, 2] = 1
    return labels


def test_evaluation_against_numpy():
    layer, x = build().eval(), torch.randn(BATCH, FEATURES)
    mean, scale, anchors = gaussians(layer, x)
    logits = logits_of(layer, mean, anchors)
    np.testing.assert_allclose(layer(x).detach(), mean.reshape(BATCH, -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.concept_logits(x).detach(), logits, rtol=1e-4, atol=1e-5)
    expected = np.concatenate([expit(logits[:, :1]), softmax(logits[:, 1:], 1)], 1)
    np.testing.assert_allclose(layer.predict_concepts(x).detach(), expected, rtol=1e-4)
    logs = layer.measure(x, concepts=labels()).logs
    rate = 0.5 * (mean**2 + scale**2 - 1 - np.log(scale**2)).sum((1, 2)).mean()
    np.testing.assert_allclose(logs["rate"], rate, rtol=1e-5)


def test_training_loss_is_that_of_the_mean_probability():
    layer, x = build(samples=20_000, rate_weight=0.01), torch.randn(BATCH, FEATURES)
    out = layer.measure(x, concepts=labels())
    mean, scale, anchors = gaussians(layer, x)
    noise = np.random.default_rng(0).standard_normal((20_000, *mean.shape))
    logits = logits_of(layer, mean + scale * noise, anchors)
    present, group = expit(logits[..., 0]).mean(0), softmax(logits[..., 1:], -1).mean(0)
    red = labels()[:, 0].numpy()
    expected = -(red * np.log(present) + (1 - red) * np.log(1 - present)) - np.log(group[:, 1])
    np.testing.assert_allclose(out.logs["concept_loss"], expected.mean(), rtol=0.01)
    torch.testing.assert_close(out.penalty.detach(), out.logs["concept_loss"] + 0.01 * out.logs["rate"])


def test_vectors_are_drawn_around_their_means():
    layer, x = build(samples=1), torch.randn(1, FEATURES)
    mean, scale, _ = gaussians(layer, x)
    vectors = layer.measure(x.expand(40_000, -1), concepts=labels()[:1].expand(40_000, -1)).z.detach()
    np.testing.assert_allclose(vectors.mean(0), mean.flatten(), atol=4 * scale.max() / 200)
    np.testing.assert_allclose(vectors.std(0), scale.flatten(), rtol=0.03)


def test_a_correction_puts_the_anchor_in_place_and_leaves_the_others():
    layer, x = build().eval(), torch.randn(BATCH, FEATURES)
    mean, _, anchors = gaussians(layer, x)
    mask = torch.tensor([True, False, False, False]).expand(BATCH, -1)
    for value, expected in ((1.0, anchors[1, 0]), (0.0, anchors[0, 0]), (0.25, anchors.T[:, 0] @ [0.75, 0.25])):
        with intervening({layer: ConceptIntervention(mask, torch.full((BATCH, 4), value))}):
            vectors = layer(x).detach().reshape(BATCH, 4, SIZE)
        np.testing.assert_allclose(vectors[:, 0], np.broadcast_to(expected, (BATCH, SIZE)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(vectors[:, 1:], mean[:, 1:], rtol=1e-5, atol=1e-6)


def test_uncertainty_of_concepts_is_the_size_of_their_gaussians():
    layer, x = build(), torch.randn(BATCH, FEATURES)
    _, scale, _ = gaussians(layer, x)
    determinants = (scale**2).prod(-1) ** (1 / SIZE)
    np.testing.assert_allclose(layer.concept_uncertainty(x).detach(), determinants, rtol=1e-4)


def test_uncertainty_of_classes_is_the_variance_of_the_outputs():
    layer, x = build(out_features=3), torch.randn(1, FEATURES)
    expected = layer.class_uncertainty(x).detach()
    assert expected.shape == (1, 3)
    outputs = layer.measure(x.expand(40_000, -1), concepts=labels()[:1].expand(40_000, -1)).z
    torch.testing.assert_close(outputs.var(0), expected[0], rtol=0.03, atol=1e-6)
    _, scale, _ = gaussians(layer, x)
    weight = layer.decoder.weight.detach().double().numpy()
    covariance = weight @ np.diag(scale.flatten() ** 2) @ weight.T
    np.testing.assert_allclose(expected[0], np.diag(covariance), rtol=1e-4)
    with pytest.raises(ValueError, match="must be of a layer with head='linear', got head='identity'"):
        build().class_uncertainty(x)


def test_a_concept_that_the_features_do_not_determine_has_probability_one_half():
    x = torch.cat([torch.randn(300, FEATURES), torch.zeros(300, FEATURES)])
    concepts = torch.cat([(x[:300, :1] > 0).float(), torch.randint(2, (300, 1)).float()])
    layer = ibreg.ProbabilisticConceptBottleneck(FEATURES, 1, embedding_features=SIZE)
    model = ibreg.Regularized(nn.Sequential(layer))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        model(x, concepts=concepts).penalty.backward()
        optimizer.step()
    probability = layer.eval().predict_concepts(x)
    assert ((probability[:300] > 0.5) == (concepts[:300] > 0.5)).float().mean() > 0.95
    assert (probability[300:] - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"concepts": ["a", {"name": "b", "kind": "continuous"}]},
            "concept 'b' must be binary or categorical",
        ),
        (
            {"embedding_features": 0},
            "embedding_features must be an integer of at least 1 [(]size of a concept's vector[)], got 0",
        ),
        (
            {"samples": 0},
            "samples must be an integer of at least 1 [(]number of Monte Carlo samples in the loss[)]",
        ),
        ({"rate_weight": -1.0}, "rate_weight must be a finite number of at least 0, got -1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ibreg.ProbabilisticConceptBottleneck(**{"in_features": FEATURES, "concepts": 2, **options})
