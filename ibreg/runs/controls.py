"""A sweep trains its controls once: runs whose configuration of a control is the same share its finished checkpoint."""

from __future__ import annotations

import os
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.folder import CONFIG
from ibreg.runs.trials import CONTROLS, SECOND, Trial, epochs_of

if TYPE_CHECKING:
    from ibreg.runs.training import Run

# The processes of a sweep inherit the time at which its first process began. Checkpoints from before it may come from
# other data or another version of the package, even if their configuration is the same.
BEGAN = float(os.environ.setdefault("IBREG_BEGAN", repr(time.time())))

# Keys that cannot reach a control, neither its weights nor its rows of `metrics.csv`. All others, and those that other
# recipes may add, are taken to reach it.
NOT_OF_A_CONTROL = (
    # how and where a run is executed; not `data.root`, another folder may hold other data
    "resume", "overwrite", "output_dir", "tracker", "cache", "data.download", "data.workers",
    # which other methods are trained: each training run has its own generators and starts from its own seed
    "bottlenecks", "learners",
    # beta: a control has none, and no trial on the information curve
    "grid.beta", "grid.betas", "schedule", "sweep",
    # training of concept layers, and what is measured on the selected models alone
    "training", "balanced", "interventions", "edit", "attack", "corruption", "ood", "sanity", "unlearning",
)  # fmt: skip
BY_METHOD = ("bottleneck", "places", "settings", "task_losses", "trainings")  # sections with an entry for each method
# Keys that reach a control only with a layer where others have their bottleneck, as dropout.
OF_A_LAYER = ("inject_at", "model.inject_at", "draws")


def take_control(trial: Trial, run: Run) -> None:
    """Copies the finished checkpoint of a control from another run of the same sweep, if there is one.

    Nothing is copied where there is a checkpoint already, outside of a multirun, and for other methods. Of runs at
    once, as with a parallel launcher, each may train a control: the copy is as good as another training run, which ends
    bit-identically on a CPU.

    Args:
        trial: the training run.
        run: the run that needs it.
    """
    if trial.method not in CONTROLS or not _in_multirun():
        return
    if run.accelerator.is_main_process and not run.path(trial).exists():
        source = _taken(trial, run)
        if source is not None:
            run.progress.advance(f"{run.name(trial)}: trained in this sweep, taken from {source}", 0)
    run.accelerator.wait_for_everyone()


def _taken(trial: Trial, run: Run) -> Path | None:
    """Copies a checkpoint and returns where it was found."""
    path, epochs = run.path(trial), epochs_of(run.cfg, trial) * len(run.task.stages(trial))
    # Recipes that train for several data sets have a folder for each below that of the run.
    root = next(folder for folder in (run.folder, *run.folder.parents) if (folder / CONFIG).is_file())
    for config in sorted(root.parent.glob(f"*/{CONFIG}")):
        source = config.parent / path.relative_to(root)
        try:
            of_sweep = config.parent != root and source.stat().st_mtime >= BEGAN
            same = of_sweep and _control_of(config, trial.method) == _control_of(root / CONFIG, trial.method)
            if same and _copied(source, path, epochs):
                return source
        except (FileNotFoundError, ValueError):  # not trained there yet, removed meanwhile, or damaged
            continue
    return None


def _copied(source: Path, path: Path, epochs: int) -> bool:
    """Copies a checkpoint if it is finished; the copy gets its name once it is complete and checked."""
    copy = path.with_name(f"{path.name}.taken")
    shutil.copyfile(source, copy)
    try:
        state = load_checkpoint(copy)
        if state is None or state["epoch"] != epochs:
            return False
        os.replace(copy, path)
    finally:
        copy.unlink(missing_ok=True)
    return True


def _in_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _control_of(config: Path, method: str) -> dict[str, Any]:
    """Returns the part of a run's configuration that can reach a control."""
    return _read(config, config.stat().st_mtime_ns, method)


@lru_cache(maxsize=1000)
def _read(config: Path, changed: int, method: str) -> dict[str, Any]:
    section: Any = OmegaConf.to_container(OmegaConf.load(config))
    # The information of the code of a regression is measured for the control too, after the same module.
    measured_there = section.get("recipe") == "regression"
    layered = CONTROLS[method].option is not None or measured_there
    for key in (*NOT_OF_A_CONTROL, *(() if layered else OF_A_LAYER)):
        *parents, leaf = key.split(".")
        place = section
        for parent in parents:
            place = place.get(parent) or {}
        place.pop(leaf, None)
    of_control = {method, SECOND.get(method, method)}
    for key in BY_METHOD:
        section[key] = {name: value for name, value in (section.get(key) or {}).items() if name in of_control}
    return section
