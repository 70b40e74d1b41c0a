"""Cauchy-Schwarz divergences against float64 numpy; the symmetric modes are divergences, the published one is not."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.func import grad

from ibreg.functional import conditional_cs_divergence, cs_divergence

MODES = ["symmetric", "symmetric_root", "paper", "released"]
DIVERGENCES = ["symmetric", "symmetric_root"]


def kernel(a, b, h):
    return np.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * h**2))


def rms(x):
    """Root mean squared distance of two different rows."""
    squares = ((x[:, None] - x) ** 2).sum(-1)
    return math.sqrt(squares.sum() / (len(x) * (len(x) - 1)))


def cs_reference(p, q, h):
    across = kernel(p, q, h).mean()
    return math.log(kernel(p, p, h).mean() * kernel(q, q, h).mean() / across**2)


def conditional_reference(x, y, y_hat, h_x, h_y, mode):
    """The sums as in the formulas, with one loop over samples."""
    if mode == "released":
        return ((y_hat - y) ** 2).sum() / (h_y**2 * math.log(2))
    kernel_x = kernel(x, x, h_x)
    r = 1 / kernel_x.sum(1)

    def log_sum(kernel_y):
        total = 0.0
        for j in range(len(x)):
            if mode == "paper":
                total += (kernel_x[j] * kernel_y[j]).sum() / kernel_x[j].sum() ** 2
            elif mode == "symmetric":
                total += r[j] * (kernel_x[j] * r * kernel_y[j]).sum()
            else:
                total += math.sqrt(r[j]) * (kernel_x[j] * np.sqrt(r) * kernel_y[j]).sum()
        return math.log(total)

    return log_sum(kernel(y, y, h_y)) + log_sum(kernel(y_hat, y_hat, h_y)) - 2 * log_sum(kernel(y_hat, y, h_y))


def numerical_gradient(function, at, step=1e-6):
    result = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[index] += step
        below[index] -= step
        result[index] = (function(above) - function(below)) / (2 * step)
    return result


def regression(batch=40, features=3, values=1, error=0.5, dtype=torch.float32):
    x = torch.randn(batch, features, dtype=dtype)
    y = x[:, :1].sin().expand(-1, values) + 0.3 * torch.randn(batch, values, dtype=dtype)
    return x, y, y + error * torch.randn(batch, values, dtype=dtype)


def value_and_gradient(x, y, y_hat, **options):
    y_hat = y_hat.clone().requires_grad_()
    value = conditional_cs_divergence(x, y, y_hat, **options)
    return value.detach(), *torch.autograd.grad(value, y_hat)


# ---- unconditional


@pytest.mark.parametrize("h", [0.3, 1.0, 5.0, 50.0])
def test_cs_divergence_against_numpy(h):
    p, q = torch.randn(30, 4), 0.5 + 1.2 * torch.randn(20, 4)
    measured = cs_divergence(p, q, bandwidth=h)
    assert measured.dtype == torch.float32
    np.testing.assert_allclose(measured, cs_reference(p.double().numpy(), q.double().numpy(), h), rtol=1e-5)


def test_cs_divergence_of_gaussians():
    # The kernel of bandwidth h makes N(m, s^2) a Gaussian of variance s^2 + h^2 / 2 in the formula of two densities.
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 4000, 1, generator=generator, dtype=torch.float64)
    q = 1 + 2 * q
    h, v, w = 0.7, 1.0, 4.0
    expected = 0.5 * math.log((v + w + h**2) ** 2 / ((2 * v + h**2) * (2 * w + h**2))) + 1 / (v + w + h**2)
    assert cs_divergence(p, q, bandwidth=h, block_size=500).item() == pytest.approx(expected, rel=0.05)


def test_cs_divergence_relative_bandwidth_is_of_both_samples():
    p, q = torch.randn(12, 3), 2 + torch.randn(9, 3)
    together = torch.cat((p, q)).double().numpy()
    expected = cs_reference(p.double().numpy(), q.double().numpy(), 0.5 * rms(together))
    np.testing.assert_allclose(cs_divergence(p, q, bandwidth=("rms", 0.5)), expected, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.floats(-3, 3), st.integers(0, 1000))
def test_cs_divergence_is_a_divergence(first, second, features, log_h, seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(first, features, generator=generator, dtype=torch.float64)
    q = torch.randn(second, features, generator=generator, dtype=torch.float64)
    h = math.exp(log_h)
    value = cs_divergence(p, q, bandwidth=h)
    assert value >= -1e-12
    torch.testing.assert_close(cs_divergence(q, p, bandwidth=h), value)
    torch.testing.assert_close(cs_divergence(p.flip(0), q + 0, bandwidth=h), value)
    torch.testing.assert_close(cs_divergence(7 * p + 3, 7 * q + 3, bandwidth=7 * h), value)
    torch.testing.assert_close(cs_divergence(p.repeat(2, 1), q, bandwidth=h), value)
    assert abs(cs_divergence(p, p.flip(0), bandwidth=h)) < 1e-12


def test_cs_divergence_far_apart_and_gradcheck():
    p, q = torch.randn(5, 2).requires_grad_(), torch.randn(4, 2) + 1e4
    value = cs_divergence(p, q, bandwidth=1.0)
    value.backward()
    assert value.item() == pytest.approx((p.detach().unsqueeze(1) - q).square().sum(-1).min().item(), rel=1e-4)
    assert torch.isfinite(p.grad).all()
    pair = [torch.randn(size, 2, dtype=torch.float64, requires_grad=True) for size in (5, 4)]
    for block_size in (None, 2):
        assert gradcheck(lambda p, q, size=block_size: cs_divergence(p, q, bandwidth=0.8, block_size=size), pair)


# ---- conditional: the formula


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", [1, 2])
@pytest.mark.parametrize(("h_x", "h_y"), [(0.3, 0.5), (1.0, 1.0), (5.0, 3.0)])
def test_float32_against_numpy(mode, values, h_x, h_y):
    batch = regression(values=values)
    value, gradient = value_and_gradient(*batch, bandwidth_x=h_x, bandwidth_y=h_y, mode=mode)
    x, y, y_hat = (tensor.double().numpy() for tensor in batch)
    np.testing.assert_allclose(value, conditional_reference(x, y, y_hat, h_x, h_y, mode), rtol=1e-5)
    expected = numerical_gradient(lambda at: conditional_reference(x, y, at, h_x, h_y, mode), y_hat)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert value.dtype == gradient.dtype == torch.float32


@pytest.mark.parametrize("mode", DIVERGENCES)
@pytest.mark.parametrize("error", [1e-3, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_small_and_large_errors_in_float32(mode, error, shift):
    x, y, y_hat = (tensor + shift for tensor in regression(batch=200, features=64, error=error))
    value, gradient = value_and_gradient(x, y, y_hat, mode=mode)
    wide = [tensor.double() for tensor in (x, y, y_hat)]
    expected_value, expected_gradient = value_and_gradient(*wide, mode=mode)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5 * expected_gradient.abs().max())


def test_close_predictions_have_no_cancellation():
    # Second order in the error e: |v - u|^2 / |u|^2 less its part along u, by the kernel's second derivative.
    x, y, _ = regression(dtype=torch.float64)
    direction = torch.randn_like(y)
    values = [conditional_cs_divergence(x, y, y + error * direction).item() for error in (1e-2, 1e-3, 1e-4, 1e-5)]
    for larger, smaller in pairwise(values):
        assert smaller / larger == pytest.approx(1e-2, rel=5e-2)


def test_default_bandwidths():
    x, y, y_hat = regression(batch=20)
    expected = conditional_reference(
        *(tensor.double().numpy() for tensor in (x, y, y_hat)), 0.1 * rms(x.double().numpy()), 1.0, "symmetric"
    )
    np.testing.assert_allclose(conditional_cs_divergence(x, y, y_hat), expected, rtol=1e-5)
    relative = conditional_cs_divergence(x, y, y_hat, bandwidth_y=("rms", 0.5))
    scaled = conditional_cs_divergence(1e4 * x, 1e-4 * y, 1e-4 * y_hat, bandwidth_y=("rms", 0.5))
    torch.testing.assert_close(relative, scaled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block_size", [None, 3])
def test_gradcheck_in_all_arguments(mode, block_size):
    x, y, y_hat = (tensor.requires_grad_() for tensor in regression(batch=6, values=2, dtype=torch.float64))

    def value(x, y, y_hat):
        return conditional_cs_divergence(x, y, y_hat, bandwidth_x=1.3, mode=mode, block_size=block_size)

    if mode == "released":
        assert gradcheck(lambda y, y_hat: value(x.detach(), y, y_hat), (y, y_hat))
    else:
        assert gradcheck(value, (x, y, y_hat))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block_size", [1, 7, 1000])
def test_blocks_change_nothing(mode, block_size):
    batch = regression(batch=50)
    for left, right in zip(
        value_and_gradient(*batch, mode=mode),
        value_and_gradient(*batch, mode=mode, block_size=block_size),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_axis_is_an_axis_of_one(mode):
    x, y, y_hat = regression()
    flat, column = y.squeeze(1), y
    values = {
        conditional_cs_divergence(x, target, prediction, mode=mode).item()
        for target in (flat, column)
        for prediction in (y_hat.squeeze(1), y_hat)
    }
    assert len(values) == 1
    assert conditional_cs_divergence(x[:, 0], y, y_hat) == conditional_cs_divergence(x[:, :1], y, y_hat)


# ---- conditional: which modes are divergences


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(DIVERGENCES),
    st.integers(1, 10),
    st.floats(-4, 3),
    st.floats(-4, 3),
    st.floats(-6, 3),
    st.integers(0, 1000),
)
def test_symmetric_modes_are_divergences(mode, batch, log_h_x, log_h_y, log_error, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 2, generator=generator)
    y, noise = torch.randn(2, batch, generator=generator)
    y_hat = y + math.exp(log_error) * noise
    options = {"bandwidth_x": math.exp(log_h_x), "bandwidth_y": math.exp(log_h_y), "mode": mode}
    value = conditional_cs_divergence(x, y, y_hat, **options)
    assert value >= -1e-12
    assert abs(conditional_cs_divergence(x, y, y.clone(), **options)) < 1e-12
    torch.testing.assert_close(conditional_cs_divergence(x, y_hat, y, **options), value)
    order = torch.randperm(batch, generator=generator)
    torch.testing.assert_close(conditional_cs_divergence(x[order], y[order], y_hat[order], **options), value)


def descend(x, y, steps=2000, **options):
    """Optimizes free predictions from 0 by Adam; returns the lowest value and the last root mean squared error."""
    y_hat = torch.zeros_like(y, requires_grad=True)
    optimizer = torch.optim.Adam([y_hat], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    lowest = torch.tensor(math.inf)
    for _ in range(steps):
        value = conditional_cs_divergence(x, y, y_hat, **options)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        lowest = torch.minimum(lowest, value.detach())
    return lowest.item(), (y_hat.detach() - y).square().mean().sqrt().item()


def noisy_sine():
    x = torch.randn(32, 8)
    return x, x[:, 0].sin() + 0.5 * torch.randn(32)


@pytest.mark.parametrize(
    ("mode", "bandwidth_x", "bandwidth_y", "reaches"),
    [
        ("symmetric", ("rms", 0.1), 1.0, True),
        pytest.param("symmetric", 1.5, 2.0, True, marks=pytest.mark.slow),
        pytest.param("symmetric", ("rms", 1.0), 1.0, False, marks=pytest.mark.slow),
        pytest.param("symmetric", ("rms", 0.1), 0.1, False, marks=pytest.mark.slow),
        pytest.param("symmetric_root", 1.5, 1.0, True, marks=pytest.mark.slow),
    ],
)
def test_descent_never_goes_below_zero(mode, bandwidth_x, bandwidth_y, reaches):
    lowest, error = descend(*noisy_sine(), bandwidth_x=bandwidth_x, bandwidth_y=bandwidth_y, mode=mode)
    assert lowest >= -1e-6
    if reaches:
        assert error < 1e-3


def test_the_published_mode_goes_below_zero_and_drifts_where_the_symmetric_one_converges():
    x, y = noisy_sine()
    options = {"bandwidth_x": 1.5, "bandwidth_y": 1.0}
    assert abs(conditional_cs_divergence(x, y, y, mode="paper", **options)) < 1e-6
    lowest, error = descend(x, y, steps=700, mode="paper", **options)
    assert lowest < -0.05
    assert error > 1
    _, error = descend(x, y, steps=700, mode="symmetric", **options)
    assert error < 1e-4


# ---- limits


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("y", "y_hat"),
    [
        (torch.zeros(16), torch.zeros(16)),
        (torch.zeros(16), torch.full((16,), 3.0)),
        (torch.linspace(-1, 1, 16), torch.zeros(16)),
        (torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16) + 1e3),
        (torch.linspace(-1, 1, 16), -1e3 * torch.linspace(-1, 1, 16).sign()),
        (torch.linspace(-1, 1, 16), torch.full((16,), 1e15)),
    ],
    ids=["collapse", "two points", "constant", "shift", "opposite", "very far"],
)
@pytest.mark.parametrize("x", [torch.zeros(16, 2), torch.linspace(-1, 1, 4).repeat(4)], ids=["constant", "duplicates"])
def test_finite_at_collapse_and_squared_errors_of_a_million(mode, x, y, y_hat):
    value, gradient = value_and_gradient(x, y, y_hat, mode=mode)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    if mode in DIVERGENCES:
        assert value >= 0 or abs(value) < 1e-6


def test_distant_predictions_have_a_gradient_towards_the_targets():
    x, y, _ = regression()
    _, gradient = value_and_gradient(x, y, y + 1e3)
    assert (gradient.sum() > 0).item()
    assert gradient.sum() == pytest.approx(2e3, rel=0.01)


def test_one_sample():
    value, gradient = value_and_gradient(torch.zeros(1, 3), torch.zeros(1), torch.full((1,), 2.0), bandwidth_y=0.5)
    assert value == pytest.approx(16)
    assert gradient == pytest.approx(16)


@pytest.mark.parametrize("mode", MODES)
def test_transformations_and_compilation(mode):
    x, y, y_hat = regression(batch=9)

    def loss(y_hat, x, y):
        return conditional_cs_divergence(x, y, y_hat, mode=mode)

    value, expected = value_and_gradient(x, y, y_hat, mode=mode)
    torch.testing.assert_close(grad(loss)(y_hat, x, y), expected)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    free = y_hat.clone().requires_grad_()
    measured = compiled(free, x, y)
    torch.testing.assert_close(measured.detach(), value)
    torch.testing.assert_close(*torch.autograd.grad(measured, free), expected)
    torch.testing.assert_close(compiled(y_hat[:5], x[:5], y[:5]), loss(y_hat[:5], x[:5], y[:5]))


def test_float32_for_half_precision_and_autocast():
    x, y, y_hat = regression()
    assert conditional_cs_divergence(x.half(), y.half(), y_hat.half()).dtype == torch.float32
    assert conditional_cs_divergence(x, y, y_hat.bfloat16()).dtype == torch.float32
    expected = conditional_cs_divergence(x, y, y_hat)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conditional_cs_divergence(x, y, y_hat), expected)


# ---- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 2)}, "the same number of samples, got 3, 4 and 4"),
        ({"y": torch.zeros(5)}, "the same number of samples, got 4, 5 and 4"),
        ({"y_hat": torch.zeros(4, 2)}, "the same number of values per sample, got 1 and 2"),
        (
            {"x": torch.zeros(0, 2), "y": torch.zeros(0), "y_hat": torch.zeros(0)},
            "at least one sample, got an empty batch",
        ),
        ({"x": torch.zeros(4, 2, dtype=torch.long)}, "x must be floating point"),
        ({"y": torch.zeros(4, dtype=torch.long)}, "y must be floating point"),
        ({"mode": "papper"}, "mode must be one of 'symmetric', 'symmetric_root', 'paper', 'released', got 'papper'"),
        ({"bandwidth_x": 0.0}, "bandwidth must be a number above 0, .*, got 0.0"),
        ({"bandwidth_y": -1.0}, "bandwidth must be a number above 0, .*, got -1.0"),
        ({"bandwidth_y": ("rms", 0)}, "bandwidth must be a number above 0"),
        ({"bandwidth_x": "mean"}, "bandwidth must be a number above 0"),
        ({"block_size": 0}, "block_size must be None or an integer of at least 1"),
    ],
)
def test_conditional_errors(changes, message):
    arguments = {"x": torch.zeros(4, 2), "y": torch.zeros(4), "y_hat": torch.zeros(4), **changes}
    x, y, y_hat = (arguments.pop(name) for name in ("x", "y", "y_hat"))
    with pytest.raises(ValueError, match=message):
        conditional_cs_divergence(x, y, y_hat, **arguments)


@pytest.mark.parametrize(
    ("p", "q", "h", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4), 1.0, "same number of features, got 2 and 4"),
        (torch.zeros(3, 2), torch.zeros(0, 2), 1.0, "q must have at least one row, got an empty sample"),
        (torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2), 1.0, "p must be floating point"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 0.0, "bandwidth must be a number above 0"),
    ],
)
def test_cs_errors(p, q, h, message):
    with pytest.raises(ValueError, match=message):
        cs_divergence(p, q, bandwidth=h)
