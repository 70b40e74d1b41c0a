"""Around a model: `Regularized` collects penalties, `Penalized` adds them to a task loss, `predict` averages draws."""

from __future__ import annotations

import functools
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves, tree_map_only

from ibreg.layers.base import Bottleneck, named_bottlenecks
from ibreg.layers.scope import Record, Scope, opened


class RegularizedOutput(NamedTuple):
    """What `Regularized` returns, in training and in evaluation.

    Attributes:
        output: the model's own output.
        penalty: sum over bottlenecks and calls of beta * penalty, 0-dim float32; 0 outside training.
        logs: detached 0-dim tensors, `<dotted layer name>/<quantity>`, averaged over the calls of a layer.
    """

    output: Any
    penalty: Tensor
    logs: dict[str, Tensor]


class DrawnOutput(RegularizedOutput):
    """A `RegularizedOutput` of several draws: tensors of `output` are `(draws, batch, ...)`."""


class Regularized(nn.Module):
    """Runs a model and returns its output together with the penalty of the bottlenecks in it.

    Args:
        model: any module with at least one bottleneck inside, injected or written into it.
        draws: how many codes the first stochastic bottleneck draws of each sample in training. What stands before it
            runs once; what stands behind it sees a batch `draws` times as long, and the output is unfolded to
            `(draws, batch, ...)`. The batch is the first axis.

    Raises:
        ValueError: no bottleneck in the model, a `Regularized` inside the model, draws below 1 or without a stochastic
            bottleneck.

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
            raise TypeError(f"Regularized goes around a torch.nn.Module, got {model!r}")
        if any(isinstance(module, Regularized) for module in model.modules()):
            raise ValueError(
                "the model is, or holds, a Regularized already: one around the whole model collects all penalties"
            )
        layers = named_bottlenecks(model)
        if not layers:
            raise ValueError(NO_BOTTLENECK)
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"draws is a whole number of at least 1, got {draws!r}")
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
            *args: go to the model.
            target: labels, for bottlenecks that need them.
            concepts: concept labels, for bottlenecks that need them.
            inputs: what kernel bottlenecks compare the code with; None: the first positional tensor.
            mask: `(batch, tokens)`, True (or 1) where a token counts, False on padding; penalties leave those out.
            **kwargs: go to the model. `target`, `concepts`, `inputs` and `mask` go to it too where its `forward`
                declares them.

        Raises:
            ValueError: something that a bottleneck needs in training is missing.
        """
        layers = named_bottlenecks(self.model)
        if not layers:
            raise ValueError(NO_BOTTLENECK)
        for name, value in (("target", target), ("concepts", concepts), ("inputs", inputs), ("mask", mask)):
            if value is not None and name in self._declared:
                kwargs[name] = value
        if inputs is None:
            inputs = next((arg for arg in args if isinstance(arg, Tensor)), None)
        # net.eval() is enough for an evaluation, although the wrapper does not hear of it.
        training = self.training and self.model.training
        draws = self.draws if training else 1
        scope = Scope(inputs=inputs, target=target, concepts=concepts, mask=mask, draws=draws, names=layers)
        output = _run(self.model, scope, *args, **kwargs)
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
        return DrawnOutput(_unfold(output, draws, batch), penalty, logs)

    def _warn_of_idle(self, layers: dict[Bottleneck, str], records: list[Record]) -> None:
        if torch.compiler.is_compiling():
            return
        called = {record.layer for record in records}
        for layer, name in layers.items():
            if name in self._warned:
                continue
            if layer not in called:
                problem = (
                    "was not called: is its host used at all, and as a module (not through a functional call)? If the "
                    "network is compiled, compile its Regularized, and torch._dynamo.reset() before: a graph of an "
                    "equal network without bottleneck may have run"
                )
            elif not layer.training:
                problem = "is in eval mode while the model trains, so it charges nothing: call train() on it"
            else:
                continue
            self._warned.add(name)
            warnings.warn(f"bottleneck {name} {problem}", stacklevel=5)


