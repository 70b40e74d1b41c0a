"""Discrete key-value bottleneck: frozen keys say which values a sample fetches, and only values are learned.

Träuble et al. 2023 (arXiv 2207.11240).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.distributed import over_ranks
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Bool, Count, OneOf
from ibreg.layers.key_value.codebooks import MovingCodebooks
from ibreg.layers.key_value.fitting import KeyStart, fit_keys
from ibreg.layers.key_value.splitters import SPLITTERS
from ibreg.layers.positions import batch_mean
from ibreg.layers.scope import Scope
from ibreg.precision import at_least_float32
from ibreg.registry import register
from ibreg.tracing import inside_transformation, known_false

DECODERS = ("mean", "linear")
SEARCHES = ("exact", "product")


class Fetched(NamedTuple):
    """What a call fetched, as the penalty reads it.

    Attributes:
        rows: queries, `(codebooks, rows, key_features)`, without gradient.
        indices: of the nearest pairs, `(codebooks, rows, found)`.
        chosen: as indices, True where the pair's value is in the code.
        distances: squared, to the nearest key, `(batch, *positions)`, mean over codebooks; with gradient to the input
            where that is wanted.
    """

    rows: Tensor
    indices: Tensor
    chosen: Tensor
    distances: Tensor


@register("key_value")
class KeyValueBottleneck(Bottleneck):
    r"""Fetches the values of the nearest key in each of many codebooks; the code is their mean.

    .. math:: z = \frac{1}{C} \sum_c v_{c, j_c(x)}, \quad j_c(x) = \operatorname{arg\,min}_j |P_c x - k_{cj}|^2

    Keys are first fitted to data without labels (`initialize`), then frozen (`freeze_keys`); after that only values are
    learned, and only those that a batch fetched, so that what other inputs fetch is not forgotten. Random keys work
    before that, and do not move. Between `initialize` and `freeze_keys` the keys follow the training batches.

    The penalty is 0 where what stands before the layer is frozen. With `straight_through` it is the commitment to the
    keys, so that features stay near them:

    .. math:: \text{penalty} = \frac{1}{C} \sum_c |P_c x - k_{c, j_c(x)}|^2

    Args:
        in_features: size of the feature axis.
        out_features: size of the code; None: in_features. For a decision without further layers, the number of classes.
        beta: weight of the penalty.
        codebooks: how many, at least 1; arXiv 2207.11240 takes 256.
        pairs: keys, each with its value, in a codebook; arXiv 2207.11240 takes 4,096.
        key_features: size of a key; None: 12, with splitter="chunk" what the division gives.
        splitter: how each codebook gets its query: "random_projection" (fixed, columns of unit length), "chunk" (equal
            parts of the features) or "learned" (a projection with gradient; it needs `straight_through`).
        decoder: "mean": the mean of the values is the code, they start at 0; "linear": a linear layer follows it, and
            the values start at random.
        value_features: size of a value, with decoder="linear"; None: out_features.
        top_k: how many of the nearest pairs of a codebook are fetched.
        search: "exact"; "product": each half of a key is one of sqrt(pairs) sub-keys, the keys are all their pairs. For
            pairs = 65,536 and more: as exact, at a fraction of the time; needs a square number of pairs and an even
            key_features.
        straight_through: lets a gradient through to what stands before, as if the weights of the fetched pairs and
            the next nearest one were the softmax of their negative squared distances over their mean.
        sparse_gradients: the values' gradient is a sparse tensor, for optimizers that take one (SGD, SparseAdam).
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of parameters and keys.
        dtype: of parameters; keys are at least float32.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. The penalty is summed over tokens or positions.

    In evaluation a pair that was never fetched in training is never fetched; if none of a codebook was, all count.
    Training steps are counted where the penalty is computed, so inside `Regularized` (or `measure`).

    Logs: `distance` (mean squared distance to the nearest keys, per sample), `used` (share of pairs ever fetched in
    training).

    Many processes: statistics of keys and usage are those of all ranks; each has to call the layer in training.

    Raises:
        ValueError: an option out of range, sizes that do not fit, in training an input that wants a gradient without
            `straight_through`.

    Example:
        >>> layer = KeyValueBottleneck(8, 3, codebooks=4, pairs=16, key_features=2)
        >>> features = torch.randn(64, 8)
        >>> layer.initialize(features, epochs=2).samples
        64
        >>> layer.freeze_keys()
        >>> layer.measure(features).z.shape
        torch.Size([64, 3])
    """

    masked: Tensor
    usage: Tensor
    keys_follow: Tensor
    keys_frozen: Tensor

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        beta: float = 0.25,
        codebooks: int = 128,
        pairs: int = 1024,
        key_features: int | None = None,
        splitter: str = "random_projection",
        decoder: str = "mean",
        value_features: int | None = None,
        top_k: int = 1,
        search: str = "exact",
        straight_through: bool = False,
        sparse_gradients: bool = False,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        OneOf(SPLITTERS).check("splitter", splitter)
        OneOf(DECODERS).check("decoder", decoder)
        OneOf(SEARCHES).check("search", search)
        Count("number of codebooks").check("codebooks", codebooks)
        Count("number of pairs of a codebook").check("pairs", pairs)
        for option, size, what in (
            ("out_features", out_features, "size of the code"),
            ("key_features", key_features, "size of a key"),
            ("value_features", value_features, "size of a value"),
        ):
            if size is not None:
                Count(what).check(option, size)
        Count("number of pairs that are fetched of a codebook").check("top_k", top_k)
        Bool().check("straight_through", straight_through)
        Bool().check("sparse_gradients", sparse_gradients)
        if top_k > pairs:
            raise ValueError(f"top_k is at most the {pairs} pairs of a codebook, got {top_k}")
        if search == "product" and math.isqrt(pairs) ** 2 != pairs:
            root = math.isqrt(pairs)
            raise ValueError(
                f"search='product' needs a square number of pairs, got {pairs}: take {root**2} or {(root + 1) ** 2}"
            )
        if value_features is not None and decoder == "mean":
            raise ValueError("the mean of the values is the code: value_features needs decoder='linear'")
        self.out_features = out_features
        self.codebooks = codebooks
        self.pairs = pairs
        self.key_features = key_features
        self.splitter = splitter
        self.decoder = decoder
        self.value_features = value_features
        self.top_k = top_k
        self.search = search
        self.straight_through = straight_through
        self.sparse_gradients = sparse_gradients
        self.materialize(in_features, device=device, dtype=dtype)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers splitter, keys, values, the linear decoder, and what is known of the pairs."""
        if self.out_features is None:
            self.out_features = self.in_features
        self.split = SPLITTERS[self.splitter](
            self.in_features, self.codebooks, self.key_features, device=device, dtype=dtype
        )
        features, halves = self.split.key_features, 2 if self.search == "product" else 1
        if features % halves:
            raise ValueError(f"search='product' halves the keys: key_features is even, got {features}")
        self.books = MovingCodebooks(self.codebooks, self.pairs, features, halves=halves, device=device, dtype=dtype)
        size = self.value_features or self.out_features
        self.values = nn.Parameter(torch.empty(self.codebooks * self.pairs, size, device=device, dtype=dtype))
        if self.decoder == "linear":
            self.decode = nn.Linear(size, self.out_features, device=device, dtype=dtype)
        shape = (self.codebooks, self.pairs)
        self.register_buffer("usage", torch.zeros(shape, dtype=torch.int64, device=device))
        self.register_buffer("masked", torch.zeros(shape, dtype=torch.bool, device=device))
        self.register_buffer("keys_follow", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("keys_frozen", torch.zeros((), dtype=torch.bool, device=device))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws projection and keys at random, sets the values to their start, and forgets usage and phases."""
        super().reset_parameters()
        self.split.reset_parameters()
        self.books.reset_parameters()
        if self.decoder == "linear":
            self.values.normal_()
            self.decode.reset_parameters()
        else:
            self.values.zero_()
        for buffer in (self.usage, self.masked, self.keys_follow, self.keys_frozen):
            buffer.zero_()

    @property
    def keys(self) -> Tensor:
        """The keys, `(codebooks, pairs, key_features)`; with search="product" all pairs of the sub-keys."""
        return self.books.pairs()

    def initialize(
        self, data: Tensor | Iterable[Any], *, method: str = "ema", epochs: int = 10, model: nn.Module | None = None,
        seed: int = 0,
    ) -> KeyStart:  # fmt: skip
        """Fits the keys to data without labels; then they follow training batches, until `freeze_keys`.

        Args:
            data: features as the layer takes them, or an iterable (a loader) of such batches, alone or first in a
                tuple; it is read `epochs` times. On several ranks each reads its own, of any length.
            method: "ema": moving averages (decay 0.95), where a key that gets less than a tenth of its share of the
                batch is put on a random row of it; "k_means": Lloyd's iterations, whose means and cluster sizes the
                moving averages go on from.
            epochs: how often the data are read.
            model: holds this layer; the data are its inputs, and it runs on them in evaluation mode. None: the data
                are the layer's inputs.
            seed: of the rows that keys are put on; the global generator is left alone.

        Returns:
            how many samples (rows of all positions) were used, how many with NaN or infinite values were skipped, how
            many keys were put elsewhere, and the share of keys that the last epoch used.

        Raises:
            ValueError: fewer usable rows than keys, another method, data that do not fit.
            RuntimeError: the keys are frozen.
        """
        if self.in_features is None:
            raise ValueError("the layer does not know its in_features: pass them, or inject it with example=x first")
        if self.keys_frozen:
            raise RuntimeError("the keys are frozen, and the values belong to them: initialize before freeze_keys()")
        started = fit_keys(self, data, method, epochs, model, seed)
        self.keys_follow.fill_(True)
        return started

    def freeze_keys(self) -> None:
        """Lets the keys stand where they are from now on, in training too; saved and loaded with them."""
        self.keys_frozen.fill_(True)

    def queries_of(self, rows: Tensor) -> Tensor:
        """Returns what is compared with the keys, `(codebooks, rows, key_features)`, of rows `(rows, in_features)`."""
        device = rows.device.type
        rows = at_least_float32(rows)
        if not torch.is_autocast_enabled(device):
            return self.split(rows)
        with torch.autocast(device, enabled=False):  # the nearest key of a rounded query may be another one
            return self.split(rows)

    def usable(self) -> Tensor:
        """Returns which pairs evaluation may fetch, `(codebooks, pairs)`."""
        used = self.usage > 0
        return (used | ~used.any(1, keepdim=True)) & ~self.masked

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Fetched]:
        """Returns the code, and for the penalty what was fetched."""
        x = self.features_last(x)
        rows = self.queries_of(x.flatten(0, -2))
        if self.training and torch.is_grad_enabled() and rows.requires_grad and not self.straight_through:
            name = scope.name_of(self) if scope is not None else type(self).__name__
            raise ValueError(
                f"bottleneck {name} lets no gradient through to what stands before it, which wants one: freeze that "
                "(requires_grad_(False), or splitter='random_projection' where it is the layer's own), or pass "
                "straight_through=True"
            )
        usable = ~self.masked if self.training else self.usable()
        pulled = self.straight_through and torch.is_grad_enabled()
        distances, indices = self.books.find(rows.detach(), min(self.top_k + pulled, self.pairs), usable)
        known = distances < torch.inf
        chosen = known & (torch.arange(known.shape[-1], device=x.device) < self.top_k)
        weights = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
        if pulled:
            distances = self.books.distances_to(rows, indices)
            weights = weights + _pull(distances, known)
        z = self._vote(indices, weights / self.codebooks)
        if self.decoder == "linear":
            z = self.decode(z)
        distance = distances[..., 0].where(known[..., 0], 0).mean(0)
        z, distance = (tensor.unflatten(0, x.shape[:-1]) for tensor in (z, distance))
        return self.features_back(z), Fetched(rows.detach(), indices, chosen, distance)

    def _vote(self, indices: Tensor, weights: Tensor) -> Tensor:
        """Returns the weighted sum of the values of pairs, `(rows, value_features)`."""
        by_row = self._flat(indices).movedim(0, 1).flatten(1)
        values = F.embedding(by_row, self.values, sparse=self.sparse_gradients)
        return (weights.to(values.dtype).movedim(0, 1).flatten(1).unsqueeze(1) @ values).squeeze(1)

    def fetched(self, state: Fetched) -> Tensor:
        """Returns the pairs that a call fetched, row by row, as indices of `usage.flatten()`."""
        return self._flat(state.indices).movedim(0, 1)[state.chosen.movedim(0, 1)]

    def penalty(self, state: Fetched, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the commitment, or 0, and the logs; in training it counts usage, and keys that follow move."""
        positions = state.distances.shape
        mask = scope.mask if scope.mask is not None and len(positions) > 1 else None
        distance = batch_mean(state.distances, mask)
        if self.training and not inside_transformation(state.rows):
            self._count(state, mask)
        logs = {"distance": distance, "used": (self.usage > 0).float().mean()}
        return distance if self.straight_through else torch.zeros_like(distance), logs

    @torch.no_grad()
    def _count(self, state: Fetched, mask: Tensor | None) -> None:
        counted = state.chosen if mask is None else state.chosen & mask.bool().flatten().unsqueeze(1)
        hits = torch.zeros_like(self.usage).flatten()
        hits.index_add_(0, self._flat(state.indices).flatten(), counted.flatten().long())
        self.usage.add_(over_ranks(hits).view_as(self.usage))
        moving = self.keys_follow & ~self.keys_frozen
        if not known_false(moving):
            self.books.follow(state.rows, state.indices[..., 0], counted[..., 0], moving)

    def _flat(self, indices: Tensor) -> Tensor:
        first = torch.arange(0, self.codebooks * self.pairs, self.pairs, device=indices.device)
        return indices + first.reshape(-1, *[1] * (indices.dim() - 1))


def _pull(distances: Tensor, known: Tensor) -> Tensor:
    """Returns zeros with the gradient of the softmax of negative distances, in units of their mean."""
    distances = distances.where(known, 0)
    scale = distances.detach().sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
    soft = (-distances / scale.where(scale > 0, 1)).masked_fill(~known, -1e30).softmax(-1)
    return soft - soft.detach()
