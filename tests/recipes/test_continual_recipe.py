"""The continual-learning recipe as a user runs it: from the command line, with wrong input, killed and resumed."""

import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import accuracy_score
from torch import nn

import ibreg
from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.data import streams as continual_data
from ibreg.runs.folder import CHECKPOINTS, METRICS, SUMMARY
from ibreg.runs.models.features import standardized
from ibreg.runs.tasks.continual import learners
from tests.recipes.folders import rows_of, summary_of

RECIPE = "continual"
METHODS = ["none", "null", "mlp", "ewc", "replay", "joint", "key_value"]
QUICK = [
    "seeds=[0,1]", "epochs=2", "data.rows=640", "batch_size=16", "device=cpu", "initialize.epochs=2", "momentum=0.5",
    "bottleneck.key_value.codebooks=4", "bottleneck.key_value.pairs=32", "cache=cache",
    "settings.none=[{lr:1},{lr:0.1}]", "settings.mlp=[{lr:1},{lr:0.1,hidden:[8]}]", "settings.joint=[{lr:1},{lr:3}]",
    "settings.ewc=[{lr:0.1},{lr:0.3,strength:10}]", "settings.replay=[{lr:1},{lr:0.1}]",
    "settings.key_value=[{lr:100},{lr:10,top_k:2}]",
]  # fmt: skip
SMALL = ["seeds=[0]", "tune=false", "epochs=1", "data.rows=320", "bottleneck.key_value.pairs=16"]


@pytest.fixture
def cache(tmp_path):
    return f"cache={tmp_path / 'cache'}"


def states_of(folder):
    return {path.name: load_checkpoint(path) for path in sorted((folder / CHECKPOINTS).glob("*.pt"))}


def assert_equal_runs(first, second):
    kept = ("recipe", "data", "seeds", "results", "paired", "selected")
    assert [summary_of(first)[key] for key in kept] == [summary_of(second)[key] for key in kept]
    assert (first / METRICS).read_text() == (second / METRICS).read_text()
    one, other = states_of(first), states_of(second)
    assert one.keys() == other.keys()
    for name, state in one.items():
        for here, there in zip(state["snapshots"], other[name]["snapshots"], strict=True):
            assert here.keys() == there.keys()
            assert all(torch.equal(here[key], there[key]) for key in here), name


def test_a_run_leaves_table_summary_metrics_plots_config_and_checkpoints(finished):
    folder, printed = finished
    for word in ("second initialization", "key_value", "forgetting", SUMMARY, "decision_regions.png"):
        assert word in re.sub(r"\s+", " ", printed)
    summary = summary_of(folder)
    assert (summary["recipe"], summary["data"], summary["seeds"]) == ("continual", "toy_gaussians", [0, 1])
    assert list(summary["results"]) == METHODS
    for method, metrics in summary["results"].items():
        assert len(metrics["test/accuracy"]["values"]) == 2
        assert ("test/forgetting" in metrics) == (method != "joint")
        assert ("test/used" in metrics) == (method == "key_value")
    assert {path.name for path in folder.glob("*.png")} == {
        "accuracy_over_splits.png", "key_usage.png", "decision_regions.png",
    }  # fmt: skip
    # Two settings on the first seed, the better one on the second; of the null row the control's setting.
    assert len(list((folder / CHECKPOINTS).glob("*.pt"))) == 6 * 3 + 2
    rows = rows_of(folder)
    assert len(rows) == (5 * 3 + 2) * 4 + 3
    assert {"method", "seed", "setting", "lr", "split", "classes", "train/loss", "validation/accuracy"} <= rows[
        0
    ].keys()
    assert not list(folder.parent.rglob("*.partial"))


def test_the_setting_is_the_best_on_validation_after_the_last_split(finished):
    folder, _ = finished
    selected, rows = summary_of(folder)["selected"], rows_of(folder)
    for method in set(METHODS) - {"null"}:
        last = max(int(row["split"]) for row in rows if row["method"] == method)
        found = [
            (float(row["validation/accuracy"]), float(row["lr"]))
            for row in rows
            if (row["method"], row["seed"], int(row["split"])) == (method, "0", last)
        ]
        assert len(found) == 2
        best = max(accuracy for accuracy, _ in found)
        assert selected[method]["lr"] == next(lr for accuracy, lr in found if accuracy == best)
    assert selected["null"] == selected["none"]


def test_every_class_comes_once_in_an_order_of_the_seed(finished):
    rows = rows_of(finished[0])
    orders = {
        (method, seed): " ".join(row["classes"] for row in rows if (row["method"], row["seed"]) == (method, seed))
        for method in ("null", "joint")
        for seed in "01"
    }
    assert all(sorted(order.split()[:8]) == list("01234567") for order in orders.values())
    assert orders["null", "0"] != orders["null", "1"]
    assert orders["null", "1"] == orders["joint", "1"]


