"""Image classifiers of timm and transformers, which are extras: `pip install ibreg[timm,transformers]`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ibreg.runs.models.weights import adopt_weights, read_weights

_MODELS_BY_TYPE = "transformers.models.auto.modeling_auto"


def timm_model(
    input_shape: tuple[int, ...], classes: int, *, architecture: str = "resnet18", weights: str | Path | None = None
) -> nn.Module:
    """Builds one of timm's classifiers, optionally with pretrained weights.

    Args:
        input_shape: `(channels, height, width)`; the valid sizes are those of the architecture.
        classes: number of outputs.
        architecture: name in timm, optionally with the tag of its weights, such as "resnet18.a1_in1k".
        weights: "DEFAULT" for those of the tag (downloaded once), a file of weights, or None. A classifier for another
            number of classes stays as initialized.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If the architecture is unknown, or the weights do not fit it.
    """
    timm = _extra("timm")
    plain = str(architecture).partition(".")[0]
    if not timm.is_model(plain):
        close = difflib.get_close_matches(plain, timm.list_models(), cutoff=0)
        raise ValueError(f"timm has no model {architecture!r}; the closest names are {close}")
    model = timm.create_model(
        architecture, pretrained=weights == "DEFAULT", num_classes=classes, in_chans=input_shape[0]
    )
    if weights not in (None, "DEFAULT"):
        adopt_weights(model, read_weights(weights), str(weights))
    return model


def transformers_model(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    weights: str | Path | None = None,
    architecture: str = "vit",
    configuration: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Builds an image classifier of transformers whose forward returns the logits.

    Args:
        input_shape: `(channels, height, width)`.
        classes: number of outputs.
        weights: a folder that `save_pretrained` wrote, or a name on the hub, with its own architecture and
            configuration; None: a new model. A classifier for another number of classes stays as initialized.
        architecture: model type of a new model, such as "vit".
        configuration: settings of a new model; `image_size` and `num_channels` are those of the data.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If the architecture is unknown, settings are given beside weights, or weights are missing or fit no
            image classifier.
    """
    transformers = _extra("transformers")
    if weights is not None:
        if configuration:
            raise ValueError("weights have their own configuration: leave model.configuration empty")
        try:
            model = transformers.AutoModelForImageClassification.from_pretrained(
                str(weights), num_labels=classes, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"transformers finds no image classifier at {weights}: model.weights must be a folder that "
                "save_pretrained wrote, a name on the hub, or null"
            ) from error
    else:
        known = importlib.import_module(_MODELS_BY_TYPE).MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        if architecture not in known:
            close = difflib.get_close_matches(str(architecture), known, cutoff=0)
            raise ValueError(f"transformers has no image classifier {architecture!r}; the closest names are {close}")
        channels, height, _ = input_shape
        settings = {"image_size": height, "num_channels": channels, **(configuration or {})}
        built = transformers.AutoConfig.for_model(architecture, num_labels=classes, **settings)
        model = transformers.AutoModelForImageClassification.from_config(built)
    model.register_forward_hook(_logits)
    return model


def _logits(model: nn.Module, inputs: tuple, output: Any) -> Tensor:
    return output.logits


def _extra(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"model={package} needs the package {package}: pip install {package}") from error
