"""A recipe as a user runs it. A module of tests names its recipe in `RECIPE` and a quick run's overrides in `QUICK`."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from ibreg.runs.config.composition import register_with_hydra
from tests.recipes.command_line import ROOT, module_of, run_here, script_of
from tests.recipes.folders import summary_of


@pytest.fixture(scope="module")
def recipe(request):
    """The recipe as a Python module."""
    return module_of(request.module.RECIPE)


@pytest.fixture(scope="module")
def command(request):
    """The command that runs the recipe in a process of its own."""

    def call(*overrides):
        return [sys.executable, "-W", "error::UserWarning", str(script_of(request.module.RECIPE)), *overrides]

    return call


@pytest.fixture(scope="module")
def run(request):
    """Runs the recipe's command line in this process."""
    return partial(run_here, request.module.RECIPE)


@pytest.fixture
def two_processes(command, tmp_path):
    """Runs the recipe in two processes on the CPU; the output folder is `tmp_path / "two"`."""

    def call(*overrides):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        torchrun += ["--nproc-per-node", "2"]
        script = command(*overrides, f"output_dir={tmp_path / 'two'}")[3:]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run([*torchrun, *script], env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert "destroy_process_group" not in result.stderr
        told = [line for line in result.stdout.splitlines() if " epoch 1/" in line or " split 1/" in line]
        assert told  # by one of the two
        assert len(set(told)) == len(told)
        assert summary_of(tmp_path / "two")["hardware"]["processes"] == 2
        return tmp_path / "two"

    return call


@pytest.fixture
def launch(recipe, tmp_path):
    """Calls the recipe's `main`, whose errors are raised here; the output folder is `tmp_path / "run"`."""

    def call(*overrides):
        register_with_hydra()
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(recipe.__name__, [*overrides, f"output_dir={tmp_path / 'run'}"])
        AcceleratorState._reset_state(True)  # it refuses another precision in the same process
        recipe.main(cfg)
        return tmp_path / "run"

    return call


class Killed(BaseException):
    """Nothing in a recipe catches it, and nothing of a recipe comes after it."""


@pytest.fixture
def kill(launch, monkeypatch):
    """Launches a run that ends with its so many-th checkpoint written aside, but not yet in place of the one before."""

    def call(*overrides, checkpoint):
        replace, written = os.replace, []

        def replace_or_end(partial, path):
            written.extend([path] if Path(path).suffix == ".pt" else [])
            if len(written) == checkpoint:
                raise Killed
            replace(partial, path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_or_end)
            with pytest.raises(Killed):
                launch(*overrides)

    return call


@pytest.fixture(scope="module")
def finished(request, run, tmp_path_factory):
    """The folder of an uninterrupted quick run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    result = run(*request.module.QUICK, "output_dir=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run", result.stdout


@pytest.fixture(autouse=True)
def _empty_images(monkeypatch):
    """Runs make their figures, but write empty files, as drawing takes longer than training; `finished` draws."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
