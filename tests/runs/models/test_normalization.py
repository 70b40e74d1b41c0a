"""A network that normalizes: same names, keys and numbers as one whose data are normalized."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import ibreg
from ibreg.runs.data.images import Normalization
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.normalization import Normalize, add_normalization, network_inputs

NORMALIZATION = Normalization((0.3, 0.4, 0.5), (0.2, 0.25, 0.3))
SHAPE = (3, 16, 16)


def by_hand(x):
    """In the order of the operations that data sets once had."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in NORMALIZATION)
    return x.clone().sub_(mean).div_(std)


def pair(name="resnet20", **options):
    """The same network with and without a normalization."""
    with_normalization, plain = (
        models.build(name, input_shape=SHAPE, classes=4, normalization=normalization, **options)
        for normalization in (NORMALIZATION, None)
    )
    plain.load_state_dict(with_normalization.state_dict())
    return with_normalization.eval(), plain.eval()


@pytest.mark.parametrize(("name", "options"), [("mlp", {}), ("lenet", {}), ("resnet20", {"depth": 8})])
def test_the_output_is_bit_equal_to_that_for_normalized_data(name, options):
    network, plain = pair(name, **options)
    x = torch.rand(5, *SHAPE)
    assert torch.equal(network(x), plain(by_hand(x)))
    assert torch.equal(network_inputs(network, x), by_hand(x))
    assert torch.equal(network_inputs(plain, x), x)


def test_names_and_keys_stay():
    network, plain = pair("lenet")
    assert list(network.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in network.named_modules() if name != "normalize"] == [
        name for name, _ in plain.named_modules()
    ]
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in plain.named_parameters()]


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda network: pickle.loads(pickle.dumps(network)),
        lambda network: torch.compile(network, backend="aot_eager", fullgraph=True),
        AveragedModel,
        lambda network: ibreg.Regularized(
            ibreg.inject(network, {"trunk": ibreg.HSICBottleneck()}, example=torch.zeros(1, *SHAPE))
        ),
    ],
    ids=["deepcopy", "pickle", "compile", "average", "regularized"],
)
def test_copies_and_wrappers_normalize_as_well(copied):
    network, plain = pair("lenet")
    x = torch.rand(4, *SHAPE)
    model = copied(network)
    output = model(x)
    output = output.output if isinstance(model, ibreg.Regularized) else output
    torch.testing.assert_close(output, plain(by_hand(x)))
    assert torch.equal(network_inputs(model, x), by_hand(x))


def test_grayscale_images_are_normalized_before_they_are_repeated():
    normalization = Normalization((0.5,), (0.25,))
    options = {"input_shape": (1, 32, 32), "classes": 4, "architecture": "resnet18"}
    network = models.build("torchvision", normalization=normalization, **options).eval()
    plain = models.build("torchvision", **options).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(network(x), plain((x - 0.5) / 0.25))


def test_kernels_compare_with_the_normalized_inputs_that_are_handed_over():
    network, plain = pair("lenet")
    penalties = []
    x, y = torch.rand(32, *SHAPE), torch.arange(32) % 4
    for model, read in ((network, x), (plain, by_hand(x))):
        layer = ibreg.HSICBottleneck(lambda_y=0.0, bandwidth_x=30.0)
        model = ibreg.Regularized(ibreg.inject(model, {"trunk": layer})).train()
        penalties.append(model(read, target=y, inputs=network_inputs(model, read)).penalty)
    assert torch.equal(*penalties)


@pytest.mark.parametrize(
    "network", [nn.Sequential(nn.Linear(2, 1)), add_normalization(nn.Conv2d(3, 4, 1), NORMALIZATION)]
)
def test_networks_that_would_run_it_twice_are_refused(network):
    with pytest.raises(ValueError, match="must be no Sequential and have no `normalize`"):
        add_normalization(network, NORMALIZATION)


def test_the_representation_shows_the_numbers():
    assert "mean=[0.5], std=[0.25]" in repr(Normalize(Normalization((0.5,), (0.25,))))
