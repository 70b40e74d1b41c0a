"""HSIC, CKA and Cauchy-Schwarz information against their formulas in float64, and their invariances and limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ibreg.functional import cs_qmi, hsic, normalized_factor, normalized_hsic, tiled_gram
from ibreg.functional.kernel.dependence import ESTIMATORS

DENSE = ("normalized", "debiased")
QUANTITIES = (*ESTIMATORS, "information", "normalized information")
TILED = tuple(quantity for quantity in QUANTITIES if quantity not in DENSE)


def measure(quantity, x, y, h_x="median", h_y="median", **options):
    if "information" in quantity:
        return cs_qmi(x, y, bandwidth_x=h_x, bandwidth_t=h_y, normalized="normalized" in quantity, **options)
    return hsic(x, y, bandwidth_x=h_x, bandwidth_y=h_y, estimator=quantity, **options)


def gram_matrix(x, h):
    x = x - x.mean(0)
    squares = x.square().sum(1)
    distances = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0)
    return torch.exp(-distances / (2 * h**2))


def reference(quantity, x, y, h_x, h_y):
    """The formula of the textbook, in the dtype of x."""
    k, l = gram_matrix(x, h_x), gram_matrix(y, h_y)  # noqa: E741
    n = x.shape[0]
    identity = torch.eye(n, dtype=x.dtype)

    def centered(a):
        return a - a.mean(0) - a.mean(1, keepdim=True) + a.mean()

    def product(a, b):
        return (centered(a) * centered(b)).sum()

    def information(a, b):
        return (a * b).mean().log() + (a.mean() * b.mean()).log() - 2 * (a.mean(0) * b.mean(0)).mean().log()

    def factor(a):
        return torch.linalg.solve(centered(a) + 1e-5 * n * identity, centered(a))

    if quantity == "biased":
        return product(k, l) / (n - 1) ** 2
    if quantity == "cka":
        return product(k, l) / (product(k, k) * product(l, l)).sqrt()
    if quantity == "unbiased":
        k, l = k - k * identity, l - l * identity  # noqa: E741
        crossed = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(0))
        return ((k * l).sum() + crossed) / (n * (n - 3))
    if quantity == "information":
        return information(k, l)
    if quantity == "normalized information":
        return information(k, l) / (information(k, k) * information(l, l)).sqrt()
    a, b = factor(k), factor(l)
    value = (a * b.T).sum()
    return value - a.trace() * b.trace() / (n - 1) if quantity == "debiased" else value


def variables(samples, features=5, others=3, seed=0, dtype=torch.float64):
    """Two variables that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=generator, dtype=dtype)
    mixing = torch.randn(features, others, generator=generator, dtype=dtype) / math.sqrt(features)
    return x, x @ mixing + 0.5 * torch.randn(samples, others, generator=generator, dtype=dtype)


def relative(measured, expected):
    return ((measured.double() - expected).norm() / expected.norm()).item()


# ---- the formulas


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("samples", [4, 5, 60])
def test_textbook_in_float64(quantity, samples):
    x, y = variables(samples)
    # With so few samples and narrow kernels both factors are nearly H, and the debiased value is rounding.
    bandwidths = (200.0, 150.0) if quantity == "debiased" else (2.0, 1.5)
    torch.testing.assert_close(
        measure(quantity, x, y, *bandwidths), reference(quantity, x, y, *bandwidths), rtol=1e-8, atol=1e-12
    )


def check_accuracy(quantity, samples, features, wide, gradients=True):
    others = 64
    x, y = (v + 10 for v in variables(samples, features, others, dtype=torch.float32))
    bandwidths = wide * math.sqrt(features), wide * math.sqrt(others)
    inputs = [v.clone().requires_grad_(gradients) for v in (x, y)]
    exact = [v.double().requires_grad_(gradients) for v in (x, y)]
    measured, expected = measure(quantity, *inputs, *bandwidths), reference(quantity, *exact, *bandwidths)
    assert measured.dtype == torch.float32
    assert relative(measured, expected) < 1e-5
    if gradients:
        gradients = zip(torch.autograd.grad(measured, inputs), torch.autograd.grad(expected, exact), strict=True)
        assert max(relative(*pair) for pair in gradients) < 1e-4


@pytest.mark.parametrize("wide", [1, 5, 50])
@pytest.mark.parametrize("features", [64, 784])
@pytest.mark.parametrize("samples", [4, 32, 300])
@pytest.mark.parametrize("quantity", [quantity for quantity in QUANTITIES if quantity != "debiased"])
def test_float32_has_the_digits_of_float64(quantity, samples, features, wide):
    check_accuracy(quantity, samples, features, wide)


