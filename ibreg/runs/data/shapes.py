"""Images of a shape on a background, rendered from concepts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SHAPE_CONCEPTS = ("circle", "large", "striped", "red", "bright")
# Range of half the side of a small and of a large shape, as a fraction of the side of the image.
SIZES = ((0.18, 0.24), (0.28, 0.34))


def draw_shapes(concepts: np.ndarray, size: int, noise: float, rng: np.random.Generator) -> Tensor:
    """Render one image per row of concepts; position, exact size, stripes and noise are random.

    Args:
        concepts: `(images, 5)`, 0 or 1: a circle (else a square), large, striped, red (else blue), bright background.
        size: side of the images in pixels.
        noise: standard deviation of the noise of each pixel, whose range is [0, 1].
        rng: random generator. Images of equal generators differ in their concepts only.

    Returns:
        `(images, 3, size, size)`, float32.

    Example:
        >>> images = draw_shapes(np.array([[1, 1, 0, 1, 0]]), 16, 0.0, np.random.default_rng(0))
        >>> images.shape, images[0, :, 8, 8].tolist() == images[0, :, 7, 7].tolist()
        (torch.Size([1, 3, 16, 16]), True)
    """
    circle, large, striped, red, bright = (column[:, None, None].astype(bool) for column in concepts.T)
    count = len(concepts)

    def uniform(low, high):
        return low + (high - low) * rng.random((count, 1, 1))

    small_radius, large_radius = (uniform(*span) for span in SIZES)
    radius = np.where(large, large_radius, small_radius)
    steps = (np.arange(size) + 0.5) / size - 0.5
    across, down = steps[None, None, :] - uniform(-0.12, 0.12), steps[None, :, None] - uniform(-0.12, 0.12)
    # Circle and square have equal areas, so that the area is independent of the shape.
    inside = np.where(
        circle, across**2 + down**2 < radius**2, np.maximum(abs(across), abs(down)) < radius * np.sqrt(np.pi) / 2
    )
    direction, phase = uniform(0, np.pi), uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * 8 * (np.cos(direction) * across + np.sin(direction) * down) + phase)
    light = np.where(striped & (wave < 0), 0.35, 0.8)
    background = np.where(bright, 0.65, 0.25)
    colors = (np.where(red, light, 0.2), np.full_like(light, 0.2), np.where(red, 0.2, light))
    pixels = np.stack([np.where(inside, color, background) for color in colors], axis=1)
    pixels = np.clip(pixels + noise * rng.standard_normal(pixels.shape), 0, 1)
    return torch.tensor(pixels, dtype=torch.float32)
