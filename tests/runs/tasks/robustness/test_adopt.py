"""The configuration of a run whose models are taken: what differs is said as overrides."""

from types import SimpleNamespace

import pytest
from torch import nn

from ibreg.runs.checkpoint import save_checkpoint
from ibreg.runs.folder import CHECKPOINTS, SUMMARY, open_folder
from ibreg.runs.tasks.regression.measuring import RegressionConfig
from ibreg.runs.tasks.robustness.adopt import adopt, check_adoptable
from ibreg.runs.tasks.robustness.configuration import RobustnessConfig
from ibreg.runs.trials import plan
from tests.runs.test_folder import OneProcess

# Where the recipes have other defaults.
AS_CLASSIFICATION = ("seeds=[0,1,2]", "epochs=30", "bottlenecks=[variational]")


def finished_run(folder, cfg):
    with open_folder(cfg.model_copy(update={"output_dir": str(folder)}), OneProcess()):
        pass
    (folder / SUMMARY).write_text("{}")
    return folder


@pytest.fixture
def robustness(configured):
    """The configuration of a robustness run that measures the models of a folder."""

    def checked(folder, *overrides):
        given = [*AS_CLASSIFICATION, f"checkpoint={folder}", *overrides]
        return configured(*given, keys=RobustnessConfig)

    return checked


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seeds=[0]", "lr=0.1"], r"add these overrides: seeds=\[0,1,2\] lr=0.001$"),
        (["model.initialization=xavier", "tune=true"], "add these overrides: tune=false model.initialization=default$"),
        (["bottleneck.variational.prior=learned"], "add these overrides: bottleneck.variational.prior=standard$"),
        (["+grid.betas.variational=[1]"], "add these overrides: no grid.betas.variational$"),
    ],
)
def test_another_configuration_is_refused_with_the_overrides_that_make_it_the_same(
    configured, robustness, tmp_path, overrides, message
):
    folder = finished_run(tmp_path / "run", configured())
    with pytest.raises(ValueError, match=message):
        check_adoptable(robustness(folder, *overrides), task=None)


def test_what_is_measured_may_differ_and_training_on_attacks_may_not(configured, robustness, tmp_path):
    folder = finished_run(tmp_path / "run", configured())
    task = SimpleNamespace(model=lambda trial: nn.Linear(2, 1))
    for trial in plan(configured())[0]:
        save_checkpoint(folder / CHECKPOINTS / f"{trial.name}.pt", {"weights": nn.Linear(2, 1).state_dict()})
    check_adoptable(robustness(folder, "prediction_draws=3", "resume=true", "attack.steps=3"), task)
    check_adoptable(robustness(folder, "bottlenecks=[nonlinear]"), task)
    with pytest.raises(ValueError, match="was trained on clean inputs"):
        check_adoptable(robustness(folder, "adversarial.name=pgd"), task=None)


def test_runs_without_classifiers_and_unfinished_ones_are_refused(configured, robustness, tmp_path):
    folder = finished_run(tmp_path / "run", configured(keys=RegressionConfig))
    cfg = robustness(folder)
    with pytest.raises(ValueError, match="is a run of regression"):
        check_adoptable(cfg, task=None)
    (folder / SUMMARY).unlink()
    with pytest.raises(FileNotFoundError, match="is no finished run"):
        check_adoptable(cfg, task=None)


def test_training_runs_are_copied_and_existing_ones_stay(configured, tmp_path):
    source, target = (finished_run(tmp_path / name, configured()) for name in ("source", "target"))
    for name in ("a.pt", "b.pt"):
        (source / CHECKPOINTS / name).write_text("source")
    (target / CHECKPOINTS / "a.pt").write_text("target")
    adopt(source, target)
    assert {path.name: path.read_text() for path in (target / CHECKPOINTS).iterdir()} == {
        "a.pt": "target",
        "b.pt": "source",
    }
