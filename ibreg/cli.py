"""The command line: `ibreg <recipe> key=value ...` runs a recipe, `ibreg list` says what there is."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping

import ibreg
from ibreg.runs.config.package_data import RECIPES, described, recipes

USAGE = """\
ibreg list                        every recipe, bottleneck, data set, model and experiment, a line each
ibreg RECIPE [key=value ...]      run a recipe; what it leaves goes to outputs/ in the current folder
ibreg RECIPE --help               its keys and choices
ibreg --version

ibreg classification bottlenecks=[variational] epochs=1
ibreg classification experiment=vib_mnist data.root=~/data data.download=true
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a recipe with the arguments behind its name, or lists recipes and what can be chosen in them.

    Returns:
        the exit code: 2 for a name that is none, 1 where a package that recipes need is not installed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    scripts = recipes()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n{listing({RECIPES: described()[RECIPES]})}")
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"ibreg {ibreg.__version__}")
        return 0
    if name == "list":
        print(listing(described()))
        return 0
    if name not in scripts:
        print(f"ibreg has no recipe {name!r}: choose one of {', '.join(scripts)}, or list", file=sys.stderr)
        return 2
    sys.argv = [str(scripts[name]), *rest]
    try:
        runpy.run_path(str(scripts[name]), run_name="__main__")
    except ModuleNotFoundError as error:
        if (error.name or "ibreg").partition(".")[0] == "ibreg":
            raise
        print(f"{error}: recipes need further packages, pip install 'ibreg[recipes]'", file=sys.stderr)
        return 1
    return 0


def listing(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Returns what the recipes can be told, a line for each, group by group.

    Args:
        groups: as `installed.described` returns them, all or some.
    """
    width = max(len(name) for entries in groups.values() for name in entries)
    blocks = [
        "\n".join([group, *(f"  {name:<{width}}  {line}" for name, line in entries.items())])
        for group, entries in groups.items()
    ]
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
