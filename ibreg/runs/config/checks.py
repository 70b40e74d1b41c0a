"""Checks of a recipe's configuration, before anything is loaded or written."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType
from omegaconf import DictConfig, ListConfig, OmegaConf

from ibreg.runs.config.composition import build_bottleneck
from ibreg.runs.methods import SCHEDULES
from ibreg.runs.trials import CONTROLS, beta_grid, plan

# Sections whose keys are names of methods, or options of another data set: checked where they are built, as groups are.
OPEN = ("task_losses", "trainings", "places", "settings", "learner", "unlabeled", "ood")
# A key of the tables below that a recipe does not have is not checked.
BOOLEANS = (
    "control", "tune", "resume", "overwrite", "split_by_seed", "shuffle_classes", "balanced", "interventions.wrong",
    "data.download", "data.augment",
)  # fmt: skip
# The keys that a choice of a group has to set.
NAMED = {"data": ("name",), "model": ("name", "inject_at"), "encoder": ("name",)}
# The smallest value of each integer.
INTEGERS = {
    "epochs": 1, "batch_size": 1, "draws": 1, "prediction_draws": 0, "accumulate": 1, "sweep.epochs": 1,
    "schedule.steps": 1, "attack.steps": 1, "attack.rows": 1, "attack.draws": 1, "attack.restarts": 1,
    "adversarial.steps": 1, "corruption.rows": 0, "ood.rows": 1, "sanity.rows": 1, "rows": 1,
    "interventions.rows": 1, "interventions.orders": 5, "tuning_seeds": 1, "unlabeled.limit": 0,
    "initialize.epochs": 1,
}  # fmt: skip
POSITIVE = ("lr", "lr_factor")
AT_LEAST_0 = ("weight_decay", "mixup", "decayed_control")
FRACTIONS = ("ema", "label_smoothing")
LISTS = ("grid.beta", "grid.weight_decay", "sweep.betas", "attack.eps", "attack.eps_l2")
CHOICES = {
    "selection": ("best", "last"),
    "device": ("auto", "cpu"),
    "precision": ("no", "bf16", "fp16"),
    "schedule.name": tuple(SCHEDULES),
    "initialize.method": ("ema", "k_means"),
    "unlearning.by": ("activations", "examples"),
    "tracker": ("none", *map(str, LoggerType.list())),
}
# The largest accepted weight of the first step in an average of the weights at its end.
LARGEST_SHARE_OF_START = 0.01


def check_common(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Checks what all recipes have: keys, names of bottlenecks, seeds, booleans, integers, choices.

    Args:
        cfg: the composed configuration.
        recipe_yaml: the recipe's own YAML, whose keys are the valid ones.

    Raises:
        ValueError: If something is wrong; the message names the key and what is valid.
    """
    if cfg.get("recipe") != recipe_yaml.stem:
        raise ValueError(
            f"the experiment belongs to another recipe: python recipes/{cfg.get('recipe')}.py experiment=..."
        )
    check_keys(cfg, recipe_yaml)
    names = list(cfg.bottlenecks) if isinstance(cfg.bottlenecks, ListConfig) else None
    require(names is not None, "bottlenecks", "a list such as [variational]", cfg.bottlenecks)
    apart = f"different names, none of the controls {', '.join(CONTROLS)}"
    require(_differ(names) and not set(CONTROLS) & set(names or ()), "bottlenecks", apart, names)
    seeds = list(cfg.seeds) if isinstance(cfg.seeds, ListConfig) else []
    valid = seeds and _differ(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)
    require(valid, "seeds", "one or more different integers of at least 0, such as [0,1,2]", cfg.seeds)
    for key, value in _present(cfg, BOOLEANS):
        require(isinstance(value, bool), key, "true or false", value)
    for key, value in _present(cfg, INTEGERS):
        require(type(value) is int and value >= INTEGERS[key], key, f"an integer of at least {INTEGERS[key]}", value)
    for key, value in _present(cfg, CHOICES):
        require(str(value) in CHOICES[key], key, f"one of {', '.join(CHOICES[key])}", value)
    require(cfg.output_dir and type(cfg.output_dir) is str, "output_dir", "the folder of the run", cfg.output_dir)
    if cfg.resume and cfg.overwrite:
        raise ValueError("resume continues a run and overwrite replaces it: give one of them")


