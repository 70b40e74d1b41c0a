"""Images as tensors `(rows, channels, height, width)` with values in [0, 1]: scaled, normalized, augmented."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of the red, green and blue channel of values in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
PerChannel = float | Annotated[Sequence[float], Field(min_length=1)]  # one number, or one per channel
VALUE_RANGE = (0.0, 1.0)  # of the images of every data set; the network normalizes them


def crop_and_flip(images: Tensor, generator: torch.Generator | None = None, *, fill: Sequence[float]) -> Tensor:
    """Shifts each image by up to 1/8 of its size, and flips half of them horizontally (arXiv 1512.03385, section 4.2).

    Args:
        images: `(batch, channels, height, width)`.
        generator: random number generator; None: the global one of torch.
        fill: color of what is shifted in, one value per channel. The published augmentation pads normalized images
            with 0, which is their mean color.

    Example:
        >>> crop_and_flip(torch.rand(4, 3, 32, 32), fill=IMAGENET_MEAN).shape
        torch.Size([4, 3, 32, 32])
    """
    batch, channels, height, width = images.shape
    down, right = height // 8, width // 8
    color = images.new_tensor(fill).view(1, -1, 1, 1)
    padded = color.repeat(batch, 1, height + 2 * down, width + 2 * right)
    padded[:, :, down : down + height, right : right + width] = images
    rows = torch.randint(2 * down + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * right + 1, (batch, 1), generator=generator) + torch.arange(width)
    columns = torch.where(torch.rand(batch, 1, generator=generator) < 0.5, columns, columns.flip(1))
    image = torch.arange(batch)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def channels_first(pixels) -> Tensor:
    """Returns `(rows, channels, height, width)` for `(rows, height, width)` or `(rows, height, width, channels)`."""
    pixels = torch.as_tensor(pixels)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def unit_range(pixels: Tensor, largest: int) -> Tensor:
    """Scales pixels from 0 ... `largest` to [0, 1], as float32."""
    return pixels.to(torch.float32, copy=True).div_(largest)


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, by which a network normalizes images with values in [0, 1].

    Attributes:
        mean: one number per channel.
        std: one number per channel, above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, mean: float | Sequence[float], std: float | Sequence[float], channels: int) -> Normalization:
        """Builds the normalization for a number of channels.

        Args:
            mean: one number for all channels, or one per channel.
            std: the same; above 0.
            channels: number of channels.

        Raises:
            ValueError: If a list has another length, an entry is no number, or a deviation is not above 0.

        Example:
            >>> Normalization.of(0.5, [0.2, 0.3, 0.4], channels=3)
            Normalization(mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))
        """
        return cls(_per_channel("mean", mean, channels), _per_channel("std", std, channels))


def _per_channel(option: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    numbers = list(value) if isinstance(value, Sequence) else [value] * channels
    valid = len(numbers) == channels and all(isinstance(number, int | float) for number in numbers)
    if not valid or (option == "std" and min(numbers) <= 0):
        number = "one number above 0" if option == "std" else "one number"
        raise ValueError(f"data.{option} must be {number}, or a list of {channels}, one per channel, got {value!r}")
    return tuple(float(number) for number in numbers)
