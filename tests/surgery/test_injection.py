"""Injection on common architectures, the rules for names and patterns, and all errors."""

import copy
import io
import pickle
from collections import OrderedDict, namedtuple

import pytest
import torch
import torchvision
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import ibreg
from ibreg import VariationalBottleneck

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Dynamo counts the recompilations of a function over the whole process."""
    torch._dynamo.reset()


IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def mlp(dtype=None, device=None):
    options = {"dtype": dtype, "device": device}
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 8, **options), relu=nn.ReLU(), head=nn.Linear(8, 3, **options)))


class Wrap(nn.Module):
    """Runs a function of its module, so that a test can give a host any output."""

    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def counted(model):
    """Counts the calls of each bottleneck."""
    calls = dict.fromkeys(ibreg.bottlenecks(model), 0)

    def count(name):
        def hook(module, args, output):
            calls[name] += 1

        return hook

    for name, layer in ibreg.bottlenecks(model).items():
        layer.register_forward_hook(count(name))
    return calls


def snapshot(model):
    """Children, hooks and modes by module, and the weights: a refused injection must not change them."""
    modules = {
        name: (type(module), list(module._modules), dict(module._forward_hooks), module.training)
        for name, module in model.named_modules(remove_duplicate=False)
    }
    return modules, {key: tensor.clone() for key, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    modules, weights = snapshot(model)
    assert modules == before[0]
    assert list(weights) == list(before[1])
    assert all(torch.equal(weights[key], before[1][key]) for key in weights)


def outputs(model, *args, **kwargs):
    with torch.no_grad():
        return model.eval()(*args, **kwargs)


def rates(logs):
    return {key: value for key, value in logs.items() if key.endswith("/rate")}


# Architectures


@pytest.mark.parametrize(
    ("build", "name", "features", "size"),
    [
        (torchvision.models.resnet18, "avgpool", 512, 64),
        (torchvision.models.resnet18, "layer3", 256, 64),
        (torchvision.models.resnet18, "layer2.0.conv1", 128, 64),
        (torchvision.models.mobilenet_v3_small, "features.4", 40, 64),
        (torchvision.models.mobilenet_v3_small, "avgpool", 576, 64),
        (torchvision.models.densenet121, "features.denseblock2.denselayer3", 32, 64),
        (torchvision.models.densenet121, "features", 1024, 64),
    ],
)
def test_convolutional_networks(build, name, features, size):
    torch.manual_seed(0)
    net = build(weights=None)
    keys, plain = list(net.state_dict()), outputs(net, IMAGE)
    pretrained = copy.deepcopy(net.state_dict())
    ibreg.inject(net, {name: VariationalBottleneck()}, example=IMAGE)
    layer = net.get_submodule(name).bottleneck
    assert layer.in_features == features
    assert [key for key in net.state_dict() if ".bottleneck." not in key] == keys
    assert not torch.equal(outputs(net, IMAGE), plain)
    calls = counted(net)
    output, penalty, logs = ibreg.Regularized(net.train())(IMAGE)
    assert calls == {f"{name}.bottleneck": 1}
    assert set(logs) == {f"{name}.bottleneck/rate", f"{name}.bottleneck/active_units"}
    torch.testing.assert_close(penalty, 1e-3 * logs[f"{name}.bottleneck/rate"])
    (output.square().mean() + penalty).backward()
    assert layer.encoder.weight.grad.abs().sum() > 0
    net.load_state_dict(pretrained, strict=True)
    assert torch.equal(outputs(ibreg.eject(net), IMAGE), plain)
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize(
    "name", ["encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_0.self_attention", "encoder.ln"]
)
def test_vision_transformer_in_training_and_on_the_fused_evaluation_path(name):
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    x = torch.randn(2, 3, 32, 32)
    net.heads.head.weight.data.normal_()  # torchvision starts it at 0, which would hide every change
    plain = outputs(net, x)
    ibreg.inject(net, {name: VariationalBottleneck()}, example=x)
    calls = counted(net)
    assert not torch.allclose(outputs(net, x), plain)
    ibreg.Regularized(net.train())(x)
    assert calls == {f"{name}.bottleneck": 2}


def test_vit_b_16():
    net = torchvision.models.vit_b_16(image_size=32)
    name = "encoder.layers.encoder_layer_11"
    ibreg.inject(net, {name: VariationalBottleneck(768)})
    calls = counted(net)
    logs = ibreg.Regularized(net).eval()(torch.randn(1, 3, 32, 32)).logs
    assert calls == {f"{name}.bottleneck": 1}
    assert logs[f"{name}.bottleneck/rate"] > 0


def test_swin_maps_are_channel_last():
    net = torchvision.models.swin_t(weights=None)
    x = torch.randn(1, 3, 64, 64)
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"'features.1' takes 96 features on axis 1, got .*\(1, 16, 16, 96\); .*dim=3"):
        ibreg.inject(net, {"features.1": VariationalBottleneck(96)}, example=x)
    assert_unchanged(net, before)
    ibreg.inject(net, {"features.1": VariationalBottleneck(dim=-1)}, example=x)
    calls = counted(net)
    logs = ibreg.Regularized(net)(x).logs
    assert calls == {"features.1.bottleneck": 1}
    assert logs["features.1.bottleneck/rate"] > 0
    assert net.features[1].bottleneck.in_features == 96


def test_a_dense_block_runs_its_elements_itself():
    net = torchvision.models.densenet121(weights=None)
    before = snapshot(net)
    with pytest.raises(
        ValueError, match=r"'features.denseblock1' is a _DenseBlock that runs .* name one of its elements"
    ):
        ibreg.inject(net, {"features.denseblock1": VariationalBottleneck(256)})
    assert_unchanged(net, before)


@pytest.mark.parametrize("module", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_networks_give_both_layouts_the_same_penalty(module, bidirectional):
    penalties, codes = [], []
    x = torch.randn(5, 7, 4)
    for batch_first in (True, False):
        torch.manual_seed(0)
        net = module(4, 6, batch_first=batch_first, bidirectional=bidirectional)
        given = x if batch_first else x.transpose(0, 1)
        plain, states = outputs(net, given)
        features = 12 if bidirectional else 6
        torch.manual_seed(1)
        ibreg.inject(net, {"": VariationalBottleneck(features, beta=1.0)})
        code, states_after = outputs(net, given)
        assert code.shape == plain.shape
        torch.testing.assert_close(code, net.bottleneck.encoder(plain)[..., :features])
        for state, after in zip(states, states_after, strict=True):
            assert torch.equal(state, after)
        penalties.append(ibreg.Regularized(net.train())(given).penalty)
        codes.append(code if batch_first else code.transpose(0, 1))
    torch.testing.assert_close(*penalties)
    torch.testing.assert_close(*codes)


@pytest.mark.parametrize("batch_first", [True, False])
def test_dim_counts_axes_batch_first_in_both_layouts_of_a_recurrent_network(batch_first):
    x = torch.randn(5, 7, 4)
    given = x if batch_first else x.transpose(0, 1)
    net = ibreg.inject(nn.LSTM(4, 6, batch_first=batch_first), {"": VariationalBottleneck(dim=1)}, example=given)
    assert net.bottleneck.in_features == 7
    assert outputs(net, given)[0].shape == (*given.shape[:2], 6)


def test_padding_mask_of_a_recurrent_network_is_batch_first_in_both_layouts():
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    x = torch.randn(3, 7, 4)
    masked = []
    for batch_first in (True, False):
        torch.manual_seed(0)
        net = ibreg.inject(nn.LSTM(4, 6, batch_first=batch_first), {"": VariationalBottleneck(6)})
        masked.append(ibreg.Regularized(net)(x if batch_first else x.transpose(0, 1), mask=mask).penalty)
    torch.testing.assert_close(*masked)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_weights_are_unchanged(batch_first):
    torch.manual_seed(0)
    net = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    x = torch.randn(3, 5, 8)
    x = x if batch_first else x.transpose(0, 1)
    plain, weights = outputs(net, x, x, x)
    ibreg.inject(net, {"": VariationalBottleneck(8)})
    code, weights_after = outputs(net, x, x, x)
    torch.testing.assert_close(code, net.bottleneck.encoder(plain)[..., :8])
    assert torch.equal(weights, weights_after)


HOSTS = ["layers.0", "layers.0.linear1", "layers.0.norm2", "layers.0.self_attn", "layers.1", ""]


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_encoder_with_padding_never_skips_the_bottleneck(name, norm_first):
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    plain = outputs(net, x, src_key_padding_mask=padding)
    ibreg.inject(net, {name: VariationalBottleneck()}, example={"src": x, "src_key_padding_mask": padding})
    calls = counted(net)
    with torch.no_grad():
        evaluated = ibreg.Regularized(net).eval()(x, src_key_padding_mask=padding, mask=~padding)
    assert calls == {(f"{name}." if name else "") + "bottleneck": 1}
    assert not torch.allclose(evaluated.output[~padding], plain[~padding], atol=1e-3)
    trained = ibreg.Regularized(net.train())(x, src_key_padding_mask=padding, mask=~padding)
    assert next(iter(calls.values())) == 2
    (rate,), (rate_in_eval,) = rates(trained.logs).values(), rates(evaluated.logs).values()
    torch.testing.assert_close(rate, rate_in_eval)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", HOSTS)
def test_transformer_encoder_with_nested_tensors_runs_the_bottleneck_or_says_what_to_change(name):
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2).eval()
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    layer = VariationalBottleneck(16 if name == "layers.0.linear1" else 8)
    if name:
        before = snapshot(net)
        with pytest.raises(TypeError, match="enable_nested_tensor=False"):
            ibreg.inject(net, {name: layer}, example={"src": x, "src_key_padding_mask": padding})
        assert_unchanged(net, before)
    ibreg.inject(net, {name: layer})
    calls = counted(net)
    if name:
        with pytest.raises(TypeError, match="enable_nested_tensor=False"):
            outputs(net, x, src_key_padding_mask=padding)
        assert list(calls.values()) == [0]
    else:  # its own output is padded again
        outputs(net, x, src_key_padding_mask=padding)
        assert list(calls.values()) == [1]
    called = sum(calls.values())
    net(x, src_key_padding_mask=padding)  # with gradients torch keeps the plain path
    ibreg.Regularized(net.train())(x, src_key_padding_mask=padding)
    assert sum(calls.values()) == called + 2


def test_sequence_first_transformers_have_the_same_penalty_per_sample():
    x = torch.randn(5, 7, 8)
    for name in ("layers.0", "layers.0.self_attn", ""):
        penalties = []
        for batch_first in (True, False):
            torch.manual_seed(0)
            block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
            net = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
            ibreg.inject(net, {name: VariationalBottleneck(8)})
            penalties.append(ibreg.Regularized(net)(x if batch_first else x.transpose(0, 1)).penalty)
        torch.testing.assert_close(*penalties)


def test_sequence_first_transformer_as_a_whole():
    x = torch.randn(5, 7, 8)
    penalties = []
    for batch_first in (True, False):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
        encoder = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        net = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=batch_first, custom_encoder=encoder)
        ibreg.inject(net, {"": VariationalBottleneck(8)})
        given = x if batch_first else x.transpose(0, 1)
        penalties.append(ibreg.Regularized(net)(given, given).penalty)
    torch.testing.assert_close(*penalties)


def test_parts_of_a_sequence_first_transformer_are_refused():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"'layers.0.linear1' is inside .*batch_first=True"):
        ibreg.inject(net, {"layers.0.linear1": VariationalBottleneck(16)})
    assert_unchanged(net, before)
    assert "layers.0.linear1" not in {candidate.name for candidate in ibreg.candidates(net, torch.randn(7, 5, 8))}


# Containers and shared modules


def test_a_plain_sequential_runs_its_bottleneck_once():
    net = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    inner = outputs(net[:2], x)
    ibreg.inject(net, {"1": VariationalBottleneck(6), "": VariationalBottleneck(3)})
    calls = counted(net)
    code = net[1].bottleneck.encoder(inner)[:, :6]
    torch.testing.assert_close(outputs(net, x), net.bottleneck.encoder(net[2](code))[:, :3])
    assert calls == {"1.bottleneck": 1, "bottleneck": 1}
    assert not net._forward_hooks
    ibreg.eject(net)
    assert len(net) == 3
    assert len(net[1]) == 2


def test_a_sequential_subclass_without_a_forward_is_plain():
    class Block(nn.Sequential):
        pass

    net = Block(nn.Linear(4, 8), Block(nn.ReLU()))
    ibreg.inject(net, {"1": VariationalBottleneck(8), "": VariationalBottleneck(8)})
    calls = counted(net)
    outputs(net, torch.randn(2, 4))
    assert calls == {"1.bottleneck": 1, "bottleneck": 1}


def test_the_root_has_the_empty_name():
    net = ibreg.inject(nn.Linear(4, 3), {"": VariationalBottleneck(3)})
    assert list(net.state_dict())[:2] == ["weight", "bias"]
    assert list(ibreg.bottlenecks(net)) == ["bottleneck"]
    x = torch.randn(2, 4)
    plain = nn.functional.linear(x, net.weight, net.bias)
    torch.testing.assert_close(outputs(net, x), net.bottleneck.encoder(plain)[:, :3])


class Shared(nn.Module):
    """One block with two names, called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).relu())


