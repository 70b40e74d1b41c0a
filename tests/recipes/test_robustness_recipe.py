"""The robustness recipe as a user runs it: from the command line, with wrong input, killed and resumed."""

import json
import random
import re
import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir

from ibreg.evaluation.attacks.gradient import pgd
from ibreg.evaluation.attacks.sanity import Check
from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.colored import GROUPS
from ibreg.runs.data.rows import Rows
from ibreg.runs.folder import CHECKPOINTS, SUMMARY
from ibreg.runs.models import classifiers as models
from ibreg.runs.tasks.robustness import measuring
from ibreg.runs.tasks.robustness.checks import check_robustness
from tests.recipes.command_line import ROOT, run_here
from tests.recipes.folders import assert_equal_runs, assert_same_results, rows_of, summary_of

RECIPE = "robustness"
SMALL = [
    "model.hidden=[16]", "lr=1e-2", "device=cpu", "attack.eps=[0.1,0.3]", "attack.steps=2", "attack.rows=40",
    "attack.draws=2", "corruption.rows=40", "corruption.kinds=[jpeg,contrast]", "corruption.severities=[2,4]",
    "ood.rows=30", "sanity.rows=40", "sanity.steps=[1,3]",
]  # fmt: skip
QUICK = [
    *SMALL, "bottlenecks=[variational,hsic]", "seeds=[0,1]", "epochs=2", "decayed_control=1", "attack.eps_l2=[0.5]",
    "prediction_draws=2",
]  # fmt: skip
METHODS = ["none", "null", "decayed", "variational", "hsic"]
ONE = [*SMALL, "seeds=[0]", "epochs=1", "decayed_control=0"]
CHECKS = [
    "accuracy never rises with steps or eps", "accuracy is about 0 at a large eps",
    "inputs made on another model are not stronger than those made on this one", "noise alone is weaker than PGD",
]  # fmt: skip


def test_a_run_leaves_table_summary_plots_and_the_checks_of_every_model(finished):
    folder, printed = finished
    flat = re.sub(r"[\s┃│]+", " ", printed)
    for word in ("decay", "hsic", SUMMARY, "attacked_images.png"):
        assert word in flat
    summary = summary_of(folder)
    assert (summary["recipe"], summary["data"], summary["seeds"]) == ("robustness", "digits", [0, 1])
    assert list(summary["results"]) == METHODS
    assert {path.name for path in folder.glob("*.png")} == {
        "attacks.png", "attacked_images.png", "corruptions.png", "learning_curves.png", "ood.png",
        "reliability.png",
    }  # fmt: skip
    for method, metrics in summary["results"].items():
        for metric in (
            "accuracy", "ece", "nll", "brier", "accuracy_at_90", "corrupted_accuracy", "corrupted_ece",
            "corrupted/jpeg/4", "auroc_maximum_softmax", "fpr95_energy", "checks_passed", "attacked/fgsm/linf/0.1",
            "attacked/pgd/linf/0", "attacked/pgd/linf/0.3", "attacked/pgd/l2/0.5",
        ):  # fmt: skip
            assert len(metrics[f"test/{metric}"]["values"]) == 2
        assert ("test/auroc_rate" in metrics) == (method == "variational")
    assert [(check["method"], check["seed"], check["name"]) for check in summary["checks"]] == [
        (method, seed, name) for method in METHODS for seed in (0, 1) for name in CHECKS
    ]
    for check in summary["checks"]:
        assert f"{'passed' if check['passed'] else 'FAILED'}: {check['name']}" in printed
    assert {row["weight_decay"] for row in rows_of(folder) if row["method"] == "decayed"} == {"1.0"}
    assert not list(folder.rglob("*.partial"))


