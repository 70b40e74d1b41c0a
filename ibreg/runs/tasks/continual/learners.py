"""Learners of a stream of classes on features of a frozen encoder: `build("ewc", features=64, classes=10)`.

A learner is a network over all classes and its means against forgetting. `learner(x, y)` returns the loss of a batch,
so that wrappers of the model (DDP) see one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ibreg.runs.config.section import Count, NotNegative
from ibreg.runs.data.rows import Rows
from ibreg.runs.dispatch import choose
from ibreg.runs.models.classifiers import MLP


class Learner(nn.Module):
    """A network that is trained on split after split, without means against forgetting.

    Args:
        network: Maps features `(batch, features)` to logits `(batch, classes)`.
        criterion: Task loss of logits and classes.

    Example:
        >>> learner = Learner(nn.Linear(3, 2), nn.CrossEntropyLoss())
        >>> learner(torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])).shape
        torch.Size([])
    """

    is_told_boundaries = False  # by `end_split`

    def __init__(self, network: nn.Module, criterion: nn.Module):
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch."""
        return self.criterion(self.network(x), y)

    def logits(self, x: Tensor) -> Tensor:
        """Maps `(batch, features)` to `(batch, classes)`."""
        return self.network(x)

    def prepare(self, unlabeled: Tensor, options: Mapping[str, Any], cache: Path, *, described: str) -> None:
        """Initializes from unlabeled inputs before the first split."""

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Returns the groups of parameters for an optimizer, with their learning rates."""
        return [{"params": list(self.parameters()), "lr": lr}]

    def usage(self) -> dict[str, float]:
        """Returns the fraction of its capacity in use, where that can be counted."""
        return {}

    def uncertainty(self, x: Tensor) -> Tensor:
        """Returns the uncertainty of each row, `(batch,)`: one minus the largest probability."""
        return 1 - self.logits(x).softmax(-1).max(-1).values

    def after_step(self, x: Tensor, y: Tensor) -> None:
        """Observes a batch after its optimizer step."""

    def end_split(self, rows: Rows, generator: torch.Generator) -> None:
        """Observes the rows of a split at its end, if the learner is told boundaries."""


class ElasticWeights(Learner):
    r"""Elastic weight consolidation (EWC): a quadratic penalty on changes of weights that earlier splits depend on.

    .. math::
        L(\theta) + \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^*_i)^2, \qquad
        F_i = \sum_{\mathrm{splits}} \mathbb{E}_x \sum_c p_c(x) (\partial_{\theta_i} \log p_c(x))^2

    with the weights :math:`\theta^*` after the last split, and one sum of the splits' Fisher informations.

    Args:
        network: As in `Learner`.
        criterion: As there.
        strength: The weight lambda.
        samples: Largest number of rows of a split that its Fisher information is estimated with.

    Source: Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3; with one penalty for all splits as in Huszar 2017,
    arXiv 1712.03847.

    Example:
        >>> learner = ElasticWeights(nn.Linear(3, 2), nn.CrossEntropyLoss(), strength=10.0, samples=100)
        >>> learner.end_split(Rows(torch.randn(5, 3), torch.zeros(5, dtype=torch.long)), torch.Generator())
        >>> learner.weight_penalty().item()
        0.0
    """

    is_told_boundaries = True

    def __init__(self, network: nn.Module, criterion: nn.Module, *, strength: float, samples: int):
        super().__init__(network, criterion)
        self.strength, self.samples = strength, samples
        for name, weight in network.named_parameters():
            self.register_buffer(f"fisher_{name.replace('.', '_')}", torch.zeros_like(weight))
            self.register_buffer(f"anchor_{name.replace('.', '_')}", weight.detach().clone())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch with the penalty on the weights."""
        return super().forward(x, y) + self.strength / 2 * self.weight_penalty()

    def weight_penalty(self) -> Tensor:
        """Returns the squared distance to the anchored weights, weighted by their Fisher information."""
        terms = [
            (fisher * (weight - anchor).square()).sum()
            for weight, (fisher, anchor) in zip(self.network.parameters(), self._memory(), strict=True)
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def end_split(self, rows: Rows, generator: torch.Generator) -> None:
        """Adds the Fisher information of the split, and anchors the weights at their values."""
        chosen = torch.randperm(len(rows), generator=generator)[: self.samples]
        weights = dict(self.network.named_parameters())
        fishers = fisher_information(self.network, rows.inputs[chosen].to(next(iter(weights.values())).device))
        for (name, weight), (fisher, anchor) in zip(weights.items(), self._memory(), strict=True):
            fisher += fishers[name]
            anchor.copy_(weight)

    def _memory(self) -> list[tuple[Tensor, Tensor]]:
        names = [name.replace(".", "_") for name, _ in self.network.named_parameters()]
        return [(self.get_buffer(f"fisher_{name}"), self.get_buffer(f"anchor_{name}")) for name in names]


def fisher_information(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    r"""Computes the diagonal Fisher information of each weight, in expectation over the network's own predictions.

    .. math::
        F_i = \frac1n \sum_k \sum_c p_c(x_k) (\partial_{\theta_i} \log p_c(x_k))^2

    Args:
        network: Maps `(batch, features)` to logits `(batch, classes)`, each row independently.
        x: `(batch, features)`.

    Returns:
        Tensors of the parameters' shapes, by their names.

    Example:
        >>> fisher_information(nn.Linear(3, 2), torch.zeros(5, 3))["weight"].abs().max()
        tensor(0.)
    """
    weights = {name: weight.detach() for name, weight in network.named_parameters()}

    def of_row(row: Tensor) -> dict[str, Tensor]:
        def log_probabilities(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            logs = functional_call(network, dict(weights), (row.unsqueeze(0),)).log_softmax(-1)[0]
            return logs, logs

        gradients, logs = jacrev(log_probabilities, has_aux=True)(weights)
        return {name: torch.tensordot(logs.exp(), part.square(), 1) for name, part in gradients.items()}

    # In small chunks of rows: a gradient per row and class is large.
    return {name: part.mean(0) for name, part in vmap(of_row, chunk_size=16)(x).items()}


class Replay(Learner):
    """Trains on every batch together with as many rows of a small memory, a uniform sample of all previous rows.

    Args:
        network: As in `Learner`.
        criterion: As there.
        memory: Number of stored rows.
        features: Size of a row.

    Source: experience replay with a reservoir, Chaudhry et al. 2019, arXiv 1902.10486.

    Example:
        >>> learner = Replay(nn.Linear(3, 2), nn.CrossEntropyLoss(), memory=4, features=3)
        >>> learner.after_step(torch.randn(3, 3), torch.tensor([0, 1, 1]))
        >>> int(learner.seen), learner.kept_classes[:3]
        (3, tensor([0, 1, 1]))
    """

    kept: Tensor
    kept_classes: Tensor
    seen: Tensor

    def __init__(self, network: nn.Module, criterion: nn.Module, *, memory: int, features: int):
        super().__init__(network, criterion)
        self.register_buffer("kept", torch.zeros(memory, features))
        self.register_buffer("kept_classes", torch.zeros(memory, dtype=torch.long))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch and of rows of the memory, each row with the same weight."""
        stored = min(int(self.seen), len(self.kept))
        rows = torch.randint(stored, (min(len(x), stored),), device=x.device) if stored else []
        return super().forward(torch.cat([x, self.kept[rows]]), torch.cat([y, self.kept_classes[rows]]))

    def after_step(self, x: Tensor, y: Tensor) -> None:
        """Stores rows so that all rows seen so far are in the memory with equal probability (reservoir sampling)."""
        seen = int(self.seen)
        for row in range(len(x)):
            place = seen + row if seen + row < len(self.kept) else int(torch.randint(seen + row + 1, ()))
            if place < len(self.kept):
                self.kept[place], self.kept_classes[place] = x[row].detach(), y[row]
        self.seen += len(x)


def build(
    name: str, *, features: int, classes: int, criterion: nn.Module, options: Mapping[str, Any], section: str = ""
) -> Learner:
    """Builds a learner without a bottleneck by name.

    Args:
        name: One of `names()`.
        features: Size of a row.
        classes: Number of classes of all splits.
        criterion: Task loss of logits and classes.
        options: The learner's own, as they stand under `learner` in `configs/continual.yaml`.
        section: Their key in a configuration, for messages.

    Raises:
        ValueError: If the name or an option is unknown, or a value is out of range.

    Example:
        >>> learner = build("linear", features=4, classes=3, criterion=nn.CrossEntropyLoss(), options={})
        >>> learner.logits(torch.randn(5, 4)).shape
        torch.Size([5, 3])
    """
    return choose("learner", name, LEARNERS, options, section)(features, classes, criterion)


def names() -> list[str]:
    """Lists the learners that `build` knows.

    Example:
        >>> names()
        ['ewc', 'joint', 'linear', 'mlp', 'replay']
    """
    return sorted(LEARNERS)


def _network(features: int, classes: int, hidden: Sequence[int]) -> nn.Module:
    return MLP(features, classes, hidden)


def linear(features: int, classes: int, criterion: nn.Module) -> Learner:
    """Builds the linear probe."""
    return Learner(_network(features, classes, ()), criterion)


def mlp(features: int, classes: int, criterion: nn.Module, *, hidden: Sequence[Count] = (256,)) -> Learner:
    """Builds a multilayer perceptron with hidden layers of the given sizes."""
    return Learner(_network(features, classes, hidden), criterion)


def ewc(
    features: int,
    classes: int,
    criterion: nn.Module,
    *,
    hidden: Sequence[Count] = (256,),
    strength: NotNegative = 100.0,
    samples: Count = 200,
) -> Learner:
    """Builds a perceptron with elastic weight consolidation."""
    return ElasticWeights(_network(features, classes, hidden), criterion, strength=strength, samples=samples)


def replay(
    features: int, classes: int, criterion: nn.Module, *, hidden: Sequence[Count] = (256,), memory: Count = 200
) -> Learner:
    """Builds a perceptron with experience replay."""
    return Replay(_network(features, classes, hidden), criterion, memory=memory, features=features)


def joint(features: int, classes: int, criterion: nn.Module, *, hidden: Sequence[Count] = ()) -> Learner:
    """Builds the upper bound of a stream: a learner of all classes at once, linear by default."""
    return Learner(_network(features, classes, hidden), criterion)


LEARNERS: dict[str, Callable[..., Learner]] = {
    "linear": linear,
    "mlp": mlp,
    "ewc": ewc,
    "replay": replay,
    "joint": joint,
}
ALL_AT_ONCE = ("joint",)  # learn all classes together instead of split by split