def test_a_shared_module_is_named_once_and_counted_twice():
    net = Shared()
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"'first' and 'second' are one module"):
        ibreg.inject(net, {"first": VariationalBottleneck(4), "second": VariationalBottleneck(4)})
    assert_unchanged(net, before)
    ibreg.inject(net, {"*": VariationalBottleneck(4, beta=1.0)})
    assert list(ibreg.bottlenecks(net)) == ["first.bottleneck"]
    calls = counted(net)
    _, penalty, logs = ibreg.Regularized(net)(torch.randn(3, 4))
    assert calls == {"first.bottleneck": 2}
    torch.testing.assert_close(penalty, 2 * logs["first.bottleneck/rate"])


def test_a_shared_module_can_be_named_by_its_second_name():
    net = ibreg.inject(Shared(), {"second": VariationalBottleneck(4)})
    assert list(ibreg.bottlenecks(net)) == ["first.bottleneck"]
    assert not ibreg.bottlenecks(ibreg.eject(net))


# Names and patterns


def test_star_matches_within_a_segment_and_two_stars_across():
    net = nn.ModuleDict({"a1": mlp(), "a2": nn.ModuleDict({"b": mlp()}), "c": mlp()})

    def hosts(pattern):
        model = ibreg.inject(copy.deepcopy(net), {pattern: lambda name, module: VariationalBottleneck(8)})
        return [name.removesuffix(".bottleneck") for name in ibreg.bottlenecks(model)]

    assert hosts("a*.stem") == ["a1.stem"]
    assert hosts("*.stem") == ["a1.stem", "c.stem"]
    assert hosts("a*.*.stem") == ["a2.b.stem"]
    assert hosts("**.stem") == ["a1.stem", "a2.b.stem", "c.stem"]
    assert hosts("a**.stem") == ["a1.stem", "a2.b.stem"]
    assert set(hosts("a2.**")) == {"a2.b", "a2.b.stem", "a2.b.relu", "a2.b.head"}
    assert hosts("c.*e*") == ["c.stem", "c.relu", "c.head"]
    assert set(hosts("*")) == {"a1", "c"}  # a2 is a ModuleDict, which never runs


