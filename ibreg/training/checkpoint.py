"""One file per training that survives a kill at any moment: written aside, renamed, read without pickled code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

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
