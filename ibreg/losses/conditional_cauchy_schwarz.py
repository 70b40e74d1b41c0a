"""Loss of a regression: how far the predictions' distribution given the inputs is from the targets'.

Yu et al. 2024 (arXiv 2404.17951).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ibreg.functional.kernel.bandwidths import Bandwidth, bandwidth_of
from ibreg.functional.kernel.divergence import MODES, conditional_cs_divergence
from ibreg.functional.kernel.rows import as_rows
from ibreg.layers.constraints import Between, Bool, Count, OneOf
from ibreg.tracing import can_assert


class ConditionalCauchySchwarz(nn.Module):
    r"""Squared error mixed with the conditional Cauchy-Schwarz divergence between targets and predictions.

    .. math:: \ell = s \, \operatorname{mean} |\hat y - y|^2 + (1 - s) \, D_{CS}(p(y|x) \,\|\, p(\hat y|x))

    The divergence (`functional.conditional_cs_divergence`) compares neighbors in the inputs, in nats; by itself it has
    little gradient for predictions that are several bandwidths off, which is what the squared error is for. It does
    not depend on the targets' scale, the squared error does: standardize them, and the two are of one size.

    The divergence is of the batch as a whole (of the micro-batch, under gradient accumulation; under DDP of the rank's
    own batch, unless `gather`). Inputs and targets are taken as constants: an attack on the inputs sees the loss
    through the model alone.

    Args:
        share: s, weight of the squared error in [0, 1].
        bandwidth_x: of the inputs, relative to the batch: `("rms", s)` is s times the root mean squared distance of
            two inputs; or `"median"`, or a length. It decides the most: 0.1 compares near neighbors, 1 little more
            than the marginals of y.
        bandwidth_y: of targets and predictions, relative to the batch's targets in the same way. `("rms", 1.0)` is 1.4
            standard deviations of a single target.
        mode: "symmetric", "symmetric_root" (less weight on lonely inputs), "paper" (as published, no divergence) or
            "released" (squared error): see `functional.conditional_cs_divergence`.
        block_size: rows of pairs walked at a time; None: chosen. It changes time and memory alone.
        gather: while gradients are on, the divergence is of the batches of all ranks (every rank has to call it).

    Shapes:
        output `(batch,)` or `(batch, values)`, target the same (`(batch,)` is `(batch, 1)`), inputs `(batch, ...)`,
        flattened. The loss is 0-dim.

    Raises:
        ValueError: an option out of range; no samples, integers, sizes that do not match.

    Example:
        >>> import ibreg
        >>> criterion = ibreg.Penalized(ConditionalCauchySchwarz())
        >>> x, y = torch.linspace(-1, 1, 8).unsqueeze(1), torch.linspace(-1, 1, 8)
        >>> criterion(y, y, inputs=x), criterion(y + 0.1, y, inputs=x)
        (tensor(0.), tensor(0.0101))
    """

    needs_inputs = True

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
        Between(0, 1).check("share", share)
        OneOf(MODES).check("mode", mode)
        for bandwidth in (bandwidth_x, bandwidth_y):
            bandwidth_of(torch.zeros(1, 1), bandwidth)  # for its errors
        if block_size is not None:
            Count("number of rows of pairs that are walked at a time").check("block_size", block_size)
        Bool().check("gather", gather)
        self.share = share
        self.bandwidth_x = bandwidth_x
        self.bandwidth_y = bandwidth_y
        self.mode = mode
        self.block_size = block_size
        self.gather = gather

    def forward(self, output: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
        """Returns the loss.

        Args:
            output: predictions.
            target: what they should be.
            inputs: what they were made from.
        """
        prediction = as_rows(output, "the output")
        target, inputs = as_rows(target.detach(), "the target"), as_rows(inputs.detach(), "the input")
        if prediction.shape != target.shape:
            raise ValueError(
                "output and target have to be of one size (batch, values), "
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
            torch._assert_async(
                total * 0 == 0, f"{type(self).__name__} got NaN or infinite values in output, target or inputs"
            )
        squared_error = (prediction - target).square().mean()
        return self.share * squared_error + (1 - self.share) * divergence

    def extra_repr(self) -> str:
        """Describes the options."""
        return (
            f"share={self.share:g}, bandwidth_x={self.bandwidth_x!r}, bandwidth_y={self.bandwidth_y!r}, "
            f"mode={self.mode!r}"
        )
