"""Saved and loaded bottlenecks are bit-equal, and a file that does not fit is an error that changes nothing."""

import hashlib
import json
import os

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import ibreg
from ibreg import VariationalBottleneck
from ibreg.saving import backbone_hash, backbone_shapes

torch.set_num_threads(1)


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def injected(**options):
    return ibreg.inject(mlp(), {"1": VariationalBottleneck(8, **options)})


def outputs(model, x):
    with torch.no_grad():
        return model.eval()(x)


def state(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_unchanged(model, before, kinds):
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_round_trip_on_resnet18(tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=5)
    backbone = state(net)
    layers = {
        "layer3": VariationalBottleneck(256, beta=1e-2, prior="learned", start="identity"),
        "avgpool": VariationalBottleneck(512, prior="conditional", classes=5, lagrangian="power", power=0.5),
    }
    ibreg.inject(net, layers)
    with torch.no_grad():
        for layer in layers.values():
            layer.encoder.weight.add_(0.01 * torch.randn_like(layer.encoder.weight))
    path = tmp_path / "added.safetensors"
    ibreg.save_bottlenecks(net, path)
    fresh = torchvision.models.resnet18(num_classes=5)
    fresh.load_state_dict(backbone)
    assert ibreg.load_bottlenecks(fresh, path) is fresh
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(outputs(fresh, x), outputs(net, x))
    for name, layer in ibreg.bottlenecks(net).items():
        again = ibreg.bottlenecks(fresh)[name]
        assert again.config() == layer.config()
        assert again.registry_name == layer.registry_name
        assert {key: (value.shape, value.dtype) for key, value in again.state_dict().items()} == {
            key: (value.shape, value.dtype) for key, value in layer.state_dict().items()
        }
    # Only the added part: its tensors and a small header, with a line for each key of the backbone.
    added = sum(value.nbytes for layer in layers.values() for value in layer.state_dict().values())
    assert added <= path.stat().st_size <= added + 4096 + 64 * len(backbone)
    with safe_open(path, framework="pt") as file:
        assert all(key.startswith(("layer3.bottleneck/", "avgpool.bottleneck/")) for key in file.keys())  # noqa: SIM118
    assert os.listdir(tmp_path) == ["added.safetensors"]
    ibreg.eject(fresh)
    assert list(fresh.state_dict()) == list(backbone)


def test_the_loaded_model_trains_on(tmp_path):
    net = injected(beta=0.5)
    ibreg.save_bottlenecks(net, tmp_path / "b")
    fresh = mlp()
    ibreg.load_bottlenecks(fresh, tmp_path / "b")
    assert fresh[1].bottleneck.training
    output, penalty, _ = ibreg.Regularized(fresh)(X)
    (output.square().mean() + penalty).backward()
    assert all(parameter.grad is not None for parameter in fresh.parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        ibreg.Regularized,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: torch.compile(ibreg.Regularized(net), backend="eager"),
        lambda net: ibreg.Regularized(torch.compile(net, backend="eager")),
        torch.optim.swa_utils.AveragedModel,
    ],
)
def test_wrappers_do_not_change_the_file(tmp_path, wrap):
    torch.manual_seed(0)
    net = injected()
    ibreg.save_bottlenecks(net, tmp_path / "plain")
    ibreg.save_bottlenecks(wrap(net), tmp_path / "wrapped")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "wrapped").read_bytes()
    target = wrap(injected())
    ibreg.load_bottlenecks(target, tmp_path / "plain")
    (layer,) = ibreg.bottlenecks(target).values()
    assert torch.equal(layer.encoder.weight, net[1].bottleneck.encoder.weight)


def test_a_model_that_has_the_bottleneck_gets_the_weights(tmp_path):
    net, other = injected(beta=0.1), injected(beta=0.9)
    ibreg.save_bottlenecks(net, tmp_path / "b")
    layer = other[1].bottleneck
    parameters = list(layer.parameters())
    ibreg.load_bottlenecks(other, str(tmp_path / "b"))
    assert other[1].bottleneck is layer
    assert all(new is old for new, old in zip(layer.parameters(), parameters, strict=True))
    assert torch.equal(layer.encoder.weight, net[1].bottleneck.encoder.weight)
    assert layer.beta == net[1].bottleneck.beta