def test_a_dot_in_a_pattern_is_a_dot():
    net = nn.ModuleDict({"ab": nn.ModuleDict({"c": nn.Linear(4, 4)}), "abxc": nn.Linear(4, 4)})
    ibreg.inject(net, {"a*.c": VariationalBottleneck(4)})
    assert list(ibreg.bottlenecks(net)) == ["ab.c.bottleneck"]


def test_each_match_gets_its_own_re_initialized_copy():
    torch.manual_seed(0)
    prototype = VariationalBottleneck(4, beta=0.5)
    prototype.beta.fill_(7.0)
    weights = copy.deepcopy(prototype.state_dict())
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    ibreg.inject(net, {"*": prototype})
    first, second = ibreg.bottlenecks(net).values()
    assert prototype not in (first, second)
    assert not torch.equal(first.encoder.weight, second.encoder.weight)
    assert not torch.equal(first.encoder.weight, prototype.encoder.weight)
    assert first.beta == second.beta == 0.5
    assert all(torch.equal(value, weights[key]) for key, value in prototype.state_dict().items())


def test_a_pattern_sizes_its_copies_by_the_example():
    net = mlp()
    prototype = VariationalBottleneck()
    ibreg.inject(net, {"*": prototype}, example=torch.randn(2, 4))
    assert [layer.in_features for layer in ibreg.bottlenecks(net).values()] == [8, 8, 3]
    assert prototype.in_features is None


