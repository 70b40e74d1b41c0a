import os
from pathlib import Path

import pytest
import torch

# They hold no doctests, and pytest would take them all for one module of that name.
collect_ignore_glob = ["*conftest.py"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that tests start share two cores with the tests themselves


def pytest_collection_modifyitems(items):
    """Puts the longest files first, so that no process is left with one of them when the others have done."""
    items.sort(key=lambda item: item.path.name != "test_contract.py" and item.path.parent.name != "recipes")


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
