"""Frozen encoders behind one name: images to features, by weights of a file, of torchvision, or trained here.

An encoder reads images with values in [0, 1] and normalizes them itself; gray ones are repeated to its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from ibreg.runs.data import streams as continual_data
from ibreg.runs.data.images import IMAGENET_MEAN, IMAGENET_STD, per_channel
from ibreg.runs.data.rows import loader
from ibreg.runs.dispatch import choose
from ibreg.runs.models import classifiers as models
from ibreg.runs.models.features import cached, digest
from ibreg.runs.seeding import EpochSampler, seed_all


def build(name: str, *, input_shape: Sequence[int], root: Path, cache: Path, **options) -> nn.Module:
    """Builds a frozen encoder by name, in eval mode and without gradients.

    Args:
        name: One of `names()`.
        input_shape: Shape of one input: `(features,)` or `(channels, height, width)`.
        root: Folder that weights may lie under, and the data of an encoder that is trained here.
        cache: Folder that keeps an encoder which is trained here.
        options: The encoder's own options, as they stand in `configs/encoder/<name>.yaml`.

    Raises:
        ValueError: For an unknown name or option, inputs that the encoder cannot read, and places that it has not.
        FileNotFoundError: If there are no weights, or no data to train with.

    Example:
        >>> encoder = build("identity", input_shape=(1, 8, 8), root=Path(), cache=Path())
        >>> encoder(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 64])
    """
    function = choose("encoder", name, _ENCODERS, options)
    return function(tuple(input_shape), root, cache, **options).eval().requires_grad_(False)


def names() -> list[str]:
    """Lists the encoders that `build` knows.

    Example:
        >>> names()
        ['identity', 'pretrained', 'trained']
    """
    return sorted(_ENCODERS)


class Encoder(nn.Module):
    """What modules of a network return, pooled and side by side.

    Args:
        network: Reads normalized images `(batch, channels, height, width)`.
        places: Dotted names of its modules; their outputs are maps, tokens or vectors.
        pool: Side of the grid that maps are averaged to; tokens are averaged to one.
        image_size: Side that images are resized to; None leaves them.
        mean: Subtracted from values in [0, 1], one number per channel of the network.
        std: What they are divided by then.

    Raises:
        ValueError: If the network has no such place.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> encoder = Encoder(network, ["1"], pool=2, image_size=16, mean=[0.5] * 3, std=[0.5] * 3)
        >>> encoder(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 16])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        places: Sequence[str],
        *,
        pool: int,
        image_size: int | None,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        known = [name for name, _ in network.named_modules() if name]
        if not places or set(places) - set(known):
            raise ValueError(f"places={list(places)} names one or more modules of the encoder, of {known}")
        for option, side in (("pool", pool), ("image_size", image_size)):
            if not (type(side) is int and side > 0) and not (option == "image_size" and side is None):
                raise ValueError(f"{option}={side!r} is a side of 1 or more")
        self.network = create_feature_extractor(network.eval(), list(places))
        self.places = list(places)
        self.pool, self.image_size = pool, image_size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(batch, channels, height, width)` in [0, 1] to `(batch, features)`."""
        found = self.network(self.normalized(x))
        return torch.cat([self._flat(found[place]) for place in self.places], dim=1)

    def normalized(self, x: Tensor) -> Tensor:
        """Makes of images in [0, 1] what the network reads."""
        if self.image_size is not None and x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return (x.expand(-1, len(self.mean), -1, -1) - self.mean) / self.std

    def _flat(self, part: Tensor) -> Tensor:
        if part.dim() == 4:
            return F.adaptive_avg_pool2d(part, self.pool).flatten(1)
        return part.mean(dim=1) if part.dim() == 3 else part

    def extra_repr(self) -> str:
        """Names what no weight says, so that two encoders with one representation and one state are the same."""
        return f"places={self.places}, pool={self.pool}, image_size={self.image_size}"


def identity(input_shape: tuple[int, ...], root: Path, cache: Path) -> nn.Module:
    """Takes inputs as features, flattened."""
    return nn.Flatten()


def pretrained(
    input_shape: tuple[int, ...],
    root: Path,
    cache: Path,
    *,
    model: Mapping[str, Any],
    places: Sequence[str],
    pool: int = 1,
    image_size: int | None = None,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
) -> nn.Module:
    """Builds an encoder with weights of a file or of torchvision, for images of 1 or 3 channels.

    Args:
        input_shape: `(channels, height, width)`.
        root: Folder that the weights may lie under.
        cache: Not used.
        model: Name and options of one of `ibreg.runs.models.classifiers`, with its weights.
        places: Modules whose outputs are the features.
        pool: Side of the grid that maps are averaged to.
        image_size: Side that images are resized to; None leaves them.
        mean: Subtracted from values in [0, 1], as the weights expect it: one number, or one per channel.
        std: What they are divided by then.
    """
    _check_image(input_shape, 3)
    options = dict(model)
    if options.get("weights") is None:
        raise ValueError("a pretrained encoder needs encoder.model.weights: a file, or DEFAULT for torchvision's")
    if (under := root / Path(options["weights"]).expanduser()).is_file():
        options["weights"] = under
    side = image_size or input_shape[1]
    # The classifier is not used: one of another size stays as it is initialized.
    network = models.build(**options, input_shape=(3, side, side), classes=1)
    normalization = {"mean": per_channel("mean", mean, 3), "std": per_channel("std", std, 3)}
    return Encoder(network, places, pool=pool, image_size=image_size, **normalization)


def trained(
    input_shape: tuple[int, ...],
    root: Path,
    cache: Path,
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    places: Sequence[str],
    pool: int = 1,
    epochs: int = 5,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Trains a classifier of another data set, once, and takes it as encoder.

    Args:
        input_shape: `(channels, height, width)`.
        root: Folder of the data.
        cache: Folder that keeps the weights, under a name that data and options make.
        data: Name and options of the other data set, one of images.
        model: Name and options of one of `ibreg.runs.models.classifiers`.
        places: Modules whose outputs are the features.
        pool: Side of the grid that maps are averaged to.
        epochs: Passes over the other data set.
        batch_size: Images per step.
        lr: AdamW's.
        seed: Of initialization and order.
    """
    for option, number in (("epochs", epochs), ("batch_size", batch_size)):
        if type(number) is not int or number < 1:
            raise ValueError(f"encoder.{option}={number!r} is an integer of at least 1")
    other = continual_data.load(**{"root": root, "validation": 0, **data})
    channels, *size = other.input_shape
    _check_image(input_shape, channels)
    if size[0] != size[1]:
        raise ValueError(f"an encoder is trained with square images, those of {other.name} are {size}")
    seed_all(seed)
    network = models.build(**model, input_shape=other.input_shape, classes=other.classes)
    # Places are checked, and the weights shared, before there is anything to train.
    encoder = Encoder(network, places, pool=pool, image_size=size[0], mean=[0.5] * channels, std=[0.5] * channels)

    def train() -> dict[str, Tensor]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
        sampler = EpochSampler(len(other.train), seed)
        network.train()
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for x, y in loader(other.train, batch_size, sampler=sampler, drop_last=len(other.train) > batch_size):
                F.cross_entropy(network(encoder.normalized(x)), y).backward()
                optimizer.step()
                optimizer.zero_grad()
        return network.state_dict()

    key = digest(
        network, (sorted(model.items()), epochs, batch_size, lr, seed), other.train.inputs, other.train.targets
    )
    network.load_state_dict(cached(cache, f"encoder-{other.name}", key, train))
    return encoder


def _check_image(input_shape: tuple[int, ...], channels: int) -> None:
    if len(input_shape) != 3 or input_shape[0] not in (1, channels):
        raise ValueError(
            f"the encoder reads images of {' or '.join(map(str, sorted({1, channels})))} channels, but an input has "
            f"the shape {input_shape}: use encoder=identity, or another"
        )


_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "identity": identity,
    "pretrained": pretrained,
    "trained": trained,
}