def test_a_callable_builds_a_layer_for_each_host():
    seen = []

    def build(name, module):
        seen.append((name, module))
        return VariationalBottleneck(module.out_features, beta=0.1)

    net = mlp()
    ibreg.inject(net, {"**e*d": build, "stem": build})
    assert seen == [("head", net.head), ("stem", net.stem)]
    assert net.head.bottleneck.in_features == 3
    assert net.stem.bottleneck.in_features == 8


def test_a_pattern_never_matches_inside_a_bottleneck():
    net = nn.Sequential(nn.Linear(4, 8), VariationalBottleneck(8), nn.Linear(8, 3))
    ibreg.inject(net, {"**": lambda name, module: VariationalBottleneck(module.out_features)})
    assert list(ibreg.bottlenecks(net)) == ["0.bottleneck", "1", "2.bottleneck"]
    with pytest.raises(ValueError, match=r"no module matches '1\.\*\*'"):
        ibreg.inject(net, {"1.**": VariationalBottleneck(8)})
    for name in ("1", "1.encoder", "0.bottleneck", "0.bottleneck.encoder"):
        with pytest.raises(ValueError, match=f"no module '{name}'"):
            ibreg.inject(net, {name: VariationalBottleneck(8)})


# Sizes, dtype, device, mode


def test_a_wrong_size_without_an_example_is_an_error_at_the_first_call():
    net = ibreg.inject(mlp(), {"relu": VariationalBottleneck(9)})
    with pytest.raises(ValueError, match=r"bottleneck relu.bottleneck takes 9 features on axis 1, got .*\(2, 8\)"):
        ibreg.Regularized(net)(torch.randn(2, 4))


def test_the_example_may_be_a_tuple_or_keywords():
    def forward(module, x, *, scale):
        return module.stem(x) * scale

    for example in ({"x": torch.randn(2, 4), "scale": 2.0},):
        net = ibreg.inject(Wrap(forward, stem=nn.Linear(4, 8)), {"stem": VariationalBottleneck()}, example=example)
        assert net.stem.bottleneck.in_features == 8
    net = nn.Bilinear(4, 5, 6)
    ibreg.inject(net, {"": VariationalBottleneck()}, example=(torch.randn(2, 4), torch.randn(2, 5)))
    assert net.bottleneck.in_features == 6


