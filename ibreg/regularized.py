"""Wrappers of model and loss: `Regularized` collects penalties, `Penalized` adds them, `unwrap` finds the model."""

from __future__ import annotations

import functools
import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves, tree_map_only

from ibreg.layers.base import Bottleneck
from ibreg.layers.scope import Record, Scope, run, unfold

# Wrappers that hold a model as their `module`, and the segments that others insert into dotted names.
WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
INSERTED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # by compile, checkpointing, sharding
LIGHTNING = ("lightning.", "pytorch_lightning.")
NO_BOTTLENECK = (
    "there is no bottleneck in the model: put one in, ibreg.inject(model, {'name.of.a.module': "
    "ibreg.VariationalBottleneck()}, example=x), where ibreg.candidates(model, x) lists the places"
)


class RegularizedOutput(NamedTuple):
    """Output, penalty and logs of a model, in training and in evaluation.

    Attributes:
        output: the model's own output.
        penalty: sum over bottlenecks and calls of beta * penalty, 0-dim float32; 0 outside training.
        logs: detached 0-dim tensors, `<dotted layer name>/<quantity>`, averaged over the calls of a layer.
    """

    output: Any
    penalty: Tensor
    logs: dict[str, Tensor]


class DrawnOutput(RegularizedOutput):
    """A `RegularizedOutput` of several samples: tensors of `output` are `(draws, batch, ...)`."""


class Regularized(nn.Module):
    """Runs a model and returns its output together with the penalty of the bottlenecks in it.

    Args:
        model: any module with at least one bottleneck inside, injected or part of its own code.
        draws: number of Monte Carlo samples that the first stochastic bottleneck takes of each row in training. Modules
            before it run once; modules after it see a batch `draws` times as long, and the output is unfolded to
            `(draws, batch, ...)`. The batch is the first axis.

    Raises:
        ValueError: If the model has no bottleneck or a `Regularized` inside, or if draws is below 1, or above 1 without
            a stochastic bottleneck.

    Under DDP: wrap the `Regularized`. Under `torch.compile`: compile the `Regularized`.

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), ibreg.VariationalBottleneck(8), nn.Linear(8, 3))
        >>> output, penalty, logs = ibreg.Regularized(net)(torch.zeros(5, 4))
        >>> output.shape, penalty.shape, list(logs)
        (torch.Size([5, 3]), torch.Size([]), ['2/rate', '2/active_units'])
    """

    def __init__(self, model: nn.Module, draws: int = 1):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        if any(isinstance(module, Regularized) for module in model.modules()):
            raise ValueError(
                "the model is, or contains, a Regularized already: one around the whole model collects all penalties"
            )
        layers = named_bottlenecks(model)
        if not layers:
            raise ValueError(NO_BOTTLENECK)
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"draws must be an integer of at least 1, got {draws!r}")
        if draws > 1 and not any(layer.stochastic for layer in layers):
            raise ValueError(
                f"draws={draws} needs a stochastic bottleneck, the model has {', '.join(map(repr, layers))}"
            )
        self.model = model
        self.draws = draws
        self._declared = _scope_keywords(model)
        self._warned: set[str] = set()

    def forward(self, *args, target=None, concepts=None, inputs=None, mask=None, **kwargs) -> RegularizedOutput:
        """Runs the model.

        Args:
            *args: passed to the model.
            target: labels, for bottlenecks that need them.
            concepts: concept labels, for bottlenecks that need them.
            inputs: inputs that kernel bottlenecks compare the code with; None: the first positional tensor.
            mask: `(batch, tokens)`, True (or 1) where a token counts, False on padding, which penalties leave out.
            **kwargs: passed to the model. So are `target`, `concepts`, `inputs` and `mask` where its `forward` declares
                them.

        Raises:
            ValueError: If a side input that a bottleneck needs in training is missing.
        """
        layers = named_bottlenecks(self.model)
        if not layers:
            raise ValueError(NO_BOTTLENECK)
        for name, value in (("target", target), ("concepts", concepts), ("inputs", inputs), ("mask", mask)):
            if value is not None and name in self._declared:
                kwargs[name] = value
        if inputs is None:
            inputs = next((arg for arg in args if isinstance(arg, Tensor)), None)
        # net.eval() is enough for an evaluation, although it does not reach this wrapper.
        training = self.training and self.model.training
        draws = self.draws if training else 1
        scope = Scope(inputs=inputs, target=target, concepts=concepts, mask=mask, draws=draws, names=layers)
        output = run(self.model, scope, *args, **kwargs)
        if training:
            self._warn_of_idle(layers, scope.records)
        penalty, logs = _collect(scope)
        if draws == 1:
            return RegularizedOutput(output, penalty, logs)
        if scope.repeats == 1:
            raise RuntimeError(
                f"draws={draws}, but no stochastic bottleneck ran in training mode: call train() on it, or use draws=1"
            )
        batch = next(arg.shape[0] for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor) and arg.dim())
        return DrawnOutput(unfold(output, draws, batch), penalty, logs)

    def _warn_of_idle(self, layers: dict[Bottleneck, str], records: list[Record]) -> None:
        if torch.compiler.is_compiling():
            return
        called = {record.layer for record in records}
        for layer, name in layers.items():
            if name in self._warned:
                continue
            if layer not in called:
                problem = (
                    "was not called: check that its host is called as a module, not through a functional call. If the "
                    "network is compiled, compile its Regularized, and torch._dynamo.reset() before: a graph of an "
                    "equal network without bottleneck may have run"
                )
            elif not layer.training:
                problem = "is in eval mode while the model trains, so its penalty is 0: call train() on it"
            else:
                continue
            self._warned.add(name)
            warnings.warn(f"bottleneck {name} {problem}", stacklevel=5)


