import copy
import inspect
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch import nn

from ibreg.runs.data import classification as data
from ibreg.runs.data.rows import loader
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.classifiers import build, names

CONFIGS = Path(__file__).parents[3] / "configs" / "model"
DATA = Path(os.environ.get("IBREG_DATA") or "data")
PUBLISHED = DATA / "weights" / "resnet20-12fca82f.th"
needs_weights = pytest.mark.skipif(not PUBLISHED.is_file(), reason="no weights/resnet20-12fca82f.th under IBREG_DATA")
needs_images = pytest.mark.skipif(
    not (DATA / "cifar10_jpeg_mini").is_dir(), reason="no cifar10_jpeg_mini under IBREG_DATA"
)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- names and options


def test_an_unknown_name_lists_the_models():
    with pytest.raises(
        ValueError,
        match=r"^model.name: no model 'resnet' \(did you mean 'resnet20'\?\): it is one of lenet, mlp, resnet20, ",
    ):
        build("resnet", input_shape=(3, 32, 32), classes=10)


def test_an_unknown_option_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"^model has no key 'width': it has hidden, decoder, initialization$"):
        build("mlp", input_shape=(4,), classes=2, width=3)
    with pytest.raises(ValueError, match=r"^model has no key 'hidden': it has no options$"):
        build("lenet", input_shape=(1, 8, 8), classes=2, hidden=[3])


@pytest.mark.parametrize("name", names())
def test_the_yaml_has_every_option_with_its_default_and_no_other(name):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    place = written.pop("inject_at")
    signature = inspect.signature(models._MODELS[name]).parameters.values()
    own = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    plain = {option: list(default) if isinstance(default, tuple) else default for option, default in own.items()}
    assert written == {"name": name, **plain}
    if name in ("timm", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    model = build(**written, input_shape=(3, 32, 32), classes=4)
    assert model.get_submodule(place) is not None


def test_every_yaml_belongs_to_a_model():
    assert sorted(file.stem for file in CONFIGS.glob("*.yaml")) == names()


@pytest.mark.parametrize("name", ["resnet20", "torchvision"])
def test_models_without_a_trunk_refuse_another_code_width(name):
    with pytest.raises(ValueError, match=r"has no trunk of its own.*one of \['lenet', 'mlp'\]"):
        build(name, input_shape=(3, 32, 32), classes=10, code_features=8)


@pytest.mark.parametrize("name", ["lenet", "resnet20", "torchvision"])
def test_flat_inputs_are_refused_by_models_of_images(name):
    with pytest.raises(ValueError, match=rf"{name} needs images .*\(16,\): use model=mlp"):
        build(name, input_shape=(16,), classes=7)


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_images_that_are_too_small_are_refused(name):
    with pytest.raises(ValueError, match="images of at least 8 x 8"):
        build(name, input_shape=(1, 8, 7), classes=7)


# --- what the models compute


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 13), (1, 12, 11), (3, 64, 8)])
@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet20"])
def test_every_input_from_8_by_8_gives_logits_and_gradients(name, shape):
    model = build(name, input_shape=shape, classes=5)
    logits = model(torch.randn(2, *shape))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("mlp", (784,), {}, 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        ("mlp", (1, 28, 28), {"hidden": [1024, 1024]}, 1_863_690),  # the network of the variational bottleneck on MNIST
        ("mlp", (16,), {"hidden": []}, 170),
        ("lenet", (1, 28, 28), {}, 61_706),  # LeNet-5 as it is usually counted on MNIST
        ("resnet20", (3, 32, 32), {}, 269_722),  # 0.27 M in the paper
        ("resnet20", (3, 32, 32), {"depth": 56}, 853_018),  # 0.85 M in the paper
        ("torchvision", (3, 224, 224), {}, 11_176_512 + 5_130),
    ],
)
def test_the_number_of_parameters_is_the_known_one(name, shape, options, expected):
    assert parameters(build(name, input_shape=shape, classes=10, **options)) == expected


