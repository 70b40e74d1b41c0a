"""Beta over time, like `torch.optim.lr_scheduler`: built on the model, stepped by the loop.

`schedule.step(output)` takes what `Regularized` returned; every schedule fills the `beta` buffer of the bottlenecks, so
the model's own state carries it, and nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ibreg.distributed import mean_over_ranks
from ibreg.layers.base import Bottleneck
from ibreg.regularized import RegularizedOutput, bottlenecks


class Schedule:
    """Base class: the bottlenecks that it moves, the beta that each was built with, and the number of steps so far.

    Args:
        model: with bottlenecks, wrapped or not.
        layers: names as in `ibreg.bottlenecks(model)`; None: all.

    Raises:
        ValueError: no bottleneck, or an unknown name.
    """

    def __init__(self, model: nn.Module, *, layers: Iterable[str] | None = None):
        found = bottlenecks(model)
        if not found:
            raise ValueError("there is no bottleneck in the model, so there is no beta to schedule")
        chosen = [layers] if isinstance(layers, str) else list(found if layers is None else layers)
        unknown = [name for name in chosen if name not in found]
        if unknown:
            raise ValueError(f"no bottleneck is called {', '.join(map(repr, unknown))}: choose from {', '.join(found)}")
        self.layers: dict[str, Bottleneck] = {name: found[name] for name in chosen}
        self.steps = 0

    def step(self, output: RegularizedOutput | None = None) -> None:
        """Moves beta; call it once after each optimizer step.

        Args:
            output: what `Regularized` returned in training, for schedules that react to it.
        """
        self.steps += 1
        self._update(output)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs beside the model, whose buffers hold beta itself."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a `state_dict` was taken."""
        self.steps = int(state["steps"])
        self._restore()

    def _restore(self) -> None:
        """Sets beta to what the steps so far made it, where they alone say so."""

    def _update(self, output: RegularizedOutput | None) -> None:
        raise NotImplementedError

    def _scale(self, factor: float) -> None:
        for layer in self.layers.values():
            layer.beta.fill_(layer.initial_beta * factor)


class LinearWarmup(Schedule):
    """Raises beta linearly from a fraction of its value to the whole.

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
        super().__init__(model, layers=layers)
        _check_steps(steps)
        if not 0 <= start <= 1:
            raise ValueError(f"start is a fraction of beta in [0, 1], got {start}")
        self.length = steps
        self.start = start
        self._restore()

    def _update(self, output: RegularizedOutput | None) -> None:
        self._restore()

    def _restore(self) -> None:
        self._scale(self.start + (1 - self.start) * min(self.steps / self.length, 1.0))


class Cosine(Schedule):
    """Moves beta along half a cosine: factor = end + (start - end) * (1 + cos(pi * min(step / steps, 1))) / 2.

    Args:
        model: with bottlenecks.
        steps: length, in calls of `step`.
        start: factor of beta at step 0.
        end: factor at the last step and after; the default falls from the whole beta to 0.
        layers: names; None: all.
    """

    def __init__(
        self, model: nn.Module, steps: int, *, start: float = 1.0, end: float = 0.0, layers: Iterable[str] | None = None
    ):
        super().__init__(model, layers=layers)
        _check_steps(steps)
        if start < 0 or end < 0:
            raise ValueError(f"start and end are factors of beta of at least 0, got {start} and {end}")
        self.length = steps
        self.start = start
        self.end = end
        self._restore()

    def _update(self, output: RegularizedOutput | None) -> None:
        self._restore()

    def _restore(self) -> None:
        progress = min(self.steps / self.length, 1.0)
        self._scale(self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2)


class TargetRate(Schedule):
    r"""Holds a wanted rate by dual ascent on beta: beta grows while the rate is above, and shrinks while it is below.

    .. math:: \log \beta_t = \log \beta_{t-1} + \eta \, \mathrm{clip}(e_t) + \gamma \, \mathrm{clip}(e_t - e_{t-1}),
        \quad e_t = \log \frac{R_t}{R^*}

    with clip to [-1, 1]. beta is the multiplier of the constraint R = R*; its logarithm is what moves, so that a beta
    that is wrong by orders of magnitude is found in hundreds of steps. The second term keeps beta from growing on while
    the rate is on its way down already; without it beta overshoots and the code collapses (Stooke et al. 2020, arXiv
    2007.03964). A code that has collapsed may not come back at any beta: of two guesses start from the smaller.

    Args:
        model: with bottlenecks that log `rate`.
        rate: the wanted rate R*, in nats per sample; a number, or one for each layer name. With several processes it is
            the mean over ranks that is held, so every rank has to call `step`.
        step_size: eta; smaller is smoother, larger is faster.
        damping: gamma; larger overshoots less and hands more of the rate's noise on to beta.
        bounds: smallest and largest beta.
        layers: names; None: all.

    Raises:
        ValueError: at `step`, when the output has no rate of a layer, or at the first one that cannot be as high.
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
        if not all(0 < wanted < math.inf for wanted in self.rate.values()):
            raise ValueError(f"a wanted rate is a finite number of nats greater than 0, got {rate}")
        if not (step_size > 0 and damping >= 0 and 0 < bounds[0] < bounds[1]):
            raise ValueError(
                f"step_size > 0, damping >= 0 and 0 < bounds[0] < bounds[1], got {step_size}, {damping} and {bounds}"
            )
        self.step_size = step_size
        self.damping = damping
        self.bounds = bounds
        self.excess: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the steps and the last log excess of each layer."""
        return {**super().state_dict(), "excess": {name: value.clone() for name, value in self.excess.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a `state_dict` was taken."""
        super().load_state_dict(state)
        self.excess = {name: value.to(self.layers[name].beta.device) for name, value in state["excess"].items()}

    @torch.no_grad()
    def _update(self, output: RegularizedOutput | None) -> None:
        for name in self.layers:
            if output is None or not any(key.startswith(f"{name}/") for key in output.logs):
                raise ValueError(
                    f"TargetRate needs the logged rate '{name}/rate': call step(output) with what Regularized returned"
                )
            if f"{name}/rate" not in output.logs:
                raise ValueError(
                    f"TargetRate holds a rate, and bottleneck {name} ({type(self.layers[name]).__name__}) logs none: "
                    "give layers= those that do"
                )
            if name not in self.excess:
                self._check_reachable(name, output.logs)
        for name, layer in self.layers.items():
            rate = mean_over_ranks(output.logs[f"{name}/rate"])
            excess = (rate.clamp(min=1e-6) / self.rate[name]).log()
            last = self.excess.get(name, excess)
            move = self.step_size * excess.clamp(-1, 1) + self.damping * (excess - last).clamp(-1, 1)
            # A rate of NaN moves nothing, and the next one is compared with the last that was finite.
            layer.beta.clamp_(min=self.bounds[0]).mul_(move.nan_to_num(0.0).exp()).clamp_(*self.bounds)
            self.excess[name] = torch.where(excess.isfinite(), excess, last)

    def _check_reachable(self, name: str, logs: Mapping[str, Tensor]) -> None:
        """Asks once, as it waits for the device: a rate between pairs is at most log N, and tells its share of that."""
        if f"{name}/saturation" not in logs or not (share := float(logs[f"{name}/saturation"])) > 0:
            return
        most = float(logs[f"{name}/rate"]) / share
        if self.rate[name] >= most:
            raise ValueError(
                f"TargetRate cannot hold {self.rate[name]:g} nats in bottleneck {name}: the rate is at most log(batch)"
                f", here {most:.3g} nats, and has no gradient near that; take one well below, or a larger batch"
            )


