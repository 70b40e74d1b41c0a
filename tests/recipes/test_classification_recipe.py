"""The classification recipe as a user runs it: from the command line, with wrong input, killed, resumed."""

import json
import random
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from PIL import Image

import ibreg.runs.data.classification
from ibreg import registry
from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.config.recipe import read_recipe
from ibreg.runs.data import classification as datasets
from ibreg.runs.folder import CHECKPOINTS, SUMMARY
from ibreg.runs.models import classifiers as models
from tests.recipes.command_line import ROOT, module_of
from tests.recipes.folders import assert_equal_runs, rows_of, summary_of

RECIPE = "classification"
QUICK = ["seeds=[0,1]", "epochs=3", "sweep.betas=[1e-3,1e-1]", "sweep.epochs=2", "model.hidden=[32]", "device=cpu"]
QUICK += [
    "ema=0.5",
    "lr=1e-2",
    "lr_schedule=step",
    "lr_schedule.every=1",
    "lr_schedule.factor=0.5",
    "draws=2",
    "prediction_draws=2",
]
QUICK += ["schedule.name=linear_warmup", "schedule.steps=20"]


def test_a_run_leaves_table_summary_metrics_plots_config_and_checkpoints(finished):
    folder, printed = finished
    for word in ("second initialization", "variational", "test error", SUMMARY, "information_curve.png"):
        assert word in printed.replace("\n", " ")
    summary = summary_of(folder)
    assert summary["recipe"] == "classification"
    assert summary["data"] == "digits"
    assert summary["seeds"] == [0, 1]
    assert set(summary["results"]) == {"none", "null", "variational"}
    assert set(summary["paired"]) == {"null", "variational"}
    for method, metrics in summary["results"].items():
        assert len(metrics["test/accuracy"]["values"]) == 2
        assert ("test/rate" in metrics) == (method == "variational")
    # As it can be typed: quoted for the shell, with keys as the user gives them.
    assert summary["command"].startswith("python recipes/classification.py 'seeds=[0,1]' epochs=3 ")
    assert shlex.split(summary["command"]) == ["python", "recipes/classification.py", *QUICK]
    images = {path.name for path in folder.glob("*.png")}
    assert images == {"information_curve.png", "learning_curves.png", "reliability.png"}
    assert len(list((folder / CHECKPOINTS).glob("*.pt"))) == 3 * 2 + 2
    rows = rows_of(folder)
    assert len(rows) == 3 * 2 * 3 + 2 * 2
    assert {"method", "seed", "beta", "epoch", "train/loss", "train/rate", "validation/accuracy"} <= rows[0].keys()
    assert not list(folder.rglob("*.partial"))


def test_the_learned_weights_are_those_that_were_tested(finished, recipe):
    """Independent of the recipe's own evaluation: accuracy from the checkpoint with a bare forward."""
    folder, _ = finished
    data = datasets.load("digits")
    summary = summary_of(folder)
    for position, seed in enumerate((0, 1)):
        network = models.build(
            "mlp", input_shape=data.input_shape, classes=10, normalization=data.normalization, hidden=[32]
        )
        network.load_state_dict(load_checkpoint(folder / CHECKPOINTS / f"none-decay0-seed{seed}.pt")["weights"])
        right = network.eval()(data.test.inputs).argmax(1) == data.test.targets
        reported = summary["results"]["none"]["test/accuracy"]["values"][position]
        assert right.double().mean().item() == pytest.approx(reported, abs=1e-12)


def test_the_selected_epoch_is_the_best_on_validation(finished):
    folder, _ = finished
    summary = summary_of(folder)
    rows = [row for row in rows_of(folder) if row["sweep"] == "False"]
    for method, choice in summary["selected"].items():
        for seed, epoch in zip(summary["seeds"], choice["epochs"], strict=True):
            own = [row for row in rows if row["method"] == method and row["seed"] == str(seed)]
            best = max(own, key=lambda row: (float(row["validation/accuracy"]), -float(row["validation/nll"])))
            assert int(best["epoch"]) == epoch


