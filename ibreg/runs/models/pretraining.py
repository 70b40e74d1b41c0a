"""Pretraining of a backbone on classes that are not fine-tuned, for experiments without a file of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.optimization import head_name
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.seeding import EpochSampler, seed_all


def pretrain(model: nn.Module, rows: Rows, *, epochs: int, batch_size: int, lr: float, seed: int) -> dict[str, Tensor]:
    """Trains a classifier and returns the weights of its backbone.

    Args:
        model: freshly initialized; changed in place.
        rows: training rows.
        epochs: passes over the rows.
        batch_size: rows per step.
        lr: learning rate of AdamW.
        seed: seed of the order of the rows.

    Returns:
        Weights by name, without those of the head.
    """
    seed_all(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    sampler = EpochSampler(len(rows), seed)
    model.train()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in loader(rows, batch_size, sampler=sampler, drop_last=len(rows) > batch_size):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    head = head_name(model)
    return {name: value for name, value in model.state_dict().items() if name.rpartition(".")[0] != head}
