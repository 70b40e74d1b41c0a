"""The keys that recipes share, and the composed configuration of a recipe as a checked object."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, Literal, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, SerializeAsAny, model_validator

from ibreg.runs.accelerator import AcceleratorConfig
from ibreg.runs.config.mapping_keys import decoded
from ibreg.runs.config.section import Count, Names, NotNegative, Positive, read, shown
from ibreg.runs.methods import MethodConfig
from ibreg.runs.optimizers import LRScheduleSection, OptimizerSection, lr_schedule_section, optimizer_section
from ibreg.runs.trials import ComparisonConfig

# The largest accepted weight of the first step in an average of the weights at its end.
LARGEST_SHARE_OF_START = 0.01


class RunConfig(ComparisonConfig, AcceleratorConfig):
    """The keys of every recipe.

    Attributes:
        recipe: name of the recipe that a configuration, or an experiment, is for.
        imports: modules that register bottlenecks of the user's own.
        batch_size: rows per batch, over all processes.
        clip: largest norm of a gradient; 0: no clipping.
    """

    recipe: str
    imports: Names
    batch_size: Count
    clip: NotNegative


class TrainingConfig(RunConfig, MethodConfig):
    """The keys of recipes that inject bottlenecks into a network.

    Attributes:
        lr: learning rate.
        optimizer: name and options of an optimizer.
        lr_schedule: name and options of the schedule of the learning rate.
        selection: epoch to keep: the best on validation data, or the last.
    """

    data: Any
    lr: Positive
    optimizer: Annotated[SerializeAsAny[OptimizerSection], BeforeValidator(optimizer_section)]
    lr_schedule: Annotated[SerializeAsAny[LRScheduleSection], BeforeValidator(lr_schedule_section)]
    selection: Literal["best", "last"]

    @model_validator(mode="after")
    def _check_selection(self):
        if (self.tune or self.selection == "best") and not self.data.validation:
            raise ValueError(
                "tune=true and selection=best select on validation data: give data.validation, or selection=last"
            )
        return self


AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def read_recipe(model: type[AnyConfig], composed: DictConfig) -> AnyConfig:
    """Checks the composed configuration of a recipe.

    Args:
        model: the recipe's keys; its title is the name of the recipe.
        composed: by Hydra.

    Raises:
        ValueError: If an experiment belongs to another recipe, a value is missing, or a key or value is not valid.
    """
    name = model.model_config.get("title")
    if composed.get("recipe") != name:
        raise ValueError(
            f"the experiment belongs to another recipe: python recipes/{composed.get('recipe')}.py experiment=..."
        )
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        contents = {} if missing else OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        # An interpolation reads a key of what an experiment has set to a name alone.
        found = re.search(r"node `(\w+)` is not a container", str(error))
        if found is None:
            raise
        section, value = found[1], shown(cast(dict[str, Any], OmegaConf.to_container(composed))[found[1]])
        raise ValueError(
            f"{section} must be a section of keys, got {value}: choose one by {section}={value}, in an experiment by "
            f"`override /{section}: {value}` in its defaults"
        ) from error
    if missing:
        given = " ".join(f"{key}=..." for key in missing)
        raise ValueError(f"a value is missing for {', '.join(missing)}: give it on the command line, {given}")
    return read(model, decoded(cast(dict[str, Any], contents)))


def check_steps(cfg: RunConfig, *, rows: int, processes: int) -> None:
    """Checks that the training rows fill a batch, processes can split it, and an average of weights forgets its start.

    Raises:
        ValueError: If the batch is too large, or is no multiple of the number of processes.
    """
    if rows < cfg.batch_size:
        raise ValueError(f"batch_size must be at most {rows}, the number of training rows, got {cfg.batch_size}")
    if cfg.batch_size % processes:
        raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {cfg.batch_size}")
    steps = cfg.epochs * (rows // cfg.batch_size) // cfg.accumulate
    if cfg.ema**steps > LARGEST_SHARE_OF_START and cfg.ema:
        warnings.warn(
            f"ema={cfg.ema}: after {steps} steps {cfg.ema**steps:.0%} of the averaged weights are those of the first "
            f"step. Use at most {LARGEST_SHARE_OF_START ** (1 / steps):.3g}, or train longer",
            stacklevel=2,
        )
