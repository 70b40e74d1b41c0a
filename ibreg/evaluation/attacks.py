r"""Gradient attacks on classifiers and regressors: how much a small change of the input can raise the loss.

.. math::
    \max_{x'} \; \mathbb{E}_\xi\, \ell(f_\xi(x'), y) \quad \text{subject to} \quad \|x' - x\| \le \epsilon

FGSM: Goodfellow et al. 2015 (arXiv 1412.6572). PGD: Madry et al. 2018 (arXiv 1706.06083). The expectation over the
noise of stochastic layers: Athalye et al. 2018 (arXiv 1802.05957); without it their noise hides the gradient, which
looks like robustness and is none (Korshunova et al. 2021).

The attacked model is in evaluation mode; with draws its stochastic bottlenecks, and they alone, draw their noise.
Modes, parameters, their gradients and the global generator come back as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.regularized import draw, evaluating, unwrap

Loss = Callable[[Tensor, Tensor], Tensor]


def pgd(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float | None = None,
    norm: str = "inf",
    restarts: int = 1,
    random_start: bool = True,
    draws: int = 0,
    loss: Loss | None = None,
    clamp: tuple[float, float] | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Searches by projected gradient ascent for the input near `x` with the largest loss, for each sample by itself.

    .. math::
        x_{t+1} = \Pi\big(x_t + \alpha\, u(\nabla_x \ell(f(x_t), y))\big), \qquad
        u(g) = \operatorname{sign} g \;(\infty) \quad\text{or}\quad g / \|g\|_2 \;(2)

    Of all points on the way, over all restarts, each sample keeps the worst one, its own `x` included: the loss never
    falls, and it never falls with more steps of the same size or more restarts of the same seed. With draws, points are
    compared under one and the same noise, while every step draws its own.

    Args:
        model: wrapped in `Regularized` or not, with a tensor as output.
        x: `(batch, ...)`.
        target: what the loss compares with.
        eps: radius of the ball around each sample, in units of the input.
        steps: number of gradient steps of each restart.
        step_size: length of a step in the norm; None: 2.5 eps / steps.
        norm: "inf" (largest change of an entry) or "2" (Euclidean length of the change).
        restarts: number of searches.
        random_start: whether a search starts at a random point of the ball rather than at `x`.
        draws: 0: attacks the model with the mean code; n: each gradient is the mean over n draws of the noise.
        loss: `loss(output, target)`, one value per sample, `(batch,)`, which the attack raises. None: cross-entropy
            where the targets are integers, squared error where they are floats.
        clamp: smallest and largest value of an input, such as (0, 1); None: no limit.
        seed: of random starts and draws.

    Shapes:
        the result has the shape of `x`.

    Raises:
        ValueError: an argument out of range, inputs outside of `clamp`, an output or a loss that does not fit, draws of
            a model without a stochastic bottleneck.

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
            raise ValueError(f"{name} is a whole number of at least 1, got {value!r}")
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts={restarts} from x itself are all the same: use random_start=True")
    if step_size is None:
        step_size = 2.5 * eps / steps
    elif not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size is a finite number above 0, got {step_size}")
    generator = torch.Generator().manual_seed(seed)
    fixed_noise = _next_seed(generator)
    with evaluating(model):
        objective = Objective(model, target, loss, draws)
        worst, greatest = x.detach(), objective.value(x, fixed_noise)

        def keep(candidate, values):
            greater = values > greatest
            return torch.where(_per_sample(greater, x), candidate, worst), torch.where(greater, values, greatest)

        for _ in range(restarts):
            candidate = ball.random_point(generator) if random_start else x.detach()
            for _ in range(steps):
                values, gradient = objective.gradient(candidate, _next_seed(generator))
                worst, greatest = keep(candidate, objective.value(candidate, fixed_noise) if draws else values)
                candidate = ball.project(candidate + step_size * ball.steepest(gradient))
            worst, greatest = keep(candidate, objective.value(candidate, fixed_noise))
    return worst


def fgsm(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    norm: str = "inf",
    draws: int = 0,
    loss: Loss | None = None,
    clamp: tuple[float, float] | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Moves each input to the end of the ball to which the gradient at `x` points: one step, whatever the loss there.

    .. math:: x' = \Pi\big(x + \epsilon\, u(\nabla_x \ell(f(x), y))\big)

    It is the exact worst case where the output is linear in the input. Elsewhere a model can pass it and fail under
    `pgd`, which is why it is never enough alone.

    Args:
        model: wrapped in `Regularized` or not, with a tensor as output.
        x: `(batch, ...)`.
        target: what the loss compares with.
        eps: length of the step, in units of the input.
        norm: "inf" or "2".
        draws: 0: attacks the model with the mean code; n: the gradient is the mean over n draws of the noise.
        loss: as in `pgd`.
        clamp: smallest and largest value of an input; None: no limit.
        seed: of the draws.

    Raises:
        ValueError: as in `pgd`.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> fgsm(model, torch.zeros(1, 3), torch.ones(1, 1), eps=0.1)
        tensor([[-0.1000, -0.1000, -0.1000]])
    """
    ball = Ball(x, eps, norm, clamp)
    with evaluating(model):
        _, gradient = Objective(model, target, loss, draws).gradient(x.detach(), seed)
    return ball.project(x.detach() + eps * ball.steepest(gradient))


