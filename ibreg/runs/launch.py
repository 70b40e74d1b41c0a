"""Runs a recipe in its folder at most once, writes the outcome as a summary and prints the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate import Accelerator

from ibreg.runs.config.composition import command_of
from ibreg.runs.config.recipe import RunConfig
from ibreg.runs.folder import CHECKPOINTS, SUMMARY, TRACKED, open_folder
from ibreg.runs.report.summary import Column, by_metric, read_summary, summarize, write_summary
from ibreg.runs.report.tables import print_run
from ibreg.runs.trials import CONTROLS


@dataclass(frozen=True)
class Outcome:
    """The results of a run.

    Attributes:
        data: name of the data set.
        tested: the test metrics of every seed, for each method.
        selected: what was selected on validation data.
        headline: the columns of the table.
        validation: the headline metric on validation data, of every seed, for each method; nothing without such data.
        checks: results of sanity checks, for the summary.
        doubts: for each method the metrics that failed checks make doubtful; tables mark them.
    """

    data: str
    tested: Mapping[str, Sequence[Mapping[str, float]]]
    selected: Mapping[str, Any]
    headline: Sequence[Column]
    validation: Mapping[str, Sequence[float]] = field(default_factory=dict)
    checks: Sequence[Mapping[str, Any]] = ()
    doubts: Mapping[str, Sequence[str]] = field(default_factory=dict)


def launch(cfg: RunConfig, accelerator: Accelerator, run: Callable[[Path], Outcome | None]) -> float | None:
    """Opens the run's folder, runs what is not finished in it, writes the summary and prints the table.

    Args:
        cfg: the checked configuration.
        accelerator: only its main process writes.
        run: runs in the folder; on the main process it returns the outcome.

    Returns:
        what a sweeper of Hydra optimizes: the headline metric on validation data, so that the test split selects
        nothing; of the first bottleneck, or the control without any; the mean over seeds. None on other processes than
        the main one, and without validation data.
    """
    objective = None
    with open_folder(cfg, accelerator) as folder:
        finished = (folder / SUMMARY).is_file()
        if not finished:
            started = time.monotonic()
            resumed = any((folder / CHECKPOINTS).iterdir())
            accelerator.init_trackers(TRACKED)  # of those that `tracker` names; none by default
            outcome = run(folder)
            if outcome is not None:
                results, paired = summarize(by_metric(outcome.tested))
                for method, metrics in outcome.doubts.items():
                    for metric in metrics:
                        results[method][f"test/{metric}"]["doubtful"] = True
                write_summary(
                    folder / SUMMARY,
                    recipe=cfg.recipe,
                    data=outcome.data,
                    seeds=list(cfg.seeds),
                    results=results,
                    paired=paired,
                    selected=outcome.selected,
                    wall_s=time.monotonic() - started,
                    resumed=resumed,
                    device=accelerator.device,
                    command=command_of(cfg.recipe),
                    headline=outcome.headline,
                    validation=outcome.validation,
                    checks=outcome.checks,
                )
        if accelerator.is_main_process:
            objective = _objective(cfg, read_summary(folder / SUMMARY)["validation"])
            print_run(folder, "finished before" if finished else "finished")
    # References to a model wrapped for several processes must not outlive the process group.
    accelerator.free_memory()
    accelerator.end_training()
    return objective


def _objective(cfg: RunConfig, validation: Mapping[str, Sequence[float]]) -> float | None:
    """Returns the mean over seeds of the method that a sweep is about."""
    method = next((method for method in (*cfg.bottlenecks, *validation) if method not in CONTROLS), "none")
    return fmean(validation[method]) if method in validation else None