def test_accuracies_fall_and_pgd_is_the_stronger_where_nothing_is_drawn(finished):
    for method, metrics in summary_of(finished[0])["results"].items():
        of = {
            name.removeprefix("test/attacked/"): entry["values"]
            for name, entry in metrics.items()
            if "attacked" in name
        }
        for seed in (0, 1):
            assert of["pgd/linf/0"][seed] >= of["pgd/linf/0.1"][seed] >= of["pgd/linf/0.3"][seed]
            assert of["fgsm/linf/0.1"][seed] <= of["fgsm/linf/0"][seed]
            if method != "variational":
                assert of["pgd/linf/0.1"][seed] <= of["fgsm/linf/0.1"][seed]


def test_the_figures_are_those_of_the_checkpoint_with_a_bare_network_and_a_bare_attack(launch):
    """Independent of the recipe's own measuring: pixels, the attack's box and the rows are taken apart here."""
    folder = launch(*ONE, "bottlenecks=[]", "data.mean=0.3", "data.std=0.4", "attack.eps=[0.1]")
    results = summary_of(folder)["results"]["none"]
    data = datasets.load("digits")
    network = models.build("mlp", input_shape=(1, 8, 8), classes=10, hidden=[16])
    network.load_state_dict(load_checkpoint(folder / CHECKPOINTS / "none-decay0-seed0.pt")["weights"])
    x, y = data.test.inputs, data.test.targets

    class OfPixels(torch.nn.Module):
        def forward(self, pixels):
            return network((pixels - 0.3) / 0.4)

    right = OfPixels()(x).argmax(1) == y
    assert results["test/accuracy"]["mean"] == pytest.approx(right.double().mean().item(), abs=0.003)
    found = pgd(OfPixels(), x[:40], y[:40], eps=0.1, steps=2, clamp=(0, 1), early_stop=True)
    by_cross_entropy = (OfPixels()(found).argmax(1) == y[:40]).double().mean().item()
    # The margin may find what the cross-entropy does not; it cannot give anything back.
    assert by_cross_entropy - 0.1 <= results["test/attacked/pgd/linf/0.1"]["mean"] <= by_cross_entropy


def test_a_failed_check_marks_the_figures_under_attack(launch, capsys, monkeypatch):
    masked = [Check(name, place != 2, {"own": 0.5}) for place, name in enumerate(CHECKS)]
    monkeypatch.setattr(measuring, "sanity_checks", lambda *args, **kwargs: masked)
    folder = launch(*ONE, "bottlenecks=[hsic]", "corruption.rows=0", "ood.data=null")
    printed = capsys.readouterr().out
    assert printed.count(f"FAILED: {CHECKS[2]}") == 3
    assert "(!) not reliable" in printed
    results = summary_of(folder)["results"]["hsic"]
    assert results["test/attacked/pgd/linf/0.1"]["doubtful"] is True
    assert "doubtful" not in results["test/accuracy"]
    assert results["test/checks_passed"]["mean"] == 3
    assert not (folder / "corruptions.png").exists()
    assert not (folder / "ood.png").exists()


@pytest.mark.slow  # the classification recipe has the quick one
def test_a_killed_run_resumes_bit_identically_and_keeps_what_was_measured(launch, kill, finished, tmp_path):
    whole, _ = finished
    epochs = len(METHODS) * 2 * 2
    killed = int(torch.randint(1, epochs, ()))
    kill(*QUICK, checkpoint=killed)
    kill(*QUICK, "resume=true", checkpoint=epochs - (killed - 1) + 4)  # when the fourth model was measured
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / CHECKPOINTS / "measured").glob("*.pt")}
    assert len(measured) == 3
    resumed = launch(*QUICK, "resume=true")
    assert_equal_runs(whole, resumed)
    assert all(path.stat().st_mtime_ns == time for path, time in measured.items())
    assert summary_of(whole)["checks"] == summary_of(resumed)["checks"]


@pytest.mark.slow  # test_adopt has quick ones
def test_models_of_a_finished_run_are_measured_as_they_are(finished, launch):
    whole, _ = finished
    folder = launch(*QUICK, f"checkpoint={whole}")
    assert summary_of(folder)["results"] == summary_of(whole)["results"]


