"""Progress of a run: a bar on a terminal, a line per epoch in a log."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class EpochProgress:
    """Reports the epochs of a run: a bar on a terminal, a line per epoch in a log, nothing on other ranks.

    Args:
        epochs: number of epochs of all training runs together.
        shown: whether this process may write.
    """

    def __init__(self, epochs: int, *, shown: bool):
        self.shown = shown
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
        )
        self.bar.disable = not (shown and sys.stdout.isatty())
        self.task = self.bar.add_task("", total=epochs)

    def __enter__(self) -> EpochProgress:
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()

    def advance(self, text: str, epochs: int = 1) -> None:
        """Advances by a number of epochs and shows a text."""
        self.bar.update(self.task, advance=epochs, description=text)
        if self.shown and self.bar.disable:
            print(text, flush=True)


def described(row: Mapping[str, Any]) -> str:
    """Formats the main metrics of an epoch in a line."""
    shown = {"train/loss": "loss", "train/rate": "rate"}
    shown |= {f"validation/{metric}": f"validation {metric}" for metric in ("accuracy", "rmse")}
    return "  ".join(f"{label} {row[key]:.4f}" for key, label in shown.items() if key in row)