def test_a_model_that_has_some_of_the_bottlenecks_gets_the_others(tmp_path):
    net = ibreg.inject(mlp(), {"0": VariationalBottleneck(8), "1": VariationalBottleneck(8)})
    ibreg.save_bottlenecks(net, tmp_path / "b")
    other = injected()
    ibreg.load_bottlenecks(other, tmp_path / "b")
    assert set(ibreg.bottlenecks(other)) == {"0.bottleneck", "1.bottleneck"}
    other.load_state_dict({key: value for key, value in net.state_dict().items() if "bottleneck" not in key})
    assert torch.equal(outputs(other, X), outputs(net, X))


@pytest.mark.parametrize("name", ["code", "bottleneck"])
def test_a_bottleneck_of_the_models_own_code(tmp_path, name):
    def build(layer):
        net = nn.Sequential(nn.Linear(4, 8))
        net.add_module(name, layer)
        net.add_module("head", nn.Linear(8, 3))
        return net

    net, other = build(VariationalBottleneck(8)), build(VariationalBottleneck(8))
    ibreg.save_bottlenecks(net, tmp_path / "b")
    ibreg.load_bottlenecks(other, tmp_path / "b")
    assert torch.equal(other[1].encoder.weight, net[1].encoder.weight)
    without = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    before, kinds = state(without), [type(module) for module in without.modules()]
    with pytest.raises(ValueError, match=f"'{name}' was part of the model's own code"):
        ibreg.load_bottlenecks(without, tmp_path / "b")
    assert_unchanged(without, before, kinds)


def test_the_current_and_the_initial_beta_are_saved(tmp_path):
    net = injected(beta=0.3)
    warmup = ibreg.schedules.LinearWarmup(net, 4)
    ibreg.save_bottlenecks(net, tmp_path / "at_0")
    warmup.step()
    ibreg.save_bottlenecks(net, tmp_path / "at_1")
    at_0, at_1 = ibreg.load_bottlenecks(mlp(), tmp_path / "at_0"), ibreg.load_bottlenecks(mlp(), tmp_path / "at_1")
    assert at_0[1].bottleneck.beta == 0
    assert torch.equal(at_1[1].bottleneck.beta, net[1].bottleneck.beta)
    # Schedules multiply the initial beta, which is not 0.
    again = ibreg.schedules.LinearWarmup(at_0, 1)
    again.step()
    assert at_0[1].bottleneck.beta.item() == pytest.approx(0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loaded_layers_have_the_dtype_of_their_host(tmp_path, dtype):
    net = ibreg.inject(mlp().to(dtype), {"1": VariationalBottleneck(8, beta=1e-8)})
    ibreg.save_bottlenecks(net, tmp_path / "b")
    same, single = mlp().to(dtype), mlp()
    weight = ibreg.load_bottlenecks(same, tmp_path / "b")[1].bottleneck.encoder.weight
    assert weight.dtype == dtype
    assert torch.equal(weight, net[1].bottleneck.encoder.weight)
    assert ibreg.load_bottlenecks(single, tmp_path / "b")[1].bottleneck.encoder.weight.dtype == torch.float32
    assert same[1].bottleneck.beta == net[1].bottleneck.beta


def good(path):
    ibreg.save_bottlenecks(injected(), path)


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("these are not weights")


def pickled(path):
    torch.save(mlp().state_dict(), path)


def truncated(path):
    good(path)
    path.write_bytes(path.read_bytes()[:-16])


def truncated_header(path):
    good(path)
    path.write_bytes(path.read_bytes()[:40])


def of_others(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"format": "pt"})


def without_metadata(path):
    save_file({"weight": torch.zeros(2)}, path)


