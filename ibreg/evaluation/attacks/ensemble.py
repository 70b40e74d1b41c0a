"""AutoAttack, the ensemble of Croce and Hein 2020 (arXiv 2003.01690): four attacks without a step size to tune.

The attacks are those of the authors, from the package pyautoattack (`pip install "ibreg[attacks]"`), with the interface
of `ibreg.evaluation.attacks.gradient`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.evaluation.attacks.ball import Ball, per_sample
from ibreg.evaluation.attacks.gradient import undisturbed
from ibreg.evaluation.attacks.objective import Objective, Worst, check_targets
from ibreg.prediction import predict_samples

STANDARD = ("apgd_ce", "apgd_targeted", "fab_targeted", "square")

Search = Callable[[Tensor, Tensor], Tensor]  # inputs in [0, 1] and classes -> attacked inputs


def attack_ensemble(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    norm: str | float = "inf",
    attacks: Sequence[str] = STANDARD,
    steps: int = 100,
    queries: int = 5000,
    expectation: int = 0,
    clamp: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Tensor:
    """Runs one attack after another, each on the samples that withstood all attacks before it.

    Args:
        model: a classifier, wrapped in `Regularized` or not, which returns logits.
        x: `(batch, ...)`; for "square" images, `(batch, channels, height, width)`.
        target: classes, `(batch,)`.
        eps: radius of the ball around each sample, in units of the input.
        norm: "inf" or "2".
        attacks: "apgd_ce" (steepest ascent with momentum and halving steps on the cross-entropy), "apgd_targeted"
            (the same towards the nine most probable other classes, on a ratio of logits; needs at least four classes),
            "fab_targeted" (nearest point beyond the boundary to these classes), "square" (random search, which needs no
            gradient, so that masked gradients do not mislead it). The standard is all four, in this order.
        steps: number of steps of each gradient attack and class.
        queries: number of evaluations of the random search.
        expectation: 0: the mean code; n: the logarithm of the mean softmax over n Monte Carlo samples, which are new
            for each evaluation.
        clamp: smallest and largest value of an input; these attacks need both.
        seed: seed of random starts and Monte Carlo samples.

    Returns:
        Inputs of the shape of `x`: points that fool the classifier, else `x` itself.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If an attack is unknown, an argument is out of range, inputs are outside of `clamp`, targets or
            classes do not fit, or the model has no stochastic bottleneck to sample.

    Warns:
        UserWarning: If `expectation` is 1.

    Example:
        >>> attacked = attack_ensemble(nn.Linear(3, 4), torch.rand(2, 3), torch.tensor([0, 1]), eps=0.1,
        ...                            attacks=["apgd_ce"], steps=5)  # doctest: +SKIP
    """
    for name, value in (("steps", steps), ("queries", queries)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    ball = Ball(x, eps, norm, clamp)
    check_targets(x, target)
    objective = Objective(model, target, expectation=expectation)
    if not objective.has_classes:
        raise ValueError(f"the target must be classes, integers (batch,), got {target.dtype}")
    with undisturbed(model, x, seed), _without_gradients_of_parameters(model):
        worst = Worst(ball.x)
        worst.meet(ball.x, objective.judge(ball.x, seed), torch.arange(len(x), device=x.device))
        classes = objective.network(ball.x[:1]).shape[1]
        check_ensemble(attacks, norm=ball.norm, shape=x.shape[1:], classes=classes, clamp=clamp)
        low, width = clamp[0], clamp[1] - clamp[0]
        searches = _searches(
            _OnUnitBox(objective.network, low, width, expectation, x.dtype),
            classes=classes,
            norm="Linf" if ball.norm == "inf" else "L2",
            eps=eps / width,
            steps=steps,
            queries=queries,
            seed=seed,
            device=x.device,
        )
        for name in attacks:
            _attack_unfooled(searches[name], ball, objective, worst, low=low, width=width, seed=seed)
    return worst.x


def _attack_unfooled(
    search: Search, ball: Ball, objective: Objective, worst: Worst, *, low: float, width: float, seed: int
) -> None:
    """Attacks the samples that withstood all attacks before; a point counts if it fools the classifier in the ball."""
    rows = (~worst.fooled).nonzero().squeeze(1)
    if len(rows) == 0:
        return
    x = ball.x[rows]
    attacked = search(((x - low) / width).contiguous(), objective.target[rows].long()).detach()
    attacked = ball.project(low + width * attacked.to(x), rows)
    judgement = objective.judge(attacked, seed, rows)
    worst.meet(torch.where(per_sample(judgement.fooled, x), attacked, x), judgement, rows)


def check_ensemble(
    attacks: Sequence[str], *, norm: str, shape: Sequence[int], classes: int, clamp: tuple[float, float] | None
) -> None:
    """Checks that attacks of the ensemble can run.

    Args:
        attacks: names of the attacks.
        norm: "inf" or "2".
        shape: shape of an input, without the batch.
        classes: number of classes.
        clamp: smallest and largest value of an input, or None.

    Raises:
        ImportError: If the package is not installed.
        ValueError: If an attack is unknown, or needs other inputs or more classes.
    """
    if not attacks or set(attacks) - set(STANDARD):
        raise ValueError(f"attacks must be some of {', '.join(STANDARD)}, got {list(attacks)}")
    if clamp is None:
        raise ValueError("these attacks need bounds of the inputs, clamp=(smallest, largest), as images have")
    if "square" in attacks and len(shape) != 3:
        raise ValueError(f"square needs images (channels, height, width), got inputs {tuple(shape)}: leave it out")
    if "square" in attacks and norm == "2" and not _tiles_fit(*shape[1:]):
        raise ValueError(
            f"square of pyautoattack does not run on images of {shape[1]} x {shape[2]} with norm 2: leave it out"
        )
    if "apgd_targeted" in attacks and classes < 4:
        raise ValueError(f"apgd_targeted needs at least four classes, got {classes}: leave it out")
    if find_spec("pyautoattack") is None:
        raise ImportError('the ensemble needs the package pyautoattack: pip install "ibreg[attacks]"')


def _tiles_fit(height: int, width: int) -> bool:
    """Whether the tiles that square starts with, a fifth of the height, end within the image."""
    tile = height // 5
    first = (height - 5 * tile) // 2
    # A tile of a single pixel may begin beyond the edge, where it is empty.
    return tile == 1 or (tile > 1 and all(first + side // tile * tile <= side for side in (height, width)))


def _searches(
    network: nn.Module,
    *,
    classes: int,
    norm: str,
    eps: float,
    steps: int,
    queries: int,
    seed: int,
    device: torch.device,
) -> dict[str, Search]:
    """Builds the attacks by name."""
    apgd, fab, square = (import_module(f"pyautoattack.{name}") for name in ("autopgd_base", "fab_pt", "square"))
    common: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed, "device": device}
    by_gradient: dict[str, Any] = {**common, "n_iter": steps}
    by_momentum = {**by_gradient, "logger": logging.getLogger(__name__)}
    targets = min(9, classes - 1)
    return {
        "apgd_ce": apgd.APGDAttack(network, loss="ce", **by_momentum).perturb,
        "apgd_targeted": apgd.APGDAttack_targeted(network, n_target_classes=targets, **by_momentum).perturb,
        "fab_targeted": fab.FABAttack_PT(network, targeted=True, n_target_classes=targets, **by_gradient).perturb,
        "square": square.SquareAttack(network, n_queries=queries, resc_schedule=False, **common).perturb,
    }


class _OnUnitBox(nn.Module):
    """A classifier of inputs in [0, 1], the range in which these attacks search."""

    def __init__(self, network: nn.Module, low: float, width: float, expectation: int, dtype: torch.dtype):
        super().__init__()
        self.network, self.low, self.width, self.expectation, self.dtype = network, low, width, expectation, dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.low + self.width * x.to(self.dtype)
        if self.expectation == 0:
            logits = self.network(x).float()
        else:
            samples = predict_samples(self.network, x, draws=self.expectation).float().log_softmax(2)
            logits = samples.logsumexp(0) - math.log(self.expectation)
        # A gradient of 0 where none reaches the input, which these attacks treat as an error.
        return logits + 0 * x.float().flatten(1).sum(1, keepdim=True)


@contextmanager
def _without_gradients_of_parameters(model: nn.Module) -> Iterator[None]:
    """Freezes the parameters inside the block, since FAB calls `backward`, which would change their gradients."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
