"""Fits keys to data without labels: moving averages with dead keys put elsewhere, or k-means.

Data are read batch by batch, several times, and never kept. Ranks go through their batches in step; one that has none
left goes on with empty ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from ibreg.distributed import gather_rows, over_ranks, several_ranks
from ibreg.functional.lookup.nearest import picked
from ibreg.layers.constraints import Count, OneOf
from ibreg.layers.key_value.codebooks import MovingCodebooks
from ibreg.modes import captured, evaluating

SAMPLES_AT_ONCE = 256  # where the data are one tensor
DEAD = 0.1  # a key with less than this part of its share of a batch is put elsewhere

Queries = Callable[[Tensor], Tensor]  # from rows `(rows, in_features)` to `(codebooks, rows, key_features)`


class KeyStart(NamedTuple):
    """What `KeyValueBottleneck.initialize` did.

    Attributes:
        samples: rows (one for each position of a sample) that each reading used, over all ranks.
        skipped: rows left out for NaN or infinite values.
        replaced: how many keys were put on another row, after the start.
        used: share of the keys that were nearest to a row in the last reading.
    """

    samples: int
    skipped: int
    replaced: int
    used: float


@torch.no_grad()
def fit_keys(
    layer: nn.Module, data: Tensor | Iterable[Any], method: str, epochs: int, model: nn.Module | None, seed: int
) -> KeyStart:
    """Fits the keys of a `KeyValueBottleneck`, see its `initialize`; a reading that fails leaves them as they were."""
    OneOf(METHODS).check("method", method)
    Count("number of readings of the data").check("epochs", epochs)
    readings = Readings(data, layer, model)
    sample = draw_sample(readings, layer.books.size, seed)
    if several_ranks():
        for tensor in (*layer.parameters(), *layer.buffers()):
            distributed.broadcast(tensor.detach(), 0)  # ranks may have drawn their projections with other seeds
    books = copy.deepcopy(layer.books)
    generator = torch.Generator().manual_seed(seed)
    replaced, hit = METHODS[method](books, readings, layer.queries_of, sample, epochs, generator)
    layer.books.load_state_dict(books.state_dict())
    return KeyStart(sample.samples, sample.skipped, replaced, float((hit > 0).float().mean()))


class Readings:
    """Data that can be read several times, as batches of finite rows.

    Args:
        data: a tensor of inputs, or an iterable of such, alone or first in a tuple.
        layer: a bottleneck; its inputs are wanted.
        model: makes them of the data; None: they are the data.
    """

    def __init__(self, data: Tensor | Iterable[Any], layer: nn.Module, model: nn.Module | None):
        self.data = data.split(SAMPLES_AT_ONCE) if isinstance(data, Tensor) else data
        self.layer = layer
        self.model = model
        self.skipped = 0
        self.batches: int | None = None  # of this rank, once they were read

    def __iter__(self) -> Iterator[Tensor]:
        """Reads the data once: `(rows, in_features)`, on all ranks as many batches.

        Raises:
            ValueError: data that have fewer batches than when they were read before, such as a generator.
        """
        self.skipped, count = 0, 0
        batches = iter(self.data)
        device = self.layer.beta.device
        while True:
            batch = next(batches, None)
            if not over_ranks(torch.tensor(int(batch is not None), device=device)):
                break
            if batch is None:
                yield torch.zeros(0, self.layer.in_features, device=device)
                continue
            count += 1
            x = (batch[0] if isinstance(batch, (tuple, list)) else batch).to(device)
            rows = torch.cat([self._rows(each) for each in ([x] if self.model is None else self._inputs(x))])
            finite = rows.isfinite().all(1)
            self.skipped += int((~finite).sum())
            yield rows[finite]
        fewer = self.batches is not None and count < self.batches
        if over_ranks(torch.tensor(int(fewer), device=device)):
            raise ValueError(
                f"the data had {self.batches} batches at first and {count} when they were read again: they are read "
                "several times, so pass a tensor, a list or a DataLoader, not a generator"
            )
        self.batches = count

    def _rows(self, x: Tensor) -> Tensor:
        self.layer.check_shape(x, f"{type(self.layer).__name__}.initialize")
        return self.layer.features_last(x).flatten(0, -2)

    def _inputs(self, x: Tensor) -> list[Tensor]:
        """Returns the inputs of the layer's calls, when the model runs on x in evaluation mode."""
        # After `captured`: the pass goes on where a layer would refuse the input.
        with captured(self.layer) as inputs, evaluating(self.model):
            finite = self.layer.register_forward_pre_hook(lambda layer, args: args[0].nan_to_num(0, 0, 0))
            try:
                self.model(x)
            finally:
                finite.remove()
        if not inputs:
            raise ValueError("the model did not call this layer: pass the model that holds it")
        return inputs


