"""Saves the bottlenecks of a model without the model: one safetensors file with weights and configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from ibreg.injection import CHILD, bottlenecks, inject
from ibreg.layers.base import Bottleneck
from ibreg.registry import build, names

METADATA = "ibreg"


def save_bottlenecks(model: nn.Module, path: str | os.PathLike) -> None:
    """Writes the weights and the configuration of all bottlenecks of a model, and nothing of the model itself.

    Args:
        model: with bottlenecks; wrapped in `Regularized`, DDP or `torch.compile` or not.
        path: of the file, usually `*.safetensors`; it is replaced in one step.

    Raises:
        ValueError: no bottleneck in the model, or one whose class is not registered.
        FileNotFoundError: no such folder.
    """
    from safetensors.torch import save_file

    layers = bottlenecks(model)
    if not layers:
        raise ValueError("there is no bottleneck in the model, so there is nothing to save")
    for name, layer in layers.items():
        if getattr(layer, "registry_name", None) not in names():
            raise ValueError(
                f"{name!r} is a {type(layer).__name__}, which has no name to load it by: "
                "decorate it with @ibreg.register"
            )
    described = {
        name: {
            "class": layer.registry_name,
            # The tensor holds today's beta; schedules of the loaded model start from the first one.
            "config": layer.config() | {"beta": layer.initial_beta},
            "injected": getattr(layer, "_injected", False),
        }
        for name, layer in layers.items()
    }
    tensors = {
        f"{name}/{key}": tensor.detach().cpu().contiguous().clone()
        for name, layer in layers.items()
        for key, tensor in layer.state_dict().items()
    }
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    partial = path.with_name(path.name + ".partial")
    metadata = {METADATA: json.dumps(described)}
    try:
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_bottlenecks(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Builds the saved bottlenecks again and injects them; where the model has one of that name, it gets the weights.

    Args:
        model: the same network as at saving, with its own weights loaded; everything is checked before it is changed.
        path: a file of `save_bottlenecks`.

    Returns:
        the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a class that is not registered, a model whose modules do not fit.
    """
    layers = _read(Path(path))
    present = bottlenecks(model)
    for name in layers.keys() & present.keys():
        saved, own = _objective(layers[name]), _objective(present[name])
        if saved != own:
            different = [key for key in saved if saved[key] != own.get(key)]
            raise ValueError(
                f"{name!r} is {present[name]!r} in the model, but {layers[name]!r} was saved ({', '.join(different)} "
                "differ): eject it first"
            )
    missing = {name: layer for name, layer in layers.items() if name not in present}
    for name, layer in missing.items():
        if not layer._injected:
            raise ValueError(
                f"the saved bottleneck {name!r} was part of the model's own code, and this model has none there"
            )
    if missing:
        inject(model, {name.removesuffix(CHILD).removesuffix("."): layer for name, layer in missing.items()})
    for name in layers.keys() & present.keys():
        present[name].load_state_dict(layers[name].state_dict())
        present[name].initial_beta = layers[name].initial_beta
    return model


def _read(path: Path) -> dict:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(METADATA, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or was cut short: {error}") from error
    if described is None:
        raise ValueError(f"{path} was not written by ibreg.save_bottlenecks: it names no bottleneck")
    layers = {}
    for name, entry in described.items():
        layer = build(entry["class"], **entry["config"])
        own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        try:
            layer.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit this version of {entry['class']!r}: {error}") from error
        layer._injected = entry["injected"]
        layers[name] = layer
    return layers


def _objective(layer: Bottleneck) -> dict:
    """Returns what makes a layer that layer: its class and options, without what may differ."""
    unimportant = {"beta"} if layer.sized else {"beta", "in_features"}  # which a layer without parameters only checks
    return {"class": type(layer)} | {key: value for key, value in layer.config().items() if key not in unimportant}
