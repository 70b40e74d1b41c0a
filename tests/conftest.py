import os
from pathlib import Path

import pytest
import torch

# They hold no doctests, and pytest would take them all for one module of that name.
collect_ignore_glob = ["*conftest.py"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that tests start share two cores with the tests themselves


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
