"""Weight decay, learning rates and freezing of parameters."""

import inspect

import pytest
import torch
from torch import nn

import ibreg
from ibreg import registry
from ibreg.optimization import freeze, head_name, learning_rate_groups, training_mode
from ibreg.runs.models import classifiers as models


def model_with(**options):
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    return ibreg.inject(net, {"1": ibreg.VariationalBottleneck(8, **options)})


def names_of(model, group):
    return {
        name for name, parameter in model.named_parameters() if any(parameter is member for member in group["params"])
    }


@pytest.mark.parametrize(
    ("options", "exempt"),
    [
        ({}, {"encoder.bias"}),
        ({"prior": "learned"}, {"encoder.bias", "prior_mean", "prior_log_variance"}),
        ({"prior": "conditional", "classes": 3}, {"encoder.bias", "prior_mean", "prior_log_variance"}),
    ],
)
def test_exactly_biases_raw_scales_and_priors_of_the_bottleneck_are_exempt(options, exempt):
    model = model_with(**options)
    decayed, undecayed = ibreg.parameter_groups(ibreg.Regularized(model), weight_decay=0.05)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    assert names_of(model, undecayed) == {f"1.bottleneck.{name}" for name in exempt}
    every = {name for name, _ in model.named_parameters()}
    assert names_of(model, decayed) == every - names_of(model, undecayed)
    assert len(decayed["params"]) + len(undecayed["params"]) == len(every)


def test_a_step_without_gradients_shrinks_the_parameters_with_weight_decay_alone():
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
            assert any(parameter is member for group in groups[1:] for member in group["params"])


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
def test_an_invalid_weight_decay_is_an_error(decay):
    with pytest.raises((ValueError, TypeError), match="weight_decay"):
        ibreg.parameter_groups(model_with(), weight_decay=decay)


def test_a_model_without_trained_parameters_is_an_error():
    with pytest.raises(ValueError, match="nothing is left to train"):
        ibreg.parameter_groups(model_with().requires_grad_(False), weight_decay=0.1)


# ---- freezing and learning rates


@pytest.fixture
def network():
    return models.build("resnet20", input_shape=(3, 8, 8), classes=4, depth=8)


def trained(model):
    """Names of the parameters that require a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("mode", "prefixes"),
    [
        ("frozen", ()),
        ("head", ("linear",)),
        ("last_stage", ("linear", "layer3")),
        ("full", ("conv1", "bn1", "layer1", "layer2", "layer3", "linear")),
    ],
)
def test_a_mode_trains_its_part_alone(network, mode, prefixes):
    names = trained(freeze(network, mode))
    assert names == {name for name, _ in network.named_parameters() if name.split(".")[0] in prefixes}
    assert {name.split(".")[0] for name in names} == set(prefixes)


def test_a_last_stage_can_be_named(network):
    assert trained(freeze(network, "last_stage", ["layer2.0", "bn1"])) == {
        name for name, _ in network.named_parameters() if name.startswith(("layer2.0.", "bn1.", "linear."))
    }


def test_a_stage_that_does_not_exist_gets_the_closest_names(network):
    with pytest.raises(ValueError, match=r"no module 'layer4'; closest: layer\d"):
        freeze(network, "last_stage", "layer4")


def test_an_unknown_mode_lists_the_modes(network):
    with pytest.raises(ValueError, match="mode must be one of 'frozen', 'head', 'last_stage', 'full', got 'half'"):
        freeze(network, "half")


def test_the_last_stage_of_a_network_in_one_child_has_to_be_named():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="set last_stage to the names of one or more of 0"):
        freeze(net, "last_stage")


def test_frozen_modules_keep_their_statistics_and_bottlenecks_in_them_train(network):
    network = freeze(network, "last_stage")
    ibreg.inject(network, {"layer1": ibreg.VariationalBottleneck(16, start="identity")})
    model = ibreg.Regularized(network)
    model.eval()
    training_mode(model)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    output = model(torch.randn(6, 3, 8, 8))
    assert output.penalty > 0
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("layer3.") for name in moved)


def test_without_frozen_modules_the_whole_network_is_in_training_mode(network):
    network.eval()
    assert all(module.training for module in training_mode(network).modules())


@pytest.mark.parametrize("wrapped", [False, True])
def test_bottleneck_and_head_have_one_rate_and_the_backbone_another(network, wrapped):
    if wrapped:
        ibreg.inject(network, {"avgpool": ibreg.VariationalBottleneck(64)})
        network = ibreg.Regularized(network)
    groups = learning_rate_groups(network, lr=0.1, lr_backbone=0.01)
    rates = {id(value): group["lr"] for group in groups for value in group["params"]}
    for name, value in network.named_parameters():
        assert rates[id(value)] == (0.1 if "bottleneck" in name or "linear" in name else 0.01), name
    assert len(rates) == len(list(network.parameters())) == sum(len(group["params"]) for group in groups)


def test_weight_decay_does_not_change_frozen_parameters(network):
    freeze(network, "head")
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.AdamW(learning_rate_groups(network, lr=0.1, lr_backbone=0.1), weight_decay=0.5)
    training_mode(network)(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"linear.weight", "linear.bias"}


def test_the_head_is_the_last_layer_of_the_backbone(network):
    assert head_name(network) == "linear"
    ibreg.inject(network, {"linear": ibreg.VariationalBottleneck(4)})
    assert head_name(network) == "linear"
