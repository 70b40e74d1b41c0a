"""The Gaussian channel against its formula in float64 numpy, against known capacities and against the information."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ibreg
from ibreg import GaussianChannelBottleneck


def capacity(x, mask, noise):
    """From the formula: for every position the variance over the samples that have it, weighted by their fraction."""
    x, total = x.double().numpy(), 0.0
    for position in np.ndindex(*x.shape[1:-1]):
        rows = x[(slice(None), *position)]
        kept = rows if mask is None else rows[mask.numpy()[(slice(None), *position)].astype(bool)]
        if len(kept):
            total += len(kept) / len(rows) * 0.5 * np.log1p(kept.var(0) / np.square(noise)).sum()
    return total


@pytest.mark.parametrize("shape", [(32, 5), (16, 7, 5)])
@pytest.mark.parametrize("learned", [False, True])
def test_the_penalty_is_the_capacity_from_the_formula(shape, learned):
    layer, x = GaussianChannelBottleneck(5, noise=0.7, learned=learned), 3 * torch.randn(shape) + 10
    noise = np.full(5, 0.7)
    if learned:
        nn.init.normal_(layer.log_noise)
        noise = layer.log_noise.detach().double().exp().numpy()
    out = layer.measure(x)
    assert out.penalty.item() == pytest.approx(capacity(x, None, noise), rel=1e-5)
    assert out.logs["rate"].item() == out.penalty.item()
    assert out.logs["noise"].item() == pytest.approx(noise.mean(), rel=1e-6)


def test_tokens_have_a_channel_each():
    x = torch.randn(20_000, 10, 8)
    layer = GaussianChannelBottleneck(noise=1.0)
    assert layer.measure(x).penalty.item() == pytest.approx(10 * 8 * math.log(2) / 2, rel=5e-3)  # 27.7 nats
    mask = torch.zeros(20_000, 10, dtype=torch.bool)
    mask[:, 3] = True
    assert layer.measure(x, mask=mask).penalty.item() == pytest.approx(8 * math.log(2) / 2, rel=1e-2)


def test_maps_have_a_channel_for_each_position():
    x = torch.randn(4000, 3, 2, 2)
    out = GaussianChannelBottleneck(noise=1.0).measure(x)
    assert out.penalty.item() == pytest.approx(2 * 2 * 3 * math.log(2) / 2, rel=2e-2)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_padding_never_counts(seed):
    generator = torch.Generator().manual_seed(seed)
    x, mask = torch.randn(6, 4, 3, generator=generator), torch.rand(6, 4, generator=generator) > 0.5
    layer = GaussianChannelBottleneck(noise=0.5)
    out = layer.measure(x, mask=mask)
    assert out.penalty.item() == pytest.approx(capacity(x, mask, 0.5), rel=1e-5, abs=1e-7)
    other = torch.where(mask.unsqueeze(-1), x, 1e3)
    assert layer.measure(other, mask=mask).penalty.item() == out.penalty.item()


def test_the_capacity_is_the_information_of_gaussian_features_and_bounds_that_of_others():
    # I(X; Z) of two equally likely points a, -a in noise 1 by quadrature, in nats.
    a = 1.5
    z = np.linspace(-12, 12, 200_001)
    density = (np.exp(-((z - a) ** 2) / 2) + np.exp(-((z + a) ** 2) / 2)) / np.sqrt(8 * np.pi)
    information = np.trapezoid(-density * np.log(density), z) - 0.5 * np.log(2 * np.pi * np.e)
    bound = GaussianChannelBottleneck(noise=1.0).measure(torch.tensor([[a], [-a]])).penalty.item()
    assert information < bound == pytest.approx(0.5 * math.log(1 + a**2), rel=1e-6)


def test_noise_has_its_size_in_training_and_is_absent_in_evaluation():
    layer, x = GaussianChannelBottleneck(noise=0.3), torch.randn(200, 500)
    assert (layer.measure(x).z - x).std().item() == pytest.approx(0.3, rel=1e-2)
    assert torch.equal(layer.eval()(x), x)


def test_learned_noise_grows_under_the_penalty_alone():
    layer, x = GaussianChannelBottleneck(4, learned=True, noise=0.1), torch.randn(64, 4)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    rates = []
    for _ in range(20):
        out = layer.measure(x)
        optimizer.zero_grad()
        out.penalty.backward()
        optimizer.step()
        rates.append(out.logs["rate"].item())
    assert rates == sorted(rates, reverse=True)
    assert (layer.log_noise > math.log(0.1)).all()


@pytest.mark.parametrize("shape", [(0, 4), (0, 3, 4), (1, 4), (1, 3, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_of_one_or_none_has_a_rate_of_0(shape, masked):
    layer = GaussianChannelBottleneck(4, learned=True)
    out = layer.measure(torch.randn(shape), mask=torch.ones(shape[:-1]) if masked else None)
    out.penalty.backward()
    assert out.z.shape == shape
    assert out.penalty == out.logs["rate"] == 0
    assert torch.equal(layer.log_noise.grad, torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_penalty_in_half_precision_has_the_exact_noise(dtype):
    layer, x = GaussianChannelBottleneck(noise=1e-8), torch.randn(16, 4).to(dtype)
    assert layer.measure(x).penalty.item() == pytest.approx(capacity(x.float(), None, 1e-8), rel=1e-5)


def test_several_samples_of_each_row_are_penalized_once():
    net = nn.Sequential(GaussianChannelBottleneck(noise=0.5), nn.Linear(4, 2))
    x = torch.randn(8, 4)
    out = ibreg.Regularized(net, draws=3)(x)
    assert out.output.shape == (3, 8, 2)
    assert out.logs["0/rate"].item() == pytest.approx(capacity(x, None, 0.5), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0}, "noise must be a finite number above 0, got 0"),
        ({"noise": "1"}, "noise must be a finite number above 0, got '1'"),
        ({"learned": 1}, "learned must be True or False, got 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianChannelBottleneck(**options)


def test_learned_noise_needs_the_number_of_features():
    with pytest.raises(ValueError, match="in_features"):
        GaussianChannelBottleneck(learned=True)(torch.randn(4, 2))