@pytest.mark.parametrize("wide", [5, 50])
def test_debiased_in_float32(wide):
    check_accuracy("debiased", 300, 64, wide)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantity", "features", "wide"),
    [
        ("unbiased", 784, 1),
        ("normalized information", 64, 50),
    ],
)
def test_float32_of_4096_samples(quantity, features, wide):
    check_accuracy(quantity, 4096, features, wide)


@pytest.mark.parametrize("quantity", DENSE)
def test_normalized_of_a_kernel_of_low_rank(quantity):
    # Most of the Gram matrix of labels or of one feature is below the ridge: rounding, in float32.
    x, _ = variables(100, dtype=torch.float32)
    labels = torch.arange(100) % 4
    torch.testing.assert_close(
        hsic(x, labels, estimator=quantity, kernel_y="delta"),
        hsic(x.double(), labels, estimator=quantity, kernel_y="delta").float(), rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    torch.testing.assert_close(
        measure(quantity, x, x[:, :1], 2.0, 1.0), reference(quantity, x.double(), x[:, :1].double(), 2.0, 1.0).float(),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("samples", [4, 6])
def test_unbiased_is_the_u_statistic(samples):
    x, y = variables(samples)
    k, l = gram_matrix(x, 2.0).numpy(), gram_matrix(y, 1.5).numpy()  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(samples), 4)]
    assert measure("unbiased", x, y, 2.0, 1.5).item() == pytest.approx(np.mean(terms), rel=1e-9)


def test_information_is_the_cauchy_schwarz_divergence_of_joint_and_product():
    x, y = variables(30)
    k, l = gram_matrix(x, 2.0), gram_matrix(y, 1.5)  # noqa: E741
    joint, product, mixed = (k * l).mean(), k.mean() * l.mean(), (k.mean(1) * l.mean(1)).mean()
    torch.testing.assert_close(cs_qmi(x, y, bandwidth_x=2.0, bandwidth_t=1.5), -torch.log(mixed**2 / joint / product))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "delta", "inverse_multiquadric"])
def test_other_kernels(estimator, kernel):
    x, _ = variables(40)
    labels = torch.arange(40) % 3
    codes = torch.nn.functional.one_hot(labels).double()
    y = labels if kernel == "delta" else codes
    whole = {
        "linear": codes @ codes.T,
        "delta": codes @ codes.T,
        "inverse_multiquadric": 1 / torch.sqrt(1 + torch.cdist(codes, codes) ** 2 / 0.49),
    }[kernel]
    # The root of a Gram matrix has it as its linear kernel.
    values, vectors = torch.linalg.eigh(whole)
    root = vectors * values.clamp(min=0).sqrt()
    measured = hsic(x, y, bandwidth_x=2.0, bandwidth_y=0.7, kernel_y=kernel, estimator=estimator)
    expected = hsic(x, root, bandwidth_x=2.0, kernel_y="linear", estimator=estimator)
    torch.testing.assert_close(measured, expected)


def test_linear_hsic_is_the_squared_covariance():
    x, y = variables(50)
    measured = hsic(x, y, kernel_x="linear", kernel_y="linear", estimator="biased")
    covariance = np.cov(x.T.numpy(), y.T.numpy())[:5, 5:]
    assert measured.item() == pytest.approx((covariance**2).sum())


@pytest.mark.parametrize("scale", [1e-4, 1e4, 1e6])
def test_normalized_linear_is_finite_at_any_scale(scale):
    x, y = variables(64, dtype=torch.float32)
    x = (x * scale).requires_grad_()
    value = hsic(x, y, kernel_x="linear", estimator="normalized")
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()
    if scale > 1:  # far above the ridge in all five directions
        assert normalized_factor(x, kernel="linear").trace().item() == pytest.approx(5, rel=1e-3)


# ---- gradients


@pytest.mark.parametrize(
    ("quantity", "block_size"), [*itertools.product(QUANTITIES, [None]), *itertools.product(TILED, [3])]
)
def test_gradients(quantity, block_size):
    x, y = (v.requires_grad_() for v in variables(7))
    assert gradcheck(lambda x, y: measure(quantity, x, y, 2.0, 1.5, block_size=block_size), (x, y))


