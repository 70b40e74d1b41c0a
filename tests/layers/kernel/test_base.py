"""The base of kernel bottlenecks: one row per sample, shared Gram matrices, scale-free codes, options."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

import ibreg
from ibreg import CauchySchwarzBottleneck, HSICBottleneck, Regularized
from ibreg.layers.kernel import base as kernel
from ibreg.layers.kernel import hsic as hsic_layer
from ibreg.layers.kernel.base import scale_free

BATCH, FEATURES = 12, 5


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz"])
@pytest.mark.parametrize("positions", ["flatten", "mean"])
def test_tokens_and_maps_become_one_row_per_sample(name, positions):
    layer = ibreg.build(name, positions=positions)
    tokens = torch.randn(BATCH, 3, FEATURES)
    rows = tokens.flatten(1) if positions == "flatten" else tokens.mean(1)
    further = {"inputs": torch.randn(BATCH, 4), "target": torch.arange(BATCH) % 3}
    expected = layer.measure(rows, **further).penalty
    torch.testing.assert_close(layer.measure(tokens, **further).penalty, expected)
    maps = tokens.mT.reshape(BATCH, FEATURES, 3, 1)
    torch.testing.assert_close(layer.measure(maps, **further).penalty, expected)


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz"])
@pytest.mark.parametrize("positions", ["flatten", "mean"])
def test_padding_does_not_count(name, positions):
    layer = ibreg.build(name, positions=positions)
    tokens, mask = torch.randn(BATCH, 4, FEATURES), torch.tensor([True, True, True, False]).expand(BATCH, 4)
    further = {"inputs": torch.randn(BATCH, 4), "target": torch.arange(BATCH) % 3}
    expected = layer.measure(tokens[:, :3], **further).penalty
    torch.testing.assert_close(layer.measure(tokens, mask=mask, **further).penalty, expected)
    with pytest.raises(ValueError, match="the mask must have the shape"):
        layer.measure(tokens, mask=mask[:, :2], **further)


@pytest.mark.parametrize(
    ("name", "options", "module", "function"),
    [
        ("cauchy_schwarz", {}, kernel, "tiled_gram"),
        ("hsic", {"lambda_y": 0.0}, kernel, "tiled_gram"),
        ("hsic", {"estimator": "debiased", "lambda_y": 0.0}, hsic_layer, "normalized_factor"),
    ],
)
def test_layers_of_a_model_share_gram_matrices(monkeypatch, name, options, module, function):
    made, original = [], getattr(module, function)
    monkeypatch.setattr(module, function, lambda x, **settings: made.append(x) or original(x, **settings))
    layers = (ibreg.build(name, **options) for _ in range(2))
    net = nn.Sequential(*(module for layer in layers for module in (nn.Linear(FEATURES, FEATURES), layer)))
    model, x = ibreg.Regularized(net), torch.randn(BATCH, FEATURES)
    model(x)
    assert sum(each is x for each in made) == 1
    model(x)
    assert sum(each is x for each in made) == 2


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz"])
def test_integer_inputs_are_an_error_that_says_what_to_pass(name):
    model = ibreg.Regularized(nn.Sequential(nn.Embedding(7, FEATURES), ibreg.build(name)))
    tokens, target = torch.arange(BATCH) % 7, torch.arange(BATCH) % 3
    with pytest.raises(ValueError, match=r"bottleneck 1 compares codes with the inputs.*int64.*inputs=embeddings"):
        model(tokens, target=target)
    assert torch.isfinite(model(tokens, target=target, inputs=torch.randn(BATCH, 2)).penalty)


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz"])
def test_a_small_last_batch_of_an_evaluation_logs_nothing(name):
    layer = ibreg.build(name)
    further = {"inputs": torch.randn(1, 4), "target": torch.zeros(1, dtype=torch.long)}
    assert layer.eval().measure(torch.randn(1, FEATURES), **further).logs == {}
    with pytest.raises(
        ValueError,
        match=r"HSICBottleneck.*at least 4 samples, got 1|CauchySchwarzBottleneck.*at least 2 samples, got 1",
    ):
        layer.train().measure(torch.randn(1, FEATURES), **further)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hsic", {"positions": "sum"}, "positions must be one of 'flatten', 'mean'"),
        ("hsic", {"block_size": 0}, "block_size must be None or an integer of at least 1"),
        ("hsic", {"bandwidth_t": -1.0}, "bandwidth_t must be a number above 0"),
        ("hsic", {"estimator": "best"}, "estimator must be one of 'biased'"),
        ("hsic", {"kernel_y": "cubic"}, "kernel_y must be None or one of 'gaussian'"),
        ("hsic", {"lambda_y": -1.0}, "lambda_y must be a finite number of at least 0"),
        ("hsic", {"lambda_x": 0.0, "lambda_y": 0.0}, "lambda_x or lambda_y must be above 0"),
        ("hsic", {"estimator": "normalized", "gather": True}, "inverts whole Gram matrices"),
        ("cauchy_schwarz", {"bandwidth_x": ("rms", 0.0)}, "bandwidth_x must be a number above 0"),
        ("cauchy_schwarz", {"start": "zero"}, "start must be one of 'default', 'identity'"),
        ("cauchy_schwarz", {"out_features": 0}, "at least 1"),
        ("cauchy_schwarz", {"out_features": 2.5}, "out_features must be None or an integer of at least 1"),
        ("cauchy_schwarz", {"stochastic": "yes"}, "stochastic must be True or False, got 'yes'"),
        ("hsic", {"in_features": "8"}, "in_features must be .*an integer of at least 1"),
        ("hsic", {"in_features": -1}, "in_features must be .*an integer of at least 1"),
        ("hsic", {"lambda_x": "abc"}, "lambda_x must be a finite number of at least 0, got 'abc'"),
        ("hsic", {"lambda_x": float("nan")}, "lambda_x must be a finite number"),
        ("hsic", {"gather": 1}, "gather must be True or False"),
        ("hsic", {"dim": 0}, "dim must be None or an integer other than 0"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        ibreg.build(name, **options)


@given(st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_scale_free_rows_have_no_scale_and_no_gradient_along_it(scale, shift):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    moved = (scale * rows + shift).requires_grad_()
    free = scale_free(moved)
    torch.testing.assert_close(free - free.mean(0), scale_free(rows) - scale_free(rows).mean(0))
    pair = torch.pdist(free).square().mean().sqrt()
    torch.testing.assert_close(pair, torch.ones_like(pair))
    (gradient,) = torch.autograd.grad(torch.tanh(free - free.mean(0)).square().sum(), moved)
    inner = (gradient * (moved - moved.mean(0))).sum()
    assert abs(inner) < 1e-9 * gradient.norm() * moved.norm()


def test_scale_free_gradients():
    rows = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, 3, dtype=torch.float64)
    assert gradcheck(lambda x: ((scale_free(x) - scale_free(x).mean(0)) * weights).sin(), rows)
    collapsed = torch.full((6, 3), 2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(scale_free(collapsed).sum(), collapsed)
    assert torch.equal(gradient, torch.ones_like(collapsed))


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz"])
def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer(name):
    model, x = ibreg.Regularized(nn.Sequential(nn.Linear(4, 4), ibreg.build(name))), torch.randn(BATCH, 4)
    inputs = torch.where(torch.arange(4) == 2, torch.nan, x)
    with pytest.raises(RuntimeError, match="bottleneck 1 compares codes with inputs that have NaN"):
        model(x, target=torch.arange(BATCH) % 3, inputs=inputs)


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz", "nonlinear", "variational"])
def test_an_additive_attention_mask_is_an_error(name):
    layer, mask = ibreg.build(name, in_features=FEATURES), torch.zeros(BATCH, 3)
    mask[:, 2] = -torch.inf
    with pytest.raises(RuntimeError, match="a mask must be 1 where a position counts and 0 elsewhere"):
        layer.measure(torch.randn(BATCH, 3, FEATURES), target=torch.arange(BATCH) % 3, mask=mask)


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz", "nonlinear"])
def test_a_single_process_gathers_its_own_batch(name):
    """One configuration runs on a laptop and on a cluster, and a run resumes with fewer processes."""
    further = {"inputs": torch.randn(BATCH, 4), "target": torch.arange(BATCH) % 3}
    x, results = torch.randn(BATCH, FEATURES, requires_grad=True), []
    for gather in (False, True):
        torch.manual_seed(0)
        penalty = ibreg.build(name, in_features=FEATURES, gather=gather).measure(x, **further).penalty
        results.append((penalty, *torch.autograd.grad(penalty, x)))
    assert results[0][1].any()
    assert all(map(torch.equal, *results))


@pytest.mark.filterwarnings("ignore:bottleneck 0 is in eval mode while the model trains")
@pytest.mark.parametrize("estimator", ["unbiased", "normalized"])
def test_a_gram_matrix_that_a_layer_in_eval_computed_first_has_a_gradient(estimator):
    """Layers share the Gram matrix of the inputs; the first one to ask for it may need no gradient."""

    def gradient(first_trains):
        torch.manual_seed(0)
        x = torch.randn(16, 3, 4, requires_grad=True)
        layers = [HSICBottleneck(estimator=estimator) for _ in range(2)]
        model = Regularized(nn.Sequential(layers[0], nn.Flatten(), nn.Linear(12, 3), layers[1])).train()
        layers[0].train(first_trains).beta.fill_(0)
        model(x, target=torch.arange(16) % 3).penalty.backward()
        return x.grad

    torch.testing.assert_close(gradient(False), gradient(True))


@pytest.mark.parametrize("name", ["hsic", "cauchy_schwarz"])
def test_masked_positions_of_the_inputs_have_no_effect(name):
    mask = torch.arange(5) < 3
    x, code = torch.randn(16, 5, 6), torch.randn(16, 5, 4)
    layer = ibreg.build(name)
    penalties = [
        layer.measure(code, inputs=inputs, target=torch.arange(16) % 3, mask=mask.expand(16, 5)).penalty
        for inputs in (x, torch.where(mask.unsqueeze(1), x, 99.0))
    ]
    assert torch.equal(*penalties)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("estimator", ["unbiased", "cka", "debiased"])
def test_a_target_that_is_not_finite_is_an_error(bad, estimator):
    with pytest.raises(RuntimeError, match="NaN or infinite values in its target"):
        HSICBottleneck(estimator=estimator).measure(torch.randn(8, 3), target=torch.full((8,), bad))


def test_too_narrow_and_too_wide_kernels_warn_once():
    x = torch.randn(64, 784)
    layer = CauchySchwarzBottleneck(bandwidth_x=1.0)
    with pytest.warns(UserWarning, match="the inputs of a batch are all different.*wider bandwidth_x"):
        assert layer.measure(x[:, :4], inputs=x).logs["inputs_similarity"] < 1e-5
    layer.measure(x[:, :4], inputs=x)  # a second warning would be an error here
    with pytest.warns(UserWarning, match="the codes of a batch are all alike.*narrower bandwidth_t"):
        HSICBottleneck(bandwidth_t=1e6).measure(x, target=torch.arange(64) % 3)
