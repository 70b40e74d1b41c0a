"""Conditional Gaussians against the closed form with index sets, in numpy, and against samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibreg.functional import condition_gaussian, conditional_gain, move_by_gain


def gaussian(dim, batch=4, dtype=torch.float64):
    root = torch.randn(batch, dim, dim, dtype=dtype)
    return torch.randn(batch, dim, dtype=dtype), root @ root.mT + 0.1 * torch.eye(dim, dtype=dtype)


def reference(mean, covariance, known, values):
    """Closed form of one Gaussian: unknown coordinates given the known ones."""
    unknown = ~known
    gain = covariance[np.ix_(unknown, known)] @ np.linalg.inv(covariance[np.ix_(known, known)])
    expected_mean, expected_covariance = values.copy(), np.zeros_like(covariance)
    expected_mean[unknown] = mean[unknown] + gain @ (values[known] - mean[known])
    left = covariance[np.ix_(unknown, unknown)] - gain @ covariance[np.ix_(known, unknown)]
    expected_covariance[np.ix_(unknown, unknown)] = left
    return expected_mean, expected_covariance


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_against_the_closed_form(dim, seed):
    torch.manual_seed(seed)
    mean, covariance = gaussian(dim)
    mask, values = torch.rand(4, dim) < 0.5, 3 * torch.randn(4, dim, dtype=torch.float64)
    measured_mean, measured_covariance = condition_gaussian(mean, covariance, mask, values)
    for row in range(4):
        expected = reference(*(tensor[row].numpy() for tensor in (mean, covariance, mask, values)))
        np.testing.assert_allclose(measured_mean[row], expected[0], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(measured_covariance[row], expected[1], rtol=1e-8, atol=1e-8)


def test_samples_moved_by_the_gain_are_samples_of_the_conditional():
    mean, covariance = gaussian(4, batch=1)
    mask, values = torch.tensor([[True, False, True, False]]), torch.tensor([[1.0, 0.0, -2.0, 0.0]]).double()
    samples = mean + torch.randn(200_000, 4, dtype=torch.float64) @ torch.linalg.cholesky(covariance[0]).mT
    moved = move_by_gain(samples, conditional_gain(covariance, mask), mask, values)
    expected_mean, expected_covariance = condition_gaussian(mean, covariance, mask, values)
    torch.testing.assert_close(moved.mean(0), expected_mean[0], rtol=0.02, atol=0.02)
    torch.testing.assert_close(moved.T.cov(), expected_covariance[0], rtol=0.02, atol=0.02)


def test_nothing_known_and_all_known():
    mean, covariance = gaussian(3)
    values = torch.full_like(mean, torch.nan)
    measured = condition_gaussian(mean, covariance, torch.zeros(4, 3, dtype=torch.bool), values)
    assert torch.equal(measured[0], mean)
    torch.testing.assert_close(measured[1], covariance)
    measured = condition_gaussian(mean, covariance, torch.ones(4, 3, dtype=torch.bool), torch.ones_like(mean))
    assert torch.equal(measured[0], torch.ones_like(mean))
    assert not measured[1].any()


def test_gradients():
    mean, covariance = gaussian(3, batch=2)
    mask = torch.tensor([[True, False, False], [False, True, True]])
    root = torch.linalg.cholesky(covariance).requires_grad_()
    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mean.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda mean, root, values: condition_gaussian(mean, root.tril() @ root.tril().mT, mask, values),
        (mean, root, values),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    mean, covariance = gaussian(3, dtype=dtype)
    mask = torch.tensor([[True, False, False]]).expand(4, -1)
    assert all(part.dtype == dtype for part in condition_gaussian(mean, covariance, mask, mean + 1))
