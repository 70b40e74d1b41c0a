r"""Gradient attacks on classifiers and regressors: how much a small change of the input can raise the loss.

.. math::
    \max_{x'} \; \mathbb{E}_\xi\, \ell(f_\xi(x'), y) \quad \text{subject to} \quad \|x' - x\| \le \epsilon

FGSM: Goodfellow et al. 2015 (arXiv 1412.6572). PGD: Madry et al. 2018 (arXiv 1706.06083). Momentum: Dong et al. 2018
(arXiv 1710.06081). The expectation over the noise of stochastic layers: Athalye et al. 2018 (arXiv 1802.05957); without
it their noise hides the gradient, which looks like robustness and is none (Korshunova et al. 2021).

A stochastic model is attacked twice: `expectation=0` attacks the mean code, which is what it computes in evaluation
mode, `expectation=n` the mean over n draws of the noise. All attacks work on what the model returns: give them one that
returns logits. Where images are normalized and eps and bounds are those of pixels, attack
`nn.Sequential(torchvision.transforms.v2.Normalize(mean, std), unwrap(model))`.

The attacked model is in evaluation mode; with draws its stochastic bottlenecks, and they alone, draw their noise.
Modes, parameters, their gradients and the global generator come back as they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ibreg.evaluation.attacks.ball import Ball, per_sample
from ibreg.evaluation.attacks.objective import Loss, Objective, Worst, check_targets
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
    r"""Searches by projected gradient ascent for the worst input near `x`, for each sample by itself.

    .. math::
        g_{t+1} = \mu\, g_t + \frac{\nabla_x \ell(f(x_t), y)}{\|\nabla_x \ell(f(x_t), y)\|_1}, \qquad
        x_{t+1} = \Pi\big(x_t + \alpha\, u(g_{t+1})\big), \qquad
        u(g) = \operatorname{sign} g \;(\infty) \quad\text{or}\quad g / \|g\|_2 \;(2)

    Of all points on the way, over all restarts, each sample keeps the worst one, its own `x` and that of `fgsm`
    included: one that fools the classifier before one that does not, then the one with the greatest loss. So accuracy
    is never above that under `fgsm`, and never rises with more steps of the same size or more restarts of the same
    seed. With draws, points are compared under one and the same noise, while every step draws its own.

    Args:
        model: wrapped in `Regularized` or not, with a tensor as output.
        x: `(batch, ...)`.
        target: what the loss compares with: integers `(batch,)` are classes, floats are values of a regression.
        eps: radius of the ball around each sample, in units of the input.
        steps: number of gradient steps of each restart.
        step_size: length of a step in the norm; None: 2.5 eps / steps.
        norm: "inf" (largest change of an entry) or "2" (Euclidean length of the change).
        restarts: number of searches.
        random_start: whether a search starts at a random point of the ball rather than at `x`.
        momentum: mu, how much of the direction before is kept; 0: none, 1 is usual.
        targeted: whether `target` is what the model shall say, rather than what it shall not.
        expectation: 0: attacks the model with the mean code; n: each gradient is the mean over n draws of the noise.
        early_stop: whether a sample leaves the search once the classifier is fooled, which saves time and gives the
            same accuracy. Not for stochastic models that are predicted by draws: what fools one noise only just may
            not fool the next one.
        loss: `loss(output, target)`, one value per sample, `(batch,)`, which the attack raises, and lowers where it is
            targeted. None: cross-entropy for classes, squared error for values; `margin` finds more of a network that
            is very sure.
        clamp: smallest and largest value of an input, such as (0, 1); None: no limit.
        seed: of random starts and draws.

    Shapes:
        the result has the shape of `x`.

    Raises:
        ValueError: an argument out of range, inputs outside of `clamp`, labels that are no class, an output or a loss
            that does not fit, draws of a model without a stochastic bottleneck, `early_stop` without classes.

    Warns:
        UserWarning: `expectation=1`.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> x, y = torch.zeros(1, 2), torch.ones(1, 1)
        >>> attacked = pgd(model, x, y, eps=0.1, steps=10)
        >>> bool((attacked - x).abs().max() <= 0.1), bool((model(attacked) - y).abs() > (model(x) - y).abs())
        (True, True)
    """
    ball = Ball(x, eps, norm, clamp)
    for name, value in (("steps", steps), ("restarts", restarts)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is an integer of at least 1, got {value!r}")
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts={restarts} from x itself are all the same: use random_start=True")
    if not (math.isfinite(momentum) and momentum >= 0):
        raise ValueError(f"momentum is a finite number of at least 0, got {momentum}")
    if step_size is None:
        step_size = 2.5 * eps / steps
    elif not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size is a finite number above 0, got {step_size}")
    check_targets(x, target)
    objective = Objective(model, target, loss=loss, expectation=expectation, targeted=targeted)
    if early_stop and not objective.has_classes:
        raise ValueError("early_stop needs classes, integers (batch,), as target: a regressor is never fooled")
    generator = torch.Generator().manual_seed(seed)
    fixed_noise = _next_seed(generator)
    with undisturbed(model, x, seed):
        worst = Worst(ball.x)

        def search(start: Tensor, count: int, length: float) -> None:
            """Takes so many steps of this length."""
            rows = (~worst.fooled if early_stop else torch.ones_like(worst.fooled)).nonzero().squeeze(1)
            candidate = start[rows]
            direction = torch.zeros_like(candidate)
            for _ in range(count):
                if len(rows) == 0:
                    return
                judgement, gradient = objective.gradient(candidate, _next_seed(generator), rows)
                worst.meet(candidate, objective.judge(candidate, fixed_noise, rows) if expectation else judgement, rows)
                direction = momentum * direction + _of_length_one(gradient) if momentum else gradient
                candidate = ball.step(candidate, direction, length, rows)
                if early_stop:
                    going_on = ~worst.fooled[rows]
                    rows, candidate, direction = rows[going_on], candidate[going_on], direction[going_on]
            if len(rows):
                worst.meet(candidate, objective.judge(candidate, fixed_noise, rows), rows)

        search(ball.x, 1, eps)  # that of fgsm
        for restart in range(restarts):
            if restart:  # from a start that does not depend on how many steps came before
                generator.manual_seed(seed + restart)
            search(ball.random_point(generator) if random_start else ball.x, steps, step_size)
    return worst.x


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
    r"""Moves each input to the end of the ball to which the gradient at `x` points: one step, whatever the loss there.

    .. math:: x' = \Pi\big(x + \epsilon\, u(\nabla_x \ell(f(x), y))\big)

    It is the exact worst case where the output is linear in the input, also within `clamp`. Elsewhere a model can pass
    it and fail under `pgd`, which is why it is never enough alone.

    Args:
        model: wrapped in `Regularized` or not, with a tensor as output.
        x: `(batch, ...)`.
        target: what the loss compares with: integers `(batch,)` are classes, floats are values of a regression.
        eps: length of the step, in units of the input.
        norm: "inf" or "2".
        targeted: whether `target` is what the model shall say.
        expectation: 0: attacks the model with the mean code; n: the gradient is the mean over n draws of the noise.
        loss: as in `pgd`.
        clamp: smallest and largest value of an input; None: no limit.
        seed: of the draws.

    Raises:
        ValueError: as in `pgd`.

    Warns:
        UserWarning: `expectation=1`.

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
    """Moves each input to a random point of the ball: what an attack has to be stronger than.

    Args:
        x: `(batch, ...)`.
        eps: radius of the ball, in units of the input.
        norm: "inf" or "2".
        clamp: smallest and largest value of an input; None: no limit.
        seed: of the points.

    Raises:
        ValueError: an argument out of range, inputs outside of `clamp`.

    Example:
        >>> x = torch.zeros(100, 3)
        >>> uniform_noise(x, eps=0.5, norm="2").norm(dim=1).max() <= 0.5
        tensor(True)
    """
    return Ball(x, eps, norm, clamp).random_point(torch.Generator().manual_seed(seed))


@contextmanager
def undisturbed(model: nn.Module, x: Tensor, seed: int) -> Iterator[None]:
    """Puts a model in evaluation mode, and gives one that draws noise by itself a generator of its own.

    Args:
        model: what is attacked.
        x: its input.
        seed: of that generator.
    """
    with evaluating(model), torch.random.fork_rng({x.device} - {torch.device("cpu")}):
        torch.manual_seed(seed)
        yield


def _of_length_one(gradient: Tensor) -> Tensor:
    length = gradient.flatten(1).abs().sum(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    return gradient / per_sample(length, gradient)


def _next_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
