"""Unlearning: the pairs of a key-value bottleneck that a class activates are masked, until that is undone.

Shah et al. 2023 (arXiv 2311.15268).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from ibreg.distributed import over_ranks, several_ranks
from ibreg.layers.constraints import OneOf
from ibreg.layers.key_value.key_value import KeyValueBottleneck
from ibreg.layers.scope import Scope, opened
from ibreg.modes import evaluating
from ibreg.regularized import bottlenecks, unwrap


class Unlearned(NamedTuple):
    """What `unlearn` did.

    Attributes:
        activated: pairs that the data activated.
        forgotten: accuracy on the data to forget, before and after; None without labels.
        retained: accuracy on the data to retain, before and after; None without such data or without labels.
        masked: per layer the pairs that were masked, `(codebooks, pairs)`.
    """

    activated: int
    forgotten: tuple[float, float] | None
    retained: tuple[float, float] | None
    masked: dict[KeyValueBottleneck, Tensor]

    @property
    def pairs(self) -> int:
        """How many pairs were masked."""
        return sum(int(masked.sum()) for masked in self.masked.values())

    def undo(self) -> None:
        """Takes the masks away again, these and no others; the model answers as before, bit by bit."""
        for layer, masked in self.masked.items():
            layer.masked.logical_and_(~masked.to(layer.masked.device))


@torch.no_grad()
def unlearn(
    model: nn.Module,
    loader: Iterable,
    retain: Iterable | None = None,
    *,
    by: str = "activations",
    pairs: int | float | None = None,
) -> Unlearned:
    """Makes a model forget what it knows of some data, by masking the key-value pairs that they activate.

    Values and keys stay as they are. A masked pair is never fetched, in training neither; the next nearest is. On
    several ranks each reads its share of the data, and all of them have to call: pairs and accuracies are those of all.

    Args:
        model: with one or more `KeyValueBottleneck`; it runs in evaluation mode.
        loader: batches to forget, `x`, `(x,)` or `(x, class indices)`, a list or a DataLoader: it is read three times.
        retain: batches of what is to stay, read for the report alone.
        by: "activations": the pairs that the data activate most often; "examples": the pairs of the first examples.
        pairs: how many pairs of each layer are masked: a number, a share (a float up to 1) of those that the data
            activate, or None: all of these.

    Returns:
        a report, whose `undo()` takes the masks away.

    Raises:
        ValueError: no key-value bottleneck in the model, an unknown `by`, `pairs` below 1 or no share, no data, a
            tensor or a generator in place of batches.

    Example:
        >>> from ibreg import KeyValueBottleneck
        >>> model = nn.Sequential(KeyValueBottleneck(4, 2, codebooks=3, pairs=8))
        >>> report = unlearn(model, [torch.randn(16, 4)], pairs=5)
        >>> report.pairs, report.undo(), int(model[0].masked.sum())
        (5, None, 0)
    """
    check_unlearning(by, pairs)
    for batches in (loader, retain):
        if isinstance(batches, (Tensor, Iterator)):
            raise ValueError(f"data are batches that can be read again, a list or a DataLoader, got {type(batches)}")
    network = unwrap(model)
    layers = [layer for layer in bottlenecks(network).values() if isinstance(layer, KeyValueBottleneck)]
    if not layers:
        raise ValueError("there is no key-value bottleneck in the model, so there are no pairs to mask")
    with evaluating(network):
        before = _accuracy(network, loader), _accuracy(network, retain)
        masked, activated = {}, 0
        for layer, order in _ordered(network, loader, layers, ORDERS[by]).items():
            activated += len(order)
            share = isinstance(pairs, float)
            count = len(order) if pairs is None else max(1, round(pairs * len(order))) if share else pairs
            masked[layer] = torch.zeros_like(layer.masked)
            masked[layer].view(-1)[order[:count]] = True
        for layer, chosen in masked.items():
            layer.masked.logical_or_(chosen)
        after = _accuracy(network, loader), _accuracy(network, retain)
    forgotten, retained = (None if None in both else both for both in zip(before, after, strict=True))
    return Unlearned(activated, forgotten, retained, masked)


def check_unlearning(by: str, pairs: int | float | None) -> None:
    """Checks the options of `unlearn`.

    Raises:
        ValueError: an unknown `by`, `pairs` below 1 or no share.
    """
    OneOf(ORDERS).check("by", by)
    fits = 0 < pairs <= 1 if isinstance(pairs, float) else pairs is None or (type(pairs) is int and pairs >= 1)
    if not fits:
        raise ValueError(f"pairs is a number of at least 1, a share in (0, 1] as a float, or None, got {pairs!r}")


def _most_often(ids: Tensor, total: int) -> Tensor:
    """Returns pairs by how often they are activated, the most active first."""
    counts = over_ranks(ids.bincount(minlength=total))
    order = counts.argsort(descending=True, stable=True)
    return order[: int((counts > 0).sum())]


def _first_met(ids: Tensor, total: int) -> Tensor:
    """Returns pairs by the example that activates them first, on any rank."""
    never = torch.iinfo(torch.int64).max
    place = torch.full((total,), never, device=ids.device)
    place = place.scatter_reduce(0, ids, torch.arange(len(ids), device=ids.device), "amin")
    if several_ranks():
        distributed.all_reduce(place, op=distributed.ReduceOp.MIN)
    return place.argsort(stable=True)[: int((place < never).sum())]


ORDERS = {"activations": _most_often, "examples": _first_met}


def _ordered(network: nn.Module, loader: Iterable, layers: list[KeyValueBottleneck], order) -> dict:
    """Returns per layer the flat indices of the pairs that data activate, in the order in which they are masked."""
    ids = {layer: [torch.empty(0, dtype=torch.int64, device=layer.beta.device)] for layer in layers}
    for x, _ in _batches(network, loader):
        with opened(Scope(inputs=x)) as scope:
            network(x)
        for record in scope.records:
            if record.layer in ids:
                ids[record.layer].append(record.layer.fetched(record.state).flatten())
    found = {layer: order(torch.cat(those), layer.masked.numel()) for layer, those in ids.items()}
    if not any(map(len, found.values())):
        raise ValueError("there are no data to forget: the loader gave no batch, or no key-value bottleneck was called")
    return {layer: pairs for layer, pairs in found.items() if len(pairs)}


def _accuracy(network: nn.Module, loader: Iterable | None) -> float | None:
    if loader is None:
        return None
    right, samples = 0, 0
    for x, y in _batches(network, loader):
        if y is not None:
            right += int((network(x).argmax(1) == y).sum())
            samples += len(y)
    device = next(iter(bottlenecks(network).values())).beta.device
    right, samples = over_ranks(torch.tensor([right, samples], device=device)).tolist()
    return right / samples if samples else None


def _batches(network: nn.Module, loader: Iterable) -> Iterator[tuple[Tensor, Tensor | None]]:
    device = next(layer.beta.device for layer in bottlenecks(network).values())
    for batch in loader:
        x, y = (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)
        yield x.to(device), None if y is None else y.to(device)
