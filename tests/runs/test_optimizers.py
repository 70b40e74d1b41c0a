"""Optimizers of torch by name with torch's defaults, and the learning rate over the epochs."""

import inspect
import math
import re

import pytest
import torch

from ibreg.runs.optimizers import (
    LR_SCHEDULES,
    OPTIMIZERS,
    build_lr_schedule,
    build_optimizer,
    lr_schedule_section,
    optimizer_options,
    optimizer_section,
)

EPOCHS = 6


def built(parameters, lr=0.1, weight_decay=0.0, **options):
    return build_optimizer(optimizer_section(options), parameters, lr=lr, weight_decay=weight_decay)


def parameter():
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_options_are_those_of_torch_with_its_defaults(name):
    kind = next(entry for entry in vars(torch.optim).values() if getattr(entry, "__name__", "").lower() == name)
    defaults = {key: entry.default for key, entry in inspect.signature(kind).parameters.items()}
    options = optimizer_options(name)
    assert options == {key: defaults[key] for key in options}
    assert {"lr", "weight_decay", "params", "foreach", "fused"}.isdisjoint(options)
    optimizer = built([parameter()], name=name)
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in options} == options


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_step_lowers_the_loss(name):
    weights = parameter()
    optimizer = built([weights], name=name, lr=0.01)
    losses = []
    for _ in range(5):
        loss = weights.square().sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert weights.square().sum().item() < losses[0]


def test_options_and_rates_reach_torch():
    weights, twin = parameter(), parameter()
    ours = built([weights], name="sgd", lr=0.3, weight_decay=0.2, momentum=0.5, nesterov=True)
    theirs = torch.optim.SGD([twin], lr=0.3, weight_decay=0.2, momentum=0.5, nesterov=True)
    for optimizer, values in ((ours, weights), (theirs, twin)):
        for _ in range(3):
            optimizer.zero_grad()
            values.pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(weights, twin)
    groups = [{"params": [parameter()], "lr": 0.01}, {"params": [parameter()]}]
    assert [group["lr"] for group in built(groups, name="adam", lr=0.2, betas=[0.5, 0.6]).param_groups] == [0.01, 0.2]
    assert built(groups, name="adam", betas=[0.5, 0.6]).param_groups[0]["betas"] == (0.5, 0.6)


def test_weight_decay_of_an_optimizer_that_has_none():
    assert built([parameter()], name="rprop").param_groups[0]["lr"] == 0.1
    message = "optimizer.name=rprop has no weight decay: weight_decay must be 0, got 0.1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        built([parameter()], name="rprop", weight_decay=0.1)


