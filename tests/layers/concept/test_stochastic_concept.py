"""Stochastic concepts against numpy: the Gaussian, its conditional after an intervention, joint loss, precision."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, logit
from torch import nn

import ibreg
from ibreg.layers.concept.base import ConceptIntervention
from ibreg.layers.intervention import intervening
from ibreg.layers.scope import Scope, opened

FEATURES, BATCH, CONCEPTS = 5, 6, 4
MIXED = ["red", {"name": "digit", "values": [0, 1]}, {"name": "size", "kind": "continuous"}]

both = pytest.mark.parametrize("covariance", ["amortized", "global"])


def build(concepts=CONCEPTS, **options):
    layer = ibreg.StochasticConceptBottleneck(FEATURES, concepts, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


def gaussian(layer, x):
    """Mean and covariance of the logits of each sample in float64 numpy."""

    def linear(module):
        return x.double().numpy() @ module.weight.detach().double().numpy().T + module.bias.detach().double().numpy()

    if layer.covariance == "amortized":
        entries = linear(layer.factor_encoder)
    else:
        entries = np.broadcast_to(
            layer.factor_entries.detach().double().numpy(), (len(x), layer.factor_entries.numel())
        )
    factor = np.zeros((len(x), CONCEPTS, CONCEPTS))
    factor[:, *np.tril_indices(CONCEPTS)] = entries
    diagonal = np.arange(CONCEPTS)
    scale = np.logaddexp(0, factor[:, diagonal, diagonal]) + 0.01
    factor = 10 * np.tanh(factor / 10)
    factor[:, diagonal, diagonal] = scale
    return linear(layer.encoder), factor @ factor.transpose(0, 2, 1)


def conditional(mean, covariance, mask, values):
    """Closed form for one sample."""
    other = ~mask
    gain = covariance[np.ix_(other, mask)] @ np.linalg.inv(covariance[np.ix_(mask, mask)])
    expected_mean, expected_covariance = values.copy(), np.zeros_like(covariance)
    expected_mean[other] = mean[other] + gain @ (values[mask] - mean[mask])
    left = covariance[np.ix_(other, other)] - gain @ covariance[np.ix_(mask, other)]
    expected_covariance[np.ix_(other, other)] = left
    return expected_mean, expected_covariance


def state_of(layer, x):
    scope = Scope()
    with opened(scope):
        layer(x)
    return scope.records[0].state


# ---- the Gaussian


@both
def test_mean_and_covariance(covariance):
    layer, x = build(covariance=covariance).eval(), torch.randn(BATCH, FEATURES)
    mean, expected = gaussian(layer, x)
    found = layer.gaussian(x)
    np.testing.assert_allclose(found[0].detach(), mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1].detach(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.predict_concepts(x).detach(), expit(mean), rtol=1e-4)


@both
def test_an_intervention_moves_the_others_to_the_conditional_gaussian(covariance):
    layer, x = build(covariance=covariance, code="logit").eval(), torch.randn(BATCH, FEATURES)
    means, covariances = gaussian(layer, x)
    mask = torch.rand(BATCH, CONCEPTS) < 0.4
    mask[0], mask[1], mask[2] = torch.eye(CONCEPTS)[0].bool(), False, True
    values = 2 * torch.randn(BATCH, CONCEPTS)
    with intervening({layer: ConceptIntervention(mask, values, "logit")}):
        code, (mean, covariance_after), state = layer(x), layer.gaussian(x), state_of(layer, x)
    for row in range(BATCH):
        expected = conditional(means[row], covariances[row], mask[row].numpy(), values[row].double().numpy())
        np.testing.assert_allclose(code[row].detach(), expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(mean[row].detach(), expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(covariance_after[row].detach(), expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.values, code.sigmoid())
    np.testing.assert_allclose(state.logits.detach(), means, rtol=1e-5, atol=1e-5)
    assert not torch.equal(code[0, 1:], layer(x)[0, 1:])


def test_samples_follow_the_conditional():
    layer, x = build(code="logit", samples=1).train(), torch.randn(1, FEATURES)
    (mean,), (covariance,) = gaussian(layer, x)
    mask, values = torch.tensor([[False, True, False, True]]), torch.tensor([[0.0, 2.0, 0.0, -1.0]])
    many = 60_000
    plain = layer.measure(x.expand(many, -1), concepts=torch.zeros(many, CONCEPTS)).z.detach()
    with intervening({layer: ConceptIntervention(mask.expand(many, -1), values.expand(many, -1), "logit")}):
        after_intervention = layer.measure(x.expand(many, -1), concepts=torch.zeros(many, CONCEPTS)).z.detach()
    after = conditional(mean, covariance, mask[0].numpy(), values[0].double().numpy())
    for draws, expected in ((plain, (mean, covariance)), (after_intervention, after)):
        np.testing.assert_allclose(draws.mean(0), expected[0], atol=0.05)
        np.testing.assert_allclose(draws.T.cov(), expected[1], rtol=0.05, atol=0.05)


def test_conditioning_uses_the_certainty_or_the_predicted_mean_if_that_is_stronger():
    layer = build(certainty=0.9).eval()
    with torch.no_grad():
        layer.encoder.weight.zero_()
        layer.encoder.bias.copy_(torch.tensor([0.0, 5.0, -5.0, 1.0]))
    x = torch.zeros(2, FEATURES)
    means, covariances = gaussian(layer, x)
    mask = torch.tensor([True, True, True, False]).expand(2, -1)
    truth = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    known = np.array([[logit(0.9), 5.0, logit(0.9), 0.0], [-logit(0.9), -logit(0.9), -5.0, 0.0]])
    with intervening({layer: ConceptIntervention(mask, truth)}):
        mean, _ = layer.gaussian(x)
        state = state_of(layer, x)
        assert torch.equal(layer(x)[:, :3], truth[:, :3])
    for row in range(2):
        expected, _ = conditional(means[row], covariances[row], mask[row].numpy(), known[row])
        np.testing.assert_allclose(mean[row].detach(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.values[row, 3].detach(), expit(expected[3]), rtol=1e-4, atol=1e-5)
    assert torch.equal(state.values[:, :3], truth[:, :3])


def test_a_categorical_truth_keeps_the_sum_of_its_logits():
    layer, x = build(MIXED, certainty=0.9).eval(), torch.randn(BATCH, FEATURES)
    mask = torch.tensor([False, True, True, False]).expand(BATCH, -1)
    mean = layer.concept_logits(x)[:, 1:3]
    with intervening({layer: ConceptIntervention(mask, torch.tensor([0.0, 1, 0, 0]).expand(BATCH, -1))}):
        known = layer.gaussian(x)[0][:, 1:3]
    torch.testing.assert_close(known.mean(1), mean.mean(1))
    torch.testing.assert_close(known.softmax(1), torch.tensor([[0.9, 0.1]]).expand(BATCH, -1))


# ---- codes


@pytest.mark.parametrize("concepts", [CONCEPTS, MIXED])
def test_a_hard_code_is_sampled_with_the_gradient_of_its_probability(concepts):
    layer, x = build(concepts, samples=1).train(), torch.randn(1, FEATURES).expand(20_000, -1)
    labels = torch.zeros(20_000, 4)
    labels[:, 1] = 1
    scope = Scope(concepts=labels)
    with opened(scope):
        hard = layer(x)
    values = scope.records[0].state.values
    decided = hard[:, :3]
    assert ((decided == 0) | (decided == 1)).all()
    torch.testing.assert_close(decided.mean(0), values[:, :3].mean(0), rtol=0, atol=0.015)
    if concepts is MIXED:
        assert (decided[:, 1:].sum(1) == 1).all()
        torch.testing.assert_close(hard[:, 3], values[:, 3])
    weight = torch.randn(4)
    gradients = [
        torch.autograd.grad((code * weight).sum(), layer.encoder.weight, retain_graph=True)[0]
        for code in (hard, values)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("code", ["hard", "probability", "logit"])
def test_codes_in_evaluation(code):
    layer, x = build(code=code).eval(), torch.randn(BATCH, FEATURES)
    mean = layer.concept_logits(x)
    expected = {"hard": (mean > 0).float(), "probability": mean.sigmoid(), "logit": mean}[code]
    torch.testing.assert_close(layer(x), expected)


# ---- the penalty


@both
def test_joint_loss_and_precision_against_numpy(covariance):
    layer = build(covariance=covariance, samples=50_000, precision_weight=0.3, pos_weight=2.0)
    x, labels = torch.randn(BATCH, FEATURES), torch.randint(2, (BATCH, CONCEPTS)).float()
    labels[0, 0] = labels[1] = torch.nan
    labels[2, 1] = 0.3
    out = layer.measure(x, concepts=labels)
    mean, covariances = gaussian(layer, x)
    generator = np.random.default_rng(0)
    losses = []
    for row in (0, 2, 3, 4, 5):
        logits = generator.multivariate_normal(mean[row], covariances[row], 50_000)
        label = labels[row].numpy()
        each = -2.0 * label * np.log(expit(logits)) - (1 - label) * np.log(expit(-logits))
        losses.append(-np.log(np.exp(-np.nansum(each, 1)).mean()))
    np.testing.assert_allclose(out.logs["concept_loss"], np.mean(losses), rtol=0.02)
    off = np.abs(np.linalg.inv(covariances)) * (1 - np.eye(CONCEPTS))
    precision = off.sum((1, 2)).mean() / (CONCEPTS * (CONCEPTS - 1))
    np.testing.assert_allclose(out.logs["precision"], precision, rtol=1e-3)
    torch.testing.assert_close(out.penalty.detach(), out.logs["concept_loss"] + 0.3 * out.logs["precision"])


def test_in_evaluation_the_loss_is_that_of_the_mean():
    layer, x = build(MIXED).eval(), torch.randn(BATCH, FEATURES)
    labels = torch.tensor([1.0, 0, 1, 0.5]).expand(BATCH, -1)
    logits = layer.concept_logits(x).detach().double().numpy()
    expected = -np.log(expit(logits[:, 0])) - log_softmax(logits[:, 1:3], 1)[:, 1] + (logits[:, 3] - 0.5) ** 2
    np.testing.assert_allclose(layer.measure(x, concepts=labels).logs["concept_loss"], expected.mean(), rtol=1e-5)


def test_a_single_concept_has_no_precision():
    layer = build(1)
    assert layer.measure(torch.randn(BATCH, FEATURES), concepts=torch.ones(BATCH, 1)).logs["precision"] == 0


def test_it_learns_that_concepts_go_together():
    # One concept is noise that the features do not show, the second says the same, the third the opposite.
    x = torch.randn(500, FEATURES)
    coin = torch.randint(2, (500, 1)).float()
    concepts = torch.cat([coin, coin, 1 - coin], 1)
    layer = ibreg.StochasticConceptBottleneck(FEATURES, 3, covariance="global", precision_weight=0.01)
    model = ibreg.Regularized(nn.Sequential(layer))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        model(x, concepts=concepts).penalty.backward()
        optimizer.step()
    layer.eval()
    mask = torch.tensor([True, False, False]).expand(500, -1)
    with intervening({layer: ConceptIntervention(mask, concepts)}):
        values = state_of(layer, x).values
    assert ((values > 0.5) == (concepts > 0.5)).float().mean() > 0.99
    assert ((layer.predict_concepts(x)[:, 1:] > 0.5) == (concepts[:, 1:] > 0.5)).float().mean() < 0.65


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code": "soft"}, "code must be one of 'probability', 'hard', 'logit', got 'soft'"),
        ({"covariance": "diagonal"}, "covariance must be one of 'amortized', 'global', got 'diagonal'"),
        (
            {"samples": 0},
            "samples must be an integer of at least 1 [(]number of Monte Carlo samples in the loss[)]",
        ),
        ({"precision_weight": -1.0}, "precision_weight must be a finite number of at least 0, got -1.0"),
        ({"certainty": 0.5}, "certainty must be a finite number above 0.5 and at most 0.999, got 0.5"),
        ({"certainty": 1.0}, "certainty must be a finite number above 0.5 and at most 0.999, got 1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ibreg.StochasticConceptBottleneck(**{"in_features": FEATURES, "concepts": 2, **options})
