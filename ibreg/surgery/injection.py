"""Injection of bottlenecks into an existing model, after modules that are chosen by name; and ejection.

A host keeps its name and its state-dict keys: the bottleneck becomes its child `bottleneck`, and a forward hook passes
the host's output through it. A plain `nn.Sequential` calls its children itself: there the child is the last element.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ibreg.hosts import (
    CHILD,
    batch_first,
    code_of,
    device_and_dtype,
    first_element,
    is_host,
    modules_by_name,
    names_matching,
    output_refusal,
    outputs_of,
    refusal_of,
    runs_its_children,
)
from ibreg.layers.base import Bottleneck
from ibreg.regularized import Regularized, bottlenecks, unwrap

Layer = Bottleneck | Callable[[str, nn.Module], Bottleneck]


class Candidate(NamedTuple):
    """A module that can take a bottleneck.

    Attributes:
        name: dotted name, a key for `inject`.
        type: the module's class.
        shape: shape of its output.
        features: size of the feature axis, by the default rule (last of rank 2 and 3, axis 1 of rank 4 and up).
    """

    name: str
    type: str
    shape: tuple[int, ...]
    features: int


def inject(model: nn.Module, layers: Mapping[str, Layer], example: Any = None) -> nn.Module:
    """Injects bottlenecks after modules of a model, in place; everything is checked before anything is changed.

    Args:
        model: any module. Its state-dict keys do not change, and weights saved before can be loaded afterwards.
        layers: dotted module name to bottleneck. In a name `*` matches within one segment and `**` across segments (the
            model itself is ""); each module that such a pattern matches gets its own copy, re-initialized. Instead of a
            bottleneck, a callable `(name, module) -> bottleneck` builds one, for hosts of different sizes.
        example: an input of the model (a tensor, a tuple of positional or a dict of keyword arguments): sets
            `in_features` where a layer has none, and checks sizes. The model runs once on it, in evaluation mode. Maps
            with channels last (Swin) need a layer with `dim=-1`.

    Returns:
        the model, with its `Regularized` if it was wrapped in one.

    If a host returns a tuple whose first element is a floating-point tensor (LSTM, attention), the bottleneck takes
    that tensor; states and attention weights are unchanged. The outputs of torch's recurrent and attention modules with
    `batch_first=False` are transposed to batch first for the bottleneck.

    Raises:
        ValueError: If a name or pattern matches nothing (the closest names are listed), a host has a bottleneck
            already, is a container that is never called or is given twice, one layer is given for two hosts, or sizes
            do not fit the example.
        TypeError: If a value is not a bottleneck, or a host returns no floating-point tensor.

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> ibreg.inject(net, {"1": ibreg.VariationalBottleneck(8)})[1]
        ReLU(
          (bottleneck): VariationalBottleneck(8 -> 8, beta=0.001)
        )
    """
    _refuse_wrapped(model)
    network = unwrap(model)
    modules = modules_by_name(network)
    chosen = _layers_by_host(layers, modules)
    _check_hosts(modules, chosen)
    _check_layers(network, chosen)
    outputs = outputs_of(network, {name: modules[name] for name in chosen}, example) if example is not None else {}
    for name, calls in outputs.items():
        for output in calls:
            _check_fit(name, modules[name], chosen[name], output)
    sizes = {
        name: _size_of(name, modules[name], layer, outputs.get(name), has_example=example is not None)
        for name, layer in chosen.items()
        if layer.sized and layer.in_features is None
    }
    for name, layer in chosen.items():
        _check_weights(network, name, layer, sizes.get(name))

    for name, layer in chosen.items():
        layer.materialize(sizes.get(name))
        device, dtype = device_and_dtype(network, name)
        layer.to(device=device, dtype=dtype)
        _attach(modules[name], layer)
    return model


def candidates(model: nn.Module, example: Any) -> list[Candidate]:
    """Lists the modules that can take a bottleneck, in the order of the model.

    Args:
        model: any module; it runs once, in evaluation mode.
        example: as for `inject`.

    Example:
        >>> candidates(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(1, 4))[1]
        Candidate(name='1', type='ReLU', shape=(1, 8), features=8)
    """
    model = unwrap(model)
    modules = modules_by_name(model)
    hosts = {name: module for name, module in modules.items() if name and refusal_of(name, modules) is None}
    rule = Bottleneck()
    listed = []
    for name, calls in outputs_of(model, hosts, example).items():
        codes = [code for code in (code_of(hosts[name], output) for output in calls) if code is not None]
        if len(codes) < len(calls) or any(code.dim() < 2 for code in codes):
            continue
        features = {code.shape[rule.feature_axis(code)] for code in codes}
        if len(features) == 1:
            listed.append(Candidate(name, type(hosts[name]).__name__, tuple(codes[0].shape), *features))
    return listed


def eject(model: nn.Module) -> nn.Module:
    """Removes the injected bottlenecks, in place: behavior and state-dict keys are those before the injection.

    Bottlenecks of the model's own code are not removed.

    Returns:
        the model, without its `Regularized` if it was wrapped in one.

    Raises:
        ValueError: If no bottleneck was injected.
    """
    model = unwrap(model)
    hosts = [module for module in model.modules() if is_host(module)]
    if not hosts:
        raise ValueError("no bottleneck was injected into this model")
    for host in hosts:
        for key, hook in list(host._forward_hooks.items()):
            if hook is _through_bottleneck:
                del host._forward_hooks[key]
        getattr(host, CHILD)._injected = False
        delattr(host, CHILD)
    return model


def _attach(host: nn.Module, layer: Bottleneck) -> None:
    """Adds a layer to its host, in the host's mode."""
    layer.train(host.training)
    layer._injected = True
    host.add_module(CHILD, layer)
    if not runs_its_children(host):
        host.register_forward_hook(_through_bottleneck)


