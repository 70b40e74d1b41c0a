"""Searches against float64 distances of all keys, and against each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibreg.functional import nearest, product_nearest
from ibreg.functional.lookup import nearest as lookup

SIZES = st.integers(1, 6)


def all_distances(queries, keys):
    """Squared distances `(codebooks, rows, keys)` from the formula, in float64 numpy."""
    queries, keys = queries.double().numpy(), keys.double().numpy()
    return ((queries[:, :, None] - keys[:, None]) ** 2).sum(-1)


def expected(queries, keys, top_k, usable=None):
    distances = all_distances(queries, keys)
    if usable is not None:
        distances[~np.broadcast_to(usable.numpy()[:, None], distances.shape)] = np.inf
    order = distances.argsort(-1, kind="stable")[..., :top_k]
    return torch.from_numpy(np.take_along_axis(distances, order, -1)), torch.from_numpy(order)


def pairs_of(sub_keys):
    codebooks, _, size, features = sub_keys.shape
    first = sub_keys[:, 0].repeat_interleave(size, 1)
    second = sub_keys[:, 1].repeat(1, size, 1)
    return torch.cat([first, second], -1).reshape(codebooks, size**2, 2 * features)


def integers(shape, seed, high=4):
    """Small integers: sums of their squares are exact, and many distances are equal."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).float()


def assert_nearest(measured, reference):
    values, indices = reference
    torch.testing.assert_close(measured[0].double(), values, rtol=1e-5, atol=1e-6)
    finite = values < torch.inf
    assert torch.equal(measured[1][finite], indices[finite])


# ---- exact search


@given(codebooks=SIZES, rows=st.integers(0, 6), keys=st.integers(1, 40), dim=SIZES, seed=st.integers(0, 9999))
@settings(max_examples=30, deadline=None)
def test_nearest_with_ties_to_the_lowest_index(codebooks, rows, keys, dim, seed):
    queries, points = integers((codebooks, rows, dim), seed), integers((codebooks, keys, dim), seed + 1)
    for top_k in {1, min(3, keys), keys}:
        assert_nearest(nearest(queries, points, top_k=top_k), expected(queries, points, top_k))


