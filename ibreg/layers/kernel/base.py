"""What the bottlenecks that compare all pairs of a batch share: one row for each sample, and the batch's Gram matrices.

Kernels see samples. So tokens and positions of a sample become one row, and what several layers of a model compare
their codes with, inputs and targets, gets its Gram matrix once for each batch.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ibreg.distributed import over_ranks
from ibreg.functional.kernel.bandwidths import Bandwidth, bandwidth_of
from ibreg.functional.kernel.pairs import Gram, gram
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Bool, Constraint, Count, OneOf, Optional
from ibreg.layers.positions import check_mask, mean_over_positions
from ibreg.layers.scope import Scope
from ibreg.tracing import assert_finite, can_assert

POSITIONS = ("flatten", "mean")
LEAST_SIMILAR = 1e-5  # below, or this close to 1, the mean kernel of two samples says nothing any more


class IsBandwidth(Constraint):
    """A bandwidth, see `functional.kernel.bandwidths.bandwidth_of`; JSON and YAML write its tuple as a list."""

    def allows(self, value: Any) -> bool:
        """Whether a value is a bandwidth."""
        try:
            bandwidth_of(torch.zeros(1, 1), value)
        except ValueError:
            return False
        return True

    def plain(self, value: Any) -> Any:
        """Returns a bandwidth that can be the key of a dict."""
        if isinstance(value, list | tuple):
            kind, scale = value
            return kind, float(scale)
        return value if isinstance(value, str) else float(value)

    def __str__(self) -> str:
        return "a length above 0, ('rms', s) or ('dimension', s) with s above 0, or 'median'"


class KernelBottleneck(Bottleneck):
    """Base of bottlenecks whose penalty is a kernel dependence between codes and inputs or targets.

    Args:
        in_features: size of the feature axis; None where the layer does not care.
        beta: weight of the penalty.
        positions: "flatten": all tokens or positions of a sample are its row; "mean": their mean is.
        block_size: rows and columns of pairs that are visited at once; None: chosen.
        gather: in training the batch is that of all ranks, not the rank's own.
        dim: feature axis.
        device: of beta.
    """

    constraints = {
        "positions": OneOf(POSITIONS),
        "block_size": Optional(Count("number of rows and columns of pairs that are visited at once")),
        "gather": Bool(),
    }

    def __init__(
        self,
        in_features: int | None = None,
        *,
        beta: float,
        positions: str = "flatten",
        block_size: int | None = None,
        gather: bool = False,
        dim: int | None = None,
        device=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(positions=positions, block_size=block_size, gather=gather)
        self._warned_of_widths = False

    @property
    def walk_options(self) -> dict[str, Any]:
        """How pairs are visited: in evaluation by each rank alone, as ranks need not evaluate as many batches."""
        return {"block_size": self.block_size, "gather": self.gather and self.training}

    def is_too_small(self, samples: int, least: int, scope: Scope) -> bool:
        """Whether there is nothing to measure: the last batch of an evaluation may be of any size.

        Raises:
            ValueError: in training, where the batch of this rank is all that counts.
        """
        if samples >= least or (self.training and self.gather):
            return False
        if self.training:
            raise ValueError(
                f"bottleneck {scope.name_of(self)} compares the samples of a batch: it takes at least {least} samples, "
                f"got {samples}"
            )
        return True

    def rows(self, code: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one row for each sample of a code with its features last, padding left out."""
        if code.dim() == 2:
            return code
        if self.positions == "mean":
            return mean_over_positions(code, mask)
        if mask is not None:
            check_mask(mask, code.shape[:-1])
            code = torch.where(mask.bool().unsqueeze(-1), code, 0)
        return code.flatten(1)

    def inputs_of(self, scope: Scope) -> Tensor:
        """Returns the inputs that a scope knows.

        Raises:
            ValueError: integers, which have no distances.
        """
        if not scope.inputs.is_floating_point():
            raise ValueError(
                f"bottleneck {scope.name_of(self)} compares codes with the inputs, and those are {scope.inputs.dtype}: "
                "pass what stands for them, model(x, inputs=embeddings)"
            )
        assert_finite(
            scope.inputs,
            f"bottleneck {scope.name_of(self)} compares codes with inputs that have NaN or infinite values",
        )
        mask = scope.mask
        if mask is None or scope.inputs.shape[: mask.dim()] != mask.shape or scope.inputs.dim() <= mask.dim():
            return scope.inputs
        kept = mask.bool().reshape(mask.shape + (1,) * (scope.inputs.dim() - mask.dim()))
        return torch.where(kept, scope.inputs, 0)  # what stands where a mask leaves out is padding in the inputs too

    def gram_of_inputs(self, scope: Scope, bandwidth: Bandwidth) -> Gram:
        """Returns the Gram matrix of the inputs, made once for all layers that ask for the same one."""
        options = self.walk_options
        key = ("gram of inputs", bandwidth, *options.values())
        return scope.once(key, lambda: gram(self.inputs_of(scope), bandwidth=bandwidth, name="inputs", **options))

    def similarities(self, code: Gram, inputs: Gram | None, scope: Scope) -> dict[str, Tensor]:
        """Returns the mean kernel of two samples, of code and inputs; warns once where all are alike or none are."""
        grams = {"similarity": code} if inputs is None else {"similarity": code, "inputs_similarity": inputs}
        # Less the diagonal, whose kernel is 1 (and 0 in these means, which leave out a constant of 1).
        found = {name: 1 + of.means.sum() / max(len(of.means) - 1, 1) for name, of in grams.items()}
        # Elsewhere than on the CPU the comparison would wait for the device.
        if self._warned_of_widths or not self.training or torch.compiler.is_compiling():
            return found
        for name, similarity in found.items():
            if can_assert(similarity) and not LEAST_SIMILAR <= similarity <= 1 - LEAST_SIMILAR:
                self._warned_of_widths = True
                what, option = ("inputs", "x") if name == "inputs_similarity" else ("codes", "t")
                alike, change = ("alike", "narrower") if similarity > 0.5 else ("different", "wider")
                warnings.warn(
                    f"by the kernel of bottleneck {scope.name_of(self)} the {what} of a batch are all {alike} (mean "
                    f"kernel {float(similarity):.2g}): its penalty says nothing of them. Use a {change} "
                    f"bandwidth_{option}",
                    stacklevel=2,
                )
        return found


