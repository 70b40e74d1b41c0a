"""Frozen encoders against the same computation written out, from weights of a file and trained here."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from ibreg.runs.data import streams as continual_data
from ibreg.runs.data.images import Normalization
from ibreg.runs.dispatch import keyword_options
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.encoders import Encoder, build, names, pretrained, trained
from ibreg.runs.models.features import encode

CONFIGS = Path(__file__).parents[3] / "configs" / "encoder"
NORMALISATION = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def here(tmp_path):
    return {"root": tmp_path, "cache": tmp_path / "cache"}


@pytest.fixture
def weights(tmp_path):
    """Weights of a residual network as `DataParallel` leaves them."""
    network = models.build("resnet20", input_shape=(3, 32, 32), classes=10, depth=8)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "resnet8.th")
    return network.eval()


def test_features_are_pooled_stages_of_the_network_with_the_weights_of_the_file(weights, tmp_path):
    encoder = build(
        "pretrained", input_shape=(1, 28, 28), **here(tmp_path), places=["layer2", "layer3"], pool=2, image_size=32,
        model={"name": "resnet20", "depth": 8, "weights": "resnet8.th"},
    )  # fmt: skip
    x = torch.rand(5, 1, 28, 28)
    color = F.interpolate(x, (32, 32), mode="bilinear", antialias=True).repeat(1, 3, 1, 1)
    mean, std = (torch.tensor(NORMALISATION[key])[:, None, None] for key in ("mean", "std"))
    stage1 = weights.layer1(F.relu(weights.bn1(weights.conv1((color - mean) / std))))
    stage2 = weights.layer2(stage1)
    maps = [stage2, weights.layer3(stage2)]
    expected = torch.cat(
        [part.unflatten(-1, (2, -1)).unflatten(2, (2, -1)).mean((3, 5)).flatten(1) for part in maps], 1
    )
    assert expected.shape == (5, 4 * 32 + 4 * 64)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_is_frozen_and_in_eval_mode(weights, tmp_path):
    model = {"name": "resnet20", "depth": 8, "weights": str(tmp_path / "resnet8.th")}
    encoder = build("pretrained", input_shape=(3, 32, 32), **here(tmp_path), places=["layer3"], model=model)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    x = torch.rand(3, 3, 32, 32)
    # Batch normalization with running statistics: a row does not depend on the others.
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]))


def test_tokens_are_averaged_and_vectors_stay():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.vector = nn.Flatten(2), nn.Flatten()

        def forward(self, x):
            return self.vector(self.tokens(x).transpose(1, 2))

    x = torch.rand(4, 3, 4, 4)
    encoder = Encoder(Tokens(), ["tokens", "vector"], pool=1, image_size=None, normalization=Normalization.of(0, 1, 3))
    tokens = x.flatten(2)
    expected = torch.cat([tokens.mean(1), tokens.transpose(1, 2).flatten(1)], dim=1)
    torch.testing.assert_close(encoder(x), expected)


def small(**options):
    return {
        "data": {"name": "digits"}, "model": {"name": "lenet"}, "places": ["trunk"], "epochs": 8,
        "batch_size": 32, "lr": 3e-3,
    } | options  # fmt: skip


def test_an_encoder_trained_here_has_learned_its_data_and_is_trained_once(tmp_path, monkeypatch):
    encoder = build("trained", input_shape=(1, 8, 8), **here(tmp_path), **small())
    digits = continual_data.load("digits")
    by_class = [encoder(digits.train.inputs[digits.train.targets == label]).mean(0) for label in range(10)]
    nearest = torch.cdist(encoder(digits.test.inputs), torch.stack(by_class)).argmin(1)
    assert (nearest == digits.test.targets).double().mean() > 0.9
    monkeypatch.setattr(torch.optim, "AdamW", None)
    again = build("trained", input_shape=(1, 8, 8), **here(tmp_path), **small())
    assert torch.equal(again(digits.test.inputs), encoder(digits.test.inputs))
    with pytest.raises(TypeError):  # another seed has to train
        build("trained", input_shape=(1, 8, 8), **here(tmp_path), **small(seed=1))


def test_inputs_are_features_without_an_encoder(tmp_path):
    x = torch.rand(4, 3, 2, 2)
    assert torch.equal(build("identity", input_shape=(3, 2, 2), **here(tmp_path))(x), x.flatten(1))


def test_every_yaml_has_every_option_of_its_encoder():
    found = {file.stem: OmegaConf.to_container(OmegaConf.load(file)) for file in CONFIGS.glob("*.yaml")}
    assert {options["name"] for options in found.values()} == set(names())
    functions = {"identity": lambda: None, "pretrained": pretrained, "trained": trained}
    for name, options in found.items():
        assert options.keys() - {"name"} == keyword_options(functions[options["name"]]).keys(), name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "^encoder.name: no encoder 'resnet': it is one of identity, pretrained, trained$"),
        ("identity", {"pool": 2}, "^encoder has no key 'pool': it has no options$"),
        (
            "pretrained",
            {"model": {"name": "resnet20"}},
            "^encoder needs the key 'places': give it a value, encoder.places=...$",
        ),
        ("pretrained", {"model": {"name": "resnet20"}, "places": ["layer3"]}, "needs encoder.model.weights"),
        (
            "trained",
            small(places=["trunc"]),
            r"places must name .* modules of the encoder, of .*'trunk'.* got \['trunc'\]",
        ),
        ("trained", small(places=[]), r"^encoder.places must be a list of one or more strings, got \[\]$"),
        ("trained", small(pool=0), "^encoder.pool must be an integer of at least 1, got 0$"),
        ("trained", small(epochs=0), r"encoder.epochs must be an integer.* got 0"),
        ("trained", small(model={"name": "lenett"}), "no model 'lenett'"),
    ],
)
def test_what_cannot_be_built_is_refused(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(name, input_shape=(1, 8, 8), **here(tmp_path), **options)


def test_inputs_that_are_no_images_and_missing_weights_are_refused(weights, tmp_path):
    model = {"name": "resnet20", "depth": 8, "weights": "resnet8.th"}
    with pytest.raises(ValueError, match="use encoder=identity"):
        build("pretrained", input_shape=(2,), **here(tmp_path), places=["layer3"], model=model)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        build("pretrained", input_shape=(1, 8, 8), root=tmp_path, cache=tmp_path, places=["layer3"],
              model=model | {"weights": "resnet9.th"})  # fmt: skip


def test_features_of_other_places_are_no_features_of_these(tmp_path):
    """What is kept in the cache is known by the places too, and by their order."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3))
    x = torch.rand(4, 1, 8, 8)

    def features(*places):
        encoder = Encoder(network, places, pool=1, image_size=None, normalization=Normalization.of(0, 1, 1))
        return encode(encoder, x, cache=tmp_path)

    first, second = features("0"), features("2")
    assert torch.equal(features("0", "2"), torch.cat([first, second], 1))
    assert torch.equal(features("2", "0"), torch.cat([second, first], 1))