class PatienceGate(Schedule):
    """Compresses only while the task loss improves.

    beta is 0 from `patience` steps without improvement until the next one.

    Args:
        model: with bottlenecks.
        patience: how many steps without improvement beta outlives.
        threshold: relative fall of the task loss that counts as an improvement.
        layers: names; None: all.
    """

    def __init__(
        self, model: nn.Module, patience: int = 10, *, threshold: float = 1e-4, layers: Iterable[str] | None = None
    ):
        super().__init__(model, layers=layers)
        _check_steps(patience)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is a fraction of the loss in [0, 1), got {threshold}")
        self.patience = patience
        self.threshold = threshold
        self.best = math.inf
        self.stale = 0
        self.held: dict[str, Tensor] = {}

    def step(self, output: RegularizedOutput | None = None, *, task_loss: Tensor | float | None = None) -> None:
        """Opens or closes the gate.

        Args:
            output: not read; here so that all schedules are called alike.
            task_loss: the loss without penalty, of a validation set or averaged over an epoch (of one batch it is
                noise).

        Raises:
            ValueError: no task loss.
        """
        if task_loss is None:
            raise ValueError("PatienceGate watches the task loss: call step(output, task_loss=...)")
        self.steps += 1
        loss = float(task_loss)
        margin = self.threshold * abs(self.best) if math.isfinite(self.best) else 0.0
        if loss < self.best - margin:
            self.best, self.stale = loss, 0
        else:
            self.stale += 1
        self._restore()

    def state_dict(self) -> dict[str, Any]:
        """Returns the steps, the best loss, how long ago it was, and the betas that a closed gate holds back."""
        held = {name: beta.clone() for name, beta in self.held.items()}
        return {**super().state_dict(), "best": self.best, "stale": self.stale, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a `state_dict` was taken."""
        self.best, self.stale = float(state["best"]), int(state["stale"])
        self.held = {name: beta.to(self.layers[name].beta.device) for name, beta in state["held"].items()}
        super().load_state_dict(state)

    def _restore(self) -> None:
        closed = self.stale >= self.patience
        for name, layer in self.layers.items():
            if closed:
                # Not the first beta but the one it finds: another schedule may have moved it.
                self.held.setdefault(name, layer.beta.clone())
                layer.beta.zero_()
            elif name in self.held:
                layer.beta.copy_(self.held.pop(name))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a number of steps is at least 1, got {steps}")
