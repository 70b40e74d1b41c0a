"""Optimizers of torch by name, and schedules of the learning rate over epochs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import Field, create_model
from torch import optim
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from ibreg.runs.config.section import Count, Different, NotNegative, Positive, Section, Share, no_key, read
from ibreg.runs.dispatch import choose, find, name_in, options_of

# Set by the recipe (lr, weight_decay), or how torch computes the same step.
NOT_OPTIONS = (
    "lr",
    "weight_decay",
    "foreach",
    "fused",
    "maximize",
    "capturable",
    "differentiable",
    "decoupled_weight_decay",
)
# LBFGS evaluates the loss itself, SparseAdam takes sparse gradients, and Muon matrices alone.
NOT_FOR_RECIPES = ("LBFGS", "SparseAdam", "Muon", "Optimizer")
LIMITS: dict[str, Any] = {"betas": Share, "momentum": Share, "dampening": Share, "alpha": Share, "rho": Share}


def _is_optimizer(entry: Any) -> bool:
    return inspect.isclass(entry) and issubclass(entry, Optimizer) and entry.__name__ not in NOT_FOR_RECIPES


OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): entry for name, entry in sorted(vars(optim).items()) if _is_optimizer(entry)
}


class OptimizerSection(Section):
    """The optimizer; further keys are options of its constructor in torch.

    Attributes:
        name: one of `OPTIMIZERS`.
    """

    name: str


def optimizer_options(name: str) -> dict[str, Any]:
    """Lists the options of an optimizer with torch's defaults, without learning rate and weight decay.

    Example:
        >>> optimizer_options("sgd")
        {'momentum': 0, 'dampening': 0, 'nesterov': False}
    """
    parameters = inspect.signature(OPTIMIZERS[name]).parameters.values()
    plain = (bool, int, float, tuple)
    listed = {p.name: p.default for p in parameters if isinstance(p.default, plain) and p.name not in NOT_OPTIONS}
    return {
        option: default for option, default in listed.items() if not (isinstance(default, tuple) and None in default)
    }


@cache
def _model_of(name: str) -> type[OptimizerSection]:
    fields: Any = {}
    for option, default in optimizer_options(name).items():
        kind = float if isinstance(default, float) and default < 0 else LIMITS.get(option, NotNegative)
        if isinstance(default, bool):
            kind = bool
        elif isinstance(default, tuple):
            kind = Annotated[list[kind], Field(min_length=len(default), max_length=len(default))]
            default = list(default)
        fields[option] = (kind, default)
    return create_model(name, __base__=OptimizerSection, **fields)


def optimizer_section(options: Any, section: str = "optimizer") -> OptimizerSection:
    """Checks the section of an optimizer.

    Raises:
        ValueError: If the name or an option is unknown, or a value is not valid.
    """
    name = name_in(options, OPTIMIZERS, section)
    find("optimizer", name, OPTIMIZERS, section)
    _check_chosen(name, options, section, {other: _model_of(other) for other in OPTIMIZERS})
    return read(_model_of(name), options, section)


def _check_chosen(name: str, options: Mapping[str, Any], section: str, models: Mapping[str, type[Section]]) -> None:
    """Checks that a section does not have the options of another choice, which a name alone leaves there."""
    strange = [option for option in options if option not in models[name].model_fields]
    if strange and all(any(option in model.model_fields for model in models.values()) for option in strange):
        raise ValueError(
            f"{no_key(section, strange[0], models[name].model_fields)}; {section}={name}, in an experiment "
            f"`override /{section}: {name}` in its defaults, chooses it without the options of another"
        )


def build_optimizer(
    section: OptimizerSection, parameters: Iterable[Any], *, lr: float, weight_decay: float
) -> Optimizer:
    """Builds an optimizer.

    Args:
        section: its name and options.
        parameters: parameters or groups of them.
        lr: learning rate.
        weight_decay: weight decay; 0 for an optimizer that has none.

    Raises:
        ValueError: If the optimizer has no weight decay, or refuses a value.
    """
    kind: Any = OPTIMIZERS[section.name]
    takes = inspect.signature(kind).parameters
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in section if key != "name"}
    if "fused" in takes:
        options["fused"] = True
    if "weight_decay" in takes:
        options["weight_decay"] = weight_decay
    elif weight_decay:
        raise ValueError(
            f"optimizer.name={section.name} has no weight decay: weight_decay must be 0, got {weight_decay}"
        )
    try:
        return kind(parameters, lr=lr, **options)
    except ValueError as error:
        raise ValueError(f"optimizer ({section.name}): {error}") from error


class LRScheduleSection(Section):
    """The schedule of the learning rate; further keys are its options.

    Attributes:
        name: one of `LR_SCHEDULES`.
    """

    name: str


def lr_schedule_section(options: Any, section: str = "lr_schedule") -> LRScheduleSection:
    """Checks the section of a schedule of the learning rate.

    Raises:
        ValueError: If the name or an option is unknown, or a value is not valid.
    """
    name = name_in(options, LR_SCHEDULES, section)
    find("schedule of the learning rate", name, LR_SCHEDULES, section)
    models = {other: options_of(schedule, LRScheduleSection) for other, schedule in LR_SCHEDULES.items()}
    _check_chosen(name, options, section, models)
    return read(models[name], options, section)


def build_lr_schedule(section: LRScheduleSection, optimizer: Optimizer, epochs: int) -> LRScheduler:
    """Builds a schedule that is stepped once per epoch."""
    options = {key: value for key, value in section if key != "name"}
    return choose("schedule of the learning rate", section.name, LR_SCHEDULES, options)(optimizer, epochs)


def constant(optimizer: Optimizer, epochs: int) -> LRScheduler:
    """Keeps the learning rate."""
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def step(optimizer: Optimizer, epochs: int, *, every: Count, factor: Positive = 0.1) -> LRScheduler:
    """Multiplies the learning rate by a factor after every so many epochs."""
    return lr_scheduler.StepLR(optimizer, every, factor)


def multi_step(
    optimizer: Optimizer,
    epochs: int,
    *,
    at: Annotated[list[Count], Field(min_length=1), *Different],
    factor: Positive = 0.1,
) -> LRScheduler:
    """Multiplies the learning rate by a factor after each of some epochs."""
    return lr_scheduler.MultiStepLR(optimizer, at, factor)


def exponential(optimizer: Optimizer, epochs: int, *, factor: Positive) -> LRScheduler:
    """Multiplies the learning rate by a factor after every epoch."""
    return lr_scheduler.ExponentialLR(optimizer, factor)


def linear(optimizer: Optimizer, epochs: int, *, final: NotNegative = 0.0) -> LRScheduler:
    """Lowers the learning rate linearly to a fraction of it after the last epoch."""
    return lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=epochs)


def cosine(optimizer: Optimizer, epochs: int, *, final: NotNegative = 0.0) -> LRScheduler:
    """Lowers the learning rate along half a cosine to a fraction of it after the last epoch (arXiv 1608.03983)."""

    # Not CosineAnnealingLR, whose lowest rate is one number for all groups of parameters.
    def factor(epoch: int) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return lr_scheduler.LambdaLR(optimizer, factor)


LR_SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": constant,
    "step": step,
    "multi_step": multi_step,
    "exponential": exponential,
    "linear": linear,
    "cosine": cosine,
}