@pytest.mark.parametrize(("name", "width"), [("mlp", 128), ("lenet", 84)])
def test_the_head_takes_the_width_of_the_code(name, width):
    plain = build(name, input_shape=(1, 8, 8), classes=3)
    assert plain.head.in_features == width
    narrow = build(name, input_shape=(1, 8, 8), classes=3, code_features=6)
    narrow.trunk.append(nn.Linear(width, 6))
    assert narrow(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_xavier_draws_uniform_weights_and_zero_biases():
    torch.manual_seed(0)
    model = build("mlp", input_shape=(300,), classes=10, hidden=[200], initialization="xavier")
    bound = (6 / (300 + 200)) ** 0.5
    weight = model.trunk[1].weight
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not model.trunk[1].bias.any()
    assert not model.head.bias.any()


def test_a_decoder_follows_the_code():
    model = build("mlp", input_shape=(8,), classes=1, hidden=[128, 128, 128], decoder=[64, 32], code_features=16)
    layers = [layer for layer in model.head if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(16, 64), (64, 32), (32, 1)]
    assert sum(isinstance(layer, torch.nn.ReLU) for layer in model.head) == 2
    assert not isinstance(model.head[-1], torch.nn.ReLU)


def test_decoder_widths_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"^model.decoder must be a list of integers of at least 1, got \[0\]$"):
        build("mlp", input_shape=(8,), classes=1, decoder=[0])


@pytest.mark.parametrize("hidden", [[0], [2.5], "256", 256])
def test_widths_that_are_none_are_refused(hidden):
    message = f"model.hidden must be a list of integers of at least 1, got {hidden!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build("mlp", input_shape=(4,), classes=2, hidden=hidden)


def test_an_unknown_initialization_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"^model.initialization must be one of default, xavier, got he$"):
        build("mlp", input_shape=(4,), classes=2, initialization="he")


@pytest.mark.parametrize("depth", [2, 18, 20.0, "20"])
def test_depths_that_no_residual_network_has_are_refused(depth):
    with pytest.raises(ValueError, match=rf"^model.depth must be 6 n \+ 2 .*\(20, .*, got {depth!r}$"):
        build("resnet20", input_shape=(3, 32, 32), classes=10, depth=depth)


def test_shortcuts_take_every_second_pixel_between_channels_of_zeros():
    block = build("resnet20", input_shape=(3, 9, 9), classes=10).layer2[0].eval()
    nn.init.zeros_(block.bn2.weight)  # silences the residual branch
    x = torch.rand(2, 16, 9, 9)
    zeros = torch.zeros(2, 8, 5, 5)
    assert torch.equal(block(x), torch.cat([zeros, x[:, :, [0, 2, 4, 6, 8]][..., [0, 2, 4, 6, 8]], zeros], dim=1))


# --- weights of the residual network


@needs_weights
@needs_images
def test_published_weights_reach_their_accuracy():
    images = data.load("image_folder", root=DATA, path="cifar10_jpeg_mini", image_size=32, limit=100)
    options = {"input_shape": (3, 32, 32), "classes": 10, "normalization": images.normalization}
    model = build("resnet20", **options, weights=PUBLISHED).eval()
    rows = range(0, 2000, 4)  # 50 of each class: the files are in the order of the classes
    with torch.no_grad():
        correct = sum(
            int((model(inputs).argmax(1) == targets).sum())
            for inputs, targets in loader(images.test, 100, sampler=rows)
        )
    assert correct / len(rows) == pytest.approx(0.81, abs=0.03)


def test_weights_for_color_read_gray_images_as_gray_colors(saved):
    gray = build("resnet20", input_shape=(1, 16, 16), classes=10, depth=8, weights=saved[1]).eval()
    color = build("resnet20", input_shape=(3, 16, 16), classes=10, depth=8, weights=saved[1]).eval()
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(gray(x), color(x.expand(-1, 3, -1, -1)))


