"""Command line: `ibreg RECIPE key=value ...` runs a recipe, `ibreg list` lists the choices."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Mapping

from ibreg.runs.config.package_data import RECIPES, descriptions, recipes
from ibreg.version import __version__

USAGE = """\
usage:
  ibreg list                      list all recipes, bottlenecks, data sets, models and experiments
  ibreg RECIPE [key=value ...]    run a recipe; its results are written to outputs/ in the current folder
  ibreg RECIPE --help             show the keys of a recipe and their choices
  ibreg --version                 show the version

examples:
  ibreg classification bottlenecks=[variational] epochs=1
  ibreg classification experiment=vib_mnist data.root=~/data data.download=true
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a recipe with the arguments after its name, or lists the recipes and what can be chosen in them.

    Args:
        arguments: of the command line, without the program; None: those of this process.

    Returns:
        the exit code: 0, 2 for an unknown recipe, or 1 if a package that recipes need is not installed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    scripts = recipes()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{USAGE}\n{listing({RECIPES: descriptions()[RECIPES]})}")
        return 0
    name, *rest = arguments
    if name == "--version":
        print(f"ibreg {__version__}")
        return 0
    if name == "list":
        print(listing(descriptions()))
        return 0
    if name not in scripts:
        close = difflib.get_close_matches(name, scripts, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        print(f"ibreg has no recipe {name!r}{hint}: choose one of {', '.join(scripts)}, or list", file=sys.stderr)
        return 2
    sys.argv = [str(scripts[name]), *rest]
    try:
        runpy.run_path(str(scripts[name]), run_name="__main__")
    except ModuleNotFoundError as error:
        if (error.name or "ibreg").partition(".")[0] == "ibreg":
            raise
        print(f"{error}: recipes need optional packages, pip install 'ibreg[recipes]'", file=sys.stderr)
        return 1
    return 0


def listing(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Formats descriptions, a line for each name, group by group, in aligned columns.

    Args:
        groups: all or some of `descriptions()`.
    """
    width = max(len(name) for entries in groups.values() for name in entries)
    blocks = [
        "\n".join([group, *(f"  {name:<{width}}  {line}" for name, line in entries.items())])
        for group, entries in groups.items()
    ]
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
