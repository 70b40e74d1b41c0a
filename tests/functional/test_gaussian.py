"""Gaussians against torch.distributions and their formulas in float64 numpy, their invariants, and float32."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.autograd import gradcheck
from torch.distributions import Independent, Normal, kl_divergence

from ibreg.functional import (
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_pool,
    gaussian_rate,
)

numbers = st.floats(-6, 6)
vectors = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5).map(lambda rows: torch.tensor(rows).double().T)


def gaussians(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return mean, log_variance


def distribution(mean, log_variance):
    return Independent(Normal(mean, torch.exp(0.5 * log_variance)), 1)


def kl_reference(mean, log_variance, prior_mean=0.0, prior_log_variance=0.0):
    variance, prior_variance = np.exp(log_variance), np.exp(prior_log_variance)
    terms = (
        (mean - prior_mean) ** 2 / prior_variance + variance / prior_variance - 1 - np.log(variance / prior_variance)
    )
    return 0.5 * terms.sum(-1)


# ---- closed forms


def test_entropy():
    _, log_variance = gaussians(4, 3, 5)
    mean = torch.zeros_like(log_variance)
    torch.testing.assert_close(gaussian_entropy(log_variance), distribution(mean, log_variance).entropy())
    deviation = np.exp(0.5 * log_variance.numpy())
    np.testing.assert_allclose(gaussian_entropy(log_variance), stats.norm(0, deviation).entropy().sum(-1), rtol=1e-12)


def test_log_prob():
    mean, log_variance = gaussians(4, 3, 5)
    z = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    measured = gaussian_log_prob(z, mean, log_variance)
    torch.testing.assert_close(measured, distribution(mean, log_variance).log_prob(z))
    reference = stats.norm(mean.numpy(), np.exp(0.5 * log_variance.numpy())).logpdf(z.numpy()).sum(-1)
    np.testing.assert_allclose(measured, reference, rtol=1e-12)
    np.testing.assert_allclose(gaussian_log_prob(z), stats.norm.logpdf(z.numpy()).sum(-1), rtol=1e-12)


def test_kl():
    code, prior = gaussians(4, 3, 5), gaussians(3, 5, seed=1)
    measured = gaussian_kl(*code, *prior)
    torch.testing.assert_close(measured, kl_divergence(distribution(*code), distribution(*prior)))
    np.testing.assert_allclose(measured, kl_reference(*(t.numpy() for t in (*code, *prior))), rtol=1e-12)
    np.testing.assert_allclose(gaussian_kl(*code), kl_reference(*(t.numpy() for t in code)), rtol=1e-12)


def test_kl_of_small_differences_keeps_its_digits_in_float32():
    # exp(r) - 1 - r in float32 is 0 or 1.2e-7 here; the divergence is r^2 / 4.
    log_variance = torch.tensor([[1e-4]])
    torch.testing.assert_close(gaussian_kl(torch.zeros(1, 1), log_variance), torch.tensor([2.5e-9]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("function", [gaussian_entropy, gaussian_kl, gaussian_log_prob, gaussian_pool, gaussian_rate])
def test_gradients(function):
    mean, log_variance, prior_mean, prior_log_variance = (
        tensor.requires_grad_() for seed in range(2) for tensor in gaussians(3, 4, seed=seed)
    )
    weights = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    scale = (0.5 * log_variance).exp().detach().requires_grad_()
    arguments = {
        gaussian_entropy: (log_variance,),
        gaussian_kl: (mean, log_variance, prior_mean, prior_log_variance),
        gaussian_log_prob: (torch.ones(3, 4, dtype=torch.float64), mean, log_variance),
        gaussian_pool: (mean, log_variance, weights),
        gaussian_rate: (mean, scale),
    }[function]
    assert gradcheck(function, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_keep_the_dtype(dtype):
    mean, log_variance = gaussians(3, 4, dtype=dtype)
    weights = torch.eye(3, dtype=dtype)
    results = (
        gaussian_entropy(log_variance),
        gaussian_kl(mean, log_variance),
        gaussian_log_prob(mean, 0.0, log_variance),
        *gaussian_pool(mean, log_variance, weights),
        gaussian_rate(mean, log_variance.exp()),
    )
    assert {result.dtype for result in results} == {dtype}


# ---- invariants


@given(vectors, vectors)
def test_kl_is_not_negative(code, prior):
    size = min(code.shape[1], prior.shape[1])
    assert gaussian_kl(code[0], code[1]) >= 0
    assert gaussian_kl(*code[:, :size], *prior[:, :size]) >= 0
    assert gaussian_kl(*code, *code) == 0


@given(vectors)
def test_kl_is_least_at_mean_0_and_variance_1(code):
    mean, log_variance = (row.clone().requires_grad_() for row in code)
    gaussian_kl(mean, log_variance).backward()
    # The slope points away from the minimum, everywhere.
    torch.testing.assert_close(mean.grad, mean.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(log_variance.grad, torch.expm1(log_variance.detach()) / 2, rtol=1e-12, atol=1e-15)
    assert gaussian_kl(torch.zeros(3), torch.zeros(3)) == 0


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_pool_turns_an_expected_divergence_into_one(seed, classes, dim, hard):
    means, log_variances = gaussians(classes, dim, seed=seed)
    code = gaussians(7, dim, seed=seed + 1)
    weights = torch.softmax(3 * gaussians(7, classes, seed=seed + 2)[0], -1)
    if hard:
        weights = torch.nn.functional.one_hot(weights.argmax(-1), classes).double()
    mean, log_variance, gap = gaussian_pool(means, log_variances, weights)
    each = gaussian_kl(code[0].unsqueeze(1), code[1].unsqueeze(1), means, log_variances)
    torch.testing.assert_close((weights * each).sum(-1), gaussian_kl(*code, mean, log_variance) + gap)
    assert (gap > -1e-12).all()


@pytest.mark.parametrize("offset", [0, 10, 1000])
def test_pool_is_invariant_to_the_origin(offset):
    means, log_variances = gaussians(10, 32, dtype=torch.float32)
    weights = torch.softmax(gaussians(6, 10, seed=1, dtype=torch.float32)[0], -1)
    means = means + offset
    exact = gaussian_pool(means.double(), log_variances.double(), weights.double())
    for measured, expected in zip(gaussian_pool(means, log_variances, weights), exact, strict=True):
        torch.testing.assert_close(measured.double(), expected, rtol=1e-5, atol=1e-5)


def test_pool_of_a_hard_label_is_that_class():
    means, log_variances = gaussians(5, 3, dtype=torch.float32)
    mean, log_variance, gap = gaussian_pool(means, log_variances, torch.eye(5))
    torch.testing.assert_close(mean, means)
    torch.testing.assert_close(log_variance, log_variances)
    torch.testing.assert_close(gap, torch.zeros(5), rtol=0, atol=2e-6)


def test_log_prob_integrates_to_one():
    z = torch.linspace(-30, 30, 20_001, dtype=torch.float64).unsqueeze(-1)
    density = gaussian_log_prob(z, 1.0, math.log(4.0)).exp()
    assert torch.trapezoid(density, z.squeeze(-1)).item() == pytest.approx(1, abs=1e-10)


# ---- precision of float32


def test_rate_is_the_general_divergence():
    mean, log_variance = gaussians(5, 7)
    torch.testing.assert_close(gaussian_rate(mean, (0.5 * log_variance).exp()), gaussian_kl(mean, log_variance))


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e4])
def test_rate_in_float32(scale):
    mean, scale = torch.full((2, 3), 0.5), torch.full((2, 3), scale, requires_grad=True)
    rate = gaussian_rate(mean, scale)
    expected = gaussian_kl(mean.double(), 2 * scale.double().log())
    torch.testing.assert_close(rate.double(), expected, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(rate.sum(), scale)
    torch.testing.assert_close(gradient, scale - 1 / scale)


def test_rate_near_its_minimum():
    """The divergence is about deviation^2 there, a millionth of its terms."""
    deviation = torch.linspace(-1e-3, 1e-3, 256)
    scale = 1 + deviation
    exact = gaussian_kl(torch.zeros(256, dtype=torch.float64), 2 * scale.double().log())
    torch.testing.assert_close(gaussian_rate(torch.zeros(256), scale).double(), exact, rtol=1e-3, atol=0)