def test_the_tested_learners_are_those_of_the_checkpoints(finished):
    """Independent of the recipe's own evaluation: accuracy from the kept weights with a bare forward."""
    folder, _ = finished
    summary = summary_of(folder)
    data = continual_data.load("toy_gaussians", rows=640)
    inputs = standardized(data.test.inputs, continual_data.unlabeled_inputs(data))
    for method in ("none", "key_value"):
        for position, seed in enumerate((0, 1)):
            options = dict(summary["selected"][method])
            lr = options.pop("lr")
            network = {
                "none": lambda: learners.MLP(2, 8, ()),
                "key_value": lambda options=options: ibreg.Regularized(
                    nn.Sequential(ibreg.KeyValueBottleneck(2, 8, codebooks=4, pairs=32, key_features=2, **options))
                ),
            }[method]().eval()
            point = next(int(r["setting"]) for r in rows_of(folder) if r["method"] == method and float(r["lr"]) == lr)
            snapshots = load_checkpoint(folder / CHECKPOINTS / f"{method}-setting{point}-seed{seed}.pt")["snapshots"]
            network.load_state_dict(snapshots[0] | snapshots[-1])
            with torch.no_grad():
                output = network(inputs)
            predicted = getattr(output, "output", output).argmax(1)
            reported = summary["results"][method]["test/accuracy"]["values"][position]
            assert accuracy_score(data.test.targets, predicted) == pytest.approx(reported, abs=1e-12)


def test_keys_and_the_values_of_pairs_that_were_not_hit_stay(finished):
    folder, _ = finished
    for name, state in states_of(folder).items():
        if name.startswith("key_value"):
            start, *later = state["snapshots"]
            assert all(set(snapshot) == {"model.0.values", "model.0.usage"} for snapshot in later), name
            for snapshot in later:
                untouched = (snapshot["model.0.usage"] == 0).flatten()
                assert torch.equal(snapshot["model.0.values"][untouched], start["model.0.values"][untouched])
                assert untouched.any()
            assert bool(start["model.0.keys_frozen"])


@pytest.mark.slow  # the classification recipe has the quick one
def test_a_killed_run_resumes_bit_identically(launch, kill, cache, finished):
    whole, _ = finished
    first, second = torch.randint(1, 70, (2,)).tolist()
    kill(*QUICK, cache, checkpoint=first)
    kill(*QUICK, cache, "resume=true", checkpoint=second)
    assert_equal_runs(whole, launch(*QUICK, cache, "resume=true"))


def test_resuming_a_finished_run_shows_its_table(run, finished):
    folder, _ = finished
    again = run(*QUICK, "output_dir=run", "resume=true", cwd=folder.parent)
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stdout


@pytest.mark.slow
def test_a_run_resumes_within_a_split(recipe, launch, cache, tmp_path, monkeypatch):
    """Killed after each epoch in turn."""
    overrides = [*SMALL, "epochs=2", "learners=[replay,ewc]", "control=false", "momentum=0.9", cache]
    whole = launch(*overrides)
    whole = whole.rename(tmp_path / "whole")
    from ibreg.runs import training

    save = training.save_checkpoint

    class Killed(BaseException):
        pass

    def save_and_die(path, state):
        save(path, state)
        raise Killed

    launch_again = [*overrides, "resume=true"]
    for _ in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(training, "save_checkpoint", save_and_die)
            with pytest.raises(Killed):
                launch(*launch_again)
    assert_equal_runs(whole, launch(*launch_again))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(run, two_processes, tmp_path):
    options = [*SMALL, "seeds=[1]", "learners=[ewc,joint]", "device=cpu", "batch_size=16"]
    single = run(*options, "output_dir=one", "cache=one_cache", cwd=tmp_path)
    assert single.returncode == 0, single.stderr
    two_processes(*options, f"cache={tmp_path / 'two_cache'}")
    one, two = summary_of(tmp_path / "one")["results"], summary_of(tmp_path / "two")["results"]
    for method in ("none", "null", "ewc", "joint"):
        assert two[method]["test/accuracy"]["values"] == pytest.approx(one[method]["test/accuracy"]["values"], abs=1e-5)
    # Its keys are initialized with other samples, as each process has its share of the rows.
    assert two["key_value"]["test/accuracy"]["mean"] == pytest.approx(
        one["key_value"]["test/accuracy"]["mean"], abs=0.1
    )


