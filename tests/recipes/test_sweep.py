"""A sweep: one run for each combination of values, each in its folder, and one table of all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ibreg.runs.checkpoint import load_checkpoint
from tests.recipes.folders import summary_of

RECIPE = "classification"
COMPARE = Path(__file__).resolve().parents[2] / "recipes" / "compare.py"
ROOT = COMPARE.parents[1]
FIXED = ["seeds=[0]", "epochs=1", "sweep.betas=[]", "model.hidden=[8]", "device=cpu", "control=false"]


@pytest.mark.parametrize("recipe", ["classification", "regression", "robustness", "concepts", "continual", "finetune"])
def test_every_recipe_can_be_swept_and_tracked(recipe):
    cfg = OmegaConf.load(ROOT / "configs" / f"{recipe}.yaml")
    # Beside the runs; Hydra's own choice would be a folder multirun/ that holds one file.
    assert cfg.hydra.sweep == {"dir": f"outputs/{recipe}", "subdir": "."}
    assert cfg.tracker == "none"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_has_a_run_for_each_value_and_a_table_of_all(command, tmp_path, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install hydra-joblib-launcher")
    chosen = [] if launcher == "basic" else [f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2"]
    sweep = command("--multirun", *FIXED, "bottleneck.variational.beta=1e-4,1e-1", *chosen)
    result = subprocess.run(sweep, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    outputs = tmp_path / "outputs" / "classification"
    found = {summary["command"].split()[-1]: summary for summary in map(summary_of, outputs.glob("*/"))}
    assert sorted(found) == ["bottleneck.variational.beta=0.0001", "bottleneck.variational.beta=0.1"]
    rates = {key: summary["results"]["variational"]["test/rate"]["mean"] for key, summary in found.items()}
    assert rates["bottleneck.variational.beta=0.0001"] > rates["bottleneck.variational.beta=0.1"]
    table = subprocess.run([sys.executable, COMPARE, outputs], cwd=tmp_path, capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    assert "bottleneck.variational.beta=0.1" in table.stdout


@pytest.mark.slow
@pytest.mark.parametrize("tune", [False, True])
def test_a_sweep_trains_its_controls_once_and_bit_identically(command, tmp_path, tune):
    grid = ["tune=true", "grid.weight_decay=[0,0.1]", "grid.beta=[1e-3,1e-2]"] if tune else []
    fixed = [*(item for item in FIXED if item != "control=false"), *grid]
    sweep = command("--multirun", *fixed, "bottleneck.variational.beta=0.01,0.1")
    result = subprocess.run(sweep, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    taken = [line.partition(":")[0] for line in lines if "trained in this sweep, taken from" in line]
    controls = 3 if tune else 2  # none at each point of the grid, and null at the selected one
    assert len(taken) == len(set(taken)) == controls
    assert sum(" epoch 1/1 " in line and line.startswith(("none", "null")) for line in lines) == controls
    outputs = tmp_path / "outputs" / "classification"
    last = "bottleneck.variational.beta=0.1"
    alone = command(*fixed, last, "output_dir=alone")
    assert subprocess.run(alone, cwd=tmp_path, capture_output=True).returncode == 0
    (folder,) = (folder for folder in outputs.glob("run-*/") if last in summary_of(folder)["command"])
    for name in taken:
        shared, own = (load_checkpoint(place / "checkpoints" / f"{name}.pt") for place in (folder, tmp_path / "alone"))
        assert shared["weights"].keys() == own["weights"].keys()
        assert all(torch.equal(shared["weights"][key], own["weights"][key]) for key in own["weights"])
        assert shared["rows"] == own["rows"]
    assert summary_of(folder)["results"] == summary_of(tmp_path / "alone")["results"]