def rewritten(change):
    def write(path):
        good(path)
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["ibreg"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        change(content["bottlenecks"], tensors)
        save_file(tensors, path, metadata={"ibreg": json.dumps(content)})

    return write


def unknown_class(described, tensors):
    described["1.bottleneck"]["class"] = "telepathic"


def unknown_option(described, tensors):
    described["1.bottleneck"]["config"]["color"] = "blue"


def lost_tensor(described, tensors):
    tensors.pop("1.bottleneck/encoder.bias")


def another_size(described, tensors):
    tensors["1.bottleneck/encoder.bias"] = torch.zeros(3)


def renamed_host(described, tensors):
    described["11.bottleneck"] = described.pop("1.bottleneck")
    for key in list(tensors):
        tensors["1" + key] = tensors.pop(key)


def another_host_missing(described, tensors):
    described["9.bottleneck"] = described["1.bottleneck"]
    tensors |= {key.replace("1.", "9.", 1): value.clone() for key, value in tensors.items()}


BROKEN = {
    "missing": (lambda path: None, FileNotFoundError, "there is no file"),
    "a folder": (lambda path: path.mkdir(), FileNotFoundError, "there is no file"),
    "empty": (empty, ValueError, "not a safetensors file, or is truncated"),
    "text": (text, ValueError, "not a safetensors file, or is truncated"),
    "pickle": (pickled, ValueError, "not a safetensors file, or is truncated"),
    "truncated": (truncated, ValueError, "not a safetensors file, or is truncated"),
    "truncated header": (truncated_header, ValueError, "not a safetensors file, or is truncated"),
    "of others": (of_others, ValueError, r"was not written by ibreg.save_bottlenecks"),
    "without metadata": (without_metadata, ValueError, r"was not written by ibreg.save_bottlenecks"),
    "unknown class": (rewritten(unknown_class), ValueError, "no bottleneck is called 'telepathic'.*variational"),
    "unknown option": (rewritten(unknown_option), ValueError, "no option 'color'"),
    "lost tensor": (rewritten(lost_tensor), ValueError, "does not fit this version of 'variational'.*encoder.bias"),
    "another size": (rewritten(another_size), ValueError, "does not fit this version of 'variational'"),
    "renamed host": (rewritten(renamed_host), ValueError, "no module '11'"),
    "one host of two missing": (rewritten(another_host_missing), ValueError, "no module '9'"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("build", [mlp, injected])
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, case, build):
    write, error, message = BROKEN[case]
    path = tmp_path / "b.safetensors"
    write(path)
    net = build()
    before, kinds = state(net), [type(module) for module in net.modules()]
    with pytest.raises(error, match=message.replace("'.*", "'(?s:.)*")):
        ibreg.load_bottlenecks(net, path)
    assert_unchanged(net, before, kinds)


@pytest.mark.parametrize("options", [{"prior": "learned"}, {"out_features": 4}])
def test_another_bottleneck_of_that_name_is_an_error(tmp_path, options):
    good(tmp_path / "b")
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    ibreg.inject(net, {"1": VariationalBottleneck(8, **options)})
    before, kinds = state(net), [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match=r"'1.bottleneck' is VariationalBottleneck.* in the model.*eject it first"):
        ibreg.load_bottlenecks(net, tmp_path / "b")
    assert_unchanged(net, before, kinds)


def test_another_module_of_that_name_is_an_error(tmp_path):
    class Host(nn.ReLU):
        bottleneck = None

    good(tmp_path / "b")
    net = nn.Sequential(nn.Linear(4, 8), Host(), nn.Linear(8, 3))
    before, kinds = state(net), [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match="has an attribute 'bottleneck'"):
        ibreg.load_bottlenecks(net, tmp_path / "b")
    assert_unchanged(net, before, kinds)


# ---- which backbone, which format


def content_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["ibreg"])


def test_the_file_names_format_version_and_backbone(tmp_path):
    net = injected()
    ibreg.save_bottlenecks(ibreg.Regularized(net), tmp_path / "b")
    content = content_of(tmp_path / "b")
    assert (content["format"], content["ibreg"]) == (1, ibreg.__version__)
    shapes = {key: list(value.shape) for key, value in mlp().state_dict().items()}
    assert content["backbone"]["shapes"] == shapes
    # From the definition: SHA-256 of the sorted pairs as JSON.
    text = "[" + ", ".join(f'["{key}", {shapes[key]}]' for key in sorted(shapes)) + "]"
    assert content["backbone"]["hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_does_not_depend_on_order_dtype_or_compiled_parts(tmp_path):
    net = injected()
    shapes = backbone_shapes(net)
    assert backbone_hash(shapes) == backbone_hash(dict(reversed(shapes.items())))
    assert backbone_shapes(net.to(torch.bfloat16)) == shapes
    net[0] = torch.compile(net[0], backend="eager")
    assert backbone_shapes(net) == shapes
    assert backbone_hash(shapes) != backbone_hash({**shapes, "0.bias": [9]})


class Named(nn.Module):
    """A perceptron with named parts, and modules that a test adds or replaces."""

    def __init__(self, **further):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        for name, module in further.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize(
    ("other", "listed"),
    [
        (
            lambda: Named(head=nn.Linear(8, 5)),
            r"2 of another shape: head.weight \[5, 8\] instead of \[3, 8\], head.bias",
        ),
        (lambda: Named(head=nn.Linear(8, 3, bias=False)), "1 missing: head.bias"),
        (lambda: Named(norm=nn.BatchNorm1d(8)), r"5 unexpected: norm.weight, norm.bias, norm.running_mean, \.\.\."),
        (
            lambda: Named(head=nn.Sequential(nn.Linear(8, 3))),
            "2 missing: head.weight, head.bias; 2 unexpected: head.0.weight, head.0.bias",
        ),
    ],
)
@pytest.mark.parametrize("present", [False, True])
def test_another_backbone_is_an_error_that_lists_the_differences(tmp_path, other, listed, present):
    net = ibreg.inject(Named(), {"body": VariationalBottleneck(8)})
    ibreg.save_bottlenecks(net, tmp_path / "b")
    wrong = other()
    if present:
        ibreg.inject(wrong, {"body": VariationalBottleneck(8)})
    before, kinds = state(wrong), [type(module) for module in wrong.modules()]
    with pytest.raises(ValueError, match=f"saved from another backbone.*{listed}.*load its own weights"):
        ibreg.load_bottlenecks(wrong, tmp_path / "b")
    assert_unchanged(wrong, before, kinds)


@pytest.mark.parametrize("number", [0, 2, None])
def test_a_file_of_another_format_is_an_error_that_names_both_versions(tmp_path, number):
    good(tmp_path / "good")
    content = content_of(tmp_path / "good")
    changed = {**content, "format": number, "ibreg": "9.9"} if number is not None else content["bottlenecks"]
    with safe_open(tmp_path / "good", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "b", metadata={"ibreg": json.dumps(changed)})
    net = mlp()
    before, kinds = state(net), [type(module) for module in net.modules()]
    written = "9.9" if number is not None else "None"
    with pytest.raises(ValueError, match=rf"has format {number}, written by ibreg {written}; .* reads format 1"):
        ibreg.load_bottlenecks(net, tmp_path / "b")
    assert_unchanged(net, before, kinds)


def test_nothing_to_save_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="there is no bottleneck"):
        ibreg.save_bottlenecks(mlp(), tmp_path / "b")
    assert not os.listdir(tmp_path)


def test_an_unregistered_class_cannot_be_saved(tmp_path):
    class Plain(ibreg.Bottleneck):
        sized = False

        def transform(self, x, scope=None):
            return x, x

        def penalty(self, state, scope):
            return state.square().sum(), {}

    net = ibreg.inject(mlp(), {"1": Plain()})
    with pytest.raises(ValueError, match=r"'1.bottleneck' is a Plain, which has no name .*@ibreg.register"):
        ibreg.save_bottlenecks(net, tmp_path / "b")
    assert not os.listdir(tmp_path)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_partial_one(tmp_path, monkeypatch):
    path = tmp_path / "b"
    good(path)
    old = path.read_bytes()

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("ibreg.saving.os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        ibreg.save_bottlenecks(injected(), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["b"]


def test_saving_into_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        ibreg.save_bottlenecks(injected(), tmp_path / "nowhere" / "b")
