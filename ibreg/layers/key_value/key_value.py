"""Discrete key-value bottleneck: frozen keys select which values a sample fetches, and only values are learned.

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
from ibreg.layers.constraints import Bool, Count, OneOf, Optional
from ibreg.layers.key_value.codebooks import MovingCodebooks
from ibreg.layers.key_value.fitting import KeyInitialization, fit_keys
from ibreg.layers.key_value.splitters import SPLITTERS
from ibreg.layers.positions import batch_mean
from ibreg.layers.scope import Scope
from ibreg.precision import at_least_float32, full_precision
from ibreg.registry import register
from ibreg.tracing import inside_transformation, known_false

DECODERS = ("mean", "linear")
SEARCHES = ("exact", "product")


class Fetched(NamedTuple):
    """State that the penalty reads: the pairs that a call fetched.

    Attributes:
        queries: `(codebooks, rows, key_features)`, without gradient.
        indices: of the nearest pairs, `(codebooks, rows, count)`, nearest first.
        chosen: as indices, True where the value of the pair is in the code.
        distances: squared distances to the nearest key, mean over codebooks, `(batch, *positions)`; with a gradient to
            the input with `straight_through`.
    """

    queries: Tensor
    indices: Tensor
    chosen: Tensor
    distances: Tensor


@register("key_value")
class KeyValueBottleneck(Bottleneck):
    r"""Replaces features by the mean of values, each fetched by the nearest key of a codebook.

    .. math:: z = \frac{1}{C} \sum_c v_{c, j_c(x)}, \quad j_c(x) = \operatorname{arg\,min}_j |P_c x - k_{cj}|^2

    Keys are first fitted to unlabeled data (`initialize`), then frozen (`freeze_keys`). After that only values are
    learned, and only those that a batch fetched, so that what the layer learned for other inputs is not forgotten.
    Without `initialize` the keys are random and fixed. Between `initialize` and `freeze_keys` they follow the training
    batches by moving averages.

    The penalty is 0 where the part of the model before the layer is frozen. With `straight_through` it is the
    commitment loss, which keeps features near the keys:

    .. math:: \text{penalty} = \frac{1}{C} \sum_c |P_c x - k_{c, j_c(x)}|^2

    Args:
        in_features: size of the feature axis.
        out_features: size of the code; None: in_features. Where the code is the logits, the number of classes.
        beta: weight of the penalty.
        codebooks: number of codebooks C, at least 1; arXiv 2207.11240 takes 256.
        pairs: number of key-value pairs in each codebook, at least 1; arXiv 2207.11240 takes 4,096.
        key_features: size of a key; None: 12, with splitter="chunk" in_features / codebooks.
        splitter: how each codebook gets its query: "random_projection" (fixed, columns of unit norm), "chunk" (equal
            chunks of the features) or "learned" (a trained projection; it needs `straight_through`).
        decoder: "mean": the code is the mean of the values, which start at 0; "linear": a linear layer follows the
            mean, and the values start at random.
        value_features: size of a value, with decoder="linear"; None: out_features.
        top_k: number of nearest pairs that are fetched from each codebook, at most `pairs`.
        search: "exact"; "product": each half of a key is one of sqrt(pairs) sub-keys, and the keys are all pairs of
            these. For 65,536 pairs and more: as exact, at a fraction of the time; it needs a square number of pairs and
            an even key_features.
        straight_through: passes a gradient to the layer's input, as if the weights of the fetched pairs and the next
            nearest one were the softmax of their negative squared distances over the mean of these.
        sparse_gradients: the gradient of the values is a sparse tensor, for optimizers that take one (SGD, SparseAdam).
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of parameters and keys.
        dtype: of parameters; keys are at least float32.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. The penalty is summed over tokens or positions.

    In evaluation, pairs that were never fetched in training are not fetched, unless no pair of their codebook was.
    Usage is counted where the penalty is computed, so inside `Regularized` (or `measure`).

    Logs: `distance` (mean squared distance to the nearest keys, per sample), `used` (fraction of the pairs that were
    ever fetched in training).

    Many processes: statistics of keys and usage are global; each process has to call the layer in training.

    Raises:
        ValueError: If an option is out of range, sizes do not fit, or in training an input requires a gradient without
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

    constraints = {
        "out_features": Optional(Count("size of the code")),
        "codebooks": Count("number of codebooks"),
        "pairs": Count("number of key-value pairs in each codebook"),
        "key_features": Optional(Count("size of a key")),
        "splitter": OneOf(SPLITTERS),
        "decoder": OneOf(DECODERS),
        "value_features": Optional(Count("size of a value")),
        "top_k": Count("number of pairs that are fetched from each codebook"),
        "search": OneOf(SEARCHES),
        "straight_through": Bool(),
        "sparse_gradients": Bool(),
    }

    in_features: int
    out_features: int | None
    codebooks: int
    pairs: int
    key_features: int | None
    splitter: str
    decoder: str
    value_features: int | None
    top_k: int
    search: str
    straight_through: bool
    sparse_gradients: bool
    usage: Tensor
    masked: Tensor
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
        self.keep(
            out_features=out_features, codebooks=codebooks, pairs=pairs, key_features=key_features, splitter=splitter,
            decoder=decoder, value_features=value_features, top_k=top_k, search=search,
            straight_through=straight_through, sparse_gradients=sparse_gradients,
        )  # fmt: skip
        if top_k > pairs:
            raise ValueError(f"top_k must be at most the {pairs} pairs of a codebook, got {top_k}")
        root = math.isqrt(pairs)
        if search == "product" and root**2 != pairs:
            raise ValueError(
                f"pairs must be a square number with search='product', got {pairs}: use {root**2} or {(root + 1) ** 2}"
            )
        if value_features is not None and decoder == "mean":
            raise ValueError(
                "value_features must be None with decoder='mean', where the mean of the values is the code, got "
                f"{value_features}: use decoder='linear'"
            )
        self.materialize(in_features, device=device, dtype=dtype)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers splitter, keys, values, the linear decoder, and the usage and phase of the keys."""
        if self.out_features is None:
            self.out_features = self.in_features
        self.split = SPLITTERS[self.splitter](
            self.in_features, self.codebooks, self.key_features, device=device, dtype=dtype
        )
        features, halves = self.split.key_features, 2 if self.search == "product" else 1
        if features % halves:
            raise ValueError(f"key_features must be even with search='product', which halves the keys, got {features}")
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
        """Samples projection and keys, sets the values to their initial ones, and resets usage, masks and phases."""
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
    ) -> KeyInitialization:  # fmt: skip
        """Fits the keys to unlabeled data; afterwards they follow training batches until `freeze_keys`.

        Args:
            data: features, as the layer takes them, or an iterable (a DataLoader) of batches, alone or first in a
                tuple; it is read once to sample rows, and once in each epoch. With several processes each reads its
                own, of any length.
            method: "ema": moving averages (decay 0.95), where a key that gets less than a tenth of its share of a batch
                is replaced by a random row of that batch; "k_means": Lloyd's algorithm, whose means and cluster sizes
                are the statistics that the moving averages continue from.
            epochs: number of passes over the data.
            model: holds this layer; the data are then the inputs of the model, which runs on them in evaluation mode.
                None: the data are the inputs of the layer.
            seed: of the sampled rows; the global generator is not used.

        Returns:
            how many rows (of all positions) were used, how many with NaN or infinite values were skipped, how many keys
            were replaced, and the fraction of the keys that the last epoch used.

        Raises:
            ValueError: If there are fewer usable rows than keys, the method is unknown, or the data do not fit.
            RuntimeError: If the keys are frozen.
        """
        if self.in_features is None:
            raise ValueError("the layer has no in_features: pass them, or inject it with example=x first")
        if self.keys_frozen:
            raise RuntimeError(
                "the keys are frozen, and values were learned for them: call initialize before freeze_keys()"
            )
        initialization = fit_keys(self, data, method, epochs, model, seed)
        self.keys_follow.fill_(True)
        return initialization

    def freeze_keys(self) -> None:
        """Freezes the keys, in training too; the state dict records it."""
        self.keys_frozen.fill_(True)

    def queries_of(self, rows: Tensor) -> Tensor:
        """Projects rows `(rows, in_features)` to queries `(codebooks, rows, key_features)`."""
        rows = at_least_float32(rows)
        with full_precision(rows):  # the nearest key of a rounded query may be another one
            return self.split(rows)

    def usable(self) -> Tensor:
        """Returns which pairs can be fetched in evaluation, `(codebooks, pairs)`."""
        used = self.usage > 0
        return (used | ~used.any(1, keepdim=True)) & ~self.masked

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Fetched]:
        """Returns the code, and the fetched pairs for the penalty."""
        x = self.features_last(x)
        queries = self.queries_of(x.flatten(0, -2))
        self._check_gradient(queries, scope)
        usable = ~self.masked if self.training else self.usable()
        differentiable = self.straight_through and torch.is_grad_enabled()
        count = min(self.top_k + differentiable, self.pairs)
        distances, indices = self.books.find(queries.detach(), count, usable)
        valid = distances < torch.inf
        chosen = valid & (torch.arange(count, device=x.device) < self.top_k)
        weights = chosen / chosen.sum(-1, keepdim=True).clamp(min=1)
        if differentiable:
            distances = self.books.distances_to(queries, indices)
            weights = weights + _softmax_gradient(distances, valid)
        z = self._weighted_values(indices, weights / self.codebooks)
        if self.decoder == "linear":
            z = self.decode(z)
        distance = distances[..., 0].where(valid[..., 0], 0).mean(0)
        z, distance = (tensor.unflatten(0, x.shape[:-1]) for tensor in (z, distance))
        return self.features_back(z), Fetched(queries.detach(), indices, chosen, distance)

    def _check_gradient(self, queries: Tensor, scope: Scope | None) -> None:
        if self.training and torch.is_grad_enabled() and queries.requires_grad and not self.straight_through:
            name = scope.name_of(self) if scope is not None else type(self).__name__
            raise ValueError(
                f"bottleneck {name} passes no gradient to its input, which requires one: freeze the part before it "
                "(requires_grad_(False); a learned splitter: splitter='random_projection'), or pass "
                "straight_through=True"
            )

    def _weighted_values(self, indices: Tensor, weights: Tensor) -> Tensor:
        """Returns the weighted sum of the values of pairs `(codebooks, rows, count)`: `(rows, value_features)`."""
        by_row = self._flat(indices).movedim(0, 1).flatten(1)
        values = F.embedding(by_row, self.values, sparse=self.sparse_gradients)
        return (weights.to(values.dtype).movedim(0, 1).flatten(1).unsqueeze(1) @ values).squeeze(1)

    def fetched(self, state: Fetched) -> Tensor:
        """Returns the pairs that a call fetched, row by row, as indices of `usage.flatten()`."""
        return self._flat(state.indices).movedim(0, 1)[state.chosen.movedim(0, 1)]

    def penalty(self, state: Fetched, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the commitment loss or 0, and the logs; in training, counts usage and moves keys that follow."""
        mask = scope.mask_for(state.distances.unsqueeze(-1))
        distance = batch_mean(state.distances, mask)
        if self.training and not inside_transformation(state.queries):
            self._update_statistics(state, mask)
        logs = {"distance": distance, "used": (self.usage > 0).float().mean()}
        return distance if self.straight_through else torch.zeros_like(distance), logs

    @torch.no_grad()
    def _update_statistics(self, state: Fetched, mask: Tensor | None) -> None:
        counted = state.chosen if mask is None else state.chosen & mask.bool().flatten().unsqueeze(1)
        hits = torch.zeros_like(self.usage).flatten()
        hits.index_add_(0, self._flat(state.indices).flatten(), counted.flatten().long())
        self.usage.add_(over_ranks(hits).view_as(self.usage))
        moving = self.keys_follow & ~self.keys_frozen
        if not known_false(moving):
            self.books.follow(state.queries, state.indices[..., 0], counted[..., 0], moving)

    def _flat(self, indices: Tensor) -> Tensor:
        """Returns indices of pairs within codebooks `(codebooks, ...)` as indices over all codebooks."""
        first = torch.arange(0, self.codebooks * self.pairs, self.pairs, device=indices.device)
        return indices + first.reshape(-1, *[1] * (indices.dim() - 1))


def _softmax_gradient(distances: Tensor, valid: Tensor) -> Tensor:
    """Returns zeros with the gradient of the softmax of negative distances, in units of their mean."""
    distances = distances.where(valid, 0)
    mean = distances.detach().sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
    soft = (-distances / mean.where(mean > 0, 1)).masked_fill(~valid, -1e30).softmax(-1)
    return soft - soft.detach()
