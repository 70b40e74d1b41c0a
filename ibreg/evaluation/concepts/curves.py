"""Accuracy against the number of corrected concepts, for any policy: never the best of several orders, but their mean.

Koh et al. 2020 (arXiv 2007.04612, section 5); policies: see `ibreg.evaluation.concepts.policies`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.evaluation.concepts.interventions import class_probabilities, concept_layer, find_concepts, wrong_labels
from ibreg.evaluation.concepts.policies import POLICIES, Situation
from ibreg.layers.concept.specification import Concepts

# An interval over orders takes some of them.
LEAST_ORDERS = 5


@dataclass(frozen=True)
class InterventionCurve:
    """Accuracy against the number of corrected concepts.

    Attributes:
        accuracy: `(orders, corrections + 1)`, fractions; the first is that without corrections.
        spent: `(corrections + 1,)`, the mean cost so far, as a share of that of all.
    """

    accuracy: np.ndarray
    spent: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over orders, `(corrections + 1,)`."""
        return self.accuracy.mean(0)

    @property
    def half_width(self) -> np.ndarray:
        """Half of the 95 % interval of that mean over orders (Student's t); 0 for a policy that knows one order."""
        orders = len(self.accuracy)
        if orders == 1:
            return np.zeros_like(self.spent)
        return student_t.ppf(0.975, orders - 1) * self.accuracy.std(0, ddof=1) / math.sqrt(orders)

    @property
    def area(self) -> float:
        """The area under the mean over the share of the cost: the mean accuracy along the way."""
        return float(np.trapezoid(self.mean, self.spent))

    def rows(self) -> list[dict[str, float]]:
        """Returns a row for each number of corrections, for a csv file."""
        numbers = zip(self.spent, self.mean, self.mean - self.half_width, self.mean + self.half_width, strict=True)
        return [
            {"corrected": count, "spent": float(spent), "accuracy": float(mean), "low": float(low), "high": float(high)}
            for count, (spent, mean, low, high) in enumerate(numbers)
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
    """Corrects the concepts of each sample one after another, in the order of a policy, and measures the accuracy.

    Args:
        model: a classifier with one concept layer, wrapped or not; one output stands for two classes.
        x: `(samples, ...)`.
        target: `(samples,)`, classes.
        labels: `(samples, concepts)`, the truth; where it is NaN nothing is corrected, and those come last.
        policy: a name in `policies.POLICIES`.
        by: "group": all concepts of a group are one correction; "concept": each is one, but of a categorical group.
        costs: of a correction, by the name of its group or concept, above 0; others cost 1. A policy that weighs what
            corrections are worth weighs it by their cost.
        wrong: whether concepts are set to wrong values instead of the truth; a model that heeds its concepts fails.
        orders: how many orders a policy with randomness is run in, at least 5. Others are run in their one order.
        training_logits: `(samples, concepts)`, for a code of logits: `find_concepts(model, x_train).logits`.
        seed: of the orders and of the wrong values.

    Raises:
        ValueError: an unknown policy, `by` or name of a cost, fewer than 5 orders, shapes that do not fit.
    """
    if policy not in POLICIES:
        raise ValueError(f"no policy {policy!r}: it is one of {', '.join(POLICIES)}")
    if orders < LEAST_ORDERS:
        raise ValueError(f"orders={orders}: an interval takes {LEAST_ORDERS} or more")
    concepts = concept_layer(model).concepts
    concepts.check_labels(labels)
    if not len(x) == len(target) == len(labels):
        raise ValueError(f"{len(x)} inputs, {len(target)} targets, {len(labels)} concept labels: give as many of each")
    groups = corrections(concepts, by)
    prices = prices_of(groups, costs).to(x.device)
    set_to = wrong_labels(concepts, labels, seed=seed) if wrong else labels
    # Which columns a correction sets, and of which samples their truth is known.
    members = torch.zeros(len(groups), len(concepts), dtype=torch.bool, device=x.device)
    for place, columns in enumerate(groups.values()):
        members[place, list(columns)] = True
    known = torch.stack([~labels[:, those].isnan().any(1) for those in members], 1)
    score, random = POLICIES[policy]
    found, costs_of_orders = [], []
    for order in range(orders if random else 1):
        generator = torch.Generator().manual_seed(seed + order)
        mask = torch.zeros(labels.shape, dtype=torch.bool, device=x.device)
        left = torch.ones(len(x), len(groups), dtype=torch.bool, device=x.device)
        hits, spent = [], [torch.zeros(len(x), device=x.device)]
        for _ in range(len(groups) + 1):
            now = find_concepts(model, x, mask=mask, labels=set_to, training_logits=training_logits)
            classes = class_probabilities(now.output)
            hits.append(float((classes.argmax(1) == target).double().mean()))
            if not left.any():
                break

            def predict(further: Tensor, values: Tensor, mask: Tensor = mask) -> Tensor:
                labels = torch.where(further, values, set_to)
                after = find_concepts(model, x, mask=mask | further, labels=labels, training_logits=training_logits)
                return class_probabilities(after.output)

            noise = torch.rand(left.shape, generator=generator).to(x.device)
            scores = score(
                Situation(concepts, list(groups.values()), now.values, classes, labels, target, predict, noise)
            )
            if not random:  # worth per cost; what does harm does more of it for more
                scores = torch.where(scores > 0, scores / prices, scores * prices)
            scores = torch.where(left, torch.where(known, scores, -1e30), -torch.inf)
            chosen = F.one_hot(scores.argmax(1), len(groups)).bool()
            left &= ~chosen
            mask |= (chosen.unsqueeze(2) & members).any(1)
            spent.append(spent[-1] + chosen.float() @ prices)
        found.append(hits)
        costs_of_orders.append([float(each.mean() / prices.sum()) for each in spent])
    return InterventionCurve(np.array(found), np.mean(costs_of_orders, axis=0))


def corrections(concepts: Concepts, by: str) -> dict[str, tuple[int, ...]]:
    """Returns the columns that are corrected together, by name.

    Raises:
        ValueError: `by` is neither "group" nor "concept".

    Example:
        >>> corrections(Concepts.of([{"name": "a", "group": "g"}, {"name": "b", "group": "g"}]), "concept")
        {'a': (0,), 'b': (1,)}
    """
    if by not in ("group", "concept"):
        raise ValueError(f"by={by!r} is 'group' or 'concept'")
    found: dict[str, tuple[int, ...]] = {}
    for group, columns in concepts.members.items():
        if by == "group" or concepts.kinds[columns[0]] == "categorical":
            found[group] = columns
        else:
            found |= {concepts.names[column]: (column,) for column in columns}
    return found


def prices_of(groups: Mapping[str, Sequence[int]], costs: Mapping[str, float] | None) -> Tensor:
    """Returns the cost of each correction, 1 where none is given.

    Raises:
        ValueError: a cost of something else, or one that is not above 0.
    """
    unknown = set(costs or ()) - set(groups)
    if unknown:
        raise ValueError(f"costs name {', '.join(sorted(unknown))}, but corrections are {', '.join(groups)}")
    prices = [float((costs or {}).get(name, 1.0)) for name in groups]
    if not all(math.isfinite(price) and price > 0 for price in prices):
        raise ValueError(f"costs are finite numbers above 0, got {costs}")
    return torch.tensor(prices)
