"""The points that an attack on an input may reach, and how it moves among them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMS = {"inf": "inf", "2": "2", math.inf: "inf", 2: "2"}


class Ball:
    """The points that an attack may reach: within eps of each sample in a norm, and between two bounds.

    Args:
        x: the centers, `(batch, ...)`.
        eps: the radius, in units of the input.
        norm: "inf" (largest change of an entry) or "2" (Euclidean length of the change); the numbers do as well.
        clamp: smallest and largest value of an entry, or None.

    Raises:
        ValueError: an argument out of range, inputs that are not finite or outside of `clamp`.

    Example:
        >>> Ball(torch.zeros(1, 2), 0.5, "2", None).project(torch.tensor([[3.0, 4.0]]))
        tensor([[0.3000, 0.4000]])
    """

    def __init__(self, x: Tensor, eps: float, norm: str | float, clamp: tuple[float, float] | None):
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                f"x is a floating-point tensor (batch, features, ...), got {x.dtype} of shape {tuple(x.shape)}"
            )
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps is a finite number of at least 0, got {eps}")
        if norm not in NORMS:
            raise ValueError(f"norm is 'inf' or '2', got {norm!r}")
        if not x.isfinite().all():
            raise ValueError("x has values that are not finite")
        if clamp is not None:
            low, high = clamp
            if not low < high:
                raise ValueError(f"clamp is (smallest, largest) value of an input, got {clamp}")
            if x.numel() and not low <= x.min() <= x.max() <= high:
                raise ValueError(
                    f"x goes from {x.min():g} to {x.max():g}, outside of clamp={clamp}: scale the inputs into it, or "
                    "give the bounds that they have"
                )
        self.x, self.eps, self.norm, self.clamp = x.detach(), eps, NORMS[norm], clamp

    def steepest(self, gradient: Tensor) -> Tensor:
        """Returns the direction of length 1 in which the loss rises fastest, 0 where the gradient is 0."""
        if self.norm == "inf":
            return gradient.sign()
        # Divided by the largest entry first: the squares of a saturated network's gradient would underflow to 0.
        flat = gradient.flatten(1)
        flat = flat / _not_zero(flat.abs().amax(1, keepdim=True))
        return (flat / _not_zero(flat.norm(dim=1, keepdim=True))).view_as(gradient)

    def step(self, candidate: Tensor, gradient: Tensor, length: float, rows: Tensor | None = None) -> Tensor:
        """Returns the points that a step of this length, the steepest within the bounds, and then `project` lead to.

        With "2" a step that a bound cuts goes further along the other entries until it has its length, without which
        it would stay short wherever inputs lie on a bound, as black and white do. From a center, with length eps, it
        is the greatest rise of a linear loss.

        Args:
            candidate: points of the ball.
            gradient: of the loss at these points.
            length: in the norm.
            rows: numbers of the samples that they belong to; None: all of them.
        """
        direction = self.steepest(gradient)
        if self.norm == "inf":
            return self.project(candidate + length * direction, rows)
        return self.project(self._along(candidate, direction, length, furthest=math.inf), rows)

    def project(self, candidate: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns the nearest points that are in the ball and between the bounds.

        Args:
            candidate: points to project.
            rows: numbers of the samples that they belong to; None: all of them.
        """
        x = self.x if rows is None else self.x[rows]
        if self.norm == "2":
            return self._along(x, candidate - x, self.eps, furthest=1)
        candidate = torch.minimum(torch.maximum(candidate, x - self.eps), x + self.eps)
        return candidate if self.clamp is None else candidate.clamp(*self.clamp)

    def _along(self, start: Tensor, change: Tensor, length: float, furthest: float) -> Tensor:
        r"""Goes :math:`\lambda` times a change from a start, and then back into the bounds, so far as length allows.

        .. math:: \max \lambda \le \lambda_{\max} \quad \text{subject to} \quad
            \sum_i \min(\lambda |d_i|, r_i)^2 \le \text{length}^2

        with the room :math:`r_i` that entry i has up to its bound. The largest :math:`\lambda` for the entries that
        were cut so far is never too large for those that are, so that it grows until no other one is cut.
        """
        if change.dtype.itemsize < 4:  # squares of half precision overflow at 256
            return self._along(start.float(), change.float(), length, furthest).to(change.dtype)
        squares = change.square().flatten(1)
        furthest = min(furthest, torch.finfo(change.dtype).max)  # times an entry of 0 that is 0
        factor = (length / _not_zero(squares.sum(1).sqrt())).clamp(max=furthest)
        if self.clamp is None:
            return start + change * per_sample(factor, change)
        cut_before = torch.zeros_like(squares, dtype=torch.bool)
        while True:
            moved = start + change * per_sample(factor, change)
            reached = moved.clamp(*self.clamp)
            cut = (reached != moved).flatten(1)
            if torch.equal(cut, cut_before):
                return reached
            used = ((reached - start).square().flatten(1) * cut).sum(1)
            free = (squares * ~cut).sum(1)
            grown = ((length * length - used).clamp(min=0) / _not_zero(free)).sqrt().clamp(max=furthest)
            # Where nothing is free there is nowhere to go, and rounding must not bring it back.
            factor, cut_before = torch.where(free > 0, torch.maximum(factor, grown), factor), cut

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Draws a point for each sample, uniform in the ball, then clamped; on the CPU, the same for every device."""
        if self.norm == "inf":
            change = 2 * torch.rand(self.x.shape, generator=generator) - 1
        else:
            change = torch.randn(self.x.shape, generator=generator)
            radius = torch.rand(len(change), generator=generator) ** (1 / math.prod(change.shape[1:]))
            change = change * per_sample(radius / change.flatten(1).norm(dim=1), change)
        return self.project(self.x + self.eps * change.to(self.x))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Gives `(batch,)` the axes of a batch, to multiply or choose with.

    Example:
        >>> per_sample(torch.zeros(5), torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 1, 1, 1])
    """
    return values.view(-1, *(1,) * (like.dim() - 1))


def _not_zero(length: Tensor) -> Tensor:
    return length.clamp(min=torch.finfo(length.dtype).tiny)
