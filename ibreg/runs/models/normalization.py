"""Normalization of images inside the network: data sets, attacks and corruptions share values in [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ibreg.regularized import unwrap
from ibreg.runs.data.images import Normalization

CHILD = "normalize"


class Normalize(nn.Module):
    r"""Standardizes each channel, :math:`(x - \mu) / \sigma`; its numbers are no part of the `state_dict`.

    Args:
        normalization: mean and standard deviation, one per channel.

    Example:
        >>> Normalize(Normalization((0.5,), (0.25,)))(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, normalization: Normalization):
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalization.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalization.std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Standardizes images `(batch, channels, height, width)`."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Shows the numbers, which the `state_dict` does not have."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def add_normalization(network: nn.Module, normalization: Normalization) -> nn.Module:
    """Puts a `Normalize` in front of a network, which then reads images with values in [0, 1]; returns the network.

    As with an injected bottleneck, a child module and a hook that reaches it through the network leave the names of all
    modules and the keys of the `state_dict` as they were; copies, pickles and compiled networks normalize as well.

    Args:
        network: changed in place.
        normalization: mean and standard deviation, one per channel.

    Raises:
        ValueError: If the network has a module `normalize`, or would run the child after its own modules.
    """
    if isinstance(network, nn.Sequential) or hasattr(network, CHILD):
        raise ValueError(f"a {type(network).__name__} must be no Sequential and have no `{CHILD}` to be normalized")
    network.add_module(CHILD, Normalize(normalization))
    network.register_forward_pre_hook(_normalize, prepend=True)
    return network


def _normalize(network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (network.get_submodule(CHILD)(args[0]), *args[1:])


def network_inputs(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the inputs as the first layer of the network reads them, which kernels and task losses compare with.

    Args:
        model: wrapped in `Regularized` or not, with or without a `Normalize`.
        x: `(batch, ...)`, inputs as the data set has them.

    Example:
        >>> network_inputs(nn.Linear(2, 1), torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """
    normalize = getattr(unwrap(model), CHILD, None)
    return normalize(x) if isinstance(normalize, Normalize) else x
