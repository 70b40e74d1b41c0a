"""The command line: what it lists and runs, the package data that it needs, and the time of the import."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ibreg
from ibreg import cli
from ibreg.runs.config.package_data import descriptions, first_sentence, installed_folder, launch_command, recipes

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


def test_the_command_of_an_installed_package_is_ibreg(monkeypatch, tmp_path):
    assert launch_command("regression") == "python recipes/regression.py"
    (tmp_path / "ibreg" / "recipes").mkdir(parents=True)
    monkeypatch.setattr(ibreg, "__file__", str(tmp_path / "ibreg" / "__init__.py"))
    assert launch_command("regression") == "ibreg regression"


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
    # Recipes find their configurations relative to themselves, in the wheel as in a checkout.
    texts = [script.read_text() for script in recipes().values()]
    configured = [text for text in texts if "@hydra.main" in text]
    assert configured
    assert all('Path(__file__).resolve().parent.parent / "configs"' in text for text in configured)


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