def test_the_ensemble_stands_beside_pgd_in_the_table(finished, launch):
    pytest.importorskip("pyautoattack", reason="needs the extra attacks")
    attack = ["checkpoint=" + str(finished[0]), "attack.ensemble=[apgd_ce]", "attack.eps=[0.1]", "attack.eps_l2=[]"]
    summary = summary_of(launch(*QUICK, *attack))
    assert [key for key, *_ in summary["headline"] if "attacked" in key] == [
        "test/attacked/pgd/linf/0.1", "test/attacked/ensemble/linf/0.1",
    ]  # fmt: skip
    for metrics in summary["results"].values():
        clean, attacked = (metrics[f"test/attacked/ensemble/linf/{eps}"]["values"] for eps in ("0", "0.1"))
        assert clean == metrics["test/attacked/pgd/linf/0"]["values"]
        assert sum(attacked) < sum(clean)


def test_a_finished_run_is_neither_overwritten_by_itself_nor_measured_in_part(finished, launch, tmp_path):
    whole, _ = finished
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    with pytest.raises(ValueError, match="is where this run writes as well: set another output_dir"):
        launch(*QUICK, f"checkpoint={folder}", "overwrite=true")
    assert_equal_runs(folder, whole)
    copied = tmp_path / "copied"
    shutil.move(folder, copied)
    (copied / CHECKPOINTS / "none-decay0-seed1.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has lost .*none-decay0-seed1.pt: resume=true there trains it again"):
        launch(*QUICK, f"checkpoint={copied}")
    assert not folder.exists()


@pytest.mark.slow
def test_models_of_a_classification_run_are_measured(launch, tmp_path):
    common = ["bottlenecks=[variational]", "model.hidden=[16]", "seeds=[0]", "epochs=1", "lr=1e-2", "device=cpu"]
    trained = tmp_path / "trained"
    classification = run_here("classification", *common, "sweep.betas=[]", f"output_dir={trained}", cwd=tmp_path)
    assert classification.returncode == 0, classification.stderr
    folder = launch(*SMALL, *common, f"checkpoint={trained}", "decayed_control=0")
    results = summary_of(folder)["results"]
    for method in ("none", "null", "variational"):
        expected = summary_of(trained)["results"][method]["test/error"]["mean"]
        assert results[method]["test/error"]["mean"] == pytest.approx(expected, abs=1e-6)