def check_configuration(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Checks what recipes that inject bottlenecks have: also methods, the grid and the options of the bottlenecks.

    Args:
        cfg: the composed configuration.
        recipe_yaml: the recipe's own YAML, whose keys are the valid ones.

    Raises:
        ValueError: If something is wrong; the message names the key and what is valid.
    """
    check_common(cfg, recipe_yaml)
    _check_modules(cfg)
    _check_numbers(cfg)
    _check_optimizer(cfg)
    _check_grid(cfg)
    _check_schedule(cfg)
    if (cfg.tune or cfg.selection == "best") and not OmegaConf.select(cfg, "data.validation"):
        raise ValueError(
            "tune=true and selection=best select on validation data: give data.validation, or selection=last"
        )
    for method in cfg.bottlenecks:
        if cfg.tune and not len(beta_grid(cfg, method)) == len(cfg.grid.weight_decay) > 0:
            raise ValueError(
                f"grid.weight_decay and the grid of beta of {method} (grid.beta, or its own in grid.betas) must have "
                "equally many values, so that the control is tuned as hard"
            )
        build_bottleneck(cfg, method)
    names = [trial.name for trials in plan(cfg) for trial in trials]
    if not _differ(names):
        raise ValueError(
            "two training runs are the same: values of a grid of beta, of grid.weight_decay and sweep.betas must differ"
        )


def check_keys(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Refuses keys that the recipe does not have, which `+key=value` adds, those removed by `~key`, and missing values.

    Looks at the recipe's own keys and their sections. Options of data, model and bottleneck are checked where these are
    built; an option that is removed there has its default, which is the value in its YAML.

    Raises:
        ValueError: If a key is unknown, removed or without a value.
    """
    recipe: Any = OmegaConf.to_container(OmegaConf.load(recipe_yaml))
    own = [str(key) for key in recipe if key not in ("defaults", "hydra")]
    entries = [entry for entry in recipe["defaults"] if isinstance(entry, dict)]
    # Neither "override" nor what is null by default: an experiment.
    groups = [key for entry in entries for key, choice in entry.items() if " " not in key and choice is not None]
    _check_section(recipe_yaml.stem, cfg, [*own, *groups])
    for section in own:
        if isinstance(recipe[section], dict) and section not in (*OPEN, *groups):
            _check_section(section, cfg[section], recipe[section])
    for key in (f"{group}.{part}" for group, parts in NAMED.items() if group in groups for part in parts):
        if OmegaConf.select(cfg, key, default=None) is None:
            raise ValueError(f"{key} has no value: choose {key.partition('.')[0]}=NAME, which sets one")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"a value is missing for {', '.join(missing)}: give it on the command line, {missing[0]}=...")


def _check_section(name: str, section: Any, known: Iterable[Any]) -> None:
    known = sorted(map(str, known))
    if not isinstance(section, DictConfig):
        raise ValueError(f"{name} must be a section with the keys {', '.join(known)}, got {section}")
    for key in map(str, section):
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{name} has no key {key!r}{hint}: it has {', '.join(known)}")
    for key in known:
        if key not in section:
            raise ValueError(f"{name} needs the key {key!r}, which was removed: give it a value instead")


