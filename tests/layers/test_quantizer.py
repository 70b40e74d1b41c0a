"""The adapter of vector-quantize-pytorch against that package, and what it adds."""

import sys

import pytest
import torch
from torch import nn

import ibreg

KINDS = ("finite_scalar", "lookup_free", "residual_vector")


@pytest.fixture(params=KINDS)
def layer(request):
    pytest.importorskip("vector_quantize_pytorch", reason="needs the extra `quantizers`")
    torch.manual_seed(0)
    return ibreg.build("quantizer", in_features=16, quantizer=request.param)


def test_outputs_indices_and_losses_are_those_of_the_package(layer):
    layer.eval()
    x = torch.randn(8, 5, 16)
    code, indices, *losses = layer.codes(x)
    z, state = layer.transform(x)
    assert torch.equal(z, code)
    assert torch.equal(state.indices, indices.reshape(8, 5, -1).to(state.indices.dtype))
    expected = losses[0].reshape(-1) if losses else torch.zeros(1)
    torch.testing.assert_close(state.losses, expected)


@pytest.mark.parametrize("shape", [(6, 16), (6, 5, 16), (6, 16, 3, 4)])
def test_shapes_gradients_and_penalty(layer, shape):
    x = torch.randn(shape, requires_grad=True)
    out = layer.measure(x)
    assert out.z.shape == x.shape
    assert out.penalty.dim() == 0
    assert 0 < out.logs["used"] <= 1
    (out.z.square().sum() + out.penalty).backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert bool(out.penalty == 0) == (layer.quantizer == "finite_scalar")


def test_used_is_the_fraction_of_codes_per_stage(layer):
    out = layer.measure(torch.ones(4, 16))  # equal rows: one code in each stage
    assert out.logs["used"] == pytest.approx(1 / int(layer.codes.codebook_size))


@pytest.mark.parametrize("layer", ["lookup_free", "residual_vector"], indirect=True)
def test_padding_does_not_contribute_to_the_penalty(layer):
    layer.eval()
    x = torch.randn(4, 6, 16)
    mask = torch.arange(6) < torch.tensor([[6], [3], [2], [1]])
    filled = torch.where(mask.unsqueeze(-1), x, 100.0)
    layer.train()
    losses = []
    for rows in (x, filled):
        scope_layer = ibreg.build("quantizer", in_features=16, quantizer=layer.quantizer)
        scope_layer.load_state_dict(layer.state_dict())
        losses.append(scope_layer.measure(rows, mask=mask).penalty.detach())
    torch.testing.assert_close(*losses)


def test_saved_and_loaded_with_a_backbone(layer, tmp_path):
    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))

    model = ibreg.inject(network(), {"1": layer}).eval()
    ibreg.save_bottlenecks(model, tmp_path / "layer.safetensors")
    loaded = ibreg.load_bottlenecks(network(), tmp_path / "layer.safetensors").eval()
    x = torch.randn(4, 3)
    assert torch.equal(model(x), loaded(x))


def test_trains_in_a_model(layer):
    model = ibreg.Regularized(nn.Sequential(nn.Linear(3, 16), layer, nn.Linear(16, 2)))
    criterion = ibreg.Penalized(nn.CrossEntropyLoss())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.randn(64, 3)
    y = (x[:, 0] > 0).long()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert (model.eval()(x).output.argmax(1) == y).float().mean() > 0.9


def test_options_that_do_not_fit(layer):
    with pytest.raises(ValueError, match="does not take"):
        ibreg.build("quantizer", in_features=16, quantizer=layer.quantizer, options={"color": "red"})
    with pytest.raises(ValueError, match="finite_scalar"):
        ibreg.build("quantizer", in_features=16, quantizer="vq")
    with pytest.raises(ValueError, match="options must be None or a mapping from names of options"):
        ibreg.build("quantizer", options=["levels"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"ibreg\[quantizers\]"):
        ibreg.build("quantizer", in_features=16)


def test_it_is_built_by_name_but_not_listed():
    assert ibreg.build("quantizer").quantizer == "finite_scalar"  # without a size, it does not need the package
    assert "quantizer" not in ibreg.names()
