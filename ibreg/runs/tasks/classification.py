"""Predictions of classifiers over a data set, their metrics, and mixup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

from accelerate import Accelerator
from pydantic import BeforeValidator, ConfigDict, SerializeAsAny
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import MixUp

from ibreg.evaluation.classification.metrics import classification_metrics, information_bound
from ibreg.runs.config.recipe import TrainingConfig
from ibreg.runs.config.section import NotNegative, Share
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Request
from ibreg.runs.methods import is_stochastic
from ibreg.runs.tasks.evaluation import evaluate
from ibreg.runs.trials import SweepConfig


class ClassificationConfig(TrainingConfig, SweepConfig):
    """The keys of the classification recipe.

    Attributes:
        data: the data set.
        label_smoothing: fraction of every label that is spread over all classes.
        mixup: alpha of mixup; 0: no mixup.
    """

    model_config = ConfigDict(title="classification")
    data: Annotated[SerializeAsAny[Request], BeforeValidator(datasets.request)]
    label_smoothing: Share
    mixup: NotNegative


class Classified(NamedTuple):
    """Predictions for one data set.

    Attributes:
        probabilities: `(samples, classes)`, averaged over the sampled codes.
        targets: `(samples,)`.
        cross_entropy: mean of -log q(y|z) over samples and sampled codes, nats; it bounds I(Z; Y), which the
            cross-entropy of averaged probabilities, or of the mean code, does not. None without sampled codes.
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
    """Predicts a data set, each rank its share of the rows.

    Args:
        model: a classifier, wrapped in `Regularized` or not; its modes are restored.
        rows: of (input, class).
        accelerator: gives rank and device.
        draws: number of sampled codes that the softmax is averaged over, where there is a stochastic bottleneck; 0: the
            mean code.
    """
    (probabilities, targets, cross_entropy), rate = evaluate(
        model, rows, accelerator, _of_each_sample, batch_size=1000, draws=draws
    )
    sampled = draws > 0 and is_stochastic(model)
    return Classified(probabilities, targets, float(cross_entropy.double().mean()) if sampled else None, rate)


def mixup(alpha: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns mixup: a transform of a batch to convex combinations of its rows and of their labels (arXiv 1710.09412).

    The weight of a combination is sampled from Beta(alpha, alpha), once per batch.

    Args:
        alpha: above 0; the larger, the closer are the weights to 0.5.
        classes: number of classes.

    Returns:
        a function of `(batch, ...)` inputs and class indices `(batch,)` to inputs and label weights `(batch, classes)`.

    Example:
        >>> import torch
        >>> x, y = mixup(1.0, classes=3)(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
        >>> x.shape, y.shape
        (torch.Size([4, 5]), torch.Size([4, 3]))
    """
    mix = MixUp(alpha=alpha, num_classes=classes)

    def mixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # It takes images only, but the combination is the same for rows of any shape.
        images, labels = mix(x.reshape(len(x), 1, 1, -1), y)
        return images.reshape(x.shape), labels

    return mixed


def _of_each_sample(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_probabilities = logits.float().log_softmax(-1)
    each = F.nll_loss(log_probabilities.flatten(0, 1), targets.repeat(len(logits)), reduction="none")
    return log_probabilities.exp().mean(0), targets, each.unflatten(0, (-1, len(targets))).mean(0)
