"""Classifiers by name: `build("mlp", input_shape=(1, 8, 8), classes=10)`.

The YAML of each names the module after which a bottleneck belongs, `inject_at`.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torchvision
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.runs.config.section import Count, Name, Names, Section, read
from ibreg.runs.data.images import Normalization
from ibreg.runs.dispatch import choose, find, name_in, options_of
from ibreg.runs.models.hubs import timm_model, transformers_model
from ibreg.runs.models.normalization import add_normalization
from ibreg.runs.models.weights import adopt_weights, read_weights


class Model(Section):
    """The keys of every model; those of its own are the keyword-only arguments of its function.

    Attributes:
        name: one of `names()`.
        inject_at: module after which a bottleneck is injected, or a list of modules.
    """

    name: str
    inject_at: Name | Names

    def options(self) -> dict[str, Any]:
        """Returns name and own options, as `build` takes them."""
        return {key: value for key, value in self if key != "inject_at"}


def model_options(options: Mapping[str, Any], section: str = "model") -> Model:
    """Checks the options of a model.

    Args:
        options: `name`, `inject_at` and the model's own.
        section: their key in a configuration, for messages.

    Raises:
        ValueError: If a name or option is unknown, or a value is not valid.
    """
    function = find("model", name_in(options, _MODELS, section), _MODELS, section)
    if options.get("inject_at") is None:
        raise ValueError(
            f"{section}.inject_at has no value: choose {section}=NAME, one of {', '.join(names())}, which sets one"
        )
    return read(options_of(function, Model), options, section)


def build(
    name: str,
    *,
    input_shape: Sequence[int],
    classes: int,
    code_features: int | None = None,
    normalization: Normalization | None = None,
    **options: Any,
) -> nn.Module:
    """Builds a classifier by name.

    Args:
        name: one of `names()`.
        input_shape: shape of one input: `(features,)` or `(channels, height, width)`.
        classes: number of outputs.
        code_features: input features of the head, where a bottleneck after the trunk changes them; None: the features
            of the trunk. Only models with a trunk take it.
        normalization: mean and standard deviation by which the model normalizes images with values in [0, 1]; None: it
            reads inputs as they are.
        **options: the model's own options, as in `configs/model/<name>.yaml`.

    Raises:
        ValueError: If a name or option is unknown, or the model cannot read such inputs.

    Example:
        >>> import torch
        >>> model = build("mlp", input_shape=(1, 8, 8), classes=10, hidden=[32])
        >>> model(torch.randn(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """
    network = _build(name, tuple(input_shape), classes, code_features, options)
    return network if normalization is None else add_normalization(network, normalization)


def _build(
    name: str, input_shape: tuple[int, ...], classes: int, code_features: int | None, options: dict[str, Any]
) -> nn.Module:
    function = choose("model", name, _MODELS, options, "model")
    with_trunk = [model for model in names() if "code_features" in inspect.signature(_MODELS[model]).parameters]
    if name in with_trunk:
        return function(input_shape, classes, code_features)
    if code_features is not None:
        raise ValueError(
            f"{name} has no trunk of its own, so its head cannot read code_features={code_features}: use a bottleneck "
            f"with as many output as input features, or one of {with_trunk}"
        )
    return function(input_shape, classes)


def names() -> list[str]:
    """Lists the models that `build` knows.

    Example:
        >>> names()
        ['lenet', 'mlp', 'resnet20', 'timm', 'torchvision', 'transformers']
    """
    return sorted(_MODELS)


class MLP(nn.Module):
    """A multilayer perceptron of a trunk, which computes the code, and a head.

    Args:
        features: number of entries of one input.
        classes: number of outputs.
        hidden: widths of the layers of the trunk.
        code_features: input features of the head; None: those of the trunk.
        decoder: widths of the hidden layers of the head; empty: a linear head.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: Sequence[int],
        code_features: int | None = None,
        decoder: Sequence[int] = (),
    ):
        super().__init__()
        widths = [features, *hidden]
        self.trunk = nn.Sequential(nn.Flatten(), *_layers(widths))
        of_head = [widths[-1] if code_features is None else code_features, *decoder]
        output = nn.Linear(of_head[-1], classes)
        self.head = nn.Sequential(*_layers(of_head), output) if decoder else output

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(batch, ...)` to logits `(batch, classes)`."""
        return self.head(self.trunk(x))


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    return [layer for wide, narrow in pairwise(widths) for layer in (nn.Linear(wide, narrow), nn.ReLU())]


class LeNet(nn.Module):
    """LeNet-5 with rectifiers and maximum pooling (LeCun et al. 1998, figure 2), for images from 8 x 8.

    Args:
        input_shape: `(channels, height, width)`.
        classes: number of outputs.
        code_features: input features of the head; None: those of the trunk, 84.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, code_features: int | None = None):
        super().__init__()
        channels, *size = input_shape
        small = min(size) < 12  # after the first pooling a kernel of 5 x 5 would not fit without padding
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5, padding=2 if small else 0), nn.ReLU(), nn.MaxPool2d(2)),
        )
        height, width = (side // 4 if small else (side // 2 - 4) // 2 for side in size)
        self.trunk = nn.Sequential(nn.Flatten(), *_layers([16 * height * width, 120, 84]))
        self.head = nn.Linear(84 if code_features is None else code_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(batch, channels, height, width)` to logits `(batch, classes)`."""
        return self.head(self.trunk(self.features(x)))


class ResNet(nn.Module):
    """The residual network for CIFAR-10, with shortcuts that have no parameters (He et al. 2016, arXiv 1512.03385).

    Names are those of `akamaster/pytorch_resnet_cifar10`, so that its published weights fit.

    Args:
        channels: input channels.
        classes: number of outputs.
        depth: number of layers with weights, 6 n + 2: 20, 32, 44, 56, 110.
    """

    def __init__(self, channels: int, classes: int, depth: int):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(_Block(16, 32), *(_Block(32, 32) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(_Block(32, 64), *(_Block(64, 64) for _ in range(blocks - 1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(batch, channels, height, width)` to logits `(batch, classes)`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.avgpool(x).flatten(1))


class _Block(nn.Module):
    """Two convolutions and a shortcut; where the number of channels doubles, the size is halved."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.stride = outputs // inputs
        self.padding = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(residual + shortcut)


def mlp(
    input_shape: tuple[int, ...],
    classes: int,
    code_features: int | None = None,
    *,
    hidden: Sequence[Count] = (256, 128),
    decoder: Sequence[Count] = (),
    initialization: Literal["default", "xavier"] = "default",
) -> nn.Module:
    """Builds a multilayer perceptron for inputs of any shape.

    Args:
        input_shape: shape of one input.
        classes: number of outputs.
        code_features: input features of the head; None: those of the trunk.
        hidden: widths of the layers of the trunk.
        decoder: widths of the hidden layers of the head; empty: a linear head.
        initialization: "default", that of torch, or "xavier": uniform weights, zero biases.
    """
    return MLP(prod(input_shape), classes, hidden, code_features, decoder).apply(_INITIALIZATIONS[initialization])


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


_INITIALIZATIONS: dict[str, Callable[[nn.Module], None]] = {"default": lambda module: None, "xavier": _xavier}


def lenet(input_shape: tuple[int, ...], classes: int, code_features: int | None = None) -> nn.Module:
    """Builds LeNet-5 for images of at least 8 x 8.

    Args:
        input_shape: `(channels, height, width)`.
        classes: number of outputs.
        code_features: input features of the head; None: those of the trunk, 84.
    """
    return LeNet(_image("lenet", input_shape, smallest=8), classes, code_features)


def _check_depth(depth: int) -> int:
    if depth < 8 or depth % 6 != 2:
        raise PydanticCustomError("depth", "no depth of a residual network")
    return depth


Depth = Annotated[
    int,
    AfterValidator(_check_depth),
    Field(json_schema_extra={"valid": "6 n + 2 with n of at least 1 (20, 32, 44, 56 or 110 in the paper)"}),
]


def resnet20(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    depth: Depth = 20,
    weights: str | Path | None = None,
) -> nn.Module:
    """Builds a CIFAR residual network, optionally with published weights.

    Args:
        input_shape: `(channels, height, width)`, at least 8 x 8.
        classes: number of outputs.
        depth: number of layers with weights, 6 n + 2.
        weights: file of weights; a linear layer for another number of classes stays as initialized. Grayscale images
            are repeated to three channels if the weights are for RGB.
    """
    channels, _, _ = _image("resnet20", input_shape, smallest=8)
    state = {} if weights is None else read_weights(weights)
    repeated = channels == 1 and "conv1.weight" in state and state["conv1.weight"].shape[1] == 3
    model = ResNet(3 if repeated else channels, classes, depth)
    if weights is not None:
        adopt_weights(model, state, str(weights))
    if repeated:
        model.register_forward_pre_hook(_repeat_grayscale)
    return model


def torchvision_model(
    input_shape: tuple[int, ...], classes: int, *, architecture: str = "resnet18", weights: str | Path | None = None
) -> nn.Module:
    """Builds one of torchvision's classifiers, optionally with pretrained weights.

    Grayscale images are repeated to three channels; the valid sizes are those of the architecture.

    Args:
        input_shape: `(channels, height, width)` with 1 or 3 channels.
        classes: number of outputs.
        architecture: name in torchvision, such as "resnet18".
        weights: name of weights in torchvision, such as "IMAGENET1K_V1" or "DEFAULT" for its best (downloaded once, to
            the cache of torch), a file of weights, or None. A classifier for another number of classes stays as
            initialized.
    """
    channels, _, _ = _image("torchvision", input_shape, smallest=1)
    if channels not in (1, 3):
        raise ValueError(f"torchvision's models need 1 or 3 channels, got input_shape={input_shape}")
    if architecture not in (known := _architectures()):
        close = difflib.get_close_matches(str(architecture), known, cutoff=0)
        raise ValueError(f"torchvision has no classifier {architecture!r}; the closest names are {close}")
    model = torchvision.models.get_model(architecture, num_classes=classes)
    named = torchvision.models.get_model_weights(architecture).__members__
    if isinstance(weights, str) and weights in named:
        adopt_weights(model, named[weights].get_state_dict(check_hash=True), f"torchvision, {weights}")
    elif weights is not None:
        adopt_weights(model, read_weights(weights), str(weights))
    if channels == 1:
        model.register_forward_pre_hook(_repeat_grayscale)
    return model


def _architectures() -> list[str]:
    """Lists torchvision's classifiers, without the two that return several outputs in training."""
    return [
        name
        for name in torchvision.models.list_models(module=torchvision.models)
        if name not in ("googlenet", "inception_v3")
    ]


def _repeat_grayscale(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].expand(-1, 3, -1, -1)


def _image(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ValueError(
            f"{name} needs images (channels, height, width), but an input has the shape {input_shape}: use model=mlp"
        )
    if min(input_shape[1:]) < smallest:
        raise ValueError(f"{name} needs images of at least {smallest} x {smallest}, got the shape {input_shape}")
    return input_shape


_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet": lenet,
    "resnet20": resnet20,
    "torchvision": torchvision_model,
    "timm": timm_model,
    "transformers": transformers_model,
}
