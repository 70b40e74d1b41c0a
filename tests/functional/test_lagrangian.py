"""Lagrangians: values, slopes, convexity, and the tangent that keeps the exponential finite."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ibreg.functional import exponential_lagrangian, linear_lagrangian, power_lagrangian

LAGRANGIANS = pytest.mark.parametrize("function", [linear_lagrangian, power_lagrangian, exponential_lagrangian])


def value_and_slope(function, rate, **options):
    rate = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
    value = function(rate, **options)
    value.backward()
    return value.item(), rate.grad.item()


@given(st.floats(0.01, 50), st.floats(0.1, 3))
def test_linear_and_power(rate, power):
    assert value_and_slope(linear_lagrangian, rate, power=power) == (rate, 1)
    value, slope = value_and_slope(power_lagrangian, rate, power=power)
    assert value == pytest.approx(rate ** (1 + power))
    assert slope == pytest.approx((1 + power) * rate**power)


def test_power_clamps_negative_estimates_to_0():
    assert value_and_slope(power_lagrangian, -0.3, power=0.5) == (0, 0)
    assert value_and_slope(power_lagrangian, 0.0, power=0.5) == (0, 0)


@given(st.floats(-5, 9.99), st.floats(0.1, 3))
def test_exponential_below_its_threshold(scaled, power):
    rate = scaled / power
    value, slope = value_and_slope(exponential_lagrangian, rate, power=power)
    assert value == pytest.approx(np.expm1(power * rate) / power)
    assert slope == pytest.approx(np.exp(power * rate))


@given(st.floats(0, 1e9), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.5, 10.0]))
def test_exponential_continues_as_its_tangent(beyond, power, threshold):
    value, slope = value_and_slope(exponential_lagrangian, threshold / power + beyond, power=power, threshold=threshold)
    tangent = np.expm1(threshold) / power + np.exp(threshold) * beyond
    assert value == pytest.approx(tangent)
    assert slope == pytest.approx(np.exp(threshold))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shift", [-1e-9, 0.0, 1e-9])
def test_exponential_is_continuous_with_its_slope_at_the_threshold(power, shift):
    value, slope = value_and_slope(exponential_lagrangian, 10 / power + shift, power=power)
    assert value == pytest.approx(np.expm1(10) / power, rel=1e-7)
    assert slope == pytest.approx(np.exp(10), rel=1e-7)


@LAGRANGIANS
@pytest.mark.parametrize("rate", [1e-6, 100.0, 1e9])
def test_finite_in_float32(function, rate):
    rate = torch.tensor(rate, requires_grad=True)
    value = function(rate)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(rate.grad)


@LAGRANGIANS
@given(st.floats(0, 30), st.floats(0, 30), st.floats(0, 1))
def test_increasing_and_convex(function, left, right, weight):
    values = [value_and_slope(function, point)[0] for point in (left, right, weight * left + (1 - weight) * right)]
    assert (values[0] - values[1]) * (left - right) >= 0
    chord = weight * values[0] + (1 - weight) * values[1]
    assert values[2] <= chord + 1e-9 * max(1, chord)
    assert value_and_slope(function, 0.0)[0] == 0


@LAGRANGIANS
def test_gradients(function):
    rates = torch.tensor([0.3, 2.0, 9.0, 11.0, 40.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (rates,))
