"""Attacks against closed forms of linear models, and against what has to hold."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg.evaluation.attacks.ball import Ball
from ibreg.evaluation.attacks.gradient import fgsm, pgd, uniform_noise
from ibreg.evaluation.attacks.objective import Objective, cross_entropy, margin, squared_error

NORMS = ("inf", "2")
DUAL = {"inf": 1, "2": 2}


def linear_regressor(features=6):
    return nn.Linear(features, 1).double(), torch.randn(40, features).double(), torch.randn(40, 1).double()


def classifier(features=8, classes=3):
    return nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, classes))


def stochastic(features=5, code=3):
    """A bottleneck with much noise and a linear head."""
    layer = ibreg.VariationalBottleneck(features, code, beta=0)
    nn.init.normal_(layer.encoder.bias)
    return nn.Sequential(layer, nn.Linear(code, 1)).double()


def length(change, norm):
    return torch.linalg.vector_norm(change.flatten(1), ord=float(norm), dim=1)


def labeled(batch=200, features=8):
    x = torch.randn(batch, features)
    return x, torch.randint(3, (batch,))


# --- closed forms


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "attack",
    [
        fgsm,
        lambda *a, **k: pgd(*a, steps=10, random_start=False, **k),
        lambda *a, **k: pgd(*a, steps=400, restarts=5, step_size=0.1, **k),
    ],
    ids=["fgsm", "pgd", "pgd from random points"],
)
def test_linear_regressors_have_their_worst_case_in_closed_form(attack, norm):
    model, x, y = linear_regressor()
    attacked = attack(model, x, y, eps=0.3, norm=norm)
    w = model.weight.detach().squeeze()
    reach = 0.3 * torch.linalg.vector_norm(w, ord=DUAL[norm])
    residual = (model(x) - y).detach().squeeze()
    worst = (model(attacked) - y).detach().squeeze()
    torch.testing.assert_close(worst, residual + residual.sign() * reach, rtol=0, atol=1e-5)
    direction = w.sign() if norm == "inf" else w / w.norm()
    torch.testing.assert_close(attacked, x + 0.3 * residual.sign().unsqueeze(1) * direction, rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [fgsm, lambda *a, **k: pgd(*a, steps=7, random_start=False, **k)])
def test_linear_classifiers_of_two_classes_lose_the_margin_that_the_ball_reaches(attack, norm):
    model, x, y = nn.Linear(6, 2).double(), torch.randn(40, 6).double(), torch.randint(2, (40,))
    logits = model(attack(model, x, y, eps=0.2, norm=norm)).detach()
    w = (model.weight[1] - model.weight[0]).detach()
    sign = (1 - 2 * y).double()  # towards the other class
    expected = (model(x) @ torch.tensor([-1.0, 1.0]).double()).detach() + sign * 0.2 * torch.linalg.vector_norm(
        w, ord=DUAL[norm]
    )
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "attack", [fgsm, lambda *a, **k: pgd(*a, steps=400, restarts=2, step_size=0.02, **k)], ids=["fgsm", "pgd"]
)
def test_clamped_linear_regressors_are_pushed_as_far_as_the_bounds_leave(attack, norm):
    model, _, _ = linear_regressor()
    x = torch.rand(40, 6).double().where(torch.rand(40, 6) < 0.5, torch.randint(2, (40, 6)).double())  # many on a bound
    y = 10 * torch.randn(40, 1).double().sign()  # so far off that no corner is beyond the target
    attacked = attack(model, x, y, eps=0.6, norm=norm, clamp=(0.0, 1.0))
    slope = (model(x) - y).detach().sign() * model.weight.detach()
    if norm == "inf":
        expected = (x + 0.6 * slope.sign()).clamp(0, 1)
    else:  # of the points on the path of the multiplier the last one within the ball, by bisection
        low, high = torch.zeros(40, 1).double(), torch.full((40, 1), 1e6).double()
        for _ in range(200):
            middle = (low + high) / 2
            inside = ((x + middle * slope).clamp(0, 1) - x).norm(dim=1, keepdim=True) <= 0.6
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        expected = (x + low * slope).clamp(0, 1)
        assert ((expected - x).norm(dim=1) < 0.6 - 1e-9).sum() < 10  # nearly all have room for the whole length
    torch.testing.assert_close(attacked, expected)


# --- the ball


@settings(deadline=None, max_examples=40)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(0, 3),
    clamp=st.sampled_from([None, (0.0, 1.0), (-0.5, 2.0)]),
    random_start=st.booleans(),
    step_size=st.one_of(st.none(), st.floats(1e-3, 10)),
    draws=st.sampled_from([0, 2]),
    seed=st.integers(0, 1000),
)
def test_attacked_inputs_stay_in_ball_and_box(norm, eps, clamp, random_start, step_size, draws, seed):
    torch.manual_seed(seed)
    x, y = torch.rand(6, 5), torch.randn(6)
    model = stochastic().float()
    given_to_all = {"eps": eps, "norm": norm, "clamp": clamp, "seed": seed}
    for attacked in (
        pgd(model, x, y, steps=3, random_start=random_start, step_size=step_size, expectation=draws, **given_to_all),
        fgsm(model, x, y, expectation=draws, **given_to_all),
        uniform_noise(x, **given_to_all),
    ):
        assert attacked.shape == x.shape
        assert attacked.dtype == x.dtype
        assert attacked.isfinite().all()
        assert (length(attacked - x, norm) <= eps * (1 + 1e-6) + 1e-6).all()
        if clamp is not None:
            assert clamp[0] <= attacked.min() <= attacked.max() <= clamp[1]


@pytest.mark.parametrize("norm", NORMS)
def test_points_inside_stay_where_they_are_and_others_go_to_the_nearest(norm):
    x = torch.zeros(1, 2, 1).double()
    ball = Ball(x, 1.0, norm, None)
    inside = torch.tensor([[[0.3], [-0.6]]]).double()
    assert torch.equal(ball.project(inside), inside)
    outside = torch.tensor([[[3.0], [-4.0]]]).double()
    nearest = torch.tensor([[[1.0], [-1.0]]]) if norm == "inf" else torch.tensor([[[0.6], [-0.8]]])
    torch.testing.assert_close(ball.project(outside), nearest.double())


@settings(deadline=None, max_examples=40)
@given(norm=st.sampled_from(NORMS), eps=st.floats(0.01, 2), seed=st.integers(0, 1000))
def test_no_other_point_of_ball_and_bounds_is_nearer(norm, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(5, 4, generator=generator).double()
    ball = Ball(x, eps, norm, (0.0, 1.0))
    outside = x + 3 * torch.randn(x.shape, generator=generator)
    nearest = ball.project(outside)
    assert (length(nearest - x, norm) <= eps * (1 + 1e-12)).all()
    assert ((nearest >= 0) & (nearest <= 1)).all()
    # Of a convex set, the nearest point is the one from which no other one lies towards the outside.
    for _ in range(50):
        other = ball.random_point(generator)
        assert (((outside - nearest) * (other - nearest)).sum(1) <= 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clamp", [None, (0.0, 255.0)])
def test_half_precision_reaches_lengths_whose_squares_overflow(dtype, clamp):
    x = (255 * torch.rand(4, 2000)).round().to(dtype)
    x[:, ::2] = 255 * (x[:, ::2] > 127)
    ball = Ball(x, 300.0, "2", clamp)
    reached = ball.step(x, torch.randn(4, 2000).to(dtype), 300.0)
    assert reached.dtype == dtype
    assert ((length(reached.double() - x.double(), "2") - 300).abs() < 0.05 * 300).all()
    assert torch.equal(ball.step(x.float(), torch.zeros(4, 2000), 1e200).to(dtype), x)


@pytest.mark.parametrize("clamp", [None, (0.0, 1.0)])
def test_without_a_gradient_there_is_no_step(clamp):
    x = torch.rand(3, 4)
    assert torch.equal(Ball(x, 100.0, "2", clamp).step(x, torch.zeros(3, 4), 100.0), x)


def test_noise_is_uniform_in_the_ball():
    x = torch.zeros(40_000, 3)
    inf, two = (uniform_noise(x, eps=2.0, norm=norm, seed=1) for norm in NORMS)
    for points, norm in ((inf, "inf"), (two, "2")):
        share = (length(points, norm) <= 1).double().mean()  # the half ball has an eighth of the volume
        assert abs(share - 0.125) < 5 * math.sqrt(0.125 * 0.875 / 40_000)
        assert points.mean(0).abs().max() < 5 * 2 / math.sqrt(3 * 40_000)


def test_the_direction_survives_a_gradient_whose_square_underflows():
    ball = Ball(torch.zeros(3, 4), 1.0, "2", None)
    gradient = torch.tensor([[3e-30, 4e-30, 0, 0], [0, 0, 0, 0], [0, 0, -1e30, 0]])
    expected = torch.tensor([[0.6, 0.8, 0, 0], [0, 0, 0, 0], [0, 0, -1.0, 0]])
    torch.testing.assert_close(ball.steepest(gradient), expected)


# --- what is kept


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("draws", [0, 3])
def test_the_loss_never_falls_with_more_steps_or_restarts(norm, draws):
    model, x, y = stochastic(), torch.randn(50, 5).double(), torch.randn(50, 1).double()
    fixed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))  # the first seed it draws
    objective = Objective(model.eval(), y, expectation=draws)

    def losses(**options):
        given_to_all = {"eps": 0.5, "norm": norm, "step_size": 0.2, "expectation": draws, "seed": 3}
        return objective.judge(pgd(model, x, y, **given_to_all, **options), fixed).value

    chain = [objective.judge(x, fixed).value, *(losses(steps=steps) for steps in (1, 2, 3, 8))]
    for fewer, more in pairwise(chain):
        assert (more >= fewer).all()
    assert chain[-1].mean() > chain[0].mean()
    once, twice = losses(steps=3), losses(steps=3, restarts=2)
    assert (twice >= once).all()


@pytest.mark.parametrize("norm", NORMS)
def test_accuracy_never_rises_with_steps_of_several_restarts(norm):
    for seed in range(12):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        for parameter in net.parameters():
            parameter.data *= 3
        x = torch.rand(200, 2)
        y = net(x).argmax(1)
        attacked = (pgd(net, x, y, eps=0.1, norm=norm, steps=steps, step_size=0.01, restarts=3) for steps in (2, 3, 5))
        right = [int((net(each).argmax(1) == y).sum()) for each in attacked]
        assert right == sorted(right, reverse=True)


@settings(deadline=None, max_examples=30)
@given(norm=st.sampled_from(NORMS), eps=st.lists(st.floats(0, 2), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_the_loss_of_a_linear_model_never_falls_with_eps(norm, eps, seed):
    torch.manual_seed(seed)
    model, x, y = linear_regressor()
    losses = [
        squared_error(model(pgd(model, x, y, eps=radius, steps=5, norm=norm, random_start=False)), y).detach()
        for radius in sorted(eps)
    ]
    for smaller, larger in pairwise(losses):
        assert (larger >= smaller - 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
def test_noise_alone_is_weaker_than_fgsm_and_that_weaker_than_pgd(norm):
    model, (x, y) = classifier(), labeled()
    eps = 0.3 if norm == "inf" else 0.8
    noise, one, many = (
        cross_entropy(model(attacked), y).mean().item()
        for attacked in (
            uniform_noise(x, eps=eps, norm=norm),
            fgsm(model, x, y, eps=eps, norm=norm),
            pgd(model, x, y, eps=eps, steps=40, step_size=eps / 5, norm=norm, restarts=2),
        )
    )
    assert noise < one < many


def test_no_point_of_the_ball_is_worse_than_what_pgd_finds_in_two_dimensions():
    model, (x, y) = classifier(features=2), labeled(batch=20, features=2)
    found = cross_entropy(model(pgd(model, x, y, eps=0.5, steps=60, restarts=4)), y).detach()
    grid = torch.cartesian_prod(*2 * [torch.linspace(-0.5, 0.5, 41)])
    everywhere = torch.stack([cross_entropy(model(x + change), y) for change in grid]).detach()
    torch.testing.assert_close(found, torch.maximum(found, everywhere.amax(0)), rtol=1e-3, atol=1e-4)


def test_radius_zero_changes_nothing():
    model, (x, y) = classifier(), labeled()
    for norm in NORMS:
        assert torch.equal(pgd(model, x, y, eps=0, steps=2, norm=norm), x)
        assert torch.equal(fgsm(model, x, y, eps=0, norm=norm), x)


@pytest.mark.parametrize("norm", NORMS)
def test_every_sample_is_attacked_by_itself(norm):
    model, (x, y) = classifier().double(), labeled(batch=6)
    x = x.double()
    options = {"eps": 0.4, "steps": 5, "norm": norm, "random_start": False}
    together = pgd(model, x, y, **options)
    alone = torch.cat([pgd(model, x[i : i + 1], y[i : i + 1], **options) for i in range(6)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("loss", [margin, lambda output, target: F.cross_entropy(3 * output, target, reduction="none")])
def test_the_loss_may_be_given(loss):
    model, (x, y) = classifier(), labeled()
    attacked = pgd(model, x, y, eps=0.5, steps=10, loss=loss)
    assert loss(model(attacked), y).mean() > loss(model(x), y).mean() + 0.1


# --- nothing is left behind


def test_modes_parameters_gradients_and_inputs_come_back_as_they_were():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout(), stochastic()).double()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    x = torch.randn(6, 5).double().requires_grad_()
    y = torch.randn(6, 1).double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for attacked in (
        pgd(model, x, y, eps=0.1, steps=2, expectation=2),
        fgsm(model, x, y, eps=0.1),
        uniform_noise(x, eps=0.1),
    ):
        assert not attacked.requires_grad
    with pytest.raises(ValueError, match="one target per input"):
        pgd(model, x, y[:4], eps=0.1, steps=2)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[0].weight.requires_grad
    assert x.grad is None


def test_attacks_work_where_gradients_are_off():
    model, (x, y) = classifier(), labeled()
    expected = pgd(model, x, y, eps=0.2, steps=3)
    with torch.no_grad():
        assert torch.equal(pgd(model, x, y, eps=0.2, steps=3), expected)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("draws", [0, 2])
def test_attacks_are_a_function_of_their_seed_and_leave_the_global_generator_alone(draws):
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), stochastic()).double()
    x, y = torch.randn(7, 5).double(), torch.randn(7, 1).double()
    before = torch.get_rng_state()
    options = {"eps": 2.0, "steps": 2, "expectation": draws}
    first, again, other = (pgd(model, x, y, seed=seed, **options) for seed in (1, 1, 2))
    uniform_noise(x, eps=0.3)
    fgsm(model, x, y, eps=0.3, expectation=draws)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- wrong use


class Pair(nn.Module):
    def forward(self, x):
        return x, x


X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": -0.1}, "eps must be a finite number of at least 0, got -0.1"),
        ({"eps": math.nan}, "eps must be a finite number"),
        ({"norm": "1"}, "norm must be 'inf' or '2', got '1'"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"restarts": 0}, "restarts must be an integer"),
        ({"restarts": 2, "random_start": False}, "are all the same"),
        ({"step_size": 0.0}, "step_size must be a finite number above 0"),
        ({"momentum": -1.0}, "momentum must be a finite number of at least 0"),
        ({"early_stop": True, "target": X[:, 0]}, "early_stop needs classes"),
        ({"loss": margin, "target": Y + 5}, "targets must be classes below 5, got 5 to 5"),
        ({"expectation": -1}, "expectation must be an integer of at least 0"),
        ({"expectation": 2}, "expectation=2 needs a stochastic bottleneck"),
        ({"clamp": (1.0, 0.0)}, "smallest, largest"),
        ({"clamp": (0.5, 1.0)}, r"x must be within clamp=\(0.5, 1.0\), got values from 0 to 0"),
        ({"x": X.long()}, "floating-point tensor"),
        ({"x": X[0]}, "floating-point tensor"),
        ({"x": X * math.nan}, "x must be finite"),
        ({"target": Y + 5}, "targets must be classes below 5, got 5 to 5"),
        ({"target": Y - 1}, "targets must be classes below 5, got -1"),
        ({"target": Y[:2]}, r"one target per input, got 4 inputs and targets of shape \(2,\)"),
        ({"target": Y.unsqueeze(1)}, "needs logits"),
        ({"target": X}, r"do not fit the targets \(4, 3\)"),
        ({"model": Pair()}, "must return a tensor, got tuple"),
        ({"loss": F.cross_entropy}, "one value per sample"),
        ({"loss": lambda output, target: output - output.mean()}, "one value per sample"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    given_to_pgd = {"model": nn.Linear(3, 5), "x": X, "target": Y, "eps": 0.1, "steps": 2} | changes
    model, x, target = (given_to_pgd.pop(name) for name in ("model", "x", "target"))
    with pytest.raises(ValueError, match=message):
        pgd(model, x, target, **given_to_pgd)


def test_a_target_vector_and_a_column_of_predictions_are_not_spread_over_each_other():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    y = torch.randn(4)
    assert torch.equal(pgd(model, x, y, eps=0.1, steps=2), pgd(model, x, y.unsqueeze(1), eps=0.1, steps=2))
    with pytest.raises(ValueError, match=r"shape \(4,\).*got \(4, 4\)"):
        pgd(model, x, y, eps=0.1, steps=2, loss=lambda output, target: (output - target).square())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_bottleneck_that_lets_no_gradient_through_is_attacked_blindly(frozen):
    """The nearest key cuts the gradient, whether values are trained or not."""
    torch.manual_seed(0)
    layer = ibreg.KeyValueBottleneck(4, 3, codebooks=4, pairs=8, key_features=4).eval().requires_grad_(not frozen)
    x, y = torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(fgsm(layer, x, y, eps=0.1, clamp=(0, 1)), x)
    attacked = pgd(layer, x, y, eps=0.1, steps=3, clamp=(0, 1))
    assert (attacked - x).abs().max() <= 0.1 + 1e-6


class RootOfZero(nn.Module):
    """Says what a linear model says, with a gradient that is not a number."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x) + (x - x).square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_is_no_number_is_told_and_not_taken_for_an_attack(norm):
    model, x = RootOfZero(), torch.rand(5, 6)
    with pytest.warns(UserWarning, match="the gradient of 5 of 5 samples is not finite"):
        attacked = fgsm(model, x, torch.tensor([0, 1, 2, 3, 0]), eps=0.3, norm=norm)
    assert torch.equal(attacked, x)