def test_a_checkpoint_of_another_architecture_is_refused_with_what_to_give(finished, launch, tmp_path):
    whole, _ = finished
    with pytest.raises(ValueError, match=r"configured otherwise, add these overrides: model.hidden=\[16\]$"):
        launch(*QUICK, "model.hidden=[20]", f"checkpoint={whole}")
    with pytest.raises(ValueError, match=r"add these overrides: .*model.name=mlp"):
        launch(*[each for each in QUICK if "hidden" not in each], "model=lenet", f"checkpoint={whole}")
    with pytest.raises(FileNotFoundError, match="is no finished run"):
        launch(*QUICK, f"checkpoint={tmp_path}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # an experiment of each trains a step
def test_adversarial_training_and_a_pruned_student_of_its_control(launch, tmp_path):
    short = ["corruption.rows=0", "ood.data=null", "bottlenecks=[hsic]"]
    trained = launch(*ONE, *short, "adversarial.name=pgd", "adversarial.steps=2")
    teacher = trained.rename(tmp_path / "teacher")
    folder = launch(*ONE, *short, f"distillation.teacher={teacher}", "distillation.prune=0.8")
    results = summary_of(folder)["results"]
    assert all(metrics["test/sparsity"]["mean"] == pytest.approx(0.8, abs=1e-3) for metrics in results.values())
    with pytest.raises(FileNotFoundError, match="0 controls 'none' of seed 5"):
        launch(*ONE, *short, f"distillation.teacher={teacher}", "seeds=[5]", "overwrite=true")


def test_a_table_is_attacked_in_its_own_units(launch, tmp_path):
    generator = random.Random(0)
    rows = [(generator.gauss(0, 1), generator.gauss(0, 1)) for _ in range(300)]
    path = tmp_path / "table.csv"
    path.write_text("a,b,kind\n" + "".join(f"{a},{b},{'up' if a + b > 0 else 'down'}\n" for a, b in rows))
    table = [each for each in ONE if "corruption.kinds" not in each]
    folder = launch(*table, "bottlenecks=[]", "data=csv", f"data.path={path}", "data.target=kind", "epochs=5")
    results = summary_of(folder)["results"]["none"]
    assert results["test/accuracy"]["mean"] > results["test/attacked/pgd/linf/0.3"]["mean"]
    assert "test/corrupted/missing_features/4" in results
    assert not (folder / "attacked_images.png").exists()


@pytest.mark.slow
def test_painted_digits_are_measured_by_group(launch, data_root, tmp_path):
    overrides = [*ONE, "data=colored_mnist", f"data.root={data_root}", "data.limit=2000", "bottlenecks=[variational]"]
    folder = launch(*overrides, "corruption.rows=0", "ood.data=null", f"output_dir={tmp_path / 'painted'}")
    summary = summary_of(folder)
    assert ["test/worst_group_accuracy", "worst group (%)", 100, 2] in summary["headline"]
    for metrics in summary["results"].values():
        of_groups = [metrics[f"test/accuracy/{name}"]["values"][0] for name in GROUPS]
        assert metrics["test/worst_group_accuracy"]["values"] == [min(of_groups)]
    # Nine in ten training images have the color of their label, half of the test images: red stands for small.
    control = {name: summary["results"]["none"][f"test/accuracy/{name}"]["mean"] for name in GROUPS}
    assert control["small digit, red"] + control["large digit, green"] > 1.5
    assert control["small digit, green"] + control["large digit, red"] < 0.5


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(launch, two_processes):
    options = [
        *SMALL, "bottlenecks=[hsic]", "bottleneck.hsic.gather=true", "seeds=[0]", "epochs=2", "decayed_control=0",
        "corruption.rows=0", "ood.data=null",
    ]  # fmt: skip
    assert_same_results(launch(*options), two_processes(*options), tolerance=1e-5)


def test_help_shows_the_choices(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for word in ("hbar_mnist", "pwoa_mnist", "robust_fashion_mnist", "trades", "eps_l2", *datasets.names()):
        assert word in result.stdout
    assert "cs_ib_housing" not in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attack.eps=[-0.1]"], r"attack.eps must be a list of different numbers of at least 0, got \[-0.1\]"),
        (["attack.eps=[]"], "no radius above 0"),
        (["attack.eps_l2=[a]"], "attack.eps_l2 must be a list of different numbers of at least 0, got"),
        (["attack.step_size=0"], "attack.step_size must be a number above 0 or null, got 0"),
        (["attack.restarts=0"], "attack.restarts must be an integer of at least 1"),
        (["attack.eps=[0.1,0.1000001]"], "radii must differ in their first six digits"),
        (["attack.ensemble=[apgd]"], "attack.ensemble must be .* each one of apgd_ce, .*, got .*'apgd'"),
        (["corruption.kinds=[fog]"], "the corruption must be one of brightness, .*got 'fog'"),
        (["corruption.severities=[6]"], r"severities must be .* integers from 1 to 5, .*, got \[6\]"),
        (["corruption.severities=[1.0]"], r"severities must be .* integers from 1 to 5, .*, got \[1.0\]"),
        (["corruption.severities=[true]"], r"severities must be .* integers from 1 to 5, .*, got \[True\]"),
        (["corruption.severities=3"], r"corruption.severities must be a list of .*, such as \[2,4\] .*, got 3"),
        (["corruption.kinds=jpeg"], r"corruption.kinds must be a list of .*, such as \[jpeg\] or null, got jpeg"),
        (["attack.ensemble=square"], r"attack.ensemble must be a list of .*, such as \[square\], got square"),
        (
            ["corruption.severities=[]"],
            r"severities must be a list of one or more .*none: corruption.rows=0.*, got \[\]",
        ),
        (
            ["corruption.kinds=[jpeg,jpeg]"],
            "corruption.kinds must be a list of one or more different strings, .*, got .'jpeg', 'jpeg'.",
        ),
        (
            ["corruption.severities=[1,1]"],
            r"corruption.severities must be a list of one or more different integers .*, got \[1, 1\]",
        ),
        (["sanity.steps=5"], r"sanity.steps must be a list of .*, such as \[10,100\], got 5"),
        (["sanity.steps=[0]"], r"sanity.steps must be .* different integers of at least 1, .*, got \[0\]"),
        (["ood.data=digits"], "ood.data must not be the training data, got digits"),
        (["ood.data=fashion"], "ood.data must be noise, null or one of .*, got fashion .did you mean 'fashion_mnist'"),
        (["control=false", "bottlenecks=[hsic]", "seeds=[0]"], "the sanity checks need a second model"),
        (["adversarial.name=fgsm"], "adversarial.name must be one of none, pgd, trades"),
        (["adversarial.name=pgd", "adversarial.eps=-1"], "adversarial.eps must be a number above 0, got -1"),
        (["decayed_control=-1"], "decayed_control must be a number of at least 0"),
        (["bottlenecks=[decayed]"], "none of the controls"),
        (["+places.hsic=[trunk.9]"], "inject_at=trunk.9: .*no module"),
        (["+places.hsik=trunk"], "places must be of .*, got hsik .did you mean 'hsic'"),
        (["distillation.prune=2"], "distillation.prune must be a number above 0 and below 1, got 2"),
        (["distillation.weight=-1"], "distillation.weight must be a number of at least 0, got -1"),
        (["distillation.temperature=hot"], "distillation.temperature must be a number above 0, got hot"),
        (["distillation.teacher=/nowhere"], "0 controls 'none' of seed 0"),
        (["distillation.teacher=/nowhere", "ema=0.9"], "distillation prunes.*set ema=0"),
        (["+attack.norm=2"], "attack has no key 'norm'"),
        (["checkpoint=/nowhere"], "is no finished run"),
        (["checkpoint=3"], "checkpoint must be the folder of a finished run, or null, got 3"),
        (["experiment=vib_mnist"], "the experiment belongs to another recipe: python recipes/classification.py"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(launch, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(*overrides)
    assert not (tmp_path / "run").exists()


def test_the_ensemble_is_refused_for_a_table_before_anything_is_written(launch, tmp_path):
    rows = [f"{number % 7},{number % 5},{'ab'[number % 2]}" for number in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["width,height,kind", *rows]))
    table = ["data=csv", f"data.path={tmp_path / 'table.csv'}", "data.target=kind", "batch_size=8"]
    with pytest.raises(ValueError, match=r"attack\.ensemble: these attacks need bounds of the inputs"):
        launch(*table, "attack.ensemble=[apgd_ce]", "ood.data=null")
    assert not (tmp_path / "run").exists()


def test_images_too_small_for_a_corruption_are_refused(recipe):
    data = datasets.load("digits")
    parts = [Rows(part.inputs[..., :4, :4], part.targets) for part in (data.train, data.validation, data.test)]
    small = datasets.ClassificationData("small", *parts, (1, 4, 4), data.class_names)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("robustness", ["output_dir=unused", "corruption.kinds=[jpeg]"])
    with pytest.raises(ValueError, match="needs images of at least 8 x 8 pixels, got 4 x 4"):
        check_robustness(cfg, small)


def test_committed_summaries_keep_their_checks():
    for path in (ROOT / "recipes" / "results").glob("*.json"):
        summary = json.loads(path.read_text())
        if summary["recipe"] == "robustness":
            assert {check["name"] for check in summary["checks"]} == set(CHECKS)
