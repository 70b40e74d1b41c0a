"""The regression recipe as a user runs it: from the command line, with wrong input, killed and resumed."""

import random
import re

import numpy as np
import pytest
import torch

import ibreg
from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.data import regression as regression_data
from ibreg.runs.folder import CHECKPOINTS, SUMMARY
from ibreg.runs.models import classifiers as models
from ibreg.runs.tasks.regression import task_losses
from tests.recipes.command_line import run_here
from tests.recipes.folders import assert_equal_runs, assert_same_results, rows_of, summary_of

RECIPE = "regression"
METHODS = "bottlenecks=[variational,cauchy_schwarz,hsic,symmetric]"
QUICK = [
    METHODS, "+bottleneck.symmetric={name:nonlinear,beta:0.01}",
    "+task_losses.symmetric={name:conditional_cauchy_schwarz,mode:symmetric}",
    "seeds=[0,1]", "epochs=3", "model.hidden=[32]", "model.decoder=[8]", "device=cpu", "lr=1e-2", "tune=true",
    "+grid.betas.hsic=[1,2]", "+grid.betas.symmetric=[0,1]", "grid.beta=[1e-3,100]", "grid.weight_decay=[0,50]",
    "ema=0.5", "prediction_draws=2", "draws=2", "attack.steps=2", "attack.rows=20", "attack.draws=2",
]  # fmt: skip


def test_a_run_leaves_table_summary_metrics_plots_config_and_checkpoints(finished):
    folder, printed = finished
    for word in ("second initialization", "variational", "test RMSE", "PGD", SUMMARY, "attacks.png"):
        assert word in re.sub(r"\s+", " ", printed)
    summary = summary_of(folder)
    assert (summary["recipe"], summary["data"], summary["seeds"]) == ("regression", "diabetes", [0, 1])
    assert list(summary["results"]) == ["none", "null", "variational", "cauchy_schwarz", "hsic", "symmetric"]
    for method, metrics in summary["results"].items():
        for metric in ("rmse", "mae", "r2", "cs_qmi", "rmse_fgsm_0.1", "rmse_pgd_0.1", "rmse_pgd_0"):
            assert len(metrics[f"test/{metric}"]["values"]) == 2
        assert ("test/rate" in metrics) == (method in ("variational", "symmetric"))
    assert summary["command"].startswith("python recipes/regression.py 'bottlenecks=")
    assert {path.name for path in folder.glob("*.png")} == {
        "attacks.png", "information_plane.png", "learning_curves.png", "predictions.png", "rate_plane.png",
        "residuals.png",
    }  # fmt: skip
    assert len([path for path in (folder / CHECKPOINTS).glob("*.pt") if "stop" not in path.name]) == (5 * 2 + 1) * 2
    rows = [row for row in rows_of(folder) if not row["stop"]]
    assert len(rows) == (5 * 2 + 1) * 2 * 3
    assert {"method", "seed", "beta", "epoch", "train/loss", "validation/rmse", "validation/cs_qmi"} <= rows[0].keys()
    assert not list(folder.rglob("*.partial"))


def test_the_learned_weights_are_those_that_were_tested_each_on_the_split_of_its_seed(launch):
    """Independent of the recipe's own evaluation: the error from the checkpoint with a bare forward."""
    folder = launch("bottlenecks=[]", "seeds=[0,3]", "epochs=2", "model.hidden=[16]", "attack.eps=[]")
    results = summary_of(folder)["results"]["none"]
    for position, seed in enumerate((0, 3)):
        data = regression_data.load("diabetes", split_seed=seed)
        network = models.build("mlp", input_shape=(10,), classes=1, hidden=[16])
        network.load_state_dict(load_checkpoint(folder / CHECKPOINTS / f"none-decay0-seed{seed}.pt")["weights"])
        with torch.no_grad():
            found = network(data.test.inputs).double().numpy() * data.target_std
        residuals = found - data.test.targets.double().numpy() * data.target_std
        assert results["test/rmse"]["values"][position] == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-6)
        assert results["test/mae"]["values"][position] == pytest.approx(np.mean(np.abs(residuals)), rel=1e-6)
        spread = np.var(data.test.targets.double().numpy()) * data.target_std**2
        assert results["test/r2"]["values"][position] == pytest.approx(1 - np.mean(residuals**2) / spread, rel=1e-6)


