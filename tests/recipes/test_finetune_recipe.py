"""The fine-tuning recipe as a user runs it: default, wrong input, resumed, every mode, a folder of images."""

import csv

import pytest
import torch
import torchvision
from accelerate import Accelerator
from PIL import Image

from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.few_shot import of_classes
from ibreg.runs.folder import CHECKPOINTS, METRICS, SUMMARY
from ibreg.runs.models import classifiers as models
from tests.recipes.folders import assert_equal_runs, assert_same_results, rows_of, summary_of, weights_of

RECIPE = "finetune"
SHORT = ["seeds=[0]", "shots=[5]", "steps=3", "pretraining.epochs=1", "corrupted.kinds=[contrast]", "device=cpu"]
SHORT += ["shifted.kinds=[]", "test_rows=40"]
QUICK = ["seeds=[0,1]", "shots=[2,5]", "steps=2", "pretraining.epochs=1", "device=cpu", "tune=true"]
QUICK += ["corrupted.kinds=[contrast,gaussian_noise]", "corrupted.rows=60", "shifted.rows=60"]
QUICK += ["grid.beta=[1e-4,1e-2]", "grid.weight_decay=[0,0.1]", "grid.dropout=[0.2,0.6]"]


@pytest.fixture(autouse=True)
def _without_plots(recipe, monkeypatch):
    """Plots take longer than these training runs; those of `finished` are drawn."""
    monkeypatch.setattr(recipe, "draw", lambda *args: None)
    monkeypatch.setattr(recipe, "images_curve", lambda *args: None)


@pytest.fixture
def small_resnet(tmp_path):
    """A file of weights of a small residual network for two classes, and the overrides that load it."""
    torch.manual_seed(5)
    network = models.build("resnet20", input_shape=(3, 8, 8), classes=2, depth=8)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    return ["model=resnet20", "model.depth=8", f"model.weights={tmp_path / 'w.pt'}", "pretraining.classes=[]"]


@pytest.fixture
def images(tmp_path):
    """A folder of images of two classes, and the overrides that load it."""
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for shade, kind in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / kind).mkdir(parents=True)
            for number in range(8):
                pixels = torch.randint(120, (8, 8, 3), generator=generator, dtype=torch.uint8) + 120 * shade
                Image.fromarray(pixels.numpy()).save(tmp_path / "pets" / part / kind / f"{number}.png")
    return ["data=image_folder", f"data.path={tmp_path / 'pets'}", "data.image_size=8"]


def test_a_run_compares_bottleneck_controls_and_dropout_at_each_number_of_images(finished):
    folder, printed = finished
    for word in ("second initialization", "dropout", "variational", "images.png"):
        assert word in printed.replace("\n", " ")
    summary = summary_of(folder)
    assert (summary["recipe"], summary["data"], summary["seeds"]) == ("finetune", "digits", [0, 1])
    errors = [heading for key, heading, _, _ in summary["headline"] if key.startswith("test/error_")]
    assert errors[:2] == ["test error, 2 per class (%)", "test error, 5 per class (%)"]
    assert set(summary["results"]) == {"none", "null", "dropout", "variational"}
    for metrics in summary["results"].values():
        for images in ("2_per_class", "5_per_class"):
            for metric in ("accuracy", "ece", "nll", "accuracy_corrupted", "ece_corrupted", "error_shifted"):
                assert len(metrics[f"test/{metric}_{images}"]["values"]) == 2
    drawn = [f"{kind}_{images}_per_class.png" for kind in ("learning_curves", "reliability") for images in (2, 5)]
    assert {path.name for path in folder.glob("*.png")} == {"images.png", *drawn}
    with (folder / METRICS).open() as file:
        rows = list(csv.DictReader(file))
    # Two numbers of images, two seeds, a grid of two for three methods and one point for null, two epochs each.
    assert len(rows) == 2 * 2 * (3 * 2 + 1) * 2
    assert {row["images"] for row in rows} == {"2_per_class", "5_per_class"}


