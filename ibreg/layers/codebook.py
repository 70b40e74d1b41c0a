"""Codebook features: the sum of a few codes replaces the activations; interventions force or ban codes.

Tamkin et al. 2023 (arXiv 2310.17230).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.functional.lookup.nearest import nearest
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Count
from ibreg.layers.intervention import intervention_on
from ibreg.layers.positions import batch_mean
from ibreg.layers.scope import Scope
from ibreg.precision import at_least_float32
from ibreg.registry import register
from ibreg.tracing import inside_checkpoint


class CodeIntervention(NamedTuple):
    """Intervention on a `CodebookBottleneck`.

    Attributes:
        forced: indices of codes that are selected at every position, in place of the least similar ones.
        banned: indices of codes that are never selected.
    """

    forced: Sequence[int] = ()
    banned: Sequence[int] = ()


class Selected(NamedTuple):
    """State that the penalty reads.

    Attributes:
        features: of the input, `(batch, *positions, features)`, without gradient.
        code: the sum of the selected codes, of the same shape.
        indices: of the selected codes, `(batch, *positions, top_k)`.
    """

    features: Tensor
    code: Tensor
    indices: Tensor


@register("codebook")
class CodebookBottleneck(Bottleneck):
    r"""Replaces features by the sum of the most similar codes of a codebook.

    .. math:: z = \sum_{j \in S(x)} c_j, \quad S(x) = \text{the } k \text{ codes of largest } \cos(x, c_j)

    The gradient of z passes to x unchanged (straight-through). The penalty pulls the codes towards the features:

    .. math:: \text{penalty} = |x - z|^2

    per sample, in squared units of the features; it has no gradient with respect to x.

    Args:
        in_features: size of the feature axis.
        beta: weight of the penalty.
        codes: number of codes in the codebook.
        top_k: k, number of codes that are selected at a position, at most `codes`.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the codes.
        dtype: of the codes.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has the same
        shape. The penalty is summed over tokens or positions, without those that `mask` leaves out.

    Interventions: `with intervening({layer: CodeIntervention(forced=[3], banned=[7])})` (ibreg.layers.intervention).

    Logs: `distance` (the penalty), `used` (fraction of the codes that are selected somewhere in the batch).

    Raises:
        ValueError: If an option is not valid, or an intervention leaves too few codes.

    Example:
        >>> from ibreg.layers.intervention import intervening
        >>> layer = CodebookBottleneck(8, codes=32, top_k=2).eval()
        >>> with intervening({layer: CodeIntervention(forced=[3])}):
        ...     indices = layer.transform(torch.randn(5, 8))[1].indices
        >>> bool((indices == 3).any(1).all())
        True
    """

    constraints = {
        "codes": Count("number of codes"),
        "top_k": Count("number of codes that are selected at a position"),
    }

    in_features: int
    codes: int
    top_k: int

    def __init__(
        self,
        in_features: int | None = None,
        *,
        beta: float = 1.0,
        codes: int = 1024,
        top_k: int = 8,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.keep(codes=codes, top_k=top_k)
        if top_k > codes:
            raise ValueError(f"top_k must be at most codes={codes}, got {top_k}")
        self.materialize(in_features, device=device, dtype=dtype)

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the codebook."""
        self.codebook = nn.Parameter(torch.empty(self.codes, self.in_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Initializes beta and random codes; the sum of `top_k` codes has the variance of standardized features."""
        super().reset_parameters()
        nn.init.normal_(self.codebook, std=self.top_k**-0.5)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Selected]:
        """Returns the sum of the selected codes."""
        features = self.features_last(x)
        indices = self._select(features.detach().flatten(0, -2)).unflatten(0, features.shape[:-1])
        code = F.embedding(indices, self.codebook).sum(-2)
        # x - x is 0: it changes the gradient alone.
        z = code.to(features.dtype) + (features - features.detach())
        return self.features_back(z), Selected(features.detach(), code, indices)

    def penalty(self, state: Selected, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the squared distance of features and code, and the logs."""
        distance = batch_mean((state.features - state.code).square().sum(-1), scope.mask)
        used = torch.zeros(self.codes, device=state.code.device).scatter(0, state.indices.flatten(), 1.0)
        return distance, {"distance": distance, "used": used.mean()}

    def _select(self, rows: Tensor) -> Tensor:
        """Returns the indices of the selected codes, `(rows, top_k)`, the forced ones first."""
        forced, usable = self._intervention(rows.device)
        first = torch.tensor(forced, dtype=torch.int64, device=rows.device).expand(rows.shape[0], -1)
        if len(forced) == self.top_k:
            return first
        # Of vectors of length 1 the nearest are those of largest cosine.
        queries, keys = (F.normalize(at_least_float32(vectors), dim=-1) for vectors in (rows, self.codebook.detach()))
        _, others = nearest(queries.unsqueeze(0), keys.unsqueeze(0), top_k=self.top_k - len(forced), usable=usable)
        return torch.cat([first, others.squeeze(0)], -1) if forced else others.squeeze(0)

    def _intervention(self, device: torch.device) -> tuple[list[int], Tensor | None]:
        """Returns the forced codes and a mask of the others that may be selected, `(1, codes)`; None: all."""
        intervention = intervention_on(self)
        if intervention is None:
            return [], None
        if self.training and inside_checkpoint():
            raise RuntimeError(
                "an intervention on a codebook does not apply when an activation checkpoint recomputes the layer: "
                "leave the layer out of the checkpointed part"
            )
        if not isinstance(intervention, CodeIntervention) or isinstance(intervention.forced, int):
            raise ValueError(
                "an intervention on a codebook must be a CodeIntervention(forced=[3], banned=[7]), "
                f"got {intervention!r}"
            )
        forced, banned = list(dict.fromkeys(intervention.forced)), set(intervention.banned)
        unknown = [code for code in (*forced, *banned) if not 0 <= code < self.codes]
        if unknown or banned & set(forced):
            raise ValueError(
                f"forced and banned codes must be different integers from 0 to {self.codes - 1}, got {forced} and "
                f"{sorted(banned)}"
            )
        if len(forced) > self.top_k or self.codes - len(banned) < self.top_k:
            raise ValueError(
                f"at most top_k={self.top_k} codes can be forced and {self.codes - self.top_k} of {self.codes} banned, "
                f"got {len(forced)} forced and {len(banned)} banned"
            )
        usable = torch.ones(1, self.codes, dtype=torch.bool, device=device)
        usable[0, [*forced, *banned]] = False
        return forced, usable
