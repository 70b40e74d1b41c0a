"""Linear encoders of Gaussian codes: their size, their initialization, and the sampling of the code."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Constraint, Count, OneOf, Optional
from ibreg.layers.scope import Scope
from ibreg.precision import at_least_float32

CONSTRAINTS: dict[str, Constraint] = {  # of the options that every layer with an encoder has
    "out_features": Optional(Count("size of the code")),
    "start": OneOf(("default", "identity")),
}

# Added to the standard deviation, whose logarithm is -inf where the softplus underflows.
LEAST_SCALE = 1e-30


def build_encoder(
    in_features: int, out_features: int, start: str, *, noise: bool, device=None, dtype=None
) -> nn.Linear:
    """Builds a linear layer from features to the mean of the code and, with `noise`, its raw scale.

    Raises:
        ValueError: If the sizes differ with an identity start.
    """
    if start == "identity" and out_features != in_features:
        raise ValueError(
            f"out_features must be in_features={in_features} with start='identity', got {out_features}; leave it out, "
            "or use start='default'"
        )
    return nn.Linear(in_features, 2 * out_features if noise else out_features, device=device, dtype=dtype)


@torch.no_grad()
def reset_encoder(encoder: nn.Linear, out_features: int, start: str, *, gain: float = 1.0) -> None:
    """Initializes an encoder: Xavier weights and a scale of 0.0067, or mean = input and a scale of 0.1.

    Args:
        encoder: of `build_encoder`.
        out_features: size of the code.
        start: "default" or "identity".
        gain: of the Xavier weights.
    """
    raw_scale = slice(out_features, None)
    nn.init.zeros_(encoder.bias)
    if start == "identity":
        nn.init.zeros_(encoder.weight)
        nn.init.eye_(encoder.weight[:out_features])
        encoder.bias[raw_scale] = math.log(math.expm1(0.1))
    else:
        nn.init.xavier_uniform_(encoder.weight, gain=gain)
        encoder.bias[raw_scale] = -5.0


def sample(layer: Bottleneck, mean: Tensor, scale: Tensor, scope: Scope | None) -> tuple[Tensor, Tensor | None]:
    r"""Samples the code of a stochastic layer, z = mu + sigma eps; in evaluation it is the mean.

    Args:
        layer: samples in training mode alone, and puts the features on its feature axis.
        mean: mu, `(batch, *positions, features)`.
        scale: sigma, of a shape that broadcasts with the mean.
        scope: has the number of samples of each row, which are concatenated along the batch.

    Returns:
        The code, features on the layer's axis, and the noise eps, `(draws, batch, *positions, features)`, None in
        evaluation.
    """
    if not layer.training:
        return layer.features_back(
            mean.clone()
        ), None  # so that an in-place ReLU after the layer does not change the state
    draws = scope.claim_draws(layer) if scope is not None else 1
    noise = torch.randn((draws, *mean.shape), dtype=mean.dtype, device=mean.device)
    # One sample has no axis of its own, over which the backward pass would sum.
    z = torch.addcmul(mean, scale.to(mean.dtype), noise.squeeze(0))
    return layer.features_back(z.flatten(0, z.dim() - mean.dim())), noise


def noise_scale(raw_scale: Tensor) -> Tensor:
    r"""Converts the raw scale rho of an encoder to a standard deviation, at least in float32.

    .. math:: \sigma = \log(1 + e^\rho) + 10^{-30}
    """
    # -logsigmoid(-x) is the softplus, at two thirds of its time.
    return LEAST_SCALE - F.logsigmoid(-at_least_float32(raw_scale))
