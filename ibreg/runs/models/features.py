"""Features of a frozen encoder, computed once and cached in files whose names are hashes of encoder and inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from ibreg.runs.checkpoint import load_checkpoint, save_checkpoint
from ibreg.runs.data.image_files import ImageFiles
from ibreg.runs.data.rows import Rows, loader
from ibreg.version import __version__

DEVIATION_FLOOR = 0.1  # as a fraction of the mean deviation of all features


def encode(
    encoder: nn.Module, inputs, *, cache: Path, device: torch.device | str = "cpu", batch_size: int = 256
) -> Tensor:
    """Returns the features of inputs, from the cache if the same encoder has encoded the same inputs before.

    Args:
        encoder: in evaluation mode, maps `(batch, ...)` to `(batch, features)`.
        inputs: `(rows, ...)`: a tensor, or image files.
        cache: folder of the features. Any change of weights, architecture or inputs changes the name of the file.
        device: device of the encoder.
        batch_size: rows per batch.

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
        batches = loader(Rows(inputs, torch.zeros(len(inputs))), batch_size)
        return {"features": torch.cat([encoder(batch.to(device)).cpu() for batch, _ in batches])}

    features = cached(cache, "features", digest(encoder, (), inputs), compute)["features"]
    if not features.isfinite().all():
        raise ValueError("the features of the encoder are not finite: check its weights and normalization")
    return features


def standardized(features: Tensor, by: Tensor) -> Tensor:
    r"""Standardizes features by the mean and deviation of other features, those of unlabeled inputs.

    .. math::
        \hat x_d = \frac{x_d - \mu_d}{\max(\sigma_d, \bar\sigma / 10)}

    The floor prevents a feature that hardly varies in the others from dominating.

    Args:
        features: `(rows, features)`.
        by: features that mean and deviation are those of, `(other rows, features)`, at least two rows.

    Example:
        >>> standardized(torch.tensor([[3.0, 7.0]]), by=torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        tensor([[ 1.4142, 28.2843]])
    """
    deviation = by.std(dim=0)
    floor = (DEVIATION_FLOOR * deviation.mean()).clamp(min=torch.finfo(by.dtype).tiny)
    return (features - by.mean(dim=0)) / deviation.maximum(floor)


def digest(module: nn.Module, options: Any, *inputs) -> str:
    """Returns a hash of everything that a computation depends on: a module with its weights, options and inputs.

    Image files are identified by path, size and modification time.

    Example:
        >>> digest(nn.Flatten(), (), torch.zeros(2)) == digest(nn.Flatten(), (), torch.zeros(2))
        True
        >>> digest(nn.Flatten(), (), torch.zeros(2)) == digest(nn.Flatten(), (), torch.ones(2))
        False
    """
    hashed = hashlib.sha256(f"{__version__} {module} {options}".encode())
    for name, tensor in module.state_dict().items():
        hashed.update(f"{name} {tensor.dtype}".encode())
        _update(hashed, tensor)
    for values in inputs:
        _update(hashed, values)
    return hashed.hexdigest()


def _update(hashed, inputs) -> None:
    if isinstance(inputs, ImageFiles):
        stamps = [(str(path), Path(path).stat().st_size, Path(path).stat().st_mtime_ns) for path in inputs.paths]
        hashed.update(f"{inputs.image_size} {stamps}".encode())
        return
    hashed.update(f"{tuple(inputs.shape)}".encode())
    hashed.update(inputs.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def cached(cache: Path, stem: str, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the result of a computation, read from a file if it was computed before, even by a concurrent process.

    Args:
        cache: folder of the file.
        stem: beginning of the file name.
        key: hash of everything that the computation depends on, the rest of the file name.
        compute: returns tensors by name; also called if the file is damaged.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{stem}-{key[:20]}.pt"
    # One process computes, the others wait and read.
    with FileLock(f"{path}.lock"):
        try:
            state = load_checkpoint(path)
        except ValueError:
            state = None
        if state is None:
            state = compute()
            save_checkpoint(path, state)
    return state