@pytest.mark.parametrize("kernel", ["gaussian", "inverse_multiquadric", "linear"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_kernels(estimator, kernel):
    scale = 0.01 if estimator in DENSE and kernel == "linear" else 1  # else R is nearly H, and its gradient is rounding
    x, y = ((scale * v).requires_grad_() for v in variables(6))
    options = {"bandwidth_x": 1.5, "bandwidth_y": 1.5, "kernel_x": kernel, "kernel_y": kernel}
    assert gradcheck(lambda x, y: hsic(x, y, estimator=estimator, **options), (x, y))


def test_gradient_of_a_factor_by_any_function():
    x, _ = variables(6)
    weights = torch.randn(6, 6, dtype=torch.float64)  # not symmetric
    assert gradcheck(lambda x: (normalized_factor(x, bandwidth=2.0) * weights).sum(), x.requires_grad_())


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_functional_gradients(quantity):
    x, y = variables(20, dtype=torch.float32)
    gradient = torch.func.grad(lambda y: measure(quantity, x, y))(y)
    y.requires_grad_()
    measure(quantity, x, y).backward()
    torch.testing.assert_close(gradient, y.grad)


@pytest.mark.parametrize(
    ("quantity", "block_size"), [("unbiased", 12), ("normalized information", None), ("debiased", None)]
)
def test_compiled(quantity, block_size):
    torch._dynamo.reset()
    results = []
    for transform in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        x, y = (v.requires_grad_() for v in variables(20, dtype=torch.float32))
        value = transform(lambda x, y: measure(quantity, x, y, block_size=block_size))(x, y)
        value.backward()
        results.append((value, x.grad, y.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("quantity", TILED)
@pytest.mark.parametrize("block_size", [7, 64, 100, 1000])
def test_blocks_equal_the_default(quantity, block_size):
    results = []
    for size in (None, block_size):
        x, y = (v.requires_grad_() for v in variables(300, 64, 16, dtype=torch.float32))
        value = measure(quantity, x, y, block_size=size)
        value.backward()
        results.append((value, x.grad, y.grad))
    for whole, blocks in zip(*results, strict=True):
        assert relative(blocks, whole.double()) < 1e-5


# ---- invariances and bounds


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(QUANTITIES), st.integers(4, 30), st.integers(0, 1000))
def test_invariances(quantity, samples, seed):
    x, y = variables(samples, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    expected = measure(quantity, x, y)
    order = torch.randperm(samples, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    shift = 100 * torch.randn(5, generator=generator, dtype=torch.float64)
    for changed in (
        measure(quantity, x[order], y[order]),
        measure(quantity, x + shift, y),
        measure(quantity, x @ rotation, y),
        measure(quantity, 7 * x, y),  # the bandwidth follows
        measure(quantity, y, x),
    ):
        torch.testing.assert_close(changed, expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), st.integers(0, 1000))
def test_bounds(samples, seed):
    x, y = variables(samples, seed=seed)
    assert measure("biased", x, y) >= -1e-12
    assert measure("information", x, y) >= -1e-12
    assert -1e-9 <= measure("cka", x, y) <= 1 + 1e-9
    assert 0 <= measure("normalized", x, y) <= samples - 1
    assert measure("cka", x, 3 * x + 1).item() == pytest.approx(1)
    assert measure("normalized information", x, 3 * x + 1).item() == pytest.approx(1)


@pytest.mark.parametrize("estimator", ["unbiased", "debiased"])
def test_about_0_for_permuted_labels(estimator):
    values = []
    for seed in range(100):
        x, y = variables(50, seed=seed)
        permuted = y[torch.randperm(50, generator=torch.Generator().manual_seed(seed))]
        values.append(measure(estimator, x, permuted).item())
    error = np.std(values) / 10
    assert abs(np.mean(values)) < 3 * error
    dependent = np.mean([measure(estimator, *variables(50, seed=seed)).item() for seed in range(5)])
    assert dependent > 20 * error


def test_debiased_is_exactly_0_over_all_permutations():
    x, y = variables(6)
    orders = [list(order) for order in itertools.permutations(range(6))]
    values = [measure("debiased", x, y[order], 100.0, 100.0).item() for order in orders]
    assert np.std(values) > 1e-3
    assert np.mean(values) == pytest.approx(0, abs=1e-12)


def test_normalized_of_independent_variables_depends_on_the_batch_size_and_debiased_does_not():
    values = {}
    for samples in (64, 256):
        generator = torch.Generator().manual_seed(1)
        x, y = (torch.randn(samples, 10, generator=generator, dtype=torch.float64) for _ in range(2))
        values[samples] = [measure(estimator, x, y, 10.0, 10.0).item() for estimator in DENSE]
    assert values[64][0] > 1.5 * values[256][0] > 15
    assert all(abs(debiased) < 0.1 * normalized for normalized, debiased in values.values())


# ---- sharing


def test_tiled_grams_give_the_same():
    x, y = variables(30)
    grams = tiled_gram(x), tiled_gram(y, bandwidth=("rms", 0.25))
    torch.testing.assert_close(hsic(*grams), hsic(x, y, bandwidth_y=("rms", 0.25)))
    torch.testing.assert_close(hsic(grams[0], y), hsic(x, y))
    torch.testing.assert_close(cs_qmi(*grams), cs_qmi(x, y, bandwidth_x="median"))


@pytest.mark.parametrize("debiased", [False, True])
def test_factors_may_be_shared(debiased):
    x, y = variables(30)
    factor = normalized_factor(x)
    for other in (y, y**2):
        expected = hsic(x, other, estimator="debiased" if debiased else "normalized")
        torch.testing.assert_close(normalized_hsic(factor, normalized_factor(other), debiased=debiased), expected)


def test_a_factor_is_a_soft_projection():
    factor = normalized_factor(variables(30)[0], epsilon=1e-3)
    values = torch.linalg.eigvalsh(factor)
    assert values.min() > -1e-12
    assert values.max() < 1
    torch.testing.assert_close(factor.sum(0), torch.zeros(30, dtype=torch.float64))
    torch.testing.assert_close(factor, factor.mT)


# ---- limits and errors


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("bandwidths", [(), (1.0, 1.0), (("rms", 0.25), ("rms", 0.25))])
@pytest.mark.parametrize("case", ["one collapsed", "both collapsed", "nearly", "duplicates", "1e-4", "1e4", "outlier"])
def test_finite(quantity, bandwidths, case):
    x, y = variables(12, dtype=torch.float32)
    if case == "one collapsed":
        y = torch.full_like(y, 0.3)
    elif case == "both collapsed":
        x, y = torch.full_like(x, 0.1), torch.full_like(y, 1e4)
    elif case == "nearly":
        y = 0.3 + 1e-6 * y
    elif case == "duplicates":
        x, y = (v[:3].repeat(4, 1) for v in (x, y))
    elif case == "outlier":
        x[0], y[0] = 1e4, -1e4
    else:
        x, y = (v * float(case) for v in (x, y))
    x.requires_grad_(), y.requires_grad_()
    value = measure(quantity, x, y, *bandwidths)
    value.backward()
    for tensor in (value, x.grad, y.grad):
        assert torch.isfinite(tensor).all()
    if "collapsed" in case:
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert (y.grad == 0).all()


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_nan_is_not_hidden(quantity):
    x, y = variables(12)
    x[3, 1] = math.nan
    assert measure(quantity, x, y).isnan()


def test_dtypes():
    x, y = variables(12, dtype=torch.float32)
    exact = hsic(x, y)
    assert hsic(x.double(), y.double()).dtype == torch.float64
    assert hsic(x.bfloat16(), y.bfloat16()).dtype == torch.float32
    labels = torch.arange(12) % 3
    assert hsic(labels, labels, kernel_x="delta", kernel_y="delta").dtype == torch.float32
    assert hsic(x.double(), labels, kernel_y="delta").dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(hsic(x, y), exact)
        assert measure("normalized", x, y).dtype == torch.float32


def test_shapes():
    x = torch.randn(8, 2, 3, 4)
    torch.testing.assert_close(hsic(x, x[:, 0, 0, 0]), hsic(x.flatten(1), x[:, 0, 0, :1]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_too_few_or_different_numbers_of_samples(estimator):
    least = ESTIMATORS[estimator]
    x, y = variables(least)
    assert torch.isfinite(measure(estimator, x, y))
    with pytest.raises(ValueError, match=f"{estimator} takes at least {least} samples, got {least - 1}"):
        measure(estimator, x[1:], y[1:])
    with pytest.raises(ValueError, match="same number of samples"):
        measure(estimator, x, y[1:])


def test_invalid_options_are_errors():
    x, y = variables(8)
    with pytest.raises(ValueError, match=r"estimator must be one of 'biased', 'unbiased', .*, got 'song'"):
        hsic(x, y, estimator="song")
    for options in ({"block_size": 4}, {"gather": True}):
        with pytest.raises(ValueError, match="inverts whole Gram matrices"):
            hsic(x, y, estimator="normalized", **options)
    with pytest.raises(ValueError, match="inverts whole Gram matrices"):
        hsic(tiled_gram(x), y, estimator="debiased")
    with pytest.raises(ValueError, match="y must be floating point"):
        hsic(x, torch.arange(8))
    with pytest.raises(ValueError, match="t must be floating point"):
        cs_qmi(x, torch.arange(8))
    with pytest.raises(ValueError, match="kernels of x and t must be 'gaussian', got 'linear'"):
        cs_qmi(tiled_gram(x, kernel="linear"), y)
    with pytest.raises(ValueError, match="bandwidth must be a number above 0"):
        hsic(x, y, bandwidth_y=0.0)
    with pytest.raises(ValueError, match="bandwidth must be a number above 0"):
        cs_qmi(x, y, bandwidth_t=-1.0)
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        normalized_factor(x, epsilon=0.0)