@pytest.mark.slow  # test_trials has the quick one
def test_a_worse_method_is_compared_under_attack_with_a_control_of_equal_error(launch):
    folder = launch(
        "bottlenecks=[variational]", "bottleneck.variational.beta=3", "seeds=[0]", "epochs=8", "model.hidden=[16]",
        "attack.eps=[0.2]", "attack.rows=30",
    )  # fmt: skip
    rows, results = rows_of(folder), summary_of(folder)["results"]
    (stop,) = {int(row["stop"]) for row in rows if row["stop"]}
    wanted = min(float(row["validation/rmse"]) for row in rows if row["method"] == "variational")
    control = [float(row["validation/rmse"]) for row in rows if row["method"] == "none" and not row["stop"]]
    assert control[stop - 1] <= wanted < min(control[: stop - 1])
    # The stopped control equals the control up to that epoch, and the difference under attack is to it.
    again = [float(row["validation/rmse"]) for row in rows if row["method"] == "none" and row["stop"]]
    assert again == control[:stop]
    data = regression_data.load("diabetes", split_seed=0)
    network = models.build("mlp", input_shape=(10,), classes=1, hidden=[16])
    network.load_state_dict(load_checkpoint(folder / CHECKPOINTS / f"none-decay0-seed0-stop{stop}.pt")["weights"])
    x, y = data.test.inputs[:30], data.test.targets[:30]
    with torch.no_grad():
        clean = (network.eval()(x) - y).double().square().mean().sqrt().item() * data.target_std
    method = results["variational"]
    assert method["test/rmse_pgd_0"]["mean"] - clean == pytest.approx(
        method["test/rmse_pgd_0_beyond_control"]["mean"], rel=1e-5
    )
    assert "test/rmse_pgd_0.2_beyond_control" in method
    assert "test/rmse_pgd_0.2_beyond_control" not in results["none"]


@pytest.mark.slow
def test_all_seeds_may_share_one_split(launch, recipe, monkeypatch):
    seeds = []
    load = regression_data.load
    monkeypatch.setattr(recipe.regression_data, "load", lambda *a, **k: seeds.append(k["split_seed"]) or load(*a, **k))
    quick = ["bottlenecks=[]", "seeds=[1,4]", "epochs=1", "model.hidden=[4]", "attack.eps=[]", "data.split_seed=7"]
    launch(*quick)
    assert sorted(seeds) == [8, 11]
    seeds.clear()
    launch(*quick, "split_by_seed=false", "overwrite=true")
    assert seeds == [7]


def test_epochs_and_grid_points_are_the_best_on_validation(finished):
    folder, _ = finished
    summary, rows = summary_of(folder), [row for row in rows_of(folder) if not row["stop"]]
    for method, choice in summary["selected"].items():
        key = "weight_decay" if choice["beta"] is None else "beta"
        chosen = choice[key]
        best = {}
        for row in rows:
            if row["method"] == method:
                at = float(row[key]), row["seed"]
                if at not in best or float(row["validation/rmse"]) < best[at][0]:
                    best[at] = float(row["validation/rmse"]), int(row["epoch"])
        points = {value for value, _ in best}
        errors = {value: sum(best[value, seed][0] for seed in "01") for value in points}
        assert min(errors, key=errors.get) == chosen
        assert [best[chosen, seed][1] for seed in "01"] == choice["epochs"]
    # A beta of 100 and a decay of 50 leave nothing to predict with.
    assert summary["selected"]["variational"]["beta"] == 1e-3
    assert summary["selected"]["none"]["weight_decay"] == summary["selected"]["null"]["weight_decay"] == 0
    assert {float(row["beta"]) for row in rows if row["method"] == "hsic"} == {1, 2}
    assert {float(row["beta"]) for row in rows if row["method"] == "cauchy_schwarz"} == {1e-3, 100}


