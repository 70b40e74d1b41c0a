"""Saving and loading the bottlenecks of a model without the model, in one safetensors file.

The file has their weights and configurations, and identifies the backbone by the keys and shapes of its state dict and
their hash: loading it into another backbone is an error that names the differences.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ibreg.hosts import CHILD
from ibreg.layers.base import Bottleneck
from ibreg.registry import build
from ibreg.regularized import bottlenecks, name_without_wrappers, unwrap
from ibreg.surgery.injection import inject
from ibreg.version import __version__

METADATA = "ibreg"
FORMAT = 1  # of the metadata; files of another format are refused
SHOWN = 3  # number of keys of a backbone that a message lists


def save_bottlenecks(model: nn.Module, path: str | os.PathLike) -> None:
    """Writes the weights and the configuration of all bottlenecks of a model, and nothing of the model itself.

    Args:
        model: with bottlenecks; wrapped in `Regularized`, DDP or `torch.compile` or not.
        path: of the file, usually `*.safetensors`; an existing file is replaced atomically.

    Raises:
        ValueError: If the model has no bottleneck, or one whose class is not registered.
        FileNotFoundError: If the folder does not exist.
    """
    from safetensors.torch import save_file

    layers = bottlenecks(model)
    if not layers:
        raise ValueError("there is no bottleneck in the model, so there is nothing to save")
    shapes = backbone_shapes(model)
    content = {
        "format": FORMAT,
        "ibreg": __version__,
        "backbone": {"hash": backbone_hash(shapes), "shapes": shapes},
        "bottlenecks": {name: _described(name, layer) for name, layer in layers.items()},
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
    """Rebuilds the saved bottlenecks and injects them; a bottleneck that the model has already gets the saved weights.

    Args:
        model: the network of the saved bottlenecks, with its own weights loaded; keys and shapes of its state dict must
            be the same. Everything is checked before anything is changed.
        path: a file that `save_bottlenecks` wrote.

    Returns:
        the model.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not of `save_bottlenecks` or has another format, a class is not registered, the
            backbone is another one (the first keys that are missing, unexpected or of another shape are listed), or a
            module cannot take its bottleneck.
    """
    layers, backbone = _read(Path(path))
    present = bottlenecks(model)
    for name in layers.keys() & present.keys():
        saved, current = _objective(layers[name]), _objective(present[name])
        if saved != current:
            different = [key for key in saved if saved[key] != current.get(key)]
            raise ValueError(
                f"{name!r} is {present[name]!r} in the model, but {layers[name]!r} was saved ({', '.join(different)} "
                "differ): eject it first"
            )
    missing = {name: layer for name, layer in layers.items() if name not in present}
    for name, layer in missing.items():
        if not layer._injected:
            raise ValueError(
                f"the saved bottleneck {name!r} was part of the model's own code, and this model has none of that name"
            )
    _check_backbone(backbone, backbone_shapes(model), path)
    if missing:
        inject(model, {name.removesuffix(CHILD).removesuffix("."): layer for name, layer in missing.items()})
    for name in layers.keys() & present.keys():
        present[name].load_state_dict(layers[name].state_dict())
        present[name].initial_beta = layers[name].initial_beta
    return model


def backbone_shapes(model: nn.Module) -> dict[str, list[int]]:
    """Returns the shapes of the tensors in a model's state dict by key, without its bottlenecks.

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
    """Returns the SHA-256 of keys and shapes in sorted order: equal for backbones that can exchange weights."""
    return hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()


def _described(name: str, layer: Bottleneck) -> dict[str, Any]:
    """Returns what rebuilds a layer, as JSON."""
    if getattr(layer, "registry_name", None) is None:
        raise ValueError(
            f"{name!r} is a {type(layer).__name__}, which has no name to load it by: decorate it with @ibreg.register"
        )
    # The tensor holds the current beta; schedules of the loaded model start from the initial one.
    config = layer.config() | {"beta": layer.initial_beta}
    return {"class": layer.registry_name, "config": config, "injected": layer._injected}


def _check_backbone(saved: Mapping[str, Any], shapes: Mapping[str, list[int]], path: str | os.PathLike) -> None:
    if saved["hash"] == backbone_hash(shapes):
        return
    before = saved["shapes"]
    differences = {
        "missing": [key for key in before if key not in shapes],
        "unexpected": [key for key in shapes if key not in before],
        "of another shape": [
            f"{key} {shapes[key]} instead of {before[key]}"
            for key in before
            if key in shapes and shapes[key] != before[key]
        ],
    }
    listed = "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for kind, keys in differences.items()
        if keys
    )
    raise ValueError(
        f"{path} was saved from another backbone. Of the keys in the model's state dict, {listed}. Build the network "
        "as it was when saved, and load its own weights first"
    )


def _read(path: Path) -> tuple[dict[str, Bottleneck], dict[str, Any]]:
    """Returns the saved bottlenecks by name, and the hash and shapes of their backbone."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(METADATA, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is truncated: {error}") from error
    if content is None:
        raise ValueError(f"{path} was not written by ibreg.save_bottlenecks: it has no metadata of bottlenecks")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')}, written by ibreg {content.get('ibreg')}; this is ibreg "
            f"{__version__}, which reads format {FORMAT}: use that version, or save the bottlenecks again"
        )
    layers = {}
    for name, entry in content["bottlenecks"].items():
        layer = build(entry["class"], **entry["config"])
        state = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        try:
            layer.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{path}, written by ibreg {content['ibreg']}, does not fit this version of {entry['class']!r}: {error}"
            ) from error
        layer._injected = entry["injected"]
        layers[name] = layer
    return layers, content["backbone"]


def _objective(layer: Bottleneck) -> dict[str, Any]:
    """Returns the class and the options of a layer, without those that may differ between saving and loading."""
    ignored = {"beta"} if layer.sized else {"beta", "in_features"}  # a layer without parameters only checks the latter
    return {"class": type(layer)} | {key: value for key, value in layer.config().items() if key not in ignored}
