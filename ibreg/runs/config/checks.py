"""What can be wrong with a recipe's configuration, found before anything is loaded or written."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType
from omegaconf import DictConfig, ListConfig, OmegaConf

from ibreg.runs.methods import SCHEDULES, build_bottleneck
from ibreg.runs.trials import CONTROLS, beta_grid, plan

# Sections whose keys are names of methods, or options of another data set: checked where they are built, as groups are.
OPEN = ("task_losses", "trainings", "places", "settings", "learner", "unlabeled", "ood")
# A key of these that a recipe does not have is not checked.
SWITCHES = (
    "control", "tune", "resume", "overwrite", "split_by_seed", "shuffle_classes", "balanced", "interventions.wrong",
    "data.download", "data.augment",
)  # fmt: skip
# What a choice of a group has to bring.
NAMED = {"data": ("name",), "model": ("name", "inject_at"), "encoder": ("name",)}
# The least value of each integer.
INTEGERS = {
    "epochs": 1, "batch_size": 1, "draws": 1, "prediction_draws": 0, "accumulate": 1, "sweep.epochs": 1,
    "schedule.steps": 1, "attack.steps": 1, "attack.rows": 1, "attack.draws": 1, "attack.restarts": 1,
    "adversarial.steps": 1, "corruption.rows": 0, "outliers.rows": 1, "sanity.rows": 1, "rows": 1,
    "interventions.rows": 1, "interventions.orders": 5, "tuning_seeds": 1, "unlabeled.limit": 0,
    "initialize.epochs": 1,
}  # fmt: skip
NUMBERS_ABOVE_0 = ("lr", "lr_factor")
FRACTIONS = ("ema", "label_smoothing")
# Of the weights of the first step in what an average is at the end.
LARGEST_SHARE_OF_START = 0.01
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


def check_common(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Checks what all recipes have in common: keys, names of bottlenecks, seeds, switches, integers, choices.

    Args:
        cfg: the composed configuration.
        recipe_yaml: the recipe's own YAML, whose keys are the valid ones.

    Raises:
        ValueError: something is wrong; the message names the key and what is valid.
    """
    if cfg.get("recipe") != recipe_yaml.stem:
        raise ValueError(
            f"the experiment is one of another recipe: python recipes/{cfg.get('recipe')}.py experiment=..."
        )
    check_keys(cfg, recipe_yaml)
    if not isinstance(cfg.bottlenecks, ListConfig):
        raise ValueError(f"bottlenecks is a list such as [variational], got {cfg.bottlenecks}")
    names = list(cfg.bottlenecks)
    if len(set(names)) < len(names) or set(CONTROLS) & set(names):
        raise ValueError(f"bottlenecks are named once each, and {', '.join(CONTROLS)} are the controls, got {names}")
    seeds = list(cfg.seeds) if isinstance(cfg.seeds, ListConfig) else []
    if len(set(seeds)) < max(len(seeds), 1) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds are one or more different integers of at least 0, such as [0,1,2], got {cfg.seeds}")
    for key in filter(lambda key: _has(cfg, key), SWITCHES):
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise ValueError(f"{key} is true or false, got {OmegaConf.select(cfg, key)}")
    for key, least in INTEGERS.items():
        value = OmegaConf.select(cfg, key)
        if _has(cfg, key) and (type(value) is not int or value < least):
            raise ValueError(f"{key} is an integer of at least {least}, got {value}")
    for key, valid in CHOICES.items():
        if _has(cfg, key) and str(OmegaConf.select(cfg, key)) not in valid:
            raise ValueError(f"{key} is one of {', '.join(valid)}, got {OmegaConf.select(cfg, key)}")
    if not (cfg.output_dir and type(cfg.output_dir) is str):
        raise ValueError(f"output_dir is the folder of the run, got {cfg.output_dir}")
    if cfg.resume and cfg.overwrite:
        raise ValueError("resume goes on with a run and overwrite starts it anew: give one of them")


