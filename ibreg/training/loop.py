"""Parts of a training loop that recipes share; the loop itself stands in each recipe."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler, Subset

from ibreg.evaluation.metrics import classification_metrics, information_bound
from ibreg.regularized import Regularized, RegularizedOutput, draw, evaluating
from ibreg.training.data import loader


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


class Evaluation(NamedTuple):
    """Predictions for one data set.

    Attributes:
        probabilities: `(samples, classes)`, averaged over draws.
        targets: `(samples,)`.
        cross_entropy: mean over samples and draws of -log q(y|z), nats; it bounds I(Z; Y), which that of the averaged
            probabilities, or of the mean code, does not. None where no code was drawn.
        rate: nats per sample, summed over the bottlenecks that log one; None without any.
    """

    probabilities: Tensor
    targets: Tensor
    cross_entropy: float | None
    rate: float | None

    def metrics(self) -> dict[str, float]:
        """Returns all metrics by name."""
        metrics = classification_metrics(self.probabilities, self.targets)
        if self.rate is not None:
            metrics |= {"rate": self.rate}
        if self.cross_entropy is not None:
            metrics |= {"information": information_bound(self.cross_entropy, self.targets)}
        return metrics


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: Dataset, accelerator: Accelerator, *, batch_size: int, draws: int = 0, seed: int = 0
) -> Evaluation:
    """Predicts a data set, each rank its share.

    Args:
        model: a classifier, wrapped in `Regularized` or not; its modes come back as they were.
        dataset: of (input, class index).
        accelerator: gives rank and device.
        batch_size: of the whole, over ranks.
        draws: 0: the mean code; n: the softmax averaged over n drawn codes.
        seed: of the draws.
    """
    ranks, samples = accelerator.num_processes, len(dataset)
    # Every rank runs equally many batches, or collectives in the model would wait for ever: the last rows wrap around.
    share = [row % samples for row in range(accelerator.process_index, -(-samples // ranks) * ranks, ranks)]
    regularized = isinstance(model, Regularized)
    kept = []
    with evaluating(model):
        for batch, (x, y) in enumerate(loader(Subset(dataset, share), max(batch_size // ranks, 1))):
            x, y = x.to(accelerator.device), y.to(accelerator.device)
            output = model(x, target=y) if regularized else model(x)
            rates = [value for name, value in output.logs.items() if name.endswith("/rate")] if regularized else []
            logits = output.output if regularized else output
            logits = draw(model, x, draws=draws, seed=seed + batch) if regularized and draws else logits.unsqueeze(0)
            log_probabilities = logits.float().log_softmax(-1)
            each = F.nll_loss(log_probabilities.flatten(0, 1), y.repeat(len(logits)), reduction="none")
            rate = sum(rates) if rates else torch.full((), torch.nan, device=x.device)
            kept.append(
                (log_probabilities.exp().mean(0), y, each.unflatten(0, (-1, len(y))).mean(0), rate.expand(len(y)))
            )
    gathered = [accelerator.gather(torch.cat(part)) for part in zip(*kept, strict=True)]
    # Gathered rank by rank; row i of rank r is sample i * ranks + r.
    probabilities, targets, cross_entropy, rate = (
        part.unflatten(0, (ranks, -1)).transpose(0, 1).flatten(0, 1)[:samples].cpu() for part in gathered
    )
    mean_rate = float(rate.double().mean())
    return Evaluation(
        probabilities,
        targets,
        cross_entropy=float(cross_entropy.double().mean()) if regularized and draws else None,
        rate=None if np.isnan(mean_rate) else mean_rate,
    )


def quantities(loss: Tensor, output: Any) -> dict[str, Tensor]:
    """Names what an epoch averages; the rate is summed over bottlenecks."""
    if not isinstance(output, RegularizedOutput):
        return {"loss": loss.detach()}
    rates = [value for name, value in output.logs.items() if name.endswith("/rate")]
    return {"loss": loss.detach(), "penalty": output.penalty.detach()} | ({"rate": sum(rates)} if rates else {})


def described(row: dict[str, Any]) -> str:
    """Says the main numbers of an epoch in a line."""
    shown = {"train/loss": "loss", "train/rate": "rate", "validation/accuracy": "validation accuracy"}
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
