"""Bandwidths against numpy and scipy, and of batches without variance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from ibreg.functional import bandwidth_of, gaussian_gram, hsic


def rows(samples, features=3, seed=0, dtype=torch.float64):
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=60)
@given(st.integers(2, 12), st.sampled_from([2, 3, 1000]), st.integers(0, 100))
def test_bandwidths_of_pairs_of_different_rows(samples, levels, seed):
    x = torch.randint(levels, (samples, 2), generator=torch.Generator().manual_seed(seed)).double()
    distances = pdist(x.numpy())
    unit = np.sqrt((distances**2).mean()) or 1.0
    assert bandwidth_of(x, ("rms", 0.25)).item() == pytest.approx(0.25 * unit)
    assert bandwidth_of(x, "median").item() == pytest.approx(max(np.median(distances), 1e-3 * unit))


def test_a_number_is_the_bandwidth_and_lists_are_tuples():
    x = rows(10, dtype=torch.float32)
    assert bandwidth_of(x, 2) == 2
    assert bandwidth_of(x, 2).dtype == torch.float32
    assert bandwidth_of(x, ["rms", 0.25]) == bandwidth_of(x, ("rms", 0.25))
    assert bandwidth_of(torch.randn(3, 4, 4), ["dimension", 5]) == 5 * 4


def test_bandwidths_carry_no_gradient():
    x = rows(10).requires_grad_()
    assert not any(bandwidth_of(x, bandwidth).requires_grad for bandwidth in (1.0, ("rms", 1.0), "median"))


def test_median_of_some_rows_takes_steps_of_the_golden_ratio():
    x = rows(100)
    chosen = [61 * step % 100 for step in range(30)]  # 61 has no factor in common with 100
    torch.testing.assert_close(bandwidth_of(x, "median", rows=30), bandwidth_of(x[chosen], "median"))
    torch.testing.assert_close(bandwidth_of(x, "median", rows=100), bandwidth_of(x, "median"))


def test_median_of_some_rows_is_not_biased_by_a_periodic_order():
    x = 10.0 * (torch.arange(2048) % 4).unsqueeze(1) + 0.01 * torch.randn(2048, 1)
    torch.testing.assert_close(bandwidth_of(x, "median", rows=512), bandwidth_of(x, "median"), rtol=0.01, atol=0)


@pytest.mark.parametrize("bandwidth", [1e-30, ("rms", 1e-30)])
def test_with_an_absurdly_narrow_bandwidth_the_gram_matrix_is_the_identity(bandwidth):
    x = rows(8).float()
    assert torch.equal(gaussian_gram(x, bandwidth=bandwidth), torch.eye(8))
    assert hsic(x, x, bandwidth_x=bandwidth, bandwidth_y=bandwidth, estimator="biased") == pytest.approx(1 / 7)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("samples", [1, 7])
def test_bandwidth_without_variance_is_finite(value, samples):
    x = torch.full((samples, 3), value)
    assert bandwidth_of(x, ("rms", 0.25)) == 0.25
    assert bandwidth_of(x, "median") == torch.tensor(1e-3)


@pytest.mark.parametrize("bandwidth", ["median", ("rms", 0.5)])
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1e4, 1e25])
def test_bandwidth_scales_with_the_features(bandwidth, scale):
    x = rows(50, dtype=torch.float32)
    torch.testing.assert_close(bandwidth_of(x * scale, bandwidth), bandwidth_of(x, bandwidth) * scale)


def test_median_of_many_duplicates_is_above_0():
    x = torch.zeros(50, 2)
    x[0] = 10.0
    assert bandwidth_of(x, "median").item() == pytest.approx(1e-3 * np.sqrt((pdist(x.numpy()) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize(
    "bandwidth",
    [
        *(0, -1.0, float("nan"), float("inf"), None, True, "mean"),
        *(("rms", 0), ("rms", -1.0), ("rms", True), ("rms", "0.5"), ("dimension", True), ("std", 1.0)),
    ],
)
def test_invalid_bandwidths(bandwidth):
    with pytest.raises(ValueError, match="bandwidth must be a number above 0"):
        bandwidth_of(rows(5), bandwidth)
