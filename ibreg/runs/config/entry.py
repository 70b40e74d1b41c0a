"""The entry point of a recipe: its command line, the user's own bottlenecks, and mistakes told in one line."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ibreg.runs.config.command_line import check_one_run, check_options, prepared, swept_keys, value_of
from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.config.help import fits
from ibreg.runs.config.mapping_keys import decoded_text
from ibreg.runs.config.package_data import installed_folder
from ibreg.runs.config.recipe import RunConfig, read_recipe
from ibreg.runs.config.section import did_you_mean, shown
from ibreg.runs.config.terminal import discard_output

FULL_ERROR = "HYDRA_FULL_ERROR"  # the environment variable, as Hydra reads it
MULTIRUN = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
ENTRY_POINTS = "ibreg.bottlenecks"  # of installed packages that register bottlenecks
# What a user's mistake raises: configuration, files, packages, and a training run that diverges.
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError, YAMLError, HydraException, OmegaConfBaseException)
OUT_OF_MEMORY = r"\ballocate\b|Storage size calculation overflowed"  # torch has no class for it on a CPU
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# How Hydra words a list in the place of a section, or the reverse.
MERGED_ARGUMENT = re.compile(r"Error merging override \+*([^=]+)=(.*) Cannot merge .*object_type=(list|dict)")
MERGED_FILE = re.compile(r"In '([^']+)': .*Cannot merge (?:DictConfig|ListConfig) with")

AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


def entry_point(model: type[AnyConfig]) -> Callable[[Callable[[AnyConfig], Any]], Callable[..., Any]]:
    """Makes a function of a checked configuration the `main` of a recipe.

    A user's mistake ends with one line on stderr and exit code 2; with `HYDRA_FULL_ERROR=1` with its traceback.

    Args:
        model: the recipe's keys; its title is the name of the recipe and of its YAML. `main.config` is this class.
    """
    name = str(model.model_config.get("title"))

    def decorate(function: Callable[[AnyConfig], Any]) -> Callable[..., Any]:
        def task(composed: DictConfig) -> Any:
            import_bottlenecks(composed.get("imports"))  # a launcher may have started this process
            return function(read_recipe(model, composed))

        @functools.wraps(function)
        def main(composed: DictConfig | None = None) -> Any:
            if composed is not None:
                return task(composed)
            full = os.environ.get(FULL_ERROR) == "1"
            with plain_warnings(name):
                return _told(name, functools.partial(_run, name, task, full), full=full)

        main.config = model  # type: ignore[attr-defined]
        return main

    return decorate


def import_bottlenecks(modules: Any) -> None:
    """Imports modules that register bottlenecks: those that are named, and the entry points of installed packages.

    Args:
        modules: the key `imports`, which has not been checked yet: a check of the bottlenecks needs them.

    Raises:
        ImportError: If there is no such module, or it fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the user's own module next to where the recipe is run
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        with _failure_told(f"the installed package of the entry point {entry.value}"):
            entry.load()
    listed = modules if isinstance(modules, Sequence) and not isinstance(modules, str) else []
    for module in filter(lambda name: isinstance(name, str), listed):
        if not module or module.startswith(".") or importlib.util.find_spec(module.partition(".")[0]) is None:
            raise ImportError(
                f"imports must name modules that Python finds from {os.getcwd()}, got {module}: run the recipe in the "
                "folder of the module, or add that to PYTHONPATH"
            )
        with _failure_told(f"imports: {module}"):
            importlib.import_module(module)


@contextmanager
def _failure_told(what: str) -> Iterator[None]:
    """Words any error of a user's own module, whose code may raise anything, as one of the import."""
    try:
        yield
    except Exception as error:
        raise ImportError(f"{what} could not be imported: {type(error).__name__}: {error}") from error


