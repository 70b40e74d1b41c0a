"""Priors against torch.distributions, and what a layer asks of them."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from torch.nn import functional as F

from ibreg import VariationalBottleneck
from ibreg.layers.priors import PRIORS, ConditionalPrior, LearnedPrior, StandardPrior
from ibreg.precision import tree_at_least_float32

BATCH, FEATURES, CLASSES = 5, 3, 4
every_prior = pytest.mark.parametrize("name", PRIORS)
ranks = pytest.mark.parametrize("positions", [(BATCH,), (BATCH, 7), (BATCH, 2, 3)], ids=len)


def built(name, dtype=torch.float64):
    """A prior with random parameters."""
    shapes = PRIORS[name].shapes(FEATURES, CLASSES)
    return PRIORS[name](**{field: torch.randn(shape, dtype=dtype) for field, shape in shapes.items()})


def gaussians(prior):
    """The prior as Normals, of one or of each class."""
    if isinstance(prior, StandardPrior):
        return Normal(torch.zeros(FEATURES).double(), 1.0)
    return Normal(prior.mean, (prior.log_variance / 2).exp())


def codes(positions):
    return torch.randn(*positions, FEATURES).double(), 0.1 + torch.rand(*positions, FEATURES).double()


def targets(positions):
    return torch.arange(BATCH) % CLASSES


@every_prior
@ranks
def test_divergence_and_its_monte_carlo_estimate(name, positions):
    prior, (mean, scale) = built(name), codes(positions)
    reference = gaussians(prior)
    if name == "conditional":
        spread = (BATCH, *[1] * (len(positions) - 1), FEATURES)
        location, deviation = (part[targets(positions)].reshape(spread) for part in (reference.loc, reference.scale))
        reference = Normal(location, deviation)
    code = Normal(mean, scale)
    density, _ = prior.density(targets(positions), positions)
    torch.testing.assert_close(density.divergence(mean, scale), kl_divergence(code, reference).sum(-1))
    z = code.sample((6,))
    expected = (code.log_prob(z) - reference.log_prob(z)).sum(-1).mean(0)
    torch.testing.assert_close(density.log_ratio(code.log_prob(z).sum(-1), z), expected)


@ranks
def test_under_probabilities_the_divergence_is_the_expected_one(positions):
    prior, (mean, scale) = built("conditional"), codes(positions)
    weights = torch.softmax(torch.randn(BATCH, CLASSES).double(), -1)
    spread = weights.reshape(BATCH, *[1] * (len(positions) - 1), CLASSES)
    code, classes = Normal(mean.unsqueeze(-2), scale.unsqueeze(-2)), gaussians(prior)
    density, valid = prior.density(weights, positions)
    assert valid is None
    expected = (spread * kl_divergence(code, classes).sum(-1)).sum(-1)
    torch.testing.assert_close(density.divergence(mean, scale), expected)
    z = Normal(mean, scale).sample((6,))
    log_code = Normal(mean, scale).log_prob(z).sum(-1)
    log_prior = (spread * classes.log_prob(z.unsqueeze(-2)).sum(-1)).sum(-1)
    torch.testing.assert_close(density.log_ratio(log_code, z), (log_code - log_prior).mean(0))


@ranks
def test_one_hot_probabilities_are_class_indices(positions):
    prior, code = built("conditional"), codes(positions)
    hard, valid = prior.density(targets(positions), positions)
    soft, _ = prior.density(F.one_hot(targets(positions), CLASSES).double(), positions)
    assert valid.all()
    torch.testing.assert_close(soft.divergence(*code), hard.divergence(*code))


def test_ignored_targets_are_not_valid():
    _, valid = built("conditional").density(torch.tensor([0, -100, 3, -100, 1]), (BATCH,))
    assert valid.tolist() == [True, False, True, False, True]


@every_prior
@ranks
def test_sample_rate_needs_no_label(name, positions):
    prior, (mean, scale) = built(name), codes(positions)
    classes = kl_divergence(Normal(mean.unsqueeze(-2), scale.unsqueeze(-2)), gaussians(prior)).sum(-1)
    expected = classes.reshape(BATCH, -1, classes.shape[-1]).sum(1).amin(-1)  # of one class: its divergence
    torch.testing.assert_close(prior.sample_rate(mean, scale), expected)


@every_prior
def test_layers_start_at_the_standard_prior(name):
    layer = VariationalBottleneck(FEATURES, prior=name, classes=CLASSES if PRIORS[name].conditional else None)
    names = {key for key in layer.state_dict() if key.startswith("prior_")}
    assert names == {f"prior_{field}" for field in PRIORS[name]._fields}
    assert not any(value.any() for key, value in layer.state_dict().items() if key in names)


@every_prior
def test_half_precision_becomes_float32_in_the_state(name):
    prior = tree_at_least_float32(built(name, torch.bfloat16))
    assert type(prior) is PRIORS[name]
    assert all(parameter.dtype == torch.float32 for parameter in prior)


@every_prior
@pytest.mark.parametrize("shape", [(BATCH, 6), (BATCH, 4, 6)], ids=len)
def test_layers_ask_their_prior_for_the_rate_of_a_sample(name, shape):
    layer = VariationalBottleneck(6, FEATURES, prior=name, classes=CLASSES if PRIORS[name].conditional else None)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    state = layer.eval().transform(torch.randn(shape))[1]
    assert torch.equal(layer.sample_rate(state), state.prior.sample_rate(state.mean, state.scale))
    logged = layer.measure(torch.randn(shape).fill_(0.5), target=torch.zeros(BATCH, dtype=torch.long)).logs["rate"]
    rates = layer.sample_rate(layer.transform(torch.full(shape, 0.5))[1])
    if name == "conditional":
        assert (rates <= logged).all()
    else:
        torch.testing.assert_close(rates.mean(), logged)


def test_a_new_prior_is_a_class_and_an_entry(monkeypatch):
    class MixturePrior(LearnedPrior):
        """A mixture of two Gaussians with fixed weights, by its samples alone."""

        @staticmethod
        def shapes(features, classes):
            return {"mean": (2, features), "log_variance": (2, features)}

        def density(self, target, positions):
            return self, None

        def divergence(self, mean, scale):
            return mean.new_zeros(mean.shape[:-1])

        def log_ratio(self, log_code, z):
            parts = Independent(Normal(self.mean, (self.log_variance / 2).exp()), 1)
            return (log_code - MixtureSameFamily(Categorical(torch.ones(2)), parts).log_prob(z)).mean(0)

    monkeypatch.setitem(PRIORS, "mixture", MixturePrior)
    monkeypatch.setattr(VariationalBottleneck.constraints["prior"], "choices", tuple(PRIORS))
    layer = VariationalBottleneck(6, FEATURES, prior="mixture", rate="monte_carlo")
    assert layer.prior_mean.shape == (2, FEATURES)
    out = layer.measure(torch.randn(BATCH, 6))
    out.penalty.backward()
    assert layer.prior_mean.grad.any()
    assert layer.rate_bounds == "I(X;Z)"


def test_shapes_of_conditional_priors_have_the_classes():
    assert ConditionalPrior.shapes(FEATURES, CLASSES) == {"mean": (CLASSES, FEATURES), "log_variance": (4, 3)}
