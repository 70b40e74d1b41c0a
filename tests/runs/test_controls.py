"""Controls of a sweep: a copy is made of a finished checkpoint with the same configuration, and of no other."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from ibreg.runs import controls
from ibreg.runs.checkpoint import load_checkpoint, save_checkpoint
from ibreg.runs.folder import CHECKPOINTS, CONFIG
from ibreg.runs.trials import Trial

NONE = Trial("none", 0, 0.0)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Makes runs of a sweep, and the trial's path in each; `told` lists what was logged."""
    monkeypatch.setattr(controls, "_in_multirun", lambda: True)
    told = []

    def run(name, *overrides, recipe="classification", part=""):
        cfg = OmegaConf.load(Path(__file__).parents[2] / "configs" / f"{recipe}.yaml")
        kept = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("defaults", "hydra", "output_dir")])
        base = {"data": {"name": "digits", "root": None, "download": False}, "model": {"name": "mlp", "inject_at": "a"}}
        bottleneck = {"variational": {"beta": 1.0}, "hsic": {"beta": 1.0}, "dropout": {"rate": 0.5}}
        cfg = OmegaConf.merge(base, kept, {"bottleneck": bottleneck, "output_dir": str(tmp_path / name)})
        cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))
        folder = tmp_path / name / part
        (folder / CHECKPOINTS).mkdir(parents=True)
        (tmp_path / name / CONFIG).write_text(OmegaConf.to_yaml(cfg, resolve=True))
        accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
        return SimpleNamespace(
            cfg=cfg, folder=folder, accelerator=accelerator, name=lambda trial: trial.name,
            path=lambda trial: folder / CHECKPOINTS / f"{trial.name}.pt",
            progress=SimpleNamespace(advance=lambda text, epochs: told.append(text)),
            task=SimpleNamespace(stages=lambda trial: [0]),
        )  # fmt: skip

    run.told = told
    return run


def trained(run, trial=NONE, **changed):
    state = {"epoch": run.cfg.epochs, "rows": [{"method": trial.method}], "weights": {"w": torch.randn(3)}}
    save_checkpoint(run.path(trial), state | changed)
    return run.path(trial).read_bytes()