@pytest.mark.slow
def test_a_running_run_is_left_alone_and_a_killed_one_resumes_bit_identically(run, command, finished, tmp_path):
    whole, _ = finished
    overrides = [*QUICK, "output_dir=run", "resume=true"]
    first = subprocess.Popen(command(*overrides), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    for _ in range(int(torch.randint(1, 15, ()))):  # of 22 epochs
        assert " epoch " in first.stdout.readline()
    first.send_signal(signal.SIGSTOP)
    second = run(*overrides, cwd=tmp_path)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert second.returncode != 0
    assert "another run is going on in run" in second.stderr
    assert not (tmp_path / "run" / SUMMARY).exists()
    third = run(*overrides, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert_equal_runs(whole, tmp_path / "run")


def test_a_run_killed_twice_at_a_checkpoint_resumes_bit_identically(launch, kill, finished):
    whole, _ = finished
    first, second = torch.randint(1, 11, (2,)).tolist()
    kill(*QUICK, checkpoint=first)
    kill(*QUICK, "resume=true", checkpoint=second)
    assert_equal_runs(whole, launch(*QUICK, "resume=true"))


def test_resuming_a_finished_run_shows_its_table_and_changes_nothing(run, finished):
    folder, _ = finished
    before = (folder / SUMMARY).read_bytes()
    result = run(*QUICK, "output_dir=run", "resume=true", cwd=folder.parent)
    assert result.returncode == 0
    assert "finished before" in result.stdout
    assert (folder / SUMMARY).read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "finished run.*overwrite=true"),
        (["resume=true", "batch_size=64"], "another configuration.*batch_size"),
        (["resume=true", "overwrite=true"], "one of them"),
    ],
)
def test_a_run_that_is_there_is_not_lost(run, finished, overrides, message):
    folder, _ = finished
    before = (folder / SUMMARY).read_bytes()
    result = run(*QUICK, "output_dir=run", *overrides, cwd=folder.parent)
    assert result.returncode != 0
    assert re.search(message, result.stderr.replace("\n", " "))
    assert (folder / SUMMARY).read_bytes() == before


