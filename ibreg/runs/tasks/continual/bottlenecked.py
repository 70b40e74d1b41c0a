"""A bottleneck as a learner of a stream."""

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
    """A bottleneck whose code is the logits, or goes through a linear head; where it has keys, only its values learn.

    Args:
        layer: The bottleneck.
        classes: All that will come: a code of another size gets a head.
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
        """Initializes the keys of a layer that has some, and freezes them.

        Args:
            unlabeled: `(rows, features)`.
            options: of the layer's `initialize`.
            cache: Folder that keeps the keys of a single process; settings of lr alone share them.
            described: The layer's own options.
        """
        layer = self.layer
        if not isinstance(layer, KeyValueBottleneck):
            return

        def initialized() -> dict[str, Tensor]:
            layer.initialize(unlabeled, **options)
            return layer.state_dict()

        if several_ranks():
            # All of them at once, each with its share of the rows: one that waits for the cache would hold up the rest.
            layer.initialize(unlabeled[distributed.get_rank() :: distributed.get_world_size()], **options)
        else:
            layer.load_state_dict(cached(cache, "keys", digest(layer, (described, options), unlabeled), initialized))
        layer.freeze_keys()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Gives centroids, which have far to go, a learning rate of their own."""
        centroids = [self.layer.centroids] if isinstance(self.layer, DistanceAwareBottleneck) else []
        others = [weight for weight in self.parameters() if all(weight is not centroid for centroid in centroids)]
        groups = [{"params": others, "lr": lr}]
        return [*groups, {"params": centroids, "lr": CENTROID_FACTOR * lr}] if centroids else groups

    def usage(self) -> dict[str, float]:
        """Says which share of the pairs was ever hit in training."""
        if not isinstance(self.layer, KeyValueBottleneck):
            return {}
        return {"used": (self.layer.usage > 0).double().mean().item()}

    def uncertainty(self, x: Tensor) -> Tensor:
        """Returns the distance to the codebook where the bottleneck measures one, else as without a bottleneck."""
        if not isinstance(self.layer, DistanceAwareBottleneck):
            return super().uncertainty(x)
        return uncertainty(self.network, x).uncertainty

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the loss of a batch with the penalty."""
        return self.criterion(self.network(x, target=y), y)

    def logits(self, x: Tensor) -> Tensor:
        """Maps `(batch, features)` to `(batch, classes)`."""
        return self.network(x).output
