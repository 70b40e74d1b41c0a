"""Base class of the kernel bottlenecks: one row per sample, and Gram matrices that the layers of a model share.

Kernels compare samples. Therefore the tokens or positions of a sample become one row, and the Gram matrices of inputs
and targets, which several layers compare their codes with, are computed once per batch.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor

from ibreg.distributed import over_ranks
from ibreg.functional.kernel.bandwidths import BANDWIDTHS, Bandwidth, bandwidth_of
from ibreg.functional.kernel.pairs import TiledGram, tiled_gram
from ibreg.functional.kernel.rows import BLOCK_SIZE
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Bool, Constraint, Count, OneOf, Optional
from ibreg.layers.positions import check_mask, mean_over_positions
from ibreg.layers.scope import Scope
from ibreg.tracing import assert_finite, can_assert

POSITIONS = ("flatten", "mean")
LEAST_SIMILARITY = 1e-5  # a mean kernel of two samples this close to 0 or 1 has no information


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
        """Returns a hashable bandwidth."""
        if isinstance(value, list | tuple):
            kind, scale = value
            return kind, float(scale)
        return value if isinstance(value, str) else float(value)

    def __str__(self) -> str:
        return BANDWIDTHS


class KernelBottleneck(Bottleneck):
    """Base class of bottlenecks whose penalty is a kernel dependence between codes and inputs or targets.

    Args:
        in_features: size of the feature axis; None if the layer takes any.
        beta: weight of the penalty.
        positions: "flatten": the row of a sample is all its tokens or positions; "mean": their mean.
        block_size: rows of a block of the Gram matrices, which are evaluated block by block; None: chosen
            automatically, so that memory is linear in the batch beyond 2,048 samples. It changes time and memory, not
            the value.
        gather: in training, use the global batch of all ranks (under DDP; every rank must call the layer) instead of
            the rank's own batch.
        dim: feature axis.
        device: device of beta.
    """

    positions: str
    block_size: int | None
    gather: bool
    constraints = {
        "positions": OneOf(POSITIONS),
        "block_size": Optional(Count(BLOCK_SIZE)),
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
        self._warned_of_bandwidth = False

    @property
    def gram_options(self) -> dict[str, Any]:
        """Options of Gram matrices; evaluation does not gather, as ranks may evaluate different numbers of batches."""
        return {"block_size": self.block_size, "gather": self.gather and self.training}

    def is_too_small(self, samples: int, least: int, scope: Scope) -> bool:
        """Whether a batch has too few samples for a penalty, as the last batch of an evaluation may.

        Raises:
            ValueError: If it has too few in training, without `gather`.
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
        """Returns one row per sample of a code with the features last, without padding."""
        if code.dim() == 2:
            return code
        if self.positions == "mean":
            return mean_over_positions(code, mask)
        if mask is not None:
            check_mask(mask, code.shape[:-1])
            code = torch.where(mask.bool().unsqueeze(-1), code, 0)
        return code.flatten(1)

    def inputs_of(self, scope: Scope) -> Tensor:
        """Returns the inputs of a scope, 0 where the mask is False.

        Raises:
            ValueError: If they are integers, which have no distances.
        """
        inputs, mask = cast(Tensor, scope.inputs), scope.mask
        if not inputs.is_floating_point():
            raise ValueError(
                f"bottleneck {scope.name_of(self)} compares codes with the inputs, which are {inputs.dtype}: "
                "pass floating-point features instead, model(x, inputs=embeddings)"
            )
        assert_finite(
            inputs, f"bottleneck {scope.name_of(self)} compares codes with inputs that have NaN or infinite values"
        )
        if mask is None or inputs.shape[: mask.dim()] != mask.shape or inputs.dim() <= mask.dim():
            return inputs
        kept = mask.bool().reshape(mask.shape + (1,) * (inputs.dim() - mask.dim()))
        return torch.where(kept, inputs, 0)  # masked positions are padding in the inputs too

    def gram_of_inputs(self, scope: Scope, bandwidth: Bandwidth) -> TiledGram:
        """Returns the Gram matrix of the inputs, computed once for all layers with the same options."""
        options = self.gram_options
        key = ("gram of inputs", bandwidth, *options.values())
        return scope.once(key, lambda: tiled_gram(self.inputs_of(scope), bandwidth=bandwidth, name="inputs", **options))

    def similarities(self, code: TiledGram, inputs: TiledGram | None, scope: Scope) -> dict[str, Tensor]:
        """Returns the mean kernel of two different samples, of code and inputs; warns once if it is close to 0 or 1."""
        grams = {"similarity": code} if inputs is None else {"similarity": code, "inputs_similarity": inputs}
        # The means are of k - 1, which is 0 on the diagonal: it drops out of the sum, and of the number of pairs.
        means = {name: 1 + gram.means.sum() / max(len(gram.means) - 1, 1) for name, gram in grams.items()}
        # On other devices than the CPU the comparison would wait for the device.
        if self._warned_of_bandwidth or not self.training or torch.compiler.is_compiling():
            return means
        for name, similarity in means.items():
            if can_assert(similarity) and not LEAST_SIMILARITY <= similarity <= 1 - LEAST_SIMILARITY:
                self._warned_of_bandwidth = True
                what, option = ("inputs", "x") if name == "inputs_similarity" else ("codes", "t")
                alike, change = ("alike", "narrower") if similarity > 0.5 else ("different", "wider")
                warnings.warn(
                    f"by the kernel of bottleneck {scope.name_of(self)} the {what} of a batch are all {alike} (mean "
                    f"kernel {float(similarity):.2g}): its penalty is not informative. Use a {change} "
                    f"bandwidth_{option}",
                    stacklevel=2,
                )
        return means


def scale_free(rows: Tensor, *, gather: bool = False) -> Tensor:
    r"""Divides rows by their root mean squared distance, so that the gradient is orthogonal to a scaling of all rows.

    .. math:: t_i / r, \quad r^2 = \frac{2}{n - 1} \sum_i |t_i - \bar t|^2

    Rows that are all equal are returned unchanged.

    Args:
        rows: `(batch, dim)`.
        gather: use the global batch, of all ranks; every rank must call the function.

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
        spread = squares > 0
        size = torch.where(spread, (2 * squares / (samples - 1).clamp(min=1)).sqrt(), 1)
        return rows / size, centered, torch.where(spread, squares, torch.inf), size

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.gather = inputs[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx, grad, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        centered, squares, size = ctx.saved_tensors
        scaling = (grad * centered).sum()
        scaling = over_ranks(scaling) if ctx.gather else scaling
        return (grad - centered * (scaling / squares)) / size, None