def test_what_torch_refuses_names_the_optimizer():
    with pytest.raises(ValueError, match=r"^optimizer \(sgd\): Nesterov momentum requires"):
        built([parameter()], name="sgd", nesterov=True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adm"}, "optimizer.name: no optimizer 'adm' (did you mean 'adam'?): it is one of adadelta, "),
        ({"name": "lbfgs"}, "optimizer.name: no optimizer 'lbfgs'"),
        ({"name": "Adam"}, "optimizer.name: no optimizer 'Adam' (did you mean 'adam'?): it is one of "),
        ({"name": 3}, "optimizer.name must be one of adadelta, "),
        ({}, "optimizer.name has no value: choose optimizer=NAME, one of adadelta, "),
        ("adam", "optimizer must be a section with the key name, one of adadelta, "),
        ({"name": "sgd", "lr": 1}, "optimizer has no key 'lr': it has name, momentum, dampening, nesterov"),
        ({"name": "sgd", "momentum": 1}, "optimizer.momentum must be a number of at least 0 and below 1, got 1"),
        (
            {"name": "adam", "betas": [0.9]},
            "optimizer.betas must be a list of 2 numbers of at least 0 and below 1, got",
        ),
        (
            {"name": "adam", "betas": 0.9},
            "optimizer.betas must be a list of 2 numbers of at least 0 and below 1, got 0.9",
        ),
        ({"name": "adam", "eps": -1}, "optimizer.eps must be a number of at least 0, got -1"),
    ],
)
def test_a_section_that_is_not_valid(section, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        optimizer_section(section)


def cosine(epoch):
    return (1 + math.cos(math.pi * epoch / EPOCHS)) / 2


@pytest.mark.parametrize(
    ("section", "factor"),
    [
        ({"name": "constant"}, lambda epoch: 1.0),
        ({"name": "step", "every": 2, "factor": 0.5}, lambda epoch: 0.5 ** (epoch // 2)),
        ({"name": "step", "every": 4}, lambda epoch: 0.1 ** (epoch // 4)),
        ({"name": "multi_step", "at": [1, 4], "factor": 0.5}, lambda epoch: 0.5 ** ((epoch >= 1) + (epoch >= 4))),
        ({"name": "multi_step", "at": [5, 2]}, lambda epoch: 0.1 ** ((epoch >= 2) + (epoch >= 5))),
        ({"name": "exponential", "factor": 0.9}, lambda epoch: 0.9**epoch),
        ({"name": "linear"}, lambda epoch: 1 - epoch / EPOCHS),
        ({"name": "linear", "final": 0.25}, lambda epoch: 1 - 0.75 * epoch / EPOCHS),
        ({"name": "cosine"}, cosine),
        ({"name": "cosine", "final": 0.2}, lambda epoch: 0.2 + 0.8 * cosine(epoch)),
    ],
)
def test_the_learning_rate_of_each_epoch(section, factor):
    optimizer = torch.optim.SGD([parameter()], lr=0.4)
    schedule = build_lr_schedule(lr_schedule_section(section), optimizer, EPOCHS)
    rates = []
    for _ in range(EPOCHS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.4 * factor(epoch) for epoch in range(EPOCHS + 1)])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_groups_end_at_the_same_fraction_of_their_own_rate(name):
    groups = [{"params": [parameter()], "lr": 0.4}, {"params": [parameter()], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    schedule = build_lr_schedule(lr_schedule_section({"name": name, "final": 0.5}), optimizer, EPOCHS)
    for _ in range(EPOCHS):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.05])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "cosin"},
            "lr_schedule.name: no schedule of the learning rate 'cosin' (did you mean 'cosine'?): it is ",
        ),
        ({"name": None}, "lr_schedule.name has no value: choose lr_schedule=NAME, one of constant, cosine, "),
        ({"name": "step"}, "lr_schedule needs the key 'every': give it a value, lr_schedule.every=..."),
        ({"name": "step", "every": 0}, "lr_schedule.every must be an integer of at least 1, got 0"),
        ({"name": "step", "every": 1.5}, "lr_schedule.every must be an integer of at least 1, got 1.5"),
        (
            {"name": "multi_step", "at": []},
            "lr_schedule.at must be a list of one or more different integers of at least 1",
        ),
        ({"name": "multi_step", "at": [3, 3]}, "lr_schedule.at must be a list of one or more different integers of at"),
        (
            {"name": "multi_step", "at": 3},
            "lr_schedule.at must be a list of one or more different integers of at least 1",
        ),
        ({"name": "exponential", "factor": 0}, "lr_schedule.factor must be a number above 0, got 0"),
        ({"name": "linear", "final": -0.1}, "lr_schedule.final must be a number of at least 0, got -0.1"),
        ({"name": "constant", "final": 1}, "lr_schedule has no key 'final': it has name"),
    ],
)
def test_a_schedule_that_is_not_valid(section, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        lr_schedule_section(section)


def test_there_are_as_many_schedules_as_are_tested():
    assert set(LR_SCHEDULES) == {"constant", "step", "multi_step", "exponential", "linear", "cosine"}


@pytest.mark.parametrize(
    ("check", "values", "key", "choice"),
    [
        (optimizer_section, {"name": "sgd", "betas": [0.9, 0.99], "eps": 1e-8}, "betas", "optimizer=sgd"),
        (optimizer_section, {"name": "adam", "momentum": 0.9}, "momentum", "optimizer=adam"),
        (optimizer_section, {"name": "rprop", "betas": [0.9, 0.99]}, "betas", "optimizer=rprop"),
        (lr_schedule_section, {"name": "linear", "factor": 0.1, "final": 0.1}, "factor", "lr_schedule=linear"),
        (lr_schedule_section, {"name": "step", "final": 0.1}, "final", "lr_schedule=step"),
    ],
)
def test_options_of_another_choice(check, values, key, choice):
    remedy = f"; {choice}, in an experiment `override /{choice.replace('=', ': ')}` in its defaults, chooses it without"
    with pytest.raises(ValueError, match=rf"^\w+ has no key '{key}'.*: it has name.*{re.escape(remedy)}"):
        check(values)