class Penalized(nn.Module):
    """Task loss plus penalty, for the output of `Regularized`; a bare tensor gets the task loss alone.

    Args:
        task_loss: `task_loss(output, target) -> Tensor`. Of several draws it takes the mean. One that has a true
            attribute `needs_inputs` is called with `inputs=` too.

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
            output: what the model returned.
            target: as the task loss wants it.
            inputs: the model's input, for task losses that need it.

        Raises:
            ValueError: the task loss needs inputs and there are none.
        """
        further = {}
        if getattr(self.task_loss, "needs_inputs", False):
            if inputs is None:
                raise ValueError(f"{self.task_loss} compares with the inputs: call criterion(output, target, inputs)")
            further["inputs"] = inputs
        if isinstance(output, DrawnOutput):
            draws = next(len(leaf) for leaf in tree_leaves(output.output) if isinstance(leaf, Tensor))
            each = (tree_map_only(Tensor, operator.itemgetter(n), output.output) for n in range(draws))
            return torch.stack([self.task_loss(draw, target, **further) for draw in each]).mean(0) + output.penalty
        if isinstance(output, RegularizedOutput):
            return self.task_loss(output.output, target, **further) + output.penalty
        return self.task_loss(output, target, **further)


def predict(model: nn.Module, x: Tensor, *, draws: int = 0, seed: int | None = None, mean: str | None = None) -> Tensor:
    """Predicts in evaluation mode, with the mean code or averaged over several drawn codes.

    Args:
        model: with or without bottlenecks, wrapped in `Regularized` or not; its modes come back as they were.
        x: the model's input, `(batch, ...)`.
        draws: 0: the deterministic output, the same as `net.eval()(x)` (logits stay logits); n: the average over n
            draws.
        seed: makes the draws reproducible, and leaves the global generator alone.
        mean: what is averaged over draws: "softmax" (class axis 1, gives probabilities) or "output"; None: the softmax
            of an output `(batch, columns)` with two or more columns, the output where there is one. A regression of
            several targets has to say "output".

    Raises:
        ValueError: draws below 0, draws of a model without a stochastic bottleneck, another `mean`, or none for an
            output of more than two axes; a module whose own forward runs a `Regularized`.

    Example:
        >>> import ibreg
        >>> net = nn.Sequential(ibreg.VariationalBottleneck(4, 2), nn.Linear(2, 3))
        >>> x = torch.zeros(5, 4)
        >>> torch.equal(predict(net, x, draws=8, seed=0), predict(net, x, draws=8, seed=0))
        True
    """
    if mean not in (None, "softmax", "output"):
        raise ValueError(f"mean is 'softmax', 'output' or None, got {mean!r}")
    if draws == 0:
        with evaluating(model), torch.no_grad():
            return network_to_run(model)(x)
    with torch.no_grad():
        outputs = draw(model, x, draws=draws, seed=seed)
    if mean is None:
        if outputs.dim() > 3:
            raise ValueError(
                f"the output has shape {tuple(outputs.shape[1:])}: say mean='softmax' (classes on axis 1) "
                "or mean='output'"
            )
        mean = "softmax" if outputs.dim() == 3 and outputs.shape[2] > 1 else "output"
    return (outputs.softmax(2) if mean == "softmax" else outputs).mean(0)


