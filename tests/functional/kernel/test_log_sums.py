"""Log sums of kernels against scipy in float64: values and derivatives, with any block size and at any distance."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, vmap

from ibreg.functional.kernel import log_sums
from ibreg.functional.kernel.log_sums import log_gaussian_sums

BLOCKS = [None, 1, 2, 3, 5, 9]


def reference(left, right, bias=0.0, shared=None):
    exponents = -0.5 * ((left[..., :, None, :] - right[..., None, :, :]) ** 2).sum(-1) + bias
    if shared is not None:
        exponents = exponents - 0.5 * ((shared[:, None] - shared) ** 2).sum(-1)
    return logsumexp(exponents, -1)


def tensors(*shapes, dtype=torch.float64, requires_grad=False):
    return [torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for shape in shapes]


def full(left, right, bias, shared, block_size=None):
    return log_gaussian_sums(left, right, bias=bias, shared=shared, block_size=block_size)


@pytest.mark.parametrize("block_size", BLOCKS)
def test_values(block_size):
    operands = tensors((2, 5, 3), (2, 5, 3), (5,), (5, 4))
    expected = reference(*(tensor.numpy() for tensor in operands))
    np.testing.assert_allclose(full(*operands, block_size), expected, rtol=1e-12)
    for left, right in (tensors((1, 7, 3), (1, 4, 3)), tensors((1, 4, 3), (1, 7, 3))):
        measured = log_gaussian_sums(left, right, block_size=block_size)
        np.testing.assert_allclose(measured, reference(left.numpy(), right.numpy()), rtol=1e-12)


@pytest.mark.parametrize("block_size", [None, 2])
def test_derivatives(block_size):
    operands = tensors((2, 5, 3), (2, 5, 3), (5,), (5, 2), requires_grad=True)
    assert gradcheck(lambda *args: full(*args, block_size), operands)
    if block_size is None:
        assert gradgradcheck(lambda *args: full(*args, block_size), operands)
    for shapes in (((1, 5, 2), (1, 3, 2)), ((1, 3, 2), (1, 5, 2))):
        pair = tensors(*shapes, requires_grad=True)
        assert gradcheck(lambda left, right: log_gaussian_sums(left, right, block_size=block_size), pair)


def test_both_sides_may_be_one_tensor():
    (rows,) = tensors((1, 6, 3), requires_grad=True)
    assert gradcheck(lambda rows: log_gaussian_sums(rows, rows, block_size=4), (rows,))


def test_large_batches_are_evaluated_in_blocks_of_a_bounded_number_of_pairs(monkeypatch):
    (rows,) = tensors((1, 40, 3))
    whole, sizes = log_gaussian_sums(rows, rows), []
    walk = log_sums._walk
    monkeypatch.setattr(log_sums, "_walk", lambda *args: sizes.append(args[-1]) or walk(*args))
    for pairs, least, size in ((100, 1, 2), (100, 5, 5), (1600, 1, None)):
        monkeypatch.setattr(log_sums, "PAIRS", pairs)
        monkeypatch.setattr(log_sums, "ROWS", least)
        sizes.clear()
        torch.testing.assert_close(log_gaussian_sums(rows, rows), whole, rtol=1e-14, atol=0)
        assert sizes == ([] if size is None else [size])


def test_memory_of_blocks_is_that_of_one():
    rows = torch.randn(1, 3000, 4, dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        log_gaussian_sums(rows, rows, block_size=8)
    assert max(kept) <= rows.numel()


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("distance", [1e3, 1e8, 1e30])
def test_far_and_equal_rows(distance, block_size):
    left = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [distance, 0.0]]], requires_grad=True)
    sums = log_gaussian_sums(left, left, block_size=block_size)
    np.testing.assert_allclose(sums.detach().exp(), [[2, 2, 1]], rtol=1e-12)
    apart = log_gaussian_sums(left, left.detach() + distance, block_size=block_size)
    (sums.sum() + apart.sum()).backward()
    assert torch.isfinite(apart).all()
    assert torch.isfinite(left.grad).all()


def test_the_origin_does_not_matter():
    (rows,) = tensors((1, 9, 3))
    torch.testing.assert_close(log_gaussian_sums(rows + 1e6, rows + 1e6), log_gaussian_sums(rows, rows))


@pytest.mark.parametrize("block_size", [None, 2])
def test_autocast_has_no_effect(block_size):
    left, right = tensors((1, 6, 3), (1, 6, 3), dtype=torch.float32)
    expected = log_gaussian_sums(left, right, block_size=block_size)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_gaussian_sums(left, right, block_size=block_size), expected)


def test_transformations():
    left, right = tensors((2, 1, 5, 3), (1, 5, 3))

    def total(left, block_size=None):
        return log_gaussian_sums(left, right, block_size=block_size).sum()

    each = torch.stack([grad(total)(rows) for rows in left])
    torch.testing.assert_close(vmap(grad(total))(left), each)
    torch.testing.assert_close(grad(total)(left[0], block_size=2), each[0])
    hessian = jacrev(jacrev(total))(left[0]).reshape(15, 15)
    torch.testing.assert_close(hessian, hessian.T)


@pytest.mark.parametrize("block_size", [None, 4])
def test_compiled(block_size):
    torch._dynamo.reset()

    def total(left, right):
        return log_gaussian_sums(left, right, block_size=block_size).sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for batch in (8, 5):
        pair = tensors((2, batch, 3), (2, batch, 3), requires_grad=True)
        measured = torch.autograd.grad(compiled(*pair), pair)
        torch.testing.assert_close(measured, torch.autograd.grad(total(*pair), pair))


@pytest.mark.parametrize("block_size", [0, -1])
def test_block_size_out_of_range(block_size):
    with pytest.raises(ValueError, match="block_size must be None or an integer of at least 1"):
        log_gaussian_sums(*tensors((1, 3, 2), (1, 3, 2)), block_size=block_size)
