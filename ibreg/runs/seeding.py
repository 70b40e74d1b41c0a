"""Randomness as a function of seed and epoch: the seeds of all generators, and the order of the training rows."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def seed_all(*key: int) -> None:
    """Seeds torch, numpy and random with a hash of several integers, such as (seed, epoch, rank)."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class EpochSampler(Sampler[int]):
    """A permutation of the rows that depends on seed and epoch alone: the same on all ranks and in a resumed run.

    Args:
        rows: number of rows.
        seed: of the training run.

    Example:
        >>> sampler = EpochSampler(4, seed=0)
        >>> sampler.set_epoch(3)
        >>> list(sampler) == list(sampler), sorted(sampler)
        (True, [0, 1, 2, 3])
    """

    def __init__(self, rows: int, seed: int):
        self.rows = rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng((self.seed, self.epoch)).permutation(self.rows).tolist()

    def __len__(self) -> int:
        return self.rows
