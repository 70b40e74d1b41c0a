"""Concept embedding model: two vectors for each concept, mixed by how likely it is.

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
    r"""Replaces features by one vector for each concept, mixed of one for its presence and one for its absence.

    .. math:: [c^+, c^-] = \phi(W x), \quad p = \sigma(s([c^+, c^-])), \quad z_c = p \, c^+ + (1 - p) \, c^-

    with phi a leaky ReLU and one linear scorer s for all concepts. The penalty is the concept loss in nats, as that of
    `ConceptBottleneck`. The vectors carry what the concepts leave out, so that the task costs no accuracy where
    concepts are incomplete. In training the truth stands for p with `intervention_probability`, drawn anew for each
    sample and concept (RandInt), so that the head knows what a correction does.

    Args:
        in_features: size of the feature axis.
        concepts: their number, their names, a list of entries (`Concepts.of`), or a `Concepts`. Those of a categorical
            group share a softmax; a continuous concept's p is its value, meant for [0, 1].
        embedding_features: size of a concept's vector.
        intervention_probability: of RandInt, in [0, 1]; 0: none. A categorical group is set as a whole, a concept whose
            label is missing is not.
        out_features: size of the output; None: that of the code (concepts times embedding_features), or with a head
            `in_features`, so that the layer fits in place.
        head: from code to output: "identity", "linear" or "mlp" (one hidden layer of 64 ReLUs); None: "linear" where
            out_features are given, else "identity".
        beta: weight of the penalty, which is a sum over concepts.
        pos_weight: weight of the positive labels of binary concepts: a number, or one for each concept (negatives /
            positives: `Concepts.positive_weights`); None: 1.
        dim: feature axis; None: last for rank 2 and 3, the channel for rank 4 and up.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        `(batch, features)`, `(batch, tokens, features)` or `(batch, channels, height, width)`; the output has
        `out_features` on the same axis. Concepts are those of a sample, read from the mean over its tokens or
        positions, and the output is the same at all of them: see `ConceptBottleneck`, as for labels, corrections, logs
        and many processes.

    Raises:
        ValueError: an option out of range, no concepts, sizes or labels that do not fit.

    Example:
        >>> layer = ConceptEmbeddingBottleneck(8, ["red", "round"], embedding_features=4)
        >>> out = layer.measure(torch.zeros(2, 8), concepts=torch.tensor([[1.0, 0.0], [0.0, torch.nan]]))
        >>> out.z.shape, sorted(out.logs)
        (torch.Size([2, 8]), ['concept_accuracy', 'concept_loss'])
    """

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
            in_features,
            concepts,
            out_features=out_features,
            head=head,
            beta=beta,
            pos_weight=pos_weight,
            dim=dim,
            device=device,
        )
        Count("size of a concept's vector").check("embedding_features", embedding_features)
        Between(0, 1).check("intervention_probability", intervention_probability)
        self.embedding_features = embedding_features
        self.intervention_probability = intervention_probability
        self.materialize(in_features, device=device, dtype=dtype)

    @property
    def code_features(self) -> int:
        """A vector for each concept."""
        return len(self.concepts) * self.embedding_features

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the encoder of the vectors, the scorer and the head."""
        super().create_parameters(device=device, dtype=dtype)
        self.encoder = nn.Linear(self.in_features, 2 * self.code_features, device=device, dtype=dtype)
        self.scorer = nn.Linear(2 * self.embedding_features, 1, device=device, dtype=dtype)

    def encode(self, pooled: Tensor, scope: Scope | None) -> tuple[Tensor, ConceptState]:
        """Returns the mixed vectors of all concepts, one after the other."""
        context = F.leaky_relu(self.encoder(pooled)).unflatten(-1, (len(self.concepts), 2 * self.embedding_features))
        logits = self.scorer(context).squeeze(-1)
        _, values = self.corrected(logits, scope)
        if self.training and scope is not None and scope.concepts is not None and intervention_on(self) is None:
            labels, known = self.labels(scope.repeated(scope.repeats), logits)
            values = torch.where(known & self._chosen(known), labels, values)
        present, absent = context.chunk(2, -1)
        weight = values.unsqueeze(-1)
        return (weight * present + (1 - weight) * absent).flatten(1), ConceptState(logits, values)

    def _chosen(self, known: Tensor) -> Tensor:
        """Draws for each sample and concept whether it is set to the truth; once for a categorical group."""
        runs = self.concepts.runs
        draws = [known[:, run][:, :1] if kind == "categorical" else known[:, run] for kind, run in runs]
        chosen = [torch.rand(each.shape, device=known.device) < self.intervention_probability for each in draws]
        return torch.cat(
            [each.expand(-1, run.stop - run.start) for each, (_, run) in zip(chosen, runs, strict=True)], 1
        )
