"""Package data: recipes and configurations that are installed with the package, and a description of each in a line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ibreg
from ibreg import registry

RECIPES = "recipes"
EXPERIMENTS = "experiment"
FIRST = ("bottleneck", "data", "model")  # the groups that are listed first; experiments are last


def installed_folder(folder: str) -> Path:
    """Returns the path of `configs` or `recipes`: in an installed package, or next to the package in a checkout."""
    package = Path(ibreg.__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def recipes() -> dict[str, Path]:
    """Returns the scripts of the recipes by name."""
    return {path.stem: path for path in sorted(installed_folder(RECIPES).glob("*.py"))}


def launch_command(recipe: str) -> str:
    """Returns the command that runs a recipe: `ibreg` of an installed package, or the script in a checkout."""
    installed = installed_folder(RECIPES).parent == Path(ibreg.__file__).parent
    return f"ibreg {recipe}" if installed else f"python recipes/{recipe}.py"


def descriptions() -> dict[str, dict[str, str]]:
    """Describes every recipe, bottleneck, data set, model and experiment in a line, by group and name.

    A description is the first sentence of the comment at the head of a YAML, of a recipe's docstring, or of the class
    of a bottleneck without a YAML. The experiments of each recipe are a group.

    Example:
        >>> descriptions()["bottleneck"]["variational"]
        'Variational information bottleneck, Alemi et al. 2017 (arXiv 1612.00410); CEB: Fischer 2020 (arXiv 2002.05379)'
    """
    folders = {path.name: path for path in sorted(installed_folder("configs").iterdir()) if path.is_dir()}
    order = [*FIRST, *(group for group in folders if group not in (*FIRST, EXPERIMENTS))]
    groups = {RECIPES: {name: first_sentence(_docstring(path)) for name, path in recipes().items()}}
    groups |= {group: {path.stem: first_sentence(_head(path)) for path in _yamls(folders[group])} for group in order}
    classes = {name: first_sentence(registry.find(name).__doc__ or "") for name in registry.names()}
    groups["bottleneck"] = dict(sorted((classes | groups["bottleneck"]).items()))
    for path in _yamls(folders[EXPERIMENTS]):
        recipe = re.search(r"^recipe: *(\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        group = f"{EXPERIMENTS} of {recipe[1]}" if recipe else EXPERIMENTS
        groups.setdefault(group, {})[path.stem] = first_sentence(_head(path))
    return groups


def first_sentence(text: str) -> str:
    r"""Returns the first sentence of a text in one line, without its period.

    Example:
        >>> first_sentence("The method of Alemi et al. 2017,\nfor digits. It takes a minute.")
        'The method of Alemi et al. 2017, for digits'
    """
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].removesuffix(".")


def _yamls(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))


def _head(path: Path) -> str:
    """Returns the comment at the head of a YAML, without the `@package` directive of an experiment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