def scale_free(rows: Tensor, *, gather: bool = False) -> Tensor:
    r"""Divides rows by their root mean squared distance, with gradient: it has no part that would scale them all.

    .. math:: t_i / r, \quad r^2 = \frac{2}{n - 1} \sum_i |t_i - \bar t|^2

    Where all rows are equal they are returned as they are.

    Args:
        rows: `(batch, dim)`.
        gather: over the rows of all ranks; every rank has to call.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [5.0]])
        >>> torch.allclose(scale_free(rows), scale_free(100 * rows))
        True
    """
    return _ScaleFree.apply(rows, gather)[0]


class _ScaleFree(torch.autograd.Function):
    @staticmethod
    def forward(rows, gather):
        def total(value):
            return over_ranks(value) if gather else value

        samples = total(rows.new_tensor(rows.shape[0]))
        centered = rows - total(rows.sum(0)) / samples
        squares = total(centered.square().sum())
        moved = squares > 0
        size = torch.where(moved, (2 * squares / (samples - 1).clamp(min=1)).sqrt(), 1)
        return rows / size, centered, torch.where(moved, squares, torch.inf), size

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.gather = inputs[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx, grad, *_):
        centered, squares, size = ctx.saved_tensors
        scaling = (grad * centered).sum()
        scaling = over_ranks(scaling) if ctx.gather else scaling
        return (grad - centered * (scaling / squares)) / size, None
