"""A session: an expert intervenes on the concepts of each sample, one after another, in the order of a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.evaluation.concepts.interventions import concept_layer, intervention_groups
from ibreg.evaluation.concepts.predictions import accuracy, class_probabilities, predict_concepts


class Policy(NamedTuple):
    """The order in which interventions are made.

    Attributes:
        score: returns scores `(samples, interventions)`; the intervention with the largest is made on each sample.
        stochastic: whether the scores are random: they change with the seed, and costs do not matter.
    """

    score: Callable[[Session], Tensor]
    stochastic: bool = False


class Session:
    """The state of a model and its concepts while interventions are made, one for each sample per step.

    Args:
        model: a classifier with one concept layer, wrapped or not; one output stands for two classes.
        x: `(samples, ...)`.
        target: `(samples,)`, classes.
        labels: `(samples, concepts)`, the true concepts; NaN where unknown.
        groups: columns that each intervention sets together, by name; None: the groups of the specification.
        costs: `(interventions,)`, cost of each intervention; None: 1 each.
        values: `(samples, concepts)`, the labels that concepts are set to; None: the true ones. NaN is not set.
        training_logits: `(samples, concepts)`, required for a code of logits: see `intervention_values`.
        seed: random seed of policies with randomness.

    Attributes:
        concepts: the specification of the concepts.
        groups: as given.
        members: `(interventions, concepts)`, True where an intervention sets a column.
        mask: `(samples, concepts)`, True where a concept has been set.
        remaining: `(samples, interventions)`, True where an intervention has not been made.
        spent: `(samples,)`, cost of the interventions made so far.
        output: `(samples, outputs)`, after the interventions made so far.
        concept_probabilities: `(samples, concepts)`, after the interventions made so far.
        generator: for policies with randomness.

    Raises:
        ValueError: If the numbers of inputs, targets and labels differ, or labels do not fit the concepts.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        target: Tensor,
        labels: Tensor,
        *,
        groups: Mapping[str, Sequence[int]] | None = None,
        costs: Tensor | None = None,
        values: Tensor | None = None,
        training_logits: Tensor | None = None,
        seed: int = 0,
    ):
        self.concepts = concept_layer(model).concepts
        self.concepts.check_labels(labels)
        counts = [len(x), len(target), len(labels)]
        if len(set(counts)) > 1:
            raise ValueError(
                "inputs, targets and concept labels must be equally many, got {}, {} and {}".format(*counts)
            )
        self.model, self.x, self.target, self.labels = model, x, target, labels
        self.groups = intervention_groups(self.concepts, "group") if groups is None else groups
        self.members = torch.zeros(len(self.groups), len(self.concepts), dtype=torch.bool, device=x.device)
        for row, columns in zip(self.members, self.groups.values(), strict=True):
            row[list(columns)] = True
        self.costs = (torch.ones(len(self.groups)) if costs is None else costs).to(x.device)
        self.values = labels if values is None else values
        self.training_logits = training_logits
        self.generator = torch.Generator().manual_seed(seed)
        self.known = torch.stack([~labels[:, row].isnan().any(1) for row in self.members], 1)
        self.mask = torch.zeros(labels.shape, dtype=torch.bool, device=x.device)
        self.remaining = torch.ones_like(self.known)
        self.spent = torch.zeros(len(x), device=x.device)
        self._predict()

    @property
    def class_probabilities(self) -> Tensor:
        """Probabilities `(samples, classes)` after the interventions made so far."""
        return class_probabilities(self.output)

    @property
    def accuracy(self) -> float:
        """The accuracy after the interventions made so far, a fraction."""
        return accuracy(self.output, self.target)

    @property
    def spent_fraction(self) -> float:
        """The mean cost of the interventions made so far, as a fraction of the cost of all."""
        return float(self.spent.mean() / self.costs.sum())

    def outcome(self, mask: Tensor, values: Tensor) -> Tensor:
        """Return class probabilities `(samples, classes)` as they would be if further concepts were set.

        Args:
            mask: `(samples, concepts)`, True where a concept would be set.
            values: `(samples, concepts)`, the labels that they would be set to.
        """
        values = torch.where(mask, values, self.values)
        predicted = predict_concepts(
            self.model, self.x, mask=self.mask | mask, labels=values, training_logits=self.training_logits
        )
        return class_probabilities(predicted.output)

    def choose(self, policy: Policy) -> Tensor:
        """Return the index of the remaining intervention with the largest score for each sample, `(samples,)`.

        Scores are divided by the costs (negative ones multiplied), unless they are random. Interventions whose true
        labels are unknown come last, in their own order.
        """
        scores = policy.score(self)
        if not policy.stochastic:
            scores = torch.where(scores > 0, scores / self.costs, scores * self.costs)
        labeled = self.remaining & self.known
        candidates = torch.where(labeled.any(1, keepdim=True), labeled, self.remaining)
        return torch.where(self.known, scores, 0).masked_fill(~candidates, -torch.inf).argmax(1)

    def intervene(self, chosen: Tensor) -> None:
        """Make one intervention on each sample.

        Args:
            chosen: `(samples,)`, indices of interventions.
        """
        self.remaining &= ~F.one_hot(chosen, len(self.groups)).bool()
        self.mask |= self.members[chosen]
        self.spent += self.costs[chosen]
        self._predict()

    def _predict(self) -> None:
        predicted = predict_concepts(
            self.model, self.x, mask=self.mask, labels=self.values, training_logits=self.training_logits
        )
        self.output, self.concept_probabilities = predicted.output, predicted.values
