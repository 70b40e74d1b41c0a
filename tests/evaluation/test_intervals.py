"""Intervals against the textbook formula in numpy and against scipy's t tests."""

import math

import numpy as np
import pytest
from scipy import stats

from ibreg.evaluation.intervals import accuracy_interval, mean_interval, paired_interval

# Quantiles t_{0.975, n-1} of the usual tables, for n = 2, 3, 6, 31.
QUANTILES = {2: 12.7062047364, 3: 4.3026527300, 6: 2.5705818366, 31: 2.0422724563}


@pytest.mark.parametrize("seeds", QUANTILES)
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_mean_interval_is_that_of_the_textbook(seeds, shape):
    values = np.random.default_rng(seeds).normal(0.7, 0.1, (seeds, *shape))
    mean = values.sum(0) / seeds
    deviation = np.sqrt(((values - mean) ** 2).sum(0) / (seeds - 1))
    half = QUANTILES[seeds] * deviation / math.sqrt(seeds)
    interval = mean_interval(values)
    assert interval.mean.shape == shape
    np.testing.assert_allclose(interval.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(interval.low, mean - half, rtol=0, atol=1e-9)
    np.testing.assert_allclose(interval.high, mean + half, rtol=0, atol=1e-9)


def test_mean_interval_is_that_of_scipy():
    values = np.random.default_rng(0).normal(size=(5, 7))
    interval = mean_interval(values)
    expected = stats.ttest_1samp(values, 0, axis=0).confidence_interval(0.95)
    np.testing.assert_allclose(interval.low, expected.low, rtol=0, atol=1e-12)
    np.testing.assert_allclose(interval.high, expected.high, rtol=0, atol=1e-12)


def test_paired_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(1)
    control = rng.normal(size=6)
    values = control + rng.normal(0.3, 0.1, 6)
    interval = paired_interval(values, control)
    expected = stats.ttest_rel(values, control).confidence_interval(0.95)
    np.testing.assert_allclose(interval, [np.mean(values - control), *expected], rtol=0, atol=1e-12)


def test_one_seed_has_a_mean_and_no_interval():
    interval = mean_interval([[0.5, 0.6]])
    np.testing.assert_array_equal(interval.mean, [0.5, 0.6])
    assert np.isnan(interval.low).all()
    assert np.isnan(interval.high).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -2.5, 1e-9, 1e12])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_values_have_a_mean_and_no_interval(value, seeds):
    interval = mean_interval([value] * seeds)
    assert interval.mean == pytest.approx(value)
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ([0.9, 0.8], [0.875, 0.775]),  # both 0.025, but not in binary
        ([0.1 + 0.2, 0.3], [0.2, 0.2]),
        ([1e6 + 0.1, 2e6 + 0.1], [1e6, 2e6]),
        ([0.3, 0.6, 0.9], [0.2, 0.5, 0.8]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([5.0, 7.0], [7.5, 9.5]),
    ],
)
def test_differences_that_are_equal_up_to_rounding_have_no_interval(values, reference):
    interval = paired_interval(values, reference)
    assert interval.mean == pytest.approx(np.mean(values) - np.mean(reference))
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9])
def test_small_differences_are_no_rounding(step):
    values = np.array([0.5, 0.5 + step, 0.5 - step])
    interval = mean_interval(values)
    assert float(interval.high - interval.mean) == pytest.approx(QUANTILES[3] * step / math.sqrt(3), rel=1e-5)


def test_equal_columns_are_those_without_an_interval():
    interval = mean_interval([[0.5, 1.0, 0.0], [0.6, 1.0, 0.0]])
    np.testing.assert_array_equal(np.isnan(interval.low), [False, True, True])


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
def test_a_diverged_seed_is_not_dropped(diverged):
    interval = mean_interval([[0.1, 0.2], [diverged, 0.4], [0.3, 0.6]])
    np.testing.assert_array_equal(np.isnan(interval), [[True, False]] * 3)
    assert np.isnan(paired_interval([diverged, 1.0], [diverged, 2.0])).all()


def test_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match=r"must have shape \(seeds >= 1, \.\.\.\)"):
        mean_interval([])
    with pytest.raises(ValueError, match=r"equal shapes, got \(2,\) and \(3,\)"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"must have shape \(seeds >= 1, \.\.\.\)"):
        paired_interval([], [])


def test_intervals_of_seeds_are_those_of_student():
    values = [0.4, 0.5, 0.45]
    mean, low, high = accuracy_interval(values, 1000)
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((0.45, *expected))
    assert accuracy_interval([0.0, 1.0], 10) == (0.5, 0.0, 1.0)
    mean, *bounds = accuracy_interval([1.0, 1.0], 10)
    assert mean == 1
    assert np.isnan(bounds).all()


def test_intervals_of_one_seed_are_those_of_wilson():
    mean, low, high = accuracy_interval([0.9], 50)
    z = stats.norm.ppf(0.975)
    middle = (0.9 + z**2 / 100) / (1 + z**2 / 50)
    half = z / (1 + z**2 / 50) * math.sqrt(0.9 * 0.1 / 50 + z**2 / (4 * 50**2))
    assert (mean, low, high) == pytest.approx((0.9, middle - half, middle + half))


@pytest.mark.parametrize(("accuracies", "samples"), [([], 5), ([0.5], 0), ([1.5], 5), ([math.nan], 5)])
def test_wrong_accuracies_are_refused(accuracies, samples):
    with pytest.raises(ValueError, match="accuracies must be fractions"):
        accuracy_interval(accuracies, samples)