def test_all_methods_are_tuned_over_equally_many_points_by_validation_likelihood(finished):
    folder, _ = finished
    with (folder / METRICS).open() as file:
        rows = [row for row in csv.DictReader(file) if row["images"] == "5_per_class"]
    chosen = summary_of(folder)["selected"]["5_per_class"]
    for method in ("none", "dropout", "variational"):
        best = {}
        for row in rows:
            if row["method"] == method:
                point = (row["beta"], row["weight_decay"], row["dropout"], row["seed"])
                best[point] = min(best.get(point, float("inf")), float(row["validation/nll"]))
        points = {}
        for (*point, _), nll in best.items():
            points.setdefault(tuple(point), []).append(nll)
        assert len(points) == 2
        beta, decay, dropout = min(points, key=lambda point: sum(points[point]))
        assert chosen[method]["weight_decay"] == float(decay)
        assert chosen[method]["beta"] == (float(beta) if beta else None)
        assert chosen[method].get("dropout") == (float(dropout) if dropout else None)
    assert {row["dropout"] for row in rows} == {"", "0.2", "0.6"}


def test_the_learned_weights_are_those_that_were_tested(finished):
    """Independent of the recipe's own evaluation: accuracy from the checkpoint with a bare forward."""
    folder, _ = finished
    data = of_classes(datasets.load("digits", validation=0), range(5, 10))
    summary = summary_of(folder)
    for images in ("2_per_class", "5_per_class"):
        decay = summary["selected"][images]["none"]["weight_decay"]
        for position, seed in enumerate((0, 1)):
            network = models.build("lenet", input_shape=data.input_shape, classes=5, normalization=data.normalization)
            file = folder / CHECKPOINTS / images / CHECKPOINTS / f"none-decay{decay:g}-seed{seed}.pt"
            network.load_state_dict(load_checkpoint(file)["weights"])
            right = network.eval()(data.test.inputs[list(range(len(data.test)))]).argmax(1) == data.test.targets
            reported = summary["results"]["none"][f"test/accuracy_{images}"]["values"][position]
            assert right.double().mean().item() == pytest.approx(reported, abs=1e-12)


@pytest.mark.slow  # the classification recipe has the quick one
def test_a_killed_run_resumes_bit_identically(launch, kill, finished):
    whole, _ = finished
    # Of 56 epochs: while the second number of images trains.
    kill(*QUICK, checkpoint=int(torch.randint(30, 56, ())))
    resumed = launch(*QUICK, "resume=true")
    assert_equal_runs(whole, resumed)
    for part in ("2_per_class", "5_per_class"):
        one, other = (weights_of(each / CHECKPOINTS / part) for each in (whole, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name][key], other[name][key]) for name in one for key in one[name])


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(launch, two_processes):
    options = [
        *SHORT, "bottlenecks=[hsic]", "bottleneck.hsic.gather=true", "dropout=0", "corrupted.rows=20",
    ]  # fmt: skip
    assert_same_results(launch(*options), two_processes(*options), tolerance=1e-5)


def test_a_tracker_gets_every_number_of_images_under_its_name(launch, monkeypatch):
    told = {}
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: told.update(values))
    folder = launch(*SHORT, "shots=[3,5]", "control=false")
    for images in ("3_per_class", "5_per_class"):
        last = [float(row["train/loss"]) for row in rows_of(folder) if row["images"] == images][-1]
        assert told[f"{images}/variational-decay0-seed0/train/loss"] == last


def stored_in(overrides):
    """The weights that these overrides load, by their names in the network."""
    (path,) = (option.partition("=")[2] for option in overrides if option.startswith("model.weights"))
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("module."): value for name, value in state.items()}


def test_the_backbone_starts_from_the_file(launch, small_resnet, images):
    folder = launch(*SHORT, *small_resnet, *images, "shots=[4]", "lr=1e-12", "lr_backbone=0")
    # The head is of the file too, so the network as it was loaded is a row of its own.
    assert set(summary_of(folder)["results"]) == {"none", "null", "dropout", "variational", "pretrained"}
    weights, stored = weights_of(folder / CHECKPOINTS / "4_per_class")["none-decay0-seed0.pt"], stored_in(small_resnet)
    for name, value in weights.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, stored[name], rtol=0, atol=1e-9)


