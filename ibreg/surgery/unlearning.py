"""Unlearning: masks the pairs of key-value bottlenecks that given data activate, until the mask is undone.

Shah et al. 2023 (arXiv 2311.15268).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from ibreg.distributed import over_ranks, several_ranks
from ibreg.layers.constraints import Count, Number, OneOf, Optional
from ibreg.layers.key_value.key_value import KeyValueBottleneck
from ibreg.layers.scope import Scope, opened
from ibreg.modes import evaluating
from ibreg.regularized import bottlenecks, unwrap


class Unlearned(NamedTuple):
    """Report of `unlearn`.

    Attributes:
        activated: number of pairs that the data activated, over all layers.
        forgotten: accuracy on the data to forget, before and after; None without labels.
        retained: accuracy on the data to retain, before and after; None without such data or without labels.
        masked: the pairs that were masked, `(codebooks, pairs)`, by layer.
    """

    activated: int
    forgotten: tuple[float, float] | None
    retained: tuple[float, float] | None
    masked: dict[KeyValueBottleneck, Tensor]

    @property
    def pairs(self) -> int:
        """Number of pairs that were masked, over all layers."""
        return sum(int(masked.sum()) for masked in self.masked.values())

    def undo(self) -> None:
        """Removes these masks and no others, which restores the outputs of the model bit by bit."""
        for layer, masked in self.masked.items():
            layer.masked.logical_and_(~masked.to(layer.masked.device))


@torch.no_grad()
def unlearn(
    model: nn.Module,
    loader: Iterable,
    retain: Iterable | None = None,
    *,
    by: str = "activations",
    pairs: int | None = None,
    fraction: float | None = None,
) -> Unlearned:
    """Makes a model forget given data, by masking the key-value pairs that they activate.

    Values and keys are not changed. A masked pair is never fetched, neither in training nor in evaluation; the nearest
    one that is not masked is. With several processes each reads its own part of the data and all of them have to call;
    counts and accuracies are global.

    Args:
        model: with one or more `KeyValueBottleneck`; it runs in evaluation mode.
        loader: batches to forget, `x`, `(x,)` or `(x, class indices)`, in a list or a DataLoader: they are read three
            times.
        retain: batches whose accuracy is reported before and after; nothing else depends on them.
        by: "activations": the pairs that the data activate most often are masked first; "examples": those that the
            first examples activate are.
        pairs: number of pairs to mask in each layer, at least 1; None, with `fraction=None`: all that the data
            activate.
        fraction: fraction of the activated pairs to mask in each layer, in (0, 1], in place of `pairs`; at least one
            pair is masked.

    Returns:
        a report, whose `undo()` removes the masks.

    Raises:
        ValueError: If the model has no key-value bottleneck, `by` is unknown, `pairs` or `fraction` is out of range or
            both are given, there are no data, or a tensor or a generator is given in place of batches.

    Example:
        >>> from ibreg import KeyValueBottleneck
        >>> model = nn.Sequential(KeyValueBottleneck(4, 2, codebooks=3, pairs=8))
        >>> report = unlearn(model, [torch.randn(16, 4)], pairs=5)
        >>> report.pairs, report.undo(), int(model[0].masked.sum())
        (5, None, 0)
    """
    check_unlearning(by, pairs, fraction)
    for batches in (loader, retain):
        if isinstance(batches, (Tensor, Iterator)):
            raise ValueError(
                "data must be batches that can be read several times, a list or a DataLoader, got "
                f"{type(batches).__name__}"
            )
    network = unwrap(model)
    layers = [layer for layer in bottlenecks(network).values() if isinstance(layer, KeyValueBottleneck)]
    if not layers:
        raise ValueError("there is no key-value bottleneck in the model, so there are no pairs to mask")
    with evaluating(network):
        forgotten, retained = _accuracy(network, loader), _accuracy(network, retain)
        masked, activated = {}, 0
        for layer, ranked in _ranked_pairs(network, loader, layers, ORDERS[by]).items():
            activated += len(ranked)
            masked[layer] = torch.zeros_like(layer.masked)
            masked[layer].view(-1)[ranked[: _count(len(ranked), pairs, fraction)]] = True
        for layer, chosen in masked.items():
            layer.masked.logical_or_(chosen)
        return Unlearned(
            activated,
            _before_and_after(forgotten, _accuracy(network, loader)),
            _before_and_after(retained, _accuracy(network, retain)),
            masked,
        )


def check_unlearning(by: str, pairs: int | None, fraction: float | None) -> None:
    """Checks the options of `unlearn`.

    Raises:
        ValueError: If `by` is unknown, `pairs` or `fraction` is out of range, or both are given.
    """
    OneOf(ORDERS).check("by", by)
    Optional(Count("number of pairs to mask in each layer")).check("pairs", pairs)
    Optional(Number(above=0, most=1)).check("fraction", fraction)
    if pairs is not None and fraction is not None:
        raise ValueError(f"one of pairs and fraction must be None, got pairs={pairs} and fraction={fraction}")


def _count(activated: int, pairs: int | None, fraction: float | None) -> int:
    """Returns how many of the activated pairs are masked."""
    if fraction is not None:
        return max(1, round(fraction * activated))
    return activated if pairs is None else pairs


def _before_and_after(before: float | None, after: float | None) -> tuple[float, float] | None:
    return None if before is None or after is None else (before, after)


def _most_often(activations: Tensor, total: int) -> Tensor:
    """Returns the activated pairs, the most often activated first, over all processes."""
    counts = over_ranks(activations.bincount(minlength=total))
    order = counts.argsort(descending=True, stable=True)
    return order[: int((counts > 0).sum())]


def _first_activated(activations: Tensor, total: int) -> Tensor:
    """Returns the activated pairs in the order of the first example that activates them, over all processes."""
    never = torch.iinfo(torch.int64).max
    order = torch.arange(len(activations), device=activations.device)
    first = torch.full((total,), never, device=activations.device).scatter_reduce(0, activations, order, "amin")
    if several_ranks():
        distributed.all_reduce(first, op=distributed.ReduceOp.MIN)
    return first.argsort(stable=True)[: int((first < never).sum())]


ORDERS = {"activations": _most_often, "examples": _first_activated}


def _ranked_pairs(
    network: nn.Module,
    loader: Iterable,
    layers: list[KeyValueBottleneck],
    order: Callable[[Tensor, int], Tensor],
) -> dict[KeyValueBottleneck, Tensor]:
    """Returns the flat indices of the pairs that data activate, by layer, in the order in which they are masked."""
    activations = {layer: [torch.empty(0, dtype=torch.int64, device=layer.beta.device)] for layer in layers}
    for x, _ in _batches(network, loader):
        with opened(Scope(inputs=x)) as scope:
            network(x)
        for layer, state, _ in scope.records:
            if isinstance(layer, KeyValueBottleneck) and layer in activations:
                activations[layer].append(layer.fetched(state).flatten())
    ranked = {layer: order(torch.cat(indices), layer.masked.numel()) for layer, indices in activations.items()}
    if not any(map(len, ranked.values())):
        raise ValueError("there are no data to forget: the loader gave no batch, or no key-value bottleneck was called")
    return {layer: pairs for layer, pairs in ranked.items() if len(pairs)}


def _accuracy(network: nn.Module, loader: Iterable | None) -> float | None:
    """Returns the accuracy over all processes; None without data or labels."""
    if loader is None:
        return None
    correct, samples = 0, 0
    for x, y in _batches(network, loader):
        if y is not None:
            correct += int((network(x).argmax(1) == y).sum())
            samples += len(y)
    device = next(iter(bottlenecks(network).values())).beta.device
    correct, samples = over_ranks(torch.tensor([correct, samples], device=device)).tolist()
    return correct / samples if samples else None


def _batches(network: nn.Module, loader: Iterable) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields inputs and labels, None without labels, on the network's device."""
    device = next(layer.beta.device for layer in bottlenecks(network).values())
    for batch in loader:
        parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        yield parts[0].to(device), parts[1].to(device) if len(parts) > 1 and parts[1] is not None else None
