"""The concept recipe as a user runs it: from the command line, with wrong input, killed and resumed."""

import csv

import pytest
import torch

import ibreg
from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.data import concepts as concept_data
from ibreg.runs.folder import CHECKPOINTS, SUMMARY
from ibreg.runs.models import classifiers as models
from tests.recipes.folders import assert_equal_runs, assert_same_results, rows_of, summary_of

RECIPE = "concepts"
QUICK = [
    "data=xor", "data.size=400", "bottlenecks=[hard,concept_embedding]", "+bottleneck.hard={name:concept,code:hard}",
    "+trainings.hard=independent", "seeds=[0,1]", "epochs=2", "model.hidden=[16]", "device=cpu", "rows=200",
    "interventions.rows=40", "edit=[upper]", "interventions.policies=[random,coop]",
]  # fmt: skip


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_table_summary_curves_leakage_and_images(finished):
    folder, printed = finished
    for word in ("hard", "CTL", "ICL", SUMMARY, "interventions.csv", "leakage.png"):
        assert word in printed
    summary = summary_of(folder)
    assert (summary["recipe"], summary["data"], summary["seeds"]) == ("concepts", "xor", [0, 1])
    assert list(summary["results"]) == ["none", "null", "hard", "concept_embedding"]
    asked = ("truth_accuracy", "ablated_accuracy", "sign", "ctl", "icl", "ois", "nis")
    for method, metrics in summary["results"].items():
        assert len(metrics["test/accuracy"]["values"]) == 2
        has_concepts = method not in ("none", "null")
        for metric in (*asked, *(f"{name}_control" for name in asked), "concept_auroc", "edited_accuracy", "area_coop"):
            assert (f"test/{metric}" in metrics) == has_concepts
    assert {path.name for path in folder.glob("*.png")} == {
        "heads.png", "interventions.png", "leakage.png", "learning_curves.png", "samples_concept_embedding.png",
        "samples_hard.png",
    }  # fmt: skip
    assert len(list((folder / CHECKPOINTS).glob("*.pt"))) == 4 * 2
    assert {"validation/concept_accuracy", "validation/concept_auroc", "train/penalty"} <= rows_of(folder)[0].keys()
    # Curves: two policies and wrong values, each from 0 to 2 interventions.
    curves = table(folder / "interventions.csv")
    assert len(curves) == 2 * 2 * 3 * 3
    assert {(row["policy"], row["wrong"]) for row in curves} == {
        ("random", "False"), ("coop", "False"), ("random", "True"),
    }  # fmt: skip
    assert all(float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) for row in curves)
    leaked = table(folder / "leakage.csv")
    assert [(row["method"], row["seed"]) for row in leaked] == [
        ("hard", "0"), ("hard", "1"), ("concept_embedding", "0"), ("concept_embedding", "1"),
    ]  # fmt: skip
    results = summary["results"]["concept_embedding"]["test/ctl"]["values"]
    assert [float(row["ctl"]) for row in leaked[2:]] == results
    assert not list(folder.rglob("*.partial"))


def test_the_tested_weights_are_those_of_the_checkpoint(finished):
    """Accuracies recomputed from the checkpoint with a plain forward pass, without the recipe's evaluation."""
    folder, _ = finished
    results = summary_of(folder)["results"]["hard"]
    for position, seed in enumerate((0, 1)):
        data = concept_data.load("xor", size=400, split_seed=seed)
        network = models.build("mlp", input_shape=(2,), classes=2, hidden=[16], code_features=2)
        layer = ibreg.ConceptBottleneck(16, data.concepts, code="hard")
        ibreg.inject(network, {"trunk": layer})
        weights = load_checkpoint(folder / CHECKPOINTS / f"hard-decay0-seed{seed}.pt")["weights"]
        network.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
        network.eval()
        with torch.no_grad():
            correct = network(data.test.inputs).argmax(1) == data.test.targets
            with_truth = network.head(data.test.concepts).argmax(1) == data.test.targets
            predicted = layer.concept_logits(network.trunk[:-1](data.test.inputs)) > 0
        assert results["test/accuracy"]["values"][position] == pytest.approx(float(correct.double().mean()))
        assert results["test/truth_accuracy"]["values"][position] == pytest.approx(float(with_truth.double().mean()))
        agreed = (predicted == data.test.concepts.bool()).double().mean()
        assert results["test/concept_accuracy"]["values"][position] == pytest.approx(float(agreed))