def test_a_head_of_other_classes_is_reinitialized(launch, small_resnet, images):
    folder = launch(*SHORT, *small_resnet, *images, "shots=[4]", "new_head=true", "lr=1e-12", "lr_backbone=0")
    assert "pretrained" not in summary_of(folder)["results"]
    weights, stored = weights_of(folder / CHECKPOINTS / "4_per_class"), stored_in(small_resnet)
    heads = {
        name: of_method.get("linear.weight", of_method.get("model.linear.weight"))
        for name, of_method in weights.items()
    }
    control, null = heads.pop("none-decay0-seed0.pt"), heads.pop("null-decay0-seed0.pt")
    assert not torch.allclose(control, stored["linear.weight"])
    assert not torch.allclose(control, null)
    # All methods of a seed start from the same head.
    assert len(heads) == 2
    for head in heads.values():
        torch.testing.assert_close(head, control, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", ["head", "last_stage"])
def test_a_mode_moves_its_part_alone(launch, small_resnet, images, mode):
    folder = launch(*SHORT, *small_resnet, *images, "shots=[4]", f"mode={mode}", "control=false", "lr_backbone=1e-2")
    (weights,) = weights_of(folder / CHECKPOINTS / "4_per_class").values()
    stored = stored_in(small_resnet)
    plain = {name.removeprefix("model."): value for name, value in weights.items() if "bottleneck" not in name}
    moved = {name.split(".")[0] for name, value in plain.items() if not torch.equal(value, stored[name])}
    assert moved == ({"linear"} if mode == "head" else {"linear", "layer3"})


def test_frozen_trains_the_bottleneck_alone_and_leaves_the_control_as_it_was_loaded(launch, small_resnet, images):
    folder = launch(*SHORT, *small_resnet, *images, "shots=[4]", "mode=frozen", "lr=1e-2")
    results = summary_of(folder)["results"]
    for method in ("none", "null", "dropout"):
        assert results[method] == {**results["pretrained"]}
    weights = weights_of(folder / CHECKPOINTS / "4_per_class")["variational-decay0-seed0.pt"]
    stored = stored_in(small_resnet)
    for name, value in weights.items():
        if "bottleneck" not in name:
            assert torch.equal(value, stored[name.removeprefix("model.")]), name


@pytest.mark.slow
def test_several_bottlenecks_in_one_network_and_another_test_set(launch, small_resnet, images, tmp_path):
    folder = launch(
        *SHORT, *small_resnet, *images, "shots=[0]", "inject_at=[layer2,avgpool]", "bottlenecks=[variational,hsic]",
        f"other_data={{path:{tmp_path / 'pets'}}}", "batch_size=8",
    )  # fmt: skip
    metrics = summary_of(folder)["results"]["variational"]
    assert metrics["test/accuracy_other_all"] == metrics["test/accuracy_all"]
    weights = weights_of(folder / CHECKPOINTS / "all")["variational-decay0-seed0.pt"]
    betas = {name for name in weights if name.endswith(".beta")}
    assert betas == {"model.layer2.bottleneck.beta", "model.avgpool.bottleneck.beta"}


def test_mixup_and_label_smoothing_change_the_training(launch, small_resnet, images):
    few = [*SHORT, *small_resnet, *images, "control=false"]
    losses = [
        rows_of(launch(*few, *options, "overwrite=true") / CHECKPOINTS / "5_per_class")[-1]["train/loss"]
        for options in ([], ["mixup=0.4"], ["label_smoothing=0.2"])
    ]
    assert len(set(losses)) == 3


def test_torchvision_weights_by_name(launch, monkeypatch, images):
    torch.manual_seed(9)
    stored = torchvision.models.squeezenet1_1().state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: stored)
    folder = launch(
        *SHORT, *images, "data.image_size=32", "shots=[3]", "steps=1", "control=false", "pretraining.classes=[]",
        "model=torchvision", "model.architecture=squeezenet1_1", "model.weights=IMAGENET1K_V1", "mode=head",
        "inject_at=features",
    )  # fmt: skip
    (weights,) = weights_of(folder / CHECKPOINTS / "3_per_class").values()
    assert torch.equal(weights["model.features.0.weight"], stored["features.0.weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shots=[]"], r"shots must be a list of one or more different integers of at least 0, got \[\]"),
        (["shots=[5,5]"], r"shots must be a list of one or more different integers of at least 0, got \[5, 5\]"),
        (["shots=[1]"], "leaves no training image"),
        (["shots=[500]"], r"shots must be at most \d+, the training images of class '5', got 500"),
        (["new_head=maybe"], "new_head must be true or false"),
        (["mode=half"], "mode must be one of frozen, head, last_stage, full"),
        (["mode=last_stage", "last_stage=trunk.8"], r"no module 'trunk.8'; closest: trunk"),
        (["mode=frozen"], "no weights were loaded into head.weight"),
        (["mode=frozen", "bottlenecks=[hsic]"], "hsic has no parameters"),
        (["inject_at=trunc"], "no module 'trunc'.*trunk"),
        (["pretraining.classes=[0]"], "two or more different integers"),
        (["pretraining.classes=[0,1,2,3,4,5,6,7,8]"], "two or more different integers"),
        (["pretraining.epochs=0"], "pretraining.epochs must be an integer of at least 1"),
        (["lr_backbone=-1"], "lr_backbone must be a number of at least 0"),
        (["steps=1.5"], "steps must be an integer"),
        (["dropout=1"], "dropout must be a number of at least 0 and below 1, got 1"),
        (["tune=true", "grid.dropout=[0.5]"], "they are tried in pairs"),
        (["bottlenecks=[dropout]"], "none of the controls"),
        (["corrupted.kinds=[snow]"], "corrupted.kinds must be .* each one of brightness, .*got .'snow'."),
        (["shifted.severity=6"], "shifted.severity must be an integer of at least 1 and at most 5, got 6"),
        (["pretraining.classes=3"], "pretraining.classes must be a list"),
        (["other_data=pets"], "other_data must be overrides of data, such as .*, or null, got pets"),
        (["data.validation=0"], "select on validation data"),
        (["+data.broken=skip"], "data has no key 'broken': it has name, .*, test"),
        (["model=resnet20", "model.weights=/nowhere.th", "pretraining.classes=[]"], "no weights at /nowhere.th"),
        (["other_data={name:mnist,root:/nowhere}"], "mnist is not in /nowhere.*"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(launch, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch("pretraining.epochs=1", "shots=[5]", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "cannot be read: it is truncated, no checkpoint"),
        ([1, 2], "holds no weights by name, but list"),
        ({"epoch": 3}, "holds no weights by name, but a dict of epoch"),
        ({"fc.weight": torch.zeros(2, 2)}, r"do not fit the ResNet .*missing: bn1.bias.*unknown: fc.weight"),
    ],
)
def test_a_file_that_is_no_checkpoint_of_this_network_is_refused(launch, tmp_path, content, message):
    path = tmp_path / "weights.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        launch("model=resnet20", "model.depth=8", f"model.weights={path}", "pretraining.classes=[]")
    assert not (tmp_path / "run").exists()


def test_a_broken_image_is_named_and_skipped_if_wanted(launch, small_resnet, images, tmp_path):
    broken = tmp_path / "pets" / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    options = [*SHORT, *small_resnet, *images, "shots=[0]", "control=false"]
    with pytest.raises(ValueError, match=r"train/cat/0.png is broken .*data.broken=skip"):
        launch(*options)
    with pytest.warns(UserWarning, match=r"left out 1 file that cannot be read: .*cat/0.png is broken"):
        folder = launch(*options, "data.broken=skip", "overwrite=true")
    assert (folder / SUMMARY).is_file()


def test_a_folder_of_one_class_is_refused(launch, small_resnet, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "one" / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "one" / part / "cat" / "0.png")
    with pytest.raises(ValueError, match="the only class is 'cat'"):
        launch(*small_resnet, "data=image_folder", f"data.path={tmp_path / 'one'}", "data.image_size=8")
