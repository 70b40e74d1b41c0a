"""The pairwise rate against its formula in float64 numpy, closed forms, and mutual information by integration."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm
from torch import distributed, multiprocessing
from torch.autograd import gradcheck
from torch.func import grad

from ibreg.functional import nonlinear_rate


def reference(mean, log_variance):
    mean = mean.reshape(len(mean), -1)
    squares = ((mean[:, None] - mean) ** 2).sum(-1)
    return math.log(len(mean)) - logsumexp(-squares / (2 * math.exp(log_variance)), axis=1).mean()


def reference_gradient(mean, log_variance):
    """Gradient with respect to mean and log variance."""
    variance = math.exp(log_variance)
    differences = mean[:, None] - mean
    exponents = -(differences**2).sum(-1) / (2 * variance)
    weights = np.exp(exponents - logsumexp(exponents, axis=1, keepdims=True)) / len(mean)
    mean_gradient = ((weights + weights.T)[..., None] * differences).sum(1) / variance
    return mean_gradient, (weights * exponents).sum()


def rate_and_gradient(mean, log_variance, **options):
    mean, log_variance = mean.clone().requires_grad_(), torch.tensor(log_variance, dtype=mean.dtype, requires_grad=True)
    rate = nonlinear_rate(mean, log_variance, **options)
    return rate.detach(), *torch.autograd.grad(rate, (mean, log_variance))


# ---- the formula


@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("features", [2, 64])
@pytest.mark.parametrize("batch", [4, 100])
@pytest.mark.parametrize("bandwidth", [0.1, 1.0, 5.0, 50.0, 1000.0])
def test_float32_against_numpy(batch, features, bandwidth, shift):
    mean = torch.randn(batch, features) + shift
    log_variance = torch.tensor(math.log(features * bandwidth**2)).item()
    rate, mean_gradient, variance_gradient = rate_and_gradient(mean, log_variance)
    wide = mean.double().numpy()
    assert rate.dtype == mean_gradient.dtype == torch.float32
    np.testing.assert_allclose(rate, reference(wide, log_variance), rtol=1e-6)
    expected = reference_gradient(wide, log_variance)
    # At saturation the gradient is a difference below the resolution of float64: it is 0.
    np.testing.assert_allclose(mean_gradient, expected[0], rtol=1e-5, atol=1e-6 * np.abs(expected[0]).max() + 1e-14)
    np.testing.assert_allclose(variance_gradient, expected[1], rtol=1e-5, atol=1e-14)


def test_positions_are_one_code():
    mean = torch.randn(6, 2, 3, dtype=torch.float64)
    np.testing.assert_allclose(nonlinear_rate(mean, torch.tensor(0.5)), reference(mean.numpy(), 0.5), rtol=1e-12)
    assert nonlinear_rate(mean[:, 0, 0], torch.tensor(0.5)) == nonlinear_rate(mean[:, 0, :1], torch.tensor(0.5))


@pytest.mark.parametrize("block_size", [1, 4, 7, 100])
def test_blocks_change_nothing(block_size):
    mean = torch.randn(30, 5)
    for left, right in zip(
        rate_and_gradient(mean, 0.3), rate_and_gradient(mean, 0.3, block_size=block_size), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("block_size", [None, 2])
def test_gradcheck(block_size):
    mean = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *args: nonlinear_rate(*args, block_size=block_size), (mean, log_variance))


# ---- closed forms


@pytest.mark.parametrize("clusters", [1, 2, 3, 6])
@pytest.mark.parametrize("scale", [50.0, 1e4])
def test_distant_clusters_have_the_log_of_their_number(clusters, scale):
    mean = scale * torch.arange(clusters).repeat(12 // clusters).unsqueeze(1).float().expand(-1, 3)
    rate, mean_gradient, variance_gradient = rate_and_gradient(mean, 0.0)
    torch.testing.assert_close(rate, torch.tensor(math.log(clusters)), rtol=1e-6, atol=1e-7)
    assert mean_gradient.abs().max() < 1e-6
    assert variance_gradient.abs() < 1e-6


def test_equal_means_have_a_rate_of_0_at_any_distance_from_the_origin():
    for value in (0.0, 1e4 / 3, 1e-4 / 3):
        rate, mean_gradient, variance_gradient = rate_and_gradient(torch.full((7, 3), value), -5.0)
        assert rate == variance_gradient == 0
        assert not mean_gradient.any()


def test_distant_means_have_log_n():
    rate, mean_gradient, _ = rate_and_gradient(1e4 * torch.randn(50, 8), -2.0)
    assert rate == torch.tensor(math.log(50))
    assert not mean_gradient.any()


def test_one_sample_has_no_information():
    rate, mean_gradient, variance_gradient = rate_and_gradient(torch.randn(1, 4), 0.0)
    assert rate == variance_gradient == 0
    assert not mean_gradient.any()


@pytest.mark.parametrize("log_variance", [-1e4, -100.0, 100.0, 1e4])
def test_any_noise_is_finite(log_variance):
    rate, mean_gradient, variance_gradient = rate_and_gradient(torch.randn(9, 3), log_variance)
    assert rate == (torch.tensor(math.log(9)) if log_variance < 0 else 0)
    assert torch.isfinite(mean_gradient).all()
    assert torch.isfinite(variance_gradient)


# ---- the bounded information


@pytest.mark.parametrize("gap", [0.5, 2.0, 4.0, 30.0])
def test_above_the_information_of_a_mixture(gap):
    centers = gap * np.array([0.0, 1.0, 1.5, 4.0])
    t = np.linspace(centers.min() - 9, centers.max() + 9, 20_001)
    densities = norm.pdf(t, centers[:, None], 1)
    mixture = densities.mean(0)
    entropy = np.trapezoid(-mixture * np.log(np.maximum(mixture, 1e-300)), t)
    information = entropy - norm.entropy()
    rate = nonlinear_rate(torch.tensor(centers).unsqueeze(1), torch.tensor(0.0)).item()
    assert information <= rate <= math.log(4)
    if gap == 30:
        assert rate == pytest.approx(information, abs=1e-6)


def test_above_the_information_in_many_dimensions_by_monte_carlo():
    rng = np.random.default_rng(0)
    mean, sigma = rng.normal(size=(10, 6)), 0.8
    index = rng.integers(10, size=40_000)
    codes = mean[index] + sigma * rng.normal(size=(40_000, 6))
    log_ratios = -((codes[:, None] - mean) ** 2).sum(-1) / (2 * sigma**2)
    samples = log_ratios[np.arange(40_000), index] - logsumexp(log_ratios, axis=1) + math.log(10)
    rate = nonlinear_rate(torch.tensor(mean), torch.tensor(2 * math.log(sigma))).item()
    assert samples.mean() + 4 * samples.std() / 200 < rate < math.log(10)


# ---- invariances


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.floats(-8, 8), st.integers(0, 1000))
def test_invariances(batch, features, log_variance, seed):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(batch, features, generator=generator, dtype=torch.float64)
    log_variance = torch.tensor(log_variance, dtype=torch.float64)
    rate = nonlinear_rate(mean, log_variance)
    assert -1e-12 <= rate <= math.log(batch) + 1e-12
    rotation, _ = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64))
    order = torch.randperm(batch, generator=generator)
    for other in (mean[order], mean + 100, mean @ rotation):
        torch.testing.assert_close(nonlinear_rate(other, log_variance), rate, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(nonlinear_rate(3 * mean, log_variance + math.log(9)), rate, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(nonlinear_rate(mean.repeat(2, 1), log_variance), rate, rtol=1e-9, atol=1e-10)
    assert nonlinear_rate(mean, log_variance + 1) <= rate + 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype(dtype):
    mean, log_variance = torch.randn(5, 3).to(dtype), torch.zeros(1, dtype=dtype)
    assert nonlinear_rate(mean, log_variance).dtype == dtype


def test_transformations_and_compilation():
    mean, log_variance = torch.randn(8, 3), torch.tensor(0.5)
    _, *expected = rate_and_gradient(mean, 0.5)
    torch.testing.assert_close(list(grad(nonlinear_rate, argnums=(0, 1))(mean, log_variance)), expected)
    torch._dynamo.reset()
    compiled = torch.compile(nonlinear_rate, fullgraph=True, backend="aot_eager")
    for batch in (8, 5, 1):
        torch.testing.assert_close(compiled(mean[:batch], log_variance), nonlinear_rate(mean[:batch], log_variance))


# ---- errors


@pytest.mark.parametrize(
    ("mean", "log_variance", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(()), "at least one sample, got an empty batch"),
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(()), "mean must be floating point"),
        (torch.zeros(4, 3), torch.zeros(3), r"one number for all samples and features, got shape \(3,\)"),
    ],
)
def test_errors(mean, log_variance, message):
    with pytest.raises(ValueError, match=message):
        nonlinear_rate(mean, log_variance)


# ---- several processes


def global_batch():
    return torch.randn(11, 3, generator=torch.Generator().manual_seed(0)), 0.3


def on_rank(rank, path):
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    mean, log_variance = global_batch()
    rows = slice(0, 4) if rank == 0 else slice(4, None)
    rate, mean_gradient, variance_gradient = rate_and_gradient(mean, log_variance)
    own_rate, own_mean_gradient, own_variance_gradient = rate_and_gradient(
        mean[rows], log_variance, gather=True, block_size=3
    )
    torch.testing.assert_close(own_rate, rate, rtol=1e-6, atol=0)
    torch.testing.assert_close(own_mean_gradient / 2, mean_gradient[rows], rtol=1e-5, atol=1e-8)
    distributed.all_reduce(own_variance_gradient)
    torch.testing.assert_close(own_variance_gradient / 2, variance_gradient, rtol=1e-5, atol=1e-8)
    distributed.destroy_process_group()


def test_gathered_over_uneven_ranks_is_the_whole_batch(tmp_path):
    multiprocessing.spawn(on_rank, (tmp_path / "store",), nprocs=2)
