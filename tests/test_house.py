"""The layout: imports point one way and without circles, rooms and files are named after what they hold."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import ibreg

ROOT = Path(ibreg.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# A file imports from its own floor and those before it.
FLOORS = (
    ("version", "precision", "tracing", "modes", "distributed"),
    ("functional",),
    ("registry", "layers", "losses"),
    ("hosts", "regularized"),
    ("prediction", "surgery", "optimization", "schedules", "saving"),
    ("evaluation",),
    ("plots",),
    ("runs",),
    ("cli",),
)
GROUND = ("base", "constraints", "encoder", "intervention", "positions", "priors", "scope")  # of the layers' room
ROOMS = ("concept", "kernel", "key_value")
ADAPTERS = ("quantizer",)  # bottlenecks of other packages, registered when they are asked for


def imports(path):
    """Names of the project's own files that a file imports, inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                name if (name := f"{node.module}.{alias.name}") in FILES else node.module for alias in node.names
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor_of(name):
    room = [*name.split("."), ""][1]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_there_is_no_circle_among_files():
    graph = {name: set(imports(path)) & FILES.keys() - {name} for name, path in FILES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


def test_imports_point_one_way():
    wrong = [
        f"{name} imports {other}"
        for name, path in FILES.items()
        for other in set(imports(path)) & FILES.keys() - {"ibreg"}
        if name != "ibreg" and floor_of(other) > floor_of(name)
    ]
    assert not wrong


def test_only_plots_import_matplotlib():
    drawing = {"matplotlib", "seaborn"}
    users = {name for name, path in FILES.items() if {other.split(".")[0] for other in imports(path)} & drawing}
    assert users
    assert all(name.startswith("ibreg.plots.") for name in users)


def test_layers_lie_under_their_registry_names_but_for_three_rooms():
    entries = {path.stem for path in (ROOT / "layers").iterdir() if not path.stem.startswith("_")}
    inside = {path.stem for room in ROOMS for path in (ROOT / "layers" / room).glob("*.py")}
    assert entries - {*GROUND, *ROOMS, *ADAPTERS} == set(ibreg.names()) - inside
    assert set(ibreg.names()) <= entries | inside


def test_files_are_short():
    long = {name: lines for name, path in FILES.items() if (lines := path.read_text().count("\n")) > 400}
    assert not long
