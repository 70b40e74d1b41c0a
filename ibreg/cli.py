"""The command line: `ibreg <recipe> key=value ...` runs a recipe, `ibreg list` says what there is."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import ibreg
from ibreg.training.configuration import beside


def main(arguments: list[str] | None = None) -> int:
    """Runs a recipe with the arguments behind its name, or lists recipes and what can be chosen in them.

    Returns:
        the exit code: 2 for a name that is none.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    recipes = _recipes()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: ibreg list | ibreg RECIPE [key=value ...] | ibreg RECIPE --help\nrecipes: {', '.join(recipes)}")
        return 0
    name, *rest = arguments
    if name == "list":
        print(listing())
        return 0
    if name not in recipes:
        print(f"ibreg has no recipe {name!r}: choose one of {', '.join(recipes)}, or list", file=sys.stderr)
        return 2
    sys.argv = [str(recipes[name]), *rest]
    runpy.run_path(str(recipes[name]), run_name="__main__")
    return 0


def listing() -> str:
    """Returns what the recipes can be told, a line for each kind."""
    configs = beside("configs")
    rows = {"recipes": list(_recipes()), "bottlenecks": ibreg.names()}
    for group in ("data", "encoder", "model", "task_loss", "experiment"):
        rows[group] = sorted(path.stem for path in (configs / group).glob("*.yaml"))
    return "\n".join(f"{kind:<12} {', '.join(entries)}" for kind, entries in rows.items())


def _recipes() -> dict[str, Path]:
    return {path.stem: path for path in sorted(beside("recipes").glob("*.py"))}


if __name__ == "__main__":
    sys.exit(main())
