r"""Gradient attacks on classifiers and regressors: small changes of the input that raise the loss.

.. math::
    \max_{x'} \; \mathbb{E}_\xi\, \ell(f_\xi(x'), y) \quad \text{subject to} \quad \|x' - x\| \le \epsilon

FGSM: Goodfellow et al. 2015 (arXiv 1412.6572). PGD: Madry et al. 2018 (arXiv 1706.06083). Momentum: Dong et al. 2018
(arXiv 1710.06081). The expectation over the noise of stochastic layers: Athalye et al. 2018 (arXiv 1802.05957); without
it the noise masks the gradient, which looks like robustness but is not (Korshunova et al. 2021).

A stochastic model is attacked twice: `expectation=0` attacks the mean code, which it computes in evaluation mode,
`expectation=n` the mean over n Monte Carlo samples of the noise. The model must return logits (or the prediction of a
regression). If images are normalized outside of the model and eps and bounds are those of pixels, attack
`nn.Sequential(torchvision.transforms.v2.Normalize(mean, std), unwrap(model))`.

The attacked model runs in evaluation mode; with `expectation=n` its stochastic bottlenecks alone sample their noise.
Modes, parameters, their gradients and the global generator are restored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ibreg.evaluation.attacks.ball import Ball, per_sample
from ibreg.evaluation.attacks.objective import Judgement, Loss, Objective, Worst, check_targets
from ibreg.modes import evaluating


def pgd(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    steps: int = 40,
    step_size: float | None = None,
    norm: str | float = "inf",
    restarts: int = 1,
    random_start: bool = True,
    momentum: float = 0,
    targeted: bool = False,
    expectation: int = 0,
    early_stop: bool = False,
    loss: Loss | None = None,
    clamp: tuple[float, float] | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Searches by projected gradient ascent (PGD) for the worst input near each sample.

    .. math::
        g_{t+1} = \mu\, g_t + \frac{\nabla_x \ell(f(x_t), y)}{\|\nabla_x \ell(f(x_t), y)\|_1}, \qquad
        x_{t+1} = \Pi\big(x_t + \alpha\, u(g_{t+1})\big), \qquad
        u(g) = \operatorname{sign} g \;(\infty) \quad\text{or}\quad g / \|g\|_2 \;(2)

    Of all visited points, over all restarts, each sample keeps the worst one, including `x` and the point of `fgsm`: a
    point that fools the classifier before one that does not, then the one with the largest loss. So the accuracy is
    never above that under `fgsm`, and never rises with more steps of the same size or more restarts of the same seed.
    With Monte Carlo samples, points are compared under the same noise, while every step samples its own.

    Args:
        model: wrapped in `Regularized` or not, with a tensor as output.
        x: `(batch, ...)`.
        target: integers `(batch,)` are classes, floats are regression targets.
        eps: radius of the ball around each sample, in units of the input.
        steps: number of gradient steps of each restart.
        step_size: length of a step in the norm; None: 2.5 eps / steps.
        norm: "inf" (largest change of an entry) or "2" (Euclidean length of the change).
        restarts: number of searches.
        random_start: whether a search starts at a random point of the ball rather than at `x`.
        momentum: mu, the weight of the previous direction; 0: none, 1 is usual.
        targeted: whether the attack moves the prediction towards `target` rather than away from it.
        expectation: 0: attacks the mean code; n: each gradient is the mean over n Monte Carlo samples of the noise.
        early_stop: whether a sample leaves the search once the classifier is fooled, which saves time and gives the
            same accuracy. Not for stochastic models whose predictions average Monte Carlo samples: a point that barely
            fools the model under one noise may not do so under another.
        loss: `loss(output, target)`, one value per sample, `(batch,)`, which the attack maximizes, or minimizes if it
            is targeted. None: cross-entropy for classes, squared error for regression targets; `margin` is stronger
            against very confident networks.
        clamp: smallest and largest value of an input, such as (0, 1); None: no limits.
        seed: seed of random starts and Monte Carlo samples.

    Shapes:
        the result has the shape of `x`.

    Raises:
        ValueError: If an argument is out of range, inputs are outside of `clamp`, labels are no classes, an output or a
            loss does not fit, the model has no stochastic bottleneck to sample, or `early_stop` has no classes.

    Warns:
        UserWarning: If `expectation` is 1.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> x, y = torch.zeros(1, 2), torch.ones(1, 1)
        >>> attacked = pgd(model, x, y, eps=0.1, steps=10)
        >>> bool((attacked - x).abs().max() <= 0.1), bool((model(attacked) - y).abs() > (model(x) - y).abs())
        (True, True)
    """
    ball = Ball(x, eps, norm, clamp)
    _check_search(steps, restarts, random_start, momentum)
    if step_size is None:
        step_size = 2.5 * eps / steps
    elif not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size must be a finite number above 0, got {step_size}")
    check_targets(x, target)
    objective = Objective(model, target, loss=loss, expectation=expectation, targeted=targeted)
    if early_stop and not objective.has_classes:
        raise ValueError("early_stop needs classes, integers (batch,), as target: a regressor is never fooled")
    with undisturbed(model, x, seed):
        search = _Search(ball, objective, momentum, early_stop, seed)
        search.ascend(ball.x, 1, eps)  # the step of fgsm
        for restart in range(restarts):
            if restart:  # from a start that does not depend on the number of steps before
                search.generator.manual_seed(seed + restart)
            search.ascend(ball.random_point(search.generator) if random_start else ball.x, steps, step_size)
    return search.worst.x


