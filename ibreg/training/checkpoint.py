"""One file per training that survives a kill at any moment: written aside, renamed, read without pickled code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ibreg.training.folder import replace


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a nested dict of tensors, numbers and strings; the old file stays until the new one is whole."""
    content = io.BytesIO()
    torch.save(state, content)
    replace(path, content.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint onto the CPU, or returns None where there is none.

    Raises:
        ValueError: the file is damaged or holds something else; deleting it starts that training anew.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises four unrelated types for a damaged file
        raise ValueError(
            f"{path} cannot be read, cut short or no checkpoint: delete it, and resume=true starts that training anew"
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