@pytest.mark.parametrize(
    "override",
    ["bottlenecks=[hsic]", "bottleneck.variational.beta=0.1", "grid.beta=[1]", "grid.betas.hsic=[2]", "sweep.betas=[1]",
     "schedule.name=cosine", "schedule.rate=3", "resume=true", "overwrite=true", "tracker=tensorboard",
     "inject_at=head", "draws=8", "data.download=true", "data.workers=2",
     "model.inject_at=trunk"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["none", "null"])
def test_a_control_is_shared_where_nothing_that_differs_can_reach_it(sweep, override, method):
    first, second, trial = sweep("a"), sweep("b", override), Trial(method, 0, 0.0)
    content = trained(first, trial)
    controls.take_control(trial, second)
    assert second.path(trial).read_bytes() == content
    assert sweep.told == [f"{trial.name}: trained in this sweep, taken from {first.path(trial)}"]
    assert [path.name for path in second.path(trial).parent.iterdir()] == [f"{trial.name}.pt"]


@pytest.mark.parametrize(
    "override",
    ["lr=0.1", "epochs=31", "batch_size=64", "seeds=[0]", "data.root=/other", "data.name=mnist", "model.name=lenet",
     "ema=0.9", "label_smoothing=0.1", "mixup=1", "selection=last", "precision=bf16", "device=cpu", "weight_decay=0.1",
     "adam_betas=[0.9,0.99]", "prediction_draws=4", "grid.weight_decay=[0]", "tune=true", "something_new=1"],
)  # fmt: skip
def test_a_control_of_another_configuration_is_trained(sweep, override):
    first, second = sweep("a"), sweep("b", override)
    trained(first, epoch=second.cfg.epochs)
    controls.take_control(NONE, second)
    assert not list(second.path(NONE).parent.iterdir())
    assert not sweep.told


@pytest.mark.parametrize(
    ("recipe", "override", "trial", "shared"),
    [
        ("finetune", "inject_at=head", Trial("dropout", 0, 0.0, ("dropout", 0.5)), False),  # that is where it is
        ("finetune", "draws=8", Trial("dropout", 0, 0.0, ("dropout", 0.5)), False),
        ("finetune", "bottleneck.dropout.rate=0.1", Trial("dropout", 0, 0.0, ("dropout", 0.5)), False),
        ("finetune", "bottleneck.hsic.beta=3", Trial("dropout", 0, 0.0, ("dropout", 0.5)), True),
        ("finetune", "inject_at=head", NONE, True),
        ("regression", "inject_at=head", NONE, False),  # the information of this code is measured
        ("regression", "task_losses.hsic.name=huber", NONE, True),
        ("regression", "task_losses.none.name=huber", Trial("null", 0, 0.0), False),
        ("concepts", "training=sequential", NONE, True),
        ("concepts", "data.split_seed=3", NONE, False),
        ("robustness", "places.hsic=[a]", NONE, True),
        ("robustness", "attack.eps=[1]", Trial("decayed", 0, 0.1), True),
        ("robustness", "adversarial.eps=0.3", NONE, False),
        ("continual", "settings.key_value=[{lr: 1}]", Trial("null", 0, None, ("setting", 0)), True),
        ("continual", "settings.none=[{lr: 7}]", Trial("null", 0, None, ("setting", 0)), False),
        ("continual", "learners=[]", Trial("none", 0, None, ("setting", 0)), True),
    ],
)
def test_what_reaches_a_control_depends_on_it_and_on_the_recipe(sweep, recipe, override, trial, shared):
    first, second = sweep("a", recipe=recipe), sweep("b", override, recipe=recipe)
    trained(first, trial)
    controls.take_control(trial, second)
    assert second.path(trial).exists() == shared


@pytest.mark.parametrize("change", ["unfinished", "damaged", "earlier", "bottleneck", "single run", "own checkpoint"])
def test_nothing_else_is_taken(sweep, monkeypatch, change):
    first, second, trial = sweep("a"), sweep("b"), NONE
    if change == "bottleneck":
        trial = Trial("variational", 0, 0.0)
    trained(first, trial, **({"epoch": 29} if change == "unfinished" else {}))
    if change == "damaged":
        first.path(trial).write_bytes(first.path(trial).read_bytes()[:50])
    elif change == "earlier":
        os.utime(first.path(trial), (0, controls.BEGAN - 1))
    elif change == "single run":
        monkeypatch.undo()
    elif change == "own checkpoint":
        second.path(trial).write_bytes(b"of a killed run")
    controls.take_control(trial, second)
    before = {"own checkpoint": [f"{trial.name}.pt"]}.get(change, [])
    assert [path.name for path in second.path(trial).parent.iterdir()] == before
    assert not sweep.told


def test_parts_of_a_run_are_found_at_the_same_place(sweep):
    first, second = (sweep(name, recipe="finetune", part=f"{CHECKPOINTS}/5_per_class") for name in "ab")
    content = trained(first)
    controls.take_control(NONE, second)
    assert second.path(NONE).read_bytes() == content


def test_the_first_finished_one_is_taken_and_others_are_passed_over(sweep):
    runs = [sweep(name, *overrides) for name, overrides in (("a", ["lr=1"]), ("b", []), ("c", []), ("d", []))]
    trained(runs[0])
    trained(runs[1], epoch=3)
    content = trained(runs[2])
    controls.take_control(NONE, runs[3])
    assert runs[3].path(NONE).read_bytes() == content


def test_several_runs_at_once_get_whole_checkpoints(sweep):
    first, *others = (sweep(name) for name in "abcdefgh")
    content = trained(first)
    threads = [threading.Thread(target=controls.take_control, args=(NONE, run)) for run in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(run.path(NONE).read_bytes() == content for run in others)
    assert load_checkpoint(others[0].path(NONE))["epoch"] == 30
