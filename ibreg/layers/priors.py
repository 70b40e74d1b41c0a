"""Priors of a variational code: the distributions whose divergence from the code is the rate.

A prior is a tuple of tensors, so that it can be a part of the state that a penalty reads. A field `mean` of it is the
parameter `prior_mean` of the layer. A new prior is a class with the methods of `Prior` and an entry in `PRIORS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.functional.gaussian import gaussian_kl, gaussian_log_prob, gaussian_pool, gaussian_rate
from ibreg.tracing import can_assert

# The class index that torch's losses leave out.
IGNORED = -100


class Density(Protocol):
    """A density r(z) that Gaussian codes p(z|x) = N(mean, scale^2) are compared with, in nats."""

    def divergence(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns KL(p(z|x) || r), `(batch, *positions)`."""
        ...

    def log_ratio(self, log_code: Tensor, z: Tensor) -> Tensor:
        """Returns the Monte Carlo estimate of the divergence, the mean over samples of log p(z|x) - log r(z).

        Args:
            log_code: `(draws, batch, *positions)`, log p(z|x).
            z: `(draws, batch, *positions, features)`, samples of the code.
        """
        ...


class Prior(Protocol):
    """A prior of a `VariationalBottleneck`, whose parameters it holds.

    Attributes:
        conditional: whether it has a density for each class, and so needs targets and the number of classes. The layer
            checks that it has them.
    """

    conditional: bool

    @staticmethod
    def shapes(features: int, classes: int | None) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the parameters by field."""
        ...

    def reset(self) -> None:
        """Initializes the parameters in place."""
        ...

    def density(self, target: Tensor | None, positions: Sequence[int]) -> tuple[Density, Tensor | None]:
        """Returns the density that the codes of a batch are compared with, and a mask of valid targets.

        Args:
            target: of the batch; read by a conditional prior alone.
            positions: `(batch, *positions)`, the shape of the codes without their features.
        """
        ...

    def sample_rate(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns the divergence of each sample without its label, summed over positions, `(batch,)`."""
        ...


