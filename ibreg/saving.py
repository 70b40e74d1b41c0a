"""Saves the bottlenecks of a model without the model: one safetensors file with weights and configuration.

Beside them the file names the backbone by the keys and shapes of its state dict and by their hash, so that loading it
into another one is an error that says what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import ibreg
from ibreg.hosts import CHILD
from ibreg.layers.base import Bottleneck
from ibreg.registry import build
from ibreg.regularized import bottlenecks, name_without_wrappers, unwrap
from ibreg.surgery.injection import inject

METADATA = "ibreg"
FORMAT = 1  # of the metadata; a file of another one is refused
SHOWN = 3  # keys of a backbone that a message names


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
        if getattr(layer, "registry_name", None) is None:
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
    shapes = backbone_shapes(model)
    content = {
        "format": FORMAT,
        "ibreg": ibreg.__version__,
        "backbone": {"hash": backbone_hash(shapes), "shapes": shapes},
        "bottlenecks": described,
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
    try:
        save_file(tensors, partial, metadata={METADATA: json.dumps(content)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_bottlenecks(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Builds the saved bottlenecks again and injects them; where the model has one of that name, it gets the weights.

    Args:
        model: the same network as at saving, with its own weights loaded: the keys and shapes of its state dict are
            those of then. Everything is checked before it is changed.
        path: a file of `save_bottlenecks`.

    Returns:
        the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or one of another format; a class that is not registered; another backbone (the
            first keys that are missing, further or of another shape are named), or one whose modules do not fit.
    """
    layers, backbone = _read(Path(path))
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
    _check_backbone(backbone, backbone_shapes(model), path)
    if missing:
        inject(model, {name.removesuffix(CHILD).removesuffix("."): layer for name, layer in missing.items()})
    for name in layers.keys() & present.keys():
        present[name].load_state_dict(layers[name].state_dict())
        present[name].initial_beta = layers[name].initial_beta
    return model


def backbone_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Returns the keys of a model's state dict with the shapes of their tensors, without those of its bottlenecks.

    Args:
        model: wrapped in `Regularized`, DDP or `torch.compile` or not.

    Example:
        >>> backbone_shapes(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
        {'0.weight': [8, 4], '0.bias': [8]}
    """
    added = tuple(f"{name}." for name in bottlenecks(model))
    tensors = {name_without_wrappers(key): tensor for key, tensor in unwrap(model).state_dict().items()}
    return {
        key: list(tensor.shape)
        for key, tensor in tensors.items()
        if isinstance(tensor, Tensor) and not key.startswith(added)
    }


def backbone_hash(shapes: Mapping[str, list[int]]) -> str:
    """Returns the SHA-256 of keys and shapes, whatever their order: equal for backbones that can exchange weights."""
    return hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()


def _check_backbone(saved: Mapping[str, Any], own: Mapping[str, list[int]], path: str | os.PathLike) -> None:
    if saved["hash"] == backbone_hash(own):
        return
    before = saved["shapes"]
    differences = {
        "missing here": [key for key in before if key not in own],
        "further here": [key for key in own if key not in before],
        "of another shape": [
            f"{key} {own[key]} instead of {before[key]}" for key in before if key in own and own[key] != before[key]
        ],
    }
    said = "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for kind, keys in differences.items()
        if keys
    )
    raise ValueError(
        f"{path} was saved from another backbone. Of the keys in its state dict, {said}. Build the network as it was "
        "then, and load its own weights first"
    )


def _read(path: Path) -> tuple[dict[str, Bottleneck], dict[str, Any]]:
    """Returns the saved bottlenecks by name, and what the file says of their backbone."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(METADATA, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or was cut short: {error}") from error
    if content is None:
        raise ValueError(f"{path} was not written by ibreg.save_bottlenecks: it names no bottleneck")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')}, written by ibreg {content.get('ibreg')}; this is ibreg "
            f"{ibreg.__version__}, which reads format {FORMAT}: use that version, or save the bottlenecks anew"
        )
    layers = {}
    for name, entry in content["bottlenecks"].items():
        layer = build(entry["class"], **entry["config"])
        own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        try:
            layer.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{path}, written by ibreg {content['ibreg']}, does not fit this version of {entry['class']!r}: {error}"
            ) from error
        layer._injected = entry["injected"]
        layers[name] = layer
    return layers, content["backbone"]


def _objective(layer: Bottleneck) -> dict:
    """Returns what makes a layer that layer: its class and options, without what may differ."""
    unimportant = {"beta"} if layer.sized else {"beta", "in_features"}  # which a layer without parameters only checks
    return {"class": type(layer)} | {key: value for key, value in layer.config().items() if key not in unimportant}
