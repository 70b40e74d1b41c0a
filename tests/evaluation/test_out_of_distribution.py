"""OOD scores and detection metrics against their definitions, torch.distributions and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve
from torch import nn
from torch.distributions import Normal, kl_divergence

import ibreg
from ibreg.evaluation.out_of_distribution import detection_metrics, ood_scores
from ibreg.layers.encoder import noise_scale
from tests.contract.table import FEATURES, build_first, needed


def classifier(**options):
    layer = ibreg.VariationalBottleneck(6, 3, **options)
    nn.init.normal_(layer.encoder.bias)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), layer, nn.Linear(3, 4))


def code_of(model, x):
    mean, raw = model[2].encoder(model[1](model[0](x))).chunk(2, dim=-1)
    return mean.detach(), noise_scale(raw).detach()


# --- scores


def test_softmax_and_energy_are_those_of_the_logits():
    model, x = classifier(), torch.randn(7, 8)
    logits = model.eval()(x).detach()
    scores = ood_scores(model, x, batch_size=3)
    torch.testing.assert_close(scores["maximum_softmax"], 1 - logits.softmax(1).max(1).values)
    torch.testing.assert_close(scores["energy"], -logits.exp().sum(1).log())


def test_the_rate_is_the_divergence_of_each_code_from_the_prior():
    model, x = classifier(), torch.randn(7, 8)
    mean, scale = code_of(model, x)
    expected = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(ood_scores(model, x)["rate"], expected)
    logged = ibreg.Regularized(model).eval()(x).logs["2/rate"]
    torch.testing.assert_close(ood_scores(ibreg.Regularized(model), x)["rate"].mean(), logged)


def test_the_rate_of_a_learned_prior_is_the_divergence_from_it():
    model, x = classifier(prior="learned"), torch.randn(7, 8)
    layer = model[2]
    nn.init.normal_(layer.prior_mean)
    nn.init.normal_(layer.prior_log_variance)
    mean, scale = code_of(model, x)
    prior = Normal(layer.prior_mean.detach(), (layer.prior_log_variance.detach() / 2).exp())
    expected = kl_divergence(Normal(mean, scale), prior).sum(1)
    torch.testing.assert_close(ood_scores(model, x)["rate"], expected)


def test_a_conditional_prior_is_compared_by_its_nearest_class():
    model, x = classifier(prior="conditional", classes=4), torch.randn(7, 8)
    layer = model[2]
    nn.init.normal_(layer.prior_mean)
    nn.init.normal_(layer.prior_log_variance)
    mean, scale = code_of(model, x)
    priors = [Normal(layer.prior_mean[c].detach(), (layer.prior_log_variance[c].detach() / 2).exp()) for c in range(4)]
    expected = torch.stack([kl_divergence(Normal(mean, scale), prior).sum(1) for prior in priors]).amin(0)
    torch.testing.assert_close(ood_scores(model, x)["rate"], expected)


@pytest.mark.parametrize("prior", [{}, {"prior": "learned"}, {"prior": "conditional", "classes": 4}])
def test_rates_are_summed_over_positions_and_bottlenecks(prior):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = ibreg.VariationalBottleneck(5, 5, **prior)
            self.second = ibreg.VariationalBottleneck(5, 4)

        def forward(self, x):
            return self.second(self.first(x).mean(1))

    model, x = Tokens(), torch.randn(6, 3, 5)
    rates = ood_scores(model, x)["rate"]
    assert rates.shape == (6,)
    logs = ibreg.Regularized(model).eval()(x, target=torch.zeros(6, dtype=torch.long)).logs
    torch.testing.assert_close(rates.mean(), logs["first/rate"] + logs["second/rate"])


# The rate compares the samples of a batch, so that one sample has none.
RATES_OF_A_BATCH = {"gaussian_channel", "nonlinear"}


@pytest.mark.parametrize("name", [name for name in ibreg.names() if build_first(name).rate_bounds])
@pytest.mark.parametrize("shape", [(7, FEATURES), (7, 5, FEATURES)], ids=len)
def test_rates_of_the_samples_average_to_the_logged_rate(name, shape):
    layer, x = build_first(name).eval(), torch.randn(shape)
    rates = layer.sample_rate(layer.transform(x)[1])
    if name in RATES_OF_A_BATCH:
        assert rates is None
    else:
        assert rates.shape == (7,)
        torch.testing.assert_close(rates.mean(), layer.measure(x, **needed(layer, batch=7)).logs["rate"])


def test_softmax_and_energy_are_averaged_over_samples_of_the_code():
    model, x = classifier(), torch.randn(7, 8)
    before = torch.get_rng_state()
    scores = ood_scores(model, x, draws=5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    mean_softmax = ibreg.predict(model, x, draws=5, seed=3)
    torch.testing.assert_close(scores["maximum_softmax"], 1 - mean_softmax.max(1).values)
    assert not torch.equal(scores["energy"], ood_scores(model, x)["energy"])
    assert torch.equal(scores["rate"], ood_scores(model, x)["rate"])


def test_a_model_without_a_rate_has_no_such_score_and_modes_are_restored():
    model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.9)).train()
    x = torch.randn(5, 8)
    scores = ood_scores(model, x)
    assert list(scores) == ["maximum_softmax", "energy"]
    assert model[1].training
    assert torch.equal(ood_scores(model, x)["energy"], scores["energy"])
    assert list(ood_scores(nn.Sequential(nn.Linear(8, 4), ibreg.HSICBottleneck(4)), x)) == list(scores)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Linear(8, 4), torch.zeros(0, 8), "x must have at least one input"),
        (nn.Linear(8, 4), torch.zeros(3, 2, 8), r"must return logits .*, got \(3, 2, 4\)"),
        (Pair(), torch.zeros(3, 8), "must return logits .*, got tuple"),
    ],
)
def test_models_and_inputs_that_cannot_be_scored_are_refused(model, x, message):
    with pytest.raises(ValueError, match=message):
        ood_scores(model, x)


# --- metrics


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), ties=st.booleans(), inside=st.integers(1, 80), outside=st.integers(1, 80))
def test_metrics_agree_with_pairs_and_the_roc_curve(seed, ties, inside, outside):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=inside), rng.normal(1, size=outside)
    if ties:
        first, second = first.round(), second.round()
    metrics = detection_metrics(first, second)
    difference = second[:, None] - first
    assert metrics["auroc"] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    # In-distribution inputs are the positive class: 95 % or more of them are accepted.
    false_rate, true_rate, _ = roc_curve(
        np.repeat([1, 0], [inside, outside]), -np.concatenate([first, second]), drop_intermediate=False
    )
    assert metrics["fpr95"] == pytest.approx(false_rate[true_rate >= 0.95 - 1e-12].min())


def test_large_energies_stay_apart():
    """A float32 sigmoid would make them equal."""
    metrics = detection_metrics(torch.tensor([100.0, 101.0]), torch.tensor([102.0, 103.0]))
    assert metrics == {"auroc": 1.0, "fpr95": 0.0}
    assert detection_metrics(torch.tensor([102.0, 103.0]), torch.tensor([100.0, 101.0])) == {"auroc": 0.0, "fpr95": 1.0}


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (torch.zeros(0), "scores inside must have shape"),
        (torch.zeros(3, 1), "scores inside must have shape"),
        (torch.tensor([0.0, torch.nan]), "scores inside must be finite, got 1 that are not"),
    ],
)
def test_wrong_scores_are_refused(inside, message):
    with pytest.raises(ValueError, match=message):
        detection_metrics(inside, torch.ones(3))
