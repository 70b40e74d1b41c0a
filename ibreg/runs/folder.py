"""The folder of a run: its files, its lock, and when a run may write into it."""

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
from omegaconf import OmegaConf
from pydantic import model_validator

from ibreg.runs.config.composition import identity_of
from ibreg.runs.config.section import Name, Section

if TYPE_CHECKING:  # slow to import, and a summary is read without it
    from accelerate import Accelerator

CONFIG = "config.yaml"
SUMMARY = "summary.json"
METRICS = "metrics.csv"
CHECKPOINTS = "checkpoints"
TRACKED = "tracked"  # what a tracker writes that keeps files, such as TensorBoard
LOCK = ".lock"  # stays in the folder: a run is going on while the operating system holds the lock on the file


class FolderConfig(Section):
    """Where a run writes, and what it does with the files of an earlier one.

    Attributes:
        output_dir: folder of the run.
        resume: whether a killed run is resumed.
        overwrite: whether an existing run is replaced.
    """

    output_dir: Name
    resume: bool
    overwrite: bool

    @model_validator(mode="after")
    def _check_one_of_both(self):
        if self.resume and self.overwrite:
            raise ValueError("resume continues a run and overwrite replaces it: give one of them")
        return self

    def contents(self) -> dict[str, Any]:
        """Returns the configuration in types of YAML and JSON."""
        return self.model_dump(mode="json")


@contextmanager
def open_folder(cfg: FolderConfig, accelerator: Accelerator) -> Iterator[Path]:
    """Creates the run's folder, or continues in it with `resume=true`, or empties it with `overwrite=true`.

    The folder is locked until the context ends. The operating system releases the lock even if the process is killed.

    Args:
        cfg: the recipe's configuration.
        accelerator: only its main process locks and writes.

    Returns:
        the folder, with the resolved configuration and a folder for checkpoints in it; and with a summary where the run
        to resume is complete.

    Raises:
        FileExistsError: If there is a run and neither `resume` nor `overwrite` is set, or it is still going on, or if
            there are other files.
        ValueError: If the run to resume has another configuration.
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
                        f"another run is going on in {folder}: wait for its end, or give another output_dir"
                    ) from error
                _prepare(cfg, folder)
        yield folder


def _check_no_other_files(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give another output_dir")
    # Files that a run leaves if it is killed before its configuration is written.
    first = {LOCK, f"{CONFIG}.partial"}
    if folder.exists() and not (folder / CONFIG).is_file() and {path.name for path in folder.iterdir()} - first:
        raise FileExistsError(f"{folder} holds files, but no run of a recipe: give another output_dir")


def _prepare(cfg: FolderConfig, folder: Path) -> None:
    if (folder / CONFIG).is_file():
        if cfg.overwrite:
            _empty(folder)
        elif cfg.resume:
            _check_same_run(cfg, folder)
        else:
            state = "a finished run" if (folder / SUMMARY).is_file() else "an unfinished run (resume=true resumes it)"
            raise FileExistsError(f"{folder} holds {state}: overwrite=true replaces it")
    replace(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(cfg.contents())).encode())
    (folder / CHECKPOINTS).mkdir(exist_ok=True)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as a CSV file with the union of their keys as columns, atomically."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    replace(path, text.getvalue().encode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it: a kill leaves either the old or the new file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _check_same_run(cfg: FolderConfig, folder: Path) -> None:
    earlier: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    before, now = identity_of(earlier), identity_of(cfg.contents())
    different = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if different:
        raise ValueError(
            f"the run in {folder} had another configuration ({', '.join(different)} differ): resume it with the same "
            "overrides, or replace it with overwrite=true"
        )


def _empty(folder: Path) -> None:
    """Removes the files of a run and nothing else; last the configuration, which marks the folder as that of a run."""
    for written in (CHECKPOINTS, TRACKED):
        shutil.rmtree(folder / written, ignore_errors=True)
    written = [path for kind in ("*.csv", "*.png", "*.partial") for path in folder.glob(kind)]
    for path in [folder / SUMMARY, *written, folder / CONFIG]:
        path.unlink(missing_ok=True)
