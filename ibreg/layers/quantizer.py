"""Quantizers of vector-quantize-pytorch as bottlenecks: finite scalar, lookup-free and residual vector quantization.

The adapter adds the feature axis, the penalty for `Regularized`, and a configuration that can be saved. The quantizers
are that package's, with its options and its rules for when codebooks are updated.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Constraint, OneOf, Optional
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


class PackageOptions(Constraint):
    """Options of a class of another package, which checks them itself."""

    def allows(self, value: Any) -> bool:
        """Whether a value is a mapping with strings as keys."""
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)

    def plain(self, value: Any) -> dict[str, Any]:
        """Returns a dict."""
        return dict(value)

    def __str__(self) -> str:
        return "a mapping from names of options to their values"


class Quantized(NamedTuple):
    """State that the penalty reads.

    Attributes:
        losses: of the quantizer, one for each stage; finite scalar quantization has a loss of 0.
        indices: of the selected codes, `(batch, positions, stages)`.
    """

    losses: Tensor
    indices: Tensor


@register("quantizer")
class QuantizerBottleneck(Bottleneck):
    r"""Replaces features by the nearest code of a quantizer of vector-quantize-pytorch.

    The penalty is the quantizer's own loss: 0 for `finite_scalar` (whose capacity is fixed by its levels,
    :math:`\sum_i \log_2 L_i` bits), entropies for `lookup_free` (it can be negative), the squared distance of codes and
    features over all stages for `residual_vector`. Gradients pass the rounding unchanged (straight-through).

    Needs the extra `quantizers`. `ibreg.build("quantizer")` and `inject` support it; `ibreg.names()` does not list it,
    because it does not support all that other layers do: `residual_vector` updates its codebooks in the forward pass of
    training, which rules out activation checkpoints and `torch.func`.

    Args:
        in_features: size of the feature axis.
        beta: weight of the penalty.
        quantizer: "finite_scalar", "lookup_free" or "residual_vector".
        options: of the package's class; None: levels 8, 5, 5, 5, or 1024 codes, or 4 stages of 256 codes.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has the same
        shape. Positions that `mask` leaves out do not contribute to the penalty.

    Logs: `quantizer_loss`, `used` (fraction of the codes that are selected somewhere in the batch, mean over stages).

    Raises:
        ModuleNotFoundError: If vector-quantize-pytorch is not installed.
        ValueError: If an option is not valid, or the quantizer does not take its options.

    Sources: Mentzer et al. 2023, arXiv 2309.15505 (finite scalar); Yu et al. 2023, arXiv 2310.05737 (lookup-free);
    Zeghidour et al. 2021, arXiv 2107.03312 (residual vector).

    Example:
        >>> layer = QuantizerBottleneck(16, quantizer="residual_vector")  # doctest: +SKIP
        >>> sorted(layer.measure(torch.randn(32, 16)).logs)  # doctest: +SKIP
        ['quantizer_loss', 'used']
    """

    reads_scope = True  # the mask; and the recomputation of a checkpoint would update the codebooks twice
    constraints = {"quantizer": OneOf(DEFAULTS), "options": Optional(PackageOptions())}

    in_features: int
    quantizer: str
    options: dict[str, Any] | None

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
        self.keep(quantizer=quantizer, options=options)
        self.materialize(in_features, device=device, dtype=dtype)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Builds the quantizer."""
        try:
            package = import_module("vector_quantize_pytorch")
        except ImportError as error:
            raise ModuleNotFoundError(
                "QuantizerBottleneck needs vector-quantize-pytorch: pip install 'ibreg[quantizers]'"
            ) from error
        options = DEFAULTS[self.quantizer] if self.options is None else self.options
        try:
            codes = getattr(package, CLASSES[self.quantizer])(dim=self.in_features, **options)
        except (TypeError, AssertionError) as error:
            raise ValueError(
                f"options must be those of {CLASSES[self.quantizer]} of vector-quantize-pytorch, which does not take "
                f"dim={self.in_features} with {options}: {error or 'an assertion of its own failed'}"
            ) from error
        self.codes = codes.to(device=device, dtype=dtype)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Quantized]:
        """Returns the codes in place of the features."""
        features = self.features_last(x)
        rows = features.unsqueeze(1) if features.dim() == 2 else features.flatten(1, -2)
        options = {}
        mask = None if scope is None else scope.repeated(scope.repeats).mask_for(features)
        if mask is not None and self.quantizer in MASKED:
            check_mask(mask, features.shape[:-1])
            options["mask"] = mask.bool().reshape(rows.shape[:2])
        code, indices, *losses = self.codes(rows, **options)
        losses = losses[0].reshape(-1) if losses else code.new_zeros(1)
        state = Quantized(losses, indices.reshape(*rows.shape[:2], -1))
        return self.features_back(code.reshape(features.shape).to(x.dtype)), state

    def penalty(self, state: Quantized, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the quantizer's loss and the logs."""
        loss = state.losses.sum()
        stages = state.indices.flatten(0, 1).T
        # Padding has the index -1.
        size = int(self.codes.codebook_size)
        used = torch.zeros(len(stages), size + 1, device=stages.device).scatter(1, stages.long() % (size + 1), 1.0)
        return loss, {"quantizer_loss": loss, "used": used[:, :size].mean()}
