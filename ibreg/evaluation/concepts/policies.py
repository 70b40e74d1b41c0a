r"""Intervention policies: scores of the interventions that can be made next, for each sample.

random; uncertainty, the entropy of the concept (UCP, Shin et al. 2023, arXiv 2302.14260); expected gain, the expected
decrease of the entropy of the class (EUDTP there); CooP, the sum of uncertainty and expected change of the predicted
class (Chauhan et al. 2023, arXiv 2212.07430); and greedy, an oracle that knows the truth, as an upper bound.

.. math::
    \mathrm{gain}(c) = H(y) - \sum_v p(c = v)\, H(y \mid c := v), \qquad
    \mathrm{CooP}(c) = H(c) + \sum_v p(c = v)\, |p(\hat y \mid c := v) - p(\hat y)|
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ibreg.evaluation.concepts.session import Policy, Session


def random_order(session: Session) -> Tensor:
    """Score at random, in a different order for each sample."""
    return torch.rand(session.remaining.shape, generator=session.generator).to(session.remaining.device)


def uncertainty(session: Session) -> Tensor:
    """Score by the entropy of the concepts in nats, summed over a group; that of a continuous concept is 0."""
    p = session.concept_probabilities
    binary = torch.tensor([kind == "binary" for kind in session.concepts.kinds], device=p.device)
    categorical = torch.tensor([kind == "categorical" for kind in session.concepts.kinds], device=p.device)
    entropies = torch.where(
        binary, torch.special.entr(p) + torch.special.entr(1 - p), torch.where(categorical, torch.special.entr(p), 0)
    )
    return torch.stack([entropies[:, list(columns)].sum(1) for columns in session.groups.values()], 1)


def expected_gain(session: Session) -> Tensor:
    """Score by the expected decrease of the entropy of the class in nats, summed over the concepts of a group."""
    before = torch.special.entr(session.class_probabilities).sum(1)
    return _expectation(session, lambda classes: before - torch.special.entr(classes).sum(1))


def coop(session: Session) -> Tensor:
    """Score by the uncertainty plus the expected change of the probability of the predicted class."""
    predicted = session.class_probabilities.argmax(1, keepdim=True)
    before = session.class_probabilities.gather(1, predicted)
    change = _expectation(session, lambda classes: (classes.gather(1, predicted) - before).abs().squeeze(1))
    return uncertainty(session) + change


def greedy(session: Session) -> Tensor:
    """Score by the increase of the probability of the true class: an oracle, no expert knows it."""
    true = session.target.unsqueeze(1)
    before = session.class_probabilities.gather(1, true)
    scores = [
        (session.outcome(columns.expand_as(session.mask), session.labels).gather(1, true) - before).squeeze(1)
        for columns in session.members
    ]
    return torch.stack(scores, 1)


POLICIES: dict[str, Policy] = {
    "random": Policy(random_order, stochastic=True),
    "uncertainty": Policy(uncertainty),
    "coop": Policy(coop),
    "greedy": Policy(greedy),
    "expected_gain": Policy(expected_gain),
}


def _expectation(session: Session, worth: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the expectation of a function of the class probabilities after each intervention.

    Args:
        session: the session.
        worth: function of class probabilities `(samples, classes)` to `(samples,)`.
    """
    scores = torch.zeros(session.remaining.shape, device=session.remaining.device)
    for intervention, columns in enumerate(session.groups.values()):
        for mask, values, probability in _outcomes(session, columns):
            scores[:, intervention] += probability * worth(session.outcome(mask, values))
    return scores


def _outcomes(session: Session, columns: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield mask, values and probability of all that an intervention may set.

    They are each value of a categorical concept, and 0 and 1 of each binary one.
    """
    p, kinds = session.concept_probabilities, session.concepts.kinds
    none, zeros = torch.zeros_like(p, dtype=torch.bool), torch.zeros_like(p)
    whole = none.index_fill(1, torch.tensor(columns, device=p.device), True)
    for column in columns:
        index = torch.tensor([column], device=p.device)
        if kinds[column] == "categorical":
            yield whole, zeros.index_fill(1, index, 1.0), p[:, column]
        elif kinds[column] == "binary":
            single = none.index_fill(1, index, True)
            yield single, zeros, 1 - p[:, column]
            yield single, single.to(p.dtype), p[:, column]
