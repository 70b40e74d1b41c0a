"""Schedules against their formulas, and the target rate against a network that trains."""

import copy
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import ibreg
from ibreg import RegularizedOutput, VariationalBottleneck
from ibreg.schedules import Cosine, LinearWarmup, PatienceGate, Schedule, TargetRate

torch.set_num_threads(1)


def build(*betas):
    """A network of linear layers, each with a bottleneck after it: names are '0.bottleneck', '1.bottleneck', ..."""
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in betas))
    return ibreg.inject(net, {str(index): VariationalBottleneck(4, beta=beta) for index, beta in enumerate(betas)})


def betas(model):
    return [layer.beta.item() for layer in ibreg.bottlenecks(model).values()]


def reported(**rates):
    """An output whose logs give these rates: `reported(_0=5.0)` is 5 nats at '0.bottleneck'."""
    logs = {f"{name[1:]}.bottleneck/rate": torch.tensor(rate) for name, rate in rates.items()}
    return RegularizedOutput(torch.zeros(1), torch.zeros(()), logs)


FORMULAS = {
    "warm-up": (lambda net: LinearWarmup(net, 7), lambda t: min(t / 7, 1)),
    "warm-up from a quarter": (lambda net: LinearWarmup(net, 5, start=0.25), lambda t: 0.25 + 0.75 * min(t / 5, 1)),
    "warm-up in one step": (lambda net: LinearWarmup(net, 1), lambda t: min(t, 1)),
    "cosine": (lambda net: Cosine(net, 8), lambda t: (1 + math.cos(math.pi * min(t / 8, 1))) / 2),
    "rising cosine": (
        lambda net: Cosine(net, 6, start=0.1, end=2.0),
        lambda t: 2.0 + (0.1 - 2.0) * (1 + math.cos(math.pi * min(t / 6, 1))) / 2,
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_beta_follows_the_formula_at_every_step(name):
    make, factor = FORMULAS[name]
    net = build(0.5, 1e-6)
    schedule = make(net)
    for step in range(12):
        assert betas(net) == pytest.approx([0.5 * factor(step), 1e-6 * factor(step)], rel=1e-6, abs=1e-20)
        schedule.step()


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("model_first", [True, False])
def test_a_restored_schedule_continues_identically(name, model_first):
    make, _ = FORMULAS[name]
    net = build(0.5)
    schedule = make(net)
    for _ in range(3):
        schedule.step()
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(schedule.state_dict())
    other = build(0.5)
    if model_first:  # the constructor of the schedule sets beta to its start again
        other.load_state_dict(weights)
        restored = make(other)
        restored.load_state_dict(state)
    else:
        restored = make(other)
        restored.load_state_dict(state)
        other.load_state_dict(weights)
    for _ in range(8):
        assert betas(other) == betas(net)
        schedule.step()
        restored.step()
    assert restored.state_dict() == schedule.state_dict()


def test_chosen_layers_change_and_others_do_not():
    net = build(0.5, 0.5)
    LinearWarmup(net, 4, layers=["1.bottleneck"]).step()
    assert betas(net) == [0.5, 0.125]


def test_beta_stays_the_same_buffer_and_is_saved_with_the_model():
    net = build(0.5)
    buffer = net[0].bottleneck.beta
    for schedule in (LinearWarmup(net, 4), Cosine(net, 4), TargetRate(net, 2.0)):
        schedule.step(reported(_0=5.0))
        assert net[0].bottleneck.beta is buffer
        assert net.state_dict()["0.bottleneck.beta"].data_ptr() == buffer.data_ptr()
    gate = PatienceGate(net)
    gate.step(task_loss=1.0)
    assert net[0].bottleneck.beta is buffer
    assert not buffer.requires_grad


def test_schedules_reach_through_wrappers():
    net = build(0.5)
    schedule = LinearWarmup(torch.compile(ibreg.Regularized(net), backend="eager"), 4)
    schedule.step()
    assert betas(net) == [0.125]


@pytest.mark.parametrize(
    "kind", [lambda net, **o: LinearWarmup(net, 4, **o), lambda net, **o: TargetRate(net, 1.0, **o)]
)
def test_unknown_layers_and_models_without_bottleneck(kind):
    with pytest.raises(ValueError, match=r"no bottleneck is called '0', '7.x': choose from 0.bottleneck, 1.bottleneck"):
        kind(build(0.5, 0.5), layers=["0", "0.bottleneck", "7.x"])
    with pytest.raises(ValueError, match="there is no bottleneck in the model"):
        kind(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: LinearWarmup(net, 0), "at least 1, got 0"),
        (
            lambda net: LinearWarmup(net, 5, start=1.5),
            "start must be a finite number of at least 0 and at most 1, got 1.5",
        ),
        (lambda net: Cosine(net, -3), "at least 1, got -3"),
        (lambda net: Cosine(net, 5, end=-1.0), "end must be a finite number of at least 0, got -1.0"),
        (lambda net: TargetRate(net, 0.0), "rate must be a finite number of nats above 0"),
        (lambda net: TargetRate(net, math.nan), "rate must be a finite number of nats above 0"),
        (lambda net: TargetRate(net, 1.0, step_size=0.0), "step_size must be a finite number above 0, got 0.0"),
        (lambda net: TargetRate(net, 1.0, damping=-1.0), "damping must be a finite number of at least 0, got -1.0"),
        (lambda net: TargetRate(net, 1.0, bounds=(1.0, 0.1)), r"bounds\[0\] < bounds\[1\]"),
        (lambda net: TargetRate(net, {"0.bottleneck": 1.0, "zero": 1.0}), "no bottleneck is called 'zero'"),
        (lambda net: TargetRate(net, {"0.bottleneck": 1.0}, layers=["1.bottleneck"]), "rate names 0.bottleneck, but"),
        (lambda net: PatienceGate(net, 0), "at least 1, got 0"),
        (lambda net: PatienceGate(net, threshold=1.0), r"in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(make, message):
    net = build(0.5, 0.5)
    with pytest.raises(ValueError, match=message):
        make(net)
    assert betas(net) == [0.5, 0.5]


def test_the_base_class_defines_no_step():
    with pytest.raises(NotImplementedError):
        Schedule(build(0.5)).step()


# Target rate


def test_target_rate_follows_the_formula():
    net = build(0.5)
    schedule = TargetRate(net, 4.0, step_size=0.1, damping=2.0)
    log_beta, last = math.log(0.5), None
    for rate in (40.0, 20.0, 5.0, 3.0, 1.0, 4.0):
        excess = math.log(rate / 4.0)
        trend = 0.0 if last is None else excess - last
        log_beta += 0.1 * max(-1, min(1, excess)) + 2.0 * max(-1, min(1, trend))
        last = excess
        schedule.step(reported(_0=rate))
        assert betas(net) == pytest.approx([math.exp(log_beta)], rel=1e-5)


def test_each_layer_can_have_its_own_target():
    net = build(0.5, 0.5, 0.5)
    schedule = TargetRate(net, {"0.bottleneck": 2.0, "2.bottleneck": 20.0})
    schedule.step(reported(_0=10.0, _1=10.0, _2=10.0))
    first, second, third = betas(net)
    assert first > 0.5
    assert second == 0.5
    assert third < 0.5


def test_a_target_above_the_log_of_the_batch_size_is_refused():
    net = ibreg.inject(nn.Sequential(nn.Linear(6, 5)), {"0": ibreg.build("nonlinear", beta=0.5)}, torch.randn(2, 6))
    output = ibreg.Regularized(net)(torch.randn(16, 6))
    with pytest.raises(ValueError, match=r"cannot hold 3 nats in bottleneck 0.bottleneck: .* at most log.* = 2.77"):
        TargetRate(net, 3.0).step(output)
    assert betas(net) == [0.5]
    TargetRate(net, 2.5).step(output)
    assert betas(net) != [0.5]


def test_a_missing_rate_is_an_error_and_changes_no_beta():
    net = build(0.5, 0.5)
    schedule = TargetRate(net, 2.0)
    for output in (None, reported(_0=5.0)):
        with pytest.raises(
            ValueError, match=r"TargetRate needs the logged rate '[01].bottleneck/rate': call step\(output\)"
        ):
            schedule.step(output)
        assert betas(net) == [0.5, 0.5]


def test_a_rate_that_is_not_finite_does_not_poison_beta():
    net, clean = build(0.5), build(0.5)
    schedule, reference = TargetRate(net, 2.0), TargetRate(clean, 2.0)
    for rate in (5.0, math.nan, 4.0, math.nan, math.nan, 3.0):
        before = betas(net)
        schedule.step(reported(_0=rate))
        if math.isnan(rate):
            assert betas(net) == before
        else:
            reference.step(reported(_0=rate))
    assert betas(net) == betas(clean)
    fresh = build(0.5)
    schedule = TargetRate(fresh, 2.0)
    for rate in (math.nan, math.inf, -math.inf, 0.0, -3.0, 5.0, 5.0):
        schedule.step(reported(_0=rate))
        assert math.isfinite(betas(fresh)[0])
    before = betas(fresh)
    schedule.step(reported(_0=5.0))
    assert betas(fresh) > before


def test_beta_stays_within_its_bounds_and_leaves_them_again():
    net = build(0.5)
    schedule = TargetRate(net, 2.0, step_size=1.0, damping=0.0, bounds=(1e-3, 10.0))
    for _ in range(20):
        schedule.step(reported(_0=1e6))
    assert betas(net) == pytest.approx([10.0])
    schedule.step(reported(_0=1e-6))
    assert betas(net) == pytest.approx([10.0 / math.e])
    for _ in range(20):
        schedule.step(reported(_0=0.0))
    assert betas(net) == pytest.approx([1e-3])
    schedule.step(reported(_0=1e6))
    assert betas(net) == pytest.approx([1e-3 * math.e])


def test_target_rate_starts_from_a_beta_of_0():
    net = build(0.0)
    schedule = TargetRate(net, 2.0)
    for _ in range(100):
        schedule.step(reported(_0=10.0))
    assert betas(net)[0] > 1e-7


def test_a_restored_target_rate_continues_identically():
    net = build(0.5, 0.1)
    schedule = TargetRate(net, 3.0)
    for rate in (30.0, 20.0, 10.0):
        schedule.step(reported(_0=rate, _1=rate / 2))
    other = build(0.5, 0.1)
    restored = TargetRate(other, 3.0)
    other.load_state_dict(net.state_dict())
    restored.load_state_dict(copy.deepcopy(schedule.state_dict()))
    for rate in (6.0, 4.0, 2.0):
        schedule.step(reported(_0=rate, _1=rate / 2))
        restored.step(reported(_0=rate, _1=rate / 2))
        assert betas(other) == betas(net)
    assert restored.steps == schedule.steps == 6


def test_the_state_of_a_schedule_is_a_plain_checkpoint(tmp_path):
    schedule = TargetRate(build(0.5), 3.0)
    schedule.step(reported(_0=5.0))
    torch.save(schedule.state_dict(), tmp_path / "schedule.pt")
    loaded = torch.load(tmp_path / "schedule.pt", weights_only=True)
    assert loaded == schedule.state_dict()
    schedule.step(reported(_0=4.0))
    assert loaded != schedule.state_dict()


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


# The betas that hold these rates over 4,000 steps of this training are 0.11 and 0.015.
@pytest.mark.parametrize(("target", "holding_beta"), [(5.0, 0.11), (10.0, 0.015)])
@pytest.mark.parametrize("off_by", [1 / 100, pytest.param(100, marks=pytest.mark.slow)])
def test_target_rate_is_reached_and_held_on_digits(digits, target, holding_beta, off_by):
    torch.manual_seed(0)
    x, y = digits
    bottleneck = VariationalBottleneck(128, 32, beta=holding_beta * off_by)
    model = ibreg.Regularized(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), bottleneck, nn.Linear(32, 10)))
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = TargetRate(model, target)
    rates = []
    for _ in range(1200):
        rows = torch.randint(len(x), (128,))
        output = model(x[rows])
        loss = criterion(output, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(output)
        rates.append(output.logs["2/rate"])
    rates = torch.stack(rates)
    assert rates[-50:].mean().item() == pytest.approx(target, rel=0.1)
    assert rates[-300:].unfold(0, 50, 50).mean(1).tolist() == pytest.approx([target] * 6, rel=0.1)


# Patience gate


def test_the_gate_closes_after_patience_and_opens_on_improvement():
    net = build(0.5)
    gate = PatienceGate(net, patience=3)
    losses = [1.0, 0.9, 0.9, 0.95, 0.9, 0.9, 0.8, 0.81, 0.79, 0.79, 0.79, 0.79]
    expect = [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0]
    for loss, is_open in zip(losses, expect, strict=True):
        gate.step(task_loss=loss)
        assert betas(net) == [0.5 * is_open], loss


def test_the_threshold_is_relative_to_the_best_loss():
    for best, next_loss, improves in ((1.0, 0.95, False), (1.0, 0.85, True), (-1.0, -1.05, False), (-1.0, -1.2, True)):
        net = build(0.5)
        gate = PatienceGate(net, patience=1, threshold=0.1)
        gate.step(task_loss=best)
        gate.step(task_loss=torch.tensor(next_loss))
        assert betas(net) == [0.5 * improves]


def test_losses_that_are_not_finite_are_no_improvement():
    net = build(0.5)
    gate = PatienceGate(net, patience=2)
    for loss, is_open in ((math.nan, 1), (math.inf, 0), (3.0, 1), (math.nan, 1), (math.nan, 0), (2.0, 1)):
        gate.step(task_loss=loss)
        assert betas(net) == [0.5 * is_open], loss


def test_a_restored_gate_continues_identically():
    net = build(0.5)
    gate = PatienceGate(net, patience=2)
    for loss in (1.0, 1.0, 1.0):
        gate.step(task_loss=loss)
    assert betas(net) == [0.0]
    other = build(0.5)
    restored = PatienceGate(other, patience=2)
    restored.load_state_dict(gate.state_dict())
    assert betas(other) == [0.0]
    for loss in (1.0, 0.5, 0.5, 0.5):
        gate.step(task_loss=loss)
        restored.step(task_loss=loss)
        assert betas(other) == betas(net)
    assert restored.state_dict() == gate.state_dict()


def test_the_gate_needs_a_task_loss():
    gate = PatienceGate(build(0.5))
    with pytest.raises(ValueError, match=r"call step\(output, task_loss=...\)"):
        gate.step(reported(_0=1.0))
    assert gate.steps == 0
