"""The model of a method: its bottleneck, the network that holds it, and the schedule of its beta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor, nn

from ibreg.hosts import CHILD
from ibreg.prediction import predict
from ibreg.regularized import Regularized, bottlenecks
from ibreg.runs.config.composition import build_bottleneck, configured_beta
from ibreg.runs.config.section import Count, Different, Name
from ibreg.runs.data.images import Normalization
from ibreg.runs.models import classifiers as models
from ibreg.runs.trials import CONTROLS, ComparisonConfig, GridConfig, Trial, option_of
from ibreg.schedules import Schedule
from ibreg.surgery.injection import inject

ModelSection = Annotated[SerializeAsAny[models.Model], BeforeValidator(models.model_options)]
Modules = Annotated[
    Name | Annotated[list[Name], Field(min_length=1), *Different],
    Field(json_schema_extra={"valid": "the name of a module, or a list of one or more different ones"}),
]


class MethodConfig(GridConfig):
    """The network that methods are compared on.

    Attributes:
        model: name and options of the network.
        inject_at: module after which bottlenecks are injected, or a list of modules.
        draws: number of Monte Carlo samples of each code in training.
        prediction_draws: number of Monte Carlo samples at prediction; 0: the mean code.
    """

    model: ModelSection
    inject_at: Modules
    draws: Count
    prediction_draws: Annotated[int, Field(ge=0)]


def build_method(
    cfg: MethodConfig, trial: Trial, network: Callable[[int | None], nn.Module], example: Tensor
) -> nn.Module:
    """Builds the model of a method: the network, with the layer of the method injected where it has one.

    Args:
        cfg: the recipe's configuration.
        trial: the training run.
        network: builds the network; its argument is the size of the code that the head reads, None for its own.
        example: an input of the network.

    Raises:
        ValueError: If there is no module `inject_at`, or the next layer does not accept the code.
    """
    option = option_of(trial)
    if trial.method in CONTROLS and option is None:
        return network(None)
    settings = {} if option is None else {option[0]: option[1]}
    at = modules_of(cfg, trial.method)
    layers = {module: build_bottleneck(cfg, trial.method, **settings) for module in at}
    # Only after the model's own module does its head read the code itself, and can be built for another size.
    own = cfg.model.inject_at
    model = network(getattr(layers.get(own) if isinstance(own, str) else None, "out_features", None))
    try:
        inject(model, layers, example=example)
    except (TypeError, ValueError) as error:
        raise ValueError(f"inject_at={','.join(at)}: {error}") from error
    try:
        predict(model, example)
    except (RuntimeError, ValueError) as error:
        resized = [
            f"{layer.out_features} features for {layer.in_features} after {name.rpartition('.')[0]}"
            for name, layer in bottlenecks(model).items()
            if getattr(layer, "out_features", layer.in_features) != layer.in_features
        ]
        if not resized:
            raise
        raise ValueError(
            f"inject_at={','.join(at)} with bottleneck.{trial.method}.out_features gives {', '.join(resized)}, which "
            f"the next layer does not accept ({error}): leave out_features=null, or inject at {own} alone"
        ) from error
    return Regularized(model, draws=cfg.draws if is_stochastic(model) else 1)


def build_model(
    cfg: MethodConfig, trial: Trial, input_shape: Sequence[int], classes: int, normalization: Normalization | None
) -> nn.Module:
    """Builds the model of a method on the network that `model` configures, see `build_method`."""
    network = partial(build_network, cfg, input_shape, classes, normalization=normalization)
    return build_method(cfg, trial, network, example=torch.zeros(1, *input_shape))


def build_network(
    cfg: MethodConfig,
    input_shape: Sequence[int],
    classes: int,
    code_features: int | None = None,
    *,
    normalization: Normalization | None,
) -> nn.Module:
    """Builds the network that bottlenecks are injected into, its head for a code of `code_features` if given."""
    return models.build(
        **cfg.model.options(),
        input_shape=tuple(input_shape),
        classes=classes,
        code_features=code_features,
        normalization=normalization,
    )


def modules_of(cfg: MethodConfig, method: str) -> list[str]:
    """Returns the modules after which a method has its bottleneck: its own in `places`, else `inject_at`."""
    at = getattr(cfg, "places", {}).get(method, cfg.inject_at)
    return [at] if isinstance(at, str) else list(at)


def is_stochastic(model: nn.Module) -> bool:
    """Whether a model has a bottleneck that samples its code."""
    return any(layer.stochastic for layer in bottlenecks(model).values())


def beta_used(cfg: ComparisonConfig, trials: Sequence[Trial], states: Mapping[Trial, dict[str, Any]]) -> float | None:
    """Returns the beta of a method's training runs, tuned or configured; None for a control.

    With the target-rate schedule every run reaches a beta of its own: the mean of those at the selected epochs.
    """
    method, tuned = trials[0].method, trials[0].beta
    if method in CONTROLS or tuned is not None:
        return tuned
    if not isinstance(cfg, GridConfig) or cfg.schedule.name != "target_rate":
        return configured_beta(cfg, method)
    weights = [states[trial]["weights"] for trial in trials]
    return fmean(
        float(value) for of_seed in weights for name, value in of_seed.items() if name.endswith(f"{CHILD}.beta")
    )


def build_schedule(cfg: ComparisonConfig, method: str, model: nn.Module) -> Schedule | None:
    """Builds the schedule of beta of a method; None for controls and for a constant beta."""
    if method in CONTROLS or not isinstance(cfg, GridConfig):
        return None
    return cfg.schedule.build(method, model)
