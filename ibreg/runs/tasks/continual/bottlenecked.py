"""A bottleneck as a learner of a stream of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, distributed, nn

from ibreg.distributed import several_ranks
from ibreg.layers import Bottleneck
from ibreg.layers.distance_aware import DistanceAwareBottleneck
from ibreg.layers.key_value.key_value import KeyValueBottleneck
from ibreg.prediction import uncertainty
from ibreg.regularized import Penalized, Regularized, bottlenecks
from ibreg.runs.models.features import cached, digest
from ibreg.runs.tasks.continual.learners import Learner

CENTROID_FACTOR = 30  # learning rate of the centroids of a distance-aware bottleneck, over that of the rest


class Bottlenecked(Learner):
    """A bottleneck whose code is the logits or is followed by a linear head; with keys, only the values are trained.

    Args:
        layer: The bottleneck.
        classes: Number of classes of all splits; a code of another size is followed by a head.
        criterion: As in `Learner`.
    """

    def __init__(self, layer: Bottleneck, classes: int, criterion: nn.Module):
        size: Any = layer.out_features
        head = [] if size == classes else [nn.Linear(size, classes)]
        super().__init__(Regularized(nn.Sequential(layer, *head)), Penalized(criterion))

    @property
    def layer(self) -> Bottleneck:
        """The bottleneck."""
        (layer,) = bottlenecks(self.network).values()
        return layer

    def prepare(self, unlabeled: Tensor, options: Mapping[str, Any], cache: Path, *, described: str) -> None:
        """Initializes the keys of a key-value bottleneck and freezes them.

        Args:
            unlabeled: `(rows, features)`.
            options: Options of the layer's `initialize`.
            cache: Folder of the keys of single-process runs; settings that differ in lr alone share them.
            described: The options of the layer.
        """
        layer = self.layer
        if not isinstance(layer, KeyValueBottleneck):
            return

        def initialized() -> dict[str, Tensor]:
            layer.initialize(unlabeled, **options)
            return layer.state_dict()

        if several_ranks():
            # All ranks together, each with its share of the rows: a rank that waits for the cache would block the rest.
            layer.initialize(unlabeled[distributed.get_rank() :: distributed.get_world_size()], **options)
        else:
            layer.load_state_dict(cached(cache, "keys", digest(layer, (described, options), unlabeled), initialized))
        layer.freeze_keys()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Gives centroids, which move far from their start, a larger learning rate."""
        centroids = [self.layer.centroids] if isinstance(self.layer, DistanceAwareBottleneck) else []
        others = [weight for weight in self.parameters() if all(weight is not centroid for centroid in centroids)]
        groups = [{"params": others, "lr": lr}]
        return [*groups, {"params": centroids, "lr": CENTROID_FACTOR * lr}] if centroids else groups

    def usage(self) -> dict[str, float]:
        """Returns the fraction of pairs that were hit in training."""
        if not isinstance(self.layer, KeyValueBottleneck):
            return {}
        return {"used": (self.layer.usage > 0).double().mean().item()}

    def uncertainty(self, x: Tensor) -> Tensor:
        """Returns the distance to a distance-aware bottleneck's codebook, else one minus the largest probability."""
        if not isinstance(self.layer, DistanceAwareBottleneck):
            return super().uncertainty(x)
        return uncertainty(self.network, x).uncertainty

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch with the penalty."""
        return self.criterion(self.network(x, target=y), y)

    def logits(self, x: Tensor) -> Tensor:
        """Maps `(batch, features)` to `(batch, classes)`."""
        return self.network(x).output
