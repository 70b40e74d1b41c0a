"""Image files as viewers show them: upright, on a white background, whatever their format and number of bits."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor
from torchvision.transforms import functional

NO_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow needs other programs to decode them


class ImageFileError(ValueError):
    """An image file that cannot be read, or whose pixels have no known meaning; its message is one line.

    A `DataLoader` raises an error of a worker process once more in the main process, with the traceback as its message:
    the last line of it is the message of the worker.
    """

    def __init__(self, message: str):
        line = message.rstrip().rpartition("\n")[2]
        super().__init__(line.removeprefix(f"{ImageFileError.__module__}.{ImageFileError.__qualname__}: "))


class ImageFiles:
    """Image files that are indexed like a tensor `(rows, 3, size, size)` and decoded on access.

    Args:
        paths: one file per row.
        image_size: side of the square images in pixels, to which the square at the center of a file is resized.
        workers: number of processes in which a loader decodes batches; 0: the main process.
    """

    def __init__(self, paths: Sequence[str], image_size: int, workers: int = 0):
        self.paths, self.image_size, self.workers = paths, image_size, workers

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._square(self.paths[index]) for index in indices])

    def _square(self, path: str) -> Tensor:
        image: Any = read_image(path)  # torchvision declares tensors, and takes both
        # Cropped before it is resized: a strip of 1 x 10,000 pixels would become one of 224 x 2,240,000.
        square: Any = functional.center_crop(image, [min(image.size)])
        resized: Any = functional.resize(square, [self.image_size] * 2)
        return functional.to_tensor(resized).expand(3, -1, -1)


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Lists the formats of images that Pillow can decode, the most common first."""
    Image.init()
    return tuple(name for name in Image.ID if name not in NO_DECODER)


@functools.cache
def image_endings() -> frozenset[str]:
    """Lists the endings of the formats that Pillow can decode, in lower case.

    Example:
        >>> {".jpg", ".png", ".gif", ".tif", ".webp"} <= image_endings(), ".pdf" in image_endings()
        (True, False)
    """
    formats = image_formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def read_image(path: str) -> Image.Image:
    """Decodes the first frame of an image file.

    Returns:
        An image of mode RGB; for grayscale with more than 8 bits, one of mode F with values in [0, 1].

    Raises:
        ImageFileError: If the file is damaged, too large, or of an unknown range; the message names it.
    """
    try:
        return _decoded(path)
    except Exception as error:  # for damaged files, Pillow's decoders raise errors of every kind
        raise ImageFileError(f"{_described(path, error)}, or leave such files out with data.broken=skip") from error


def problem_of(path: str) -> str | None:
    """Returns what prevents an image file from being read, None if it can be read."""
    try:
        _decoded(path)
    except Exception as error:  # as in `read_image`
        return _described(path, error)
    return None


def _described(path: str, error: Exception) -> str:
    if isinstance(error, ImageFileError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        size = str(error).partition(",")[0]  # Image size (400000000 pixels) exceeds limit of 178956970 pixels
        return f"{path} is too large ({size}): make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return f"{path} is broken (no image of a known format): remove or replace it"
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be opened ({error.strerror}): check that it exists and may be read"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} is broken ({reason}): remove or replace it"


def _decoded(path: str) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow's, of large images and of damaged metadata, name no file; what matters to the pixels is an error.
        warnings.simplefilter("ignore")
        # Other formats could have the ending of an image: an EPS file would be run as a program.
        with Image.open(path, formats=image_formats()) as image:
            largest = _largest_value(path, image)
            upright = _upright(image)
            return _on_white(upright) if largest is None else _scaled(image, upright, largest)


def _largest_value(path: str, image: Image.Image) -> int | None:
    """Returns the largest value of grayscale with more than 8 bits, None for 8 bits.

    Raises:
        ImageFileError: For floating-point and signed or 32-bit integer pixels: the file does not tell their range.
    """
    if image.mode.startswith("I;16"):
        return 2 ** (image.tag_v2[BITSPERSAMPLE][0] if isinstance(image, TiffImageFile) else 16) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow's type for their 16 bits, scaled to all of them
        return 2**16 - 1
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit integer"
        raise ImageFileError(f"{path} has {kind} pixels, whose range is unknown: save it with 8 or 16 bits")
    return None


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data, which viewers ignore; damaged pixels are an error of `load`
        return image


def _scaled(image: Image.Image, upright: Image.Image, largest: int) -> Image.Image:
    values = np.asarray(upright, dtype=np.float32)
    pixels = values / np.float32(largest)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
        pixels = 1 - pixels  # 0 is white, which Pillow knows of 8 bits only
    if (transparent := image.info.get("transparency")) is not None:
        pixels = np.where(values == transparent, np.float32(1), pixels)
    return Image.fromarray(pixels)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