def test_a_tracker_gets_every_split(launch, cache, monkeypatch):
    told = {}
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: told.setdefault(step, {}).update(values))
    folder = launch(*SMALL, "bottlenecks=[]", "learners=[]", "device=cpu", "batch_size=16", cache)
    expected = [float(row["validation/accuracy"]) for row in rows_of(folder) if row["method"] == "none"]
    assert list(told) == [1, 2, 3, 4]
    assert [told[step]["none-setting0-seed0/validation/accuracy"] for step in told] == expected


def test_help_shows_the_choices(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    words = ["dkvb_fashion_mnist", "resnet20", "bottleneck.<name>.<option>", "classes_per_split"]
    for word in (*words, *continual_data.names(), *ibreg.names()):
        assert word in result.stdout
    for name in set(learners.names()) - {"linear"}:
        assert name in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+epoch=3"], "no key 'epoch' .did you mean 'epochs'"),
        (["bottlenecks=[key_valu]"], "no bottleneck 'key_valu' .did you mean 'key_value'.*: choose from .*key_value"),
        (["learners=[emc]"], "learners must be .* different entries, each one of ewc, joint, mlp, replay, got .'emc'."),
        (["learners=[mlp,mlp]"], "learners must be .* different entries, each one of ewc, .*, got .'mlp', 'mlp'."),
        (["learners=[]", "bottlenecks=[]", "control=false"], "there is nothing to train"),
        (["unlearning.classes=[8]"], "must be some of the 8 classes"),
        (
            ["unlearning.classes=[1,1]"],
            r"unlearning.classes must be a list of different integers of at least 0, got \[1, 1\]",
        ),
        (["unlearning.by=random"], "unlearning.by must be one of activations, examples"),
        (["classes_per_split=3"], r"must be one of \[1, 2, 4, 8\]"),
        (["settings.none=[{lr:1}]"], "settings must be equally many for each method, .*, got 1 of none, 3 of mlp"),
        (["settings.none=[]"], "settings.none must be a list of settings with lr"),
        (["settings.none=[{lr:1},{lr:1},{lr:2}]"], "the settings in settings.none must differ, got"),
        (["settings.none=[{lr:0},{lr:1},{lr:2}]"], "lr of every setting in settings.none must be a number"),
        (["settings.none=[{strength:1},{lr:1},{lr:2}]"], "lr of every setting in settings.none must be a number"),
        (
            ["settings=3"],
            "settings must be a section whose values are each a list of settings with lr, such as .*, got 3",
        ),
        (["settings.none=3"], "settings.none must be a list of settings with lr, such as .*, got 3"),
        (["settings.mlp=[{lr:1},{lr:2},{lr:3,width:4}]"], "setting 3 of mlp: .*no key 'width': it has hidden"),
        (["settings.key_value=[{lr:1,topk:2}]", "tune=false"], "setting 1 of key_value: .*no option 'topk'"),
        (["+learner.emc={}"], "learner must have sections of ewc, joint, mlp, replay, got emc .did you mean 'ewc'"),
        (
            ["learner.replay.memory=0"],
            "setting 1 of replay: learner.replay.memory must be an integer of at least 1, got 0",
        ),
        (["tuning_seeds=4"], "tuning_seeds must be at most 3, the number of seeds, got 4"),
        (["tuning_seeds=0"], "tuning_seeds must be an integer of at least 1"),
        (["data.validation=0"], "tune=true selects on validation data"),
        (["label_smoothing=1"], "label_smoothing must be a number of at least 0 and below 1, got 1"),
        (["momentum=1"], "momentum must be a number"),
        (["clip=-1"], "clip must be a number of at least 0, got -1"),
        (["shuffle_classes=3"], "shuffle_classes must be true or false"),
        (["initialize.method=random"], "initialize.method must be one of ema, k_means"),
        (["initialize.epochs=0"], "initialize.epochs must be an integer of at least 1"),
        (["+initialize.seed=1"], "initialize has no key 'seed'"),
        (["batch_size=500"], "batch_size must be at most 270, the number of training rows, got 500"),
        (["data=diabetes"], "data.name: no data set 'diabetes': it is one of .*toy_gaussians"),
        (["data=mnist", "data.root=/nowhere"], "download=true"),
        (["data=cifar10", "data.augment=true"], "encoded once"),
        (["encoder=resnet20"], "use encoder=identity"),
        (["data=digits", "encoder=resnet20", "data.root=/nowhere"], "no weights at"),
        (["encoder.name=resnet"], "no encoder 'resnet'"),
        (["unlabeled.name=digits"], "inputs of digits .* 64 features, those of toy_gaussians 2"),
        (["resume=true", "overwrite=true"], "give one of them"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(launch, cache, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(*overrides, cache)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_learner_learns_digits_from_an_encoder_trained_here(launch, cache, tmp_path):
    """All methods on images, with keys from other images; the upper bound of joint training is near 1."""
    folder = launch(
        "data=digits", "encoder=trained", "encoder.epochs=3", "unlabeled.name=digits", "unlabeled.limit=600", cache,
        "seeds=[0]", "tune=false", "epochs=3", "classes_per_split=5", "bottleneck.key_value.key_features=8",
        "settings.joint=[{lr:0.1}]",
    )  # fmt: skip
    results = summary_of(folder)["results"]
    assert results["joint"]["test/accuracy"]["mean"] > 0.9
    assert results["key_value"]["test/accuracy"]["mean"] > results["none"]["test/accuracy"]["mean"] + 0.1
    assert results["none"]["test/forgetting"]["mean"] > 0.4
    assert not (folder / "decision_regions.png").exists()
    assert {path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*.pt")} == {
        "encoder", "features", "keys",
    }  # fmt: skip


@pytest.mark.slow  # the finished run is the quick one
def test_other_bottlenecks_and_options_run(launch, cache):
    folder = launch(
        *SMALL, "bottlenecks=[key_value,variational]", "+settings.variational=[{lr:0.3}]", "learners=[]", cache,
        "precision=bf16", "clip=0", "initialize.method=k_means", "shuffle_classes=false", "label_smoothing=0",
        "bottleneck.key_value.decoder=linear", "bottleneck.key_value.top_k=2", "data.validation=0",
    )  # fmt: skip
    assert list(summary_of(folder)["results"]) == ["none", "null", "key_value", "variational"]
    assert [row["classes"] for row in rows_of(folder)][:4] == ["0 1", "2 3", "4 5", "6 7"]


@pytest.mark.slow
def test_averaged_weights_and_accumulated_gradients_are_resumed_bit_identically(launch, kill, cache, tmp_path):
    options = [*SMALL, "learners=[]", "batch_size=4", "device=cpu", "accumulate=2", cache]
    plain = launch(*options).rename(tmp_path / "plain")
    whole = launch(*options, "ema=0.3").rename(tmp_path / "whole")
    kill(*options, "ema=0.3", checkpoint=3)
    assert_equal_runs(whole, launch(*options, "ema=0.3", "resume=true"))
    assert list(summary_of(whole)["results"]) == ["none", "null", "key_value"]
    averaged, last = (states_of(run)["none-setting0-seed0.pt"]["snapshots"][-1] for run in (whole, plain))
    assert not torch.equal(averaged["head.weight"], last["head.weight"])
    # The losses are those of the trained weights, which the average does not change.
    losses = [[row["train/loss"] for row in rows_of(run) if row["method"] == "none"] for run in (whole, plain)]
    assert losses[0] == losses[1]


def test_a_class_is_unlearned_and_out_of_distribution_rows_are_detected(launch, cache, tmp_path):
    ood = tmp_path / "ood.csv"
    noise = np.random.default_rng(0).random((80, 64)).round(3).astype(str)
    header = ",".join([*(f"pixel{number}" for number in range(64)), "kind"])
    ood.write_text("\n".join([header, *(",".join([*row, "ab"[place % 2]]) for place, row in enumerate(noise))]))
    folder = launch(
        "data=digits", "classes_per_split=10", "seeds=[0]", "tune=false", "epochs=3", "learners=[]", cache,
        "bottleneck.key_value.codebooks=64", "bottleneck.key_value.pairs=64", "bottleneck.key_value.key_features=8",
        "initialize.epochs=3",
        "bottlenecks=[key_value,distance_aware]", "+settings.distance_aware=[{lr:0.1,beta:1e-3}]",
        "bottleneck.distance_aware.out_features=16", "unlearning.classes=[3]", "unlearning.fraction=null",
        "ood.name=csv", f"+ood.path={ood}", "+ood.target=kind",
    )  # fmt: skip
    metrics = summary_of(folder)["results"]["key_value"]
    assert metrics["test/forgotten_before"]["mean"] > 0.8
    assert metrics["test/forgotten_after"]["mean"] < 0.02
    assert metrics["test/unlearning_undone"]["mean"] == 1
    # Noise is far from all digits; the distance detects it, a probability need not.
    results = summary_of(folder)["results"]
    assert all("test/ood_auroc" in results[method] for method in ("none", "null", "key_value"))
    assert results["distance_aware"]["test/ood_auroc"]["mean"] > 0.9


def test_a_loss_that_is_not_finite_stops_the_run(launch, cache, monkeypatch):
    monkeypatch.setattr(nn.CrossEntropyLoss, "forward", lambda self, x, y: x.sum() * np.nan)
    with pytest.raises(FloatingPointError, match="none-setting0-seed0: the loss must be finite, got nan in epoch 1"):
        launch(*SMALL, "learners=[]", "bottlenecks=[]", cache)
