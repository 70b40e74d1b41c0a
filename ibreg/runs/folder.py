"""The folder of a run: who may write into it, and when a run goes on in it."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from ibreg.runs.config.composition import identity_of

if TYPE_CHECKING:  # slow to import, and a summary is read without it
    from accelerate import Accelerator

CONFIG = "config.yaml"
SUMMARY = "summary.json"
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"
TRACKED = "tracked"  # what a tracker writes that keeps files, such as TensorBoard
LOCK = ".lock"  # stays in the folder: not the file but the system's hold on it says that a run is going on


@contextmanager
def open_folder(cfg: DictConfig, accelerator: Accelerator) -> Iterator[Path]:
    """Creates the run's folder, or goes on in it with `resume=true`, or empties it with `overwrite=true`.

    Until the context ends the folder is locked, and no other run can open it. The operating system gives the lock back
    even if the process is killed.

    Args:
        cfg: with `output_dir`, `resume` and `overwrite`.
        accelerator: its main process alone locks and writes.

    Returns:
        the folder, with the resolved configuration and a folder for checkpoints in it; and with a summary where the run
        to resume is complete.

    Raises:
        FileExistsError: there is a run, and neither `resume` nor `overwrite` was asked for, or it is still going on; or
            files of something else.
        ValueError: the run to resume has another configuration.
    """
    folder = Path(cfg.output_dir)
    with ExitStack() as held:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                _check_no_other_files(folder)
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    held.enter_context(FileLock(folder / LOCK, timeout=0))
                except Timeout as error:
                    raise FileExistsError(
                        f"another run is going on in {folder}: wait until it has ended, or give another output_dir"
                    ) from error
                _prepare(cfg, folder)
        yield folder


def _check_no_other_files(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give another output_dir")
    # All that a run killed at its first moment can leave.
    first = {LOCK, f"{CONFIG}.partial"}
    if folder.exists() and not (folder / CONFIG).is_file() and {path.name for path in folder.iterdir()} - first:
        raise FileExistsError(f"{folder} holds files, but no run of a recipe: give another output_dir")


def _prepare(cfg: DictConfig, folder: Path) -> None:
    if (folder / CONFIG).is_file():
        if cfg.overwrite:
            _empty(folder)
        elif cfg.resume:
            _check_same_run(cfg, folder)
        else:
            state = (
                "a finished run" if (folder / SUMMARY).is_file() else "an unfinished run (resume=true goes on with it)"
            )
            raise FileExistsError(f"{folder} holds {state}: overwrite=true starts it anew")
    replace(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True).encode())
    (folder / CHECKPOINTS).mkdir(exist_ok=True)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as a csv with the union of their keys as columns, in one step."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    replace(path, text.getvalue().encode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _check_same_run(cfg: DictConfig, folder: Path) -> None:
    earlier: Any = OmegaConf.load(folder / CONFIG)
    before, now = identity_of(earlier), identity_of(cfg)
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if different:
        raise ValueError(
            f"the run in {folder} had another configuration ({', '.join(different)} differ): resume it with the same "
            "overrides, or start anew with overwrite=true"
        )


def _empty(folder: Path) -> None:
    """Removes what a run wrote, and nothing else; the configuration, which says that the folder is a run's, last."""
    for written in (CHECKPOINTS, TRACKED):
        shutil.rmtree(folder / written, ignore_errors=True)
    written = [path for kind in ("*.csv", "*.png", "*.partial") for path in folder.glob(kind)]
    for path in [folder / SUMMARY, *written, folder / CONFIG]:
        path.unlink(missing_ok=True)