def _run(name: str, task: Callable[[DictConfig], Any], full: bool) -> None:
    """Runs a recipe with the arguments of this process."""
    given = sys.argv[1:]
    import_bottlenecks(value_of(given, "imports"))
    register_with_hydra()
    for argument in given:
        key, _, value = argument.partition("=")
        if key == "bottleneck":
            raise ValueError(f"bottleneck has the options of all bottlenecks, choose some by bottlenecks=[{value}]")
    groups = [path.name for path in installed_folder("configs").iterdir() if path.is_dir()]
    sys.argv = [sys.argv[0], *prepared(given, [*groups, "optimizer"])]
    check_options(sys.argv[1:])
    if not MULTIRUN.intersection(given):
        check_one_run(sys.argv[1:])
    elif any(argument.startswith("output_dir=") for argument in given):
        raise ValueError(
            f"output_dir is the folder of one run, and each run of a sweep has its own in outputs/{name}: leave it out"
        )

    def job(composed: DictConfig) -> Any:
        hydra_config, prefix = HydraConfig.get(), ""
        if hydra_config.mode == RunMode.MULTIRUN:
            if hydra_config.sweeper._target_ != BASIC_SWEEPER:  # one that may go on after a failure
                return task(composed)
            overrides = [decoded_text(override.lstrip("+")) for override in hydra_config.overrides.task]
            typed = [override for override in overrides if override.partition("=")[0] in swept_keys(sys.argv[1:])]
            prefix = f"run {hydra_config.job.num + 1} ({' '.join(typed)}): " if typed else ""
        # Hydra would add lines of its own to an error that leaves the job.
        return _told(name, functools.partial(task, composed), full=full, prefix=prefix)

    # The script is what Hydra names the job after.
    job.__module__ = "__main__"
    hydra.main(config_path=str(installed_folder("configs")), config_name=name, version_base="1.3")(job)()


def _told(name: str, run: Callable[[], Any], *, full: bool, prefix: str = "") -> Any:
    """Runs a function, and ends the process with one line where it raises a user's mistake."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # errors reach this function as they are
    try:
        return run()
    except BrokenPipeError as error:
        discard_output()
        raise SystemExit(1) from error
    except (*MISTAKES, MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, MemoryError) or re.search(OUT_OF_MEMORY, str(error))
        if full or not (isinstance(error, MISTAKES) or out_of_memory):
            raise
        print(f"{name}: {prefix}{one_line(name, error)}", file=sys.stderr)
        raise SystemExit(2) from error
    finally:
        if before is None:
            os.environ.pop(FULL_ERROR, None)
        else:
            os.environ[FULL_ERROR] = before


@contextmanager
def plain_warnings(name: str) -> Iterator[None]:
    """Shows warnings of this package and of the recipe in one line each, without the line of code.

    Args:
        name: of the recipe.
    """
    package = str(Path(__file__).parents[2])
    formatwarning = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category is UserWarning and os.path.abspath(filename).startswith((package, os.path.abspath(sys.argv[0]))):
            return f"{name}: warning: {' '.join(str(message).split())}\n"
        return formatwarning(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = formatwarning


def one_line(recipe: str, error: BaseException) -> str:
    """Words an error in one line."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _no_choice(recipe, str(error.missing_cfg_file), error.options)
    if re.search(OUT_OF_MEMORY, str(error)) or isinstance(error, MemoryError):
        return (
            f"not enough memory: lower the size of the model, batch_size or data.limit ({' '.join(str(error).split())})"
        )
    cause = error.__cause__
    text = str(error) if not isinstance(cause, OmegaConfBaseException) else f"{error} {cause}"
    line = " ".join(decoded_text(text, quoted=False).split())
    if found := MERGED_ARGUMENT.search(line):
        key, value, kind = found.groups()
        valid = f"a list, such as {key}=[...]" if kind == "list" else f"a section, whose keys are set by {key}.KEY=..."
        return f"{key} must be {valid}, got {value}"
    if found := MERGED_FILE.search(line):
        return (
            f"{found[1]}.yaml must be a mapping of keys, with a list where the recipe has one, and a section likewise"
        )
    return line or type(error).__name__


def _no_choice(recipe: str, path: str, options: Sequence[str]) -> str:
    """Words the message on a file that a group does not have, with those that the recipe takes."""
    group, _, name = decoded_text(path, quoted=False).removesuffix(".yaml").rpartition("/")
    files = {option: installed_folder("configs") / group / f"{option}.yaml" for option in sorted(options)}
    known = [option for option, file in files.items() if not file.is_file() or fits(file, recipe)]
    return f"{group} must be one of {', '.join(known)}, got {shown(name)}{did_you_mean(name, known)}"