def check_steps(cfg: DictConfig, *, rows: int, processes: int) -> None:
    """Checks that the training rows fill a batch, processes can split it, and an average of weights forgets its start.

    Raises:
        ValueError: If the batch is too large, or is no multiple of the number of processes.
    """
    if rows < cfg.batch_size:
        raise ValueError(f"batch_size={cfg.batch_size} is more than the {rows} training rows")
    if cfg.batch_size % processes:
        raise ValueError(
            f"batch_size={cfg.batch_size} is split over {processes} processes: give a multiple of {processes}"
        )
    if not cfg.get("ema"):
        return
    steps = cfg.epochs * (rows // cfg.batch_size) // cfg.accumulate
    if cfg.ema**steps > LARGEST_SHARE_OF_START:
        warnings.warn(
            f"ema={cfg.ema}: after {steps} steps {cfg.ema**steps:.0%} of the averaged weights are those of the first "
            f"step. Use at most {LARGEST_SHARE_OF_START ** (1 / steps):.3g}, or train longer",
            stacklevel=2,
        )


def require(valid: Any, key: str, what: str, value: Any) -> None:
    """Raises an error that names a key, its valid values and the given one, unless that is valid.

    Raises:
        ValueError: If the value is not valid.
    """
    if not valid:
        raise ValueError(f"{key} must be {what}, got {value}")


def is_number(value: Any, *, least: float = -math.inf) -> bool:
    """Whether a value is a finite number, and at least so large."""
    return type(value) in (int, float) and math.isfinite(value) and value >= least


def is_fraction(value: Any) -> bool:
    """Whether a value is a number in [0, 1)."""
    return is_number(value, least=0) and value < 1


def _check_modules(cfg: DictConfig) -> None:
    if not (cfg.bottlenecks or cfg.control):
        raise ValueError("there is nothing to train: name bottlenecks, or use control=true")
    modules = list(cfg.inject_at) if isinstance(cfg.inject_at, ListConfig) else [cfg.inject_at]
    valid = modules and _differ(modules) and all(name and type(name) is str for name in modules)
    require(valid, "inject_at", "the name of a module, or a list of different ones", cfg.inject_at)


def _check_numbers(cfg: DictConfig) -> None:
    for key, value in _present(cfg, POSITIVE):
        require(is_number(value) and value > 0, key, "a number greater than 0", value)
    for key, value in _present(cfg, AT_LEAST_0):
        require(is_number(value, least=0), key, "a number of at least 0", value)
    for key, value in _present(cfg, FRACTIONS):
        require(is_fraction(value), key, "a number in [0, 1)", value)
    own = [f"grid.betas.{method}" for method in cfg.grid.betas] if isinstance(cfg.grid.betas, DictConfig) else []
    for key, values in _present(cfg, (*LISTS, *own)):
        valid = isinstance(values, ListConfig) and all(is_number(value, least=0) for value in values)
        valid = valid or (key == "grid.beta" and values is None)
        require(valid, key, "a list of numbers of at least 0, such as [1e-3,1e-2]", values)


def _check_optimizer(cfg: DictConfig) -> None:
    listed = isinstance(cfg.lr_every, ListConfig)
    every = list(cfg.lr_every) if listed else [cfg.lr_every]
    valid = every and all(type(epoch) is int and epoch >= listed for epoch in every)
    require(valid, "lr_every", "a number of epochs, 0 for never, or a list of epochs such as [65,90]", cfg.lr_every)
    betas = list(cfg.adam_betas) if isinstance(cfg.adam_betas, ListConfig) else []
    require(len(betas) == 2 and all(map(is_fraction, betas)), "adam_betas", "two numbers in [0, 1)", cfg.adam_betas)


def _check_grid(cfg: DictConfig) -> None:
    betas = cfg.grid.betas
    require(isinstance(betas, DictConfig), "grid.betas", "the grids of some bottlenecks, {hsic: [0.1,1]}", betas)
    for key, section in (("grid.betas", betas), ("places", cfg.get("places"))):
        _check_methods(cfg, key, section)
    if "dropout" not in cfg:
        return
    rates = list(cfg.grid.dropout) if isinstance(cfg.grid.dropout, ListConfig) else [None]
    require(is_fraction(cfg.dropout), "dropout", "a probability in [0, 1)", cfg.dropout)
    require(all(map(is_fraction, rates)), "grid.dropout", "a list of probabilities in [0, 1)", cfg.grid.dropout)
    if cfg.tune and len(rates) != len(cfg.grid.weight_decay):
        raise ValueError("grid.dropout and grid.weight_decay must have equally many values: they are tried in pairs")


def _check_schedule(cfg: DictConfig) -> None:
    rates = cfg.schedule.rate
    if isinstance(rates, DictConfig) and set(cfg.bottlenecks) - set(rates):
        raise ValueError(f"schedule.rate has no rate for {', '.join(set(cfg.bottlenecks) - set(rates))}")
    _check_methods(cfg, "schedule.rate", rates)
    for rate in rates.values() if isinstance(rates, DictConfig) else [rates]:
        valid = is_number(rate) and rate > 0
        require(valid, "schedule.rate", "a number of nats greater than 0, or one for each method", rates)


def _check_methods(cfg: DictConfig, key: str, section: Any) -> None:
    unknown = set(section) - set(cfg.bottleneck) if isinstance(section, DictConfig) else set()
    if unknown:
        raise ValueError(f"{key} names {', '.join(sorted(unknown))}, but there are {', '.join(cfg.bottleneck)}")


def _present(cfg: DictConfig, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yields the keys that a configuration has, with their values."""
    for key in keys:
        section, _, leaf = key.rpartition(".")
        if leaf in ((OmegaConf.select(cfg, section) if section else cfg) or ()):
            yield key, OmegaConf.select(cfg, key)


def _differ(values: Sequence[Any] | None) -> bool:
    return values is not None and len(set(values)) == len(values)
