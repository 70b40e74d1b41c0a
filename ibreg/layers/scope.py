"""Side inputs and bottleneck records of one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from einops import repeat
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ibreg.tracing import inside_checkpoint

Made = TypeVar("Made")

_open = threading.local()


class Record(NamedTuple):
    """One call of a bottleneck: the layer, the state that its penalty reads, how often the batch is repeated."""

    layer: nn.Module
    state: Any
    repeats: int


class Scope:
    """Side inputs and bottleneck records of one forward pass.

    Attributes:
        inputs, target, concepts, mask: side inputs, which penalties read.
        draws: number of Monte Carlo samples that the first stochastic layer takes of each row.
        repeats: how often the batch is repeated at this point of the pass: 1 up to that layer, `draws` after it.
        records: the calls so far.
        shared: results of `once`, by key.
    """

    def __init__(self, *, inputs=None, target=None, concepts=None, mask=None, draws: int = 1, names=None):
        self.inputs = inputs
        self.target = target
        self.concepts = concepts
        self.mask = mask
        self.draws = draws
        self.names = names or {}
        self.repeats = 1
        self.records: list[Record] = []
        self.shared: dict[Hashable, Any] = {}
        self.grad_enabled = torch.is_grad_enabled()

    def name_of(self, layer: nn.Module) -> str:
        """Returns the layer's dotted name in the model, or its class name if it is not part of a model."""
        return self.names.get(layer) or type(layer).__name__

    def mask_for(self, features: Tensor) -> Tensor | None:
        """Returns the mask for features `(batch, *positions, features)`; None if they have no positions."""
        return self.mask if features.dim() > 2 else None

    def claim_draws(self, layer: nn.Module) -> int:
        """Returns the number of samples a stochastic layer takes: `draws` for the first of a pass, 1 for the others."""
        if self.draws == 1 or self.repeats > 1:
            return 1
        if inside_checkpoint():
            raise RuntimeError(
                f"bottleneck {self.name_of(layer)} takes {self.draws} samples of each row inside an activation "
                "checkpoint, whose recomputation would take one: checkpoint the parts before and after it, or use "
                "draws=1"
            )
        self.repeats = self.draws
        return self.draws

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Returns the result of `make`, computed once per pass, such as a Gram matrix that several layers share.

        Args:
            key: identifies the result, with everything it depends on other than this scope.
            make: takes no arguments.
        """
        if key not in self.shared:
            # The first layer that asks may be in evaluation mode, without gradients; the next one may need them.
            with torch.set_grad_enabled(self.grad_enabled):
                self.shared[key] = make()
        return self.shared[key]

    def repeated(self, repeats: int) -> Scope:
        """Returns this scope with its tensors repeated along the batch, as layers after the sampling see them."""
        return self if repeats == 1 else self.once(("repeated", repeats), lambda: self._repeated(repeats))

    def _repeated(self, repeats: int) -> Scope:
        def along_batch(value):
            return tree_map_only(Tensor, lambda tensor: repeat(tensor, "b ... -> (n b) ...", n=repeats), value)

        scope = Scope(
            inputs=along_batch(self.inputs),
            target=along_batch(self.target),
            concepts=along_batch(self.concepts),
            mask=along_batch(self.mask),
            names=self.names,
        )
        scope.grad_enabled = self.grad_enabled
        return scope


@contextmanager
def opened(scope: Scope) -> Iterator[Scope]:
    """Opens a scope for the bottlenecks of this thread, and closes it even after an exception."""
    if not hasattr(_open, "scopes"):
        _open.scopes = []
    _open.scopes.append(scope)
    try:
        yield scope
    finally:
        _open.scopes.pop()


def current_scope() -> Scope | None:
    """Returns the innermost open scope of this thread."""
    scopes = getattr(_open, "scopes", None)
    return scopes[-1] if scopes else None


def run(model: nn.Module, scope: Scope, *args, **kwargs) -> Any:
    """Runs a model in a scope; an error after several samples gets a note on its likely cause."""
    with opened(scope):
        if scope.draws == 1 or torch.compiler.is_compiling():
            return model(*args, **kwargs)
        try:
            return model(*args, **kwargs)
        except RuntimeError as error:
            error.add_note(
                f"The first stochastic bottleneck makes the batch {scope.draws} times as long (draws={scope.draws}): "
                "it must be on the main path, not in a residual branch, and later modules must accept any batch size"
            )
            raise


def unfold(output: Any, draws: int, batch: int) -> Any:
    """Gives tensors that grew with the batch a leading axis of samples; others (states, losses) are unchanged."""

    def unfolded(tensor: Tensor) -> Tensor:
        grown = tensor.dim() > 0 and tensor.shape[0] == draws * batch
        return tensor.unflatten(0, (draws, batch)) if grown else tensor

    return tree_map_only(Tensor, unfolded, output)