@pytest.mark.slow  # the classification recipe has the quick one
def test_a_killed_run_resumes_bit_identically(launch, kill, finished):
    whole, _ = finished
    first, second = torch.randint(1, (5 * 2 + 1) * 3, (2,)).tolist()
    kill(*QUICK, checkpoint=first)
    kill(*QUICK, "resume=true", checkpoint=second)
    assert_equal_runs(whole, launch(*QUICK, "resume=true"))


def test_resuming_a_finished_run_shows_its_table(run, finished):
    folder, _ = finished
    again = run(*QUICK, "output_dir=run", "resume=true", cwd=folder.parent)
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stdout


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(launch, two_processes):
    options = [
        "bottlenecks=[hsic,cauchy_schwarz]", "bottleneck.hsic.gather=true", "bottleneck.cauchy_schwarz.gather=true",
        "seeds=[0]", "epochs=2", "model.hidden=[16]", "device=cpu", "attack.eps=[0.1]", "attack.steps=2",
        "attack.rows=20",
    ]  # fmt: skip
    assert_same_results(launch(*options), two_processes(*options), tolerance=1e-5)


def test_help_shows_the_choices(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    words = ["cs_ib_housing", "huber", "bottleneck.<name>.<option>", "split_by_seed", "noise_columns: 0"]
    for word in (*words, *regression_data.names(), *models.names(), *task_losses.names(), *ibreg.names()):
        assert word in result.stdout
    assert "vib_mnist" not in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+epoch=3"], "no key 'epoch' .did you mean 'epochs'"),
        (["bottlenecks=[hsik]"], "no bottleneck 'hsik' .did you mean 'hsic'.*: choose from .*hsic"),
        (["task_loss.name=squared"], "task_loss.name: no task loss 'squared'.*: it is one of .*squared_error"),
        (["+task_loss.delta=1"], "task_loss has no key 'delta': it has no options"),
        (["task_loss=huber", "task_loss.delta=0"], "task_loss.delta must be a number above 0, got 0"),
        (["task_loss=conditional_cauchy_schwarz", "task_loss.share=2"], "task_loss.share must be"),
        (["+task_losses.hsik={name:huber}"], "task_losses must be of none, .*hsic.*, got hsik"),
        (["+task_losses.none={delta:1}"], "task_losses.none must be a name and options, .*, got .'delta': 1."),
        (
            ["+task_losses.variational={name:huber,detla:1}"],
            "task_losses.variational has no key 'detla' .did you mean 'delta'.*: it has delta",
        ),
        (["task_losses=3"], "task_losses must be a section whose values are each a name and options"),
        (["attack.eps=[-1]"], "attack.eps must be a list of different numbers of at least 0"),
        (["attack.steps=0"], "attack.steps must be an integer of at least 1"),
        (["+attack.norm=2"], "attack has no key 'norm'"),
        (["split_by_seed=3"], "split_by_seed must be true or false"),
        (["tune=true", "+grid.betas.variational=[1]"], "the grid of beta of variational .* equally many values"),
        (["grid.betas=3"], "grid.betas must be a section whose values are each a list of numbers of at least 0, got 3"),
        (["+grid.betas.variational=[-1]"], "grid.betas.variational must be a list of numbers of at least 0"),
        (["data=digits"], "data.name: no regression data set 'digits': it is one of .*diabetes"),
        (["data=california_housing", "data.root=/nowhere"], "download=true"),
        (["data=csv"], "value is missing for data.path, data.target"),
        (["data.split=chronological"], "split must be random for diabetes, whose rows have no time order"),
        (["data.test=0.003"], "the test part of diabetes has 1 rows of one target.*data.test"),
        (["batch_size=5000"], "batch_size must be at most 283, the number of training rows, got 5000"),
        (["bottlenecks=[hsic]", "bottleneck.hsic.estimator=unbiased", "batch_size=3"], "4 samples"),
        (["bottleneck.variational.prior=conditional", "bottleneck.variational.classes=3"], "class"),
        (["model.decoder=[0]"], r"model.decoder must be a list of integers of at least 1, got \[0\]"),
        (["model=lenet"], "lenet needs images"),
        (["experiment=vib_mnist"], "the experiment belongs to another recipe: python recipes/classification.py"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(launch, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(*overrides)
    assert not (tmp_path / "run").exists()


def test_classification_refuses_an_experiment_of_regression(tmp_path):
    result = run_here("classification", "experiment=cs_ib_housing", cwd=tmp_path)
    assert result.returncode != 0
    assert "another recipe: python recipes/regression.py" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # the data have quick ones of splits and noise
def test_a_csv_trains_with_a_chronological_split_and_noise_columns(launch, tmp_path):
    generator = random.Random(0)
    rows = [(generator.gauss(0, 1), generator.gauss(0, 1)) for _ in range(400)]
    path = tmp_path / "table.csv"
    path.write_text("a,b,price\n" + "".join(f"{a},{b},{100 + 20 * a - 10 * b}\n" for a, b in rows))
    folder = launch(
        "data=csv", f"data.path={path}", "data.target=price", "data.split=chronological", "data.noise_columns=2",
        "epochs=15", "seeds=[0]", "lr=1e-2", "bottlenecks=[nonlinear]", "attack.eps=[0.1]",
        "bottleneck.nonlinear.beta=0",
    )  # fmt: skip
    results = summary_of(folder)["results"]
    for method in ("none", "nonlinear"):
        assert results[method]["test/r2"]["mean"] > 0.97
        # The slope of the truth over standardized columns bounds the rise of the error to about 0.1 * (20 + 10).
        rise = results[method]["test/rmse_pgd_0.1"]["mean"] - results[method]["test/rmse_pgd_0"]["mean"]
        assert 1.5 < rise < 4.5


def test_a_method_may_have_a_loss_of_its_own(launch):
    """Half a squared error and half of nothing: at share 1 the conditional loss is the squared error itself."""
    folder = launch(
        "bottlenecks=[same]", "+bottleneck.same={name:cauchy_schwarz,beta:0}", "seeds=[0]", "epochs=2",
        "+task_losses.same={name:conditional_cauchy_schwarz,share:1}", "model.hidden=[16]", "attack.eps=[]",
    )  # fmt: skip
    results = summary_of(folder)["results"]
    assert results["same"]["test/rmse"]["mean"] == pytest.approx(results["none"]["test/rmse"]["mean"], rel=1e-4)


def test_every_option_of_the_training_loop_runs(launch):
    folder = launch(
        "bottlenecks=[variational,hsic]", "seeds=[0]", "epochs=2", "ema=0.5", "draws=3", "prediction_draws=4",
        "accumulate=2", "precision=bf16", "selection=last", "lr_schedule=step", "lr_schedule.every=1",
        "schedule.name=target_rate",
        "schedule.rate=5", "bottlenecks=[variational]", "task_loss=absolute_error", "control=false",
    )  # fmt: skip
    assert summary_of(folder)["results"]["variational"]["test/rate"]["mean"] > 0


def test_images_train(launch, data_root):
    folder = launch(
        "data=rotated_mnist", f"data.root={data_root}", "data.size=400", "model=lenet", "bottlenecks=[cauchy_schwarz]",
        "seeds=[0]", "epochs=1", "attack.eps=[0.1]", "attack.steps=2", "attack.rows=20", "control=false",
    )  # fmt: skip
    assert summary_of(folder)["results"]["cauchy_schwarz"]["test/rmse"]["mean"] < 60
