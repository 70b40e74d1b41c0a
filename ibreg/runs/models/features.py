"""Features of a frozen encoder: computed once for all epochs, seeds and learners, in files named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from ibreg.runs.checkpoint import load_checkpoint, save_checkpoint
from ibreg.runs.data.images import ImageFiles
from ibreg.version import __version__

DEVIATION_FLOOR = 0.1  # of the mean deviation of all features


def encode(
    encoder: nn.Module, inputs, *, cache: Path, device: torch.device | str = "cpu", batch_size: int = 256
) -> Tensor:
    """Returns the features of inputs, read from the cache where the same encoder had the same inputs before.

    Args:
        encoder: In eval mode, maps `(batch, ...)` to `(batch, features)`.
        inputs: `(rows, ...)`: a tensor, or images in files.
        cache: Folder of the features. Any change of weights, architecture or inputs makes a file of another name.
        device: Where to encode.
        batch_size: Rows at a time.

    Returns:
        `(rows, features)` on the CPU.

    Raises:
        ValueError: If a feature is not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encode(nn.Flatten(), torch.ones(3, 2, 2), cache=Path(folder)).shape
        torch.Size([3, 4])
    """

    @torch.no_grad()
    def compute() -> dict[str, Tensor]:
        encoder.to(device)
        rows = range(len(inputs))
        batches = [list(rows[start : start + batch_size]) for start in rows[::batch_size]]
        return {"features": torch.cat([encoder(inputs[batch].to(device)).cpu() for batch in batches])}

    features = cached(cache, "features", digest(encoder, (), inputs), compute)["features"]
    if not features.isfinite().all():
        raise ValueError("the encoder gives features that are not finite: look at its weights and normalization")
    return features


def standardized(features: Tensor, by: Tensor) -> Tensor:
    r"""Centers and scales features by the mean and deviation of others, which come from unlabeled inputs.

    .. math::
        \hat x_d = \frac{x_d - \mu_d}{\max(\sigma_d, \bar\sigma / 10)}

    The floor keeps a feature that hardly varies in the others from dominating here.

    Args:
        features: `(rows, features)`.
        by: `(other rows, features)`, two rows or more.

    Example:
        >>> standardized(torch.tensor([[3.0, 7.0]]), by=torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        tensor([[ 1.4142, 28.2843]])
    """
    deviation = by.std(dim=0)
    floor = (DEVIATION_FLOOR * deviation.mean()).clamp(min=torch.finfo(by.dtype).tiny)
    return (features - by.mean(dim=0)) / deviation.maximum(floor)


def digest(module: nn.Module, options: Any, *inputs) -> str:
    """Returns a hash of all that a computation follows from: a module with its weights, options, and its inputs.

    Images in files are known by path, size and time of change.

    Example:
        >>> digest(nn.Flatten(), (), torch.zeros(2)) == digest(nn.Flatten(), (), torch.zeros(2))
        True
        >>> digest(nn.Flatten(), (), torch.zeros(2)) == digest(nn.Flatten(), (), torch.ones(2))
        False
    """
    found = hashlib.sha256(f"{__version__} {module} {options}".encode())
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype}".encode())
        _update(found, tensor)
    for part in inputs:
        _update(found, part)
    return found.hexdigest()


def _update(found, part) -> None:
    if isinstance(part, ImageFiles):
        stamps = [(str(path), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in part.paths]
        found.update(f"{part.transform} {stamps}".encode())
        return
    found.update(f"{tuple(part.shape)}".encode())
    found.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def cached(cache: Path, stem: str, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns what a computation gives, read from a file where it was done before, even by another process just now.

    Args:
        cache: Folder of the file.
        stem: Beginning of its name.
        key: A hash of all that the computation follows from, the rest of its name.
        compute: Returns tensors by name. It also runs where the file is damaged.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{stem}-{key[:20]}.pt"
    # One computes, the others wait and read.
    with FileLock(f"{path}.lock"):
        try:
            state = load_checkpoint(path)
        except ValueError:
            state = None
        if state is None:
            state = compute()
            save_checkpoint(path, state)
    return state