class Penalized(nn.Module):
    """Task loss plus penalty, for the output of `Regularized`; the task loss alone for a plain tensor.

    Args:
        task_loss: `task_loss(output, target) -> Tensor`; averaged over several samples of the output. Where its
            attribute `needs_inputs` is true it is called with `inputs=` too.

    Example:
        >>> criterion = Penalized(nn.CrossEntropyLoss())
        >>> output = RegularizedOutput(torch.zeros(2, 4), torch.tensor(0.5), {})
        >>> criterion(output, torch.tensor([0, 3]))
        tensor(1.8863)
    """

    def __init__(self, task_loss: Callable[..., Tensor]):
        super().__init__()
        self.task_loss = task_loss

    def forward(self, output: RegularizedOutput | Tensor, target: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Returns the loss to call `backward` on.

        Args:
            output: output of the model.
            target: target of the task loss.
            inputs: the model's input, for task losses that need it.

        Raises:
            ValueError: If the task loss needs inputs and there are none.
        """
        further = {}
        if getattr(self.task_loss, "needs_inputs", False):
            if inputs is None:
                raise ValueError(f"{self.task_loss} needs the inputs: call criterion(output, target, inputs)")
            further["inputs"] = inputs
        if isinstance(output, DrawnOutput):
            draws = next(len(leaf) for leaf in tree_leaves(output.output) if isinstance(leaf, Tensor))
            outputs = (tree_map_only(Tensor, operator.itemgetter(n), output.output) for n in range(draws))
            return (
                torch.stack([self.task_loss(sample, target, **further) for sample in outputs]).mean(0) + output.penalty
            )
        if isinstance(output, RegularizedOutput):
            return self.task_loss(output.output, target, **further) + output.penalty
        return self.task_loss(output, target, **further)


def bottlenecks(model: nn.Module) -> dict[str, Bottleneck]:
    """Returns the bottlenecks of a model by dotted name.

    Names are relative to the model inside `Regularized`, DDP or `torch.compile`.

    Example:
        >>> import ibreg
        >>> net = ibreg.inject(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), {"1": ibreg.VariationalBottleneck(8)})
        >>> list(ibreg.bottlenecks(net))
        ['1.bottleneck']
    """
    return {name: layer for layer, name in named_bottlenecks(unwrap(model)).items()}


def named_bottlenecks(model: nn.Module) -> dict[Bottleneck, str]:
    """Returns the bottlenecks of a model with their dotted names, without the segments that wrappers insert."""
    modules = model.named_modules()
    return {module: name_without_wrappers(name) for name, module in modules if isinstance(module, Bottleneck)}


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside `Regularized`, DDP, `torch.compile` and averages of weights.

    A module that holds a `Regularized` (a LightningModule, say) counts as a wrapper of it.
    """
    return without_wrappers(next((module for module in model.modules() if isinstance(module, Regularized)), model))


def network_to_run(model: nn.Module) -> nn.Module:
    """Returns the model inside wrappers, to be run in their place.

    Raises:
        ValueError: If a module with a forward of its own holds a `Regularized`, so that its operations before and after
            (a normalization, for example) would be left out.
    """
    network, outside = unwrap(model), without_wrappers(model)
    forward = type(outside).forward
    # The forward of a LightningModule that defines none only raises an error.
    if outside is not network and forward is not nn.Module.forward and not forward.__module__.startswith(LIGHTNING):
        raise ValueError(
            f"{type(outside).__name__} contains a Regularized and has a forward of its own, which would be skipped: "
            "pass the Regularized, or wrap the whole model, Regularized(nn.Sequential(normalize, net))"
        )
    return network


def without_wrappers(model: nn.Module) -> nn.Module:
    """Returns the module inside the outermost wrappers."""
    inner: Any = model
    while True:
        if isinstance(inner, Regularized):
            inner = inner.model
        elif isinstance(inner, WRAPPERS):
            inner = inner.module
        elif "_orig_mod" in inner._modules:  # torch.compile; its class lives in a package that is slow to import
            inner = inner._orig_mod
        else:
            return inner


def name_without_wrappers(name: str) -> str:
    """Returns a dotted name without the segments that `torch.compile`, checkpointing and sharding insert."""
    return ".".join(segment for segment in name.split(".") if segment not in INSERTED)


def _collect(scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the sum of beta * penalty over the calls, and the logs, averaged over the calls of each layer."""
    penalties: list[Tensor] = []
    calls: dict[str, list[Tensor]] = {}
    for record in scope.records:
        layer, state, repeats = cast(Bottleneck, record.layer), record.state, record.repeats
        penalty, logs = layer.penalize(state, scope.repeated(repeats))
        # A copy, because schedules fill beta, maybe before the backward pass.
        penalties.append(layer.beta.clone() * penalty)
        for quantity, value in logs.items():
            calls.setdefault(f"{scope.name_of(layer)}/{quantity}", []).append(value)
    total = functools.reduce(operator.add, penalties) if penalties else next(iter(scope.names)).beta.new_zeros(())
    return total, {
        name: values[0] if len(values) == 1 else torch.stack(values).mean() for name, values in calls.items()
    }


def _scope_keywords(model: nn.Module) -> frozenset[str]:
    """Returns the side inputs that a model's forward declares as parameters of its own."""
    declared = set(inspect.signature(unwrap(model).forward).parameters)
    if "src_key_padding_mask" in declared:
        declared -= {"mask"}  # torch's encoder calls its attention mask so, which is no padding mask
    return frozenset(declared & {"target", "concepts", "inputs", "mask"})