def test_the_example_leaves_modes_and_statistics_alone():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout())
    net[1].eval()
    before = copy.deepcopy(net.state_dict())
    generator = torch.get_rng_state()
    ibreg.candidates(net, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(generator, torch.get_rng_state())
    ibreg.inject(net, {"1": VariationalBottleneck()}, example=torch.randn(3, 4))
    assert [module.training for module in net] == [True, False, True]
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert not net[1].bottleneck.training


def test_a_host_whose_calls_differ_in_size_takes_no_bottleneck():
    """The ReLU of torchvision's bottleneck blocks runs on 64, 64 and 256 channels."""
    net = torchvision.models.resnet50(weights=None)
    x = torch.randn(1, 3, 32, 32)
    assert "layer1.0.relu" not in {candidate.name for candidate in ibreg.candidates(net, x)}
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"'layer1.0.relu' is called with 64, 256 features"):
        ibreg.inject(net, {"layer1.0.relu": VariationalBottleneck()}, example=x)
    with pytest.raises(ValueError, match=r"'layer1.0.relu' takes 64 features on axis 1, got .* 256, "):
        ibreg.inject(net, {"layer1.0.relu": VariationalBottleneck(64)}, example=x)
    assert_unchanged(net, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("name", ["stem", "relu", ""])
def test_the_layer_has_the_dtype_of_its_host(dtype, name):
    net = ibreg.inject(mlp(dtype), {name: VariationalBottleneck(3 if name == "" else 8, beta=1e-8)})
    (layer,) = ibreg.bottlenecks(net).values()
    assert layer.encoder.weight.dtype == dtype
    assert layer.beta.dtype == torch.float32
    assert layer.beta.item() == pytest.approx(1e-8)
    output, penalty, _ = ibreg.Regularized(net)(torch.randn(2, 4, dtype=dtype))
    assert output.dtype == dtype
    assert penalty.dtype == torch.float32


def test_the_layer_is_on_the_meta_device_if_its_host_is():
    net = ibreg.inject(mlp(device="meta"), {"relu": VariationalBottleneck(8)})
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    net.to_empty(device="cpu")
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert net.relu.bottleneck.beta.item() == pytest.approx(1e-3)
    assert torch.isfinite(outputs(net, torch.randn(2, 4))).all()


@pytest.mark.parametrize("mode", [True, False])
def test_the_layer_has_the_mode_of_its_host(mode):
    net = mlp().train(mode)
    assert ibreg.inject(net, {"relu": VariationalBottleneck(8)}).relu.bottleneck.training is mode


# Errors, which change nothing


class TakenByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottleneck = nn.Linear(4, 4)

    def forward(self, x):
        return self.bottleneck(x)


class TakenByMethod(nn.Linear):
    def bottleneck(self):
        return None


class OwnForward(nn.Sequential):
    def forward(self, x):
        return super().forward(x)


def double(layer):
    return {"stem": layer, "relu": layer}


X = torch.zeros(2, 4)


def hosting(function):
    return lambda: nn.Sequential(OrderedDict(host=Wrap(function)))


REFUSALS = {
    "unknown name": (mlp, {"stm": VariationalBottleneck(8)}, None, ValueError, "no module 'stm'.*closest: stem"),
    "name far from all": (mlp, {"zzzzzz": VariationalBottleneck(8)}, None, ValueError, "it has .*stem, relu, head"),
    "pattern without match": (
        mlp,
        {"*.stem": VariationalBottleneck(8)},
        None,
        ValueError,
        r"no module matches '\*.stem'",
    ),
    "second entry is wrong": (
        mlp,
        {"stem": VariationalBottleneck(8), "nope": VariationalBottleneck(8)},
        None,
        ValueError,
        "'nope'",
    ),
    "named twice": (mlp, {"stem": VariationalBottleneck(8), "s*": VariationalBottleneck(8)}, None, ValueError, "twice"),
    "one layer, two hosts": (
        mlp,
        double(VariationalBottleneck(8)),
        None,
        ValueError,
        "one layer for 'stem' and 'relu'",
    ),
    "wrong size": (mlp, {"stem": VariationalBottleneck(9)}, X, ValueError, "'stem' takes 9 features"),
    "no size, no example": (
        mlp,
        {"stem": VariationalBottleneck()},
        None,
        ValueError,
        "'stem' has no in_features: pass",
    ),
    "host not called": (
        lambda: Wrap(lambda module, x: x, idle=nn.Linear(4, 4)),
        {"idle": VariationalBottleneck()},
        X,
        ValueError,
        "the example did not call it",
    ),
    "identity of another size": (
        mlp,
        {"relu": VariationalBottleneck(), "stem": VariationalBottleneck(out_features=5, start="identity")},
        X,
        ValueError,
        "must be in_features=8 with start='identity'",
    ),
    "attribute bottleneck": (
        lambda: nn.Sequential(TakenByName()),
        {"0": VariationalBottleneck(4)},
        None,
        ValueError,
        r"'0' \(TakenByName\) has an attribute 'bottleneck'",
    ),
    "method bottleneck": (
        lambda: nn.Sequential(TakenByMethod(4, 4)),
        {"0": VariationalBottleneck(4)},
        None,
        ValueError,
        "has an attribute 'bottleneck'",
    ),
    "own forward": (
        lambda: nn.Sequential(OwnForward(nn.Linear(4, 4))),
        {"0": VariationalBottleneck(4)},
        None,
        ValueError,
        "OwnForward that runs its elements itself: name one",
    ),
    "ModuleList": (
        lambda: Wrap(lambda module, x: module.items[0](x), items=nn.ModuleList([nn.Linear(4, 4)])),
        {"items": VariationalBottleneck(4)},
        None,
        ValueError,
        "'items' is a ModuleList",
    ),
    "ModuleDict": (
        lambda: nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(4, 4)})}),
        {"a": VariationalBottleneck(4)},
        None,
        ValueError,
        "'a' is a ModuleDict",
    ),
    "dict output": (
        hosting(lambda module, x: {"logits": x}),
        {"host": VariationalBottleneck(4)},
        X,
        TypeError,
        r"'host' \(Wrap\) returns dict",
    ),
    "list output": (hosting(lambda m, x: [x]), {"host": VariationalBottleneck(4)}, X, TypeError, "returns list"),
    "integer output": (
        hosting(lambda module, x: x.long()),
        {"host": VariationalBottleneck(4)},
        X,
        TypeError,
        "returns a torch.int64 tensor, a bottleneck takes a floating-point tensor",
    ),
    "integer first": (
        hosting(lambda module, x: (x.long(), x)),
        {"host": VariationalBottleneck(4)},
        X,
        TypeError,
        "a torch.int64 tensor first in a tuple",
    ),
    "tuple first": (
        hosting(lambda module, x: ((x, x), x)),
        {"host": VariationalBottleneck(4)},
        X,
        TypeError,
        "returns tuple first in a tuple",
    ),
    "empty tuple": (hosting(lambda m, x: ()), {"host": VariationalBottleneck(4)}, X, TypeError, "returns tuple"),
    "None": (hosting(lambda m, x: None), {"host": VariationalBottleneck()}, X, TypeError, "returns NoneType"),
    "vector output": (
        hosting(lambda m, x: x[:, 0]),
        {"host": VariationalBottleneck(2)},
        X,
        ValueError,
        r"shape \(2,\)",
    ),
    "vector output, no size": (
        hosting(lambda module, x: x[:, 0]),
        {"host": VariationalBottleneck()},
        X,
        ValueError,
        r"'host' takes .batch, features.*shape \(2,\)",
    ),
    "dim out of range": (mlp, {"stem": VariationalBottleneck(8, dim=2)}, X, ValueError, "dim=2"),
    "dim out of range, no size": (mlp, {"stem": VariationalBottleneck(dim=2)}, X, ValueError, "dim=2"),
    "dim is the batch, no size": (mlp, {"stem": VariationalBottleneck(dim=-2)}, X, ValueError, "dim=-2"),
    "packed sequence": (
        hosting(lambda module, x: pack_padded_sequence(x.unsqueeze(-1), [4, 4], batch_first=True)),
        {"host": VariationalBottleneck(1)},
        X,
        TypeError,
        "returns PackedSequence",
    ),
    "class": (
        mlp,
        {"stem": VariationalBottleneck},
        None,
        TypeError,
        "the value for 'stem' must be a bottleneck such as",
    ),
    "number for a name": (
        mlp,
        {0: VariationalBottleneck(8)},
        None,
        TypeError,
        "the name of a module must be a string such as '0' or 'layer3",
    ),
    "string": (mlp, {"stem": "variational"}, None, TypeError, "got 'variational'"),
    "another module": (mlp, {"stem": nn.Linear(8, 8)}, None, TypeError, r"got Linear\(in_features=8"),
    "callable without layer": (
        mlp,
        {"stem": lambda name, module: None},
        None,
        TypeError,
        "must return a bottleneck, got None",
    ),
    "layer on meta": (
        mlp,
        {"relu": VariationalBottleneck(8), "stem": VariationalBottleneck(8, device="meta")},
        None,
        ValueError,
        "'stem' is on the meta device",
    ),
    "example that the model refuses": (mlp, {"stem": VariationalBottleneck()}, torch.zeros(2, 5), RuntimeError, "mat1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_injection_changes_nothing(case):
    build, layers, example, error, message = REFUSALS[case]
    net = build()
    before = snapshot(net)
    sizes = [getattr(layer, "in_features", None) for layer in layers.values()]
    with pytest.raises(error, match=message):
        ibreg.inject(net, layers, example=example)
    assert_unchanged(net, before)
    assert [getattr(layer, "in_features", None) for layer in layers.values()] == sizes


def test_injecting_twice_after_one_host_is_refused():
    for model in (mlp(), nn.Sequential(OrderedDict(stem=nn.Sequential(nn.Linear(4, 8))))):
        ibreg.inject(model, {"stem": VariationalBottleneck(8)})
        before = snapshot(model)
        with pytest.raises(ValueError, match=r"'stem' has a bottleneck already: eject"):
            ibreg.inject(model, {"stem": VariationalBottleneck(8)})
        assert_unchanged(model, before)


def test_a_layer_of_the_model_is_not_injected_again():
    net = ibreg.inject(mlp(), {"stem": VariationalBottleneck(8)})
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"one layer for 'stem.bottleneck' and 'relu'"):
        ibreg.inject(net, {"relu": net.stem.bottleneck})
    assert_unchanged(net, before)


