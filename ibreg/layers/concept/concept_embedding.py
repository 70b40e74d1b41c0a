"""Concept embedding model: two vectors for each concept, mixed by its probability.

Espinosa Zarlenga et al. 2022 (arXiv 2209.09056).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg.layers.concept.base import ConceptLayer, ConceptState
from ibreg.layers.concept.specification import Description
from ibreg.layers.constraints import Between, Count
from ibreg.layers.intervention import intervention_on
from ibreg.layers.scope import Scope
from ibreg.registry import register


@register("concept_embedding")
class ConceptEmbeddingBottleneck(ConceptLayer):
    r"""Concept embedding layer: one vector per concept, a mixture of a vector for presence and one for absence.

    .. math:: [c^+, c^-] = \phi(W x), \quad p = \sigma(s([c^+, c^-])), \quad z_c = p \, c^+ + (1 - p) \, c^-

    with phi a leaky ReLU and one linear scorer s shared by all concepts. The penalty is the concept loss in nats, as in
    `ConceptBottleneck`. The vectors also carry information that the concepts lack, so that incomplete concepts cost no
    task accuracy. In training, p is replaced by the true label with `intervention_probability`, sampled for each sample
    and concept (RandInt), so that the head learns to use interventions.

    Args:
        in_features: size of the feature axis.
        concepts: their number, their names, a list of entries (`Concepts.of`), or a `Concepts`. A categorical group
            shares a softmax; p of a continuous concept is its value, expected in [0, 1].
        embedding_features: size of a concept's vector.
        intervention_probability: probability of RandInt, in [0, 1]; 0: none. A categorical group is set as a whole; a
            concept without a label is not set.
        out_features: size of the output; None: that of the code (concepts times embedding_features), or with a head
            `in_features`.
        head: from code to output: "identity", "linear" or "mlp" (one hidden layer of 64 ReLUs); None: "linear" if
            out_features are given, else "identity".
        beta: weight of the penalty, a sum over concepts.
        pos_weight: weight of the positive labels of binary concepts: a number, or one per concept (negatives /
            positives: `Concepts.positive_weights`); None: 1.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. Concepts belong to a sample: they are predicted from the mean over its tokens
        or positions, and the output is the same at all of them. See `ConceptBottleneck`, also for labels,
        interventions, logs and many processes.

    Raises:
        ValueError: If an option is out of range, there are no concepts, or sizes or labels do not fit.

    Example:
        >>> layer = ConceptEmbeddingBottleneck(8, ["red", "round"], embedding_features=4)
        >>> out = layer.measure(torch.zeros(2, 8), concepts=torch.tensor([[1.0, 0.0], [0.0, torch.nan]]))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([2, 8]), ['concept_accuracy', 'concept_loss'])
    """

    constraints = {
        "embedding_features": Count("size of a concept's vector"),
        "intervention_probability": Between(0, 1),
    }

    embedding_features: int
    intervention_probability: float

    def __init__(
        self,
        in_features: int | None = None,
        concepts: Description | None = None,
        *,
        embedding_features: int = 16,
        intervention_probability: float = 0.25,
        out_features: int | None = None,
        head: str | None = None,
        beta: float = 1.0,
        pos_weight: float | Sequence[float] | None = None,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__(
            in_features, concepts, out_features=out_features, head=head, beta=beta, pos_weight=pos_weight, dim=dim,
            device=device,
        )  # fmt: skip
        self.keep(embedding_features=embedding_features, intervention_probability=intervention_probability)
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def code_features(self) -> int:
        """One vector per concept."""
        return len(self.concepts) * self.embedding_features

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Register the encoder of the vectors, the scorer and the head."""
        super().create_parameters(device=device, dtype=dtype)
        self.encoder = nn.Linear(self.in_features, 2 * self.code_features, device=device, dtype=dtype)
        self.scorer = nn.Linear(2 * self.embedding_features, 1, device=device, dtype=dtype)

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, ConceptState]:
        """Return the mixed vectors of all concepts, concatenated."""
        context = F.leaky_relu(self.encoder(pooled)).unflatten(-1, (len(self.concepts), 2 * self.embedding_features))
        logits = self.scorer(context).squeeze(-1)
        _, values = self.after_intervention(logits, scope)
        if self.training and scope is not None and scope.concepts is not None and intervention_on(self) is None:
            labels, known = self.labels(scope.repeated(scope.repeats), logits)
            values = torch.where(known & self._randint(known), labels, values)
        present, absent = context.chunk(2, -1)
        weight = values.unsqueeze(-1)
        return (weight * present + (1 - weight) * absent).flatten(1), ConceptState(logits, values)

    def _randint(self, known: Tensor) -> Tensor:
        """Sample which concepts are set to the truth, `(batch, concepts)`; once per categorical group."""
        masks = []
        for kind, run in self.concepts.runs:
            width = run.stop - run.start
            uniform = torch.rand((known.shape[0], 1 if kind == "categorical" else width), device=known.device)
            masks.append((uniform < self.intervention_probability).expand(-1, width))
        return torch.cat(masks, 1)
