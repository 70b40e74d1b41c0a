"""Every command that is printed anywhere runs as it stands: bash splits it into words that Hydra takes."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from ibreg import cli
from ibreg.runs.config import help
from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.config.package_data import recipes

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [name for name in recipes() if (ROOT / "configs" / f"{name}.yaml").is_file()]
COMMAND = re.compile(rf"(?:\brecipes/({'|'.join(RECIPES)})\.py|\bibreg ({'|'.join(RECIPES)}))\b(.*)")
FRAGMENT = re.compile(r"""(?<![\w'"])(["']?\+[\w.]+=[^\s;]+)""")  # of a comment: +grid.betas.hsic=[1,10]


def texts():
    """The files with commands in them, and what each prints; in code blocks of Markdown a command is a line."""
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        yield path, re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE)
    for path in sorted((ROOT / "recipes").glob("*.py")):
        yield path, ast.get_docstring(ast.parse(path.read_text()))
    # In text a command may begin in one line and end in the next.
    code = re.compile(r"(?<!`)`([^`]+)`(?!`)")
    readme = (ROOT / "README.md").read_text()
    yield ROOT / "README.md", code.sub(lambda found: "\n" + found[1].replace("\n", " ") + "\n", readme)
    yield ROOT / "ibreg" / "cli.py", cli.USAGE


def commands():
    """The commands of all files: name of the file, recipe, and what stands after it."""
    for recipe in RECIPES:
        for words in (words for words in help.NOTES if "=" in words):
            yield "help.py", recipe, words.replace("<name>.<option>=value", "variational.beta=1")
    for path, text in texts():
        for recipe, short, rest in COMMAND.findall(re.sub(r"\\\n\s*", " ", text)):
            yield path.name, recipe or short, rest
        if path.stem in RECIPES and path.suffix == ".yaml":
            yield from ((path.name, path.stem, fragment) for fragment in FRAGMENT.findall(path.read_text()))


def overrides_of(rests):
    """The words of each command but Hydra's flags, as bash has them: without comments, with its expansions."""
    words = "\n".join(f"words {rest}" for rest in rests)
    script = f"words() {{ printf '%s\\t' \"$@\"; printf '\\n'; }}\n{words}\n"
    home = os.environ | {"HOME": "/home/me", "DATA": "/data", "WORK": "/scratch"}
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd="/", env=home)
    assert result.stderr == ""
    lines = [line.split("\t")[:-1] for line in result.stdout.split("\n")[:-1]]
    return [[word for word in line if word not in ("", "...") and not word.startswith("-")] for line in lines]


@pytest.fixture(scope="module")
def split():
    """The overrides of each command."""
    found = sorted(set(commands()))
    return dict(zip(found, overrides_of([rest for *_, rest in found]), strict=True))


def test_there_are_commands_in_every_kind_of_file(split):
    of_recipes = {f"{name}.{kind}" for name in RECIPES for kind in ("py", "yaml")}
    assert {"README.md", "cli.py", "vib_mnist.yaml", *of_recipes} <= {file for file, *_ in split}


def test_hydra_reads_every_override(split):
    for command, overrides in split.items():
        for override in OverridesParser.create().parse_overrides(overrides):
            assert override.key_or_group, command
        assert not [word for word in overrides if word.endswith("=") or "<" in word], command


@pytest.mark.slow  # the one before is the quick one
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_command_composes(recipe, split):
    register_with_hydra()
    composed = {tuple(overrides): command for command, overrides in split.items() if command[1] == recipe}
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for overrides, command in composed.items():
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            if "--multirun" in command[2]:  # composed once for each of several values
                parsed = [override for override in parsed if not override.is_sweep_override()]
            if "imports=" in command[2]:  # of a bottleneck that the module registers
                parsed = [override for override in parsed if not override.key_or_group.startswith("bottleneck.")]
            cfg = compose(recipe, [*(override.input_line for override in parsed), "output_dir=unused"])
            assert cfg.recipe == recipe, command
