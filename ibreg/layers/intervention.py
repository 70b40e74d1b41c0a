"""Interventions: values that replace a layer's predictions in a `with` block, as concepts set by an expert.

Like the `Scope`, an intervention belongs to forward passes and not to the layer, which is unchanged after the block.
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
    """Intervenes on layers inside a `with` block.

    Args:
        interventions: by layer, in the form that the layer documents. Of nested blocks the innermost one with the layer
            takes effect.
    """
    if not hasattr(_open, "blocks"):
        _open.blocks = []
    _open.blocks.append(interventions)
    try:
        yield
    finally:
        _open.blocks.pop()


def intervention_on(layer: nn.Module) -> Any | None:
    """Returns the intervention on a layer in this thread, or None."""
    for interventions in reversed(getattr(_open, "blocks", ())):
        if layer in interventions:
            return interventions[layer]
    return None
