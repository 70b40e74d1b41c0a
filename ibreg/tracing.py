"""Whether code runs inside torch.func, where some operations are not to be had in place."""

from __future__ import annotations

import torch
from torch import Tensor


def inside_transformation(x: Tensor) -> bool:
    """Whether this runs inside torch.func, which must not move what lies outside of it."""
    if torch.compiler.is_compiling():
        return torch._C._functorch.is_batchedtensor(x)
    return torch._C._functorch.is_functorch_wrapped_tensor(x)
