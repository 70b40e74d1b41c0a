"""Regression loss with the divergence between the conditional distributions of targets and predictions.

Yu et al. 2024 (arXiv 2404.17951).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ibreg.functional.kernel.bandwidths import Bandwidth
from ibreg.functional.kernel.divergence import MODES, conditional_cs_divergence
from ibreg.functional.kernel.rows import BLOCK_SIZE, as_rows
from ibreg.layers.constraints import Between, Bool, Constraint, Count, OneOf, Optional
from ibreg.layers.kernel.base import IsBandwidth
from ibreg.tracing import assert_finite, can_assert


class ConditionalCauchySchwarz(nn.Module):
    r"""Squared error mixed with the conditional Cauchy-Schwarz divergence between targets and predictions.

    .. math:: \ell = s \, \operatorname{mean} |\hat y - y|^2 + (1 - s) \, D_{CS}(p(y|x) \,\|\, p(\hat y|x))

    The divergence (`functional.conditional_cs_divergence`, in nats) compares samples with similar inputs. Alone it has
    little gradient for predictions that are several bandwidths off, hence the squared error. With relative bandwidths
    the divergence does not depend on the scale of the targets; the squared error does: standardize the targets, so
    that both are of the same size.

    The divergence is that of the whole batch (under gradient accumulation of the micro-batch, under DDP of the rank's
    own batch, unless `gather`). Inputs and targets are constants: attacks on the inputs see the loss through
    the model alone.

    Args:
        share: s, weight of the squared error in [0, 1].
        bandwidth_x: bandwidth of the inputs: a number, ("rms", s), ("dimension", s) or "median", see
            `functional.bandwidth_of`. It has the largest influence: ("rms", 0.1) compares near neighbors, ("rms", 1.0)
            little more than the marginals of y.
        bandwidth_y: bandwidth of targets and predictions, computed from the targets. ("rms", 1.0) is 1.4 standard
            deviations of a single target.
        mode: "symmetric", "symmetric_root" (less weight on isolated inputs), "paper" (as published, not a divergence)
            or "released" (squared error), see `functional.conditional_cs_divergence`.
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that a block has at most a million pairs. It changes time and memory, not the value.
        gather: with gradients enabled, use the global batch of all ranks (under DDP; every rank must call the loss)
            instead of the rank's own batch.

    Shapes:
        output `(batch,)` or `(batch, values)`, target the same (`(batch,)` is `(batch, 1)`), inputs `(batch, ...)`,
        flattened. The loss is 0-dim.

    Raises:
        ValueError: If an option is out of range, there are no samples, a tensor has integers, or the shapes differ.

    Example:
        >>> import ibreg
        >>> criterion = ibreg.Penalized(ConditionalCauchySchwarz())
        >>> x, y = torch.linspace(-1, 1, 8).unsqueeze(1), torch.linspace(-1, 1, 8)
        >>> criterion(y, y, inputs=x), criterion(y + 0.1, y, inputs=x)
        (tensor(0.), tensor(0.0101))
    """

    needs_inputs = True
    share: float
    bandwidth_x: Bandwidth
    bandwidth_y: Bandwidth
    mode: str
    block_size: int | None
    gather: bool
    constraints: ClassVar[dict[str, Constraint]] = {
        "share": Between(0, 1),
        "bandwidth_x": IsBandwidth(),
        "bandwidth_y": IsBandwidth(),
        "mode": OneOf(MODES),
        "block_size": Optional(Count(BLOCK_SIZE)),
        "gather": Bool(),
    }

    def __init__(
        self,
        *,
        share: float = 0.5,
        bandwidth_x: Bandwidth = ("rms", 0.1),
        bandwidth_y: Bandwidth = ("rms", 1.0),
        mode: str = "symmetric",
        block_size: int | None = None,
        gather: bool = False,
    ):
        super().__init__()
        options = {
            "share": share, "bandwidth_x": bandwidth_x, "bandwidth_y": bandwidth_y, "mode": mode,
            "block_size": block_size, "gather": gather,
        }  # fmt: skip
        for option, value in options.items():
            setattr(self, option, self.constraints[option].check(option, value))

    def forward(self, output: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
        """Returns the loss.

        Args:
            output: predictions.
            target: targets.
            inputs: inputs of the model.
        """
        prediction = as_rows(output, "the output")
        target, inputs = as_rows(target.detach(), "the target"), as_rows(inputs.detach(), "the input")
        if prediction.shape != target.shape:
            raise ValueError(
                "output and target must have the same shape (batch, values), "
                f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        divergence = conditional_cs_divergence(
            inputs,
            target,
            prediction,
            bandwidth_x=self.bandwidth_x,
            bandwidth_y=self.bandwidth_y,
            mode=self.mode,
            block_size=self.block_size,
            gather=self.gather and torch.is_grad_enabled(),
        )
        if can_assert(prediction):
            total = prediction.detach().sum() + target.sum() + inputs.sum()
            assert_finite(total, f"{type(self).__name__} got NaN or infinite values in output, target or inputs")
        squared_error = (prediction - target).square().mean()
        return self.share * squared_error + (1 - self.share) * divergence

    def extra_repr(self) -> str:
        """Returns the options for the representation of the module."""
        return (
            f"share={self.share:g}, bandwidth_x={self.bandwidth_x!r}, bandwidth_y={self.bandwidth_y!r}, "
            f"mode={self.mode!r}"
        )
