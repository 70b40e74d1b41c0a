"""One file per training run, which survives a kill at any moment, and the states of sharded models and optimizers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ibreg.runs.folder import replace


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a nested dict of tensors, numbers and strings; the old file stays until the new one is complete."""
    content = io.BytesIO()
    torch.save(state, content)
    replace(path, content.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint onto the CPU, without unpickling code; returns None where there is none.

    Raises:
        ValueError: If the file is damaged or is no checkpoint.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises four unrelated types for a damaged file
        raise ValueError(
            f"{path} cannot be read: it is truncated or no checkpoint. Delete it and resume its run with resume=true"
        ) from error


def model_state(model: nn.Module) -> dict[str, Any]:
    """Returns the state dict of a model with whole tensors, however it is sharded; every rank has to call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer by names of parameters, in whole tensors on the CPU.

    Any number of processes can resume from it. Every rank has to call it; only the first gets the state.
    """
    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Loads what `optimizer_state` returned, sharded as the parameters are; every rank has to call it."""
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    options = StateDictOptions(full_state_dict=sharded)  # a full state needs tensors, which plain SGD does not have
    set_optimizer_state_dict(model, optimizer, dict(state), options=options)