@pytest.mark.parametrize(
    "function",
    [
        lambda module, x: {"logits": x},
        lambda module, x: (x.long(), x),
        lambda module, x: pack_padded_sequence(x.unsqueeze(-1), [4, 4], batch_first=True),
        lambda module, x: None,
    ],
)
def test_without_an_example_a_wrong_output_is_an_error_at_the_call(function):
    net = ibreg.inject(Wrap(function), {"": VariationalBottleneck(4)})
    with pytest.raises(TypeError, match=r"Wrap.* returns .*choose another module"):
        net(X)


def test_packed_sequences_of_recurrent_networks_are_refused():
    net = ibreg.inject(nn.LSTM(4, 6, batch_first=True), {"": VariationalBottleneck(6)})
    packed = pack_padded_sequence(torch.randn(3, 5, 4), [5, 3, 2], batch_first=True)
    with pytest.raises(TypeError, match=r"LSTM.* returns PackedSequence first in a tuple"):
        net(packed)


def test_named_tuples_keep_their_type():
    Result = namedtuple("Result", "code note")
    net = ibreg.inject(Wrap(lambda module, x: Result(x, "kept")), {"": VariationalBottleneck(4)})
    result = outputs(net, X)
    assert type(result) is Result
    assert result.note == "kept"


# Wrapped models


def test_injection_reaches_through_regularized():
    net = ibreg.inject(mlp(), {"stem": VariationalBottleneck(8)})
    model = ibreg.Regularized(net)
    assert ibreg.inject(model, {"head": VariationalBottleneck(3)}) is model
    assert list(ibreg.bottlenecks(model)) == ["stem.bottleneck", "head.bottleneck"]
    assert set(rates(model(X).logs)) == {"stem.bottleneck/rate", "head.bottleneck/rate"}


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def wrapped_part(wrap):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    net[0] = wrap(net[0])
    return net


WRAPPERS = {
    "compile": lambda net: torch.compile(net, backend="eager"),
    "DDP": nn.parallel.DistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.usefixtures("process_group")
def test_wrapped_models_are_refused(wrapper):
    wrap = WRAPPERS[wrapper]
    regularized = ibreg.Regularized(ibreg.inject(mlp(), {"stem": VariationalBottleneck(8)}))
    for model in (wrap(mlp()), wrapped_part(wrap), wrap(regularized)):
        before = snapshot(model)
        with pytest.raises(ValueError, match="inject first, then"):
            ibreg.inject(model, {"relu": VariationalBottleneck(8)})
        assert_unchanged(model, before)
    # Reading and running are not refused.
    assert list(ibreg.bottlenecks(wrap(regularized))) == ["stem.bottleneck"]
    assert [candidate.name for candidate in ibreg.candidates(wrap(mlp()), X)] == ["stem", "relu", "head"]


def test_a_model_compiled_in_place_is_refused():
    net = mlp()
    net.compile(backend="eager")
    with pytest.raises(ValueError, match="inject first, then compile"):
        ibreg.inject(net, {"relu": VariationalBottleneck(8)})


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_refused():
    scripted = torch.jit.script(mlp())
    for model in (scripted, nn.Sequential(scripted, nn.ReLU())):
        with pytest.raises(ValueError, match="TorchScript"):
            ibreg.inject(model, {"": VariationalBottleneck(3)})


def test_a_compiled_model_runs_without_its_ejected_bottleneck():
    net = mlp()
    plain = outputs(net, X + 1)
    compiled = torch.compile(ibreg.inject(net, {"stem": VariationalBottleneck(8)}), backend="eager")
    assert not torch.equal(outputs(compiled, X + 1), plain)
    ibreg.eject(compiled)
    assert torch.equal(outputs(compiled, X + 1), plain)


def test_out_proj_of_attention_is_named_by_the_warning():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ibreg.inject(net, {"self_attn.out_proj": VariationalBottleneck(8)})
    model = ibreg.Regularized(net)
    with pytest.warns(UserWarning, match=r"self_attn.out_proj.bottleneck was not called.*functional call"):
        model(torch.randn(2, 3, 8))


# Keys, copies, ejection


def test_checkpoints_from_before_and_after_the_injection_load_strictly():
    torch.manual_seed(0)
    pretrained = mlp().state_dict()
    x = torch.randn(2, 4)
    net = ibreg.inject(mlp(), {"stem": VariationalBottleneck(8), "": VariationalBottleneck(3)})
    start = {key: value.clone() for key, value in net.state_dict().items() if "bottleneck" in key}
    net.load_state_dict(pretrained, strict=True)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in (pretrained | start).items())
    for assign in (False, True):
        again = ibreg.inject(mlp(), {"stem": VariationalBottleneck(8), "": VariationalBottleneck(3)})
        again.load_state_dict(net.state_dict(), strict=True, assign=assign)
        assert torch.equal(outputs(again, x), outputs(net, x))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        mlp().load_state_dict(net.state_dict(), strict=True)


