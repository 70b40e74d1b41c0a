"""Adopts the models of a finished run, which a robustness run then measures instead of training new ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.config.composition import identity_of
from ibreg.runs.config.recipe import RunConfig
from ibreg.runs.config.section import read
from ibreg.runs.folder import CHECKPOINTS, CONFIG, SUMMARY
from ibreg.runs.tasks.classification import ClassificationConfig
from ibreg.runs.tasks.robustness.configuration import RobustnessConfig
from ibreg.runs.training import Task
from ibreg.runs.trials import plan

RECIPES: dict[str, type[RunConfig]] = {"classification": ClassificationConfig, "robustness": RobustnessConfig}
# Keys that concern measuring and showing trained models; all other keys that both runs have determine the models.
NOT_OF_THE_TRAINING = (
    "recipe",
    "bottlenecks",  # each method is trained separately
    "checkpoint",
    "attack",
    "corruption",
    "ood",
    "sanity",
    "prediction_draws",
    "sweep",
)


def check_adoptable(cfg: RobustnessConfig, task: Task) -> None:
    """Checks that the run `checkpoint` is finished, has the same configuration, and holds weights of these models.

    Args:
        cfg: the recipe's configuration.
        task: builds the models.

    Raises:
        FileNotFoundError: If there is no finished run, or weights of it are missing.
        ValueError: If the folder is that of this run, the architecture differs, or the configuration does; the message
            then lists the overrides that make it the same.
    """
    folder = Path(str(cfg.checkpoint))
    if folder.resolve() == Path(cfg.output_dir).resolve():
        raise ValueError(f"checkpoint={folder} is where this run writes as well: set another output_dir")
    if not all((folder / name).is_file() for name in (CONFIG, SUMMARY)):
        raise FileNotFoundError(
            f"checkpoint={folder} is no finished run: set it to the folder of a run that has {CONFIG} and {SUMMARY}"
        )
    other = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
    if other["recipe"] not in RECIPES:
        raise ValueError(f"checkpoint={folder} is a run of {other['recipe']}: it has no classifiers")
    if "adversarial" not in other and cfg.adversarial.name != "none":
        raise ValueError(f"checkpoint={folder} was trained on clean inputs: set adversarial.name=none")
    contents = cfg.contents()
    wanted, own = _of_the_training(other, contents), _of_the_training(contents, other)
    different = [key for key in {**wanted, **own} if (key in wanted, wanted.get(key)) != (key in own, own.get(key))]
    if different:
        overrides = [f"{key}={_written(wanted[key])}" if key in wanted else f"no {key}" for key in different]
        raise ValueError(
            f"the models of checkpoint={folder} were configured otherwise, add these overrides: {' '.join(overrides)}"
        )
    trained = {trial.name for trial in plan(read(RECIPES[other["recipe"]], other))[0]}
    for trial in plan(cfg)[0]:
        path = folder / CHECKPOINTS / f"{trial.name}.pt"
        state = load_checkpoint(path)
        if state is None:
            if trial.name in trained:
                raise FileNotFoundError(
                    f"the run of checkpoint={folder} has lost {path}: resume=true there trains it again"
                )
            continue  # a method that the run did not have is trained
        try:
            task.model(trial).load_state_dict(state["weights"])
        except RuntimeError as error:
            raise ValueError(
                f"the weights of {trial.name} in checkpoint={folder} have another architecture: {error}"
            ) from error


def adopt(checkpoint: Path, folder: Path) -> None:
    """Copies the checkpoints of a run into the folder of another; existing files stay."""
    for path in sorted((checkpoint / CHECKPOINTS).glob("*.pt")):
        copy = folder / CHECKPOINTS / path.name
        if not copy.exists():
            shutil.copy(path, copy.with_name(f"{copy.name}.partial"))
            copy.with_name(f"{copy.name}.partial").rename(copy)


def _of_the_training(contents: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens the keys that determine the models; of the bottlenecks only the methods of both runs."""
    section = {
        key: value for key, value in identity_of(contents).items() if key not in NOT_OF_THE_TRAINING and key in other
    }
    used = {*contents["bottlenecks"]} & {*other["bottlenecks"]}
    section["bottleneck"] = {method: section["bottleneck"][method] for method in sorted(used)}
    return _flat(section)


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _written(value: Any) -> str:
    """Writes a value as in an override."""
    return json.dumps(value, separators=(",", ":")).replace('"', "")
