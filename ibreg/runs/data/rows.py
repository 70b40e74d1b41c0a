"""Rows of a data set that are fetched a whole batch at a time, and the loader that does so."""

from collections.abc import Callable, Sequence, Sized
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate


def loader(
    dataset: Dataset, batch_size: int, *, sampler: Sampler | Sequence[int] | None = None, drop_last: bool = False
) -> DataLoader:
    """Builds a loader of batches `(inputs, targets)` that fetches a whole batch at once where the data set can.

    Args:
        dataset: `Rows`, whose batches are fetched by `Rows.workers` processes, or any other map-style data set.
        batch_size: rows per batch.
        sampler: order of the rows; None: the order of the data set.
        drop_last: whether an incomplete last batch is dropped.

    Example:
        >>> inputs, targets = next(iter(loader(Rows(torch.zeros(40, 1, 8, 8), torch.zeros(40).long()), 32)))
        >>> inputs.shape, targets.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    batches = -(-len(cast(Sized, dataset if sampler is None else sampler)) // batch_size)
    # A process for a single batch would only be waited for.
    workers = min(dataset.workers, batches) if isinstance(dataset, Rows) and batches > 1 else 0
    return DataLoader(
        dataset, batch_size, sampler=sampler, drop_last=drop_last, collate_fn=_collate, num_workers=workers
    )


def _collate(batch):
    """Stacks a list of samples; a batch that was fetched as a whole is returned as it is."""
    return batch if isinstance(batch, tuple) else default_collate(batch)


class Rows(Dataset):
    """A data set of inputs and targets that is fetched a whole batch at a time.

    Args:
        inputs: `(rows, ...)`: a tensor, or an object that returns a batch for a list of row indices.
        targets: `(rows, ...)`.
        augment: random augmentation `augment(inputs, generator)` of a batch, applied whenever one is fetched.

    Attributes:
        workers: number of processes in which a loader fetches batches, those of the inputs; 0: the main process.

    Example:
        >>> rows = Rows(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0]))
        >>> rows[1]
        (tensor([2., 3.]), tensor(1))
        >>> rows.__getitems__([2, 0])
        (tensor([[4., 5.],
                [0., 1.]]), tensor([0, 0]))
    """

    def __init__(self, inputs, targets: Tensor, augment: Callable[[Tensor, torch.Generator], Tensor] | None = None):
        self.inputs, self.targets, self.augment = inputs, targets, augment
        self.workers: int = getattr(inputs, "workers", 0)
        self.key: tuple[int, ...] = ()

    def seed_augmentation(self, *key: int) -> None:
        """Seeds the augmentation of the batches that are fetched from now on by integers such as (seed, epoch, rank).

        The augmentation of a batch is a function of this key and of its rows, whichever process fetches it. It has its
        own generator, so that stochastic and deterministic models see the same images.
        """
        self.key = key

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        inputs = self.inputs[indices]
        if self.augment is not None:
            # A spawned sequence: torch's global generator may be seeded with the same numbers.
            state = np.random.SeedSequence((*self.key, *indices), spawn_key=(0,)).generate_state(1)
            inputs = self.augment(inputs, torch.Generator().manual_seed(int(state[0])))
        return inputs, self.targets[indices]
