"""The experiments of the robustness recipe: each with its own settings, on few images."""

from dataclasses import replace

import pytest
import torch

from ibreg.runs.config.package_data import descriptions
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.rows import Rows
from tests.recipes.folders import summary_of

RECIPE = "robustness"
SHORT = [
    "data.limit=300", "seeds=[0]", "epochs=1", "decayed_control=0", "lr=1e-2", "device=cpu", "attack.steps=2",
    "attack.rows=10", "attack.draws=2", "corruption.rows=10", "corruption.kinds=[jpeg,contrast]",
    "corruption.severities=[2,4]", "ood.rows=10", "sanity.rows=10", "sanity.steps=[1,3]",
]  # fmt: skip


@pytest.fixture
def few_images(data_root, monkeypatch):
    """100 images to choose by and 100 to test on, where the data have thousands."""
    load = datasets.load

    def first(rows):
        return None if rows is None else Rows(rows.inputs[:100], rows.targets[:100])

    def load_few(*args, **options):
        data = load(*args, **options)
        return replace(data, validation=first(data.validation), test=first(data.test))

    monkeypatch.setattr(datasets, "load", load_few)


@pytest.mark.filterwarnings("ignore:ema=.* are those of the first step")  # after three steps
@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(experiment, marks=() if experiment == "hbar_mnist" else pytest.mark.slow)
        for experiment in descriptions()["experiment of robustness"]
    ],
)
def test_an_experiment_trains_a_step_and_is_measured(launch, few_images, experiment, tmp_path):
    overrides = [f"experiment={experiment}", *SHORT]
    if "cifar" in experiment:
        pytest.skip("a ResNet-18 takes minutes")
    if experiment == "pwoa_mnist":
        control = ["distillation.teacher=null", "bottlenecks=[]", "corruption.rows=0", "ood.data=null"]
        teacher = launch(*overrides, *control).rename(tmp_path / "teacher")
        overrides += [f"distillation.teacher={teacher}"]
    results = summary_of(launch(*overrides))["results"]
    assert all(torch.isfinite(torch.tensor(each["mean"])) for metrics in results.values() for each in metrics.values())
