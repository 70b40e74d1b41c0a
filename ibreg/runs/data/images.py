"""Images as tensors `(rows, channels, height, width)`: decoded, scaled, and changed at random for training."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of the red, green and blue channel of values in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFiles:
    """Image files that are indexed like a tensor `(rows, 3, size, size)` and decoded when asked for.

    Args:
        paths: One file per row.
        image_size: Side of the square image in pixels: the shorter side is resized to it, the center is kept.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(self, paths: Sequence[str], image_size: int, mean: Sequence[float], std: Sequence[float]):
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(image_size),
                transforms.CenterCrop(image_size),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: list[int]) -> Tensor:
        return torch.stack([self.transform(read_image(self.paths[index])) for index in indices])


def read_image(path: str) -> Image:
    """Decodes an image file.

    Raises:
        ValueError: If it is broken; the message names it.
    """
    try:
        return default_loader(path)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of them for broken files
        raise ValueError(
            f"{path} is broken ({error}): remove or replace it, or leave broken files out with data.broken=skip"
        ) from error


def is_broken(path: str) -> bool:
    """Whether an image file cannot be decoded."""
    try:
        read_image(path)
    except ValueError:
        return True
    return False


def class_folders(folder: Path, *, skip_broken: bool) -> ImageFolder:
    """Lists the images in `folder/<class>/`.

    Args:
        folder: the folder.
        skip_broken: whether files that cannot be decoded are left out, with a warning that names them.

    Raises:
        FileNotFoundError: If there are no folders in it.
        ValueError: If a class has no image.
    """
    if not folder.is_dir() or not any(place.is_dir() for place in folder.iterdir()):
        raise FileNotFoundError(
            f"no class folders in {folder.absolute()}: images are expected in train/<class>/ and test/<class>/ under "
            f"{folder.parent.absolute()}; they are your own data, which data.download=true cannot fetch"
        )
    found = ImageFolder(folder, allow_empty=True)
    if skip_broken and (broken := {path for path, _ in found.samples if is_broken(path)}):
        warnings.warn(f"{len(broken)} broken files are left out: {', '.join(sorted(broken)[:5])}", stacklevel=5)
        found.samples = [(path, label) for path, label in found.samples if path not in broken]
        found.targets = [label for _, label in found.samples]
    seen = set(found.targets)
    if empty := [name for name, label in found.class_to_idx.items() if label not in seen]:
        raise ValueError(f"no image in {folder} for the classes {empty}: add some or remove these folders")
    return found


def crop_and_flip(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Shifts every image by up to an eighth of its size and mirrors half of them, as is usual for CIFAR-10.

    What is shifted in is 0, the mean color of normalized images (He et al. 2016, arXiv 1512.03385, section 4.2).

    Args:
        images: `(batch, channels, height, width)`.
        generator: of the random numbers; None for torch's global one.

    Example:
        >>> crop_and_flip(torch.randn(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])
    """
    batch, channels, height, width = images.shape
    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down))
    rows = torch.randint(2 * down + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * right + 1, (batch, 1), generator=generator) + torch.arange(width)
    columns = torch.where(torch.rand(batch, 1, generator=generator) < 0.5, columns, columns.flip(1))
    image = torch.arange(batch)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def channels_first(pixels) -> Tensor:
    """Gives `(rows, channels, height, width)` for `(rows, height, width)` and `(rows, height, width, channels)`."""
    pixels = torch.as_tensor(pixels)
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def normalized(pixels: Tensor, largest: int, mean: float | Sequence[float], std: float | Sequence[float]) -> Tensor:
    """Scales pixels from 0 ... `largest` to [0, 1], then by mean and standard deviation.

    Args:
        pixels: `(rows, channels, height, width)`.
        largest: What becomes 1.
        mean: Subtracted from values in [0, 1], one number or one per channel.
        std: What they are divided by then.

    Raises:
        ValueError: As in `per_channel`.
    """
    channels = pixels.shape[1]
    shift = torch.tensor(per_channel("mean", mean, channels)).view(-1, 1, 1)
    scale = torch.tensor(per_channel("std", std, channels)).view(-1, 1, 1)
    # One copy and then in place: temporaries of this size cost more time than the arithmetic.
    return pixels.to(torch.float32, copy=True).div_(largest).sub_(shift).div_(scale)


def per_channel(option: str, value: float | Sequence[float], channels: int) -> list[float]:
    """Gives one positive `std`, or one `mean`, for each channel: the same for all, or those of a list.

    Raises:
        ValueError: For a list of another length, what is no number, and a deviation that is not above 0.

    Example:
        >>> per_channel("mean", 0.5, 3)
        [0.5, 0.5, 0.5]
    """
    numbers = list(value) if isinstance(value, Sequence) else [value] * channels
    valid = len(numbers) == channels and all(isinstance(number, int | float) for number in numbers)
    if not valid or (option == "std" and min(numbers) <= 0):
        above = " above 0" if option == "std" else ""
        raise ValueError(f"{option}={value!r} is one number{above}, or a list of {channels}, one per channel")
    return [float(number) for number in numbers]
