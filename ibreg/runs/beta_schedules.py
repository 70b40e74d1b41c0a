"""Schedules of beta over the training steps, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from torch import nn

from ibreg import schedules
from ibreg.runs.config.section import Count, Positive, Section, one_of

SCHEDULES: dict[str, Callable[[BetaSchedule, str, nn.Module], schedules.Schedule | None]] = {
    "none": lambda section, method, model: None,
    "linear_warmup": lambda section, method, model: schedules.LinearWarmup(model, section.steps),
    "cosine": lambda section, method, model: schedules.Cosine(model, section.steps),
    "target_rate": lambda section, method, model: schedules.TargetRate(model, section.rate_of(method)),
}


class BetaSchedule(Section):
    """The schedule of beta over the training steps.

    Attributes:
        name: none keeps beta constant; linear_warmup raises it from 0; cosine lowers it to 0; target_rate holds a rate.
        steps: of linear_warmup and cosine.
        rate: target of target_rate in nats, or one for each bottleneck.
    """

    name: Annotated[str, *one_of(SCHEDULES)]
    steps: Count
    rate: Positive | dict[str, Positive]

    def rate_of(self, method: str) -> float:
        """Returns the target rate of a method."""
        return self.rate[method] if isinstance(self.rate, dict) else self.rate

    def build(self, method: str, model: nn.Module) -> schedules.Schedule | None:
        """Builds the schedule of a method; None for a constant beta."""
        return SCHEDULES[self.name](self, method, model)
