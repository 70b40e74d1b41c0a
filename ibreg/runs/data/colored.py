"""Grayscale images in red or green: the color is spuriously correlated with the label."""

from __future__ import annotations

import torch
from torch import Tensor

GROUPS = ("small digit, red", "small digit, green", "large digit, red", "large digit, green")


def paint(
    images: Tensor, digits: Tensor, *, correlation: float, label_noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Colors digits red or green; the label is whether they are 5 or more (Arjovsky et al. 2019, arXiv 1907.02893).

    Args:
        images: `(rows, 1, height, width)` in [0, 1], on black ground.
        digits: `(rows,)`, 0 to 9.
        correlation: fraction of the images whose color is that of their label: red for 0, green for 1.
        label_noise: fraction of the labels that are incorrect; the color follows the label, correct or not.
        generator: random number generator of labels and colors.

    Returns:
        Images `(rows, 3, height, width)`, and labels `(rows,)`: 1 for 5 to 9, 0 for 0 to 4.

    Raises:
        ValueError: If a fraction is not in [0, 1].

    Example:
        >>> options = {"correlation": 1.0, "label_noise": 0.0, "generator": torch.Generator()}
        >>> images, labels = paint(torch.ones(2, 1, 1, 1), torch.tensor([3, 7]), **options)
        >>> labels, images.squeeze()
        (tensor([0, 1]), tensor([[1., 0., 0.],
                [0., 1., 0.]]))
    """
    for name, fraction in (("correlation", correlation), ("label_noise", label_noise)):
        if not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
            raise ValueError(f"{name} must be a fraction from 0 to 1, got {fraction!r}")
    uniform = torch.rand(2, len(digits), generator=generator)
    labels = (digits >= 5) ^ (uniform[0] < label_noise)
    green = labels ^ (uniform[1] >= correlation)
    colors = torch.stack([~green, green, torch.zeros_like(green)], 1).to(images)
    return images * colors[:, :, None, None], labels.long()


def groups_of(images: Tensor, labels: Tensor) -> Tensor:
    """Returns the group of label and color, an index of `GROUPS`, `(rows,)`; any scale of brightness will do.

    Args:
        images: `(rows, 3, height, width)`, as `paint` returns them.
        labels: `(rows,)`, 0 or 1.

    Example:
        >>> red = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]]).view(1, 3, 1, 2)
        >>> GROUPS[groups_of(red, torch.tensor([1])).item()]
        'large digit, red'
    """
    pixels = images.flatten(2)
    red, green, _ = (pixels.amax(2) - pixels.amin(2)).unbind(1)  # 0 in unused channels
    return 2 * labels + (green > red)
