"""Puts bottlenecks into a model that exists, by the names of its modules, and takes them out again.

A host keeps its name and its keys: the bottleneck becomes its child `bottleneck`, and a hook sends the host's output
through it. A plain `nn.Sequential` calls its children itself, so there the child is simply the last element.
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
    cannot_take,
    code_of,
    device_and_dtype,
    first_of,
    is_host,
    modules_by_name,
    names_matching,
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
    """Puts bottlenecks behind modules of a model, in place; everything is checked before anything is changed.

    Args:
        model: any module. Its state-dict keys stay; weights saved before still load afterwards.
        layers: dotted module name to bottleneck. In a name `*` stands for one segment or a part of one, `**` for any
            number of segments (the model itself is ""); each module that such a pattern matches gets its own copy,
            started anew. Instead of a bottleneck, a callable `(name, module) -> bottleneck` builds one where widths
            differ.
        example: an input of the model (a tensor, a tuple of positional or a dict of keyword arguments): finds
            `in_features` where a layer has none, and checks sizes. The model runs once on it, in evaluation mode. Maps
            with the channels last (Swin) need a layer with `dim=-1`.

    Returns:
        the model, in the `Regularized` that it was given in.

    Of a host that returns a tuple with a float tensor first (LSTM, attention), that tensor goes through; states and
    attention weights pass by. The outputs of torch's recurrent and attention modules built with `batch_first=False` are
    turned batch first for the bottleneck.

    Raises:
        ValueError: a name or pattern that matches nothing (the closest names are listed), a place that is taken, a
            container that never runs, one layer for two places, sizes that do not fit the example.
        TypeError: a value that is no bottleneck, a host that returns something else.

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
    hosts = modules_by_name(network)
    places: dict[str, Bottleneck] = {}
    for pattern, layer in layers.items():
        for name in names_matching(pattern, hosts):
            if name in places:
                raise ValueError(f"{name!r} is named twice, the second time by {pattern!r}")
            places[name] = _layer_for(name, hosts[name], layer, copied="*" in pattern)
    _check_hosts(hosts, places)
    _check_layers(network, places)
    outputs = outputs_of(network, {name: hosts[name] for name in places}, example) if example is not None else {}
    for name, calls in outputs.items():
        for output in calls:
            _check_fit(name, hosts[name], places[name], output)
    sizes: dict[str, int] = {}
    for name, layer in places.items():
        if layer.sized and layer.in_features is None:
            if name not in outputs:
                advice = "pass them, or inject(..., example=x) to find them"
                reason = advice if example is None else "the example did not call it"
                raise ValueError(f"the layer for {name!r} has no in_features: {reason}")
            sizes[name] = _features(name, hosts[name], layer, outputs[name])
            copy.deepcopy(layer).materialize(sizes[name], device="meta")  # what it refuses, it refuses here
        weightless = any(tensor.is_meta for tensor in layer.state_dict().values())
        if weightless and device_and_dtype(network, name)[0].type != "meta":
            raise ValueError(
                f"the layer for {name!r} is on the meta device, where it has no weights to move to its host"
            )

    for name, layer in places.items():
        host = hosts[name]
        layer.materialize(sizes.get(name))
        device, dtype = device_and_dtype(network, name)
        layer.to(device=device, dtype=dtype).train(host.training)
        layer._injected = True
        host.add_module(CHILD, layer)
        if not runs_its_children(host):
            host.register_forward_hook(_through_bottleneck)
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
    found = []
    for name, calls in outputs_of(model, hosts, example).items():
        codes = [code_of(hosts[name], output) for output in calls]
        if any(code is None or code.dim() < 2 for code in codes):
            continue
        features = {code.shape[rule.feature_axis(code)] for code in codes}
        if len(features) == 1:
            found.append(Candidate(name, type(hosts[name]).__name__, tuple(codes[0].shape), *features))
    return found


