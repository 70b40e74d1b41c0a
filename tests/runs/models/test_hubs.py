"""Classifiers of timm and transformers, where these are installed: small ones, randomly initialized."""

import sys

import pytest
import torch

import ibreg
from ibreg.runs.models import classifiers as models

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}


def penalized(model, place, shape):
    ibreg.inject(model, {place: ibreg.VariationalBottleneck(start="identity")}, example=torch.zeros(1, *shape))
    output = ibreg.Regularized(model.train())(torch.randn(2, *shape))
    (output.output.square().sum() + output.penalty).backward()
    return output


def test_a_timm_model_takes_a_bottleneck_and_weights_of_a_file(tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    options = {"architecture": "mobilenetv3_small_050", "input_shape": (1, 32, 32)}
    source = models.build("timm", classes=4, **options)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = models.build("timm", classes=4, weights=tmp_path / "weights.pt", **options).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model(x), source.eval()(x))
    assert penalized(model, "global_pool", (1, 32, 32)).output.shape == (2, 4)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"do not fit the MobileNetV3 .* missing"):
        models.build("timm", classes=4, weights=tmp_path / "other.pt", **options)


def test_an_unknown_timm_model_gets_the_closest_names():
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ValueError, match=r"no model 'resnet19'; the closest names are \['resnet1"):
        models.build("timm", input_shape=(3, 32, 32), classes=4, architecture="resnet19")


def test_a_transformers_model_returns_logits_and_takes_a_bottleneck(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    shape = (3, 16, 16)
    model = models.build("transformers", input_shape=shape, classes=4, configuration=SMALL)
    assert model(torch.randn(2, *shape)).shape == (2, 4)
    model.save_pretrained(tmp_path / "vit")
    same = models.build("transformers", input_shape=shape, classes=4, weights=tmp_path / "vit").eval()
    x = torch.randn(2, *shape)
    torch.testing.assert_close(same(x), model.eval()(x))
    assert models.build("transformers", input_shape=shape, classes=7, weights=tmp_path / "vit")(x).shape == (2, 7)
    assert penalized(same, "vit.layernorm", shape).output.shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "vitt"}, r"no image classifier 'vitt'; the closest names are \['vit"),
        ({"weights": "/nowhere/vit"}, "finds no image classifier at /nowhere/vit"),
        ({"weights": "vit", "configuration": {"hidden_size": 8}}, "weights have their own configuration"),
    ],
)
def test_transformers_models_that_cannot_be_built_say_why(options, message, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        models.build("transformers", input_shape=(3, 16, 16), classes=4, **options)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_a_package_that_is_not_there_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"model={name} needs the package {name}: pip install {name}"):
        models.build(name, input_shape=(3, 16, 16), classes=4)
