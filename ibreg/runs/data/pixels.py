"""The unit of attacks and corruptions: pixels in [0, 1] for images, the values as they are for tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ibreg.regularized import unwrap
from ibreg.runs.data.images import per_channel


class Pixels:
    """Goes between pixels and the normalized inputs that a model was trained with.

    Args:
        input_shape: of one input, `(channels, height, width)` or `(features,)`.
        mean: what was subtracted from pixels in [0, 1], one number or one per channel; images have one.
        std: what they were divided by then.

    Raises:
        ValueError: images without mean or deviation.

    Example:
        >>> pixels = Pixels((1, 2, 2), mean=0.5, std=0.5)
        >>> pixels.of(torch.full((1, 1, 2, 2), -1.0)).sum(), pixels.clamp
        (tensor(0.), (0.0, 1.0))
        >>> Pixels((4,)).clamp is None
        True
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ):
        self.are_images = len(input_shape) == 3
        if self.are_images and (mean is None or std is None):
            raise ValueError("images are attacked in units of their pixels, which needs data.mean and data.std")
        channels = input_shape[0]
        self.side = min(input_shape[1:]) if self.are_images else None
        self.clamp = (0.0, 1.0) if self.are_images else None
        self._mean = torch.tensor(per_channel("mean", mean, channels)).view(-1, 1, 1) if self.are_images else None
        self._std = torch.tensor(per_channel("std", std, channels)).view(-1, 1, 1) if self.are_images else None

    def of(self, x: Tensor) -> Tensor:
        """Returns the pixels of a model's inputs."""
        if self._mean is None:
            return x
        return (x * self._std.to(x) + self._mean.to(x)).clamp(0, 1)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Returns the model's inputs for pixels."""
        return pixels if self._mean is None else (pixels - self._mean.to(pixels)) / self._std.to(pixels)

    def reader(self, model: nn.Module) -> nn.Module:
        """Returns the model, without what it is wrapped in, as one that takes pixels; it shares all parameters."""
        return unwrap(model) if self._mean is None else nn.Sequential(_Normalize(self), unwrap(model))


class _Normalize(nn.Module):
    def __init__(self, pixels: Pixels):
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.pixels.normalized(x)