@needs_weights
@pytest.mark.parametrize(("depth", "file"), [(20, "resnet20-12fca82f.th"), (56, "resnet56-4bfd9763.th")])
def test_published_weights_are_taken_over_whole(depth, file):
    path = DATA / "weights" / file
    stored = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    model = build("resnet20", input_shape=(3, 32, 32), classes=10, depth=depth, weights=path)
    own = {f"module.{name}": value for name, value in model.state_dict().items() if "num_batches" not in name}
    assert same(own, dict(stored))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(3)
    source = build("resnet20", input_shape=(3, 16, 16), classes=10, depth=8)
    file = tmp_path / "small.pt"
    torch.save(source.state_dict(), file)
    return source.state_dict(), file


def test_a_classifier_for_other_classes_stays_as_initialized(saved):
    stored, file = saved
    torch.manual_seed(4)
    fresh = build("resnet20", input_shape=(3, 16, 16), classes=4, depth=8)
    torch.manual_seed(4)
    model = build("resnet20", input_shape=(3, 16, 16), classes=4, depth=8, weights=file)
    assert torch.equal(model.linear.weight, fresh.linear.weight)
    assert torch.equal(model.linear.bias, fresh.linear.bias)
    body = {name: value for name, value in model.state_dict().items() if not name.startswith("linear")}
    assert same(body, {name: value for name, value in stored.items() if not name.startswith("linear")})


def test_weights_that_are_not_there_name_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none.th: model.weights must be the path"):
        build("resnet20", input_shape=(3, 32, 32), classes=10, weights=tmp_path / "none.th")


@pytest.mark.parametrize(
    ("shape", "depth", "message"),
    [
        ((2, 16, 16), 8, "do not fit the ResNet .* of another shape: conv1.weight$"),
        ((3, 16, 16), 14, r"missing: layer1.1.bn1.bias"),
    ],
)
def test_weights_of_another_network_say_what_differs(saved, shape, depth, message):
    with pytest.raises(ValueError, match=message):
        build("resnet20", input_shape=shape, classes=10, depth=depth, weights=saved[1])


def test_unknown_entries_of_weights_are_named(saved, tmp_path):
    torch.save({**saved[0], "extra.weight": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match=r"unknown: extra\.weight"):
        build("resnet20", input_shape=(3, 16, 16), classes=10, depth=8, weights=tmp_path / "more.pt")


# --- torchvision


def test_gray_images_are_repeated_to_color():
    torch.manual_seed(0)
    model = build("torchvision", input_shape=(1, 32, 32), classes=4).eval()
    gray = torch.randn(2, 1, 32, 32)
    plain = torchvision.models.resnet18(num_classes=4).eval()
    plain.load_state_dict(model.state_dict())
    expected = plain(gray.repeat(1, 3, 1, 1))
    for version in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(version(gray), expected)


def test_an_unknown_architecture_lists_the_closest():
    with pytest.raises(ValueError, match=r"no classifier 'resnet19'; the closest names are \['resnet18'"):
        build("torchvision", input_shape=(3, 32, 32), classes=4, architecture="resnet19")


def test_channels_other_than_one_or_three_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        build("torchvision", input_shape=(4, 32, 32), classes=4)


@pytest.fixture
def pretrained():
    torch.manual_seed(9)
    return torchvision.models.squeezenet1_1().state_dict()


@pytest.mark.parametrize("classes", [1000, 6])
def test_torchvision_weights_come_from_a_file_or_the_default(pretrained, classes, tmp_path, monkeypatch):
    torch.save(pretrained, tmp_path / "weights.pth")
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: pretrained)
    for weights in (tmp_path / "weights.pth", "DEFAULT", "IMAGENET1K_V1"):
        model = build(
            "torchvision", input_shape=(3, 64, 64), classes=classes, architecture="squeezenet1_1", weights=weights
        )
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, classes)
        loaded = {name for name, value in model.state_dict().items() if torch.equal(value, pretrained[name])}
        new = set() if classes == 1000 else {"classifier.1.weight", "classifier.1.bias"}
        assert pretrained.keys() - loaded == new
