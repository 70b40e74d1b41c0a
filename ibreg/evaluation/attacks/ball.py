"""The perturbation set of an attack: a ball around each input, with steps, projections and random points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NORMS = {"inf": "inf", "2": "2", math.inf: "inf", 2: "2"}


class Ball:
    """The perturbation set: points within eps of each sample in a norm, and between two bounds.

    Args:
        x: centers, `(batch, ...)`.
        eps: radius, in units of the input.
        norm: "inf" (largest change of an entry) or "2" (Euclidean length of the change), or these as numbers.
        clamp: smallest and largest value of an entry, or None.

    Raises:
        ValueError: If an argument is out of range, or inputs are not finite or outside of `clamp`.

    Example:
        >>> Ball(torch.zeros(1, 2), 0.5, "2", None).project(torch.tensor([[3.0, 4.0]]))
        tensor([[0.3000, 0.4000]])
    """

    def __init__(self, x: Tensor, eps: float, norm: str | float, clamp: tuple[float, float] | None):
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(
                f"x must be a floating-point tensor (batch, features, ...), got {x.dtype} of shape {tuple(x.shape)}"
            )
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps must be a finite number of at least 0, got {eps}")
        if norm not in NORMS:
            raise ValueError(f"norm must be 'inf' or '2', got {norm!r}")
        if not x.isfinite().all():
            raise ValueError("x must be finite, got values that are not")
        if clamp is not None:
            low, high = clamp
            if not low < high:
                raise ValueError(f"clamp must be the (smallest, largest) value of an input, got {clamp}")
            if x.numel() and not low <= x.min() <= x.max() <= high:
                raise ValueError(
                    f"x must be within clamp={clamp}, got values from {x.min():g} to {x.max():g}: scale the inputs, or "
                    "set clamp to their bounds"
                )
        self.x, self.eps, self.norm, self.clamp = x.detach(), eps, NORMS[norm], clamp

    def steepest(self, gradient: Tensor) -> Tensor:
        """Returns the direction of unit length that raises the loss most, 0 where the gradient is 0."""
        if self.norm == "inf":
            return gradient.sign()
        # Divided by the largest entry first: the squares of a saturated network's gradient would underflow to 0.
        flat = gradient.flatten(1)
        flat = flat / _not_zero(flat.abs().amax(1, keepdim=True))
        return (flat / _not_zero(flat.norm(dim=1, keepdim=True))).view_as(gradient)

    def step(self, candidate: Tensor, gradient: Tensor, length: float, rows: Tensor | None = None) -> Tensor:
        """Takes a step of steepest ascent within the bounds, then projects.

        With norm "2" a step that is clipped at a bound goes further along the other entries until it has its length;
        otherwise it would be too short wherever inputs lie on a bound, as black and white pixels do. From a center,
        with length eps, it maximizes a linear loss.

        Args:
            candidate: points of the ball.
            gradient: gradient of the loss at these points.
            length: length of the step in the norm.
            rows: indices of the samples that they belong to; None: all samples.
        """
        direction = self.steepest(gradient)
        if self.norm == "inf":
            return self.project(candidate + length * direction, rows)
        return self.project(self._along(candidate, direction, length, furthest=math.inf), rows)

    def project(self, candidate: Tensor, rows: Tensor | None = None) -> Tensor:
        """Projects to the nearest points that are in the ball and between the bounds.

        Args:
            candidate: points to project.
            rows: indices of the samples that they belong to; None: all samples.
        """
        x = self.x if rows is None else self.x[rows]
        if self.norm == "2":
            return self._along(x, candidate - x, self.eps, furthest=1)
        candidate = torch.minimum(torch.maximum(candidate, x - self.eps), x + self.eps)
        return candidate if self.clamp is None else candidate.clamp(*self.clamp)

    def _along(self, start: Tensor, change: Tensor, length: float, furthest: float) -> Tensor:
        r"""Moves by :math:`\lambda` times a change and clips to the bounds, with the largest step that length allows.

        .. math:: \max \lambda \le \lambda_{\max} \quad \text{subject to} \quad
            \sum_i \min(\lambda |d_i|, r_i)^2 \le \text{length}^2

        with the distance :math:`r_i` of entry i to its bound. The solution for the entries that are known to be clipped
        is never too large for the true set, so :math:`\lambda` grows until no other entry is clipped.
        """
        if change.dtype.itemsize < 4:  # squares of half precision overflow at 256
            return self._along(start.float(), change.float(), length, furthest).to(change.dtype)
        squares = change.square().flatten(1)
        furthest = min(furthest, torch.finfo(change.dtype).max)  # times an entry of 0 that is 0
        factor = (length / _not_zero(squares.sum(1).sqrt())).clamp(max=furthest)
        if self.clamp is None:
            return start + change * per_sample(factor, change)
        clipped_before = torch.zeros_like(squares, dtype=torch.bool)
        while True:
            moved = start + change * per_sample(factor, change)
            reached = moved.clamp(*self.clamp)
            clipped = (reached != moved).flatten(1)
            if torch.equal(clipped, clipped_before):
                return reached
            used = ((reached - start).square().flatten(1) * clipped).sum(1)
            free = (squares * ~clipped).sum(1)
            grown = ((length * length - used).clamp(min=0) / _not_zero(free)).sqrt().clamp(max=furthest)
            # Where all entries are clipped no step is left, and rounding must not shorten this one.
            factor, clipped_before = torch.where(free > 0, torch.maximum(factor, grown), factor), clipped

    def random_point(self, generator: torch.Generator) -> Tensor:
        """Samples a uniform point of the ball for each input, then projects; the same on every device."""
        if self.norm == "inf":
            change = 2 * torch.rand(self.x.shape, generator=generator) - 1
        else:
            change = torch.randn(self.x.shape, generator=generator)
            radius = torch.rand(len(change), generator=generator) ** (1 / math.prod(change.shape[1:]))
            change = change * per_sample(radius / change.flatten(1).norm(dim=1), change)
        return self.project(self.x + self.eps * change.to(self.x))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes `(batch,)` so that it broadcasts over a batch.

    Example:
        >>> per_sample(torch.zeros(5), torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 1, 1, 1])
    """
    return values.view(-1, *(1,) * (like.dim() - 1))


def _not_zero(length: Tensor) -> Tensor:
    return length.clamp(min=torch.finfo(length.dtype).tiny)
