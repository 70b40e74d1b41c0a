"""Composition of a recipe's configuration: all bottlenecks at once, run folders named after overrides, builders."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ibreg import registry
from ibreg.layers import Bottleneck
from ibreg.runs.config.help import recipe_help
from ibreg.runs.config.package_data import launch_command

# Keys that say how and where a run is executed: runs that differ in these alone are the same run.
NOT_PART_OF_A_RUN = ("resume", "overwrite", "output_dir", "data.root", "data.download", "cache", "tracker")


def register_with_hydra() -> None:
    """Registers `bottleneck: all` and the resolvers of the YAMLs; a recipe calls it before `hydra.main`."""
    # Hydra has no choice of all configurations of a group, so the list of bottlenecks is made from the registry.
    everything = {"defaults": [f"{name}@{name}" for name in registry.names()]}
    ConfigStore.instance().store(group="bottleneck", name="all", node=everything)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("recipe_help", recipe_help, replace=True)


def run_name(overrides: Sequence[str]) -> str:
    """Names a run after its overrides: the same name on every rank, and when the run is resumed.

    Args:
        overrides: as given on the command line.

    Example:
        >>> run_name(["data=mnist", "seeds=[0]"]), run_name(["resume=true", "seeds=[0]", "data=mnist"])
        ('mnist-05bc107b', 'mnist-05bc107b')
    """
    kept = sorted(filter(is_part_of_a_run, overrides))
    if not kept:
        return "default"
    chosen = {key: value for key, _, value in (override.partition("=") for override in kept)}
    title = chosen.get("experiment") or chosen.get("data") or "run"
    return f"{title}-{hashlib.sha256(chr(10).join(kept).encode()).hexdigest()[:8]}"


def is_part_of_a_run(override: str) -> bool:
    """Whether an override changes what is run, rather than how and where."""
    return override.lstrip("+~").partition("=")[0] not in NOT_PART_OF_A_RUN


def command_of(recipe: str) -> str:
    """Returns the command that repeats this run."""
    # In a sweep the command line holds the values of all its runs.
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[1:]
    return " ".join([launch_command(recipe), *filter(is_part_of_a_run, overrides)])


def identity_of(cfg: DictConfig) -> dict[str, Any]:
    """Returns the part of a configuration that identifies a run."""
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    for key in NOT_PART_OF_A_RUN:
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if node is not None:
            node.pop(leaf, None)
    identity: Any = OmegaConf.to_container(cfg, resolve=True)
    return identity


def build_bottleneck(cfg: DictConfig, method: str, **settings: Any) -> Bottleneck:
    """Builds the bottleneck of one method from `bottleneck.<method>`.

    Args:
        cfg: the recipe's configuration.
        method: key under `bottleneck`; its `name` there is the registry name, by default the key itself.
        **settings: options that override those of the configuration.

    Raises:
        ValueError: If there is no such method, or the bottleneck does not have an option or accept its value.
    """
    name, options = _name_and_options(cfg, method)
    try:
        return registry.build(name, **{**options, **settings})
    except (TypeError, ValueError) as error:  # a string where a number belongs is a TypeError
        raise ValueError(f"bottleneck.{method}: {error}") from error


def configured_beta(cfg: DictConfig, method: str) -> float:
    """Returns the beta that the bottleneck of a method is configured with."""
    name, options = _name_and_options(cfg, method)
    return float({**registry.options(name), **options}["beta"])


def rate_bounds(cfg: DictConfig) -> dict[str, str]:
    """Returns the information that the logged rate bounds from above, for each bottleneck of a run that logs a rate."""
    bounds = {method: build_bottleneck(cfg, method).rate_bounds for method in cfg.bottlenecks}
    return {method: bound for method, bound in bounds.items() if bound is not None}


def _name_and_options(cfg: DictConfig, method: str) -> tuple[str, dict[str, Any]]:
    if method not in cfg.bottleneck:
        raise ValueError(
            f"bottleneck {method!r} is not configured: choose from {', '.join(map(str, cfg.bottleneck))} (select them "
            "by bottlenecks=[name], not by bottleneck=name)"
        )
    options: Any = OmegaConf.to_container(cfg.bottleneck[method], resolve=True)
    return options.pop("name", method), options
