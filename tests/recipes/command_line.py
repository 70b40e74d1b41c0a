"""A recipe's command line, with all that Hydra makes of it, in this process: imports take longer than a quick run."""

import importlib.util
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parent.parent.parent


def script_of(name):
    return ROOT / "recipes" / f"{name}.py"


@cache
def module_of(name):
    """A recipe as a Python module."""
    spec = importlib.util.spec_from_file_location(name, script_of(name))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run_here(name, *arguments, cwd):
    """Runs a recipe as `python recipes/NAME.py ARGUMENTS` in the folder `cwd`; returns its status and what it wrote."""
    return call_here(script_of(name), module_of(name).main, *arguments, cwd=cwd)


def call_here(script, main, *arguments, cwd):
    """Calls the `main` of a script as its command line does."""
    call, status, out, err = [str(script), *arguments], 0, StringIO(), StringIO()
    AcceleratorState._reset_state(True)  # it refuses another precision in the same process
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", call):
        try:
            main()
        except SystemExit as end:
            status = end.code
    return CompletedProcess(call, status or 0, out.getvalue(), err.getvalue())
