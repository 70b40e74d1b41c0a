"""Quantizers of vector-quantize-pytorch as bottlenecks: finite scalar, lookup-free and residual vector quantization.

An adapter: what it adds is the place of the features, the penalty for `Regularized`, and a configuration that a file of
bottlenecks can hold. The quantizers are that package's, with its options and its rules for when codebooks move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import OneOf
from ibreg.layers.positions import check_mask
from ibreg.layers.scope import Scope
from ibreg.registry import register

DEFAULTS: dict[str, dict[str, Any]] = {
    "finite_scalar": {"levels": [8, 5, 5, 5]},
    "lookup_free": {"codebook_size": 1024},
    "residual_vector": {"codebook_size": 256, "num_quantizers": 4},
}
CLASSES = {"finite_scalar": "FSQ", "lookup_free": "LFQ", "residual_vector": "ResidualVQ"}
MASKED = ("lookup_free", "residual_vector")  # leave padding out of their loss, and of their codebooks


class Quantized(NamedTuple):
    """What the penalty reads of a call.

    Attributes:
        losses: what the quantizer charges, one for each of its stages; finite scalar quantization charges nothing.
        indices: of the chosen codes, `(batch, positions, stages)`.
    """

    losses: Tensor
    indices: Tensor


@register("quantizer")
class QuantizerBottleneck(Bottleneck):
    r"""Replaces features by the nearest code of a quantizer of vector-quantize-pytorch.

    The penalty is what the quantizer itself charges: nothing for `finite_scalar` (its capacity is that of its levels,
    :math:`\sum_i \log_2 L_i` bits), entropies for `lookup_free` (it can be negative), the squared distance of codes and
    features of all stages for `residual_vector`. Gradients go past the rounding (straight-through).

    Needs the extra `quantizers`. It is known as "quantizer" to `ibreg.build` and `inject`, but not part of
    `ibreg.names()`, as it does not keep all of the contract: codebooks of `residual_vector` move in the forward of
    training, so that an activation checkpoint and `torch.func` are not for it.

    Args:
        in_features: size of the feature axis.
        beta: weight of the penalty.
        quantizer: "finite_scalar", "lookup_free" or "residual_vector".
        options: of the package's class; None: levels 8, 5, 5, 5, or 1024 codes, or 4 stages of 256.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has the same
        shape. Positions that `mask` leaves out have no part in the penalty.

    Logs: `penalty_of_quantizer`, `used` (share of the codes that the batch chose, mean over stages).

    Raises:
        ModuleNotFoundError: vector-quantize-pytorch is not installed.
        ValueError: another quantizer, options that it does not take.

    Sources: Mentzer et al. 2023, arXiv 2309.15505 (finite scalar); Yu et al. 2023, arXiv 2310.05737 (lookup-free);
    Zeghidour et al. 2021, arXiv 2107.03312 (residual vector).

    Example:
        >>> layer = QuantizerBottleneck(16, quantizer="residual_vector")  # doctest: +SKIP
        >>> sorted(layer.measure(torch.randn(32, 16)).logs)  # doctest: +SKIP
        ['penalty_of_quantizer', 'used']
    """

    reads_scope = True  # the mask; and codebooks must not move twice, as a checkpoint's recomputation would

    def __init__(
        self,
        in_features: int | None = None,
        *,
        beta: float = 1.0,
        quantizer: str = "finite_scalar",
        options: Mapping[str, Any] | None = None,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        OneOf(DEFAULTS).check("quantizer", quantizer)
        self.quantizer = quantizer
        self.options = None if options is None else dict(options)
        self.materialize(in_features, device=device, dtype=dtype)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Builds the quantizer."""
        try:
            import vector_quantize_pytorch as package
        except ImportError as error:
            raise ModuleNotFoundError(
                "quantizers are those of vector-quantize-pytorch: pip install 'ibreg[quantizers]'"
            ) from error
        options = DEFAULTS[self.quantizer] if self.options is None else self.options
        try:
            codes = getattr(package, CLASSES[self.quantizer])(dim=self.in_features, **options)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"the {self.quantizer} quantizer of vector-quantize-pytorch ({CLASSES[self.quantizer]}) does not take "
                f"dim={self.in_features} with {options}: {error or 'an assertion of its own failed'}"
            ) from error
        self.codes = codes.to(device=device, dtype=dtype)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Quantized]:
        """Returns the codes in place of the features."""
        features = self.features_last(x)
        rows = features.unsqueeze(1) if features.dim() == 2 else features.flatten(1, -2)
        options = {}
        if scope is not None and scope.mask is not None and features.dim() > 2 and self.quantizer in MASKED:
            mask = scope.repeated(scope.repeats).mask
            check_mask(mask, features.shape[:-1])
            options["mask"] = mask.bool().reshape(rows.shape[:2])
        code, indices, *losses = self.codes(rows, **options)
        losses = losses[0].reshape(-1) if losses else code.new_zeros(1)
        state = Quantized(losses, indices.reshape(*rows.shape[:2], -1))
        return self.features_back(code.reshape(features.shape).to(x.dtype)), state

    def penalty(self, state: Quantized, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what the quantizer charges, and how many of its codes are in use."""
        charged = state.losses.sum()
        stages = state.indices.flatten(0, 1).T
        # Left-out positions have the index -1.
        size = int(self.codes.codebook_size)
        used = torch.zeros(len(stages), size + 1, device=stages.device).scatter(1, stages.long() % (size + 1), 1.0)
        return charged, {"penalty_of_quantizer": charged, "used": used[:, :size].mean()}
