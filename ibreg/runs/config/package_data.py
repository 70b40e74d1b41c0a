"""Package data: recipes and configurations that are installed with the package, and a description of each in a line."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import ibreg
from ibreg import registry

RECIPES = "recipes"
BOTTLENECK = "bottleneck"
EXPERIMENT = "experiment"
FIRST = (BOTTLENECK, "data", "model")  # the groups that are listed first; experiments are last


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


def as_launched(text: str) -> str:
    """Returns a text in which the commands of recipes are those of this installation.

    Example:
        >>> as_launched("python recipes/compare.py outputs") == f"{launch_command('compare')} outputs"
        True
    """
    for recipe in recipes():
        text = text.replace(f"python recipes/{recipe}.py", launch_command(recipe))
    return text


def descriptions() -> dict[str, dict[str, str]]:
    """Describes every recipe, bottleneck, data set, model and experiment in a line, by group and name.

    A description is the first sentence of the comment at the head of a YAML, of a recipe's docstring, or of the class
    of a bottleneck without a YAML. The experiments of each recipe are a group, described with their duration.

    Example:
        >>> descriptions()["bottleneck"]["variational"]
        'Variational information bottleneck, Alemi et al. 2017 (arXiv 1612.00410); CEB: Fischer 2020 (arXiv 2002.05379)'
    """
    folders = {path.name: path for path in sorted(installed_folder("configs").iterdir()) if path.is_dir()}
    order = [*FIRST, *(group for group in folders if group not in (*FIRST, EXPERIMENT))]
    groups = {RECIPES: {name: first_sentence(_docstring(path)) for name, path in recipes().items()}}
    groups |= {group: {path.stem: first_sentence(head(path)) for path in _yamls(folders[group])} for group in order}
    classes = {name: first_sentence(registry.find(name).__doc__ or "") for name in registry.names()}
    groups[BOTTLENECK] = dict(sorted((classes | groups[BOTTLENECK]).items()))
    for path in _yamls(folders[EXPERIMENT]):
        recipe = re.search(r"^recipe: *(\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        group = f"{EXPERIMENT} of {recipe[1]}" if recipe else EXPERIMENT
        duration = re.search(r"^Duration: (.*)\.$", head(path), flags=re.MULTILINE)
        described = first_sentence(head(path)) + (f" ({duration[1]})" if duration else "")
        groups.setdefault(group, {})[path.stem] = described
    return groups


def groups_named(name: str) -> dict[str, dict[str, str]]:
    """Returns the groups of `descriptions` with a name, in the singular or plural; none if there is no such group.

    Example:
        >>> [group.partition(" ")[0] for group in groups_named("experiments")] == ["experiment"] * 6
        True
    """
    described = descriptions()
    stems = {group: "recipe" if group == RECIPES else group.partition(" ")[0] for group in described}
    return {group: described[group] for group, stem in stems.items() if name in (stem, f"{stem}s", f"{stem}es")}


class Explanation(NamedTuple):
    """What a name stands for.

    Attributes:
        choice: how it is chosen on the command line.
        summary: the first paragraph of the docstring of its class or script, in one line; "" without one.
        text: its YAML; "" without one.
    """

    choice: str
    summary: str
    text: str


def explanations(name: str) -> list[Explanation]:
    """Explains each recipe, bottleneck, data set, model, experiment that has a name; none if nothing has it.

    Example:
        >>> [explanation.choice for explanation in explanations("resnet20")]
        ['model=resnet20', 'encoder=resnet20']
    """
    configs, found = installed_folder("configs"), []
    if name in recipes():
        path = configs / f"{name}.yaml"
        # The rest is Hydra's: the choice of files at the beginning, and help at the end.
        keys = (
            re.search(r"^recipe:.*?(?=^hydra:)", path.read_text(encoding="utf-8"), re.M | re.S)
            if path.is_file()
            else None
        )
        found.append(
            Explanation(launch_command(name), first_paragraph(_docstring(recipes()[name])), keys[0] if keys else "")
        )
    groups = dict.fromkeys([*FIRST, *(path.name for path in sorted(configs.iterdir()) if path.is_dir())])
    for group in groups:
        path = configs / group / f"{name}.yaml"
        text = as_launched(path.read_text(encoding="utf-8")) if path.is_file() else ""
        if group == BOTTLENECK and name in registry.names():
            cls = registry.find(name)
            summary = f"ibreg.{cls.__qualname__}: {first_paragraph(cls.__doc__ or '')}"
            found.append(Explanation(f"bottlenecks=[{name}]", summary, text))
        elif text:
            found.append(Explanation(f"{group}={name}", "", text))
    return found


def first_sentence(text: str) -> str:
    r"""Returns the first sentence of a text in one line, without its period.

    Example:
        >>> first_sentence("The method of Alemi et al. 2017,\nfor digits. It takes a minute.")
        'The method of Alemi et al. 2017, for digits'
    """
    return re.split(r"(?<=\.) (?=[A-Z])", first_paragraph(text))[0].removesuffix(".")


def first_paragraph(text: str) -> str:
    """Returns the first paragraph of a text in one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def _yamls(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))


def head(path: Path) -> str:
    """Returns the comment at the head of a YAML, without the `@package` directive of an experiment.

    Example:
        >>> first_sentence(head(installed_folder("configs") / "data" / "digits.yaml"))
        "scikit-learn's handwritten digits: 1,797 grayscale images, 8 x 8, 10 classes"
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(lines)


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
