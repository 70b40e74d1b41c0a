"""Base class of the bottlenecks, and the result of one call: code, penalty and logs.

A layer cannot return its penalty (it would not work in an `nn.Sequential`) nor store it (wrong under checkpointing,
copies and several calls). It therefore records itself and the state that the penalty reads in the `Scope` that
`Regularized` opens around the model's forward pass. The penalties are computed after that pass, outside of any
activation checkpoint.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ibreg.layers.constraints import AtLeast, Axis, Constraint, Count, Optional
from ibreg.layers.scope import Record, Scope, current_scope, opened
from ibreg.precision import full_precision, tree_at_least_float32
from ibreg.tracing import assert_finite, can_assert, inside_checkpoint


class BottleneckOutput(NamedTuple):
    """Code, penalty and logs of one call, as `Bottleneck.measure` returns them.

    Attributes:
        z: the code.
        penalty: 0-dim float32, not weighted by beta; 0 outside training.
        logs: detached 0-dim tensors by name.
    """

    z: Tensor
    penalty: Tensor
    logs: dict[str, Tensor]


class Bottleneck(nn.Module):
    """Base class of all bottlenecks: `z = layer(x)`, and a penalty that `Regularized` collects.

    A subclass defines `transform` (code and state) and `penalty`; with parameters also `create_parameters` and
    `reset_parameters`. It declares the `constraints` of its options and stores every constructor argument as an
    attribute of the same name (`keep` does both), which `config` reads.

    Args:
        in_features: size of the feature axis; None where no parameter depends on it, or until `materialize` or `inject`
            sets it.
        beta: weight of the penalty in the loss, at least 0; kept in a 0-dim float32 buffer that schedules fill.
        dim: feature axis; None: the last of vectors and tokens (rank 2 and 3), the channel (1) of maps (rank 4 and up).
        device: device of beta and of the parameters.

    Raises:
        ValueError: If an option is not valid, or an input does not fit.
    """

    registry_name: ClassVar[str]
    stochastic: ClassVar[bool] = False  # samples its code in training
    reads_scope: ClassVar[bool] = False  # `transform` reads the scope: activation checkpointing is refused
    sized: ClassVar[bool] = True  # has parameters whose shape depends on in_features
    undecayed: ClassVar[tuple[str, ...]] = ()  # further parameters without weight decay, see `parameter_groups`
    constraints: ClassVar[dict[str, Constraint]] = {  # of the options; merged with those of the base classes
        "in_features": Optional(Count("size of the feature axis")),
        "beta": AtLeast(0),
        "dim": Optional(Axis()),
    }

    beta: Tensor
    _injected: bool = False  # whether `inject` added the layer to its host

    if TYPE_CHECKING:  # options are set by `keep`, which checks them

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        inherited: Any = super(cls, cls)
        cls.constraints = inherited.constraints | vars(cls).get("constraints", {})

    def __init__(self, in_features: int | None = None, *, beta: float = 1.0, dim: int | None = None, device=None):
        super().__init__()
        self.keep(in_features=in_features, dim=dim)
        self.initial_beta = float(self.constraints["beta"].check("beta", beta))
        self.register_buffer("beta", torch.tensor(self.initial_beta, dtype=torch.float32, device=device))
        self._warned = False

    def keep(self, **options: Any) -> None:
        """Checks options against the class's `constraints` and stores them as attributes.

        Raises:
            ValueError: If a constraint does not allow an option's value.
        """
        for option, value in options.items():
            setattr(self, option, self.constraints[option].check(option, value))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns the options of the constructor with their defaults, without device and dtype.

        Example:
            >>> Bottleneck.defaults()
            {'in_features': None, 'beta': 1.0, 'dim': None}
        """
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {option.name: option.default for option in parameters if option.name not in ("self", "device", "dtype")}

    @property
    def needs(self) -> tuple[str, ...]:
        """Side inputs that the penalty requires in training: some of `inputs`, `target` and `concepts`."""
        return ()

    @property
    def rate_bounds(self) -> str | None:
        """Information that the logged `rate` bounds from above; None if no rate is logged."""
        return None

    def sample_rate(self, state: Any) -> Tensor | None:
        """Returns the rate of each sample in nats, `(batch,)`, without labels: a score of out-of-distribution inputs.

        None if the rate is not defined for a single sample, because it compares the samples of a batch.

        Args:
            state: of `transform`.
        """
        return None

    def materialize(self, in_features: int | None, *, device=None, dtype=None) -> None:
        """Creates and initializes the parameters for a feature size; does nothing if it is None.

        A subclass calls it at the end of its `__init__`; `inject` calls it for layers built without `in_features`.
        """
        if in_features is None:
            return
        self.keep(in_features=in_features)
        self.create_parameters(device=device, dtype=dtype)
        self.reset_parameters()

    def create_parameters(self, *, device=None, dtype=None) -> None:
        """Registers the parameters; `in_features` is set."""

    def reset_parameters(self) -> None:
        """Initializes the parameters and beta."""
        self.beta.fill_(self.initial_beta)

    def transform(self, x: Tensor, scope: Scope | None = None) -> tuple[Tensor, Any]:
        """Returns the code and the state that `penalty` reads, by the same operations with and without a scope.

        The state is a tensor, or a tuple or dict of tensors. Parameters that the penalty needs belong in it, as copies:
        FSDP2 has resharded them when the penalty is computed.
        """
        raise NotImplementedError

    def penalty(self, state: Any, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the penalty (batch mean per sample, 0-dim, not weighted by beta) and the quantities to log.

        Half-precision tensors of the state arrive as float32, with autocast off. Buffers change here alone, and only in
        training.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Returns the code of `x`; inside `Regularized` the call is recorded for the penalty."""
        scope = current_scope()
        self._check(x, scope)
        if scope is None:
            self._check_without_scope()
            return _laid_out_as(x, self.transform(x)[0])
        if self.training and scope.grad_enabled and not torch.is_grad_enabled():
            raise RuntimeError(
                f"bottleneck {scope.name_of(self)} runs without gradients inside a forward pass with gradients. If the "
                "model uses torch.utils.checkpoint, pass use_reentrant=False; if this part is frozen, call eval() on it"
            )
        if self.reads_scope and self.training and inside_checkpoint():
            raise RuntimeError(
                f"bottleneck {scope.name_of(self)} reads targets or concepts in its forward, which the recomputation "
                "of an activation checkpoint does not have: leave it out of the checkpointed part"
            )
        repeats = scope.repeats
        z, state = self.transform(x, scope)
        scope.records.append(Record(self, state, repeats))
        return _laid_out_as(x, z)

    def penalize(self, state: Any, scope: Scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the penalty before beta, float32 and 0 outside training, and the detached logs."""
        missing = [need for need in self.needs if getattr(scope, need) is None]
        if missing:
            if self.training and scope.grad_enabled:
                call = ", ".join(f"{need}=..." for need in missing)
                raise ValueError(
                    f"bottleneck {scope.name_of(self)} needs {' and '.join(missing)}: call model(x, {call})"
                )
            return self._zero(), {}
        if scope.mask is not None and scope.mask.is_floating_point() and can_assert(scope.mask):
            torch._assert_async(
                ((scope.mask == 0) | (scope.mask == 1)).all(),
                "a mask must be 1 where a position counts and 0 elsewhere",
            )
        with full_precision(self.beta), torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            penalty, logs = self.penalty(tree_at_least_float32(state), scope)
        logs = {name: value.detach().float() for name, value in logs.items()}
        return (penalty.float() if self.training else self._zero()), logs

    def measure(self, x: Tensor, *, inputs=None, target=None, concepts=None, mask=None) -> BottleneckOutput:
        """Runs the layer by itself and returns code, penalty and logs, for tests and inspection.

        Args:
            x: `(batch, ...)`.
            inputs: the model's input; None: `x` itself.
            target: labels, where the penalty needs them.
            concepts: concept labels, where the penalty needs them.
            mask: `(batch, positions)`, True where a position counts.
        """
        scope = Scope(inputs=x if inputs is None else inputs, target=target, concepts=concepts, mask=mask)
        with opened(scope):
            z = self(x)
        (record,) = scope.records
        penalty, logs = self.penalize(record.state, scope)
        return BottleneckOutput(z, penalty, logs)

    def feature_axis(self, x: Tensor) -> int:
        """Returns the axis of `x` that holds the features."""
        if self.dim is not None:
            return self.dim
        return 1 if x.dim() >= 4 else -1

    def features_last(self, x: Tensor) -> Tensor:
        """Returns a view of `x` with the feature axis last."""
        axis = self.feature_axis(x)
        return x if axis in (-1, x.dim() - 1) else x.movedim(axis, -1)

    def features_back(self, z: Tensor) -> Tensor:
        """Returns a view with the features on their axis again, the inverse of `features_last`."""
        axis = self.feature_axis(z)
        return z if axis in (-1, z.dim() - 1) else z.movedim(-1, axis)

    def config(self) -> dict[str, Any]:
        """Returns the constructor arguments that rebuild this layer, without device and dtype."""
        return {name: self._beta_value() if name == "beta" else getattr(self, name) for name in self.defaults()}

    def extra_repr(self) -> str:
        """Describes sizes and beta."""
        features = getattr(self, "out_features", None)
        sizes = f"{self.in_features} -> {features}" if features is not None else f"{self.in_features}"
        return f"{sizes}, beta={self._beta_value():g}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float32, device=self.beta.device)

    def _beta_value(self) -> float:
        if self.beta.is_meta or self.beta == torch.tensor(self.initial_beta, dtype=torch.float32):
            return self.initial_beta
        return float(self.beta)

    def check_shape(self, x: Tensor, name: str, *, any_size: bool = False) -> None:
        """Raises a ValueError, which begins with a name, where an input does not fit this layer.

        Args:
            x: the input.
            name: of the layer, for the message.
            any_size: accepts any number of features where `in_features` is not known yet, as before `materialize`.
        """
        if self.sized and self.in_features is None and not any_size:
            raise ValueError(f"{name} has no in_features: pass them, or inject it with example=x")
        if not x.is_floating_point():
            raise ValueError(f"{name} takes a floating-point tensor, got {x.dtype}")
        rank = x.dim()
        if rank < 2:
            raise ValueError(f"{name} takes (batch, features) or more axes, got shape {tuple(x.shape)}")
        axis = self.feature_axis(x)
        if not -rank <= axis < rank or axis % rank == 0:
            raise ValueError(f"{name} has dim={axis}, which is no feature axis of an input of shape {tuple(x.shape)}")
        if self.in_features is not None and x.shape[axis] != self.in_features:
            fitting = [other for other in range(1, rank) if x.shape[other] == self.in_features]
            hint = f"; axis {fitting[0]} has that size: pass dim={fitting[0]}" if fitting else ""
            raise ValueError(
                f"{name} takes {self.in_features} features on axis {axis % rank}, "
                f"got an input of shape {tuple(x.shape)}{hint}"
            )

    def _check(self, x: Tensor, scope: Scope | None) -> None:
        name = scope.name_of(self) if scope is not None else type(self).__name__
        self.check_shape(x, f"bottleneck {name}")
        assert_finite(x, f"bottleneck {name} got NaN or infinite values in its input")

    def _check_without_scope(self) -> None:
        if self._warned or not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return
        # An activation checkpoint that recomputes runs inside the backward pass, where no scope is open any more.
        if torch._C._current_graph_task_id() != -1:
            return
        self._warned = True
        warnings.warn(
            f"{self!r} is training without its penalty: wrap the model, model = ibreg.Regularized(model), and add the "
            "penalty that it returns to the loss (ibreg.Penalized does)",
            stacklevel=5,
        )

    def _apply(self, fn, recurse=True):
        beta = self.beta
        super()._apply(fn, recurse)
        # half() and bfloat16() are for weights: a beta of 1e-8 would become 0.
        if self.beta.dtype != torch.float32:
            self.beta = beta.to(self.beta.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Weights saved before the injection do not have this layer: it keeps its own, so that a strict load of the rest
        # of the model succeeds. Loaded by itself (no prefix), a missing key stays an error.
        if prefix and not any(key.startswith(prefix) for key in state_dict):
            state_dict.update({prefix + key: value for key, value in self.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _laid_out_as(x: Tensor, z: Tensor) -> Tensor:
    """Returns the code, contiguous if the input is: a `view` after the layer may rely on it."""
    return z.contiguous() if x.is_contiguous() else z
