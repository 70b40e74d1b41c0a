"""The HSIC bottleneck against the functions and against float64 numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from ibreg import HSICBottleneck, Regularized, VariationalBottleneck
from ibreg.functional import hsic

BATCH, FEATURES = 20, 6


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, 3, generator=generator)
    code = torch.randn(BATCH, FEATURES, generator=generator) + x.sum(1, keepdim=True)
    return x, code, (x[:, 0] > 0).long()


def biased(k, q):
    n = len(k)
    centering = np.eye(n) - 1 / n
    return np.trace(k @ centering @ q @ centering) / (n - 1) ** 2


def gaussian(x, bandwidth):
    x = x.double().numpy()
    return np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * bandwidth**2))


def normalized(k, q, epsilon=1e-5):
    n = len(k)
    centering = np.eye(n) - 1 / n
    factors = []
    for gram in (k, q):
        gram = centering @ gram @ centering
        factors.append(gram @ np.linalg.inv(gram + epsilon * n * np.eye(n)))
    return np.trace(factors[0] @ factors[1])


@pytest.mark.parametrize(("estimator", "reference"), [("biased", biased), ("normalized", normalized)])
def test_penalty_against_numpy(estimator, reference):
    x, code, y = batch()
    layer = HSICBottleneck(
        lambda_x=0.7, lambda_y=3.0, estimator=estimator, bandwidth_x=1.5, bandwidth_t=2.5, kernel_y="delta"
    )
    out = layer.measure(code, inputs=x, target=y)
    k, q, labels = gaussian(x, 1.5), gaussian(code, 2.5), (y[:, None] == y[None]).double().numpy()
    expected = 0.7 * reference(k, q) - 3.0 * reference(q, labels)
    assert out.penalty.item() == pytest.approx(expected, rel=1e-5)
    assert out.logs["hsic_x"].item() == pytest.approx(reference(k, q), rel=1e-5)
    assert out.logs["hsic_y"].item() == pytest.approx(reference(q, labels), rel=1e-5)


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "cka", "normalized", "debiased"])
def test_penalty_against_the_functions(estimator):
    x, code, y = batch()
    out = HSICBottleneck(lambda_x=2.0, lambda_y=0.5, estimator=estimator).measure(code, inputs=x, target=y)
    expected = 2 * hsic(x, code, estimator=estimator) - 0.5 * hsic(code, y, kernel_y="delta", estimator=estimator)
    torch.testing.assert_close(out.penalty, expected)


@pytest.mark.parametrize("estimator", ["unbiased", "debiased"])
def test_kernel_of_the_target_depends_on_its_dtype(estimator):
    x, code, y = batch()
    layer = HSICBottleneck(estimator=estimator)
    one_hot = nn.functional.one_hot(y).float()
    linear = HSICBottleneck(estimator=estimator, kernel_y="linear").measure(code, inputs=x, target=one_hot)
    torch.testing.assert_close(layer.measure(code, inputs=x, target=y).penalty, linear.penalty)
    number = x[:, 0]
    measured = layer.measure(code, inputs=x, target=number).logs["hsic_y"]
    torch.testing.assert_close(measured, hsic(code, number, estimator=estimator))
    torch.testing.assert_close(layer.measure(code, inputs=x, target=number.unsqueeze(1)).logs["hsic_y"], measured)


@pytest.mark.parametrize("kernel", ["linear", "gaussian", "inverse_multiquadric"])
def test_class_indices_are_never_compared_as_numbers(kernel):
    x, code, y = batch()
    with pytest.raises(ValueError, match=f"class indices and kernel_y='{kernel}'.*one-hot"):
        HSICBottleneck(kernel_y=kernel).measure(code, inputs=x, target=y)


def test_labels_below_zero_are_an_error():
    x, code, y = batch()
    with pytest.raises(RuntimeError, match="class indices of at least 0: HSIC ignores no sample"):
        HSICBottleneck().measure(code, inputs=x, target=torch.where(y == 1, -100, y))


def test_a_variable_without_weight_is_not_needed():
    x, code, y = batch()
    without_target = HSICBottleneck(lambda_y=0.0).measure(code, inputs=x)
    assert set(without_target.logs) == {"hsic_x", "similarity", "inputs_similarity"}
    assert HSICBottleneck(lambda_x=0.0).needs == ("target",)
    assert set(HSICBottleneck(lambda_x=0.0).measure(code, target=y).logs) == {"hsic_y", "similarity"}


def test_it_removes_features_that_are_irrelevant_for_the_target():
    """Trained by the penalty alone, the scale of the one relevant feature stays and the others shrink."""
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = (x[:, 0] > 0).long()
    scale = nn.Parameter(torch.ones(4))
    layer, optimizer = HSICBottleneck(lambda_y=1.5), torch.optim.Adam([scale], lr=0.02)
    for _ in range(150):
        loss = layer.measure(x * scale, inputs=x, target=y).penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert scale[0].abs() > 4 * scale[1:].abs().max()


def test_monte_carlo_samples_of_an_earlier_layer_repeat_inputs_and_targets():
    x, _, y = batch()
    noisy = VariationalBottleneck(3, 3, beta=0.0)
    model = Regularized(nn.Sequential(noisy, HSICBottleneck(estimator="biased")), draws=2)
    torch.manual_seed(0)
    output, penalty, _ = model(x, target=y)
    code = output.flatten(0, 1)
    expected = HSICBottleneck(estimator="biased").measure(code, inputs=x.repeat(2, 1), target=y.repeat(2)).penalty
    torch.testing.assert_close(penalty, expected)


def test_stop_gradient_trains_each_block_by_its_own_penalty():
    x, _, y = batch()
    blocks = [nn.Linear(3, 5), nn.Linear(5, 4)]
    net = nn.Sequential(
        blocks[0], HSICBottleneck(stop_gradient=True), blocks[1], HSICBottleneck(stop_gradient=True), nn.Linear(4, 2)
    )
    output, penalty, _ = Regularized(net)(x, target=y)
    parameters = [block.weight for block in blocks]
    output_gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
    assert output_gradients == (None, None)
    code = blocks[0](x)
    first = HSICBottleneck().measure(code, inputs=x, target=y).penalty
    second = HSICBottleneck().measure(blocks[1](code.detach()), inputs=x, target=y).penalty
    torch.testing.assert_close(penalty, first + second)
    expected = torch.autograd.grad(first, parameters[0]) + torch.autograd.grad(second, parameters[1])
    torch.testing.assert_close(torch.autograd.grad(penalty, parameters), expected)