def test_no_attack_runs_where_gradients_are_forbidden():
    with torch.inference_mode(), pytest.raises(RuntimeError, match="an attack needs gradients"):
        fgsm(nn.Linear(6, 4), torch.rand(2, 6), torch.tensor([0, 1]), eps=0.3)


class Normalizing(nn.Module):
    """What stands before the wrapper would be left out."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x - 0.13) / 0.31).output


def test_a_module_that_runs_more_than_the_wrapper_in_it_is_refused():
    net = nn.Sequential(ibreg.VariationalBottleneck(6, 3), nn.Linear(3, 4))
    model, x, y = Normalizing(ibreg.Regularized(net)), torch.rand(2, 6), torch.tensor([0, 1])
    refused = "Normalizing contains a Regularized and has a forward of its own"
    with pytest.raises(ValueError, match=refused):
        fgsm(model, x, y, eps=0.1)
    for draws in (0, 3):
        with pytest.raises(ValueError, match=refused):
            ibreg.predict(model, x, draws=draws)
    assert list(ibreg.bottlenecks(model)) == ["0"]


def test_one_class_alone_is_refused():
    with pytest.raises(ValueError, match="2 classes or more"):
        fgsm(nn.Linear(6, 1), torch.rand(2, 6), torch.tensor([0, 0]), eps=0.1)


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_without_samples_stays_one(norm):
    x, y = torch.rand(0, 6), torch.zeros(0, dtype=torch.long)
    assert pgd(nn.Linear(6, 4), x, y, eps=0.3, norm=norm, steps=2).shape == (0, 6)
    assert uniform_noise(x, eps=0.3, norm=norm).shape == (0, 6)
