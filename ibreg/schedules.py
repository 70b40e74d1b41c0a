"""Schedules of beta, like `torch.optim.lr_scheduler`: constructed on the model, stepped by the training loop.

`schedule.step(output)` takes what `Regularized` returned. Every schedule fills the `beta` buffers of the bottlenecks,
so that the state dict of the model holds beta, and no step synchronizes the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.distributed import mean_over_ranks
from ibreg.layers.base import Bottleneck
from ibreg.layers.constraints import Above, AtLeast, Between
from ibreg.regularized import RegularizedOutput, bottlenecks


class Schedule:
    """Base class of schedules: the bottlenecks whose beta is scheduled, and the number of steps so far.

    Args:
        model: with bottlenecks, wrapped or not.
        layers: names of the bottlenecks to schedule, as in `ibreg.bottlenecks(model)`; None: all.

    Raises:
        ValueError: If the model has no bottleneck, or none of a given name.
    """

    def __init__(self, model: nn.Module, *, layers: Iterable[str] | None = None):
        available = bottlenecks(model)
        if not available:
            raise ValueError("there is no bottleneck in the model, so there is no beta to schedule")
        chosen = [layers] if isinstance(layers, str) else list(available if layers is None else layers)
        unknown = [name for name in chosen if name not in available]
        if unknown:
            raise ValueError(
                f"no bottleneck is called {', '.join(map(repr, unknown))}: choose from {', '.join(available)}"
            )
        self.layers: dict[str, Bottleneck] = {name: available[name] for name in chosen}
        self.steps = 0

    def step(self, output: RegularizedOutput | None = None) -> None:
        """Updates beta; call it once after each optimizer step.

        Args:
            output: what `Regularized` returned in training, for schedules that depend on it.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs beside the state dict of the model, which holds beta itself."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.steps = int(state["steps"])


class FactorSchedule(Schedule):
    """Base class of schedules that multiply the initial beta by a factor that depends on the step alone.

    A subclass defines `factor` and calls `apply` last in its `__init__`.

    Args:
        model: with bottlenecks.
        steps: length of the schedule, in calls of `step`; at least 1.
        layers: names; None: all.
    """

    def __init__(self, model: nn.Module, steps: int, *, layers: Iterable[str] | None = None):
        super().__init__(model, layers=layers)
        self.length = AtLeast(1).check("steps", steps)

    @property
    def progress(self) -> float:
        """The completed fraction of the schedule, in [0, 1]."""
        return min(self.steps / self.length, 1.0)

    def factor(self) -> float:
        """Returns the factor of the initial beta at the current step."""
        raise NotImplementedError

    def apply(self) -> None:
        """Sets beta to its initial value times the factor."""
        factor = self.factor()
        for layer in self.layers.values():
            layer.beta.fill_(layer.initial_beta * factor)

    def step(self, output: RegularizedOutput | None = None) -> None:
        """Sets beta to its value at the next step; call it once after each optimizer step.

        Args:
            output: ignored; all schedules have the same signature.
        """
        self.steps += 1
        self.apply()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned, and beta with it."""
        super().load_state_dict(state)
        self.apply()


class LinearWarmup(FactorSchedule):
    """Increases beta linearly from a fraction of its initial value to that value.

    factor = start + (1 - start) * min(step / steps, 1)

    Args:
        model: with bottlenecks.
        steps: length of the warm-up, in calls of `step`.
        start: fraction at step 0, in [0, 1].
        layers: names; None: all.

    Example:
        >>> import ibreg
        >>> layer = ibreg.VariationalBottleneck(4, beta=1.0)
        >>> warmup = LinearWarmup(nn.Sequential(layer), 4)
        >>> warmup.step()
        >>> layer.beta
        tensor(0.2500)
    """

    def __init__(self, model: nn.Module, steps: int, *, start: float = 0.0, layers: Iterable[str] | None = None):
        super().__init__(model, steps, layers=layers)
        self.start = Between(0, 1).check("start", start)
        self.apply()

    def factor(self) -> float:
        """Returns start + (1 - start) * progress."""
        return self.start + (1 - self.start) * self.progress


class Cosine(FactorSchedule):
    """Moves beta along half a cosine: factor = end + (start - end) * (1 + cos(pi * min(step / steps, 1))) / 2.

    Args:
        model: with bottlenecks.
        steps: length, in calls of `step`.
        start: factor of beta at step 0, at least 0.
        end: factor at the last step and after it, at least 0; by default beta decreases from its initial value to 0.
        layers: names; None: all.
    """

    def __init__(
        self, model: nn.Module, steps: int, *, start: float = 1.0, end: float = 0.0, layers: Iterable[str] | None = None
    ):
        super().__init__(model, steps, layers=layers)
        self.start = AtLeast(0).check("start", start)
        self.end = AtLeast(0).check("end", end)
        self.apply()

    def factor(self) -> float:
        """Returns end + (start - end) * (1 + cos(pi * progress)) / 2."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self.progress)) / 2


