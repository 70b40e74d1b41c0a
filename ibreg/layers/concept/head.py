"""What stands behind a concept code: nothing, a linear map whose weights people read, or a small network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.functional.elastic_net import elastic_net
from ibreg.layers.constraints import AtLeast, Count, OneOf
from ibreg.precision import at_least_float32

HEADS = ("identity", "linear", "mlp")

HIDDEN = 64  # units of the one hidden layer of an "mlp"


def check_head(head: str | None, out_features: int | None) -> None:
    """Raises a ValueError for a head that there is not, or a size that it cannot have."""
    if head is not None:
        OneOf(HEADS).check("head", head)
    if out_features is not None:
        Count("size of the output").check("out_features", out_features)


def build_head(head: str, code_features: int, out_features: int, *, device=None, dtype=None) -> nn.Module:
    """Returns the module from a code `(batch, code_features)` to the output `(batch, out_features)`.

    Raises:
        ValueError: an identity between different sizes.
    """
    if head == "identity":
        if out_features != code_features:
            raise ValueError(
                f"head='identity' puts the code out, which has {code_features} features: leave out_features="
                f"{out_features} away, or use head='linear'"
            )
        return nn.Identity()
    if head == "linear":
        return nn.Linear(code_features, out_features, device=device, dtype=dtype)
    return nn.Sequential(
        nn.Linear(code_features, HIDDEN, device=device, dtype=dtype),
        nn.ReLU(),
        nn.Linear(HIDDEN, out_features, device=device, dtype=dtype),
    )


class HeadPenalty(nn.Module):
    """Elastic net on a linear head's weights, around a prior that it keeps as a buffer; see `functional.elastic_net`.

    Args:
        l1: weight of absolute deviations.
        l2: weight of squared deviations.
        prior: `(out_features, concepts)`, nested; None: 0. Features behind the concepts have prior 0.
        out_features: of the head.
        concepts: how many of the head's inputs are concepts.
        device: of the buffer.

    Raises:
        ValueError: a prior of another shape.
    """

    prior: Tensor

    def __init__(self, l1: float, l2: float, prior: Any, *, out_features: int, concepts: int, device=None):
        super().__init__()
        self.l1 = l1
        self.l2 = l2
        self.entries = prior
        if prior is not None and (len(prior) != out_features or len(prior[0]) != concepts):
            raise ValueError(
                f"head_prior has a row for each of {out_features} outputs and a column for each of {concepts} "
                f"concepts, got {len(prior)} x {len(prior[0])}"
            )
        self.register_buffer("prior", torch.empty((out_features, concepts), dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the buffer to the prior that was given."""
        with torch.no_grad():
            self.prior.copy_(torch.zeros(self.prior.shape) if self.entries is None else torch.tensor(self.entries))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the penalty of the weights `(out_features, concepts and others)`, 0-dim."""
        prior = nn.functional.pad(self.prior, (0, weight.shape[1] - self.prior.shape[1]))
        return elastic_net(at_least_float32(weight), l1=self.l1, l2=self.l2, prior=prior)


def checked_penalty(l1: float, l2: float, prior: Sequence[Sequence[float]] | None) -> list[list[float]] | None:
    """Returns a prior as nested lists of floats, or raises a ValueError for what is no elastic net."""
    AtLeast(0).check("head_l1", l1)
    AtLeast(0).check("head_l2", l2)
    if prior is None:
        return None
    if l1 == l2 == 0:
        raise ValueError("head_prior is what head_l1 and head_l2 pull the weights to: give one of them, head_l1=1e-3")
    rows = [[float(value) for value in row] for row in prior]
    if not rows or len({len(row) for row in rows}) > 1:
        raise ValueError("head_prior is a matrix: a row for each output, a number for each concept")
    return rows
