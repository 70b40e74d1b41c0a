"""Encoders of Gaussian codes: initialization, the scale of the noise, and the layout of samples."""

import math

import pytest
import torch

from ibreg import VariationalBottleneck
from ibreg.layers.encoder import LEAST_SCALE, build_encoder, noise_scale, reset_encoder, sample
from ibreg.layers.scope import Scope

BATCH, FEATURES, CODE = 5, 6, 3


@pytest.mark.parametrize("noise", [True, False])
def test_initialization(noise):
    encoder, x = build_encoder(FEATURES, FEATURES, "identity", noise=noise), torch.randn(BATCH, FEATURES)
    reset_encoder(encoder, FEATURES, "identity")
    assert torch.equal(encoder(x)[:, :FEATURES], x)
    torch.testing.assert_close(noise_scale(encoder(x)[:, FEATURES:]), torch.full((BATCH, FEATURES * noise), 0.1))

    encoder = build_encoder(FEATURES, CODE, "default", noise=noise)
    reset_encoder(encoder, CODE, "default", gain=0.5)
    assert encoder.weight.abs().max() <= 0.5 * math.sqrt(6 / (FEATURES + CODE * (1 + noise)))
    assert not encoder.bias[:CODE].any()
    assert (encoder.bias[CODE:] == -5).all()


def test_identity_initialization_needs_equal_sizes():
    with pytest.raises(ValueError, match="out_features must be in_features=6 with start='identity', got 3"):
        build_encoder(FEATURES, CODE, "identity", noise=True)


def test_noise_scale_is_the_softplus_and_never_0():
    raw = torch.linspace(-90, 90, 1001, dtype=torch.float64)
    torch.testing.assert_close(noise_scale(raw), raw.exp().log1p(), rtol=1e-12, atol=2 * LEAST_SCALE)
    assert noise_scale(torch.tensor(-1e4)) == torch.tensor(LEAST_SCALE)
    assert noise_scale(raw.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(BATCH, CODE), (BATCH, 7, CODE), (BATCH, 2, 4, CODE)], ids=len)
@pytest.mark.parametrize("draws", [1, 3])
def test_samples_are_mean_plus_scaled_noise_along_the_batch(shape, draws):
    layer, mean, scale = VariationalBottleneck(FEATURES, CODE), torch.randn(shape), torch.rand(shape)
    z, noise = sample(layer, mean, scale, Scope(draws=draws))
    assert noise.shape == (draws, *shape)
    expected = (mean + scale * noise).flatten(0, 1)
    torch.testing.assert_close(layer.features_last(z), expected)
    z, noise = sample(layer.eval(), mean, scale, Scope(draws=draws))
    assert torch.equal(layer.features_last(z), mean)
    assert noise is None
