"""A sweep: one run for each combination of values, in the folders that single runs would have, and one table of all."""

import subprocess
import sys
from pathlib import Path

import pytest
from folders import summary_of

from ibreg.training.configuration import run_name
from ibreg.training.folder import SUMMARY

RECIPE = "classification"
COMPARE = Path(__file__).resolve().parents[2] / "recipes" / "compare.py"
FIXED = ["seeds=[0]", "epochs=1", "sweep.betas=[]", "model.hidden=[8]", "device=cpu", "control=false"]


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_has_a_run_for_each_value_and_a_table_of_all(run, tmp_path, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install hydra-joblib-launcher")
    chosen = [] if launcher == "basic" else [f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2"]
    result = run("--multirun", *FIXED, "bottleneck.variational.beta=1e-4,1e-1", *chosen, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    outputs = tmp_path / "outputs" / "classification"
    folders = [outputs / run_name([*FIXED, f"bottleneck.variational.beta={beta}"]) for beta in ("1e-4", "1e-1")]
    assert sorted(path.parent for path in outputs.glob(f"*/{SUMMARY}")) == sorted(folders)
    rates = [summary_of(folder)["results"]["variational"]["test/rate"]["mean"] for folder in folders]
    assert rates[0] > rates[1]  # the larger beta leaves less of the input
    table = subprocess.run([sys.executable, COMPARE, outputs], cwd=tmp_path, capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    assert "bottleneck.variational.beta=1e-1" in table.stdout
