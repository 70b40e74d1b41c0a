"""What travels with the package beside its code: recipes and configurations, and what each says of itself in a line."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ibreg
from ibreg import registry

RECIPES = "recipes"
EXPERIMENTS = "experiment"
FIRST = ("bottleneck", "data", "model")  # groups of configurations that a list begins with; experiments end it


def beside(folder: str) -> Path:
    """Finds `configs` or `recipes`: inside an installed package, or beside the package in a checkout."""
    package = Path(ibreg.__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def recipes() -> dict[str, Path]:
    """Returns the scripts by name."""
    return {path.stem: path for path in sorted(beside(RECIPES).glob("*.py"))}


def call_of(recipe: str) -> str:
    """Says how a recipe is started: by its script in a checkout, by `ibreg` where the package is installed."""
    return f"ibreg {recipe}" if beside(RECIPES).parent == Path(ibreg.__file__).parent else f"python recipes/{recipe}.py"


def described() -> dict[str, dict[str, str]]:
    """Says in a line what every recipe, bottleneck, data set, model and experiment is.

    The lines are the first sentences of the YAMLs' heads, of the recipes' docstrings, and of the class for a bottleneck
    that has no YAML. The experiments of each recipe are a group of their own.

    Example:
        >>> described()["bottleneck"]["variational"]
        'Variational information bottleneck, Alemi et al. 2017 (arXiv 1612.00410); CEB: Fischer 2020 (arXiv 2002.05379)'
    """
    folders = {path.name: path for path in sorted(beside("configs").iterdir()) if path.is_dir()}
    order = [*FIRST, *(group for group in folders if group not in (*FIRST, EXPERIMENTS))]
    groups = {RECIPES: {name: first_sentence(_docstring(path)) for name, path in recipes().items()}}
    groups |= {group: {path.stem: first_sentence(_head(path)) for path in _yamls(folders[group])} for group in order}
    own = {name: first_sentence(registry.find(name).__doc__ or "") for name in registry.names()}
    groups["bottleneck"] = dict(sorted((own | groups["bottleneck"]).items()))
    for path in _yamls(folders[EXPERIMENTS]):
        recipe = re.search(r"^recipe: *(\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        group = f"{EXPERIMENTS} of {recipe[1]}" if recipe else EXPERIMENTS
        groups.setdefault(group, {})[path.stem] = first_sentence(_head(path))
    return groups


def first_sentence(text: str) -> str:
    r"""Returns the first sentence of a text in one line, without its full stop.

    Example:
        >>> first_sentence("The method of Alemi et al. 2017,\nfor digits. It takes a minute.")
        'The method of Alemi et al. 2017, for digits'
    """
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].removesuffix(".")


def _yamls(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))


def _head(path: Path) -> str:
    """The comment that a YAML begins with, after the directive of an experiment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
