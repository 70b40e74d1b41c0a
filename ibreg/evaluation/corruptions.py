"""Common corruptions of images, 15 kinds at 5 severities.

After Hendrycks and Dietterich 2019 (arXiv 1903.12261): those of its kinds that need no images of weather, and changes
of position. Lengths are fractions of the shorter side, so that small and large images are affected alike. The figures
are not comparable with those on the published corrupted data sets, which have other severities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as T

GRAY = 0.5


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Args:
        function: `function(images, amount, generator)` for images in [0, 1], `(batch, channels, height, width)`.
        amounts: amounts at the severities 1 to 5.
        smallest: smallest shorter side in pixels; below it, the mildest blurs would change nothing.
    """

    function: Callable[[Tensor, float, torch.Generator], Tensor]
    amounts: tuple[float, float, float, float, float]
    smallest: int = 1


def corrupt(
    images: Tensor, kind: str, severity: int, *, clamp: tuple[float, float] = (0.0, 1.0), seed: int = 0
) -> Tensor:
    """Corrupts images; random kinds sample each image independently.

    Args:
        images: `(batch, channels, height, width)`, floats.
        kind: one of `names()`.
        severity: 1 (mild) to 5 (severe).
        clamp: values of black and white, (-1, 1) for images normalized by mean 0.5 and deviation 0.5.
        seed: seed of random kinds; with the same seed, severities differ in their amount alone.

    Shapes:
        the result has the shape of `images`, and stays between black and white.

    Raises:
        ValueError: If the kind or severity is unknown, or images have another shape, dtype or range, or are too small.

    Example:
        >>> images = torch.rand(4, 1, 28, 28)
        >>> corrupt(images, "jpeg", 3).shape, len(names())
        (torch.Size([4, 1, 28, 28]), 15)
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"the corruption must be one of {', '.join(names())}, got {kind!r}")
    if type(severity) is not int or severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images must be floats (batch, channels, height, width), got {images.dtype} of shape {tuple(images.shape)}"
        )
    black, white = clamp
    if not black < white:
        raise ValueError(f"clamp must be (black, white), got {clamp}")
    if images.numel() and not black <= images.min() <= images.max() <= white:
        raise ValueError(f"images must be within clamp={clamp}, got values from {images.min():g} to {images.max():g}")
    corruption = CORRUPTIONS[kind]
    if min(images.shape[2:]) < corruption.smallest:
        height, width = images.shape[2:]
        raise ValueError(
            f"{kind} needs images of at least {corruption.smallest} x {corruption.smallest} pixels, got "
            f"{height} x {width}: leave it out"
        )
    if len(images) == 0:
        return images.clone()
    unit = ((images - black) / (white - black)).clamp(0, 1)
    changed = corruption.function(unit, corruption.amounts[severity - 1], torch.Generator().manual_seed(seed))
    return (black + (white - black) * changed.clamp(0, 1)).clamp(black, white).to(images.dtype)


def names(side: int | None = None) -> list[str]:
    """Lists the kinds that `corrupt` knows.

    Args:
        side: shorter side in pixels, for the kinds that such images allow; None: all kinds.

    Example:
        >>> names()[:3], "defocus_blur" in names(8)
        (['brightness', 'contrast', 'defocus_blur'], False)
    """
    return sorted(kind for kind, corruption in CORRUPTIONS.items() if side is None or side >= corruption.smallest)


# --- noise


def _gaussian_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return images + deviation * _normal(images, generator)


def _speckle_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return images + deviation * images * _normal(images, generator)


def _shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Samples the number of photons of each value; white is `photons` on average."""
    return torch.poisson(photons * images.cpu(), generator).to(images) / photons