@given(rows=st.integers(1, 9), keys=st.integers(1, 30), dim=st.integers(1, 20), seed=st.integers(0, 9999))
@settings(max_examples=30, deadline=None)
def test_equal_keys_are_ties_whatever_their_index(rows, keys, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(2, keys, dim, generator=generator).repeat(1, 3, 1)
    _, indices = nearest(torch.randn(2, rows, dim, generator=generator), points)
    assert (indices < keys).all()


@given(fraction=st.floats(0, 1), top_k=st.integers(1, 12), seed=st.integers(0, 9999))
@settings(max_examples=30, deadline=None)
def test_unusable_keys_are_never_found(fraction, top_k, seed):
    queries, points = integers((3, 7, 4), seed), integers((3, 20, 4), seed + 1)
    usable = torch.rand(3, 20, generator=torch.Generator().manual_seed(seed)) < fraction
    measured = nearest(queries, points, top_k=top_k, usable=usable)
    assert_nearest(measured, expected(queries, points, top_k, usable))
    finite = measured[0] < torch.inf
    assert usable.unsqueeze(1).expand(-1, 7, -1).gather(2, measured[1])[finite].all()
    assert torch.equal(finite.sum(-1), usable.sum(1, keepdim=True).clamp(max=top_k).expand(-1, 7))


@pytest.mark.parametrize("top_k", [1, 2, 10])
def test_many_chunks_blocks_and_codebooks(monkeypatch, top_k):
    queries, points = torch.randn(5, 37, 6), torch.randn(5, 70, 6)
    monkeypatch.setattr(lookup, "KEYS_AT_ONCE", 16)
    monkeypatch.setattr(lookup, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(lookup, "TILE", 256)
    assert_nearest(nearest(queries, points, top_k=top_k), expected(queries, points, top_k))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_far_from_the_origin_and_of_any_scale(scale):
    queries, points = torch.randn(2, 300, 14), torch.randn(2, 500, 14)
    far = scale * (queries + 100), scale * (points + 100)
    values, indices = expected(*far, 2)
    clear = (values[..., 1] - values[..., 0]) > 1e-5 * values[..., 1]
    assert clear.float().mean() > 0.99
    measured = nearest(*far)
    assert torch.equal(measured[1].squeeze(-1)[clear], indices[..., 0][clear])
    torch.testing.assert_close(measured[0].squeeze(-1).double(), values[..., 0], rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_of_the_result(dtype):
    queries, points = torch.randn(2, 9, 5, dtype=dtype), torch.randn(2, 30, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        measured = nearest(queries, points)
    assert measured[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_nearest(measured, expected(queries, points, 1))


def test_no_gradient_and_no_change_of_the_arguments():
    queries = torch.randn(2, 3, 4, requires_grad=True)
    usable = torch.ones(2, 5, dtype=torch.bool)
    distances, _ = nearest(queries, torch.randn(2, 5, 4, requires_grad=True), top_k=2, usable=usable)
    assert not distances.requires_grad
    assert usable.all()


def test_gradient_of_the_distances_to_chosen_keys():
    keys, indices = torch.randn(2, 5, 3, dtype=torch.float64), torch.tensor([[[0, 3]], [[4, 4]]])
    queries = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
    measured = lookup.squared_distances_to(queries, keys, indices)
    values = all_distances(queries.detach(), keys)
    np.testing.assert_allclose(measured.detach(), np.take_along_axis(values, indices.numpy(), -1), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda u: lookup.squared_distances_to(u, keys, indices), (queries,))


# ---- product search


@given(
    size=st.integers(1, 7),
    dim=st.integers(1, 4),
    top_k=st.integers(1, 49),
    fraction=st.sampled_from([None, 0.0, 0.02, 0.3, 0.9]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=60, deadline=None)
def test_product_search_is_exact_search_over_all_pairs(size, dim, top_k, fraction, seed):
    queries, sub_keys = integers((3, 5, 2 * dim), seed, high=6), integers((3, 2, size, dim), seed + 1, high=6)
    top_k = min(top_k, size**2)
    usable = None
    if fraction is not None:
        usable = torch.rand(3, size**2, generator=torch.Generator().manual_seed(seed)) < fraction
    measured = product_nearest(queries, sub_keys, top_k=top_k, usable=usable)
    assert_nearest(measured, expected(queries, pairs_of(sub_keys), top_k, usable))


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("fraction", [0.9, 0.05, 0.004])
def test_product_search_widens_until_a_pair_is_usable(top_k, fraction):
    queries, sub_keys = torch.randn(2, 300, 6), torch.randn(2, 2, 40, 3)
    usable = torch.rand(2, 1600) < fraction
    usable[:, 5] = True
    measured = product_nearest(queries, sub_keys, top_k=top_k, usable=usable)
    exact = nearest(queries, pairs_of(sub_keys), top_k=top_k, usable=usable)
    torch.testing.assert_close(measured, exact, rtol=1e-5, atol=1e-5)
    assert usable.unsqueeze(1).expand(-1, 300, -1).gather(2, measured[1]).all()


@pytest.mark.parametrize("find", [nearest, product_nearest])
def test_compiled_search_finds_the_same(find):
    queries, sub_keys, usable = torch.randn(2, 300, 6), torch.randn(2, 2, 36, 3), torch.rand(2, 1296) < 0.1
    keys = sub_keys if find is product_nearest else pairs_of(sub_keys)
    torch._dynamo.reset()
    compiled = torch.compile(find, fullgraph=True, backend="aot_eager")(queries, keys, top_k=2, usable=usable)
    torch.testing.assert_close(compiled, find(queries, keys, top_k=2, usable=usable))


# ---- errors


@pytest.mark.parametrize(
    ("queries", "keys", "options", "message"),
    [
        ((2, 3, 4), (2, 5, 3), {}, r"got \(2, 3, 4\) and \(2, 5, 3\)"),
        ((3, 3, 4), (2, 5, 4), {}, r"got \(3, 3, 4\) and \(2, 5, 4\)"),
        ((3, 4), (2, 5, 4), {}, "queries must be"),
        ((2, 3, 4), (2, 5, 4), {"top_k": 6}, "from 1 to the 5 keys of a codebook, got 6"),
        ((2, 3, 4), (2, 5, 4), {"top_k": 0}, "got 0"),
        ((2, 3, 4), (2, 5, 4), {"usable": torch.ones(2, 4).bool()}, r"usable must be \(codebooks, keys\) \(2, 5\)"),
        ((2, 3, 4), (2, 2, 5, 3), {}, r"dim / 2\), got \(2, 3, 4\) and \(2, 2, 5, 3\)"),
        ((2, 3, 4), (2, 3, 5, 2), {}, "sub-keys"),
        ((2, 3, 4), (2, 2, 5, 2), {"top_k": 26}, "from 1 to the 25 pairs of sub-keys"),
        ((2, 3, 4), (2, 2, 5, 2), {"usable": torch.ones(2, 5).bool()}, r"\(2, 25\), got \(2, 5\)"),
    ],
)
def test_bad_shapes_are_errors(queries, keys, options, message):
    find = product_nearest if len(keys) == 4 else nearest
    with pytest.raises(ValueError, match=message):
        find(torch.zeros(queries), torch.zeros(keys), **options)


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("top_k", [1, 3])
def test_product_search_among_few_usable_pairs_is_exact(fraction, top_k):
    queries, sub_keys = torch.randn(3, 20, 6), torch.randn(3, 2, 64, 3)
    usable = torch.rand(3, 64**2) < fraction
    usable[1] = False
    usable[1, 7] = True  # fewer than are asked for
    pairs = torch.cat([sub_keys[:, 0].repeat_interleave(64, 1), sub_keys[:, 1].repeat(1, 64, 1)], -1)
    expected = torch.cdist(queries.double(), pairs.double()).square().where(usable.unsqueeze(1), torch.inf)
    expected, order = expected.sort(-1)
    distances, indices = product_nearest(queries, sub_keys, top_k=top_k, usable=usable)
    torch.testing.assert_close(distances, expected[..., :top_k].float(), rtol=1e-4, atol=1e-5)
    finite = distances < torch.inf
    assert torch.equal(indices[finite], order[..., :top_k][finite])
