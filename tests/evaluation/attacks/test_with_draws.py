"""Attacks on the expectation over the noise of stochastic bottlenecks, against its closed form and draw by draw."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg.evaluation.attacks.gradient import fgsm, pgd
from ibreg.evaluation.attacks.objective import Objective, squared_error


def stochastic(features=5, code=3):
    """A bottleneck with much noise and a linear head."""
    layer = ibreg.VariationalBottleneck(features, code, beta=0)
    nn.init.normal_(layer.encoder.bias)
    return nn.Sequential(layer, nn.Linear(code, 1)).double()


@pytest.mark.filterwarnings("ignore:expectation=1")
@pytest.mark.parametrize("draws", [1, 4])
def test_the_gradient_over_draws_is_the_mean_of_the_gradients_of_the_draws(draws):
    model, x, y = stochastic(), torch.randn(7, 5).double(), torch.randn(7, 1).double()
    (values, _), gradient = Objective(model.eval(), y, expectation=draws).gradient(x, 11)
    layer, head = model
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(draws, 7, 3, generator=generator, dtype=torch.float64)
    expected_values, expected = torch.zeros(7).double(), torch.zeros_like(x)
    for one in noise:
        point = x.clone().requires_grad_()
        mean, raw = (point @ layer.encoder.weight.T + layer.encoder.bias).chunk(2, dim=1)
        losses = (head(mean + torch.log(1 + raw.exp()) * one) - y).square().squeeze(1)
        losses.sum().backward()
        expected += point.grad / draws
        expected_values += losses.detach() / draws
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(values, expected_values)


def test_many_draws_come_near_the_expectation_in_closed_form():
    r"""E (w.z + b - y)^2 = (w.mu + b - y)^2 + sum w^2 sigma^2."""
    model, x, y = stochastic(), torch.randn(4, 5).double(), torch.randn(4, 1).double()
    layer, head = model
    point = x.clone().requires_grad_()
    mean, raw = layer.encoder(point).chunk(2, dim=1)
    loss = (head(mean) - y).square().squeeze(1) + (head.weight.square() * F.softplus(raw).square()).sum(1)
    loss.sum().backward()
    objective = Objective(model.eval(), y, expectation=2000)
    gradients = torch.stack([objective.gradient(x, seed)[1] for seed in range(20)])
    error = gradients.std(0) / math.sqrt(20)
    assert ((gradients.mean(0) - point.grad).abs() < 5 * error).all()


def test_the_expectation_is_harder_to_bear_than_the_attack_on_the_mean():
    """Where noise decides: the mean code has no gradient, the expected loss has one."""
    layer = ibreg.VariationalBottleneck(2, 2, beta=0)
    model = nn.Sequential(layer, nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        layer.encoder.weight.copy_(torch.tensor([[0.0, 0], [0, 0], [1, 0], [0, 1]]))  # the input sets sigma alone
        layer.encoder.bias.zero_()
    x, y = torch.zeros(3, 2).double(), torch.zeros(3, 1).double()
    assert torch.equal(fgsm(model, x, y, eps=0.5), x)
    torch.testing.assert_close(fgsm(model, x, y, eps=0.5, expectation=200), x + 0.5)
    torch.testing.assert_close(pgd(model, x, y, eps=0.5, steps=5, expectation=200), x + 0.5)


def test_without_draws_the_mean_code_is_attacked():
    model, x, y = stochastic(), torch.randn(7, 5).double(), torch.randn(7, 1).double()
    layer, head = model
    mean_model = nn.Sequential(nn.Linear(5, 3), head).double()
    mean_model[0].weight.data, mean_model[0].bias.data = layer.encoder.weight.data[:3], layer.encoder.bias.data[:3]
    options = {"eps": 0.2, "steps": 4, "seed": 5}
    torch.testing.assert_close(pgd(model, x, y, **options), pgd(mean_model, x, y, **options))
    torch.testing.assert_close(pgd(ibreg.Regularized(model), x, y, **options), pgd(model, x, y, **options))


def test_with_draws_nothing_but_bottlenecks_is_random():
    plain = stochastic()
    dropping = nn.Sequential(nn.Dropout(0.9), plain, nn.BatchNorm1d(1, affine=False)).double()
    x, y = torch.randn(7, 5).double(), torch.randn(7, 1).double()
    before = {name: tensor.clone() for name, tensor in dropping.state_dict().items()}
    options = {"eps": 0.2, "steps": 3, "expectation": 4, "norm": "2", "step_size": 0.1}
    torch.testing.assert_close(pgd(dropping, x, y, **options), pgd(plain, x, y, **options), rtol=1e-3, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dropping.state_dict().items())


def test_a_bottleneck_in_a_residual_branch_is_attacked_draw_by_draw():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = ibreg.VariationalBottleneck(5, beta=0)

        def forward(self, x):
            return (x + self.branch(x)).sum(1, keepdim=True)

    model, x, y = Residual(), torch.randn(7, 5), torch.randn(7, 1)
    attacked = pgd(model, x, y, eps=0.3, steps=3, expectation=2)
    assert squared_error(model.eval()(attacked), y).mean() > squared_error(model(x), y).mean()


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_a_single_draw_is_warned_of(attack):
    model, x, y = stochastic(), torch.randn(7, 5).double(), torch.randn(7, 1).double()
    with pytest.warns(UserWarning, match="expectation=1 uses the gradient of a single Monte Carlo sample") as caught:
        attack(model, x, y, eps=0.1, expectation=1)
    assert caught[0].filename == __file__


def test_a_stochastic_classifier_decides_by_the_mean_softmax_over_draws():
    layer = ibreg.VariationalBottleneck(4, 3, beta=0)
    nn.init.constant_(layer.encoder.bias, 2.0)  # much noise
    model, x, y = nn.Sequential(layer, nn.Linear(3, 3)), torch.randn(300, 4), torch.randint(3, (300,))
    _, fooled = Objective(model.eval(), y, expectation=8).judge(x, 5)
    expected = ibreg.predict(model, x, draws=8, seed=5).argmax(1) != y
    assert torch.equal(fooled, expected)
    assert not torch.equal(fooled, model(x).argmax(1) != y)


def test_early_stop_works_with_draws():
    layer = ibreg.VariationalBottleneck(4, 3, beta=0)
    nn.init.normal_(layer.encoder.weight)
    model, x = nn.Sequential(layer, nn.Linear(3, 3)), torch.randn(50, 4)
    y = ibreg.predict(model, x, draws=50, seed=1).argmax(1)
    attacked = pgd(model, x, y, eps=1.0, steps=10, expectation=10, early_stop=True)
    right = (ibreg.predict(model, attacked, draws=50, seed=1).argmax(1) == y).double().mean()
    noisy = (ibreg.predict(model, x, draws=50, seed=2).argmax(1) == y).double().mean()
    assert right < noisy - 0.3
