"""Hosts, the modules whose output a bottleneck can take: names and patterns, refusals, and the code in an output."""

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

CHILD = "bottleneck"  # name of a bottleneck in its host
CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # they are never called


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules of a model by all of their names, without bottlenecks and the modules inside them."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Bottleneck))
    return {name: module for name, module in modules.items() if not f"{name}.".startswith(layers)}


def names_matching(pattern: str, hosts: dict[str, nn.Module]) -> list[str]:
    """Returns the names that match a pattern with `*` or `**`; without these the pattern is a name itself.

    Raises:
        TypeError: If the pattern is not a string.
        ValueError: If no module matches; the closest names are listed.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"the name of a module must be a string such as '0' or 'layer3.*', got {pattern!r}")
    if "*" not in pattern:
        if pattern not in hosts:
            close = difflib.get_close_matches(pattern, hosts, n=3, cutoff=0.5)
            first = [name for name in hosts if name][:8]
            hint = f"closest: {', '.join(close)}" if close else f"it has {', '.join(first)}, ..."
            raise ValueError(f"the model has no module {pattern!r} that can take a bottleneck; {hint}")
        return [pattern]
    meaning = {"**.": r"(?:.*\.)?", "**": ".*", "*": "[^.]*"}
    expression = "".join(meaning.get(part, re.escape(part)) for part in re.split(r"(\*\*\.|\*\*|\*)", pattern))
    # A module with several names is matched by its first; containers are skipped, as they are never called.
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
    """Returns why a module cannot be a host; None if it can."""
    host = hosts[name]
    if isinstance(host, CONTAINERS) or (isinstance(host, nn.Sequential) and not runs_its_children(host)):
        return f"{name!r} is a {type(host).__name__} that runs its elements itself: name one of its elements"
    if is_host(host):
        return f"{name!r} has a bottleneck already: eject(model) removes it"
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
    # A Sequential of the user may have an element of that name too, which must not be ejected.
    return getattr(getattr(module, CHILD, None), "_injected", False)


def runs_its_children(host: nn.Module) -> bool:
    """Whether a module calls all of its children, so that a new child runs last without a hook."""
    return isinstance(host, nn.Sequential) and type(host).forward is nn.Sequential.forward


def code_of(host: nn.Module, output: Any) -> Tensor | None:
    """Returns the tensor in a host's output that a bottleneck takes, batch first; None if there is none."""
    first = first_element(output)
    if isinstance(first, Tensor) and first.is_floating_point() and not first.is_nested:
        return batch_first(host, first)
    return None


def first_element(output: Any) -> Any:
    """Returns the first element of a tuple; any other output as it is."""
    # A PackedSequence is a tuple as well, but its first element has no batch axis.
    return output[0] if isinstance(output, tuple) and output and not isinstance(output, PackedSequence) else output


def output_refusal(name: str, host: nn.Module, output: Any) -> str:
    """Returns why a bottleneck cannot take the output of a host, as a message."""
    first = first_element(output)
    if isinstance(first, Tensor) and first.is_nested:
        return f"{name} returns a nested tensor: build the nn.TransformerEncoder with enable_nested_tensor=False"
    got = f"a {first.dtype} tensor" if isinstance(first, Tensor) else type(first).__name__
    where = " first in a tuple" if first is not output else ""
    return (
        f"{name} ({type(host).__name__}) returns {got}{where}, a bottleneck takes a floating-point tensor: "
        "choose another module"
    )


def batch_first(host: nn.Module, code: Tensor) -> Tensor:
    """Transposes (sequence, batch, features) of torch's sequence-first modules to batch first, or back."""
    return code.transpose(0, 1) if _sequence_first(host) and code.dim() == 3 else code


def _sequence_first(module: nn.Module) -> bool:
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        module = module.layers[0]
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        module = module.self_attn
    return isinstance(module, (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)) and not module.batch_first


def outputs_of(model: nn.Module, hosts: dict[str, nn.Module], example: Any) -> dict[str, list[Any]]:
    """Runs the example in evaluation mode and returns the outputs of each host that was called, call by call."""
    with ExitStack() as stack, torch.no_grad():
        outputs = {name: stack.enter_context(captured(host, "output")) for name, host in hosts.items()}
        stack.enter_context(evaluating(model))
        try:
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*example) if isinstance(example, tuple) else model(example)
        except Exception:
            # Modules after the hosts may be built for the size of the code, and fail on that of the features.
            if not all(outputs.values()):
                raise
    return {name: calls for name, calls in outputs.items() if calls}


def device_and_dtype(model: nn.Module, name: str) -> tuple[torch.device, torch.dtype]:
    """Returns device and dtype of a host's first floating-point parameter or buffer, or of its nearest ancestor's."""
    segments = name.split(".")
    for length in range(len(segments), -1, -1):
        module = model.get_submodule(".".join(segments[:length]))
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()
