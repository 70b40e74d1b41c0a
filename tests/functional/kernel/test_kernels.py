"""Kernels against numpy and scipy, invariances, and precision in float32."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch.autograd import gradcheck

from ibreg.functional import (
    bandwidth_of,
    delta_gram,
    gaussian_gram,
    inverse_multiquadric_gram,
    linear_gram,
    squared_distances,
)
from ibreg.functional.kernel.kernels import KERNELS

GRAMS = {
    "gaussian": lambda squares, h: np.exp(-squares / (2 * h**2)),
    "inverse_multiquadric": lambda squares, h: 1 / np.sqrt(1 + squares / h**2),
}
FUNCTIONS = {"gaussian": gaussian_gram, "inverse_multiquadric": inverse_multiquadric_gram}


def rows(samples, features=3, seed=0, dtype=torch.float64):
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- distances and Gram matrices


@pytest.mark.parametrize("shift", [0.0, 10.0, 1000.0])
def test_squared_distances(shift):
    x, y = rows(20) + shift, rows(30, seed=1) + shift
    np.testing.assert_allclose(squared_distances(x, y), cdist(x, y, "sqeuclidean"), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(squared_distances(x), cdist(x, x, "sqeuclidean"), rtol=1e-9, atol=1e-11)
    measured = squared_distances(x.float())
    assert (measured >= 0).all()
    assert (measured.diagonal() == 0).all()
    exact = cdist(x.float().double(), x.float().double(), "sqeuclidean")
    np.testing.assert_allclose(measured, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bandwidth", [0.7, "median", ("rms", 0.5)])
def test_gram_matrices_of_distances(name, bandwidth):
    x, y = rows(8), rows(5, seed=1)
    h = bandwidth_of(x, bandwidth).item()
    measured = FUNCTIONS[name](x, bandwidth=bandwidth)
    np.testing.assert_allclose(measured, GRAMS[name](cdist(x, x, "sqeuclidean"), h), rtol=1e-10)
    assert (measured.diagonal() == 1).all()
    h = bandwidth_of(torch.cat((x, y)), bandwidth).item()
    measured = FUNCTIONS[name](x, y, bandwidth=bandwidth)
    np.testing.assert_allclose(measured, GRAMS[name](cdist(x, y, "sqeuclidean"), h), rtol=1e-10)


def test_linear_and_delta():
    x, y = rows(8), rows(5, seed=1)
    np.testing.assert_allclose(linear_gram(x, y), x.numpy() @ y.numpy().T)
    labels, others = torch.tensor([0, 2, -1, 2]), torch.tensor([[2], [0]])
    expected = labels.numpy()[:, None] == others.numpy()[:, 0]
    np.testing.assert_array_equal(delta_gram(labels, others), expected)
    codes = torch.nn.functional.one_hot(labels.clamp(min=0))
    torch.testing.assert_close(delta_gram(labels.clamp(min=0)), linear_gram(codes.float()))


@pytest.mark.parametrize("function", [squared_distances, gaussian_gram, inverse_multiquadric_gram, linear_gram])
def test_gradients(function):
    x, y = rows(4).requires_grad_(), rows(3, seed=1).requires_grad_()
    options = {"bandwidth": 1.3} if function in FUNCTIONS.values() else {}
    assert gradcheck(lambda x: function(x, **options), (x,))
    assert gradcheck(lambda x, y: function(x, y, **options), (x, y))


@pytest.mark.parametrize("function", [gaussian_gram, inverse_multiquadric_gram])
def test_gram_of_a_constant_batch_is_1_with_a_gradient_of_0(function):
    x = torch.full((6, 3), 0.1, requires_grad=True)
    for bandwidth in ("median", ("rms", 0.25), 1e-6):
        gram = function(x, bandwidth=bandwidth)
        (gradient,) = torch.autograd.grad(gram.sum(), x)
        assert (gram == 1).all()
        assert (gradient == 0).all()


def test_higher_ranks_are_flattened_and_half_precision_is_raised():
    x = torch.randn(6, 2, 3)
    torch.testing.assert_close(gaussian_gram(x), gaussian_gram(x.flatten(1)))
    torch.testing.assert_close(gaussian_gram(x[:, 0, 0]), gaussian_gram(x[:, 0, :1]))
    assert gaussian_gram(x.bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gaussian_gram(x), gaussian_gram(x.double()).float())


def test_invalid_inputs_are_errors():
    with pytest.raises(ValueError, match="x must be floating point"):
        gaussian_gram(torch.arange(4))
    with pytest.raises(ValueError, match="same number of features, got 3 and 2"):
        linear_gram(rows(4), rows(4, 2))
    with pytest.raises(ValueError, match="x must be integer labels"):
        delta_gram(rows(4))
    with pytest.raises(ValueError, match="x must have one label per sample"):
        delta_gram(torch.ones(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="0-dim"):
        squared_distances(torch.tensor(1.0))


# ---- tiles


@pytest.mark.parametrize("name", ["gaussian", "inverse_multiquadric"])
def test_derivative_of_a_tile(name):
    kernel = KERNELS[name]
    u = torch.linspace(0, 5, 11, dtype=torch.float64).requires_grad_()
    at = {"gaussian": lambda u: torch.exp(-u), "inverse_multiquadric": lambda u: torch.rsqrt(1 + u)}[name](u)
    (expected,) = torch.autograd.grad(at.sum(), u)
    torch.testing.assert_close(kernel.derivative(at.detach() - 1), expected)


@pytest.mark.parametrize("name", KERNELS)
def test_tiles_are_the_gram_matrix_minus_a_constant(name):
    kernel = KERNELS[name]
    x = torch.arange(9) % 4 if kernel.labels else rows(9)
    points, _ = kernel.points(kernel.rows(x, "x"), 1.5)
    tile = kernel.tile(points, slice(2, 6), slice(4, 9))
    expected = {
        "gaussian": lambda: gaussian_gram(x, bandwidth=1.5) - 1,
        "inverse_multiquadric": lambda: inverse_multiquadric_gram(x, bandwidth=1.5) - 1,
        "linear": lambda: linear_gram(x - x.mean(0)),
        "delta": lambda: delta_gram(x) - 1,
    }[name]()
    torch.testing.assert_close(tile, expected[2:6, 4:9])


def test_wide_kernels_keep_their_digits():
    x = rows(40, 64, dtype=torch.float32)
    points, _ = KERNELS["gaussian"].points(x, 400.0)
    measured = KERNELS["gaussian"].tile(points, slice(0, 40), slice(0, 40))
    exact = np.expm1(-cdist(x.double(), x.double(), "sqeuclidean") / (2 * 400.0**2))
    np.testing.assert_allclose(measured, exact, rtol=2e-6, atol=0)
