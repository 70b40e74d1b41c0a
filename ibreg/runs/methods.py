"""From a method of a run to what trains it: its bottleneck, the model that holds it, the schedule of beta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from ibreg import schedules
from ibreg.hosts import CHILD
from ibreg.layers import Bottleneck
from ibreg.prediction import predict
from ibreg.regularized import Regularized, bottlenecks
from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.models import classifiers as models
from ibreg.runs.trials import CONTROLS, Trial
from ibreg.surgery.injection import inject


class Dropout(Bottleneck):
    """Dropout in a bottleneck's place, without a penalty: what a user would do instead (Srivastava et al. 2014).

    Args:
        rate: share of values that are set to 0 in training, in [0, 1).
    """

    sized = False

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def transform(self, x: Tensor, scope=None) -> tuple[Tensor, tuple]:
        """Sets values to 0 at random, and raises the others so that the mean stays."""
        return F.dropout(x, self.rate, self.training), ()

    def penalty(self, state: tuple, scope) -> tuple[Tensor, dict[str, Tensor]]:
        """Charges nothing."""
        return torch.zeros((), device=self.beta.device), {}


def build_method(
    cfg: DictConfig, trial: Trial, network: Callable[[int | None], nn.Module], example: Tensor
) -> nn.Module:
    """Builds the model of a method: the control as it is, the others with their bottleneck, or dropout, in it.

    Args:
        cfg: the recipe's configuration.
        trial: the training.
        network: builds the model; takes the width of the code that its head reads, None for the model's own.
        example: an input of the model.

    Raises:
        ValueError: there is no module `inject_at`, or what stands behind it cannot take the code.
    """
    if trial.method in CONTROLS and trial.dropout is None:
        return network(None)
    settings = {} if trial.beta is None else {"beta": trial.beta}
    at = places_of(cfg, trial.method)
    layers = {
        place: build_bottleneck(cfg, trial.method, **settings) if trial.dropout is None else Dropout(trial.dropout)
        for place in at
    }
    # Only at the model's own place does its head read the code itself, and so can be built for another width.
    own = cfg.model.inject_at if isinstance(cfg.model.inject_at, str) else None
    model = network(getattr(layers.get(own), "out_features", None))
    try:
        inject(model, layers, example=example)
    except (TypeError, ValueError) as error:
        raise ValueError(f"inject_at={','.join(at)}: {error}") from error
    try:
        predict(model, example)
    except (RuntimeError, ValueError) as error:
        wide = [
            f"{layer.out_features} features for {layer.in_features} behind {name.rpartition('.')[0]}"
            for name, layer in bottlenecks(model).items()
            if getattr(layer, "out_features", layer.in_features) != layer.in_features
        ]
        if not wide:
            raise
        raise ValueError(
            f"inject_at={','.join(at)} with bottleneck.{trial.method}.out_features gives {', '.join(wide)}, which the "
            f"next layer does not take ({error}): leave out_features=null, or inject at {own} alone"
        ) from error
    return Regularized(model, draws=cfg.draws if is_stochastic(model) else 1)


def build_model(cfg: DictConfig, trial: Trial, input_shape: Sequence[int], classes: int) -> nn.Module:
    """Builds the model of a method, with its bottleneck in the network that `model` names, see `build_method`."""
    network = partial(build_network, cfg, input_shape, classes)
    return build_method(cfg, trial, network, example=torch.zeros(1, *input_shape))


def build_network(
    cfg: DictConfig, input_shape: Sequence[int], classes: int, code_features: int | None = None
) -> nn.Module:
    """Builds the network that bottlenecks go into, for a code of another width if asked."""
    options = {key: value for key, value in cfg.model.items() if key != "inject_at"}
    return models.build(**options, input_shape=input_shape, classes=classes, code_features=code_features)


def places_of(cfg: DictConfig, method: str) -> list[str]:
    """Returns the modules behind which a method has its bottleneck: its own in `places`, else `inject_at`."""
    at = (cfg.get("places") or {}).get(method, cfg.inject_at)
    return [at] if isinstance(at, str) else list(at)


def is_stochastic(model: nn.Module) -> bool:
    """Whether a model has a bottleneck that draws its code."""
    return any(layer.stochastic for layer in bottlenecks(model).values())


def beta_used(cfg: DictConfig, trials: Sequence[Trial], states: Mapping[Trial, dict[str, Any]]) -> float | None:
    """Returns the beta of a method's trainings, the same for all seeds: tuned or configured, None for a control.

    The target-rate schedule finds a beta in each training: of these the mean, at the selected epochs.
    """
    method, tuned = trials[0].method, trials[0].beta
    if method in CONTROLS or tuned is not None:
        return tuned
    if cfg.schedule.name != "target_rate":
        return build_bottleneck(cfg, method).initial_beta
    weights = [states[trial]["weights"] for trial in trials]
    return fmean(
        float(value) for of_seed in weights for name, value in of_seed.items() if name.endswith(f"{CHILD}.beta")
    )


def build_schedule(cfg: DictConfig, method: str, model: nn.Module) -> schedules.Schedule | None:
    """Builds what moves beta while a method trains; None for the controls and where beta stays."""
    return SCHEDULES[cfg.schedule.name](cfg.schedule, method, model) if method not in CONTROLS else None


def _target_rate(options: DictConfig, method: str, model: nn.Module) -> schedules.TargetRate:
    rate = options.rate[method] if isinstance(options.rate, DictConfig) else options.rate
    return schedules.TargetRate(model, float(rate))


SCHEDULES: dict[str, Callable[[DictConfig, str, nn.Module], schedules.Schedule | None]] = {
    "none": lambda options, method, model: None,
    "linear_warmup": lambda options, method, model: schedules.LinearWarmup(model, options.steps),
    "cosine": lambda options, method, model: schedules.Cosine(model, options.steps),
    "target_rate": _target_rate,
}
