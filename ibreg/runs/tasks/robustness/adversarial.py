r"""Adversarial training: the loss of a batch is that of inputs attacked by PGD.

.. math::
    \text{pgd:}\quad \ell(f(x'), y) + \text{penalty}(x), \qquad
    x' = \operatorname{argmax}_{\|x' - x\| \le \epsilon} \ell(f(x'), y)

.. math::
    \text{trades:}\quad \ell(f(x), y) + \text{penalty}(x) + w\, \mathrm{KL}(p_{f(x)} \| p_{f(x')}), \qquad
    x' = \operatorname{argmax}_{\|x' - x\| \le \epsilon} \mathrm{KL}(p_{f(x)} \| p_{f(x')})

PGD: Madry et al. 2018 (arXiv 1706.06083). TRADES: Zhang et al. 2019 (arXiv 1901.08573). Penalties of bottlenecks are
those of the clean inputs, as in HBaR (Wang et al. 2021, arXiv 2106.02734). PGD runs in evaluation mode, so it attacks
the mean code of a stochastic bottleneck; its random starts are seeded by torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.evaluation.attacks.gradient import pgd
from ibreg.evaluation.attacks.objective import Loss
from ibreg.prediction import predict
from ibreg.regularized import Penalized, RegularizedOutput, unwrap
from ibreg.runs.config.section import Count, Positive, Section, one_of
from ibreg.runs.models.normalization import network_inputs

# (model, criterion, output of the clean inputs, inputs, targets) -> the loss to call `backward` on
Adversary = Callable[[nn.Module, Penalized, Any, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Search:
    """An L-inf PGD attack on a training batch.

    Attributes:
        clamp: smallest and largest value of an input; None: no limits.
        eps: radius of the ball around each input, in units of the input.
        steps: number of PGD steps.
        step_size: length of a step; None: 2.5 eps / steps.
    """

    clamp: tuple[float, float] | None
    eps: float
    steps: int
    step_size: float | None = None

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor, loss: Loss | None = None) -> Tensor:
        """Returns the attacked inputs; arguments as those of `pgd`."""
        return pgd(
            unwrap(model),
            x,
            target,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            loss=loss,
            clamp=self.clamp,
            seed=int(torch.randint(2**62, ())),
        )


@dataclass(frozen=True)
class PGDTraining:
    """The task loss of attacked inputs plus the penalty of the clean ones.

    Attributes:
        search: attacks the inputs.
    """

    search: Search

    def __call__(self, model: nn.Module, criterion: Penalized, clean: Any, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch, see `Adversary`."""
        attacked = self.search(model, x, y)
        output = _output(model, attacked, y, clean)
        if isinstance(clean, RegularizedOutput):
            output = output._replace(penalty=clean.penalty)
        return criterion(output, y, inputs=network_inputs(model, attacked))


@dataclass(frozen=True)
class TRADES:
    """The loss of the clean inputs plus the divergence of the predictions for attacked inputs from theirs.

    Attributes:
        search: attacks the inputs, so that the divergence is largest.
        weight: weight of the divergence.
    """

    search: Search
    weight: float

    def __call__(self, model: nn.Module, criterion: Penalized, clean: Any, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch, see `Adversary`."""
        attacked = self.search(model, x, predict(model, x).softmax(1), loss=divergence)
        output = _output(model, attacked, y, clean)
        robustness = divergence(_logits(output), _logits(clean).softmax(-1)).mean()
        return criterion(clean, y, inputs=network_inputs(model, x)) + self.weight * robustness


def divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    r"""Returns the divergence of predicted probabilities from given ones, in nats per sample.

    .. math:: \mathrm{KL}(p \| q) = \sum_c p_c (\log p_c - \log q_c), \qquad q = \operatorname{softmax} z

    Args:
        logits: z, `(..., classes)`.
        probabilities: p, of the same shape.

    Example:
        >>> divergence(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([0.6931])
    """
    return F.kl_div(logits.log_softmax(-1), probabilities, reduction="none").sum(-1)


class AdversarialTraining(Section):
    """Training on attacked inputs.

    Attributes:
        name: none, pgd or trades.
        eps: largest change of a pixel in [0, 1], or of a standardized value of a table.
        warmup: epochs over which `eps` grows linearly.
        steps: number of PGD steps.
        step_size: of PGD; None: 2.5 eps / steps.
        weight: weight of the divergence in trades.
    """

    name: Annotated[str, *one_of(("none", "pgd", "trades"))]
    eps: Positive
    warmup: Annotated[int, Field(ge=0)]
    steps: Count
    step_size: Positive | None
    weight: Positive


def build_adversary(options: AdversarialTraining, clamp: tuple[float, float] | None, epoch: int) -> Adversary | None:
    """Builds the adversarial training of an epoch, None for training on clean inputs.

    Args:
        options: the kind of training and its attack.
        clamp: smallest and largest value of an input; None: no limits.
        epoch: index of the epoch, from 0.
    """
    eps = options.eps * min(1.0, (epoch + 1) / (options.warmup + 1))
    search = Search(clamp, eps, options.steps, options.step_size)
    return ADVERSARIES[options.name](search, options)


def _output(model: nn.Module, x: Tensor, y: Tensor, clean: Any) -> Any:
    """Calls the model in the same way as for the clean inputs."""
    return model(x, target=y) if isinstance(clean, RegularizedOutput) else model(x)


def _logits(output: Any) -> Tensor:
    return output.output if isinstance(output, RegularizedOutput) else output


ADVERSARIES: dict[str, Callable[[Search, AdversarialTraining], Adversary | None]] = {
    "none": lambda search, options: None,
    "pgd": lambda search, options: PGDTraining(search),
    "trades": lambda search, options: TRADES(search, options.weight),
}
