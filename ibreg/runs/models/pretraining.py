"""A backbone that is trained here, on classes that the fine-tuning does not have: for trying things without a file."""

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
        model: freshly initialized; it is changed.
        rows: to train on.
        epochs: passes over them.
        batch_size: rows per step.
        lr: AdamW's.
        seed: of their order.

    Returns:
        weights by name, without those of the head.
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