class TargetRate(Schedule):
    r"""Holds a target rate by dual ascent on beta, which increases while the rate is above it and decreases below.

    .. math:: \log \beta_t = \log \beta_{t-1} + \eta \, \mathrm{clip}(e_t) + \gamma \, \mathrm{clip}(e_t - e_{t-1}),
        \quad e_t = \log \frac{R_t}{R^*}

    with clip to [-1, 1]. beta is the multiplier of the constraint R = R*; the update acts on its logarithm, so that an
    initial beta that is off by orders of magnitude is corrected in hundreds of steps. The second term keeps beta from
    increasing while the rate decreases already; without it beta overshoots and the code collapses (Stooke et al. 2020,
    arXiv 2007.03964). A collapsed code may not recover at any beta: start from the smaller of two guesses.

    Args:
        model: with bottlenecks that log `rate`.
        rate: the target rate R*, in nats per sample; a number, or a mapping from layer names to numbers. With several
            processes the mean over ranks is held, so every rank has to call `step`.
        step_size: eta; smaller is smoother, larger is faster.
        damping: gamma; larger overshoots less and passes more of the noise of the rate to beta.
        bounds: smallest and largest beta.
        layers: names; None: all.

    Raises:
        ValueError: If an option is out of range; in `step`, if the output has no rate of a layer, or if the rate of a
            layer cannot be as high as its target.
    """

    def __init__(
        self,
        model: nn.Module,
        rate: float | Mapping[str, float],
        *,
        step_size: float = 0.03,
        damping: float = 1.5,
        bounds: tuple[float, float] = (1e-8, 1e4),
        layers: Iterable[str] | None = None,
    ):
        super().__init__(model, layers=rate if layers is None and isinstance(rate, Mapping) else layers)
        self.rate = dict(rate) if isinstance(rate, Mapping) else dict.fromkeys(self.layers, float(rate))
        if set(self.rate) != set(self.layers):
            raise ValueError(f"rate names {', '.join(self.rate)}, but the layers are {', '.join(self.layers)}")
        if not all(0 < target < math.inf for target in self.rate.values()):
            raise ValueError(f"rate must be a finite number of nats above 0, got {rate}")
        if not 0 < bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be two numbers with 0 < bounds[0] < bounds[1], got {bounds}")
        self.step_size = Above(0).check("step_size", step_size)
        self.damping = AtLeast(0).check("damping", damping)
        self.bounds = bounds
        self.excess: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps and the last log excess of each layer."""
        return {**super().state_dict(), "excess": {name: value.clone() for name, value in self.excess.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.excess = {name: value.to(self.layers[name].beta.device) for name, value in state["excess"].items()}

    @torch.no_grad()
    def step(self, output: RegularizedOutput | None = None) -> None:
        """Updates beta by the logged rates; call it once after each optimizer step.

        Args:
            output: what `Regularized` returned in training.
        """
        self.steps += 1
        logs = {} if output is None else output.logs
        for name in self.layers:
            self._check_logs(name, logs)
        for name, layer in self.layers.items():
            rate = mean_over_ranks(logs[f"{name}/rate"])
            excess = (rate.clamp(min=1e-6) / self.rate[name]).log()
            last = self.excess.get(name, excess)
            change = self.step_size * excess.clamp(-1, 1) + self.damping * (excess - last).clamp(-1, 1)
            # A NaN rate does not change beta, and the next rate is compared with the last finite one.
            layer.beta.clamp_(min=self.bounds[0]).mul_(change.nan_to_num(0.0).exp()).clamp_(*self.bounds)
            self.excess[name] = torch.where(excess.isfinite(), excess, last)

    def _check_logs(self, name: str, logs: Mapping[str, Tensor]) -> None:
        if not any(key.startswith(f"{name}/") for key in logs):
            raise ValueError(
                f"TargetRate needs the logged rate '{name}/rate': call step(output) with what Regularized returned"
            )
        if f"{name}/rate" not in logs:
            raise ValueError(
                f"TargetRate needs a rate, and bottleneck {name} ({type(self.layers[name]).__name__}) logs none: "
                "pass layers=[...] with the names of those that do"
            )
        if name not in self.excess:  # once, as it synchronizes the device
            self._check_reachable(name, logs)

    def _check_reachable(self, name: str, logs: Mapping[str, Tensor]) -> None:
        """Refuses a target that a pairwise rate cannot reach: it is at most log N, and logs its fraction of that."""
        if f"{name}/saturation" not in logs or not (saturation := float(logs[f"{name}/saturation"])) > 0:
            return
        limit = float(logs[f"{name}/rate"]) / saturation
        if self.rate[name] >= limit:
            raise ValueError(
                f"TargetRate cannot hold {self.rate[name]:g} nats in bottleneck {name}: the rate is at most log(batch)"
                f" = {limit:.3g} nats, and its gradient vanishes near that; use a much lower rate, or a larger batch"
            )


class PatienceGate(Schedule):
    """Sets beta to 0 while the task loss does not improve.

    beta is 0 from `patience` steps without improvement until the next improvement.

    Args:
        model: with bottlenecks.
        patience: number of steps without improvement after which beta is 0; at least 1.
        threshold: relative decrease of the task loss that counts as an improvement, in [0, 1).
        layers: names; None: all.
    """

    def __init__(
        self, model: nn.Module, patience: int = 10, *, threshold: float = 1e-4, layers: Iterable[str] | None = None
    ):
        super().__init__(model, layers=layers)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be a fraction of the loss in [0, 1), got {threshold}")
        self.patience = AtLeast(1).check("patience", patience)
        self.threshold = threshold
        self.best = math.inf
        self.stale = 0
        self.held: dict[str, Tensor] = {}

    def step(self, output: RegularizedOutput | None = None, *, task_loss: Tensor | float | None = None) -> None:
        """Opens or closes the gate.

        Args:
            output: ignored; all schedules have the same signature.
            task_loss: the loss without the penalty, of a validation set or averaged over an epoch (that of one batch is
                too noisy).

        Raises:
            ValueError: If there is no task loss.
        """
        if task_loss is None:
            raise ValueError("PatienceGate needs the task loss: call step(output, task_loss=...)")
        self.steps += 1
        loss = float(task_loss)
        margin = self.threshold * abs(self.best) if math.isfinite(self.best) else 0.0
        if loss < self.best - margin:
            self.best, self.stale = loss, 0
        else:
            self.stale += 1
        self._open_or_close()

    def state_dict(self) -> dict[str, Any]:
        """Returns the steps, the best loss, the number of steps since then, and the betas that a closed gate holds."""
        held = {name: beta.clone() for name, beta in self.held.items()}
        return {**super().state_dict(), "best": self.best, "stale": self.stale, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned, and beta with it."""
        super().load_state_dict(state)
        self.best, self.stale = float(state["best"]), int(state["stale"])
        self.held = {name: beta.to(self.layers[name].beta.device) for name, beta in state["held"].items()}
        self._open_or_close()

    def _open_or_close(self) -> None:
        closed = self.stale >= self.patience
        for name, layer in self.layers.items():
            if closed:
                # The current beta, not the initial one: another schedule may have changed it.
                self.held.setdefault(name, layer.beta.clone())
                layer.beta.zero_()
            elif name in self.held:
                layer.beta.copy_(self.held.pop(name))
