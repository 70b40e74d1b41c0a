"""Command line: `ibreg RECIPE key=value ...` runs a recipe, `ibreg list` lists the choices and explains each."""

from __future__ import annotations

import difflib
import runpy
import sys
import textwrap
from collections.abc import Mapping, Sequence

from ibreg.runs.config.comments import paragraphs, reflow
from ibreg.runs.config.package_data import RECIPES, Explanation, descriptions, explanations, groups_named, recipes
from ibreg.runs.config.terminal import discard_output, terminal_width
from ibreg.version import __version__

USAGE = """\
usage:
  ibreg list                      list all recipes, bottlenecks, data sets, models and experiments
  ibreg list GROUP                list one group: recipes, bottlenecks, data, models, experiments, ...
  ibreg list NAME                 explain one of them: its keys with their defaults and comments
  ibreg RECIPE [key=value ...]    run a recipe; its results are written to outputs/ in the current folder
  ibreg RECIPE --help             show the keys of a recipe and their choices
  ibreg --version                 show the version

examples:
  ibreg classification bottlenecks=[variational] epochs=1
  ibreg classification data=csv --help
  ibreg classification experiment=vib_mnist data.root=/path/to/data data.download=true
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a recipe with the arguments after its name, or lists the recipes and what can be chosen in them.

    Args:
        arguments: of the command line, without the program; None: those of this process.

    Returns:
        The exit code: 0; 2 for an unknown name; 1 if a package that recipes need is not installed, or the reader of
        the output has closed it.
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    try:
        try:
            return _run(name, rest)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return 1


def _run(name: str, rest: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        print(f"{USAGE}\n{listing({RECIPES: descriptions()[RECIPES]}, _width())}")
    elif name == "--version":
        print(f"ibreg {__version__}")
    elif name == "list":
        return _list(rest)
    elif name in recipes():
        return _run_recipe(name, rest)
    else:
        return _unknown("recipe", name, [*recipes(), "list"], f"choose one of {', '.join(recipes())}, or list")
    return 0


def _list(names: Sequence[str]) -> int:
    """Prints all descriptions, or those of the groups, or the explanations, that are named."""
    if not names:
        print(listing(descriptions(), _width()))
    for name in names:
        if groups := groups_named(name):
            print(listing(groups, _width()))
        elif found := explanations(name):
            print("\n\n".join(map(_explained, found)))
        else:
            known = [known for entries in descriptions().values() for known in entries]
            return _unknown("recipe, bottleneck, data set, model or experiment", name, known, "ibreg list shows all")
    return 0


def _explained(found: Explanation) -> str:
    width = terminal_width()
    parts = (found.choice, paragraphs(found.summary, width), reflow(found.text, width).strip())
    return "\n\n".join(part for part in parts if part)


def _width() -> int | None:
    """Returns the width that descriptions are wrapped to: one line each for another program, as grep."""
    return terminal_width() if sys.stdout.isatty() else None


def _run_recipe(name: str, overrides: Sequence[str]) -> int:
    script = str(recipes()[name])
    sys.argv = [script, *overrides]
    try:
        runpy.run_path(script, run_name="__main__")
    except ModuleNotFoundError as error:
        if (error.name or "ibreg").partition(".")[0] == "ibreg":
            raise
        print(f"{error}: recipes need optional packages, pip install 'ibreg[recipes]'", file=sys.stderr)
        return 1
    return 0


def _unknown(kind: str, name: str, known: Sequence[str], remedy: str) -> int:
    """Reports a name that does not exist, with the closest ones; returns the exit code."""
    close = [repr(match) for match in difflib.get_close_matches(name, known, n=3)]
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    print(f"ibreg has no {kind} {name!r}{hint}: {remedy}", file=sys.stderr)
    return 2


def listing(groups: Mapping[str, Mapping[str, str]], width: int | None = None) -> str:
    """Formats descriptions, a line for each name, group by group, in aligned columns.

    Args:
        groups: all or some of `descriptions()`.
        width: columns of a terminal, which descriptions are wrapped to; None: each description is one line.
    """
    column = max(len(name) for entries in groups.values() for name in entries) + 4
    wrap = textwrap.TextWrapper(width or sys.maxsize, subsequent_indent=" " * column, break_on_hyphens=False)
    blocks = [
        "\n".join([group, *(wrap.fill(f"  {name}".ljust(column) + line) for name, line in entries.items())])
        for group, entries in groups.items()
    ]
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
