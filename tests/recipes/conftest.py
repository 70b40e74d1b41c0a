"""A recipe as a user runs it. A module of tests names its recipe in `RECIPE` and a quick run's overrides in `QUICK`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from folders import summary_of
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def recipe(request):
    """The recipe as a Python module."""
    name = request.module.RECIPE
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def command(request):
    """The command that runs the recipe in a process of its own."""

    def call(*overrides):
        script = ROOT / "recipes" / f"{request.module.RECIPE}.py"
        return [sys.executable, "-W", "error::UserWarning", str(script), *overrides]

    return call


@pytest.fixture(scope="module")
def run(command):
    """Runs the recipe in a process of its own."""

    def call(*overrides, cwd):
        return subprocess.run(command(*overrides), cwd=cwd, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture
def two_processes(command, tmp_path):
    """Runs the recipe in two processes on the CPU; the output folder is `tmp_path / "two"`."""

    def call(*overrides):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = command(*overrides, f"output_dir={tmp_path / 'two'}")[3:]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run([*torchrun, *script], env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert "destroy_process_group" not in result.stderr
        assert summary_of(tmp_path / "two")["hardware"]["processes"] == 2
        return tmp_path / "two"

    return call


@pytest.fixture
def launch(recipe, tmp_path):
    """Runs the recipe in this process, which is quicker; the output folder is `tmp_path / "run"`."""

    def call(*overrides):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(recipe.__name__, [*overrides, f"output_dir={tmp_path / 'run'}"])
        AcceleratorState._reset_state(True)  # it refuses another precision in the same process
        recipe.main(cfg)
        return tmp_path / "run"

    return call


@pytest.fixture(scope="module")
def finished(request, run, tmp_path_factory):
    """The folder of an uninterrupted quick run, and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    result = run(*request.module.QUICK, "output_dir=run", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder / "run", result.stdout