class Sample(NamedTuple):
    """What a first reading found: as many random rows as there are keys, and how many rows and batches there are."""

    rows: Tensor
    samples: int
    skipped: int
    batches: int


def draw_sample(data: Readings, size: int, seed: int) -> Sample:
    """Reads the data once and draws rows, the same ones on every rank.

    Raises:
        ValueError: fewer rows than keys.
    """
    own = torch.Generator().manual_seed(seed + (distributed.get_rank() if several_ranks() else 0))
    kept, priorities, samples, batches = torch.empty(0), torch.empty(0), 0, 0
    for rows in data:
        samples, batches = samples + len(rows), batches + 1
        # The rows of highest priority are a random sample of all.
        priorities = torch.cat([priorities, torch.rand(len(rows), generator=own)])
        priorities, best = priorities.topk(min(size, len(priorities)))
        kept = (torch.cat([kept, rows]) if len(kept) else rows)[best.to(rows.device)]
    device = data.layer.beta.device
    samples, skipped = over_ranks(torch.tensor([samples, data.skipped], device=device)).tolist()
    if samples < size:
        raise ValueError(
            f"{samples} usable rows are too few for {size} keys in each codebook: pass more data, or take fewer pairs"
        )
    if several_ranks():
        kept = gather_rows(kept)[0]
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        kept = kept[order[:size].to(device)]
    return Sample(kept, samples, skipped, batches)


def moving_average(
    books: MovingCodebooks, data: Readings, queries: Queries, sample: Sample, epochs: int, generator: torch.Generator
) -> tuple[int, Tensor]:
    """Moves keys by the batches of all readings, dead ones on random rows; returns how many were, and which are hit."""
    replaced, hit = 0, torch.zeros_like(books.counts)
    share = sample.samples / sample.batches / books.size
    books.assign(books.halved(queries(sample.rows)) * share, torch.full_like(books.counts, share))
    for _ in range(epochs):
        hit.zero_()
        for rows in data:
            found = queries(rows)
            batch_counts = books.follow(found, books.find(found)[1].squeeze(-1))
            hit += batch_counts
            share = batch_counts[0].sum() / books.size
            dead = books.counts < DEAD * share
            if dead.any():
                candidates = books.halved(queries(_shared(rows, books.size)))
                replaced += put_elsewhere(books, dead, candidates, share, generator)
    return replaced, hit


def k_means(
    books: MovingCodebooks, data: Readings, queries: Queries, sample: Sample, epochs: int, generator: torch.Generator
) -> tuple[int, Tensor]:
    """Puts keys on the means of the rows nearest to them, over and over; returns as `moving_average` does."""
    replaced, counts = 0, torch.ones_like(books.counts)
    start = books.halved(queries(sample.rows))
    books.assign(start, counts)
    for _ in range(epochs):
        sums, counts = torch.zeros_like(books.sums), torch.zeros_like(books.counts)
        for rows in data:
            found = queries(rows)
            batch_sums, batch_counts = books.statistics(found, books.find(found)[1].squeeze(-1))
            sums += batch_sums
            counts += batch_counts
        books.assign(sums, counts.clamp(min=1))
        replaced += put_elsewhere(books, counts == 0, start, 1.0, generator)
    return replaced, counts


METHODS = {"ema": moving_average, "k_means": k_means}


def put_elsewhere(
    books: MovingCodebooks, which: Tensor, rows: Tensor, count: Tensor | float, generator: torch.Generator
) -> int:
    """Puts some (sub-)keys `(books, size)` on random rows `(books, n, features)` with a count; returns how many."""
    drawn = torch.randint(rows.shape[1], which.shape, generator=generator).to(rows.device)
    sums = torch.where(which.unsqueeze(-1), picked(rows, drawn).to(books.sums.dtype) * count, books.sums)
    books.assign(sums, torch.where(which, count, books.counts))
    return int(which.sum())


def _shared(rows: Tensor, size: int) -> Tensor:
    """Returns rows of all ranks to put keys on, at most one for each key from a rank."""
    return gather_rows(rows[:size])[0] if several_ranks() else rows
