"""Evaluation of a model over a data set: each rank takes its share, and every rank gets the whole result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ibreg.modes import evaluating
from ibreg.prediction import predict_samples
from ibreg.regularized import Regularized
from ibreg.runs.data.rows import Rows, loader
from ibreg.runs.methods import is_stochastic


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Rows,
    accelerator: Accelerator,
    per_sample: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    *,
    batch_size: int,
    draws: int = 0,
    seed: int = 0,
) -> tuple[list[Tensor], float | None]:
    """Runs a model over a data set, each rank over its share, and gathers per-sample results.

    Args:
        model: wrapped in `Regularized` or not; its modes are restored.
        rows: of (input, target); further entries of a row are ignored.
        accelerator: gives rank and device.
        per_sample: `(outputs, targets) -> tensors`; the outputs are `(draws, batch, ...)`, with one draw for the mean
            code, and each of the tensors is `(batch, ...)`.
        batch_size: over all ranks.
        draws: number of sampled codes, where there is a stochastic bottleneck; 0: the mean code.
        seed: of the samples.

    Returns:
        the tensors of all samples, in the order of the data, on the CPU; and the mean rate in nats per sample, summed
        over the bottlenecks that log one, or None without any.
    """
    ranks, samples = accelerator.num_processes, len(rows)
    # All ranks run equally many batches, as collectives in the model would block otherwise: the last rows wrap around.
    share = [row % samples for row in range(accelerator.process_index, -(-samples // ranks) * ranks, ranks)]
    regularized = isinstance(model, Regularized)
    sampled = draws > 0 and is_stochastic(model)
    kept = []
    with evaluating(model):
        for batch, (x, y, *_) in enumerate(loader(rows, max(batch_size // ranks, 1), sampler=share)):
            x, y = x.to(accelerator.device), y.to(accelerator.device)
            output = model(x, target=y) if regularized else model(x)
            rates = [value for name, value in output.logs.items() if name.endswith("/rate")] if regularized else []
            rate: Any = sum(rates) if rates else torch.full((), torch.nan, device=x.device)
            mean = (output.output if regularized else output).unsqueeze(0)
            outputs = predict_samples(model, x, draws=draws, seed=seed + batch) if sampled else mean
            kept.append((*per_sample(outputs, y), rate.expand(len(y))))
    gathered: Any = [accelerator.gather(torch.cat(tensors)) for tensors in zip(*kept, strict=True)]
    # Gathered rank by rank; row i of rank r is sample i * ranks + r.
    *results, rates = (
        part.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(0, 1)[:samples].cpu() for part in gathered
    )
    rate = float(rates.double().mean())
    return results, None if math.isnan(rate) else rate
