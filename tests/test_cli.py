"""The command line: what it lists and runs, the package data that it needs, and the time of the import."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ibreg
from ibreg import cli
from ibreg.runs.config.package_data import (
    as_launched,
    descriptions,
    explanations,
    first_sentence,
    head,
    installed_folder,
    launch_command,
    recipes,
)

ROOT = Path(__file__).resolve().parent.parent


def test_list_has_a_line_for_each_recipe_bottleneck_data_set_model_and_experiment(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    groups = descriptions()
    names = [name for entries in groups.values() for name in entries]
    assert lines == cli.listing(groups).splitlines()
    assert len(lines) == len(names) + 2 * len(groups) - 1
    yamls = [path.stem for path in (ROOT / "configs").glob("*/*.yaml")]
    assert sorted(names) == sorted([*yamls, *(path.stem for path in (ROOT / "recipes").glob("*.py"))])
    # Aligned: every description begins in the same column.
    starts = {len(line) - len(line[2:].partition("  ")[2].lstrip()) for line in lines if line.startswith("  ")}
    assert len(starts) == 1


def test_every_name_has_a_description():
    for entries in descriptions().values():
        for name, line in entries.items():
            assert len(line) > 10, name
            assert "\n" not in line


def test_descriptions_of_bottlenecks_name_the_paper():
    for name, line in descriptions()["bottleneck"].items():
        assert "arXiv" in line or re.search(r"\b19[0-8]\d\b", line), name  # older than arXiv
    assert set(descriptions()["bottleneck"]) == set(ibreg.names())


def test_experiments_are_listed_by_recipe():
    assert "vib_mnist" in descriptions()["experiment of classification"]
    assert "cs_ib_housing" in descriptions()["experiment of regression"]


def test_the_duration_of_an_experiment_is_that_of_the_committed_run():
    """It stands in the YAML, as results are not in the wheel; a run that was resumed has no duration."""
    stated = 0
    for path in (ROOT / "configs" / "experiment").glob("*.yaml"):
        result = ROOT / "recipes" / "results" / path.name.replace(".yaml", ".json")
        found = re.search(r"^Duration: about (\d+) min, (\d) CPU thread(?:, (.*))?\.$", head(path), re.MULTILINE)
        run = json.loads(result.read_text()) if result.is_file() else {"resumed": True}
        assert (found is None) == run["resumed"], path.stem
        if found:
            assert abs(int(found[1]) * 60 / run["wall_s"] - 1) < 0.1, path.stem
            assert int(found[2]) == run["hardware"]["threads"]
            given = {"device=cpu", f"experiment={path.stem}", *(found[3] or "").split(", ")}
            assert set(run["command"].split()[2:]) <= given, path.stem
            stated += 1
    assert stated > 15
    line = descriptions()["experiment of concepts"]["cbm_mnist_addition"]
    assert line.endswith("they are complete (about 40 min, 1 CPU thread)")


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("data", {"digits", "csv"}),
        ("bottleneck", {"variational", "hsic"}),
        ("bottlenecks", {"variational", "hsic"}),
        ("models", {"lenet"}),
        ("experiments", {"vib_mnist", "cs_ib_housing", "dkvb_toy"}),
        ("recipe", {"classification", "compare"}),
        ("task_losses", {"huber"}),
    ],
)
def test_one_group_is_listed(capsys, group, names):
    assert cli.main(["list", group]) == 0
    printed = capsys.readouterr().out
    listed = {line.split()[0] for line in printed.splitlines() if line.startswith("  ")}
    assert names <= listed
    others = {"digits", "variational", "lenet", "vib_mnist", "classification", "huber"} - names
    assert not others & listed


@pytest.mark.parametrize("name", [*ibreg.names(), "csv", "digits", "timm", "resnet20", "huber", "vib_mnist", "robust"])
def test_a_name_is_explained_by_its_yaml_with_all_comments(capsys, name):
    assert cli.main(["list", name]) == 0
    printed = capsys.readouterr().out
    files = list((ROOT / "configs").glob(f"*/{name}.yaml"))
    assert len(files) == len(re.findall(rf"^\w+=\[?{name}\]?$", printed, re.MULTILINE)) > 0
    words = printed.replace("#", "").split()
    for path in files:
        expected = re.sub(r"@package \S+|#", "", path.read_text()).split()
        start = next(i for i in range(len(words)) if words[i : i + 8] == expected[:8])
        assert words[start : start + len(expected)] == expected


def test_a_bottleneck_is_explained_by_its_class_as_well(capsys):
    assert cli.main(["list", "hsic", "variational"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    said = (
        "ibreg.HSICBottleneck: Identity layer whose penalty is the dependence of the code on the input minus that on "
    )
    assert said in printed
    assert "ibreg.VariationalBottleneck: Encodes features as a Gaussian code z ~ N(mu(x), sigma(x)^2) and " in printed


def test_a_recipe_is_explained_by_its_keys(capsys):
    assert cli.main(["list", "regression"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("python recipes/regression.py\n\nRegression with and without a bottleneck")
    assert "# learning rate" in printed
    assert "\nhydra:" not in printed
    assert cli.main(["list", "compare"]) == 0


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("varational", "'variational'"),
        ("vib-mnist", "'vib_mnist'"),
        ("digit", "'digits'"),
        ("lenett", "'lenet'"),
        ("clasification", "'classification'"),
    ],
)
def test_an_unknown_name_is_an_error_that_suggests_the_closest(capsys, name, close):
    assert cli.main(["list", name]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"ibreg has no .* {name!r} \(did you mean {close}.*\?\): ibreg list shows all\n", printed.err)


def test_a_name_without_a_close_one_is_an_error_too(capsys):
    assert cli.main(["list", "xyzzy"]) == 2
    assert "model or experiment 'xyzzy': ibreg list shows all" in capsys.readouterr().err


def test_a_bottleneck_without_a_yaml_is_explained_by_its_docstring(monkeypatch):
    class Small:
        "A small one. Of mine."

    monkeypatch.setattr("ibreg.registry.names", lambda: ["small_code"])
    monkeypatch.setattr("ibreg.registry.find", lambda name: Small)
    (found,) = explanations("small_code")
    assert (found.choice, found.text) == ("bottlenecks=[small_code]", "")
    assert found.summary.endswith("Small: A small one. Of mine.")


def test_descriptions_are_wrapped_in_a_terminal_and_lines_in_a_pipe():
    groups = {"data": {"digits": "one two three four", "csv": "five"}}
    assert cli.listing(groups, 20) == "data\n  digits  one two\n          three four\n  csv     five"
    assert cli.listing(groups) == "data\n  digits  one two three four\n  csv     five"


def test_a_closed_pipe_is_no_error(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["list"]) == 1
        print("what is written later goes nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["list", "list experiments", "list vib_mnist", "classification --help"])
def test_head_of_a_listing_leaves_no_message(arguments, tmp_path):
    command = f"{sys.executable} -u -m ibreg.cli {arguments} | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1


def test_the_command_of_an_installed_package_is_ibreg(monkeypatch, tmp_path):
    assert launch_command("regression") == "python recipes/regression.py"
    (tmp_path / "ibreg" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(ibreg, "__file__", str(tmp_path / "ibreg" / "__init__.py"))
    assert launch_command("regression") == "ibreg regression"
    (tmp_path / "ibreg" / "recipes" / "regression.py").touch()
    assert as_launched("  python recipes/regression.py tune=true") == "  ibreg regression tune=true"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One"),
        ("Alemi et al. 2017, a\nmethod. It works", "Alemi et al. 2017, a method"),
        ("No stop\n\nAnother paragraph", "No stop"),
        ("", ""),
    ],
)
def test_first_sentence(text, first):
    assert first_sentence(text) == first


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_shows_the_usage_and_the_recipes(arguments, capsys):
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    for word in ("ibreg list", "ibreg RECIPE --help", *recipes()):
        assert word in printed


def test_an_unknown_recipe_is_an_error_that_suggests_the_closest(capsys):
    assert cli.main(["classify"]) == 2
    assert "'classify' (did you mean 'classification'?): choose one of " in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ibreg {ibreg.__version__}\n"


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path, capsys):
    script = tmp_path / "needy.py"
    script.write_text("import a_package_that_nobody_has")
    monkeypatch.setattr(cli, "recipes", lambda: {"needy": script})
    assert cli.main(["needy"]) == 1
    assert "a_package_that_nobody_has" in capsys.readouterr().err


def test_the_wheel_has_the_folders_that_the_command_line_needs():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    scripts = {f"recipes/{path.name}": f"ibreg/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")}
    assert build["packages"] == ["ibreg"]
    assert build["force-include"] == {"configs": "ibreg/configs"} | scripts
    assert {installed_folder(folder) for folder in ("configs", "recipes")} == {ROOT / "configs", ROOT / "recipes"}
    # Their entry point finds the configurations in the wheel as in a checkout.
    texts = [script.read_text() for script in recipes().values()]
    assert [text for text in texts if "@entry_point" in text]
    assert not [text for text in texts if "__file__" in text]
    assert 'config_path=str(installed_folder("configs"))' in (ROOT / "ibreg/runs/config/entry.py").read_text()


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "ibreg/version.py"


def test_importing_takes_little_more_than_torch():
    # The time of this process alone, whatever else runs on the machine.
    code = (
        "import sys, time; a = time.process_time(); import torch; b = time.process_time(); import ibreg; "
        "c = time.process_time(); assert c - a < 1.5 * (b - a), (b - a, c - b); "
        "slow = {'hydra', 'torchvision', 'matplotlib', 'accelerate', 'scipy', 'safetensors'} & sys.modules.keys(); "
        "assert not slow, slow"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