def _check_search(steps: int, restarts: int, random_start: bool, momentum: float) -> None:
    for name, value in (("steps", steps), ("restarts", restarts)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts={restarts} from x itself are all the same: use random_start=True")
    if not (math.isfinite(momentum) and momentum >= 0):
        raise ValueError(f"momentum must be a finite number of at least 0, got {momentum}")


class _Search:
    """Projected gradient ascent in a ball, which keeps the worst point of each sample.

    Args:
        ball: the points that may be reached.
        objective: value that is maximized.
        momentum: weight of the previous direction.
        early_stop: whether samples leave the search once the classifier is fooled.
        seed: seed of starts and Monte Carlo samples.
    """

    def __init__(self, ball: Ball, objective: Objective, momentum: float, early_stop: bool, seed: int):
        self.ball, self.objective = ball, objective
        self.momentum, self.early_stop = momentum, early_stop
        self.generator = torch.Generator().manual_seed(seed)
        self.fixed_noise = _next_seed(self.generator)  # under which points are compared
        self.worst = Worst(ball.x)

    def ascend(self, start: Tensor, steps: int, length: float) -> None:
        """Takes a number of steps of the given length."""
        worst = self.worst
        rows = (~worst.fooled if self.early_stop else torch.ones_like(worst.fooled)).nonzero().squeeze(1)
        candidate = start[rows]
        direction = torch.zeros_like(candidate)
        for _ in range(steps):
            if len(rows) == 0:
                return
            judgement, gradient = self.objective.gradient(candidate, _next_seed(self.generator), rows)
            worst.meet(candidate, self._judge(candidate, rows) if self.objective.expectation else judgement, rows)
            direction = self.momentum * direction + _unit_l1(gradient) if self.momentum else gradient
            candidate = self.ball.step(candidate, direction, length, rows)
            if self.early_stop:
                unfooled = ~worst.fooled[rows]
                rows, candidate, direction = rows[unfooled], candidate[unfooled], direction[unfooled]
        if len(rows):
            worst.meet(candidate, self._judge(candidate, rows), rows)

    def _judge(self, candidate: Tensor, rows: Tensor) -> Judgement:
        return self.objective.judge(candidate, self.fixed_noise, rows)


def fgsm(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    norm: str | float = "inf",
    targeted: bool = False,
    expectation: int = 0,
    loss: Loss | None = None,
    clamp: tuple[float, float] | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Moves each input by one step of length eps along the gradient at `x` (FGSM).

    .. math:: x' = \Pi\big(x + \epsilon\, u(\nabla_x \ell(f(x), y))\big)

    It is the exact worst case if the output is linear in the input, also within `clamp`. Otherwise a model may
    withstand it and fail under `pgd`, so FGSM alone is not enough.

    Args:
        model: wrapped in `Regularized` or not, with a tensor as output.
        x: `(batch, ...)`.
        target: integers `(batch,)` are classes, floats are regression targets.
        eps: length of the step, in units of the input.
        norm: "inf" or "2".
        targeted: whether the attack moves the prediction towards `target`.
        expectation: 0: attacks the mean code; n: the gradient is the mean over n Monte Carlo samples of the noise.
        loss: as in `pgd`.
        clamp: smallest and largest value of an input; None: no limits.
        seed: seed of the Monte Carlo samples.

    Raises:
        ValueError: As in `pgd`.

    Warns:
        UserWarning: If `expectation` is 1.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> fgsm(model, torch.zeros(1, 3), torch.ones(1, 1), eps=0.1)
        tensor([[-0.1000, -0.1000, -0.1000]])
    """
    ball = Ball(x, eps, norm, clamp)
    check_targets(x, target)
    objective = Objective(model, target, loss=loss, expectation=expectation, targeted=targeted)
    with undisturbed(model, x, seed):
        _, gradient = objective.gradient(ball.x, seed)
    return ball.step(ball.x, gradient, eps)


def uniform_noise(
    x: Tensor, *, eps: float, norm: str | float = "inf", clamp: tuple[float, float] | None = None, seed: int = 0
) -> Tensor:
    """Moves each input to a random point of the ball, a baseline that every attack must beat.

    Args:
        x: `(batch, ...)`.
        eps: radius of the ball, in units of the input.
        norm: "inf" or "2".
        clamp: smallest and largest value of an input; None: no limits.
        seed: seed of the points.

    Raises:
        ValueError: If an argument is out of range, or inputs are outside of `clamp`.

    Example:
        >>> x = torch.zeros(100, 3)
        >>> uniform_noise(x, eps=0.5, norm="2").norm(dim=1).max() <= 0.5
        tensor(True)
    """
    return Ball(x, eps, norm, clamp).random_point(torch.Generator().manual_seed(seed))


@contextmanager
def undisturbed(model: nn.Module, x: Tensor, seed: int) -> Iterator[None]:
    """Puts a model in evaluation mode and seeds the global generators, for models with their own noise.

    Args:
        model: model that is attacked.
        x: its input.
        seed: seed of the generators.
    """
    with evaluating(model), torch.random.fork_rng({x.device} - {torch.device("cpu")}):
        torch.manual_seed(seed)
        yield


def _unit_l1(gradient: Tensor) -> Tensor:
    length = gradient.flatten(1).abs().sum(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient / per_sample(length, gradient)


def _next_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
