"""The head of a concept layer, from its code to its output: identity, linear map or small network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ibreg.functional.elastic_net import elastic_net
from ibreg.precision import at_least_float32

HEADS = ("identity", "linear", "mlp")

HIDDEN = 64  # units of the one hidden layer of an "mlp"


def build_head(head: str, code_features: int, out_features: int, *, device=None, dtype=None) -> nn.Module:
    """Build the module from a code `(batch, code_features)` to the output `(batch, out_features)`.

    Raises:
        ValueError: If the head is the identity and the sizes differ.
    """
    if head == "identity":
        if out_features != code_features:
            raise ValueError(
                f"head='identity' returns the code, so out_features must be its size {code_features}, got "
                f"{out_features}: leave out_features out, or use head='linear'"
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
    """Elastic net on a linear head's weights around a prior, which is a buffer; see `functional.elastic_net`.

    Args:
        l1: weight of absolute deviations.
        l2: weight of squared deviations.
        prior: `(out_features, concepts)` as nested lists; None: 0. Features other than concepts have prior 0.
        out_features: output size of the head.
        concepts: number of the head's inputs that are concepts.
        device: device of the buffer.

    Raises:
        ValueError: If the prior has another shape.
    """

    prior: Tensor

    def __init__(
        self,
        l1: float,
        l2: float,
        prior: Sequence[Sequence[float]] | None,
        *,
        out_features: int,
        concepts: int,
        device=None,
    ):
        super().__init__()
        self.l1 = l1
        self.l2 = l2
        self.initial_prior = prior
        if prior is not None and (len(prior) != out_features or len(prior[0]) != concepts):
            raise ValueError(
                f"head_prior must have a row for each of {out_features} outputs and a column for each of {concepts} "
                f"concepts, got {len(prior)} x {len(prior[0])}"
            )
        self.register_buffer("prior", torch.empty((out_features, concepts), dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the buffer to the initial prior."""
        initial = torch.zeros(self.prior.shape) if self.initial_prior is None else torch.tensor(self.initial_prior)
        with torch.no_grad():
            self.prior.copy_(initial)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the 0-dim penalty of weights `(out_features, concepts and further features)`."""
        prior = nn.functional.pad(self.prior, (0, weight.shape[1] - self.prior.shape[1]))
        return elastic_net(at_least_float32(weight), l1=self.l1, l2=self.l2, prior=prior)


def check_prior_is_used(l1: float, l2: float, prior: Sequence[Sequence[float]] | None) -> None:
    """Raise a ValueError if there is a prior and no elastic net around it."""
    if prior is not None and l1 == l2 == 0:
        raise ValueError("head_prior must come with head_l1 or head_l2 above 0, got 0 for both: pass head_l1=1e-3")
