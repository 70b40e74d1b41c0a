"""Which parameters an optimizer decays."""

import inspect

import pytest
import torch
from torch import nn

import ibreg
from ibreg import registry


def model_with(**options):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    return ibreg.inject(net, {"1": ibreg.VariationalBottleneck(8, **options)})


def names_of(model, group):
    return {name for name, parameter in model.named_parameters() if any(parameter is own for own in group["params"])}


@pytest.mark.parametrize(
    ("options", "exempt"),
    [
        ({}, {"encoder.bias"}),
        ({"prior": "learned"}, {"encoder.bias", "prior_mean", "prior_log_variance"}),
        ({"prior": "conditional", "classes": 3}, {"encoder.bias", "prior_mean", "prior_log_variance"}),
    ],
)
def test_biases_and_raw_scales_of_the_bottleneck_are_exempt_and_nothing_else_is(options, exempt):
    model = model_with(**options)
    decayed, undecayed = ibreg.parameter_groups(ibreg.Regularized(model), weight_decay=0.05)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    assert names_of(model, undecayed) == {f"1.bottleneck.{name}" for name in exempt}
    every = {name for name, _ in model.named_parameters()}
    assert names_of(model, decayed) == every - names_of(model, undecayed)
    assert len(decayed["params"]) + len(undecayed["params"]) == len(every)


def test_a_step_without_gradient_shrinks_the_decayed_alone():
    model = model_with(start="identity")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(ibreg.parameter_groups(model, weight_decay=0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 if name == "1.bottleneck.encoder.bias" else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), factor * before[name])


@pytest.mark.parametrize("name", ibreg.names())
def test_every_parameter_of_every_bottleneck_is_in_one_group(name):
    options = {"concepts": 3} if "concepts" in inspect.signature(registry.find(name)).parameters else {}
    layer = ibreg.build(name, in_features=6, **options)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), layer)
    groups = ibreg.parameter_groups(model, weight_decay=0.1)
    given = [parameter for group in groups for parameter in group["params"]]
    assert len(given) == len(set(given)) == len(list(model.parameters()))

    for parameter in layer.parameters():
        if parameter.dim() < 2:
            assert any(parameter is own for group in groups[1:] for own in group["params"])


def test_frozen_parameters_are_left_out():
    model = model_with()
    for parameter in (*model[0].parameters(), *model[2].parameters()):
        parameter.requires_grad_(False)
    decayed, undecayed = ibreg.parameter_groups(model, weight_decay=0.1)
    assert names_of(model, decayed) == {"1.weight", "1.bias", "1.bottleneck.encoder.weight"}
    assert names_of(model, undecayed) == {"1.bottleneck.encoder.bias"}


def test_a_model_without_exempt_parameters_has_one_group():
    (group,) = ibreg.parameter_groups(nn.Linear(3, 2), weight_decay=0.1)
    assert len(group["params"]) == 2


@pytest.mark.parametrize("decay", [-0.1, float("nan"), "much"])
def test_a_weight_decay_that_is_none(decay):
    with pytest.raises((ValueError, TypeError), match="weight_decay"):
        ibreg.parameter_groups(model_with(), weight_decay=decay)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing is left to train"):
        ibreg.parameter_groups(model_with().requires_grad_(False), weight_decay=0.1)
