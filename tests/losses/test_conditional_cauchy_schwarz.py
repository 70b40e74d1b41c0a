"""The mixed loss against numpy and its parts, as a criterion of `Penalized`, and its errors."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import ibreg
from ibreg.functional import conditional_cs_divergence
from ibreg.losses import ConditionalCauchySchwarz


def regression(batch=40, values=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, generator=generator)
    y = x[:, :1].sin().expand(-1, values) + 0.3 * torch.randn(batch, values, generator=generator)
    return x, y, y + 0.5 * torch.randn(batch, values, generator=generator)


def reference(x, y, y_hat, share, scale_x, scale_y):
    """The default mode with relative bandwidths, in float64 numpy."""
    x, y, y_hat = (tensor.double().numpy() for tensor in (x, y, y_hat))

    def kernel(a, b, h):
        return np.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * h**2))

    h_x, h_y = (scale * math.sqrt(2 * rows.var(0, ddof=1).sum()) for scale, rows in ((scale_x, x), (scale_y, y)))
    weights = kernel(x, x, h_x)
    r = 1 / weights.sum(1)
    weights = r[:, None] * weights * r
    across, *own = ((weights * kernel(a, b, h_y)).sum() for a, b in ((y_hat, y), (y, y), (y_hat, y_hat)))
    return share * ((y - y_hat) ** 2).mean() + (1 - share) * np.log(own[0] * own[1] / across**2)


@pytest.mark.parametrize("values", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_against_numpy(share, values):
    x, y, y_hat = regression(values=values)
    measured = ConditionalCauchySchwarz(share=share)(y_hat, y, x)
    np.testing.assert_allclose(measured, reference(x, y, y_hat, share, 0.1, 1.0), rtol=1e-5)
    measured = ConditionalCauchySchwarz(share=share, bandwidth_x=("rms", 0.4), bandwidth_y=("rms", 2))(y_hat, y, x)
    np.testing.assert_allclose(measured, reference(x, y, y_hat, share, 0.4, 2.0), rtol=1e-5)


@pytest.mark.parametrize("mode", ["symmetric", "symmetric_root", "paper", "released"])
def test_modes_and_shares(mode):
    x, y, y_hat = regression()
    divergence = conditional_cs_divergence(x, y, y_hat, bandwidth_y=("rms", 1.0), mode=mode)
    torch.testing.assert_close(ConditionalCauchySchwarz(share=0, mode=mode)(y_hat, y, x), divergence)
    squared_error = nn.functional.mse_loss(y_hat, y)
    torch.testing.assert_close(ConditionalCauchySchwarz(share=1, mode=mode)(y_hat, y, x), squared_error)
    torch.testing.assert_close(
        ConditionalCauchySchwarz(mode=mode, block_size=7)(y_hat, y, x), (squared_error + divergence) / 2
    )


def test_a_missing_axis_is_an_axis_of_one():
    x, y, y_hat = regression()
    criterion = ConditionalCauchySchwarz()
    values = {criterion(a, b, x).item() for a in (y_hat, y_hat.squeeze(1)) for b in (y, y.squeeze(1))}
    assert len(values) == 1


def test_the_divergence_does_not_depend_on_scales():
    x, y, y_hat = regression()
    criterion = ConditionalCauchySchwarz(share=0)
    expected = criterion(y_hat, y, x)
    for scale in (1e-4, 1e4):
        torch.testing.assert_close(criterion(scale * y_hat, scale * y, x / scale), expected, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_predictions_alone():
    x, y, y_hat = (tensor.requires_grad_() for tensor in regression())
    ConditionalCauchySchwarz()(y_hat, y, x).backward()
    assert y_hat.grad.abs().sum() > 0
    assert x.grad is None
    assert y.grad is None


@pytest.mark.parametrize("error", [0.0, 1e3, 1e9])
def test_finite_at_any_error_and_at_collapse(error):
    x, y, _ = regression()
    for inputs, target in ((x, y), (torch.zeros_like(x), y), (x, torch.zeros_like(y))):
        prediction = (target + error).requires_grad_()
        loss = ConditionalCauchySchwarz()(prediction, target, inputs)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(prediction.grad).all()
        assert (loss.item() == 0) == (error == 0)


def test_as_a_criterion_of_penalized():
    x, y, _ = regression()
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), ibreg.NonlinearBottleneck(16, 4), nn.Linear(4, 1))
    model, task_loss = ibreg.Regularized(net, draws=2), ConditionalCauchySchwarz()
    criterion = ibreg.Penalized(task_loss)
    output = model(x)
    expected = torch.stack([task_loss(draw, y, x) for draw in output.output]).mean() + output.penalty
    torch.testing.assert_close(criterion(output, y, inputs=x), expected)
    with pytest.raises(ValueError, match=r"call criterion\(output, target, inputs\)"):
        criterion(output, y)


def test_training_fits():
    x, y, _ = regression(batch=200)
    net = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer, criterion = torch.optim.Adam(net.parameters(), 0.01), ConditionalCauchySchwarz()
    for _ in range(200):
        loss = criterion(net(x), y, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net(x) - y).square().mean() < 0.12


def test_autocast_and_half_precision():
    x, y, y_hat = regression()
    criterion = ConditionalCauchySchwarz()
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(y_hat.bfloat16(), y, x)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, criterion(y_hat.bfloat16().float(), y, x))


def test_compiled():
    x, y, y_hat = regression()
    torch._dynamo.reset()
    compiled = torch.compile(ConditionalCauchySchwarz(), fullgraph=True, backend="aot_eager")
    gradients = []
    for criterion in (ConditionalCauchySchwarz(), compiled):
        prediction = y_hat.clone().requires_grad_()
        gradients.append(torch.autograd.grad(criterion(prediction, y, x), prediction)[0])
    torch.testing.assert_close(*gradients)


def test_repr_names_the_options():
    assert repr(ConditionalCauchySchwarz(share=0.25)) == (
        "ConditionalCauchySchwarz(share=0.25, bandwidth_x=('rms', 0.1), bandwidth_y=('rms', 1.0), mode='symmetric')"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, r"share must be a finite number of at least 0 and at most 1, got 1.5"),
        ({"mode": "symetric"}, "mode must be one of 'symmetric'"),
        ({"bandwidth_x": 0}, "bandwidth_x must be a number above 0"),
        ({"bandwidth_y": ("rms", -1)}, "bandwidth_y must be a number above 0"),
        ({"block_size": 0}, "block_size must be None or an integer of at least 1"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ConditionalCauchySchwarz(**options)


@pytest.mark.parametrize(
    ("output", "target", "inputs", "message"),
    [
        (
            torch.zeros(4, 2),
            torch.zeros(4),
            torch.zeros(4, 3),
            r"the same shape \(batch, values\), got \(4, 2\) and \(4, 1\)",
        ),
        (
            torch.zeros(4),
            torch.zeros(3),
            torch.zeros(4, 3),
            r"the same shape \(batch, values\), got \(4, 1\) and \(3, 1\)",
        ),
        (torch.zeros(4), torch.zeros(4), torch.zeros(5, 3), "the same number of samples, got 5, 4 and 4"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), torch.zeros(4, 3), "the target must be floating point"),
        (torch.zeros(4), torch.zeros(4), torch.zeros(4, 3, dtype=torch.uint8), "the input must be floating point"),
        (torch.zeros(0), torch.zeros(0), torch.zeros(0, 3), "at least one sample, got an empty batch"),
    ],
)
def test_input_errors(output, target, inputs, message):
    with pytest.raises(ValueError, match=message):
        ConditionalCauchySchwarz()(output, target, inputs)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_values_are_an_error(position, bad):
    x, y, y_hat = regression()
    arguments = [y_hat, y, x]
    arguments[position][3, 0] = bad
    with pytest.raises(RuntimeError, match="ConditionalCauchySchwarz got NaN or infinite values"):
        ConditionalCauchySchwarz()(*arguments)