def test_help_shows_the_choices(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    words = ["vib_mnist", "bottleneck.<name>.<option>", "batch_size"]
    for word in (*words, *datasets.names(), *models.names(), *registry.names()):
        assert word in result.stdout
    assert "cs_ib_housing" not in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+epoch=3"], "no key 'epoch' .did you mean 'epochs'"),
        (
            ["bottlenecks=[variatonal]"],
            "no bottleneck 'variatonal' .did you mean 'variational'.*: choose from .*variational",
        ),
        (
            ["+bottleneck.variational.betta=1"],
            "bottleneck.variational has no key 'betta' .did you mean 'beta'.*: it has .*beta",
        ),
        (["bottleneck.variational.prior=flat"], "prior must be one of 'standard', 'learned', 'conditional'"),
        (["bottlenecks=[none]"], "must be none of the controls none, null, decayed, dropout, got none"),
        (["bottlenecks=[hsic,hsic]"], "bottlenecks must be a list of different strings, got .'hsic', 'hsic'."),
        (["bottlenecks=hsic"], "bottlenecks must be a list of different strings, got hsic"),
        (["bottlenecks=[]", "control=false"], "nothing to train"),
        (["seeds=[]"], "seeds must be"),
        (["seeds=[1,1]"], "seeds must be"),
        (["epochs=0"], "epochs must be an integer of at least 1"),
        (["epochs=abc"], "epochs must be an integer of at least 1"),
        (["seeds=3"], r"seeds must be .* integers of at least 0, such as \[0,1,2\], got 3"),
        (["seeds=[-1]"], "seeds must be"),
        (["overwrite=no"], "overwrite must be true or false"),
        (["tune=maybe"], "tune must be true or false"),
        (["inject_at=[]"], r"inject_at must be the name of a module, or a list of .* ones, got \[\]"),
        (["bottlenecks=[hsic]", "schedule.name=target_rate"], "HSICBottleneck.* logs none"),
        (["+grid.betas.hsci=[1,2]"], "grid.betas must be of .*, got hsci .did you mean 'hsic'"),
        (["sweep.epochs=0"], "sweep.epochs must be an integer of at least 1"),
        (["sweep.betas=[-1]"], "at least 0"),
        (["sweep.betas=[1e-3,0.001]"], "two training runs are the same"),
        (["schedule.name=linear_warmup", "schedule.steps=0"], "at least 1"),
        (["schedule.name=target_rate", "schedule.rate=-1"], "schedule.rate must be a number above 0 .*, got -1"),
        (["precision=fp16", "device=cpu"], "needs an accelerator"),
        (["selection=worst"], "selection must be one of best, last"),
        (["schedule.name=linaer"], "schedule.name must be one of"),
        (["data.validation=0"], "select on validation data"),
        (["tune=true", "grid.beta=[1e-3]"], "equally many"),
        (["inject_at=trunc"], "inject_at=trunc: the model has no module 'trunc'.*trunk"),
        (["inject_at=trunk.1", "bottleneck.variational.out_features=7"], "7 features for 256 after trunk.1"),
        (["+schedule.foo=3"], "schedule has no key 'foo'"),
        (["lr=abc"], "lr must be a number"),
        (["model=resnet20", "bottleneck.variational.out_features=7"], "no trunk"),
        (["batch_size=5000"], "batch_size must be at most 1293, the number of training rows, got 5000"),
        (["data=mnist", "data.root=/nowhere"], "download=true"),
        (["data=csv"], "value is missing for data.path, data.target"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(launch, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(*overrides)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_is_refused_by_hydra(launch):
    with pytest.raises(ConfigCompositionException, match="epoch"):
        launch("epoch=3")
    with pytest.raises(ConfigCompositionException, match="vib_minst"):
        launch("experiment=vib_minst")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b,kind\n" + "1,2,0\n2,3,1\n" * 20 + "1,x,0\n", "column 'b', line 42: x is not a number"),
        ("a,b,kind\n" + "1,inf,0\n2,3,1\n" * 20, "column 'b', line 2: inf is not a finite number"),
        ("a,b,kind\n", "no row|header|empty"),
        ("", "empty|header"),
        ("a,b,kind\n" + "1,2,0\n2,3,0\n" * 20, "one class|class"),
        ("a,b,kind\n" + "1,2,0\n2,3,1\n" * 20 + "5,5,2\n", "'2'|class"),
    ],
)
def test_a_bad_csv_is_refused(launch, tmp_path, table, message):
    path = tmp_path / "table.csv"
    path.write_text(table)
    with pytest.raises(ValueError, match=message):
        launch("data=csv", f"data.path={path}", "data.target=kind")
    assert not (tmp_path / "run").exists()


def test_a_csv_trains(launch, tmp_path):
    generator = random.Random(0)
    rows = [(generator.gauss(0, 1), generator.gauss(0, 1)) for _ in range(300)]
    path = tmp_path / "table.csv"
    path.write_text("a,b,kind\n" + "".join(f"{a},{b},{'up' if a + b > 0 else 'down'}\n" for a, b in rows))
    folder = launch(
        "data=csv", f"data.path={path}", "data.target=kind", "epochs=10", "seeds=[0]", "sweep.betas=[]",
        "batch_size=32", "lr=1e-2",
    )  # fmt: skip
    results = summary_of(folder)["results"]
    assert results["none"]["test/accuracy"]["mean"] > 0.9
    assert results["variational"]["test/accuracy"]["mean"] > 0.9
    assert (folder / "columns.csv").read_text().splitlines()[1] == "a,number,1,0,standardized"


@pytest.mark.slow  # test_checkpoint has the quick one
def test_a_damaged_checkpoint_is_named_and_the_rest_stays(launch, tmp_path):
    options = ["seeds=[0]", "epochs=1", "sweep.betas=[]", "model.hidden=[8]"]
    folder = launch(*options)
    whole = (folder / SUMMARY).read_bytes()
    (folder / SUMMARY).unlink()
    checkpoint = folder / CHECKPOINTS / "null-decay0-seed0.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    others = {path.name: path.read_bytes() for path in (folder / CHECKPOINTS).iterdir()}
    with pytest.raises(ValueError, match=f"{checkpoint.name} cannot be read.*Delete it"):
        launch(*options, "resume=true")
    assert {path.name: path.read_bytes() for path in (folder / CHECKPOINTS).iterdir()} == others
    checkpoint.unlink()
    launch(*options, "resume=true")
    assert summary_of(folder)["results"] == json.loads(whole)["results"]


def test_the_grid_is_chosen_on_validation_for_control_and_bottleneck(launch):
    grid = ["grid.beta=[1e-4,100]", "grid.weight_decay=[0,50]"]
    folder = launch("tune=true", *grid, "seeds=[0]", "epochs=3", "sweep.betas=[]", "lr=1e-2")
    selected = summary_of(folder)["selected"]
    assert len(list((folder / CHECKPOINTS).glob("null-*.pt"))) == 1
    assert len(list((folder / CHECKPOINTS).glob("none-*.pt"))) == 2
    # A beta of 100 and a decay of 50 leave nothing to predict with.
    assert selected["variational"]["beta"] == 1e-4
    assert selected["none"]["weight_decay"] == selected["null"]["weight_decay"] == 0


def test_the_beta_that_was_used_is_in_the_summary(finished):
    folder, _ = finished
    selected = summary_of(folder)["selected"]
    assert {method: choice["beta"] for method, choice in selected.items()} == {
        "none": None,
        "null": None,
        "variational": 1e-3,
    }


def test_the_rate_of_a_conditional_prior_is_labeled_and_gets_the_label_entropy_in_the_curve(
    launch, recipe, monkeypatch, capsys
):
    drawn = {}
    monkeypatch.setattr(recipe, "information_curve", lambda points, path, **kwargs: drawn.update(points=points))
    evaluated = []
    classify = recipe.classify
    monkeypatch.setattr(recipe, "classify", lambda *a, **k: evaluated.append(classify(*a, **k)) or evaluated[-1])
    folder = launch(
        "bottlenecks=[variational,ceb]", "+bottleneck.ceb={name:variational,prior:conditional,classes:10}",
        "control=false", "seeds=[0]", "epochs=1", "sweep.betas=[1e-3]", "sweep.epochs=1", "model.hidden=[16]",
    )  # fmt: skip
    plain, ceb = drawn["points"]
    # After one epoch of validation for each of four training runs, the curve evaluates its two.
    first, second = evaluated[4:6]
    counts = torch.bincount(second.targets).double() / len(second.targets)
    entropy = -(counts * counts.log()).sum().item()
    assert plain["rate"] == first.rate
    assert ceb["rate"] == pytest.approx(second.rate + entropy, rel=1e-9)
    headings = [heading for _, heading, _, _ in summary_of(folder)["headline"]]
    assert headings[-1] == "rate ≥ I(X;Z), ceb: I(X;Z|Y) (nats)"


@pytest.mark.parametrize(
    ("prior", "heading"), [("standard", "rate ≥ I(X;Z) (nats)"), ("conditional", "rate ≥ I(X;Z|Y) (nats)")]
)
def test_the_column_of_the_rate_says_what_it_bounds(recipe, prior, heading):
    classes = ["bottleneck.variational.classes=10"] if prior == "conditional" else []
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("classification", [f"bottleneck.variational.prior={prior}", *classes, "output_dir=unused"])
    assert recipe.columns(cfg)[-1][1] == heading


@pytest.fixture
def augmented(tmp_path):
    """Overrides of a run of two epochs on images that are cropped and mirrored at random."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(10):
                pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / part / kind / f"{number}.png")
    options = ["data=image_folder", f"data.path={tmp_path}", "data.image_size=8", "data.augment=true", "batch_size=4"]
    return [*options, "data.validation=0.2", "seeds=[0]", "epochs=2", "sweep.betas=[]", "model.hidden=[8]"]


def test_control_and_bottleneck_see_the_same_augmented_images(launch, augmented, monkeypatch):
    seen = []
    crop_and_flip = ibreg.runs.data.classification.crop_and_flip

    def remembered(images, generator, **options):
        seen.append(crop_and_flip(images, generator, **options))
        return seen[-1]

    monkeypatch.setattr(ibreg.runs.data.classification, "crop_and_flip", remembered)
    launch(*augmented)
    batches = 2 * 4
    del seen[:3]  # of the rehearsal
    assert len(seen) == 3 * batches
    control, bottleneck, null = (seen[place : place + batches] for place in (0, batches, 2 * batches))
    assert all(torch.equal(one, other) for one, other in zip(control, bottleneck, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(control, null, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(control[:4], control[4:], strict=True))


@pytest.mark.slow
def test_an_augmented_run_resumes_bit_identically(launch, kill, augmented, tmp_path):
    whole = launch(*augmented).rename(tmp_path / "whole")
    kill(*augmented, checkpoint=2)  # in the second epoch of the first model
    assert_equal_runs(whole, launch(*augmented, "resume=true"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # of Python 3.12 and later
def test_a_run_does_not_depend_on_its_worker_processes_and_resumes_with_others(launch, kill, augmented, tmp_path):
    alone = launch(*augmented).rename(tmp_path / "alone")
    several = launch(*augmented, "data.workers=2").rename(tmp_path / "several")
    kill(*augmented, "data.workers=1", checkpoint=2)
    resumed = launch(*augmented, "data.workers=2", "resume=true")
    for other in (several, resumed):
        assert (other / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()
        assert summary_of(other)["results"] == summary_of(alone)["results"]


def test_every_option_of_the_training_loop_runs(launch):
    folder = launch(
        "seeds=[0]", "epochs=2", "sweep.betas=[]", "ema=0.5", "draws=3", "prediction_draws=4", "accumulate=2",
        "precision=bf16", "selection=last", "lr_schedule=step", "lr_schedule.every=1", "schedule.name=target_rate",
        "schedule.rate=5",
        "bottleneck.variational.prior=conditional", "bottleneck.variational.classes=10",
    )  # fmt: skip
    results = summary_of(folder)["results"]
    assert results["variational"]["test/rate"]["mean"] > 0


@pytest.mark.parametrize(
    "model", ["lenet", *(pytest.param(model, marks=pytest.mark.slow) for model in ("resnet20", "torchvision"))]
)
def test_every_model_runs(launch, model):
    options = ["model.architecture=mobilenet_v3_small"] if model == "torchvision" else []
    short = ["data.limit=200", "batch_size=50", "seeds=[0]", "epochs=1", "sweep.betas=[]", "control=false"]
    folder = launch(f"model={model}", *options, *short)
    assert "variational" in summary_of(folder)["results"]


def test_experiments_compose(recipe):
    for path in sorted((ROOT / "configs" / "experiment").glob("*.yaml")):
        recipe = OmegaConf.load(path).recipe
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(recipe, [f"experiment={path.stem}", "output_dir=unused"])
        assert read_recipe(module_of(recipe).main.config, cfg).recipe == recipe


@pytest.mark.slow  # test_cli has quick ones
def test_the_command_line_runs_a_recipe_by_its_name(tmp_path):
    command = [sys.executable, "-m", "ibreg.cli", "classification", "--help"]
    assert "batch_size" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout


def test_a_point_of_the_information_curve_that_diverges_is_left_out(run, tmp_path):
    short = ["data.limit=200", "batch_size=50", "seeds=[0]", "epochs=2", "control=false", "output_dir=run"]
    result = run(*short, "sweep.betas=[1e-3,1e38]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "this point of the information curve is left out" in result.stdout
    assert {row["beta"] for row in rows_of(tmp_path / "run")} == {"", "0.001"}
    assert (tmp_path / "run" / "information_curve.png").is_file()
