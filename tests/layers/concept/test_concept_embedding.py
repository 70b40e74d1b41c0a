"""Concept embeddings against numpy, and RandInt by sample and by concept."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

import ibreg
from ibreg.layers.scope import Scope

FEATURES, BATCH, SIZE = 5, 6, 3
ENTRIES = ["red", {"name": "digit", "values": [0, 1, 2]}, {"name": "size", "kind": "continuous"}]


def build(concepts=ENTRIES, **options):
    return ibreg.ConceptEmbeddingBottleneck(FEATURES, concepts, embedding_features=SIZE, **options)


def test_against_numpy():
    layer, x = build().eval(), torch.randn(BATCH, FEATURES)
    weight, bias, score, shift = (
        p.detach().double().numpy() for p in (*layer.encoder.parameters(), *layer.scorer.parameters())
    )
    context = (x.double().numpy() @ weight.T + bias).reshape(BATCH, 5, 2 * SIZE)
    context = np.where(context > 0, context, 0.01 * context)
    logits = (context @ score.T + shift)[..., 0]
    p = np.concatenate([expit(logits[:, :1]), softmax(logits[:, 1:4], 1), logits[:, 4:]], 1)[..., None]
    expected = (p * context[..., :SIZE] + (1 - p) * context[..., SIZE:]).reshape(BATCH, -1)
    np.testing.assert_allclose(layer.concept_logits(x).detach(), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-5, atol=1e-6)


def values_in_training(layer, x, labels):
    return layer.train().transform(x, Scope(concepts=labels))[1].values.detach()


def test_randint_samples_each_sample_and_concept():
    samples, concepts = 4000, 8
    layer, x = build(concepts, intervention_probability=0.25), torch.randn(1, FEATURES).expand(samples, -1)
    labels = torch.randint(2, (samples, concepts)).float()
    values = values_in_training(layer, x, labels)
    replaced = values == labels
    predicted = layer.predict_concepts(x)
    torch.testing.assert_close(values[~replaced], predicted[~replaced])
    deviation = (0.25 * 0.75 / samples) ** 0.5
    assert ((replaced.float().mean(0) - 0.25).abs() < 4 * deviation).all()
    counts = torch.bincount(replaced.sum(1), minlength=concepts + 1)  # Binomial(8, 1/4), neither all nor none at once
    binomial = torch.distributions.Binomial(concepts, torch.tensor(0.25)).log_prob(torch.arange(concepts + 1.0)).exp()
    assert ((counts / samples - binomial).abs() < 4 * (binomial * (1 - binomial) / samples).sqrt() + 1e-3).all()
    correlation = replaced.float().T.corrcoef() - torch.eye(concepts)
    assert correlation.abs().max() < 5 / samples**0.5


def test_a_categorical_group_is_set_as_a_whole_and_a_missing_label_never():
    layer, x = build(intervention_probability=0.5), torch.randn(2000, FEATURES)
    labels = torch.zeros(2000, 5)
    labels[:, 2] = 1
    labels[:1000, 1:4] = torch.nan
    values = values_in_training(layer, x, labels)
    group, predicted = values[:, 1:4], layer.predict_concepts(x)[:, 1:4]
    whole = (group == torch.tensor([0.0, 1.0, 0.0])).all(1)
    torch.testing.assert_close(group[~whole], predicted[~whole])
    assert not whole[:1000].any()
    assert 0.45 < whole[1000:].float().mean() < 0.55


@pytest.mark.parametrize(("probability", "everywhere"), [(0.0, False), (1.0, True)])
def test_never_and_always(probability, everywhere):
    layer, x = build(2, intervention_probability=probability), torch.randn(BATCH, FEATURES)
    labels = torch.ones(BATCH, 2)
    assert torch.equal(values_in_training(layer, x, labels), labels if everywhere else layer.predict_concepts(x))


def test_randint_acts_in_training_only_and_not_on_the_loss():
    layer, x, labels = build(2, intervention_probability=1.0), torch.randn(BATCH, FEATURES), torch.ones(BATCH, 2)
    assert layer.measure(x, concepts=labels).penalty > 0.01
    layer.eval()
    assert torch.equal(layer.measure(x, concepts=labels).z, layer(x))
    assert torch.equal(layer.train().transform(x)[0], layer.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"intervention_probability": 1.1},
            "intervention_probability must be a finite number of at least 0 and at most 1, got 1.1",
        ),
        ({"intervention_probability": float("nan")}, "intervention_probability must be a finite number"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
    with pytest.raises(ValueError, match="embedding_features must be an integer of at least 1"):
        ibreg.ConceptEmbeddingBottleneck(FEATURES, 2, embedding_features=0)
