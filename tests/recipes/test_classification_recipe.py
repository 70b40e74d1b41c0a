"""The recipes as a user runs them: from the command line, with wrong input, killed, resumed, on two processes."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from folders import assert_equal_runs, assert_same_results, rows_of, summary_of, weights_of
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from PIL import Image

import ibreg.training.data.classification
import ibreg.training.run
from ibreg import registry
from ibreg.training.checkpoint import load_checkpoint
from ibreg.training.checks import check_configuration
from ibreg.training.continual.checks import check_continual
from ibreg.training.data import classification as datasets
from ibreg.training.folder import CHECKPOINTS, CONFIG, METRICS, SUMMARY
from ibreg.training.models import classifiers as models

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = "classification"
QUICK = ["seeds=[0,1]", "epochs=3", "sweep.betas=[1e-3,1e-1]", "sweep.epochs=2", "model.hidden=[32]", "device=cpu"]
QUICK += ["ema=0.5", "lr=1e-2", "lr_every=1", "lr_factor=0.5", "draws=2", "prediction_draws=2"]
QUICK += ["schedule.name=linear_warmup", "schedule.steps=20"]


def test_a_run_leaves_table_summary_metrics_plots_config_and_checkpoints(finished):
    folder, printed = finished
    for word in ("none, other init", "variational", "test error", SUMMARY, "information_curve.png"):
        assert word in printed.replace("\n", " ")
    summary = summary_of(folder)
    assert summary["recipe"] == "classification"
    assert summary["data"] == "digits"
    assert summary["seeds"] == [0, 1]
    assert set(summary["results"]) == {"none", "null", "variational"}
    assert set(summary["paired"]) == {"null", "variational"}
    for arm, metrics in summary["results"].items():
        assert len(metrics["test/accuracy"]["values"]) == 2
        assert ("test/rate" in metrics) == (arm == "variational")
    assert summary["command"].startswith("python recipes/classification.py seeds=[0,1]")
    assert "output_dir" not in summary["command"]
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"information_curve.png", "learning_curves.png", "reliability.png"}
    assert len(list((folder / CHECKPOINTS).glob("*.pt"))) == 3 * 2 + 2
    rows = rows_of(folder)
    assert len(rows) == 3 * 2 * 3 + 2 * 2
    assert {"arm", "seed", "beta", "epoch", "train/loss", "train/rate", "validation/accuracy"} <= rows[0].keys()
    assert not list(folder.rglob("*.partial"))


def test_the_learnt_weights_are_those_that_were_tested(finished, recipe):
    """Independent of the recipe's own evaluation: accuracy from the checkpoint with a bare forward."""
    folder, _ = finished
    data = datasets.load("digits")
    summary = summary_of(folder)
    for position, seed in enumerate((0, 1)):
        network = models.build("mlp", input_shape=data.input_shape, classes=10, hidden=[32])
        network.load_state_dict(load_checkpoint(folder / CHECKPOINTS / f"none-decay0-seed{seed}.pt")["weights"])
        right = network.eval()(data.test.inputs).argmax(1) == data.test.targets
        reported = summary["results"]["none"]["test/accuracy"]["values"][position]
        assert right.double().mean().item() == pytest.approx(reported, abs=1e-12)


def test_the_selected_epoch_is_the_best_on_validation(finished):
    folder, _ = finished
    summary = summary_of(folder)
    rows = [row for row in rows_of(folder) if row["sweep"] == "False"]
    for arm, choice in summary["selected"].items():
        for seed, epoch in zip(summary["seeds"], choice["epochs"], strict=True):
            own = [row for row in rows if row["arm"] == arm and row["seed"] == str(seed)]
            best = max(own, key=lambda row: (float(row["validation/accuracy"]), -float(row["validation/nll"])))
            assert int(best["epoch"]) == epoch


