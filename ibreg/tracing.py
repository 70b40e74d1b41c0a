"""Tracing: whether code runs inside torch.func, a compiler or an activation checkpoint, and what to assert there."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import is_batchedtensor, is_functorch_wrapped_tensor

from ibreg.precision import at_least_float32


def inside_transformation(x: Tensor) -> bool:
    """Whether a tensor is inside a torch.func transformation, which must not change tensors outside of it."""
    if torch.compiler.is_compiling():
        return is_batchedtensor(x)
    return is_functorch_wrapped_tensor(x)


def inside_checkpoint() -> bool:
    """Whether this code runs in the forward pass of a non-reentrant activation checkpoint."""
    if torch.compiler.is_compiling():  # a compiled checkpoint recomputes the graph that was traced, scope included
        return False
    hooks = _top_saved_tensors_default_hooks(False)
    return hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", "")


def can_assert(x: Tensor) -> bool:
    """Whether the values of a tensor can be checked by `torch._assert_async`, an error without a graph break.

    On CUDA a failed assertion would end the process: there a NaN shows in the logged penalty instead. Neither
    torch.func's transformations nor exported programs know the operation.
    """
    return x.device.type == "cpu" and not torch.compiler.is_exporting() and not inside_transformation(x)


def assert_finite(x: Tensor, message: str) -> None:
    """Raises a RuntimeError where a tensor has NaN or infinite values, as far as that can be asserted."""
    if can_assert(x):
        total = at_least_float32(x.detach()).sum()
        torch._assert_async(total * 0 == 0, message)


def tells_not_finite(error: Exception) -> bool:
    """Whether an error is about values that are not finite: a failed `assert_finite` has no class of its own."""
    return re.search(r"\b(NaN|finite|infinite)\b", str(error)) is not None


def known_false(flag: Tensor) -> bool:
    """Whether a flag is false, where that can be read without synchronizing a device or breaking a graph."""
    return flag.device.type == "cpu" and not torch.compiler.is_compiling() and not flag
