"""Predictions of classifiers over a data set, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import MixUp

from ibreg.evaluation.classification.metrics import classification_metrics, information_bound
from ibreg.runs.data.rows import Rows
from ibreg.runs.methods import is_stochastic
from ibreg.runs.tasks.evaluation import evaluate


class Classified(NamedTuple):
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


def classify(model: nn.Module, rows: Rows, accelerator: Accelerator, *, draws: int = 0) -> Classified:
    """Predicts a data set, each rank its share.

    Args:
        model: a classifier, wrapped in `Regularized` or not; its modes come back as they were.
        rows: of (input, class).
        accelerator: gives rank and device.
        draws: 0: the mean code; n: the softmax averaged over n drawn codes, where there is a stochastic bottleneck.
    """
    (probabilities, targets, cross_entropy), rate = evaluate(
        model, rows, accelerator, _of_each_sample, batch_size=1000, draws=draws
    )
    drawn = draws > 0 and is_stochastic(model)
    return Classified(probabilities, targets, float(cross_entropy.double().mean()) if drawn else None, rate)


def mixup(alpha: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns what mixes each row of a batch with another one, and their labels alike (arXiv 1710.09412).

    The share of the one is drawn from Beta(alpha, alpha), once for a batch.

    Args:
        alpha: above 0; the larger, the nearer are the shares to a half.
        classes: how many.

    Returns:
        a function of `(batch, ...)` inputs and class indices `(batch,)` to inputs and `(batch, classes)` shares.

    Example:
        >>> import torch
        >>> x, y = mixup(1.0, classes=3)(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
        >>> x.shape, y.shape
        (torch.Size([4, 5]), torch.Size([4, 3]))
    """
    mix = MixUp(alpha=alpha, num_classes=classes)

    def mixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # It takes images alone, but what it does holds for rows of any shape.
        images, shares = mix(x.reshape(len(x), 1, 1, -1), y)
        return images.reshape(x.shape), shares

    return mixed


def _of_each_sample(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_probabilities = logits.float().log_softmax(-1)
    each = F.nll_loss(log_probabilities.flatten(0, 1), targets.repeat(len(logits)), reduction="none")
    return log_probabilities.exp().mean(0), targets, each.unflatten(0, (-1, len(targets))).mean(0)
