"""Calls of every registered bottleneck: checkpoints, repeated calls, warnings, transformations."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import ibreg
from tests.contract.table import (
    BATCH,
    FEATURES,
    NEEDS_MORE_SAMPLES,
    assert_equal,
    build,
    build_first,
    every_case,
    every_name,
    needed,
    network,
    step,
    tensors,
)


class Checkpointed(nn.Module):
    def __init__(self, net, use_reentrant):
        super().__init__()
        self.net = net
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.use_reentrant)


@every_case
def test_non_reentrant_checkpoint_is_bit_equal(name, options):
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    net = network(layer)
    plain, thrifty = ibreg.Regularized(net), ibreg.Regularized(Checkpointed(copy.deepcopy(net), use_reentrant=False))
    if layer.reads_scope:
        with pytest.raises(RuntimeError, match="leave it out of the checkpointed part"):
            thrifty(x, **needed(layer))
        return
    left, right = step(plain, x, needed(layer)), step(thrifty, x, needed(layer))
    assert_equal(left[:2], right[:2])
    assert_equal(left[2], right[2])
    assert_equal(list(tensors(net).values()), list(tensors(thrifty.model.net).values()))


@every_case
def test_reentrant_checkpoint_raises(name, options):
    layer = build(name, options)
    model = ibreg.Regularized(Checkpointed(network(layer), use_reentrant=True))
    with pytest.raises(RuntimeError, match=r"bottleneck net\.1 .*use_reentrant=False"):
        model(torch.randn(BATCH, FEATURES, requires_grad=True), **needed(layer))


@every_case
def test_two_calls_count_twice(name, options):
    class Twice(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) + self.layer(x)

    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    torch.manual_seed(2)
    alone = copy.deepcopy(layer)
    calls = [alone.measure(x, **needed(layer)) for _ in range(2)]
    torch.manual_seed(2)
    _, penalty, logs = ibreg.Regularized(Twice(layer))(x, **needed(layer))
    torch.testing.assert_close(penalty, layer.beta * (calls[0].penalty + calls[1].penalty))
    for quantity, value in logs.items():
        torch.testing.assert_close(value, (calls[0].logs[quantity[6:]] + calls[1].logs[quantity[6:]]) / 2)


@every_case
def test_warns_once_without_a_scope(name, options):
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    layer.train()
    with pytest.warns(UserWarning, match="training without its penalty: wrap the model, model = ibreg") as caught:
        layer(x)
    assert caught[0].filename == __file__
    layer(x)


@every_name
def test_no_warning_while_recomputing(name):
    layer, x = build_first(name), torch.randn(BATCH, FEATURES)
    if not layer.reads_scope:
        step(ibreg.Regularized(Checkpointed(network(layer), use_reentrant=False)), x, needed(layer))


@every_case
def test_missing_targets_are_an_error_that_says_what_to_pass(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    for need in layer.needs:
        if need == "inputs":  # the first positional tensor stands in
            continue
        given = {key: value for key, value in needed(layer).items() if key != need}
        with pytest.raises(ValueError, match=rf"bottleneck 1 needs .*call model\(x, .*{need}=\.\.\."):
            model(x, **given)
    assert torch.isfinite(model(x, **needed(layer)).penalty)


@every_case
def test_functional_call_and_func_grad(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters):
        output, penalty, _ = functional_call(model, parameters, (x,), needed(layer))
        return output.square().mean() + penalty

    torch.manual_seed(0)
    measured = grad(loss)(parameters)
    output, penalty, gradients = step(copy.deepcopy(model), x, needed(layer))
    torch.manual_seed(0)
    torch.testing.assert_close(loss(parameters), output.square().mean() + penalty)
    for expected, name_ in zip(gradients, parameters, strict=True):
        torch.testing.assert_close(measured[name_], expected)


@every_case
def test_gradients_of_each_sample(name, options):
    layer = build(name, options)
    if name in NEEDS_MORE_SAMPLES:
        pytest.skip("a penalty of the batch has no part that belongs to one sample")
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters, x, further):
        further = {key: value.unsqueeze(0) for key, value in further.items()}
        output, penalty, _ = functional_call(model, parameters, (x.unsqueeze(0),), further)
        return output.square().mean() + penalty

    gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(parameters, x, needed(layer))
    for key, value in parameters.items():
        assert gradients[key].shape == (BATCH, *value.shape)
        assert torch.isfinite(gradients[key]).all()