def test_a_checkpoint_whose_bottleneck_is_cut_short_is_an_error():
    net = ibreg.inject(mlp(), {"stem": VariationalBottleneck(8)})
    for key in [key for key in net.state_dict() if "bottleneck" in key]:
        cut = {name: value for name, value in net.state_dict().items() if name != key}
        with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{key}"'):
            net.load_state_dict(cut, strict=True)


def test_a_checkpoint_of_the_backbone_itself_cut_short_is_an_error():
    net = ibreg.inject(mlp(), {"stem": VariationalBottleneck(8)})
    cut = {key: value for key, value in mlp().state_dict().items() if key != "head.bias"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "head.bias"'):
        net.load_state_dict(cut, strict=True)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved])
def test_copies_have_their_own_bottleneck(duplicate):
    net = ibreg.inject(torchvision.models.resnet18(num_classes=5), {"layer3": VariationalBottleneck(256)})
    ibreg.inject(net, {"avgpool": VariationalBottleneck(512)})
    x = torch.randn(1, 3, 32, 32)
    before = outputs(net, x)
    twin = duplicate(net)
    assert torch.equal(outputs(twin, x), before)
    with torch.no_grad():
        twin.avgpool.bottleneck.encoder.weight.zero_()
    assert not torch.equal(outputs(twin, x), before)
    assert torch.equal(outputs(net, x), before)
    ibreg.eject(twin)
    assert not ibreg.bottlenecks(twin)
    assert torch.equal(outputs(net, x), before)


def test_ejection_does_not_remove_bottlenecks_of_the_models_own_code():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(4, 8)
            self.bottleneck = VariationalBottleneck(8)

        def forward(self, x):
            return self.bottleneck(self.stem(x))

    written = nn.Sequential(OrderedDict(stem=nn.Linear(4, 8), bottleneck=VariationalBottleneck(8), relu=nn.ReLU()))
    for net in (Net(), written):
        with pytest.raises(ValueError, match="no bottleneck was injected"):
            ibreg.eject(net)
        ibreg.inject(net, {"stem": VariationalBottleneck(8)})
        ibreg.eject(net)
        assert list(ibreg.bottlenecks(net)) == ["bottleneck"]


def test_ejection_leaves_other_hooks_and_allows_another_injection():
    net, heard = mlp(), []
    net.stem.register_forward_hook(lambda module, args, output: heard.append(output.shape))
    layer = VariationalBottleneck(8)
    for _ in range(2):
        ibreg.inject(net, {"stem": layer})
        assert ibreg.eject(net) is net
    net(X)
    assert heard == [(2, 8)]
    assert not ibreg.bottlenecks(net)
    assert len(net.stem._forward_hooks) == 1


def test_ejection_gives_the_same_bits_and_keys():
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_small(weights=None)
    before = snapshot(net.eval())
    plain = outputs(net, IMAGE)
    layers = {"features.*": lambda name, module: VariationalBottleneck(), "avgpool": VariationalBottleneck()}
    ibreg.inject(net, layers, example=IMAGE)
    assert len(ibreg.bottlenecks(net)) == 14
    assert not torch.equal(outputs(net, IMAGE), plain)
    ibreg.eject(net)
    assert_unchanged(net, before)
    assert torch.equal(outputs(net, IMAGE), plain)


# Candidates


def test_candidates_of_resnet18():
    by_name = {
        candidate.name: candidate for candidate in ibreg.candidates(torchvision.models.resnet18(weights=None), IMAGE)
    }
    assert by_name["avgpool"] == ("avgpool", "AdaptiveAvgPool2d", (2, 512, 1, 1), 512)
    assert by_name["layer3"] == ("layer3", "Sequential", (2, 256, 4, 4), 256)
    assert by_name["fc"] == ("fc", "Linear", (2, 1000), 1000)
    assert "" not in by_name