def check_configuration(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Checks what recipes that put bottlenecks into a model have in common: also methods, the grid and the bottlenecks.

    Args:
        cfg: the composed configuration.
        recipe_yaml: the recipe's own YAML, whose keys are the valid ones.

    Raises:
        ValueError: something is wrong; the message names the key and what is valid.
    """
    check_common(cfg, recipe_yaml)
    _check_places(cfg)
    _check_values(cfg)
    if (cfg.tune or cfg.selection == "best") and not OmegaConf.select(cfg, "data.validation"):
        raise ValueError(
            "tune=true and selection=best choose on validation data: give data.validation, or selection=last"
        )
    for method in cfg.bottlenecks:
        if cfg.tune and not len(beta_grid(cfg, method)) == len(cfg.grid.weight_decay) > 0:
            raise ValueError(
                f"grid.weight_decay and the grid of beta of {method} (grid.beta, or its own in grid.betas) have equally "
                "many values, so that the control is tuned as hard"
            )
        build_bottleneck(cfg, method)
    trainings = [trial.name for trials in plan(cfg) for trial in trials]
    if len(set(trainings)) < len(trainings):
        raise ValueError(
            "two trainings are the same: the values of a grid of beta, of grid.weight_decay and sweep.betas differ"
        )


def check_keys(cfg: DictConfig, recipe_yaml: Path) -> None:
    """Refuses keys that the recipe does not have, which `+key=value` adds, those removed by `~key`, and open values.

    Looks at the recipe's own keys and their sections. Options of data, model and bottleneck are checked where these are
    built; one of them that is removed has its default there, which is the value in its YAML.

    Raises:
        ValueError: an unknown key, with the closest one; a key that was removed; a mandatory value that is missing.
    """
    recipe: Any = OmegaConf.to_container(OmegaConf.load(recipe_yaml))
    own = [str(key) for key in recipe if key not in ("defaults", "hydra")]
    entries = [entry for entry in recipe["defaults"] if isinstance(entry, dict)]
    # Not "override", nor what is none by default: an experiment.
    groups = [key for entry in entries for key, choice in entry.items() if " " not in key and choice is not None]
    _check_section(recipe_yaml.stem, cfg, [*own, *groups])
    for section in own:
        if isinstance(recipe[section], dict) and section not in (*OPEN, *groups):
            _check_section(section, cfg[section], recipe[section])
    for key in (f"{group}.{part}" for group, parts in NAMED.items() if group in groups for part in parts):
        if OmegaConf.select(cfg, key, default=None) is None:
            raise ValueError(f"{key} has no value: choose with {key.partition('.')[0]}=NAME, which brings one")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"a value is missing for {', '.join(missing)}: give it on the command line, {missing[0]}=...")


def _check_section(name: str, section: Any, known: Iterable[Any]) -> None:
    known = sorted(map(str, known))
    if not isinstance(section, DictConfig):
        raise ValueError(f"{name} is a section with the keys {', '.join(known)}, got {section}")
    for key in map(str, section):
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{name} has no key {key!r}{hint}: it has {', '.join(known)}")
    for key in known:
        if key not in section:
            raise ValueError(f"{name} needs the key {key!r}, which was removed: give it a value instead")


def check_steps(cfg: DictConfig, *, rows: int, processes: int) -> None:
    """Checks that training rows fill a batch, that processes can share it, and that an average forgets its start."""
    if rows < cfg.batch_size:
        raise ValueError(f"batch_size={cfg.batch_size} is more than the {rows} training rows")
    if cfg.batch_size % processes:
        raise ValueError(
            f"batch_size={cfg.batch_size} is shared by {processes} processes: give a multiple of {processes}"
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


def _check_places(cfg: DictConfig) -> None:
    if not (cfg.bottlenecks or cfg.control):
        raise ValueError("there is nothing to train: name bottlenecks, or leave control=true")
    places = list(cfg.inject_at) if isinstance(cfg.inject_at, ListConfig) else [cfg.inject_at]
    if not places or len(set(places)) < len(places) or not all(place and type(place) is str for place in places):
        raise ValueError(f"inject_at names at least one module, or a list of different ones, got {cfg.inject_at}")


def _check_values(cfg: DictConfig) -> None:
    for key in NUMBERS_ABOVE_0:
        if not (_is_number(cfg[key]) and cfg[key] > 0):
            raise ValueError(f"{key} is a number greater than 0, got {cfg[key]}")
    if not (_is_number(cfg.weight_decay) and cfg.weight_decay >= 0):
        raise ValueError(f"weight_decay is a number of at least 0, got {cfg.weight_decay}")
    for key in filter(lambda key: _has(cfg, key), FRACTIONS):
        if not _is_fraction(cfg[key]):
            raise ValueError(f"{key} is a number in [0, 1), got {cfg[key]}")
    if _has(cfg, "mixup") and not (_is_number(cfg.mixup) and cfg.mixup >= 0):
        raise ValueError(f"mixup is a number of at least 0 (none), got {cfg.mixup}")
    if "dropout" in cfg:
        _check_dropout(cfg)
    listed = isinstance(cfg.lr_every, ListConfig)
    every = list(cfg.lr_every) if listed else [cfg.lr_every]
    if not every or not all(type(epoch) is int and epoch >= listed for epoch in every):
        raise ValueError(
            f"lr_every is a number of epochs, 0 for never, or a list of epochs such as [65,90], got {cfg.lr_every}"
        )
    decay = cfg.get("decayed_control", 0)
    if not (_is_number(decay) and decay >= 0):
        raise ValueError(f"decayed_control is a number of at least 0, got {decay}")
    if not (
        isinstance(cfg.adam_betas, ListConfig) and len(cfg.adam_betas) == 2 and all(map(_is_fraction, cfg.adam_betas))
    ):
        raise ValueError(f"adam_betas are two numbers in [0, 1), got {cfg.adam_betas}")
    if not isinstance(cfg.grid.betas, DictConfig):
        raise ValueError(f"grid.betas has the grids of some bottlenecks, {{hsic: [0.1,1]}}, got {cfg.grid.betas}")
    for key in (*filter(lambda key: _has(cfg, key), LISTS), *(f"grid.betas.{method}" for method in cfg.grid.betas)):
        values = OmegaConf.select(cfg, key)
        if key == "grid.beta" and values is None:
            continue
        if not (isinstance(values, ListConfig) and all(_is_number(value) and value >= 0 for value in values)):
            raise ValueError(f"{key} is a list of numbers of at least 0, such as [1e-3,1e-2], got {values}")
    rates = cfg.schedule.rate
    if isinstance(rates, DictConfig) and set(cfg.bottlenecks) - set(rates):
        raise ValueError(f"schedule.rate has no rate for {', '.join(set(cfg.bottlenecks) - set(rates))}")
    for key, keyed in (("schedule.rate", rates), ("grid.betas", cfg.grid.betas), ("places", cfg.get("places"))):
        unknown = set(keyed) - set(cfg.bottleneck) if isinstance(keyed, DictConfig) else set()
        if unknown:
            raise ValueError(f"{key} names {', '.join(sorted(unknown))}, but there are {', '.join(cfg.bottleneck)}")
    for rate in rates.values() if isinstance(rates, DictConfig) else [rates]:
        if not (_is_number(rate) and rate > 0):
            raise ValueError(f"schedule.rate is a number of nats greater than 0, or one for each method, got {rates}")


def _check_dropout(cfg: DictConfig) -> None:
    rates = list(cfg.grid.dropout) if isinstance(cfg.grid.dropout, ListConfig) else [None]
    if not all(map(_is_fraction, (cfg.dropout, *rates))):
        raise ValueError(
            f"dropout is a share in [0, 1), and grid.dropout a list of them, got {cfg.dropout} and {cfg.grid.dropout}"
        )
    if cfg.tune and len(rates) != len(cfg.grid.weight_decay):
        raise ValueError("grid.dropout and grid.weight_decay have equally many values: they are tried in pairs")


def _has(cfg: DictConfig, key: str) -> bool:
    section, _, leaf = key.rpartition(".")
    return leaf in ((OmegaConf.select(cfg, section) if section else cfg) or ())


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1