@pytest.mark.slow  # the classification recipe has the quick one
def test_a_killed_run_resumes_bit_identically(launch, kill, finished):
    whole, _ = finished
    kill(*QUICK, checkpoint=int(torch.randint(1, 4 * 2 * 2, ())))
    resumed = launch(*QUICK, "resume=true")
    assert_equal_runs(whole, resumed)
    for name in ("interventions.csv", "leakage.csv"):
        assert (whole / name).read_text() == (resumed / name).read_text()


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(launch, two_processes):
    options = [
        "data=xor", "data.size=400", "bottlenecks=[concept]", "seeds=[0]", "epochs=2", "model.hidden=[16]",
        "device=cpu", "rows=100", "interventions.rows=40", "interventions.policies=[random]",
    ]  # fmt: skip
    assert_same_results(launch(*options), two_processes(*options), tolerance=1e-5)


def test_help_shows_the_choices(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    words = ("cem_synthetic", "cbm_shapes_shift", "bottleneck.<name>.<option>", "interventions", "independent")
    for word in (*words, *concept_data.names(), *models.names(), *ibreg.names()):
        assert word in result.stdout
    assert "vib_mnist" not in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+epoch=3"], "no key 'epoch' .did you mean 'epochs'"),
        (["training=apart"], "training must be one of joint, sequential, independent, got apart"),
        (["+trainings.conzept=joint"], "trainings must be of .*, got conzept .did you mean 'concept'"),
        (["training=sequential"], "a code of 96 features is more than its 6 concepts"),
        (["bottlenecks=[concept]", "training=independent", "bottleneck.concept.code=logit"], "which are not logits"),
        (["bottleneck.concept.concepts=4"], "concepts must be 6 as in the labels of digits_concepts, got 4"),
        (["bottlenecks=[post_hoc_concept]"], "fitted to a frozen network"),
        (["interventions.policies=[entropy]"], "interventions.policies must be .* one of random, .*, got .*entropy"),
        (["interventions.by=column"], "interventions.by must be one of group, concept, got column"),
        (["interventions.orders=3"], "interventions.orders must be an integer of at least 5"),
        (["+interventions.costs.odd=2"], "interventions.costs: costs must be those of even, .*, got costs of odd"),
        (["+interventions.policy=random"], "interventions has no key 'policy'"),
        (["interventions.policies=random"], "interventions.policies must be a list of different .*, got random"),
        (
            ["interventions.costs=2"],
            "interventions.costs must be a section whose values are each a number of at least 0, got 2",
        ),
        (["edit=[odd]"], "edit must be of even, .*, got odd"),
        (["rows=0"], "rows must be an integer of at least 1"),
        (["balanced=3"], "balanced must be true or false"),
        (["data=digits"], "no data set with concepts 'digits'"),
        (["data=concept_csv"], "a value is missing for data.concepts, data.path, data.target"),
        (["bottleneck.concept.code=soft"], "code must be one of"),
        (["experiment=vib_mnist"], "the experiment belongs to another recipe: python recipes/classification.py"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(launch, tmp_path, overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        launch(*overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # the data set and the metrics have quick ones
def test_a_spurious_concept_is_measured_on_the_shifted_split(launch):
    folder = launch(
        "data=shapes", "data.size=400", "data.image_size=8", "bottlenecks=[concept,logit]", "seeds=[0]", "epochs=1",
        "+bottleneck.logit={name:concept,code:logit}", "model=lenet", "edit=[bright]", "rows=100",
        "interventions.rows=20", "interventions.policies=[uncertainty]", "interventions.wrong=false", "control=false",
        "balanced=true", "data.validation=0.3", "data.missing=0.2",
    )  # fmt: skip
    metrics = summary_of(folder)["results"]["logit"]
    for name in ("shifted_accuracy", "shifted_edited_accuracy", "shifted_truth_accuracy", "shifted_concept_accuracy"):
        assert 0 <= metrics[f"test/{name}"]["mean"] <= 1
    assert {row["part"] for row in table(folder / "interventions.csv")} == {"test", "shifted"}


@pytest.mark.slow  # the contract and the finished run are the quick ones
def test_other_bottlenecks_and_few_rows_run_too(launch, data_root):
    """The 26 test animals of the zoo are too few to measure leakage; other bottlenecks are methods like any other."""
    folder = launch(
        "data=zoo", f"data.root={data_root}", "bottlenecks=[variational,concept]", "seeds=[0]", "epochs=1",
        "model.hidden=[8]", "interventions.policies=[random]", "batch_size=16", "control=false",
    )  # fmt: skip
    results = summary_of(folder)["results"]
    assert "test/concept_auroc" not in results["variational"]
    assert "test/ctl" not in results["concept"]
    assert 0 <= results["concept"]["test/truth_accuracy"]["mean"] <= 1
