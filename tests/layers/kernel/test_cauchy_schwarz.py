"""The Cauchy-Schwarz bottleneck against the functions, with and without parameters."""

import pytest
import torch
from torch import nn

from ibreg import CauchySchwarzBottleneck, Regularized
from ibreg.functional import cs_qmi
from ibreg.functional.kernel.bandwidths import bandwidth_of
from ibreg.functional.kernel.kernels import gaussian_gram

BATCH, FEATURES = 24, 5


def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, generator=generator)
    return x, 4 * torch.randn(BATCH, FEATURES, generator=generator) + x.sum(1, keepdim=True)


@pytest.mark.parametrize("normalized", [False, True])
def test_penalty_is_the_information(normalized):
    x, code = batch()
    layer = CauchySchwarzBottleneck(normalized=normalized, bandwidth_x=1.0, normalize_code=False)
    out = layer.measure(code, inputs=x)
    torch.testing.assert_close(out.penalty, cs_qmi(x, code, bandwidth_x=1.0, normalized=normalized))
    assert torch.equal(out.z, code)


def test_similarity_is_the_mean_kernel_of_two_samples():
    x, code = batch()
    out = CauchySchwarzBottleneck(bandwidth_t=("rms", 0.7)).measure(code, inputs=x)
    gram = gaussian_gram(code, bandwidth=("rms", 0.7))
    expected = (gram.sum() - BATCH) / (BATCH * (BATCH - 1))
    torch.testing.assert_close(out.logs["similarity"], expected)


def test_normalize_code_makes_the_penalty_scale_invariant():
    x, code = batch()
    layer = CauchySchwarzBottleneck(bandwidth_t=0.5)
    small, large = (layer.measure(scale * code, inputs=x).penalty for scale in (1e-3, 1e3))
    torch.testing.assert_close(small, large)
    torch.testing.assert_close(small, cs_qmi(x, code / bandwidth_of(code, ("rms", 1.0)), bandwidth_t=0.5))
    code.requires_grad_()
    (gradient,) = torch.autograd.grad(layer.measure(code, inputs=x).penalty, code)
    along = (gradient * (code - code.mean(0))).sum() / (gradient.norm() * code.norm())
    assert abs(along) < 1e-5
    plain = CauchySchwarzBottleneck(bandwidth_t=("rms", 0.25), normalize_code=False)
    (gradient,) = torch.autograd.grad(plain.measure(code, inputs=x).penalty, code)
    along = (gradient * (code - code.mean(0))).sum() / (gradient.norm() * code.norm())
    assert abs(along) > 1e-2  # there a larger code has a lower penalty


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 0), ({"out_features": 2}, 2 * FEATURES + 2), ({"stochastic": True}, 2 * FEATURES * (FEATURES + 1))],
)
def test_parameters(options, parameters):
    layer = CauchySchwarzBottleneck(FEATURES, **options)
    assert sum(parameter.numel() for parameter in layer.parameters()) == parameters
    assert CauchySchwarzBottleneck(**options).sized == (parameters > 0)


def test_identity_start_keeps_the_features():
    _, code = batch()
    for options in ({"out_features": FEATURES}, {"stochastic": True}):
        layer = CauchySchwarzBottleneck(FEATURES, start="identity", **options)
        torch.testing.assert_close(layer.eval()(code), code)
    noise = layer.train().measure(torch.zeros(4096, FEATURES), inputs=torch.randn(4096, 1)).z
    torch.testing.assert_close(noise.std(), torch.tensor(0.1), rtol=0.02, atol=0)


def test_noise_is_sampled_in_training_only():
    _, code = batch()
    layer = CauchySchwarzBottleneck(FEATURES, stochastic=True)
    assert layer.stochastic
    assert not CauchySchwarzBottleneck(FEATURES).stochastic
    with torch.no_grad():
        assert not torch.equal(layer(code), layer(code))
    layer.eval()
    assert torch.equal(layer(code), layer(code))


def test_the_penalty_of_several_monte_carlo_samples_is_that_of_the_first():
    x, _ = batch()
    layer = CauchySchwarzBottleneck(3, stochastic=True, beta=1.0)
    model = Regularized(nn.Sequential(layer), draws=3)
    torch.manual_seed(0)
    output, penalty, _ = model(x)
    rms = bandwidth_of(output[0], ("rms", 1.0))
    torch.testing.assert_close(penalty, cs_qmi(x, output[0] / rms))


def test_it_lowers_the_information():
    torch.manual_seed(0)
    x = torch.randn(128, 6)
    weight = nn.Parameter(torch.randn(6, 6) / 6**0.5)
    layer, optimizer = CauchySchwarzBottleneck(bandwidth_t=("rms", 0.5)), torch.optim.Adam([weight], lr=0.02)
    informations = []
    for _ in range(80):
        loss = layer.measure(x @ weight, inputs=x).penalty
        informations.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert informations[-1] < 0.6 * informations[0]
