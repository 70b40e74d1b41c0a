"""Copies, state dicts and construction of every registered bottleneck."""

import copy
import pickle

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ibreg
from ibreg import registry
from tests.contract.table import (
    BATCH,
    CONCEPTS,
    FEATURES,
    assert_equal,
    build,
    code_features,
    every_case,
    every_name,
    needed,
    network,
    step,
    tensors,
)


@every_case
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
@pytest.mark.parametrize("used", [False, True])
def test_copies_are_equal_and_independent(name, options, copied, used):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    if used:
        output = model(x, **needed(layer))  # its graph is alive while the model is copied
    twin = copied(model)
    left, right = step(model, x, needed(layer)), step(twin, x, needed(layer))
    assert_equal(left[:2], right[:2])
    assert_equal(left[2], right[2])
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert layer.beta != 0
    if used:
        output.penalty.backward()


@every_case
def test_no_state_outside_the_state_dict(name, options):
    layer = build(name, options)
    model = ibreg.Regularized(network(layer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        step(model, torch.randn(BATCH, FEATURES), needed(layer), seed)
        optimizer.step()
    layer.beta.fill_(0.03)

    fresh = ibreg.build(name, **layer.config())
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(BATCH, FEATURES)
    results = []
    for module in (layer, fresh):
        torch.manual_seed(7)
        results.append(module.train().measure(x, **needed(layer)))
    assert torch.equal(results[0].z, results[1].z)
    assert torch.equal(results[0].penalty, results[1].penalty)
    assert fresh.beta == layer.beta
    assert torch.equal(layer.eval()(x), fresh.eval()(x))


@every_case
def test_a_state_dict_without_the_layer_loads_and_an_incomplete_one_does_not(name, options):
    layer = build(name, options)
    net = network(layer)
    before = tensors(layer)
    net.load_state_dict({key: value + 1 for key, value in tensors(net).items() if not key.startswith("1.")})
    assert_equal(list(before.values()), list(tensors(layer).values()))
    state = tensors(net)
    del state["1.beta"]
    if len(layer.state_dict()) > 1:
        with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"1.beta\""):
            net.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict({**tensors(net), "1.other": torch.zeros(())})


@every_case
def test_config_round_trip(name, options):
    layer = build(name, options, beta=0.0123)
    config = layer.config()
    assert config.keys() == registry.options(name).keys()
    assert config["beta"] == 0.0123
    assert ibreg.build(name, **config).config() == config
    layer.beta.fill_(1 / 3)
    assert ibreg.build(name, **layer.config()).beta == layer.beta
    assert repr(layer).startswith(type(layer).__name__)


@every_case
def test_moving_average_of_weights(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    before = [p.detach().clone() for p in model.parameters()]
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    layer.beta.fill_(0.5)
    average.update_parameters(model)
    for old, mean in zip(before, average.module.parameters(), strict=True):
        torch.testing.assert_close(mean, old + 0.1)
    assert all(value == 0.5 for key, value in average.state_dict().items() if key.endswith("beta"))
    average.eval()
    assert torch.equal(average(x).output, ibreg.predict(average, x))


@every_case
def test_meta_device(name, options):
    layer = build(name, options, device="meta")
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    expected = build(name, options)
    torch.manual_seed(3)
    expected.reset_parameters()
    assert_equal(list(expected.state_dict().values()), list(layer.state_dict().values()))
    assert layer.beta.item() == pytest.approx(registry.options(name)["beta"])


@every_name
def test_built_bare(name):
    layer = ibreg.build(name)
    assert isinstance(layer, ibreg.Bottleneck)
    assert (layer.registry_name, type(layer)) == (name, registry.find(name))
    assert layer.config() == registry.options(name)
    if layer.sized:
        with pytest.raises(ValueError, match="has no in_features: pass them, or inject it with example=x"):
            layer.eval()(torch.zeros(2, FEATURES))
        if "concepts" in registry.options(name):
            with pytest.raises(ValueError, match="has no concepts: pass their number"):
                layer.materialize(FEATURES)
            layer = ibreg.build(name, concepts=CONCEPTS)
        layer.materialize(FEATURES)
        assert layer.eval()(torch.zeros(2, FEATURES)).shape == (2, code_features(layer))