def uniform_noise(
    x: Tensor, *, eps: float, norm: str = "inf", clamp: tuple[float, float] | None = None, seed: int = 0
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


class Ball:
    """The points that an attack may reach: within eps of each sample in a norm, and between two bounds.

    Args:
        x: the centres, `(batch, ...)`.
        eps: the radius.
        norm: "inf" or "2".
        clamp: smallest and largest value of an entry, or None.
    """

    def __init__(self, x: Tensor, eps: float, norm: str, clamp: tuple[float, float] | None):
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                f"x is a floating-point tensor (batch, features, ...), got {x.dtype} of shape {tuple(x.shape)}"
            )
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps is a finite number of at least 0, got {eps}")
        if norm not in ("inf", "2"):
            raise ValueError(f"norm is 'inf' or '2', got {norm!r}")
        if not x.isfinite().all():
            raise ValueError("x has values that are not finite")
        if clamp is not None:
            low, high = clamp
            if not low < high:
                raise ValueError(f"clamp is (smallest, largest) value of an input, got {clamp}")
            if x.numel() and not low <= x.min() <= x.max() <= high:
                raise ValueError(f"x goes from {x.min():g} to {x.max():g}, outside of clamp={clamp}")
        self.x, self.eps, self.norm, self.clamp = x.detach(), eps, norm, clamp

    def steepest(self, gradient: Tensor) -> Tensor:
        """Returns the direction of length 1 in which the loss rises fastest, 0 where the gradient is 0."""
        if self.norm == "inf":
            return gradient.sign()
        # Divided by the largest entry first: the squares of a saturated network's gradient would underflow to 0.
        tiny = torch.finfo(gradient.dtype).tiny
        flat = gradient.flatten(1)
        flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=tiny)
        return (flat / flat.norm(dim=1, keepdim=True).clamp(min=tiny)).view_as(gradient)

    def project(self, candidate: Tensor) -> Tensor:
        """Returns the nearest points of the ball, then clamped, which brings them nearer to their centres."""
        if self.norm == "inf":
            candidate = torch.minimum(torch.maximum(candidate, self.x - self.eps), self.x + self.eps)
        else:
            change = candidate - self.x
            length = change.flatten(1).norm(dim=1).clamp(min=torch.finfo(change.dtype).tiny)
            candidate = self.x + change * _per_sample((self.eps / length).clamp(max=1), change)
        return candidate if self.clamp is None else candidate.clamp(*self.clamp)

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Draws a point for each sample, uniform in the ball, then clamped; on the CPU, the same for every device."""
        if self.norm == "inf":
            change = 2 * torch.rand(self.x.shape, generator=generator) - 1
        else:
            change = torch.randn(self.x.shape, generator=generator)
            radius = torch.rand(len(change), generator=generator) ** (1 / change[0].numel())
            change = change * _per_sample(radius / change.flatten(1).norm(dim=1), change)
        return self.project(self.x + self.eps * change.to(self.x))


class Objective:
    """The loss of each sample as a function of the input; the model has to be in evaluation mode.

    Args:
        model: wrapped in `Regularized` or not.
        target: what the loss compares with.
        loss: `loss(output, target)`, one value per sample; None: by the type of the targets.
        draws: 0: the mean code; n: the mean of the loss over n draws.
    """

    def __init__(self, model: nn.Module, target: Tensor, loss: Loss | None, draws: int):
        if not isinstance(draws, int) or draws < 0:
            raise ValueError(f"draws is a whole number of at least 0, got {draws!r}")
        self.network = unwrap(model)
        self.target = target
        self.loss = loss or (squared_error if target.is_floating_point() else cross_entropy)
        self.draws = draws

    @torch.no_grad()
    def value(self, x: Tensor, noise_seed: int) -> Tensor:
        """Returns the loss of each sample, `(batch,)`."""
        return self._losses(x, noise_seed)

    @torch.enable_grad()
    def gradient(self, x: Tensor, noise_seed: int) -> tuple[Tensor, Tensor]:
        """Returns the loss of each sample and its gradient: that of the sum, whatever the size of the batch."""
        x = x.detach().requires_grad_()
        losses = self._losses(x, noise_seed)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        return losses.detach(), gradient

    def _losses(self, x: Tensor, noise_seed: int) -> Tensor:
        if self.draws == 0:
            return self._checked(self.network(x))
        outputs = draw(self.network, x, draws=self.draws, seed=noise_seed)
        return torch.stack([self._checked(output) for output in outputs]).mean(0)

    def _checked(self, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"an attack needs a model that returns a tensor, this one returns {type(output).__name__}: wrap it in "
                "a module that picks the logits or the prediction"
            )
        losses = self.loss(output, self.target)
        if losses.shape != (len(output),):
            raise ValueError(
                f"the loss gives one value per sample, shape {(len(output),)}, for an output of shape "
                f"{tuple(output.shape)}, got {tuple(losses.shape)}: reduction='none', summed over all other axes"
            )
        return losses


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Returns the cross-entropy of each sample, in nats.

    Args:
        output: logits, `(batch, classes)`.
        target: class indices, `(batch,)`.

    Raises:
        ValueError: shapes that do not fit, a class that is none.

    Example:
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    if output.dim() != 2 or target.shape != output.shape[:1]:
        raise ValueError(
            f"cross-entropy needs logits (batch, classes) and targets (batch,), got {tuple(output.shape)} and "
            f"{tuple(target.shape)}: pass loss="
        )
    if target.numel() and not 0 <= target.min() <= target.max() < output.shape[1]:
        raise ValueError(f"targets go from {target.min()} to {target.max()}, there are {output.shape[1]} classes")
    return F.cross_entropy(output, target.long(), reduction="none")


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Returns the squared error of each sample, summed over its outputs.

    Args:
        output: predictions, `(batch, ...)`.
        target: of the same shape; `(batch,)` and `(batch, 1)` go together.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> squared_error(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
        tensor([0., 4.])
    """
    output, target = output.unsqueeze(-1).flatten(1), target.unsqueeze(-1).flatten(1)
    if output.shape != target.shape:
        raise ValueError(f"predictions {tuple(output.shape)} do not fit the targets {tuple(target.shape)}: pass loss=")
    return (output - target).square().sum(1)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Gives `(batch,)` the axes of a batch, to multiply or choose with."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def _next_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))