class StandardPrior(NamedTuple):
    """The standard Gaussian N(0, I), without parameters."""

    conditional = False

    @staticmethod
    def shapes(features: int, classes: int | None) -> dict[str, tuple[int, ...]]:
        """Returns no shapes."""
        return {}

    def reset(self) -> None:
        """Does nothing."""

    def density(self, target: Tensor | None, positions: Sequence[int]) -> tuple[Density, None]:
        """Returns N(0, I) for every code."""
        return self, None

    def divergence(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns KL(p(z|x) || N(0, I))."""
        return gaussian_rate(mean, scale)

    def log_ratio(self, log_code: Tensor, z: Tensor) -> Tensor:
        """Returns the Monte Carlo estimate of the divergence."""
        return (log_code - gaussian_log_prob(z)).mean(0)

    def sample_rate(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns the divergence summed over positions."""
        return _sum_over_positions(self.divergence(mean, scale))


class Gaussian(NamedTuple):
    r"""A diagonal Gaussian, up to a factor: r(z) = exp(-gap) N(z; mean, exp(log_variance))."""

    mean: Tensor
    log_variance: Tensor
    gap: Tensor | float = 0.0

    def divergence(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns KL(p(z|x) || r)."""
        return gaussian_kl(mean, 2 * scale.log(), self.mean, self.log_variance) + self.gap

    def log_ratio(self, log_code: Tensor, z: Tensor) -> Tensor:
        """Returns the Monte Carlo estimate of the divergence."""
        return (log_code - gaussian_log_prob(z, self.mean, self.log_variance)).mean(0) + self.gap


class LearnedPrior(NamedTuple):
    """One diagonal Gaussian with learned mean and log variance, `(features,)`."""

    mean: Tensor
    log_variance: Tensor

    conditional = False

    @staticmethod
    def shapes(features: int, classes: int | None) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of mean and log variance."""
        return {"mean": (features,), "log_variance": (features,)}

    def reset(self) -> None:
        """Initializes to N(0, I)."""
        nn.init.zeros_(self.mean)
        nn.init.zeros_(self.log_variance)

    def density(self, target: Tensor | None, positions: Sequence[int]) -> tuple[Density, None]:
        """Returns the same Gaussian for every code."""
        return Gaussian(self.mean, self.log_variance), None

    def sample_rate(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns the divergence summed over positions."""
        return _sum_over_positions(Gaussian(self.mean, self.log_variance).divergence(mean, scale))


class ConditionalPrior(NamedTuple):
    """A learned diagonal Gaussian for each class, `(classes, features)`: Fischer 2020 (arXiv 2002.05379).

    Targets are class indices `(batch,)` or one for each position (-100 is left out), or class probabilities
    `(batch, classes)` or `(batch, *positions, classes)`. Under probabilities w the density is the weighted geometric
    mean of the classes' densities, whose divergence is the expected one, sum_k w_k KL(p(z|x) || r_k).
    """

    mean: Tensor
    log_variance: Tensor

    conditional = True

    @staticmethod
    def shapes(features: int, classes: int | None) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of means and log variances."""
        shape = (cast(int, classes), features)
        return {"mean": shape, "log_variance": shape}

    def reset(self) -> None:
        """Initializes every class to N(0, I)."""
        nn.init.zeros_(self.mean)
        nn.init.zeros_(self.log_variance)

    def density(self, target: Tensor | None, positions: Sequence[int]) -> tuple[Density, Tensor | None]:
        """Returns the Gaussian of each sample's class, and a mask of the class indices that are not ignored.

        Raises:
            ValueError: If the shape of the targets does not fit.
            RuntimeError: If class indices or probabilities are out of range.
        """
        target = cast(Tensor, target)
        batch, *others = positions
        per_sample = (batch, *[1] * len(others))  # the label of a sample is that of all its positions
        if target.is_floating_point():
            weights = self._probabilities(target, positions)
            weights = weights.reshape(*per_sample, len(self.mean)) if weights.dim() == 2 else weights
            return Gaussian(*gaussian_pool(self.mean, self.log_variance, weights)), None
        classes, valid = self._indices(target, positions)
        classes = classes.reshape(per_sample) if classes.dim() == 1 else classes
        # Not self.mean[classes], which takes -1 for the last class.
        return Gaussian(F.embedding(classes, self.mean), F.embedding(classes, self.log_variance)), valid

    def sample_rate(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Returns the divergence from the class that is nearest to the whole sample."""
        classes = Gaussian(self.mean, self.log_variance)
        divergence = classes.divergence(mean.unsqueeze(-2), scale.unsqueeze(-2))  # (batch, *positions, classes)
        positions = tuple(range(1, divergence.dim() - 1))
        return (divergence.sum(positions) if positions else divergence).amin(-1)

    def _probabilities(self, target: Tensor, positions: Sequence[int]) -> Tensor:
        """Checks class probabilities and converts them to the dtype of the codes."""
        classes, expected = len(self.mean), (positions[0], len(self.mean))
        if target.shape not in (expected, (*positions, classes)):
            raise ValueError(f"soft targets must be class probabilities of shape {expected}, got {tuple(target.shape)}")
        weights = target.to(self.mean.dtype)
        if can_assert(weights):
            torch._assert_async(
                ((weights >= 0).all(-1) & ((weights.sum(-1) - 1).abs() < 1e-2)).all(),
                "soft targets must be class probabilities: at least 0, and each row sums to 1",
            )
        return weights

    def _indices(self, target: Tensor, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Checks class indices; returns them, 0 where they are ignored, and a mask of those that are not."""
        if target.shape not in ((positions[0],), tuple(positions)):
            raise ValueError(f"targets must be class indices of shape {(positions[0],)}, got {tuple(target.shape)}")
        target = target.long()
        valid = target != IGNORED
        classes = torch.where(valid, target, 0)
        if can_assert(classes):
            torch._assert_async(
                ((classes >= 0) & (classes < len(self.mean))).all(),
                f"targets must be class indices from 0 to {len(self.mean) - 1}, or {IGNORED} to be left out",
            )
        return classes, valid


def _sum_over_positions(divergence: Tensor) -> Tensor:
    return divergence.flatten(1).sum(1) if divergence.dim() > 1 else divergence


PRIORS: dict[str, type[Prior]] = {
    "standard": StandardPrior,
    "learned": LearnedPrior,
    "conditional": ConditionalPrior,
}
