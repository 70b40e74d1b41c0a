"""Composition of a recipe's configuration: all bottlenecks at once, run folders named after overrides, builders."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from pydantic import model_validator

from ibreg import registry
from ibreg.layers import Bottleneck
from ibreg.runs.config.help import CONTROL_LAYERS, recipe_help
from ibreg.runs.config.mapping_keys import decoded_text
from ibreg.runs.config.package_data import installed_folder, launch_command
from ibreg.runs.config.section import Section, did_you_mean, no_key
from ibreg.runs.optimizers import OPTIMIZERS, optimizer_options

# Keys that say how and where a run is executed: runs that differ in these alone are the same run.
NOT_PART_OF_A_RUN = (
    "resume", "overwrite", "output_dir", "data.root", "data.download", "data.workers", "cache", "tracker",
)  # fmt: skip


def register_with_hydra() -> None:
    """Registers `bottleneck: all`, the optimizers of torch and the resolvers of the YAMLs, before `hydra.main`."""
    store = ConfigStore.instance().store
    # Hydra has no choice of all configurations of a group, so the list of bottlenecks is made from the registry.
    store(group="bottleneck", name="all", node={"defaults": [f"{name}@{name}" for name in registry.names()]})
    written = {path.stem for path in (installed_folder("configs") / "bottleneck").glob("*.yaml")}
    for name in registry.names():
        if name not in written:  # a user's own: its options are those of the class
            store(group="bottleneck", name=name, node=registry.options(name))
    for name in OPTIMIZERS:
        store(group="optimizer", name=name, node={"name": name, **optimizer_options(name)})
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
    kept = sorted(override.lstrip("+") for override in overrides if is_part_of_a_run(override))
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
    kept = [decoded_text(override.lstrip("+")) for override in overrides if is_part_of_a_run(override)]
    return shlex.join([*launch_command(recipe).split(), *kept])


def identity_of(contents: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the part of the contents of a configuration that identifies a run.

    Example:
        >>> identity_of({"lr": 0.1, "resume": True, "data": {"name": "digits", "root": "/data"}})
        {'lr': 0.1, 'data': {'name': 'digits'}}
    """
    return {
        key: identity_of(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in contents.items()
        if f"{prefix}{key}" not in NOT_PART_OF_A_RUN
    }


class BottleneckConfig(Section):
    """The bottlenecks that can be chosen.

    Attributes:
        bottleneck: options of each method; its `name` there is the registry name, by default the key itself.
    """

    bottleneck: dict[str, dict[str, Any]]

    @model_validator(mode="after")
    def _check_options(self):
        """Checks the names of all options, also of bottlenecks that are not chosen: a misspelt one would do nothing."""
        for method in self.bottleneck:
            name, options = _name_and_options(self, method)
            try:
                known = registry.options(str(name))
            except ValueError as error:
                if "name" in self.bottleneck[method]:
                    raise ValueError(f"bottleneck.{method}.name: {error}") from error
                added = f"to add a method give its name, bottleneck.{method}.name=..."
                raise ValueError(f"{no_key('bottleneck', method, registry.names())}; {added}") from error
            if unknown := [option for option in options if option not in known]:
                raise ValueError(no_key(f"bottleneck.{method}", unknown[0], known))
        return self


def build_bottleneck(cfg: BottleneckConfig, method: str, **settings: Any) -> Bottleneck:
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
        # Most messages begin with the option, which makes them a dotted key.
        separator = "." if str(error).split(" ")[0] in registry.options(name) else ": "
        raise ValueError(f"bottleneck.{method}{separator}{error}") from error


def configured_beta(cfg: BottleneckConfig, method: str) -> float:
    """Returns the beta that the bottleneck of a method is configured with."""
    name, options = _name_and_options(cfg, method)
    return float({**registry.options(name), **options}["beta"])


def rate_bounds(cfg: BottleneckConfig, methods: Iterable[str]) -> dict[str, str]:
    """Returns the information that the logged rate bounds from above, for each method that logs a rate."""
    bounds = {method: build_bottleneck(cfg, method).rate_bounds for method in methods}
    return {method: bound for method, bound in bounds.items() if bound is not None}


def _name_and_options(cfg: BottleneckConfig, method: str) -> tuple[str, dict[str, Any]]:
    if method not in cfg.bottleneck:
        known = [name for name in cfg.bottleneck if name not in CONTROL_LAYERS]
        raise ValueError(f"no bottleneck {method!r}{did_you_mean(method, known)}: choose from {', '.join(known)}")
    options = dict(cfg.bottleneck[method])
    return options.pop("name", method), options
