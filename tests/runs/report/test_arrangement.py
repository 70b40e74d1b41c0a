"""Runs in the order of what was swept, named by how they differ; with the configurations that the recipes write."""

import json

import pytest
from omegaconf import OmegaConf

from ibreg.runs.folder import CONFIG, SUMMARY
from ibreg.runs.report.arrangement import Run, arrange, read_runs, written
from ibreg.runs.report.summary import KEYS
from recipes.compare import main

DEFAULTS = {
    "recipe": "classification", "data": {"name": "digits", "root": None}, "lr": 1e-3, "epochs": 3, "seeds": [0, 1],
    "sweep": {"betas": [], "epochs": "${epochs}"}, "model": {"name": "mlp", "hidden": [64]}, "output_dir": "x",
    "bottleneck": {"hsic": {"beta": 1.0, "sigma": None, "estimator": "biased"}}, "resume": False,
}  # fmt: skip


@pytest.fixture
def runs_of(tmp_path):
    """Writes finished runs with these overrides, as the recipes do, and reads them."""

    def written_runs(*commands, **entries):
        for number, command in enumerate(commands):
            folder = tmp_path / f"run-{(7 * number + 3) % 10}"  # hashes have no order either
            folder.mkdir()
            overrides = [word for word in command.split() if not word.startswith("experiment=")]
            data = OmegaConf.merge(DEFAULTS, OmegaConf.from_dotlist(overrides), {"output_dir": str(folder)})
            (folder / CONFIG).write_text(OmegaConf.to_yaml(data, resolve=True))
            metric = {"mean": 0.1, "std": 0.0, "values": [0.1 + number / 100, 0.2]}
            results = {"none": {"test/error": metric}, "hsic": {"test/error": metric}}
            summary = dict.fromkeys(KEYS, 0) | {"recipe": data.recipe, "data": data.data.name, "seeds": [0, 1]}
            summary |= {"results": results, "paired": {}, "command": f"python recipes/{data.recipe}.py {command}"}
            (folder / SUMMARY).write_text(json.dumps(summary | entries))
        return read_runs([tmp_path])[0]

    return written_runs


@pytest.mark.parametrize(
    ("commands", "names"),
    [
        (["lr=0.1", "lr=1e-2", "lr=0.001"], ["lr=0.001", "lr=0.01", "lr=0.1"]),
        (["bottleneck.hsic.beta=10", "bottleneck.hsic.beta=9", "bottleneck.hsic.beta=100"],
         ["bottleneck.hsic.beta=9", "bottleneck.hsic.beta=10", "bottleneck.hsic.beta=100"]),
        (["lr=0.1", ""], ["lr=0.001", "lr=0.1"]),  # default values are values
        (["epochs=10", "epochs=9"], ["epochs=9", "epochs=10"]),  # and not sweep.epochs, which follows from it
        (["lr=0.1 epochs=9", "lr=0.1 epochs=10", "lr=0.01 epochs=10"],
         ["lr=0.01 epochs=10", "lr=0.1 epochs=9", "lr=0.1 epochs=10"]),
        (["bottleneck.hsic.estimator=unbiased", "bottleneck.hsic.estimator=biased"],
         ["bottleneck.hsic.estimator=biased", "bottleneck.hsic.estimator=unbiased"]),
        (["bottleneck.hsic.sigma=2", "bottleneck.hsic.sigma=null"],
         ["bottleneck.hsic.sigma=null", "bottleneck.hsic.sigma=2"]),
        (["model.hidden=[64,32]", "model.hidden=[128]"], ["model.hidden=[128]", "model.hidden=[64,32]"]),
        (["experiment=vib_mnist data.name=mnist", "experiment=dab_ood data.name=mnist"],
         ["experiment=dab_ood", "experiment=vib_mnist"]),
        (["resume=true lr=0.1", "lr=0.2"], ["lr=0.1", "lr=0.2"]),
    ],
    ids=["unordered", "numbers, not texts", "default", "interpolated", "two keys", "strings", "null", "lists",
         "experiments", "resumed"],
)  # fmt: skip
def test_a_sweep_is_in_the_order_of_its_values_and_named_by_them(runs_of, commands, names):
    assert list(arrange(runs_of(*commands)).names) == names


def test_unrelated_runs_come_last_and_are_named_by_their_differences_to_the_first(runs_of):
    arranged = arrange(runs_of("seeds=[0] lr=0.1", "epochs=30 lr=0.01", "seeds=[0] lr=0.01", "data.name=mnist",
                               "recipe=regression", "seeds=[0] lr=0.001"))  # fmt: skip
    assert list(arranged.names[:3]) == ["lr=0.001", "lr=0.01", "lr=0.1"]
    assert sorted(arranged.names[3:]) == [
        "recipe=regression seeds=[0,1]", "seeds=[0,1] data=mnist", "seeds=[0,1] lr=0.01 epochs=30",
    ]  # fmt: skip
    assert (arranged.swept, list(arranged.numbers)) == ("lr", [0.001, 0.01, 0.1])


