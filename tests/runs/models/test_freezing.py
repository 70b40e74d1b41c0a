"""What of a network is trained: by name, in which mode, with which learning rate."""

import pytest
import torch
from torch import nn

import ibreg
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.freezing import freeze, head_of, learning_rate_groups, training_mode


@pytest.fixture
def network():
    return models.build("resnet20", input_shape=(3, 8, 8), classes=4, depth=8)


def trained(model):
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
def test_a_mode_trains_its_part_and_nothing_else(network, mode, prefixes):
    found = trained(freeze(network, mode))
    assert found == {name for name, _ in network.named_parameters() if name.split(".")[0] in prefixes}
    assert {name.split(".")[0] for name in found} == set(prefixes)


def test_a_last_stage_can_be_named(network):
    assert trained(freeze(network, "last_stage", ["layer2.0", "bn1"])) == {
        name for name, _ in network.named_parameters() if name.startswith(("layer2.0.", "bn1.", "linear."))
    }


def test_a_stage_that_does_not_exist_gets_the_closest_names(network):
    with pytest.raises(ValueError, match=r"no module 'layer4'; closest: layer\d"):
        freeze(network, "last_stage", "layer4")


def test_an_unknown_mode_lists_the_modes(network):
    with pytest.raises(ValueError, match=r"frozen, head, last_stage, full, got 'half'"):
        freeze(network, "half")


def test_a_network_in_one_module_has_no_last_stage_of_its_own():
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="say in last_stage"):
        freeze(net, "last_stage")


def test_what_is_frozen_keeps_its_statistics_and_bottlenecks_in_it_train(network):
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


def test_a_network_that_is_trained_whole_is_in_training_mode_whole(network):
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


def test_nothing_frozen_moves_under_weight_decay(network):
    freeze(network, "head")
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.AdamW(learning_rate_groups(network, lr=0.1, lr_backbone=0.1), weight_decay=0.5)
    training_mode(network)(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"linear.weight", "linear.bias"}


def test_the_head_is_the_last_layer(network):
    assert head_of(network) == "linear"
