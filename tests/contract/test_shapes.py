"""Shapes, modes, gradients and dtypes of every registered bottleneck."""

import copy

import pytest
import torch
from torch import nn

import ibreg
from tests.contract.table import (
    BATCH,
    FEATURES,
    NEEDS_MORE_SAMPLES,
    assert_equal,
    build,
    code_features,
    every_case,
    every_rank,
    needed,
    network,
    tensors,
)


@every_case
@every_rank
def test_shape_type_and_mode(name, options, shape):
    layer, x = build(name, options), torch.randn(shape, requires_grad=True)
    expected = list(shape)
    expected[layer.feature_axis(x)] = code_features(layer)
    out = layer.measure(x, **needed(layer))
    assert list(out.z.shape) == expected
    assert (out.penalty.shape, out.penalty.dtype) == ((), torch.float32)
    assert out.penalty.requires_grad
    for value in out.logs.values():
        assert value.shape == ()
        assert not value.requires_grad

    before = tensors(layer.eval())
    first, second = (layer.measure(x, **needed(layer)) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert torch.equal(first.z, layer(x))
    assert list(first.z.shape) == expected
    assert first.penalty.item() == second.penalty.item() == 0
    assert not first.penalty.requires_grad
    assert first.logs.keys() == out.logs.keys()
    assert_equal(list(before.values()), list(tensors(layer).values()))


@every_case
def test_targets_are_optional_outside_training(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    model.eval()
    assert model(x).penalty == 0
    model.train()
    with torch.no_grad():
        assert torch.isfinite(model(x).penalty)


@every_case
@every_rank
def test_every_parameter_gets_a_gradient(name, options, shape):
    layer = build(name, options)
    out = layer.measure(torch.randn(shape, requires_grad=True), **needed(layer))
    ((out.z - 1).square().mean() + out.penalty).backward()  # a code may start at 0, where a square has no slope
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


AWKWARD = {
    "constant": torch.ones(BATCH, FEATURES),
    "zero": torch.zeros(BATCH, FEATURES),
    "duplicated": torch.linspace(-2, 2, FEATURES * 2).reshape(2, FEATURES).repeat(BATCH // 2, 1),
    "large": 1e4 * torch.linspace(-2, 2, BATCH * FEATURES).sin().reshape(BATCH, FEATURES),
    "small": 1e-4 * torch.linspace(-2, 2, BATCH * FEATURES).sin().reshape(BATCH, FEATURES),
}


@every_case
@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.filterwarnings("ignore:the rate of bottleneck .* is above 0.98 of log")
@pytest.mark.filterwarnings("ignore:by the kernel of bottleneck .* of a batch are all")
def test_awkward_inputs_stay_finite(name, options, kind):
    layer = build(name, options)
    x = AWKWARD[kind].clone().requires_grad_()
    out = layer.measure(x, **needed(layer))
    (out.z.square().mean() + out.penalty).backward()
    assert torch.isfinite(out.penalty)
    assert all(torch.isfinite(p.grad).all() for p in (x, *layer.parameters()))
    assert all(torch.isfinite(value).all() for value in tensors(layer).values())


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_in_place_operations_after_the_layer_change_neither_penalty_nor_logs(name, options, training):
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    model = ibreg.Regularized(nn.Sequential(nn.Linear(FEATURES, FEATURES), layer)).train(training)
    followed = ibreg.Regularized(nn.Sequential(*copy.deepcopy(model.model), nn.ReLU(inplace=True))).train(training)
    results = []
    for each in (model, followed):
        torch.manual_seed(1)
        results.append(each(x, **needed(layer)))
    assert torch.equal(results[1].output, results[0].output.relu())
    assert torch.equal(results[0].penalty, results[1].penalty)
    assert results[0].logs == results[1].logs
    results[1].output.sum().backward()


@every_case
def test_the_penalty_reads_no_parameter(name, options):
    # Sharded parameters are freed when the model's forward is over.
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    model = ibreg.Regularized(nn.Sequential(layer))

    def poison(module, args, output):
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))

    torch.manual_seed(1)
    expected = copy.deepcopy(model)(x, **needed(layer)).penalty
    model.model.register_forward_hook(poison)
    torch.manual_seed(1)
    assert torch.equal(model(x, **needed(layer)).penalty, expected)


@every_case
def test_batch_of_one(name, options):
    layer, x = build(name, options), torch.randn(1, FEATURES, requires_grad=True)
    if name in NEEDS_MORE_SAMPLES:
        with pytest.raises(ValueError, match="samples"):
            layer.measure(x, **needed(layer, batch=1))
        return
    out = layer.measure(x, **needed(layer, batch=1))
    out.penalty.backward()
    assert torch.isfinite(out.penalty)
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@every_case
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_nan_is_an_error_that_names_the_layer_and_poisons_nothing(name, options, bad, training):
    layer = build(name, options)
    x = torch.randn(BATCH, FEATURES)
    x[3, 2] = bad
    before = tensors(layer.train(training))
    with pytest.raises(RuntimeError, match=f"bottleneck {type(layer).__name__}.*NaN or infinite"):
        layer.measure(x, **needed(layer))
    model = ibreg.Regularized(nn.ModuleDict({"body": nn.Sequential(nn.Identity(), layer)})["body"]).train(training)
    with pytest.raises(RuntimeError, match="bottleneck 1 got NaN or infinite"):
        model(x, **needed(layer))
    assert_equal(list(before.values()), list(tensors(layer).values()))


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_penalty_in_float32(name, options, dtype):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    references = [model(x, **needed(layer)).penalty.detach() for _ in range(2)]
    with torch.autocast("cpu", dtype):
        output, penalty, _ = model(x, **needed(layer))
        loss = output.float().square().mean() + penalty
    loss.backward()
    assert output.dtype == dtype
    assert penalty.dtype == torch.float32
    if torch.equal(*references):  # without noise in it, the penalty moves by the 8 bits of its features alone
        torch.testing.assert_close(penalty, references[0], rtol=0.02, atol=1e-6)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_beta_stays_float32(name, options, dtype):
    layer = build(name, options, beta=1e-8)
    model = ibreg.Regularized(network(layer)).to(dtype)
    assert "beta" in layer.state_dict()
    assert (layer.beta.shape, layer.beta.dtype) == ((), torch.float32)
    assert layer.beta.item() == torch.tensor(1e-8).item()
    assert all(parameter.dtype == dtype for parameter in layer.parameters())
    assert model(torch.randn(BATCH, FEATURES, dtype=dtype), **needed(layer)).penalty.dtype == torch.float32


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_at_construction(name, options, dtype):
    layer = build(name, options, dtype=dtype)
    assert layer.beta.dtype == torch.float32
    assert all(parameter.dtype == dtype for parameter in layer.parameters())