def test_runs_of_different_recipes_have_readable_names(runs_of):
    assert sorted(arrange(runs_of("", "recipe=regression", "recipe=concepts")).names) == [
        "recipe=classification", "recipe=concepts", "recipe=regression",
    ]  # fmt: skip


def test_runs_of_one_configuration_are_distinguished_by_their_folders(runs_of):
    names = arrange(runs_of("lr=0.1", "lr=0.1", "lr=0.2")).names
    assert [name.split()[0] for name in names] == ["lr=0.1", "lr=0.1", "lr=0.2"]
    assert len(set(names)) == 3


@pytest.mark.parametrize(
    ("commands", "swept"),
    [
        (["lr=0.1", "lr=0.2"], "lr"),
        (["epochs=1", "epochs=2"], "epochs"),
        (["lr=0.1", "lr=0.2", "recipe=regression"], "lr"),
        (["lr=0.1 epochs=1", "lr=0.2 epochs=2"], None),
        (["bottleneck.hsic.sigma=null", "bottleneck.hsic.sigma=2"], None),
        (["bottleneck.hsic.estimator=biased", "bottleneck.hsic.estimator=unbiased"], None),
        (["resume=true"], None),
        (["recipe=regression", "recipe=concepts"], None),
    ],
)
def test_the_plot_is_over_the_number_that_was_swept_alone(runs_of, commands, swept):
    assert arrange(runs_of(*commands)).swept == swept


def test_summaries_without_a_configuration_are_named_by_their_commands(tmp_path):
    runs = [
        Run(tmp_path / name, {"command": f"ibreg classification lr={name}"}, {"lr": float(name)})
        for name in ("1e-3", "1e-4")
    ]
    assert list(arrange(runs).names) == ["lr=0.0001", "lr=0.001"]


@pytest.mark.parametrize("quoted", ["'data.path=my files/a.csv'", "data.path='my files/a.csv'"])
def test_commands_are_read_as_a_shell_reads_them(tmp_path, quoted):
    runs = [
        Run(tmp_path, {"command": f"python recipes/classification.py {quoted} lr={lr}"}, {"lr": lr}) for lr in (2, 1)
    ]
    assert runs[0].overrides == ["data.path", "lr"]
    assert Run(tmp_path, {"command": "ibreg classification data.target=d'or lr=1"}).overrides == ["data.target", "lr"]


def test_a_configuration_that_cannot_be_read_leaves_the_command_line(runs_of, tmp_path):
    runs_of("lr=0.1", "lr=0.2")
    for text in ("", "a: [", "a: ${b}"):
        for path in tmp_path.glob(f"*/{CONFIG}"):
            path.write_text(text)
        assert list(arrange(read_runs([tmp_path])[0]).names) == ["lr=0.1", "lr=0.2"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.1, "0.1"), (1e-05, "1e-05"), (True, "true"), (None, "null"), ([1, "a"], "[1,a]"), ("x", "x")]
)
def test_values_are_written_as_on_the_command_line(value, text):
    assert written(value) == text


def test_the_command_line_orders_and_names_the_reference(runs_of, tmp_path, capsys):
    runs_of("lr=0.1", "lr=0.001", "lr=0.01")
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:]
    assert shown == ["lr=0.001", "lr=0.001", "lr=0.01", "lr=0.01", "lr=0.1", "lr=0.1"]
    assert f"first run: lr=0.001 ({tmp_path / 'run-0'})" in lines


@pytest.mark.parametrize("swept", [True, False])
def test_the_plot_of_a_sweep_is_over_its_number(runs_of, tmp_path, monkeypatch, swept):
    drawn = []
    monkeypatch.setattr("recipes.compare.sweep_plot", lambda rows, path, **options: drawn.append((rows, options)))
    monkeypatch.setattr("recipes.compare.comparison_plot", lambda rows, path, **options: drawn.append((rows, options)))
    commands = ["lr=0.1", "lr=0.01", "recipe=regression"] if swept else ["lr=0.1", "recipe=regression"]
    runs_of(*commands)
    assert main([str(tmp_path)]) == 0
    ((rows, options),) = drawn
    if swept:
        assert [row["value"] for row in rows] == [0.01, 0.01, 0.1, 0.1]
        assert options == {"swept": "lr", "heading": "test error (%)", "scale": 100}
    else:
        assert {row["run"] for row in rows} == {"recipe=classification lr=0.1", "recipe=regression lr=0.001"}
