"""Parts of a training: what seeds it, orders its rows, evaluates its model, and says how far it is."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, DistributedType, FullyShardedDataParallelPlugin
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, Subset

from ibreg.modes import evaluating
from ibreg.prediction import predict_samples
from ibreg.regularized import Regularized, RegularizedOutput
from ibreg.runs.data.rows import loader
from ibreg.runs.methods import is_stochastic


def build_accelerator(cfg: DictConfig) -> Accelerator:
    """Builds what trains on one process or several, on a CPU or elsewhere.

    Raises:
        ValueError: the device does not have the precision, the tracker's package is not installed, or FSDP cannot do
            what is asked for.
    """
    tracker = cfg.get("tracker", "none")
    if tracker not in ("none", "all", *map(str, get_available_trackers())):
        raise ValueError(f"tracker={tracker} needs a package that is not installed: pip install {tracker}, or use none")
    if sharded := os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # Every process builds the model itself; the launcher's default, to send it, fails on buffers such as beta.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    accelerator = Accelerator(
        cpu=cfg.device == "cpu",
        mixed_precision=str(cfg.precision),
        gradient_accumulation_steps=cfg.get("accumulate", 1),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with=None if tracker == "none" else tracker,
        project_dir=cfg.output_dir,
    )
    if cfg.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision=fp16 needs an accelerator: on the CPU use bf16 or no")
    if sharded and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # There accelerate leaves FSDP out without a word, though torch has it, and so has the rest of accelerate.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if cfg.precision != "no":
            accelerator.state.fsdp_plugin.set_mixed_precision(str(cfg.precision))
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise ValueError("FSDP's first version is not supported: accelerate launch --use_fsdp --fsdp_version 2 ...")
        if cfg.get("ema"):
            raise ValueError(f"ema={cfg.ema} averages whole weights, of which FSDP leaves a process a shard: use ema=0")
        if policy := accelerator.state.fsdp_plugin.mixed_precision_policy:
            # Losses and penalties are float32, as with autocast; accelerate would round all that a model returns.
            accelerator.state.fsdp_plugin.mixed_precision_policy = replace(policy, output_dtype=torch.float32)
    return accelerator


def seed_all(*key: int) -> None:
    """Seeds torch, numpy and random with a hash of several numbers, such as (seed, epoch, rank)."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class EpochSampler(Sampler[int]):
    """A permutation of the rows that is a function of (seed, epoch) alone, so that a resumed run and all ranks agree.

    Args:
        rows: how many.
        seed: of the training.

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
        """Chooses the epoch whose order comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng((self.seed, self.epoch)).permutation(self.rows).tolist()

    def __len__(self) -> int:
        return self.rows


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    accelerator: Accelerator,
    per_sample: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    *,
    batch_size: int,
    draws: int = 0,
    seed: int = 0,
) -> tuple[list[Tensor], float | None]:
    """Runs a model over a data set, each rank its share, and gathers what is wanted of each sample.

    Args:
        model: wrapped in `Regularized` or not; its modes come back as they were.
        dataset: of (input, target), and what else is not asked for.
        accelerator: gives rank and device.
        per_sample: `(outputs, targets) -> tensors`; the outputs are `(draws, batch, ...)`, with one draw for the mean
            code, and each of the tensors is `(batch, ...)`.
        batch_size: of the whole, over ranks.
        draws: 0: the mean code; n: n drawn codes, where there is a stochastic bottleneck.
        seed: of the draws.

    Returns:
        the tensors of all samples, in the order of the data, on the CPU; and the mean rate in nats per sample, summed
        over the bottlenecks that log one, or None without any.
    """
    ranks, samples = accelerator.num_processes, len(dataset)
    # Every rank runs equally many batches, or collectives in the model would wait for ever: the last rows wrap around.
    share = [row % samples for row in range(accelerator.process_index, -(-samples // ranks) * ranks, ranks)]
    regularized = isinstance(model, Regularized)
    drawn = draws > 0 and is_stochastic(model)
    kept = []
    with evaluating(model):
        for batch, (x, y, *_) in enumerate(loader(Subset(dataset, share), max(batch_size // ranks, 1))):
            x, y = x.to(accelerator.device), y.to(accelerator.device)
            output = model(x, target=y) if regularized else model(x)
            rates = [value for name, value in output.logs.items() if name.endswith("/rate")] if regularized else []
            rate = sum(rates) if rates else torch.full((), torch.nan, device=x.device)
            mean = (output.output if regularized else output).unsqueeze(0)
            outputs = predict_samples(model, x, draws=draws, seed=seed + batch) if drawn else mean
            kept.append((*per_sample(outputs, y), rate.expand(len(y))))
    gathered = [accelerator.gather(torch.cat(part)) for part in zip(*kept, strict=True)]
    # Gathered rank by rank; row i of rank r is sample i * ranks + r.
    *parts, rates = (part.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(0, 1)[:samples].cpu() for part in gathered)
    rate = float(rates.double().mean())
    return parts, None if np.isnan(rate) else rate


def quantities(loss: Tensor, output: Any) -> dict[str, Tensor]:
    """Names what an epoch averages; the rate is summed over bottlenecks."""
    if not isinstance(output, RegularizedOutput):
        return {"loss": loss.detach()}
    rates = [value for name, value in output.logs.items() if name.endswith("/rate")]
    return {"loss": loss.detach(), "penalty": output.penalty.detach()} | ({"rate": sum(rates)} if rates else {})


def described(row: dict[str, Any]) -> str:
    """Says the main numbers of an epoch in a line."""
    shown = {"train/loss": "loss", "train/rate": "rate"}
    shown |= {f"validation/{metric}": f"validation {metric}" for metric in ("accuracy", "rmse")}
    return "  ".join(f"{label} {row[key]:.4f}" for key, label in shown.items() if key in row)


class Lines:
    """Tells how far a run is: a bar on a terminal, a line per epoch in a log, nothing on other ranks.

    Args:
        steps: epochs in all.
        shown: whether this process may write.
    """

    def __init__(self, steps: int, *, shown: bool):
        self.shown = shown
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
        )
        self.bar.disable = not (shown and sys.stdout.isatty())
        self.task = self.bar.add_task("", total=steps)

    def __enter__(self) -> Lines:
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()

    def advance(self, text: str, steps: int = 1) -> None:
        """Moves on by a number of epochs."""
        self.bar.update(self.task, advance=steps, description=text)
        if self.shown and self.bar.disable:
            print(text, flush=True)
