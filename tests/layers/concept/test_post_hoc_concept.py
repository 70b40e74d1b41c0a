"""The post-hoc layer: projections on its vectors, the hybrid residual, the penalty on the head."""

import numpy as np
import pytest
import torch

import ibreg

FEATURES, BATCH, CONCEPTS = 5, 6, 3


def build(**options):
    return ibreg.PostHocConceptBottleneck(FEATURES, CONCEPTS, **options)


@pytest.mark.parametrize("code", ["logit", "probability", "hard"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_against_numpy(code, hybrid):
    layer, x = build(code=code, hybrid=hybrid, out_features=2).eval(), torch.randn(BATCH, FEATURES)
    layer.set_vectors(torch.randn(CONCEPTS, FEATURES), torch.randn(CONCEPTS))
    if hybrid:
        assert not layer.residual_decoder.weight.any()
        torch.nn.init.normal_(layer.residual_decoder.weight)
    arrays = {name: tensor.double().numpy() for name, tensor in layer.state_dict().items()}
    inputs = x.double().numpy()
    logits = inputs @ arrays["vectors"].T + arrays["offsets"]
    read = {"logit": logits, "probability": 1 / (1 + np.exp(-logits)), "hard": (logits > 0).astype(float)}[code]
    expected = read @ arrays["decoder.weight"].T + arrays["decoder.bias"]
    if hybrid:
        expected += inputs @ arrays["residual_decoder.weight"].T
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.concept_logits(x).detach(), logits, rtol=1e-5, atol=1e-6)


def test_vectors_are_buffers_and_not_parameters():
    layer = build()
    assert [name for name, _ in layer.named_parameters()] == ["decoder.weight", "decoder.bias"]
    assert {"vectors", "offsets"} <= layer.state_dict().keys()
    torch.testing.assert_close(layer.vectors.norm(dim=1), torch.ones(CONCEPTS))


def test_penalty_is_the_elastic_net():
    layer = build(out_features=2, head_l1=0.3, head_l2=0.2)
    with torch.no_grad():
        layer.decoder.weight.copy_(torch.tensor([[1.0, -2.0, 0.0], [5e-4, 0.0, 0.5]]))
    out = layer.measure(torch.randn(BATCH, FEATURES))
    assert out.penalty.item() == pytest.approx(0.3 * 3.5005 + 0.2 * 5.25, rel=1e-5)
    assert out.logs["head_penalty"] == out.penalty
    assert out.logs["active_weights"] == 0.5
    labeled = layer.measure(torch.randn(BATCH, FEATURES), concepts=torch.zeros(BATCH, CONCEPTS))
    assert labeled.penalty == out.penalty
    assert labeled.logs.keys() == {"head_penalty", "active_weights", "concept_loss", "concept_accuracy"}


@pytest.mark.parametrize(
    ("vectors", "offsets", "message"),
    [
        (torch.zeros(2, FEATURES), torch.zeros(CONCEPTS), r"vectors must have shape \(3, 5\), got \(2, 5\)"),
        (torch.zeros(CONCEPTS, FEATURES), torch.zeros(2), r"offsets must have shape \(3,\), got \(2,\)"),
        (torch.full((CONCEPTS, FEATURES), torch.nan), torch.zeros(CONCEPTS), "vectors must be finite"),
    ],
)
def test_vectors_that_do_not_fit_change_nothing(vectors, offsets, message):
    layer = build()
    before = layer.vectors.clone()
    with pytest.raises(ValueError, match=message):
        layer.set_vectors(vectors, offsets)
    assert torch.equal(layer.vectors, before)


def test_options_out_of_range():
    with pytest.raises(ValueError, match="code must be one of"):
        build(code="margin")
    with pytest.raises(ValueError, match="head_l2 must be a finite number of at least 0"):
        build(head_l2=-1.0)
    with pytest.raises(ValueError, match="hybrid must be True or False, got 'yes'"):
        build(hybrid="yes")
