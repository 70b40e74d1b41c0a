"""Time and memory of steps, for ratios: steps alternate, so that the load of the machine affects all of them.

Time is CPU time of the process on all cores, without waiting.
"""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

Step = Callable[[], object]


def peak_memory(step: Step) -> int | None:
    """Returns the peak memory of a step above that before it, in bytes; None if the system does not report it."""
    status = Path("/proc/self/status")

    def kilobytes(field: str) -> int:
        return int(re.search(rf"{field}:\s*(\d+)", status.read_text())[1])

    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide what a step needs
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current memory
        before = kilobytes("VmRSS")
        step()
        return 1024 * (kilobytes("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def alternate(first: Step, second: Step, repeats: int, label: str) -> tuple[float, float]:
    """Returns the median CPU seconds of two alternating steps, each of which is first every other time."""
    for _ in range(2):
        first(), second()
    return tuple(in_turns([first, second], repeats, label))


def in_turns(steps: list[Step], repeats: int, label: str) -> list[float]:
    """Returns the median CPU seconds of steps that alternate in both orders, after one round of warm-up."""
    times: dict[Step, list[float]] = {step: [] for step in steps}
    for repeat in track(range(repeats + 1), description=label, transient=True, console=Console(stderr=True)):
        for step in steps if repeat % 2 else reversed(steps):
            start = time.process_time()
            step()
            if repeat:
                times[step].append(time.process_time() - start)
    return [statistics.median(times[step]) for step in steps]


def kept_for_backward(step: Step) -> int:
    """Counts the bytes of the distinct tensors that the graph of a step keeps for the backward pass."""
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        step()
    return sum(kept.values())
