"""Labels, order and styles of methods, and the imports that they do without."""

import ast
import subprocess
import sys
from pathlib import Path

from ibreg.plots.style import COLORS, method_label, method_styles, sort_methods

PACKAGE = Path(__file__).resolve().parents[2] / "ibreg"


def test_controls_come_first_and_have_labels_of_their_own():
    methods = sort_methods(["hsic", "decayed", "variational", "null", "none", "hsic"])
    assert methods == ["none", "null", "decayed", "hsic", "variational"]
    labels = ["control", "second initialization", "control, weight decay", "hsic", "variational"]
    assert list(map(method_label, methods)) == labels
    assert [method_label(method, "linear probe") for method in ("none", "decayed")] == [
        "linear probe", "linear probe, weight decay",
    ]  # fmt: skip


def test_more_methods_than_colors_change_the_line():
    methods = [f"method {number}" for number in range(2 * len(COLORS))]
    styles = method_styles(["none", *methods]).values()
    assert len({(style["color"], style["linestyle"]) for style in styles}) == len(methods) + 1


def test_only_plots_import_matplotlib():
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "matplotlib" for name in names):
                importing.add(path.parent.relative_to(PACKAGE).as_posix())
    assert importing == {"plots"}


def test_tables_do_without_matplotlib():
    code = "import sys, ibreg.runs.report.comparison; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
