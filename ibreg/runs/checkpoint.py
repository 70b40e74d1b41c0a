"""One file per training that survives a kill at any moment: written aside, renamed, read without pickled code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ibreg.runs.folder import replace


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a nested dict of tensors, numbers and strings; the old file stays until the new one is whole."""
    content = io.BytesIO()
    torch.save(state, content)
    replace(path, content.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint onto the CPU, or returns None where there is none.

    Raises:
        ValueError: the file is damaged or holds something else; without it, its run makes it anew.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises four unrelated types for a damaged file
        raise ValueError(
            f"{path} cannot be read, cut short or no checkpoint: delete it, and its own run makes it anew, resume=true"
        ) from error


def next_state(
    state: dict[str, Any] | None,
    row: dict[str, Any],
    validation: dict[str, float] | None,
    *,
    selected: nn.Module | None,
    parts: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the state of a training after one more epoch.

    Args:
        state: the one before: `epoch`, `rows`, the selected epoch `best` with its `validation` metrics and `weights`,
            and the parts; None before the first epoch.
        row: what was measured, with its `epoch`.
        validation: metrics of the epoch.
        selected: the model whose weights are kept from now on; None keeps those of an earlier epoch.
        parts: what the training goes on from, by name, each with a `state_dict`; none once it is complete.
    """
    state = state or {"rows": []}
    if selected is not None:
        # Copies: the training goes on in these tensors.
        weights = {name: tensor.clone() for name, tensor in selected.state_dict().items()}
        kept = {"best": row["epoch"], "validation": validation, "weights": weights}
    else:
        kept = {key: state[key] for key in ("best", "validation", "weights")}
    goes_on = {name: part.state_dict() for name, part in parts.items()}
    return {"epoch": row["epoch"], "rows": [*state["rows"], row], **kept, **goes_on}


def whole(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a state dict with the whole of what FSDP has cut into shards; then every rank has to call it."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in tensors.items()}


class WholeOptimizer:
    """The state of an optimizer in whole tensors, however its parameters are sharded: one process can go on from it.

    Args:
        optimizer: may have shards of parameters; then every rank has to call what is here.
    """

    def __init__(self, optimizer: Optimizer):
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state dict."""
        state = self.optimizer.state_dict()
        return state | {"state": {index: whole(tensors) for index, tensors in state["state"].items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives each parameter its part of a state dict."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        parts = {
            index: {name: _part(value, parameters[index]) for name, value in tensors.items()}
            for index, tensors in state["state"].items()
        }
        self.optimizer.load_state_dict(state | {"state": parts})


def _part(value: Any, parameter: Tensor) -> Any:
    """Cuts what an optimizer keeps for every entry of a parameter as the parameter is cut."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
