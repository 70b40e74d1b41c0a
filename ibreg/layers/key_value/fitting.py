"""Fitting of keys to unlabeled data: moving averages with replacement of dead keys, or k-means.

Data are read batch by batch, in several passes, and never kept. All processes run the same number of batches in each
pass; one whose data have ended continues with empty batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from ibreg.distributed import gather_rows, over_ranks, several_ranks
from ibreg.functional.lookup.nearest import pick_rows
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Count, OneOf
from ibreg.layers.key_value.codebooks import MovingCodebooks
from ibreg.modes import captured, evaluating

SAMPLES_AT_ONCE = 256  # of data that are one tensor
DEAD = 0.1  # a key with less than this fraction of its share of a batch is dead, and replaced

Queries = Callable[[Tensor], Tensor]  # from rows `(rows, in_features)` to `(codebooks, rows, key_features)`


class KeyInitialization(NamedTuple):
    """Report of `KeyValueBottleneck.initialize`.

    Attributes:
        samples: number of rows (one for each position of a sample) that each pass used, over all processes.
        skipped: number of rows that were skipped for NaN or infinite values.
        replaced: number of keys that were replaced by a row, after the start.
        used: fraction of the keys that were nearest to a row in the last pass.
    """

    samples: int
    skipped: int
    replaced: int
    used: float


@torch.no_grad()
def fit_keys(
    layer: Bottleneck,
    data: Tensor | Iterable[Any],
    method: str,
    epochs: int,
    model: nn.Module | None,
    seed: int,
) -> KeyInitialization:
    """Fits the keys of a key-value layer, see its `initialize`; if a pass fails, the keys are unchanged."""
    OneOf(METHODS).check("method", method)
    Count("number of passes over the data").check("epochs", epochs)
    batches = RowBatches(data, layer, model)
    start = sample_rows(batches, layer.books.size, seed)
    if several_ranks():
        for tensor in (*layer.parameters(), *layer.buffers()):
            distributed.broadcast(tensor.detach(), 0)  # ranks may have drawn their projections with other seeds
    books = copy.deepcopy(layer.books)
    generator = torch.Generator().manual_seed(seed)
    replaced, hits = METHODS[method](books, batches, layer.queries_of, start, epochs, generator)
    layer.books.load_state_dict(books.state_dict())
    return KeyInitialization(start.samples, start.skipped, replaced, float((hits > 0).float().mean()))


class RowBatches:
    """Iterable over batches of the finite input rows of a layer, for several passes.

    Args:
        data: a tensor of inputs, or an iterable of batches of inputs, alone or first in a tuple.
        layer: its inputs are the rows.
        model: maps the data to the inputs of the layer; None: the data are these inputs.

    Attributes:
        skipped: number of rows that were not finite in the latest pass.
    """

    def __init__(self, data: Tensor | Iterable[Any], layer: Bottleneck, model: nn.Module | None):
        self.data = data.split(SAMPLES_AT_ONCE) if isinstance(data, Tensor) else data
        self.layer = layer
        self.model = model
        self.skipped = 0
        self.count: int | None = None  # of the batches of this process, known after the first pass

    def __iter__(self) -> Iterator[Tensor]:
        """Yields rows `(rows, in_features)`, equally many batches on all processes.

        Raises:
            ValueError: If there are fewer batches than in an earlier pass, as from a generator.
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
            rows = self._rows((batch[0] if isinstance(batch, (tuple, list)) else batch).to(device))
            finite = rows.isfinite().all(1)
            self.skipped += int((~finite).sum())
            yield rows[finite]
        fewer = self.count is not None and count < self.count
        if over_ranks(torch.tensor(int(fewer), device=device)):
            raise ValueError(
                f"the data had {self.count} batches in the first pass and {count} in a later one: they are read "
                "several times, so pass a tensor, a list or a DataLoader, not a generator"
            )
        self.count = count

    def _rows(self, x: Tensor) -> Tensor:
        """Returns the layer's input rows for a batch of the data."""
        inputs = [x] if self.model is None else self._inputs(self.model, x)
        for features in inputs:
            self.layer.check_shape(features, f"{type(self.layer).__name__}.initialize")
        return torch.cat([self.layer.features_last(features).flatten(0, -2) for features in inputs])

    def _inputs(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        """Runs the model on x in evaluation mode and returns the inputs of the layer's calls."""
        with captured(self.layer) as inputs, evaluating(model):
            # Registered after the capturing hook, which records the original input; the layer gets one without NaN.
            finite = self.layer.register_forward_pre_hook(lambda layer, args: args[0].nan_to_num(0, 0, 0))
            try:
                model(x)
            finally:
                finite.remove()
        if not inputs:
            raise ValueError("the model did not call this layer: pass the model that contains it")
        return inputs


class RowSample(NamedTuple):
    """Random rows that initialize the keys, and the size of the data.

    Attributes:
        rows: as many as a codebook has (sub-)keys, `(size, in_features)`.
        samples: number of finite rows in the data, over all processes.
        skipped: number of other rows.
        batches: number of batches in a pass.
    """

    rows: Tensor
    samples: int
    skipped: int
    batches: int


def sample_rows(batches: RowBatches, size: int, seed: int) -> RowSample:
    """Reads the data once and samples rows, the same ones on every process.

    Raises:
        ValueError: If there are fewer rows than keys.
    """
    generator = torch.Generator().manual_seed(seed + (distributed.get_rank() if several_ranks() else 0))
    kept, priorities, samples, count = torch.empty(0), torch.empty(0), 0, 0
    for rows in batches:
        samples, count = samples + len(rows), count + 1
        # The rows of highest priority are a random sample of all.
        priorities = torch.cat([priorities, torch.rand(len(rows), generator=generator)])
        priorities, best = priorities.topk(min(size, len(priorities)))
        kept = (torch.cat([kept, rows]) if len(kept) else rows)[best.to(rows.device)]
    device = batches.layer.beta.device
    samples, skipped = over_ranks(torch.tensor([samples, batches.skipped], device=device)).tolist()
    if samples < size:
        raise ValueError(
            f"{samples} usable rows are too few for {size} keys in each codebook: pass more data, or use fewer pairs"
        )
    if several_ranks():
        kept = gather_rows(kept)[0]
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        kept = kept[order[:size].to(device)]
    return RowSample(kept, samples, skipped, count)


def moving_average(
    books: MovingCodebooks,
    batches: RowBatches,
    queries_of: Queries,
    start: RowSample,
    epochs: int,
    generator: torch.Generator,
) -> tuple[int, Tensor]:
    """Moves keys by all batches of all passes, and replaces dead ones by random rows.

    Returns:
        how many keys were replaced, and how many rows each (sub-)key got in the last pass, `(books, size)`.
    """
    replaced, hits = 0, torch.zeros_like(books.counts)
    share = start.samples / start.batches / books.size
    books.assign(books.halved(queries_of(start.rows)) * share, torch.full_like(books.counts, share))
    for _ in range(epochs):
        hits.zero_()
        for rows in batches:
            queries = queries_of(rows)
            batch_counts = books.follow(queries, books.find(queries)[1].squeeze(-1))
            hits += batch_counts
            share = batch_counts[0].sum() / books.size
            dead = books.counts < DEAD * share
            if dead.any():
                candidates = books.halved(queries_of(_of_all_ranks(rows, books.size)))
                replaced += replace_keys(books, dead, candidates, share, generator)
    return replaced, hits


def k_means(
    books: MovingCodebooks,
    batches: RowBatches,
    queries_of: Queries,
    start: RowSample,
    epochs: int,
    generator: torch.Generator,
) -> tuple[int, Tensor]:
    """Sets keys to the means of the rows nearest to them, in each pass (Lloyd's algorithm); see `moving_average`."""
    replaced, counts = 0, torch.ones_like(books.counts)
    candidates = books.halved(queries_of(start.rows))
    books.assign(candidates, counts)
    for _ in range(epochs):
        sums, counts = torch.zeros_like(books.sums), torch.zeros_like(books.counts)
        for rows in batches:
            queries = queries_of(rows)
            batch_sums, batch_counts = books.statistics(queries, books.find(queries)[1].squeeze(-1))
            sums += batch_sums
            counts += batch_counts
        books.assign(sums, counts.clamp(min=1))
        replaced += replace_keys(books, counts == 0, candidates, 1.0, generator)
    return replaced, counts


METHODS = {"ema": moving_average, "k_means": k_means}


def replace_keys(
    books: MovingCodebooks, which: Tensor, candidates: Tensor, count: Tensor | float, generator: torch.Generator
) -> int:
    """Replaces (sub-)keys by random candidates.

    Args:
        books: the codebooks.
        which: True for the keys to replace, `(books, size)`.
        candidates: `(books, n, features)`.
        count: of each new key in the statistics.
        generator: of the choice.

    Returns:
        how many keys were replaced.
    """
    chosen = torch.randint(candidates.shape[1], which.shape, generator=generator).to(candidates.device)
    sums = torch.where(which.unsqueeze(-1), pick_rows(candidates, chosen).to(books.sums.dtype) * count, books.sums)
    books.assign(sums, torch.where(which, count, books.counts))
    return int(which.sum())


def _of_all_ranks(rows: Tensor, size: int) -> Tensor:
    """Returns the rows of all processes, at most `size` of each."""
    return gather_rows(rows[:size])[0] if several_ranks() else rows