def _impulse_noise(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Sets a fraction of the values to black or white."""
    uniform = torch.rand(images.shape, generator=generator).to(images.device)
    return torch.where(uniform < fraction / 2, 0.0, torch.where(uniform < fraction, 1.0, images))


def _normal(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator).to(images)  # on the CPU, the same for every device


# --- blur


def _gaussian_blur(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    deviation = fraction * min(images.shape[2:])
    return T.gaussian_blur(images, [2 * math.ceil(3 * deviation) + 1] * 2, [deviation] * 2)


def _defocus_blur(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Filters with a disk whose edge is smoothed over one pixel."""
    radius = fraction * min(images.shape[2:])
    return _filtered(images, (radius + 0.5 - _offsets(radius).norm(dim=0)).clamp(0, 1))


def _motion_blur(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Filters with a line in one of four directions."""
    half = fraction * min(images.shape[2:]) / 2
    down, right = _offsets(half)

    def moved(group: Tensor, direction: int) -> Tensor:
        angle = direction * math.pi / 4
        along = (right * math.cos(angle) + down * math.sin(angle)).abs()
        across = (right * math.sin(angle) - down * math.cos(angle)).abs()
        return _filtered(group, (half + 0.5 - along).clamp(0, 1) * (1 - across).clamp(0, 1))

    return _by_group(images, moved, 4, generator)


def _offsets(radius: float) -> Tensor:
    """Returns the offsets of the entries of a filter from its center, `(2, side, side)`."""
    steps = torch.arange(-math.ceil(radius), math.ceil(radius) + 1.0)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"))


def _filtered(images: Tensor, weights: Tensor) -> Tensor:
    channels, padding = images.shape[1], len(weights) // 2
    weights = (weights / weights.sum()).to(images).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(images, [padding] * 4, mode="reflect"), weights, groups=channels)


# --- light and storage


def _brightness(images: Tensor, more: float, generator: torch.Generator) -> Tensor:
    """Adds light; a factor would not change black."""
    return images + more


def _contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    return factor * images + (1 - factor) * images.mean((1, 2, 3), keepdim=True)


def _pixelate(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    height, width = images.shape[2:]
    coarse = T.resize(images, [max(round(fraction * side), 1) for side in (height, width)], antialias=True)
    return T.resize(coarse, [height, width], interpolation=InterpolationMode.NEAREST_EXACT)


def _jpeg(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Encodes and decodes with Pillow; torchvision's encoder is deprecated."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"jpeg needs images of 1 or 3 channels, got {images.shape[1]}: leave it out")
    decoded = []
    for image in images.cpu():
        file = BytesIO()
        T.to_pil_image(image.float()).save(file, "jpeg", quality=int(quality))
        decoded.append(T.to_dtype(T.pil_to_tensor(Image.open(file)), images.dtype, scale=True))
    return torch.stack(decoded).to(images.device)


# --- position


def _rotation(images: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    def rotated(group: Tensor, side: int) -> Tensor:
        return T.rotate(group, (1, -1)[side] * degrees, InterpolationMode.BILINEAR)

    return _by_group(images, rotated, 2, generator)


def _translation(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Shifts along both axes, and fills with black."""
    distance = fraction * min(images.shape[2:])

    def shifted(group: Tensor, corner: int) -> Tensor:
        across, down = ((1, 1), (1, -1), (-1, 1), (-1, -1))[corner]
        by = [across * distance, down * distance]
        return T.affine(group, 0.0, by, 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)

    return _by_group(images, shifted, 4, generator)


def _occlusion(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Covers a random square with gray; with the same seed a larger square contains the smaller."""
    height, width = images.shape[2:]
    half = fraction * min(height, width) / 2
    position = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images.device)
    rows = torch.arange(height, device=images.device).view(-1, 1) + 0.5
    columns = torch.arange(width, device=images.device) + 0.5
    # The centers leave room for the largest square.
    largest = CORRUPTIONS["occlusion"].amounts[-1] * min(height, width) / 2
    down = largest + position[0] * (height - 2 * largest)
    right = largest + position[1] * (width - 2 * largest)
    covered = ((rows - down).abs() <= half) & ((columns - right).abs() <= half)
    return torch.where(covered, GRAY, images)


def _elastic(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Moves each pixel by a smooth random field, whose root mean square is a fraction of the side."""
    height, width = images.shape[2:]
    field = torch.randn(len(images), 2, height, width, generator=generator)
    deviation = 0.1 * min(height, width)
    field = T.gaussian_blur(field, [2 * math.ceil(2 * deviation) + 1] * 2, [deviation] * 2)
    field = field / field.square().sum(1, keepdim=True).mean((2, 3), keepdim=True).sqrt()
    # In units of the sampling grid, from -1 to 1.
    field = (2 * fraction * min(height, width) * field.permute(0, 2, 3, 1) / torch.tensor([width, height])).to(images)
    moved = [T.elastic(one[None], by[None]) for one, by in zip(images, field, strict=True)]
    return torch.cat(moved)


def _by_group(
    images: Tensor, change: Callable[[Tensor, int], Tensor], groups: int, generator: torch.Generator
) -> Tensor:
    """Samples a group for each image, and changes the images of each group together."""
    group = torch.randint(groups, (len(images),), generator=generator).to(images.device)
    changed = torch.empty_like(images)
    for index in group.unique().tolist():
        changed[group == index] = change(images[group == index], index)
    return changed


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),  # standard deviation
    "shot_noise": Corruption(_shot_noise, (60, 25, 12, 5, 3)),  # photons of white
    "impulse_noise": Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),  # fraction of values
    "speckle_noise": Corruption(_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),  # standard deviation at white
    "gaussian_blur": Corruption(_gaussian_blur, (0.015, 0.025, 0.035, 0.05, 0.07), smallest=24),  # of the side
    "defocus_blur": Corruption(_defocus_blur, (0.025, 0.04, 0.055, 0.075, 0.1), smallest=24),  # of the side
    "motion_blur": Corruption(_motion_blur, (0.1, 0.15, 0.2, 0.3, 0.4), smallest=8),  # of the side
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # of white
    "contrast": Corruption(_contrast, (0.6, 0.45, 0.3, 0.2, 0.1)),  # factor
    "pixelate": Corruption(_pixelate, (0.75, 0.6, 0.5, 0.4, 0.3), smallest=8),  # of the resolution
    "jpeg": Corruption(_jpeg, (40, 25, 15, 10, 5), smallest=8),  # quality
    "rotation": Corruption(_rotation, (6, 12, 18, 24, 32), smallest=8),  # degrees
    "translation": Corruption(_translation, (0.04, 0.08, 0.12, 0.16, 0.22), smallest=8),  # of the side
    "occlusion": Corruption(_occlusion, (0.15, 0.25, 0.35, 0.45, 0.55), smallest=8),  # of the side
    "elastic": Corruption(_elastic, (0.02, 0.03, 0.04, 0.055, 0.07), smallest=8),  # of the side
}
