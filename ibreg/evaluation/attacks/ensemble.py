"""The strong ensemble of Croce and Hein 2020 (arXiv 2003.01690): four attacks without a step size to tune.

They are the authors' own, from the package pyautoattack (`pip install "ibreg[attacks]"`), behind the interface of
`ibreg.evaluation.attacks.gradient`. What survives them survives a good deal; what `pgd` finds and they do not, or the
other way round, is worth a look.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.evaluation.attacks.ball import Ball, per_sample
from ibreg.evaluation.attacks.gradient import undisturbed
from ibreg.evaluation.attacks.objective import Objective, Worst, check_targets
from ibreg.prediction import predict_samples

STANDARD = ("apgd_ce", "apgd_targeted", "fab_targeted", "square")


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
    """Runs one attack after another, each on the samples that stood all before it.

    Args:
        model: a classifier, wrapped in `Regularized` or not, which returns logits.
        x: `(batch, ...)`; for "square" images, `(batch, channels, height, width)`.
        target: classes, `(batch,)`.
        eps: radius of the ball around each sample, in units of the input.
        norm: "inf" or "2".
        attacks: "apgd_ce" (steepest ascent with momentum and halving steps on the cross-entropy), "apgd_targeted"
            (the same towards the nine likeliest other classes, on a ratio of logits; four classes at least),
            "fab_targeted" (nearest point beyond the boundary to these classes), "square" (random search, which needs no
            gradient and so is not misled by a masked one). The standard is all four, in this order.
        steps: of each gradient attack and class.
        queries: evaluations of the random search.
        expectation: 0: the mean code; n: the logarithm of the mean softmax over n draws, new ones for each evaluation.
        clamp: smallest and largest value of an input; these attacks need both.
        seed: of random starts and draws.

    Returns:
        Inputs of the shape of `x`: what fooled the classifier, else `x` itself.

    Raises:
        ImportError: the package is not installed.
        ValueError: an unknown attack, an argument out of range, inputs outside of `clamp`, targets or classes that do
            not fit, draws of a model without a stochastic bottleneck.

    Warns:
        UserWarning: `expectation=1`.

    Example:
        >>> attacked = attack_ensemble(nn.Linear(3, 4), torch.rand(2, 3), torch.tensor([0, 1]), eps=0.1,
        ...                            attacks=["apgd_ce"], steps=5)  # doctest: +SKIP
    """
    for name, value in (("steps", steps), ("queries", queries)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is an integer of at least 1, got {value!r}")
    ball = Ball(x, eps, norm, clamp)
    check_targets(x, target)
    objective = Objective(model, target, expectation=expectation)
    if not objective.has_classes:
        raise ValueError(f"these attacks need classes, integers (batch,), as target, got {target.dtype}")
    with undisturbed(model, x, seed), _without_gradients_of_parameters(model):
        worst = Worst(ball.x)
        worst.meet(ball.x, objective.judge(ball.x, seed), torch.arange(len(x), device=x.device))
        classes = objective.network(ball.x[:1]).shape[1]
        check_ensemble(attacks, norm=ball.norm, shape=x.shape[1:], classes=classes, clamp=clamp)
        low, width = clamp[0], clamp[1] - clamp[0]
        network = _OnUnitBox(objective.network, low, width, expectation, x.dtype)
        searches = _searches(
            network,
            classes=classes,
            norm="Linf" if ball.norm == "inf" else "L2",
            eps=eps / width,
            steps=steps,
            queries=queries,
            seed=seed,
            device=x.device,
        )
        for name in attacks:
            rows = (~worst.fooled).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            found = searches[name](((ball.x[rows] - low) / width).contiguous(), target[rows].long()).detach()
            found = ball.project(low + width * found.to(x), rows)
            judgement = objective.judge(found, seed, rows)
            worst.meet(torch.where(per_sample(judgement.fooled, x), found, ball.x[rows]), judgement, rows)
    return worst.x


def check_ensemble(
    attacks: Sequence[str], *, norm: str, shape: Sequence[int], classes: int, clamp: tuple[float, float] | None
) -> None:
    """Checks that attacks of the ensemble can run.

    Args:
        attacks: their names.
        norm: "inf" or "2".
        shape: of an input, without the batch.
        classes: of the classifier.
        clamp: smallest and largest value of an input, or None.

    Raises:
        ImportError: the package is not installed.
        ValueError: an unknown attack, or one that these inputs or classes do not allow.
    """
    if not attacks or set(attacks) - set(STANDARD):
        raise ValueError(f"attacks are some of {', '.join(STANDARD)}, got {list(attacks)}")
    if clamp is None:
        raise ValueError("these attacks need bounds of the inputs, clamp=(smallest, largest), as images have")
    if "square" in attacks and len(shape) != 3:
        raise ValueError(f"square needs images (channels, height, width), got inputs {tuple(shape)}: leave it out")
    if "square" in attacks and norm == "2" and not _tiles_fit(*shape[1:]):
        raise ValueError(
            f"square of pyautoattack does not run on images of {shape[1]} x {shape[2]} with norm 2: leave it out"
        )
    if "apgd_targeted" in attacks and classes < 4:
        raise ValueError(f"apgd_targeted needs four classes, there are {classes}: leave it out")
    if find_spec("pyautoattack") is None:
        raise ImportError('the ensemble is that of the package pyautoattack: pip install "ibreg[attacks]"')


def _tiles_fit(height: int, width: int) -> bool:
    """Whether the tiles of a fifth of the height, with which square starts, end within the image."""
    tile = height // 5
    first = (height - 5 * tile) // 2
    # One of a single pixel may begin beyond the edge, where nothing is.
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
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Builds the attacks; each takes inputs in [0, 1] and classes, and returns inputs."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    common: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed, "device": device}
    by_gradient: dict[str, Any] = {**common, "n_iter": steps}
    targets = min(9, classes - 1)
    logger = logging.getLogger(__name__)
    return {
        "apgd_ce": APGDAttack(network, loss="ce", logger=logger, **by_gradient).perturb,
        "apgd_targeted": APGDAttack_targeted(network, n_target_classes=targets, logger=logger, **by_gradient).perturb,
        "fab_targeted": FABAttack_PT(network, targeted=True, n_target_classes=targets, **by_gradient).perturb,
        "square": SquareAttack(network, n_queries=queries, resc_schedule=False, **common).perturb,
    }


class _OnUnitBox(nn.Module):
    """A classifier of inputs in [0, 1], which is where these attacks look."""

    def __init__(self, network: nn.Module, low: float, width: float, expectation: int, dtype: torch.dtype):
        super().__init__()
        self.network, self.low, self.width, self.expectation, self.dtype = network, low, width, expectation, dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.low + self.width * x.to(self.dtype)
        if self.expectation == 0:
            logits = self.network(x).float()
        else:
            each = predict_samples(self.network, x, draws=self.expectation).float().log_softmax(2)
            logits = each.logsumexp(0) - math.log(self.expectation)
        # A gradient of 0 where the path from the input is cut, which these attacks take for an error.
        return logits + 0 * x.float().flatten(1).sum(1, keepdim=True)


@contextmanager
def _without_gradients_of_parameters(model: nn.Module) -> Iterator[None]:
    """FAB calls `backward`, which would add to the gradients of parameters."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
