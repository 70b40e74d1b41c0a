"""What `main` of a recipe returns to a sweeper, a metric on validation data, and what sweepers make of it."""

import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hydra import compose, initialize_config_dir

from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.launch import launch
from tests.recipes.command_line import ROOT, module_of, script_of
from tests.recipes.folders import rows_of, summary_of

QUICK = ["epochs=2", "model.hidden=[8]", "device=cpu"]
CLASSIFICATION = [*QUICK, "sweep.betas=[]", "data.limit=600"]
OPTUNA = ["--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]


def returned(recipe, folder, *overrides):
    register_with_hydra()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(recipe, [*overrides, f"output_dir={folder}"])
    AcceleratorState._reset_state(True)
    return module_of(recipe).main(cfg)


def rows_by_seed(folder, method):
    rows = [row for row in rows_of(folder) if row["method"] == method]
    return [[row for row in rows if row["seed"] == seed] for seed in sorted({row["seed"] for row in rows})]


def test_the_validation_error_is_the_mean_over_seeds_at_the_selected_epochs(tmp_path):
    value = returned("classification", tmp_path / "run", *CLASSIFICATION, "seeds=[0,1]", "control=false")
    of_seeds = []
    for rows in rows_by_seed(tmp_path / "run", "variational"):
        assert len(rows) == 2
        best = max(rows, key=lambda row: (float(row["validation/accuracy"]), -float(row["validation/nll"])))
        of_seeds.append(1 - float(best["validation/accuracy"]))
    assert len(of_seeds) == 2
    assert value == pytest.approx(fmean(of_seeds))
    # A finished run that is asked for again returns the same.
    again = ("seeds=[0,1]", "control=false", "resume=true")
    assert returned("classification", tmp_path / "run", *CLASSIFICATION, *again) == value


@pytest.mark.slow  # classification has the quick one
def test_the_validation_rmse_is_that_of_the_first_bottleneck(tmp_path):
    overrides = [*QUICK, "seeds=[0,1]", "bottlenecks=[hsic,variational]", "attack.eps=[]"]
    overrides += ["control=false", "data.limit=128"]
    value = returned("regression", tmp_path / "run", *overrides)
    of_seeds = [min(float(row["validation/rmse"]) for row in rows) for rows in rows_by_seed(tmp_path / "run", "hsic")]
    assert len(of_seeds) == 2
    assert value == pytest.approx(fmean(of_seeds))


def test_the_last_epoch_counts_where_it_is_selected(tmp_path):
    overrides = [*CLASSIFICATION, "seeds=[3]", "selection=last", "bottlenecks=[]", "optimizer=sgd", "lr=3"]
    value = returned("classification", tmp_path / "run", *overrides)
    [rows] = rows_by_seed(tmp_path / "run", "none")
    assert value == pytest.approx(1 - float(rows[-1]["validation/accuracy"]))


def test_nothing_without_validation_data(tmp_path):
    overrides = [*CLASSIFICATION, "seeds=[0]", "data.validation=0", "selection=last", "control=false"]
    assert returned("classification", tmp_path / "run", *overrides) is None


def test_nothing_on_another_process_than_the_main_one(tmp_path, monkeypatch):
    register_with_hydra()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    seen = []
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: False))
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("classification", [f"output_dir={tmp_path / 'run'}"])
    assert launch(cfg, Accelerator(cpu=True), lambda folder: seen.append(folder)) is None
    assert seen == [tmp_path / "run"]


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "best"), [("minimize", min), ("maximize", max)])
def test_an_optuna_sweep_finds_the_best_of_its_runs(tmp_path, direction, best):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install hydra-optuna-sweeper")
    space = ["lr=tag(log, interval(1e-4, 1e-1))", "optimizer=adamw,sgd"]
    overrides = [*CLASSIFICATION, *space, "seeds=[0]", "control=false", "data.root=~/größe of a folder"]
    # In a process of its own: tests take a warning for an error, and optuna begins with one.
    script = [sys.executable, str(script_of("classification")), *OPTUNA, f"hydra.sweeper.direction={direction}"]
    result = subprocess.run([*script, *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    outputs = tmp_path / "outputs" / "classification"
    values = {folder: fmean(summary_of(folder)["validation"]["variational"]) for folder in outputs.glob("*/")}
    assert len(values) == 3
    found = yaml.safe_load((outputs / "optimization_results.yaml").read_text())
    assert found["best_value"] == pytest.approx(best(values.values()))
    chosen = max(values, key=lambda folder: values[folder] == found["best_value"])
    configured = yaml.safe_load((chosen / "config.yaml").read_text())
    assert configured["lr"] == pytest.approx(found["best_params"]["++lr"])
    assert configured["optimizer"]["name"] == found["best_params"]["optimizer"]
    assert configured["data"]["root"] == "~/größe of a folder"


@pytest.mark.slow
def test_a_bottleneck_of_ones_own_in_the_processes_of_a_launcher(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install hydra-joblib-launcher")
    (tmp_path / "my_layers.py").write_text(
        'import ibreg\n\n\n@ibreg.register("mine")\nclass Mine(ibreg.VariationalBottleneck):\n    """Mine."""\n'
    )
    sweep = ["--multirun", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "bottleneck.mine.beta=0.5,1"]
    arguments = [*CLASSIFICATION, "seeds=[0]", "imports=[my_layers]", "bottlenecks=[mine]", "control=false"]
    script = [sys.executable, str(script_of("classification")), *sweep, *arguments]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = [summary_of(Path(path))["selected"]["mine"]["beta"] for path in tmp_path.glob("outputs/classification/*/")]
    assert sorted(found) == [0.5, 1]
