"""Loading of weights from a file: a message names what does not fit, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads weights from a file, without the prefix that `DataParallel` adds.

    Args:
        path: file of a state dict, or of a checkpoint that has one under `state_dict`, `model` or `weights`.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If the file is damaged, or holds no weights.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"no weights at {file.absolute()}: model.weights must be the path of a file, DEFAULT (torchvision) or null"
        )
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises four unrelated types for files it cannot read
        raise ValueError(
            f"{file} cannot be read: it is truncated, no checkpoint, or holds more than tensors: save "
            "model.state_dict()"
        ) from error
    for key in ("state_dict", "model", "weights"):
        state = state[key] if isinstance(state, Mapping) and isinstance(state.get(key), Mapping) else state
    if not _is_state(state):
        raise ValueError(f"{file} holds no weights by name, but {_described(state)}: save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _is_state(state: Any) -> bool:
    return isinstance(state, Mapping) and len(state) > 0 and all(isinstance(value, Tensor) for value in state.values())


def _described(state: Any) -> str:
    return f"a dict of {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else type(state).__name__


def adopt_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads weights into a model; a last layer for another number of classes stays as initialized.

    Args:
        model: changed in place.
        state: weights by name.
        source: origin of the weights, for the message.

    Raises:
        ValueError: If the weights are those of another network; the message names the differences.
    """
    own = model.state_dict()
    classifier = list(own)[-1].rpartition(".")[0]
    other = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    skipped = {f"{classifier}.weight", f"{classifier}.bias"} if f"{classifier}.weight" in other else set()
    # Batch normalization counts its batches only since torch 0.4.1: older files lack the count, and torch fills it in.
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    faults = {
        "missing": missing,
        "unknown": sorted(state.keys() - own.keys()),
        "of another shape": sorted(other - skipped),
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {', '.join(names[:5])}" for fault, names in faults.items() if names)
        raise ValueError(f"the weights of {source} do not fit the {type(model).__name__} to be built: {listed}")
    model.load_state_dict({name: value for name, value in state.items() if name not in skipped}, strict=False)
