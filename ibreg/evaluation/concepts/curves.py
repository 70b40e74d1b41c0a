"""Intervention curves: accuracy against the number of interventions, for any policy, averaged over random orders.

Koh et al. 2020 (arXiv 2007.04612, section 5); policies: see `ibreg.evaluation.concepts.policies`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ibreg.evaluation.concepts.interventions import (
    concept_layer,
    intervention_costs,
    intervention_groups,
    wrong_labels,
)
from ibreg.evaluation.concepts.policies import POLICIES
from ibreg.evaluation.concepts.session import Policy, Session
from ibreg.evaluation.intervals import mean_interval
from ibreg.layers.constraints import OneOf

# An interval over random orders takes several of them.
LEAST_ORDERS = 5


@dataclass(frozen=True)
class InterventionCurve:
    """Accuracy against the number of interventions.

    Attributes:
        accuracy: `(orders, interventions + 1)`, fractions; the first is the accuracy without interventions.
        spent: `(interventions + 1,)`, the mean cost so far, as a fraction of the cost of all interventions.
    """

    accuracy: np.ndarray
    spent: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over orders, `(interventions + 1,)`."""
        return self.accuracy.mean(0)

    @property
    def half_width(self) -> np.ndarray:
        """Half the width of the 95 % interval of that mean over orders (Student's t); 0 for a single order."""
        interval = mean_interval(self.accuracy)
        return np.nan_to_num(interval.high - interval.mean)

    @property
    def area(self) -> float:
        """The area under the mean accuracy as a function of the fraction of the cost."""
        return float(np.trapezoid(self.mean, self.spent))

    def rows(self) -> list[dict[str, float]]:
        """Return one row per number of interventions, for a csv file."""
        points = zip(self.spent, self.mean, self.mean - self.half_width, self.mean + self.half_width, strict=True)
        columns = ("spent", "accuracy", "low", "high")
        return [
            {"interventions": count, **dict(zip(columns, map(float, point), strict=True))}
            for count, point in enumerate(points)
        ]


@torch.no_grad()
def intervention_curve(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    policy: str = "random",
    by: str = "group",
    costs: Mapping[str, float] | None = None,
    wrong: bool = False,
    orders: int = LEAST_ORDERS,
    training_logits: Tensor | None = None,
    seed: int = 0,
) -> InterventionCurve:
    """Measure the accuracy while interventions are made on each sample, one after another, in the order of a policy.

    Args:
        model: a classifier with one concept layer, wrapped or not; one output stands for two classes.
        x: `(samples, ...)`.
        target: `(samples,)`, classes.
        labels: `(samples, concepts)`, the true concepts; where they are NaN nothing is set, and those come last.
        policy: a name in `policies.POLICIES`.
        by: "group": an intervention sets all concepts of a group; "concept": a single one, or a categorical group.
        costs: cost of an intervention, by the name of its group or concept, above 0; 1 where none is given. All
            policies but random divide the score of an intervention by its cost.
        wrong: whether concepts are set to incorrect values instead of the truth; a model that uses its concepts fails.
        orders: number of random orders of a policy with randomness, at least 5. Other policies have a single order.
        training_logits: `(samples, concepts)`, for a code of logits: `predict_concepts(model, x_train).logits`.
        seed: random seed of the orders and of the incorrect values.

    Raises:
        ValueError: If the policy, `by` or the name of a cost is unknown, there are fewer than 5 orders, or the shapes
            do not fit.
    """
    OneOf(POLICIES).check("policy", policy)
    if orders < LEAST_ORDERS:
        raise ValueError(f"orders must be at least {LEAST_ORDERS} for an interval, got {orders}")
    concepts = concept_layer(model).concepts
    concepts.check_labels(labels)
    groups = intervention_groups(concepts, by)
    prices = intervention_costs(groups, costs)
    values = wrong_labels(concepts, labels, seed=seed) if wrong else labels
    courses = []
    for order in range(orders if POLICIES[policy].stochastic else 1):
        session = Session(
            model, x, target, labels, groups=groups, costs=prices, values=values, training_logits=training_logits,
            seed=seed + order,
        )  # fmt: skip
        courses.append(list(_course(session, POLICIES[policy])))
    accuracy, spent = np.moveaxis(np.array(courses), -1, 0)
    return InterventionCurve(accuracy, spent.mean(0))


def _course(session: Session, policy: Policy) -> Iterator[tuple[float, float]]:
    """Yield accuracy and fraction of the cost after 0, 1, ... interventions on each sample."""
    yield session.accuracy, session.spent_fraction
    while session.remaining.any():
        session.intervene(session.choose(policy))
        yield session.accuracy, session.spent_fraction
