"""Gaussians against torch.distributions, against their formulas in float64 numpy, and what has to stay invariant."""

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
    log_softplus,
    softplus_gaussian_rate,
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


@pytest.mark.parametrize("function", [gaussian_entropy, gaussian_kl, gaussian_log_prob, gaussian_pool, log_softplus])
def test_gradients(function):
    mean, log_variance, prior_mean, prior_log_variance = (
        tensor.requires_grad_() for seed in range(2) for tensor in gaussians(3, 4, seed=seed)
    )
    weights = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    raw = torch.tensor([-100.0, -13.0, -11.0, 0.0, 3.0, 30.0], dtype=torch.float64, requires_grad=True)
    arguments = {
        gaussian_entropy: (log_variance,),
        gaussian_kl: (mean, log_variance, prior_mean, prior_log_variance),
        gaussian_log_prob: (torch.ones(3, 4, dtype=torch.float64), mean, log_variance),
        gaussian_pool: (mean, log_variance, weights),
        log_softplus: (raw,),
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
        log_softplus(mean),
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
def test_pool_does_not_care_where_the_origin_is(offset):
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


# ---- where float32 ends


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_softplus_against_numpy(dtype):
    x = torch.linspace(-700, 700, 4001, dtype=torch.float64)
    with np.errstate(under="ignore"):
        softplus = np.logaddexp(0, x.numpy())
    expected = np.where(x < -30, x.numpy(), np.log(np.maximum(softplus, 1e-300)))
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-10}[dtype]
    np.testing.assert_allclose(log_softplus(x.to(dtype)), expected, rtol=tolerance, atol=tolerance)


def test_log_softplus_has_no_step_where_its_branches_meet():
    below, above = (torch.tensor(-12.0 + shift, dtype=torch.float64, requires_grad=True) for shift in (-1e-9, 1e-9))
    values = [log_softplus(x) for x in (below, above)]
    torch.autograd.backward(values)
    assert values[1].item() - values[0].item() == pytest.approx(2e-9, abs=1e-10)
    assert below.grad.item() == pytest.approx(above.grad.item(), abs=1e-9)


@pytest.mark.parametrize("raw", [-1e4, -100.0, -88.0, 0.0, 100.0, 1e4])
def test_kl_is_finite_at_any_raw_scale(raw):
    raw_scale = torch.full((2, 3), raw, requires_grad=True)
    mean = torch.ones(2, 3, requires_grad=True)
    rate = gaussian_kl(mean, 2 * log_softplus(raw_scale))
    rate.sum().backward()
    for tensor in (rate, raw_scale.grad, mean.grad):
        assert torch.isfinite(tensor).all()
    if raw == -100:
        torch.testing.assert_close(rate, torch.full((2,), 3 * 100.0))
        torch.testing.assert_close(raw_scale.grad, torch.full((2, 3), -1.0))


def test_softplus_gaussian_rate_is_the_general_divergence():
    mean = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    raw = torch.linspace(-100, 60, 35, dtype=torch.float64).reshape(5, 7).requires_grad_()
    expected = gaussian_kl(mean, 2 * log_softplus(raw))
    measured = softplus_gaussian_rate(mean, raw)
    torch.testing.assert_close(measured, expected)
    weights = torch.randn(5, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(measured @ weights, (mean, raw)), torch.autograd.grad(expected @ weights, (mean, raw)),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b)


def test_softplus_gaussian_rate_gradients():
    mean = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    raw = (3 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(softplus_gaussian_rate, (mean, raw))
    each = torch.func.vmap(torch.func.grad(softplus_gaussian_rate))(mean, raw)
    torch.testing.assert_close(each, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_gaussian_rate_far_below_the_floor(dtype):
    mean, raw = torch.zeros(1, dtype=dtype), torch.tensor([-1000.0], dtype=dtype, requires_grad=True)
    rate = softplus_gaussian_rate(mean, raw)
    assert rate.item() == pytest.approx(1000 - 0.5)
    rate.backward()
    assert raw.grad.item() == pytest.approx(-1)
