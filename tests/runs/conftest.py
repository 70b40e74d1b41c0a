from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hydra import compose, initialize_config_dir

from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.config.recipe import read_recipe
from ibreg.runs.report.summary import summarize, write_summary
from ibreg.runs.tasks.classification import ClassificationConfig


@pytest.fixture
def write():
    """Writes the summary of a run whose seeds gave these values."""

    def written(path, values, **options):
        results, paired = summarize(values)
        return write_summary(
            path, recipe="classification", data="digits", seeds=range(5), results=results, paired=paired,
            selected={"variational": {"beta": 1e-3}}, wall_s=1.5, **options,
        )  # fmt: skip

    return written


@pytest.fixture
def composed():
    """Composes the configuration of a recipe, by default classification, as Hydra does."""
    register_with_hydra()

    def compose_recipe(*overrides, recipe="classification"):
        with initialize_config_dir(str(Path(__file__).parents[2] / "configs"), version_base="1.3"):
            return compose(recipe, [*overrides, "output_dir=unused"])

    return compose_recipe


@pytest.fixture
def configured(composed):
    """The checked configuration of a recipe, which is named by the class of its keys."""

    def checked(*overrides, keys=ClassificationConfig):
        return read_recipe(keys, composed(*overrides, recipe=keys.model_config["title"]))

    return checked


@pytest.fixture(autouse=True)
def _accelerator():
    """Gives back the state that accelerators share, where a recipe in this process has reset it."""
    if not AcceleratorState._shared_state:
        Accelerator(cpu=True)