def draw(model: nn.Module, x: Tensor, *, draws: int, seed: int | None = None) -> Tensor:
    """Returns the outputs of several drawn codes, everything else in evaluation mode: `(draws, batch, ...)`.

    Args:
        model: as for `predict`.
        x: the model's input.
        draws: how many, at least 1.
        seed: makes them reproducible, and leaves the global generator alone.

    What stands before the bottleneck runs once, unless the model does not run on a batch that grows inside it (a
    bottleneck in a residual branch): then it runs as a whole for each draw.
    """
    if not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is a whole number of at least 0, got {draws!r}")
    network = network_to_run(model)
    layers = named_bottlenecks(network)
    if not any(layer.stochastic for layer in layers):
        raise ValueError(f"draws={draws} needs a stochastic bottleneck, the model has none")
    devices = {x.device} - {torch.device("cpu")}
    with evaluating(model), torch.random.fork_rng(devices, enabled=seed is not None):
        for layer in layers:
            layer.training = layer.stochastic  # its noise alone: a dropout inside it stays off
        if seed is not None:
            torch.manual_seed(seed)
        scope = Scope(inputs=x, draws=draws, names=layers)
        try:
            outputs = _unfold(_run(network, scope, x), draws, len(x))
        except RuntimeError:
            if draws == 1 or scope.repeats == 1:
                raise
            passes = (_run(network, Scope(inputs=x, names=layers), x) for _ in range(draws))
            outputs = torch.stack(list(passes))
    if not any(record.layer.stochastic for record in scope.records):
        raise ValueError(f"draws={draws} needs a stochastic bottleneck that the model calls, none of them was")
    return outputs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode, and every module back in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside `Regularized`, DDP, `torch.compile` and averages of weights.

    A module that holds a `Regularized` (a LightningModule, say) counts as a wrapper of it.
    """
    return _without_wrappers(next((module for module in model.modules() if isinstance(module, Regularized)), model))


def network_to_run(model: nn.Module) -> nn.Module:
    """Returns the model inside, for whoever runs it in place of the whole.

    Raises:
        ValueError: a module with a forward of its own holds a `Regularized`, and what it does before and after (a
            normalisation, say) would be left out.
    """
    network, outside = unwrap(model), _without_wrappers(model)
    forward = type(outside).forward
    # A LightningModule without a forward of its own has one that only refuses.
    if outside is not network and forward is not nn.Module.forward and not forward.__module__.startswith(LIGHTNING):
        raise ValueError(
            f"{type(outside).__name__} holds a Regularized and has a forward of its own, which would be left out: give "
            "what it holds, or wrap the whole, Regularized(nn.Sequential(normalise, net))"
        )
    return network


def _without_wrappers(model: nn.Module) -> nn.Module:
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
    while True:
        if isinstance(model, Regularized):
            model = model.model
        elif isinstance(model, wrappers):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile; its class lives in a package that is slow to import
            model = model._orig_mod
        else:
            return model


LIGHTNING = ("lightning.", "pytorch_lightning.")
NO_BOTTLENECK = (
    "there is no bottleneck in the model: put one in, ibreg.inject(model, {'name.of.a.module': "
    "ibreg.VariationalBottleneck()}, example=x), where ibreg.candidates(model, x) lists the places"
)


def _collect(scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
    charges, calls = [], {}
    for layer, state, repeats in scope.records:
        penalty, logs = layer.charge(state, scope.repeated(repeats))
        # A copy, because schedules fill beta, maybe before the backward pass.
        charges.append(layer.beta.clone() * penalty)
        for quantity, value in logs.items():
            calls.setdefault(f"{scope.name_of(layer)}/{quantity}", []).append(value)
    total = functools.reduce(operator.add, charges) if charges else next(iter(scope.names)).beta.new_zeros(())
    logs = {name: values[0] if len(values) == 1 else sum(values) / len(values) for name, values in calls.items()}
    return total, logs


def _run(model: nn.Module, scope: Scope, *args, **kwargs) -> Any:
    """Runs a model in a scope; an error behind several draws says what it may come from."""
    with opened(scope):
        if scope.draws == 1 or torch.compiler.is_compiling():
            return model(*args, **kwargs)
        try:
            return model(*args, **kwargs)
        except RuntimeError as error:
            error.add_note(
                f"The first stochastic bottleneck makes the batch {scope.draws} times as long (draws={scope.draws}): "
                "it has to stand on the main path, not in a residual branch, and what follows has to take any batch"
            )
            raise


def _unfold(output: Any, draws: int, batch: int) -> Any:
    """Gives the tensors that grew with the batch a leading axis of draws; others (states, losses) stay as they are."""

    def unfold(tensor: Tensor) -> Tensor:
        grown = tensor.dim() > 0 and tensor.shape[0] == draws * batch
        return tensor.unflatten(0, (draws, batch)) if grown else tensor

    return tree_map_only(Tensor, unfold, output)


def _scope_keywords(model: nn.Module) -> frozenset[str]:
    """Names the scope's keywords that a model's forward declares itself."""
    declared = set(inspect.signature(unwrap(model).forward).parameters)
    if "src_key_padding_mask" in declared:
        declared -= {"mask"}  # torch's encoder calls its attention mask so: a padding mask there would be another thing
    return frozenset(declared & {"target", "concepts", "inputs", "mask"})
