r"""Which concept to ask an expert for next: policies that score the corrections of each sample.

random; uncertainty, the entropy of the concept (UCP, Shin et al. 2023, arXiv 2302.14260); expected gain, by which the
entropy of the class is expected to fall (EUDTP there); CooP, uncertainty and expected change of the predicted class
together (Chauhan et al. 2023, arXiv 2212.07430); and greedy, an oracle that knows the truth, as a bound.

.. math::
    \mathrm{gain}(c) = H(y) - \sum_v p(c = v)\, H(y \mid c := v), \qquad
    \mathrm{CooP}(c) = H(c) + \sum_v p(c = v)\, |p(\hat y \mid c := v) - p(\hat y)|
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ibreg.layers.concept.specification import Concepts


@dataclass(frozen=True)
class Situation:
    """What is known before the next correction of each sample is chosen.

    Attributes:
        concepts: what the columns are.
        corrections: the columns of each correction that can be made.
        probabilities: `(samples, concepts)`, of the concepts as they stand now.
        classes: `(samples, classes)`, probabilities as they stand now.
        labels: `(samples, concepts)`, the truth; for oracles alone.
        target: `(samples,)`, the true class; for oracles alone.
        predict: `(mask, values)`, both `(samples, concepts)` -> probabilities of classes if these were set too.
        noise: `(samples, corrections)`, uniform in [0, 1).
    """

    concepts: Concepts
    corrections: Sequence[Sequence[int]]
    probabilities: Tensor
    classes: Tensor
    labels: Tensor
    target: Tensor
    predict: Callable[[Tensor, Tensor], Tensor]
    noise: Tensor


class Policy(NamedTuple):
    """A policy.

    Attributes:
        score: `(samples, corrections)`, what a correction is worth; of each sample the largest is made.
        random: whether it makes other choices in another order.
    """

    score: Callable[[Situation], Tensor]
    random: bool = False


def random(situation: Situation) -> Tensor:
    """Scores at random, another order for each sample."""
    return situation.noise


def uncertainty(situation: Situation) -> Tensor:
    """Scores by the entropy of the concepts, nats, summed over a group; a continuous concept has none."""
    p = situation.probabilities
    binary = torch.tensor([kind == "binary" for kind in situation.concepts.kinds], device=p.device)
    categorical = torch.tensor([kind == "categorical" for kind in situation.concepts.kinds], device=p.device)
    entropies = torch.where(
        binary, torch.special.entr(p) + torch.special.entr(1 - p), torch.where(categorical, torch.special.entr(p), 0)
    )
    return torch.stack([entropies[:, list(columns)].sum(1) for columns in situation.corrections], 1)


def expected_gain(situation: Situation) -> Tensor:
    """Scores by how far the entropy of the class is expected to fall, nats; members of a group add up."""
    before = torch.special.entr(situation.classes).sum(1)
    return _expected(situation, lambda classes: before - torch.special.entr(classes).sum(1))


def coop(situation: Situation) -> Tensor:
    """Scores by uncertainty and expected change of the predicted class's probability together, of equal weight."""
    predicted = situation.classes.argmax(1, keepdim=True)
    before = situation.classes.gather(1, predicted)
    change = _expected(situation, lambda classes: (classes.gather(1, predicted) - before).abs().squeeze(1))
    return uncertainty(situation) + change


def greedy(situation: Situation) -> Tensor:
    """Scores by what the correction does to the probability of the true class: no expert can know, a bound."""
    true = situation.target.unsqueeze(1)
    before = situation.classes.gather(1, true)
    scores = []
    for columns in situation.corrections:
        mask = torch.zeros_like(situation.probabilities, dtype=torch.bool)
        mask[:, list(columns)] = True
        after = situation.predict(mask, situation.labels)
        scores.append((after.gather(1, true) - before).squeeze(1))
    return torch.stack(scores, 1)


POLICIES: dict[str, Policy] = {
    "random": Policy(random, random=True),
    "uncertainty": Policy(uncertainty),
    "coop": Policy(coop),
    "greedy": Policy(greedy),
    "expected_gain": Policy(expected_gain),
}


def _expected(situation: Situation, worth: Callable[[Tensor], Tensor]) -> Tensor:
    """Averages the worth of what each correction might bring, by the probabilities of its values."""
    scores = torch.zeros_like(situation.noise)
    for place, columns in enumerate(situation.corrections):
        for mask, values, probability in _outcomes(situation, columns):
            scores[:, place] += probability * worth(situation.predict(mask, values))
    return scores


def _outcomes(situation: Situation, columns: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields what a correction may set: each value of a categorical concept, 0 and 1 of each binary one."""
    p, kinds = situation.probabilities, situation.concepts.kinds
    nothing, zeros = torch.zeros_like(p, dtype=torch.bool), torch.zeros_like(p)
    whole = nothing.index_fill(1, torch.tensor(columns, device=p.device), True)
    for column in columns:
        place = torch.tensor([column], device=p.device)
        if kinds[column] == "categorical":
            yield whole, zeros.index_fill(1, place, 1.0), p[:, column]
        elif kinds[column] == "binary":
            one = nothing.index_fill(1, place, True)
            yield one, zeros, 1 - p[:, column]
            yield one, one.to(p.dtype), p[:, column]