def eject(model: nn.Module) -> nn.Module:
    """Takes the injected bottlenecks out again, in place: behavior and keys are those before the injection.

    Returns:
        the model, without a `Regularized` around it. Bottlenecks that are written into the model stay.

    Raises:
        ValueError: there is nothing to take out.
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


def _through_bottleneck(host: nn.Module, args: tuple, output: Any) -> Any:
    """The hook of every host: a function of the module, so that copies and pickles of the host work on themselves."""
    code = code_of(host, output)
    if code is None:
        raise TypeError(cannot_take(type(host).__name__, host, output))
    laid_out = first_of(output).is_contiguous()
    code = batch_first(host, host.bottleneck(code))
    code = code.contiguous() if laid_out else code  # a `view` behind the host may count on it
    if isinstance(output, Tensor):
        return code
    rest = output[1:]
    return type(output)(code, *rest) if hasattr(output, "_fields") else (code, *rest)


def _layer_for(name: str, host: nn.Module, layer: Layer, *, copied: bool) -> Bottleneck:
    if isinstance(layer, Bottleneck):
        if not copied:
            return layer
        layer = copy.deepcopy(layer)
        if not (layer.sized and layer.in_features is None):
            layer.reset_parameters()
        return layer
    if isinstance(layer, (nn.Module, type)) or not callable(layer):
        raise TypeError(f"{name!r} wants a bottleneck, such as ibreg.VariationalBottleneck(), got {layer!r}")
    built = layer(name, host)
    if not isinstance(built, Bottleneck):
        raise TypeError(f"the callable for {name!r} returned {built!r}, not a bottleneck")
    return built


def _check_hosts(hosts: dict[str, nn.Module], places: dict[str, Bottleneck]) -> None:
    names_of: dict[int, str] = {}
    for name in places:
        host = hosts[name]
        refusal = refusal_of(name, hosts)
        if refusal is not None:
            raise ValueError(refusal)
        if id(host) in names_of:
            raise ValueError(f"{names_of[id(host)]!r} and {name!r} are one module: name it once")
        names_of[id(host)] = name


def _check_layers(model: nn.Module, places: dict[str, Bottleneck]) -> None:
    names_of = {id(layer): name for name, layer in bottlenecks(model).items()}
    for name, layer in places.items():
        if id(layer) in names_of:
            raise ValueError(
                f"one layer for {names_of[id(layer)]!r} and {name!r}: build one for each place, "
                "or use a pattern with '*'"
            )
        names_of[id(layer)] = name


def _check_fit(name: str, host: nn.Module, layer: Bottleneck, output: Any) -> None:
    code = code_of(host, output)
    if code is None:
        raise TypeError(cannot_take(repr(name), host, output))
    if layer.in_features is None:
        layer = copy.copy(layer)
        layer.sized = False  # any size fits, but rank and axis have to be right
    layer.check_shape(code, repr(name))
    channels = next(
        (getattr(host, key) for key in ("out_channels", "num_channels", "num_features") if hasattr(host, key)), None
    )
    if layer.dim is None and code.dim() == 3 and code.shape[-1] != channels == code.shape[1]:
        raise ValueError(
            f"{name!r} has its {channels} channels on axis 1 of {tuple(code.shape)}, but the last of three axes is "
            "taken for the features: pass dim=1"
        )


def _features(name: str, host: nn.Module, layer: Bottleneck, calls: list[Any]) -> int:
    codes = [code_of(host, output) for output in calls]
    features = {code.shape[layer.feature_axis(code)] for code in codes}
    if len(features) > 1:
        raise ValueError(
            f"{name!r} is called with {', '.join(map(str, sorted(features)))} features: choose another module"
        )
    return features.pop()


def _refuse_wrapped(model: nn.Module) -> None:
    for module in model.modules():
        if not isinstance(module, Regularized) and unwrap(module) is not module:
            raise ValueError(
                f"inject first, then wrap: the model is inside {type(module).__name__} already, or a part is"
            )
        if module._compiled_call_impl is not None:
            raise ValueError("inject first, then compile: a compiled model would not see the bottleneck")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("the model is a TorchScript program, which takes no new modules: inject into its source")
