"""Running a model to look at it: evaluation mode that is undone, and the inputs or outputs of one of its modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and every module back in the mode that it had.

    Example:
        >>> model = nn.Sequential(nn.Dropout())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> model[0].training
        True
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def captured(module: nn.Module, what: Literal["input", "output"] = "input") -> Iterator[list[Any]]:
    """Collects the first positional input, or the output, of every call of a module inside the block.

    Args:
        module: part of the model that the block runs.
        what: "input" or "output".

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> with captured(model[1]) as inputs:
        ...     _ = model(torch.zeros(5, 4))
        >>> [x.shape for x in inputs]
        [torch.Size([5, 8])]
    """
    calls: list[Any] = []
    if what == "input":
        handle = module.register_forward_pre_hook(lambda module, args: calls.append(args[0]))
    else:
        handle = module.register_forward_hook(lambda module, args, output: calls.append(output))
    try:
        yield calls
    finally:
        handle.remove()
