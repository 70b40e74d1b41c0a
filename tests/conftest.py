import os
import sys
from pathlib import Path

import pytest
import torch

# conftest files hold no doctests, and pytest would import all of them as one module of that name.
collect_ignore_glob = ["*conftest.py"]

# Processes that tests start share the cores with the tests themselves, and talk to each other on this machine alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")

_import_or_skip = pytest.importorskip


def _import_or_fail(*args, **options):
    try:
        return _import_or_skip(*args, **options)
    except pytest.skip.Exception as skipped:
        pytest.fail(f"IBREG_ALL=1 says that every extra is installed: {skipped}")


if os.environ.get("IBREG_ALL") == "1":  # CI installs the extra `all`: there, a missing package is an error
    pytest.importorskip = _import_or_fail


def pytest_collection_modifyitems(items):
    """Puts the longest files first, so that no process is left with one of them when the others are done."""
    items.sort(key=lambda item: item.path.parent.name not in ("contract", "recipes"))


@pytest.fixture
def data_root() -> Path:
    """The folder of real data, for tests that need some."""
    root = os.environ.get("IBREG_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("IBREG_DATA names no folder of real data")
    return Path(root)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
