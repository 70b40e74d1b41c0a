"""Checks that a robustness figure has to pass before it is believed: signs of gradients that are masked.

Athalye et al. 2018 (arXiv 1802.05957, section 3.1) and Carlini et al. 2019 (arXiv 1902.06705). A model that fails one
is not robust by these figures: the attack may only have been blind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ibreg.evaluation.attacks.gradient import pgd, uniform_noise
from ibreg.prediction import predict

NEAR_ZERO = 0.01  # an accuracy that is about 0: it leaves room for samples on which an honest search gets stuck


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: what has to hold.
        passed: whether it does, within two standard errors.
        figures: the accuracies that it compares, by the attack.

    Example:
        >>> print(Check("noise alone is weaker than PGD", True, {"noise": 0.95, "PGD": 0.2}))
        passed: noise alone is weaker than PGD (noise 0.950, PGD 0.200)
    """

    name: str
    passed: bool
    figures: dict[str, float]

    def __str__(self) -> str:
        figures = ", ".join(f"{attack} {accuracy:.3f}" for attack, accuracy in self.figures.items())
        return f"{'passed' if self.passed else 'FAILED'}: {self.name} ({figures})"


def sanity_checks(
    model: nn.Module,
    surrogate: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    eps: Sequence[float],
    norm: str | float = "inf",
    steps: Sequence[int] = (1, 10, 40),
    clamp: tuple[float, float] | None = (0.0, 1.0),
    large_eps: float | None = None,
    expectation: int = 0,
    batch_size: int = 250,
    seed: int = 0,
) -> list[Check]:
    r"""Runs the four checks on one classifier and some samples.

    1. The accuracy under PGD never rises with more steps or a larger eps.
    2. It is about 0 (0.01) where eps leaves the attack free.
    3. Inputs made on another model are not worse than those made on this one.
    4. Noise alone is weaker than PGD at the largest eps, by more than chance unless PGD leaves nothing.

    All within two standard errors of a difference over the same samples,
    :math:`2 \sqrt{\operatorname{var}(r_i - r'_i) / n}` with r = 1 where the classifier is right.

    Args:
        model: a classifier, wrapped in `Regularized` or not, which returns logits.
        surrogate: another one of the same task, trained by itself (the control, or another seed).
        x: `(samples, ...)`, some hundreds of them.
        target: classes, `(samples,)`.
        eps: radii, in units of the input, such that the accuracy falls well over them.
        norm: "inf" or "2".
        steps: numbers of steps; all but the last are tried at the middle eps alone.
        clamp: smallest and largest value of an input; None: no limit.
        large_eps: a radius that leaves the attack free; None: that of the whole box, without one of the range of `x`.
        expectation: 0: the model with the mean code; n: predictions and gradients are means over n draws.
        batch_size: samples at a time.
        seed: of random starts and draws.

    Returns:
        The four outcomes, in this order.

    Raises:
        ValueError: no eps, steps or samples, targets that are no classes, or as in
            `ibreg.evaluation.attacks.gradient.pgd`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(4, 3), torch.rand(100, 4)
        >>> target = model(x).argmax(1)
        >>> checks = sanity_checks(model, nn.Linear(4, 3), x, target, eps=[0.1, 0.2], steps=[1, 5])
        >>> [check.passed for check in checks]
        [True, True, True, True]
    """
    if not eps or not steps or len(x) == 0:
        raise ValueError(f"the checks need some eps, steps and samples, got {list(eps)}, {list(steps)} and {len(x)}")
    if target.is_floating_point() or target.shape != x.shape[:1]:
        raise ValueError(
            f"the checks are for classes, integers {tuple(x.shape[:1])}, got {target.dtype} {target.shape}"
        )
    if large_eps is None:
        low, high = clamp if clamp is not None else (float(x.min()), float(x.max()))
        width = high - low
        large_eps = width if str(norm) == "inf" else width * math.sqrt(x[0].numel())
    rows = torch.arange(len(x)).split(batch_size)

    def attack(attacked: nn.Module, eps: float, steps: int, expectation: int) -> Tensor:
        options = {"norm": norm, "clamp": clamp, "expectation": expectation, "early_stop": expectation == 0}
        return torch.cat(
            [
                pgd(attacked, x[some], target[some], eps=eps, steps=steps, seed=seed + place, **options)
                for place, some in enumerate(rows)
            ]
        )

    def right(inputs: Tensor) -> Tensor:
        decided = [
            predict(model, inputs[some], draws=expectation, seed=seed + place, mean="softmax").argmax(1)
            for place, some in enumerate(rows)
        ]
        return (torch.cat(decided) == target).double()

    eps, steps = sorted(eps), sorted(steps)
    middle = eps[len(eps) // 2]
    by_eps = {each: right(attack(model, each, steps[-1], expectation)) for each in eps}
    by_steps = {each: right(attack(model, middle, each, expectation)) for each in steps[:-1]}
    free = right(attack(model, large_eps, steps[-1], expectation))
    transferred = right(attack(surrogate, eps[-1], steps[-1], 0))
    noisy = right(uniform_noise(x, eps=eps[-1], norm=norm, clamp=clamp, seed=seed))
    white_box = by_eps[eps[-1]]
    return [
        _never_rises(by_steps | {steps[-1]: by_eps[middle]}, by_eps, middle, steps[-1]),
        Check(
            "accuracy is about 0 at a large eps",
            float(free.mean()) <= NEAR_ZERO + 2 * _standard_error(free),
            {f"eps {large_eps:g}": float(free.mean())},
        ),
        Check(
            "inputs made on another model are not stronger than those made on this one",
            _difference(white_box, transferred) <= 2 * _standard_error(white_box - transferred),
            {"transferred": float(transferred.mean()), "own": float(white_box.mean())},
        ),
        Check(
            "noise alone is weaker than PGD",
            _difference(noisy, white_box) > 2 * _standard_error(noisy - white_box)
            or float(white_box.mean()) <= NEAR_ZERO,
            {"noise": float(noisy.mean()), "PGD": float(white_box.mean())},
        ),
    ]


def _never_rises(by_steps: dict[int, Tensor], by_eps: dict[float, Tensor], eps: float, steps: int) -> Check:
    pairs = [pair for each in (by_steps, by_eps) for pair in pairwise(each.values())]
    figures = {f"{n} steps at eps {eps:g}": right for n, right in by_steps.items()}
    figures |= {f"{steps} steps at eps {radius:g}": right for radius, right in by_eps.items()}
    return Check(
        "accuracy never rises with steps or eps",
        all(_difference(more, less) <= 2 * _standard_error(more - less) for less, more in pairs),
        {name: float(right.mean()) for name, right in figures.items()},
    )


def _difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).mean())


def _standard_error(values: Tensor) -> float:
    return float(values.std(correction=0)) / math.sqrt(len(values))
