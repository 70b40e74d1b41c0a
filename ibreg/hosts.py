"""Modules that a bottleneck can stand behind, hosts: their names, why one cannot be a host, and what they return."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ibreg.layers.base import Bottleneck
from ibreg.modes import captured, evaluating

CHILD = "bottleneck"  # the name that a bottleneck has in its host
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # which never run


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules by every name that they have, without those inside a bottleneck."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Bottleneck))
    return {name: module for name, module in modules.items() if not f"{name}.".startswith(layers)}


def names_matching(pattern: str, hosts: dict[str, nn.Module]) -> list[str]:
    """Returns the names that a pattern with `*` and `**` stands for, or the one name that it is."""
    if not isinstance(pattern, str):
        raise TypeError(f"a module is named by a string such as '0' or 'layer3.*', got {pattern!r}")
    if "*" not in pattern:
        if pattern not in hosts:
            close = difflib.get_close_matches(pattern, hosts, n=3, cutoff=0.5)
            first = [name for name in hosts if name][:8]
            hint = f"closest: {', '.join(close)}" if close else f"it has {', '.join(first)}, ..."
            raise ValueError(f"the model has no module {pattern!r} that can take a bottleneck; {hint}")
        return [pattern]
    meaning = {"**.": r"(?:.*\.)?", "**": ".*", "*": "[^.]*"}
    expression = "".join(meaning.get(part, re.escape(part)) for part in re.split(r"(\*\*\.|\*\*|\*)", pattern))
    # A module with several names is matched by its first; containers that never run are passed over.
    first = {id(module): name for name, module in reversed(hosts.items())}
    matched = [
        name
        for name, module in hosts.items()
        if name and re.fullmatch(expression, name) and first[id(module)] == name and not isinstance(module, CONTAINERS)
    ]
    if not matched:
        raise ValueError(
            f"no module matches {pattern!r}; '*' stays within one segment of a dotted name, '**' crosses them"
        )
    return matched


def refusal_of(name: str, hosts: dict[str, nn.Module]) -> str | None:
    """Returns why a module cannot be a host, or None."""
    host = hosts[name]
    if isinstance(host, CONTAINERS) or (isinstance(host, nn.Sequential) and not runs_its_children(host)):
        return f"{name!r} is a {type(host).__name__} that runs its elements itself: name one of its elements"
    if is_host(host):
        return f"{name!r} has a bottleneck already: eject(model) takes it out"
    if hasattr(host, CHILD):
        return f"{name!r} ({type(host).__name__}) has an attribute {CHILD!r} of its own: choose another module"
    if not _sequence_first(host):
        for parent in (name[: dot.start()] for dot in re.finditer(r"\.", name)):
            if _sequence_first(hosts[parent]):
                return (
                    f"{name!r} is inside {parent!r} ({type(hosts[parent]).__name__}), where the batch is the second "
                    f"axis: build that with batch_first=True, or name {parent!r}"
                )
    return None


def is_host(module: nn.Module) -> bool:
    """Whether a bottleneck was injected into a module."""
    # A user's own Sequential may have an element of that name too: that one is not ours to take out.
    return getattr(getattr(module, CHILD, None), "_injected", False)


def runs_its_children(host: nn.Module) -> bool:
    """Whether a new child runs as the last one, without a hook."""
    return isinstance(host, nn.Sequential) and type(host).forward is nn.Sequential.forward


def code_of(host: nn.Module, output: Any) -> Tensor | None:
    """Returns the tensor of a host's output that goes through a bottleneck, batch first; None where there is none."""
    first = first_of(output)
    if isinstance(first, Tensor) and first.is_floating_point() and not first.is_nested:
        return batch_first(host, first)
    return None


def first_of(output: Any) -> Any:
    """Returns what stands first in a tuple, anything else as it is."""
    # A PackedSequence is a tuple as well, but what stands first in it has no batch axis.
    return output[0] if isinstance(output, tuple) and output and not isinstance(output, PackedSequence) else output


def cannot_take(name: str, host: nn.Module, output: Any) -> str:
    """Says why a bottleneck cannot take what a host returns."""
    first = first_of(output)
    if isinstance(first, Tensor) and first.is_nested:
        return f"{name} returns a nested tensor: build the nn.TransformerEncoder with enable_nested_tensor=False"
    got = f"a {first.dtype} tensor" if isinstance(first, Tensor) else type(first).__name__
    where = " first in a tuple" if first is not output else ""
    wanted = "a bottleneck takes a floating-point tensor: choose another module"
    return f"{name} ({type(host).__name__}) returns {got}{where}, {wanted}"


def batch_first(host: nn.Module, code: Tensor) -> Tensor:
    """Swaps (sequence, batch, features) of torch's sequence modules with (batch, sequence, features), and back."""
    return code.transpose(0, 1) if _sequence_first(host) and code.dim() == 3 else code


def _sequence_first(module: nn.Module) -> bool:
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        module = module.layers[0]
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        module = module.self_attn
    return isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)) and not module.batch_first


def outputs_of(model: nn.Module, hosts: dict[str, nn.Module], example: Any) -> dict[str, list[Any]]:
    """Runs the example and returns what each host gave, call by call; hosts that were not called are left out."""
    with ExitStack() as stack, torch.no_grad():
        outputs = {name: stack.enter_context(captured(host, "output")) for name, host in hosts.items()}
        stack.enter_context(evaluating(model))
        try:
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*example) if isinstance(example, tuple) else model(example)
        except Exception:
            # What stands after the hosts may be built for the size of the code already: only what they gave counts.
            if not all(outputs.values()):
                raise
    return {name: calls for name, calls in outputs.items() if calls}


def device_and_dtype(model: nn.Module, name: str) -> tuple[torch.device, torch.dtype]:
    """Returns those of the host's first floating-point parameter or buffer, or of the nearest module around it."""
    segments = name.split(".")
    for length in range(len(segments), -1, -1):
        module = model.get_submodule(".".join(segments[:length]))
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()
