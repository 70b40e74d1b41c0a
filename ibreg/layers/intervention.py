"""What somebody puts in place of what a layer found: concepts set by an expert, codes forced or banned.

Like the `Scope`, it belongs to a pass and not to the layer: nothing of it is left behind when the block ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

_open = threading.local()


@contextmanager
def intervening(interventions: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Lets layers find what is put in place of their own findings, for the length of a `with` block.

    Args:
        interventions: per layer, in the form that the layer documents. Of two open blocks the inner one holds.
    """
    if not hasattr(_open, "blocks"):
        _open.blocks = []
    _open.blocks.append(interventions)
    try:
        yield
    finally:
        _open.blocks.pop()


def intervention_on(layer: nn.Module) -> Any | None:
    """Returns the intervention on a layer that is open in this thread, or None."""
    for interventions in reversed(getattr(_open, "blocks", ())):
        if layer in interventions:
            return interventions[layer]
    return None
