"""Sanity checks of robustness figures: signs of masked gradients.

Athalye et al. 2018 (arXiv 1802.05957, section 3.1) and Carlini et al. 2019 (arXiv 1902.06705). If a check fails, the
figures do not show that the model is robust: the attack may have failed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.evaluation.attacks.gradient import pgd, uniform_noise
from ibreg.prediction import predict

NEAR_ZERO = 0.01  # an accuracy of about 0, which allows for samples on which a sound search fails


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: property that is checked.
        passed: whether it holds, within two standard errors.
        figures: the accuracies that are compared, by attack.

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
    2. It is about 0 (0.01) where eps does not constrain the attack.
    3. Transferred attacks, made on another model, are not stronger than those made on this one.
    4. Noise alone is weaker than PGD at the largest eps, by more than chance unless PGD leaves nothing.

    All within two standard errors of a difference over the same samples,
    :math:`2 \sqrt{\operatorname{var}(r_i - r'_i) / n}` with r = 1 where the prediction is correct.

    Args:
        model: a classifier, wrapped in `Regularized` or not, which returns logits.
        surrogate: an independently trained classifier of the same task (the control, or another seed).
        x: `(samples, ...)`, some hundreds of them.
        target: classes, `(samples,)`.
        eps: radii, in units of the input, over which the accuracy falls clearly.
        norm: "inf" or "2".
        steps: numbers of steps; all but the last are used at the middle eps alone.
        clamp: smallest and largest value of an input; None: no limits.
        large_eps: a radius that does not constrain the attack; None: that of the whole box, which without `clamp` is
            the range of `x`.
        expectation: 0: predictions and gradients of the mean code; n: means over n Monte Carlo samples.
        batch_size: samples per batch.
        seed: seed of random starts and Monte Carlo samples.

    Returns:
        The four outcomes, in this order.

    Raises:
        ValueError: If there are no eps, steps or samples, targets are no classes, or as in
            `ibreg.evaluation.attacks.gradient.pgd`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(4, 3), torch.rand(100, 4)
        >>> target = model(x).argmax(1)
        >>> checks = sanity_checks(model, nn.Linear(4, 3), x, target, eps=[0.1, 0.2], steps=[1, 5])
        >>> [check.passed for check in checks]
        [True, True, True, True]
    """
    _check_arguments(x, target, eps, steps)
    if large_eps is None:
        large_eps = _radius_of_box(x, norm, clamp)
    subject = _Subject(model, x, target, {"norm": norm, "clamp": clamp}, expectation, batch_size, seed)
    eps, steps = sorted(eps), sorted(steps)
    middle = eps[len(eps) // 2]
    by_eps = {radius: subject.correct_under_pgd(radius, steps[-1]) for radius in eps}
    by_steps = {count: subject.correct_under_pgd(middle, count) for count in steps[:-1]}
    unconstrained = subject.correct_under_pgd(large_eps, steps[-1])
    transferred = subject.correct(subject.pgd(surrogate, eps[-1], steps[-1], expectation=0))
    noisy = subject.correct(uniform_noise(x, eps=eps[-1], seed=seed, **subject.ball))
    return [
        _never_rises(by_steps | {steps[-1]: by_eps[middle]}, by_eps, middle, steps[-1]),
        _falls_to_zero(unconstrained, large_eps),
        _own_is_strongest(by_eps[eps[-1]], transferred),
        _noise_is_weaker(by_eps[eps[-1]], noisy),
    ]


def _check_arguments(x: Tensor, target: Tensor, eps: Sequence[float], steps: Sequence[int]) -> None:
    if not eps or not steps or len(x) == 0:
        raise ValueError(f"the checks need some eps, steps and samples, got {list(eps)}, {list(steps)} and {len(x)}")
    if target.is_floating_point() or target.shape != x.shape[:1]:
        raise ValueError(
            f"target must be classes, integers {tuple(x.shape[:1])}, got {target.dtype} {tuple(target.shape)}"
        )


def _radius_of_box(x: Tensor, norm: str | float, clamp: tuple[float, float] | None) -> float:
    low, high = clamp if clamp is not None else (float(x.min()), float(x.max()))
    width = high - low
    return width if str(norm) == "inf" else width * math.sqrt(x[0].numel())


class _Subject:
    """The model that is checked, with its samples: attacks them and predicts, batch by batch."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        ball: Mapping[str, Any],
        expectation: int,
        batch_size: int,
        seed: int,
    ):
        self.model, self.x, self.target = model, x, target
        self.ball, self.expectation, self.seed = ball, expectation, seed
        self.batches = torch.arange(len(x)).split(batch_size)

    def pgd(self, model: nn.Module, eps: float, steps: int, expectation: int) -> Tensor:
        """Attacks the samples on a model."""
        options = {**self.ball, "eps": eps, "steps": steps, "expectation": expectation, "early_stop": expectation == 0}
        return torch.cat(
            [
                pgd(model, self.x[rows], self.target[rows], seed=self.seed + index, **options)
                for index, rows in enumerate(self.batches)
            ]
        )

    def correct(self, inputs: Tensor) -> Tensor:
        """Returns 1 where the prediction is correct, else 0, `(samples,)`."""
        predicted = [
            predict(self.model, inputs[rows], draws=self.expectation, seed=self.seed + index, mean="softmax").argmax(1)
            for index, rows in enumerate(self.batches)
        ]
        return (torch.cat(predicted) == self.target).double()

    def correct_under_pgd(self, eps: float, steps: int) -> Tensor:
        """Returns 1 where the prediction is correct under PGD, else 0, `(samples,)`."""
        return self.correct(self.pgd(self.model, eps, steps, self.expectation))


def _never_rises(by_steps: dict[int, Tensor], by_eps: dict[float, Tensor], eps: float, steps: int) -> Check:
    pairs = [pair for series in (by_steps, by_eps) for pair in pairwise(series.values())]
    figures = {f"{count} steps at eps {eps:g}": correct for count, correct in by_steps.items()}
    figures |= {f"{steps} steps at eps {radius:g}": correct for radius, correct in by_eps.items()}
    return Check(
        "accuracy never rises with steps or eps",
        all(_difference(more, less) <= 2 * _standard_error(more - less) for less, more in pairs),
        {name: float(correct.mean()) for name, correct in figures.items()},
    )


def _falls_to_zero(unconstrained: Tensor, eps: float) -> Check:
    accuracy = float(unconstrained.mean())
    return Check(
        "accuracy is about 0 at a large eps",
        accuracy <= NEAR_ZERO + 2 * _standard_error(unconstrained),
        {f"eps {eps:g}": accuracy},
    )


def _own_is_strongest(own: Tensor, transferred: Tensor) -> Check:
    return Check(
        "inputs made on another model are not stronger than those made on this one",
        _difference(own, transferred) <= 2 * _standard_error(own - transferred),
        {"transferred": float(transferred.mean()), "own": float(own.mean())},
    )


def _noise_is_weaker(own: Tensor, noisy: Tensor) -> Check:
    return Check(
        "noise alone is weaker than PGD",
        _difference(noisy, own) > 2 * _standard_error(noisy - own) or float(own.mean()) <= NEAR_ZERO,
        {"noise": float(noisy.mean()), "PGD": float(own.mean())},
    )


def _difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).mean())


def _standard_error(values: Tensor) -> float:
    return float(values.std(correction=0)) / math.sqrt(len(values))
