"""The concept bottleneck: its codes, their gradients, the residual, and the penalty on the head's weights."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

import ibreg
from ibreg.layers.concept.base import ConceptIntervention
from ibreg.layers.intervention import intervening

FEATURES, BATCH = 5, 6
ENTRIES = ["red", {"name": "digit", "values": [0, 1, 2]}, {"name": "size", "kind": "continuous"}]


def build(**options):
    return ibreg.ConceptBottleneck(FEATURES, ENTRIES, **options)


def logits_of(layer, x):
    weight, bias = (p.detach().double().numpy() for p in (layer.encoder.weight, layer.encoder.bias))
    return x.double().numpy() @ weight.T + bias


def codes(logits):
    """Each code in numpy: binary column 0, softmax 1 to 3, value 4."""
    probability = np.concatenate([expit(logits[:, :1]), softmax(logits[:, 1:4], 1), logits[:, 4:5]], 1)
    hard = np.concatenate([logits[:, :1] > 0, np.eye(3)[logits[:, 1:4].argmax(1)], logits[:, 4:5]], 1)
    return {"logit": logits[:, :5], "probability": probability, "hard": hard}


@pytest.mark.parametrize("code", ["logit", "probability", "hard"])
@pytest.mark.parametrize("residual", [0, 2])
def test_codes_against_numpy(code, residual):
    layer, x = build(code=code, residual=residual).eval(), torch.randn(BATCH, FEATURES)
    logits = logits_of(layer, x)
    expected = np.concatenate([codes(logits)[code], logits[:, 5:]], 1)
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_hard_code_is_exactly_0_or_1_with_the_gradient_of_the_probability():
    layer, weight = build(code="hard").train(), torch.randn(BATCH, 5)
    x = torch.randn(BATCH, FEATURES)
    hard = layer.measure(x, concepts=torch.zeros(BATCH, 5)).z
    assert ((hard[:, :4] == 0) | (hard[:, :4] == 1)).all()
    (hard * weight).sum().backward()
    gradient = layer.encoder.weight.grad.clone()
    layer.zero_grad()
    (layer.predict_concepts(x) * weight).sum().backward()
    torch.testing.assert_close(gradient, layer.encoder.weight.grad)
    assert gradient[:4].abs().sum() > 0


@pytest.mark.parametrize("code", ["logit", "probability", "hard"])
def test_interventions_in_both_spaces(code):
    layer, x = build(code=code).eval(), torch.randn(BATCH, FEATURES)
    mask = torch.tensor([True, False, False, False, True]).expand(BATCH, -1)
    logits = torch.full((BATCH, 5), 1.5)
    expected = np.where(mask, logits, logits_of(layer, x))
    with intervening({layer: ConceptIntervention(mask, logits, "logit")}):
        np.testing.assert_allclose(layer(x).detach(), codes(expected)[code], rtol=1e-5, atol=1e-6)
    probabilities = torch.tensor([0.9, torch.nan, torch.nan, torch.nan, 4.0]).expand(BATCH, -1)
    expected = codes(logits_of(layer, x))[code]
    expected[:, 0] = {"logit": np.log(9), "probability": 0.9, "hard": 1}[code]
    expected[:, 4] = 4
    with intervening({layer: ConceptIntervention(mask, probabilities)}):
        np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-5, atol=1e-6)


def test_setting_a_label_of_0_or_1_gives_a_finite_logit():
    layer = build(code="logit").eval()
    truth = torch.tensor([[1.0, 0, 1, 0, 3], [0.0, 0, 0, 1, -3]])
    with intervening({layer: ConceptIntervention(torch.ones(2, 5).bool(), truth)}):
        code = layer(torch.randn(2, FEATURES))
    assert code.isfinite().all()
    torch.testing.assert_close(layer.concepts.probabilities(code), truth, rtol=0, atol=1e-5)


def test_interventions_do_not_change_the_residual():
    layer, x = build(residual=2).eval(), torch.randn(BATCH, FEATURES)
    with intervening({layer: ConceptIntervention(torch.ones(BATCH, 5).bool(), torch.ones(BATCH, 5))}):
        torch.testing.assert_close(layer(x)[:, 5:], layer.encoder(x)[:, 5:])


# ---- the head


@pytest.mark.parametrize("prior", [None, [[1, 0, 0, 0, -1], [0, 1, 0, 0, 0]]])
def test_penalty_on_the_head(prior):
    layer = build(out_features=2, residual=1, head_l1=0.2, head_l2=0.1, head_prior=prior)
    x, labels = torch.randn(BATCH, FEATURES), torch.zeros(BATCH, 5)
    labels[:, 1] = 1
    out = layer.measure(x, concepts=labels)
    deviation = layer.decoder.weight.detach().double().numpy()
    deviation[:, :5] -= np.zeros((2, 5)) if prior is None else np.array(prior)
    expected = 0.2 * np.abs(deviation).sum() + 0.1 * (deviation**2).sum()
    np.testing.assert_allclose(out.logs["head_penalty"], expected, rtol=1e-6)
    torch.testing.assert_close(out.penalty.detach(), out.logs["concept_loss"] + out.logs["head_penalty"])
    plain = ibreg.build("concept", **(layer.config() | {"head_l1": 0.0, "head_l2": 0.0, "head_prior": None}))
    assert "head_penalty" not in plain.measure(x, concepts=labels).logs


def test_the_prior_determines_weights_that_the_data_leave_open():
    prior = [[1.0, -1.0], [-1.0, 1.0]]
    layer = ibreg.ConceptBottleneck(2, 2, out_features=2, head_l1=1.0, head_prior=prior)
    optimizer = torch.optim.SGD(layer.decoder.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        layer.measure(torch.zeros(4, 2), concepts=torch.zeros(4, 2)).penalty.backward()
        optimizer.step()
    torch.testing.assert_close(layer.decoder.weight.detach(), torch.tensor(prior), rtol=0, atol=0.02)


@pytest.mark.parametrize("matrix", [torch.tensor, np.array, list], ids=["tensor", "array", "list"])
def test_the_prior_can_be_a_tensor_or_an_array(matrix):
    prior = [[1.0, -1.0], [-1.0, 1.0]]
    layer = ibreg.ConceptBottleneck(2, 2, out_features=2, head_l1=1.0, head_prior=matrix(prior))
    assert layer.config()["head_prior"] == prior


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code": "soft"}, "code must be one of 'probability', 'hard', 'logit', got 'soft'"),
        (
            {"residual": -1},
            "residual must be an integer of at least 0 [(]number of features that bypass the concepts[)], got -1",
        ),
        ({"residual": 1.5}, "residual must be an integer of at least 0"),
        ({"head_l1": -1.0}, "head_l1 must be a finite number of at least 0"),
        ({"head_l1": 1.0}, "head must be 'linear' with head_l1 or head_l2 above 0, got 'identity'"),
        ({"head_l1": 1.0, "head": "mlp"}, "got 'mlp'"),
        ({"head_prior": [[0] * 5]}, "must come with head_l1 or head_l2 above 0, got 0 for both: pass head_l1=1e-3"),
        ({"head_prior": [[0] * 5], "head_l1": 1.0, "out_features": 2}, "2 outputs and a column .* 5 .*, got 1 x 5"),
        ({"head_prior": [[0] * 4, [0] * 4], "head_l1": 1.0, "out_features": 2}, "got 2 x 4"),
        ({"head_prior": [[0] * 4, [0] * 5], "head_l1": 1.0, "out_features": 2}, "head_prior must be None or a matrix"),
        ({"head_prior": torch.zeros(5), "head_l1": 1.0, "out_features": 2}, "head_prior must be None or a matrix"),
        ({"head_prior": [], "head_l1": 1.0, "out_features": 2}, "head_prior must be None or a matrix"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