def test_a_killed_run_resumes_bit_identically(run, command, finished, tmp_path):
    whole, _ = finished
    overrides = [*QUICK, "output_dir=run"]
    lines_in_all = 3 * 2 * 3 + 2 * 2
    generator = random.Random(torch.randint(2**31, ()).item())
    for kill_after in sorted(generator.sample(range(1, lines_in_all - 2), 3)):
        process = subprocess.Popen(command(*overrides, "resume=true"), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        done = 0
        for line in process.stdout:
            done += 2 if "resumed" in line or "done before" in line else 1
            if done >= kill_after:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not (tmp_path / "run" / SUMMARY).exists()
    result = run(*overrides, "resume=true", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert_equal_runs(whole, tmp_path / "run")


def test_resuming_a_finished_run_shows_its_table_and_changes_nothing(run, finished):
    folder, _ = finished
    before = (folder / SUMMARY).read_bytes()
    result = run(*QUICK, "output_dir=run", "resume=true", cwd=folder.parent)
    assert result.returncode == 0
    assert "finished before" in result.stdout
    assert (folder / SUMMARY).read_bytes() == before


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(run, command, tmp_path):
    overrides = ["seeds=[0]", "epochs=500", "device=cpu", "output_dir=run", "resume=true"]
    first = subprocess.Popen(command(*overrides), cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert "epoch 1/500" in first.stdout.readline()
    second = run(*overrides, cwd=tmp_path)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert second.returncode != 0
    assert "another run is going on in run" in second.stderr


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
        (["bottlenecks=[variatonal]"], "'variatonal' is not configured: choose from .*variational"),
        (["+bottleneck.variational.betta=1"], "no option 'betta': choose from .*beta"),
        (["bottleneck.variational.prior=flat"], "prior is one of 'standard', 'learned', 'conditional'"),
        (["bottlenecks=[none]"], "none, null, decayed, dropout are the controls"),
        (["bottlenecks=[]", "control=false"], "nothing to train"),
        (["seeds=[]"], "seeds are"),
        (["seeds=[1,1]"], "seeds are"),
        (["epochs=0"], "epochs is a whole number of at least 1"),
        (["epochs=abc"], "epochs is a whole number of at least 1"),
        (["seeds=3"], "such as .0,1,2., got"),
        (["seeds=[-1]"], "seeds are"),
        (["overwrite=no"], "overwrite is true or false"),
        (["tune=maybe"], "tune is true or false"),
        (["inject_at=[]"], "inject_at names at least one"),
        (["bottlenecks=[hsic]", "schedule.name=target_rate"], "HSICBottleneck.* logs none"),
        (["+grid.betas.hsci=[1,2]"], "grid.betas names hsci"),
        (["sweep.epochs=0"], "sweep.epochs is a whole number of at least 1"),
        (["sweep.betas=[-1]"], "at least 0"),
        (["sweep.betas=[1e-3,0.001]"], "two trainings are the same"),
        (["schedule.name=linear_warmup", "schedule.steps=0"], "at least 1"),
        (["schedule.name=target_rate", "schedule.rate=-1"], "greater than 0"),
        (["precision=fp16", "device=cpu"], "needs an accelerator"),
        (["selection=worst"], "selection is one of best, last"),
        (["schedule.name=linaer"], "schedule.name is one of"),
        (["data.validation=0"], "choose on validation data"),
        (["tune=true", "grid.beta=[1e-3]"], "equally many"),
        (["inject_at=trunc"], "inject_at=trunc: the model has no module 'trunc'.*trunk"),
        (["inject_at=trunk.1", "bottleneck.variational.out_features=7"], "7 features for 256 behind trunk.1"),
        (["+schedule.foo=3"], "schedule has no key 'foo'"),
        (["lr=abc"], "lr is a number"),
        (["model=resnet20", "bottleneck.variational.out_features=7"], "no trunk"),
        (["batch_size=5000"], "batch_size=5000 is more than"),
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
        ("a,b,kind\n1,x,0\n2,3,1\n", "'b'"),
        ("a,b,kind\n1,,0\n2,3,1\n", "'b'"),
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


def test_a_damaged_checkpoint_is_named_and_the_rest_stays(launch, tmp_path):
    options = ["seeds=[0]", "epochs=1", "sweep.betas=[]", "model.hidden=[8]"]
    folder = launch(*options)
    whole = (folder / SUMMARY).read_bytes()
    (folder / SUMMARY).unlink()
    checkpoint = folder / CHECKPOINTS / "null-decay0-seed0.pt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) // 2])
    others = {path.name: path.read_bytes() for path in (folder / CHECKPOINTS).iterdir()}
    with pytest.raises(ValueError, match=f"{checkpoint.name} cannot be read.*delete it"):
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
    assert {arm: choice["beta"] for arm, choice in selected.items()} == {
        "none": None,
        "null": None,
        "variational": 1e-3,
    }


def test_the_rate_of_a_conditional_prior_is_labelled_and_gets_the_label_entropy_in_the_curve(
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
    # After one epoch of validation for each of four trainings, the curve evaluates its two.
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
    """Overrides of a run of two epochs on pictures that are cropped and mirrored at random."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(10):
                pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / part / kind / f"{number}.png")
    options = ["data=image_folder", f"data.path={tmp_path}", "data.image_size=8", "data.augment=true", "batch_size=4"]
    return [*options, "data.validation=0.2", "seeds=[0]", "epochs=2", "sweep.betas=[]", "model.hidden=[8]"]


def test_control_and_bottleneck_see_the_same_augmented_pictures(launch, augmented, monkeypatch):
    seen = []
    crop_and_flip = ibreg.training.data.classification.crop_and_flip

    def remembered(images, generator):
        seen.append(crop_and_flip(images, generator))
        return seen[-1]

    monkeypatch.setattr(ibreg.training.data.classification, "crop_and_flip", remembered)
    launch(*augmented)
    batches = 2 * 4
    del seen[:3]  # of the rehearsal
    assert len(seen) == 3 * batches
    control, bottleneck, null = (seen[place : place + batches] for place in (0, batches, 2 * batches))
    assert all(torch.equal(one, other) for one, other in zip(control, bottleneck, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(control, null, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(control[:4], control[4:], strict=True))


def test_an_augmented_run_resumes_bit_identically(launch, augmented, monkeypatch):
    folder = launch(*augmented)
    whole, metrics = weights_of(folder), (folder / METRICS).read_text()
    save_checkpoint = ibreg.training.run.save_checkpoint

    def stopped_in_the_second_epoch(path, state):
        if state["epoch"] == 2:
            raise RuntimeError("stopped")
        save_checkpoint(path, state)

    monkeypatch.setattr(ibreg.training.run, "save_checkpoint", stopped_in_the_second_epoch)
    with pytest.raises(RuntimeError, match="stopped"):
        launch(*augmented, "overwrite=true")
    monkeypatch.setattr(ibreg.training.run, "save_checkpoint", save_checkpoint)
    launch(*augmented, "resume=true")
    resumed = weights_of(folder)
    assert all(torch.equal(resumed[name][key], whole[name][key]) for name in whole for key in whole[name])
    assert (folder / METRICS).read_text() == metrics


def test_every_option_of_the_loop_runs(launch):
    folder = launch(
        "seeds=[0]", "epochs=2", "sweep.betas=[]", "ema=0.9", "draws=3", "prediction_draws=4", "accumulate=2",
        "precision=bf16", "selection=last", "lr_every=1", "lr_factor=0.5", "schedule.name=target_rate",
        "schedule.rate=5",
        "bottleneck.variational.prior=conditional", "bottleneck.variational.classes=10",
    )  # fmt: skip
    results = summary_of(folder)["results"]
    assert results["variational"]["test/rate"]["mean"] > 0


@pytest.mark.parametrize("model", ["lenet", "resnet20", "torchvision"])
def test_every_model_runs(launch, model):
    options = ["model.architecture=mobilenet_v3_small"] if model == "torchvision" else []
    short = ["data.limit=200", "batch_size=50", "seeds=[0]", "epochs=1", "sweep.betas=[]", "control=false"]
    folder = launch(f"model={model}", *options, *short)
    assert "variational" in summary_of(folder)["results"]


def test_two_processes_give_the_metrics_of_one(run, tmp_path):
    options = [
        "bottlenecks=[]", "seeds=[0]", "epochs=2", "device=cpu", "batch_size=64", "sweep.betas=[]", "model.hidden=[32]"
    ]  # fmt: skip
    single = run(*options, "output_dir=one", cwd=tmp_path)
    assert single.returncode == 0, single.stderr
    # Without --multi_gpu, the launcher starts a single process where there is no GPU.
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    accelerate += ["--main_process_port", "0"]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    double = subprocess.run(
        [*accelerate, str(ROOT / "recipes" / "classification.py"), *options, "output_dir=two"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert double.returncode == 0, double.stderr
    assert double.stdout.count("none-decay0-seed0 epoch 1/2") == 1
    assert "terminate called" not in double.stderr
    assert "destroy_process_group" not in double.stderr
    assert summary_of(tmp_path / "two")["hardware"]["processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    one, two = summary_of(tmp_path / "one")["results"], summary_of(tmp_path / "two")["results"]
    for arm in one:
        for metric in one[arm]:
            assert two[arm][metric]["values"] == pytest.approx(one[arm][metric]["values"], abs=1e-5), metric
    for row, other in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert float(other["train/loss"]) == pytest.approx(float(row["train/loss"]), abs=1e-5)
    assert (tmp_path / "two" / CONFIG).is_file()


HSIC = ["bottlenecks=[hsic]", "bottleneck.hsic.gather=true", "control=false", "seeds=[0]", "epochs=3"]
HSIC += ["device=cpu", "batch_size=64", "sweep.betas=[]", "model.hidden=[32]"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FSDP2 = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"]
FSDP2 += ["--main_process_port", "0"]


# bfloat16 has 8 bits, and a process rounds the gradient of its own rows.
@pytest.mark.parametrize(("override", "tolerance"), [("accumulate=2", 1e-5), ("precision=bf16", 2**-8)])
def test_two_processes_take_the_steps_of_one(launch, two_processes, override, tolerance):
    assert_same_results(launch(*HSIC, override), two_processes(*HSIC, override), tolerance=tolerance)


@pytest.fixture
def begun(tmp_path):
    """Runs the recipe with a launcher and kills it behind its first checkpoint; returns what it printed."""

    def call(launcher, *overrides):
        script = tmp_path / "begun.py"
        script.write_text(
            "import gc, os, runpy, sys\n"
            "import ibreg.training.run as run\n"
            "from torch.distributed.fsdp import FSDPModule\n"
            "def killed(*state):\n"
            "    save_checkpoint(*state)\n"
            "    print('sharded:', any(issubclass(type(each), FSDPModule) for each in gc.get_objects()), flush=True)\n"
            "    os._exit(1)\n"
            "save_checkpoint, run.save_checkpoint = run.save_checkpoint, killed\n"
            f"sys.argv[0] = {str(ROOT / 'recipes' / 'classification.py')!r}\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        result = subprocess.run(
            [sys.executable, *launcher, str(script), *overrides, f"output_dir={tmp_path / 'run'}"],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode != 0
        (path,) = (tmp_path / "run" / CHECKPOINTS).glob("*.pt")
        assert load_checkpoint(path)["epoch"] == 1
        return result.stdout

    return call


def test_a_run_of_two_processes_goes_on_with_one(launch, begun, tmp_path):
    whole = launch(*HSIC).rename(tmp_path / "whole")
    assert "sharded: False" in begun(TORCHRUN, *HSIC)
    assert_same_results(whole, launch(*HSIC, "resume=true"), tolerance=1e-5)


def test_two_processes_with_shards_of_a_model_equal_one_and_go_on_as_two_or_one(launch, begun, tmp_path):
    whole = launch(*HSIC).rename(tmp_path / "whole")
    assert "sharded: True" in begun(FSDP2, *HSIC)
    shutil.copytree(tmp_path / "run", tmp_path / "two")
    script = ROOT / "recipes" / "classification.py"
    double = subprocess.run(
        [sys.executable, *FSDP2, str(script), *HSIC, f"output_dir={tmp_path / 'two'}", "resume=true"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert double.returncode == 0, double.stderr
    assert "hsic-decay0-seed0: resumed" in double.stdout
    assert "destroy_process_group" not in double.stderr
    assert summary_of(tmp_path / "two")["hardware"]["processes"] == 2
    assert_same_results(whole, tmp_path / "two", tolerance=1e-5)
    assert_same_results(whole, launch(*HSIC, "resume=true"), tolerance=1e-5)


@pytest.mark.parametrize(("version", "override", "message"), [("1", "ema=0", "version 2"), ("2", "ema=0.9", "ema=0.9")])
def test_what_fsdp_cannot_do_is_refused(launch, tmp_path, monkeypatch, version, override, message):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": version, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launcher |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        launch(override, "device=cpu")
    torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(True)
    assert not (tmp_path / "run").exists()


def test_experiments_compose(recipe):
    for path in sorted((ROOT / "configs" / "experiment").glob("*.yaml")):
        recipe = OmegaConf.load(path).recipe
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            cfg = compose(recipe, [f"experiment={path.stem}", "output_dir=unused"])
        check = {"continual": check_continual}.get(recipe, check_configuration)
        check(cfg, ROOT / "configs" / f"{recipe}.yaml")


def test_the_command_line_lists_and_runs(tmp_path):
    def ibreg(*arguments):
        module = [sys.executable, "-m", "ibreg.cli"]
        return subprocess.run([*module, *arguments], cwd=tmp_path, capture_output=True, text=True)

    listing = ibreg("list").stdout
    for word in ("classification", "variational", "digits", "mlp", "vib_mnist"):
        assert word in listing
    unknown = ibreg("classify")
    assert unknown.returncode == 2
    assert "classification" in unknown.stderr
    assert "batch_size" in ibreg("classification", "--help").stdout