@pytest.mark.parametrize(
    "build",
    [torchvision.models.resnet18, pytest.param(torchvision.models.mobilenet_v3_small, marks=pytest.mark.slow)],
)
def test_every_candidate_takes_a_bottleneck_of_its_size(build):
    net = build(weights=None, num_classes=4)
    x = torch.randn(1, 3, 32, 32)
    candidates = ibreg.candidates(net, x)
    assert len(candidates) > 40
    for candidate in candidates:
        layer = VariationalBottleneck(candidate.features, 1 if candidate.features > 64 else None)
        if layer.out_features == layer.in_features or layer.in_features <= 64:
            ibreg.inject(net, {candidate.name: layer})
            calls = counted(net)
            outputs(net, x)
            assert calls[f"{candidate.name}.bottleneck"] >= 1, candidate
            ibreg.eject(net)
        else:  # a large one: only the sizes are checked
            ibreg.inject(net, {candidate.name: VariationalBottleneck(candidate.features)}, example=x)
            ibreg.eject(net)


def test_a_host_is_no_candidate():
    net = ibreg.inject(mlp(), {"stem": VariationalBottleneck(8)})
    assert [candidate.name for candidate in ibreg.candidates(net, X)] == ["relu", "head"]


# Training


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def test_identity_start_preserves_the_accuracy_of_a_trained_network(digits):
    torch.manual_seed(0)
    x, y = digits
    train, test = slice(0, 1200), slice(1200, None)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(15):
        for rows in torch.randperm(1200).split(64):
            loss = nn.functional.cross_entropy(net(x[train][rows]), y[train][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def accuracy(logits):
        return (logits.argmax(1) == y[test]).double().mean().item()

    before = accuracy(ibreg.predict(net, x[test]))
    assert before > 0.9
    ibreg.inject(net, {"1": VariationalBottleneck(128, start="identity")})
    assert abs(accuracy(ibreg.predict(net, x[test])) - before) <= 0.005
    assert abs(accuracy(ibreg.predict(net, x[test], draws=8, seed=0)) - before) <= 0.02


def resnet(start="default"):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None, num_classes=5)
    return ibreg.inject(net, {"avgpool": VariationalBottleneck(512, beta=1e-3, start=start)})


BATCH = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3])


def train_step(net, call, steps=1):
    """The loop of the README: returns the losses, with the same noise for every way to run the model."""
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = criterion(call(BATCH, target=LABELS), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_resnet18_eagerly():
    net = resnet()
    before = net.avgpool.bottleneck.encoder.weight.clone()
    losses = train_step(net, ibreg.Regularized(net), steps=4)
    assert losses[-1] < losses[0]
    assert not torch.equal(net.avgpool.bottleneck.encoder.weight, before)
    assert type(outputs(net, BATCH)) is torch.Tensor


@pytest.mark.slow
def test_training_resnet18_compiled():
    eager, compiled = resnet(), resnet()
    expected = train_step(eager, ibreg.Regularized(eager), steps=2)
    call = torch.compile(ibreg.Regularized(compiled), fullgraph=True, backend="aot_eager")
    assert train_step(compiled, call, steps=2) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(call.eval()(BATCH).output, eager.eval()(BATCH))


def test_training_resnet18_under_autocast():
    net = resnet()
    model = ibreg.Regularized(net)
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    with torch.autocast("cpu", torch.bfloat16):
        result = model(BATCH, target=LABELS)
        loss = criterion(result, LABELS)
    assert result.output.dtype == torch.bfloat16
    assert result.penalty.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
    torch.manual_seed(0)
    reference = ibreg.Regularized(resnet())(BATCH).penalty
    torch.testing.assert_close(result.penalty, reference, rtol=0.05, atol=0)


def test_training_resnet18_with_checkpointed_stages():
    plain, recomputed = resnet(), resnet()
    for net in (plain, recomputed):  # its statistics would move twice, once for each run of the forward
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0
    ibreg.inject(plain, {"layer3": VariationalBottleneck(256), "layer4.0.conv1": VariationalBottleneck(512)})
    ibreg.inject(recomputed, {"layer3": VariationalBottleneck(256), "layer4.0.conv1": VariationalBottleneck(512)})
    recomputed.load_state_dict(plain.state_dict())
    for stage in (recomputed.layer3, recomputed.layer4):
        forward = stage.forward
        stage.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=False)
    assert train_step(recomputed, ibreg.Regularized(recomputed)) == train_step(plain, ibreg.Regularized(plain))
    for ours, theirs in zip(recomputed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_accumulated_gradients_are_those_of_the_large_batch():
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=5, norm_layer=nn.Identity)
    ibreg.inject(net, {"avgpool": VariationalBottleneck(512, beta=1e-2)})
    # Statistics of a batch and fresh noise are no sums over samples: without them the two must agree.
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(0.5)
        net.avgpool.bottleneck.encoder.bias[512:].fill_(-40.0)
    model = ibreg.Regularized(net)
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    criterion(model(BATCH), LABELS).backward()
    whole = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    for x, y in zip(BATCH.split(1), LABELS.split(1), strict=True):
        (criterion(model(x), y) / 4).backward()
    assert sum(gradient.abs().sum() for gradient in whole) > 0
    for gradient, parameter in zip(whole, net.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "host", [nn.Conv1d(3, 6, 3), nn.BatchNorm1d(3), nn.GroupNorm(3, 3)], ids=lambda h: type(h).__name__
)
def test_channels_of_a_sequence_are_not_confused_with_its_length(host):
    model, example = nn.Sequential(host, nn.ReLU()), torch.randn(4, 3, 10)
    with pytest.raises(ValueError, match=r"has its . channels on axis 1 .* pass dim=1"):
        ibreg.inject(model, {"0": VariationalBottleneck()}, example=example)
    assert list(model.state_dict()) == list(nn.Sequential(host, nn.ReLU()).state_dict())
    ibreg.inject(model, {"0": VariationalBottleneck(dim=1)}, example=example)
    assert model.eval()(example).shape[1] == ibreg.bottlenecks(model)["0.bottleneck"].in_features
