"""Frozen encoders by name, which map images to features: with given weights, or trained on another data set.

An encoder reads images with values in [0, 1] and normalizes them itself; grayscale images are repeated to its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from ibreg.runs.config.section import Count, Positive
from ibreg.runs.data import streams as continual_data
from ibreg.runs.data.classification import ClassificationData
from ibreg.runs.data.images import IMAGENET_MEAN, IMAGENET_STD, Normalization, PerChannel
from ibreg.runs.data.rows import loader
from ibreg.runs.dispatch import choose
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.features import cached, digest
from ibreg.runs.models.normalization import Normalize
from ibreg.runs.seeding import EpochSampler, seed_all


def build(name: str, *, input_shape: Sequence[int], root: Path, cache: Path, **options: Any) -> nn.Module:
    """Builds a frozen encoder by name, in evaluation mode and without gradients.

    Args:
        name: one of `names()`.
        input_shape: shape of one input: `(features,)` or `(channels, height, width)`.
        root: folder of the data, which paths of weights may be relative to.
        cache: folder of the weights of encoders that were trained here.
        **options: the encoder's own options, as in `configs/encoder/<name>.yaml`.

    Raises:
        ValueError: If a name, an option or a module is unknown, or the encoder cannot read such inputs.
        FileNotFoundError: If weights, or the data to train with, are missing.

    Example:
        >>> encoder = build("identity", input_shape=(1, 8, 8), root=Path(), cache=Path())
        >>> encoder(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 64])
    """
    function = choose("encoder", name, _ENCODERS, options, "encoder")
    return function(tuple(input_shape), root, cache).eval().requires_grad_(False)


def names() -> list[str]:
    """Lists the encoders that `build` knows.

    Example:
        >>> names()
        ['identity', 'pretrained', 'trained']
    """
    return sorted(_ENCODERS)


class Encoder(nn.Module):
    """The outputs of some modules of a network, pooled and concatenated.

    Args:
        network: reads normalized images `(batch, channels, height, width)`.
        places: dotted names of its modules; their outputs are maps, tokens or vectors.
        pool: side of the grid that maps are averaged to; tokens are averaged to one.
        image_size: side that images are resized to; None: their own.
        normalization: mean and standard deviation, one per channel of the network.

    Raises:
        ValueError: If the network has no such module.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> encoder = Encoder(network, ["1"], pool=2, image_size=16, normalization=Normalization.of(0.5, 0.5, 3))
        >>> encoder(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        network: nn.Module,
        places: Sequence[str],
        *,
        pool: int,
        image_size: int | None,
        normalization: Normalization,
    ):
        super().__init__()
        known = [name for name, _ in network.named_modules() if name]
        if not places or set(places) - set(known):
            raise ValueError(f"places must name one or more modules of the encoder, of {known}, got {list(places)}")
        self.network = create_feature_extractor(network.eval(), list(places))
        self.places = list(places)
        self.pool, self.image_size = pool, image_size
        self.normalize = Normalize(normalization)
        self.channels = len(normalization.mean)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(batch, channels, height, width)` in [0, 1] to `(batch, features)`."""
        outputs = self.network(self.prepare(x))
        return torch.cat([self._flat(outputs[place]) for place in self.places], dim=1)

    def prepare(self, x: Tensor) -> Tensor:
        """Resizes images with values in [0, 1], repeats grayscale channels, and normalizes."""
        if self.image_size is not None and x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return self.normalize(x.expand(-1, self.channels, -1, -1))

    def _flat(self, output: Tensor) -> Tensor:
        if output.dim() == 4:
            return F.adaptive_avg_pool2d(output, self.pool).flatten(1)
        return output.mean(dim=1) if output.dim() == 3 else output

    def extra_repr(self) -> str:
        """Shows the settings, so that encoders with the same representation and `state_dict` are the same."""
        return f"places={self.places}, pool={self.pool}, image_size={self.image_size}"


def identity(input_shape: tuple[int, ...], root: Path, cache: Path) -> nn.Module:
    """Builds an encoder that flattens its inputs."""
    return nn.Flatten()


def pretrained(
    input_shape: tuple[int, ...],
    root: Path,
    cache: Path,
    *,
    model: Mapping[str, Any],
    places: Annotated[Sequence[str], Field(min_length=1)],
    pool: Count = 1,
    image_size: Count | None = None,
    mean: PerChannel = IMAGENET_MEAN,
    std: PerChannel = IMAGENET_STD,
) -> nn.Module:
    """Builds an encoder with weights of a file or of torchvision, for images of 1 or 3 channels.

    Args:
        input_shape: `(channels, height, width)`.
        root: folder that the path of the weights may be relative to.
        cache: unused.
        model: name and options of one of `ibreg.runs.models.classifiers`, with its weights.
        places: dotted names of the modules whose outputs are the features.
        pool: side of the grid that maps are averaged to.
        image_size: side that images are resized to; None: their own.
        mean: mean of the values in [0, 1], as the weights expect it: one number, or one per channel.
        std: their standard deviation.
    """
    _check_image(input_shape, 3)
    options = dict(model)
    if options.get("weights") is None:
        raise ValueError("a pretrained encoder needs encoder.model.weights: a file, or DEFAULT for torchvision's")
    if (under := root / Path(options["weights"]).expanduser()).is_file():
        options["weights"] = under
    side = image_size or input_shape[1]
    # The classifier is unused, so one for another number of classes may stay as initialized.
    network = models.build(**options, input_shape=(3, side, side), classes=1)
    return Encoder(network, places, pool=pool, image_size=image_size, normalization=Normalization.of(mean, std, 3))


def trained(
    input_shape: tuple[int, ...],
    root: Path,
    cache: Path,
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    places: Annotated[Sequence[str], Field(min_length=1)],
    pool: Count = 1,
    epochs: Count = 5,
    batch_size: Count = 128,
    lr: Positive = 1e-3,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> nn.Module:
    """Trains a classifier on another data set, once, and uses it as encoder.

    Args:
        input_shape: `(channels, height, width)`.
        root: folder of the data.
        cache: folder of the weights, whose file name is a hash of data and options.
        data: name and options of the other data set, one of images.
        model: name and options of one of `ibreg.runs.models.classifiers`.
        places: dotted names of the modules whose outputs are the features.
        pool: side of the grid that maps are averaged to.
        epochs: passes over the other data set.
        batch_size: images per step.
        lr: learning rate of AdamW.
        seed: seed of initialization and order.
    """
    other = continual_data.load(**dict(continual_data.request({"root": root, "validation": 0, **data}, "encoder.data")))
    channels, *size = other.input_shape
    _check_image(input_shape, channels)
    if size[0] != size[1]:
        raise ValueError(f"an encoder is trained on square images, those of {other.name} are {size}")
    seed_all(seed)
    network = models.build(**model, input_shape=other.input_shape, classes=other.classes)
    # The places are checked, and the weights shared, before anything is trained.
    encoder = Encoder(
        network, places, pool=pool, image_size=size[0], normalization=Normalization.of(0.5, 0.5, channels)
    )
    key = digest(
        network, (sorted(model.items()), epochs, batch_size, lr, seed), other.train.inputs, other.train.targets
    )

    def train() -> dict[str, Tensor]:
        _train(network, encoder, other, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
        return network.state_dict()

    network.load_state_dict(cached(cache, f"encoder-{other.name}", key, train))
    return encoder


def _train(
    network: nn.Module,
    encoder: Encoder,
    data: ClassificationData,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    """Trains the network of an encoder as a classifier."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    sampler = EpochSampler(len(data.train), seed)
    network.train()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in loader(data.train, batch_size, sampler=sampler, drop_last=len(data.train) > batch_size):
            F.cross_entropy(network(encoder.prepare(x)), y).backward()
            optimizer.step()
            optimizer.zero_grad()


def _check_image(input_shape: tuple[int, ...], channels: int) -> None:
    if len(input_shape) != 3 or input_shape[0] not in (1, channels):
        raise ValueError(
            f"the encoder needs images of {' or '.join(map(str, sorted({1, channels})))} channels, but an input has "
            f"the shape {input_shape}: use encoder=identity, or another"
        )


_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "identity": identity,
    "pretrained": pretrained,
    "trained": trained,
}
