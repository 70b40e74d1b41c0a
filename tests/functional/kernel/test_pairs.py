"""Centered sums over pairs against whole matrices in float64: every pair once, in blocks of any size."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ibreg.functional import delta_gram, gaussian_gram, inverse_multiquadric_gram, linear_gram, tiled_gram
from ibreg.functional.kernel.kernels import KERNELS
from ibreg.functional.kernel.pairs import KEPT, Walk, pair_sums

WHOLE = {
    "gaussian": lambda x: gaussian_gram(x, bandwidth=1.5),
    "inverse_multiquadric": lambda x: inverse_multiquadric_gram(x, bandwidth=1.5),
    "linear": lambda x: linear_gram(x),
    "delta": lambda x: delta_gram(x, dtype=torch.float64),
}


def variables(kernel="gaussian", samples=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, generator=generator, dtype=dtype)
    if kernel == "delta":
        return x, torch.arange(samples) % 4
    return x, 0.5 * torch.randn(samples, 3, generator=generator, dtype=dtype) + x[:, :1]


def centered(matrix, unbiased):
    samples = matrix.shape[0]
    if not unbiased:
        projection = torch.eye(samples, dtype=matrix.dtype) - 1 / samples
        return projection @ matrix @ projection
    off = matrix * (1 - torch.eye(samples, dtype=matrix.dtype))
    sums = off.sum(0)
    whole = off - (sums + sums[:, None]) / (samples - 2) + sums.sum() / ((samples - 1) * (samples - 2))
    return whole * (1 - torch.eye(samples, dtype=matrix.dtype))


def reference(x, y, kernels, unbiased):
    a, b = (centered(WHOLE[kernel](v), unbiased) for kernel, v in zip(kernels, (x, y), strict=True))
    return torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()])


def measured(x, y, kernels=("gaussian", "gaussian"), block_size=None, **options):
    grams = (
        tiled_gram(v, kernel=k, bandwidth=1.5, block_size=block_size) for v, k in zip((x, y), kernels, strict=True)
    )
    return pair_sums(*grams, **options)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 12))
def test_every_pair_is_visited_once(lengths, tile):
    total = sum(lengths)
    count = torch.zeros(total, total, dtype=torch.int64)
    for rank in range(len(lengths)):
        for rows, columns, mirrored in Walk(tuple(lengths), rank, tile).visits():
            count[rows, columns] += 1
            if mirrored:
                count[columns, rows] += 1
    assert (count == 1).all()


@pytest.mark.parametrize("block_size", [None, 1, 3, 11, 50])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernels", [*itertools.product(["gaussian", "linear"], KERNELS)])
def test_sums_of_whole_matrices(kernels, unbiased, block_size):
    x, y = variables(kernels[1])
    sums, _, _ = measured(x, y, kernels, block_size, unbiased=unbiased, own=True)
    torch.testing.assert_close(sums, reference(x, y, kernels, unbiased), rtol=1e-9, atol=1e-12)
    alone, _, _ = measured(x, y, kernels, block_size, unbiased=unbiased)
    torch.testing.assert_close(alone, sums[:1])


@pytest.mark.parametrize("block_size", [None, 3])
def test_row_means(block_size):
    x, y = variables()
    _, *means = measured(x, y, block_size=block_size)
    for mean, v in zip(means, (x, y), strict=True):
        torch.testing.assert_close(mean, (WHOLE["gaussian"](v) - 1).mean(1))


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernels", [k for k in itertools.product(KERNELS, KERNELS) if k[0] != "delta"])
def test_gradients(kernels, unbiased, block_size):
    x, y = variables(kernels[1], samples=6)
    inputs = (x.requires_grad_(), y.requires_grad_()) if y.is_floating_point() else (x.requires_grad_(),)

    def function(x, y=y):
        return measured(x, y, kernels, block_size, unbiased=unbiased, own=True)[0]

    assert gradcheck(function, inputs)


@pytest.mark.parametrize("block_size", [None, 3])
def test_gradients_through_the_row_means(block_size):
    x, y = (v.requires_grad_() for v in variables(samples=6))
    assert gradcheck(lambda x, y: measured(x, y, block_size=block_size)[1:], (x, y))


@pytest.mark.parametrize("block_size", [100, 512])
def test_blocks_equal_kept_tiles_in_float32(block_size):
    x, y = variables(samples=1200, dtype=torch.float32)
    results = []
    for blocks in (None, block_size):
        inputs = x.clone().requires_grad_(), y.clone().requires_grad_()
        sums, means, _ = measured(*inputs, block_size=blocks, own=True)
        (sums.log().sum() + (means**2).sum()).backward()
        results.append((sums, means, inputs[0].grad, inputs[1].grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(one.detach().abs().max()))


def test_a_tiled_gram_serves_several_sums_with_gradients():
    x, y = variables()
    t = (x + y).requires_grad_()
    gram_x, gram_t, gram_y = (tiled_gram(v, bandwidth=1.5) for v in (x, t, y))
    (shared,) = torch.autograd.grad((pair_sums(gram_x, gram_t)[0] - pair_sums(gram_t, gram_y)[0]).sum(), t)
    (apart,) = torch.autograd.grad((measured(x, t)[0] - measured(t, y)[0]).sum(), t)
    torch.testing.assert_close(shared, apart)
    assert not gram_t.points.requires_grad


def test_kept_tiles_and_tiles_that_are_evaluated_again_go_together():
    x, y = variables(samples=40)
    one, other = tiled_gram(x, bandwidth=1.5), tiled_gram(y, bandwidth=1.5, block_size=512)
    assert one.tiles
    assert not other.tiles
    torch.testing.assert_close(pair_sums(one, other)[0], measured(x, y)[0])


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().size() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *(size // 4 for size in sizes)])
        return result


@pytest.mark.parametrize(("samples", "block_size", "bound"), [(1000, 50, 3000), (KEPT + 1, None, 512**2)])
def test_no_whole_matrix_in_blocks(samples, block_size, bound):
    x, y = variables(samples=samples, dtype=torch.float32)
    y.requires_grad_()
    with Largest() as largest:
        measured(x, y, block_size=block_size, own=True)[0].sum().backward()
    assert largest.numel <= bound


def test_only_variables_that_require_a_gradient_get_one():
    x, y = variables()
    t = y.requires_grad_()
    sums, _, _ = measured(x, t)
    assert sums.requires_grad
    sums.sum().backward()
    assert x.grad is None
    assert not measured(x, y.detach())[0].requires_grad


def test_a_second_derivative_is_refused():
    x, y = (v.requires_grad_() for v in variables())
    (gradient,) = torch.autograd.grad(measured(x, y)[0].square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_invalid_arguments_are_errors():
    x, y = variables()
    with pytest.raises(ValueError, match=r"kernel must be one of 'gaussian', .*, got 'laplace'"):
        tiled_gram(x, kernel="laplace")
    with pytest.raises(ValueError, match="the code must be floating point"):
        tiled_gram(torch.arange(5), name="the code")
    with pytest.raises(ValueError, match="x must be integer labels"):
        tiled_gram(x, kernel="delta")
    for block_size in (0, -3, 2.5):
        with pytest.raises(ValueError, match="block_size must be None or an integer of at least 1"):
            tiled_gram(x, block_size=block_size)
    with pytest.raises(ValueError, match="same number of samples"):
        pair_sums(tiled_gram(x), tiled_gram(y[:5]))
    with pytest.raises(ValueError, match="same block_size"):
        pair_sums(tiled_gram(x, block_size=3), tiled_gram(y, block_size=4))