def _through_bottleneck(host: nn.Module, args: tuple, output: Any) -> Any:
    """Forward hook of a host; it reaches the bottleneck through the host, so that copies and pickles have their own."""
    code = code_of(host, output)
    if code is None:
        raise TypeError(output_refusal(type(host).__name__, host, output))
    contiguous = first_element(output).is_contiguous()
    code = batch_first(host, getattr(host, CHILD)(code))
    code = code.contiguous() if contiguous else code  # modules after the host may call `view`
    if isinstance(output, Tensor):
        return code
    rest = output[1:]
    return type(output)(code, *rest) if hasattr(output, "_fields") else (code, *rest)


def _layers_by_host(layers: Mapping[str, Layer], modules: dict[str, nn.Module]) -> dict[str, Bottleneck]:
    """Returns the layer of each host by name, for names and patterns."""
    chosen: dict[str, Bottleneck] = {}
    for pattern, layer in layers.items():
        for name in names_matching(pattern, modules):
            if name in chosen:
                raise ValueError(f"{name!r} is given twice, the second time by {pattern!r}")
            chosen[name] = _layer_for(name, modules[name], layer, copied="*" in pattern)
    return chosen


def _layer_for(name: str, host: nn.Module, layer: Layer, *, copied: bool) -> Bottleneck:
    if isinstance(layer, Bottleneck):
        if not copied:
            return layer
        layer = copy.deepcopy(layer)
        if not (layer.sized and layer.in_features is None):
            layer.reset_parameters()
        return layer
    if isinstance(layer, (nn.Module, type)) or not callable(layer):
        raise TypeError(
            f"the value for {name!r} must be a bottleneck such as ibreg.VariationalBottleneck(), got {layer!r}"
        )
    built = layer(name, host)
    if not isinstance(built, Bottleneck):
        raise TypeError(f"the callable for {name!r} must return a bottleneck, got {built!r}")
    return built


def _check_hosts(modules: dict[str, nn.Module], chosen: dict[str, Bottleneck]) -> None:
    names: dict[int, str] = {}
    for name in chosen:
        host = modules[name]
        refusal = refusal_of(name, modules)
        if refusal is not None:
            raise ValueError(refusal)
        if id(host) in names:
            raise ValueError(f"{names[id(host)]!r} and {name!r} are one module: pass only one of the names")
        names[id(host)] = name


def _check_layers(model: nn.Module, chosen: dict[str, Bottleneck]) -> None:
    names = {id(layer): name for name, layer in bottlenecks(model).items()}
    for name, layer in chosen.items():
        if id(layer) in names:
            raise ValueError(
                f"one layer for {names[id(layer)]!r} and {name!r}: build one for each host, or use a pattern with '*'"
            )
        names[id(layer)] = name


def _check_fit(name: str, host: nn.Module, layer: Bottleneck, output: Any) -> None:
    code = code_of(host, output)
    if code is None:
        raise TypeError(output_refusal(repr(name), host, output))
    layer.check_shape(code, repr(name), any_size=True)
    channels = next(
        (getattr(host, key) for key in ("out_channels", "num_channels", "num_features") if hasattr(host, key)), None
    )
    if layer.dim is None and code.dim() == 3 and code.shape[-1] != channels == code.shape[1]:
        raise ValueError(
            f"{name!r} has its {channels} channels on axis 1 of {tuple(code.shape)}, but by default the features are "
            "on the last of three axes: pass dim=1"
        )


def _size_of(name: str, host: nn.Module, layer: Bottleneck, calls: list[Any] | None, *, has_example: bool) -> int:
    """Returns the size of the feature axis of a host's outputs, which have passed `_check_fit`."""
    if calls is None:
        reason = "the example did not call it" if has_example else "pass them, or inject(..., example=x) to set them"
        raise ValueError(f"the layer for {name!r} has no in_features: {reason}")
    codes = [code for code in (code_of(host, output) for output in calls) if code is not None]
    sizes = {code.shape[layer.feature_axis(code)] for code in codes}
    if len(sizes) > 1:
        raise ValueError(
            f"{name!r} is called with {', '.join(map(str, sorted(sizes)))} features: choose another module"
        )
    return sizes.pop()


def _check_weights(network: nn.Module, name: str, layer: Bottleneck, size: int | None) -> None:
    """Checks that the parameters of a layer can be created, and moved to the device of the host."""
    if size is not None:
        copy.deepcopy(layer).materialize(size, device="meta")  # raises the layer's own errors before any change
    weightless = any(tensor.is_meta for tensor in layer.state_dict().values())
    if weightless and device_and_dtype(network, name)[0].type != "meta":
        raise ValueError(
            f"the layer for {name!r} is on the meta device, where it has no weights to move to its host: build it on "
            "another device"
        )


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        if not isinstance(module, Regularized) and unwrap(module) is not module:
            raise ValueError(
                f"inject first, then wrap: the model is inside {type(module).__name__} already, or a part is"
            )
        if module._compiled_call_impl is not None:
            raise ValueError("inject first, then compile: a compiled model would not see the bottleneck")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                "the model is a TorchScript program, which cannot take new modules: inject into its source"
            )
