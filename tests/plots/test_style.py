"""Labels, order and styles of methods, and the imports that they do without."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ibreg
from ibreg.plots.style import (
    COLORS,
    CONTROL_STYLES,
    LEARNER_COLORS,
    method_color,
    method_label,
    method_styles,
    sort_methods,
)

PACKAGE = Path(__file__).resolve().parents[2] / "ibreg"


def test_controls_come_first_and_have_labels_of_their_own():
    methods = sort_methods(["hsic", "decayed", "variational", "null", "none", "hsic"])
    assert methods == ["none", "null", "decayed", "hsic", "variational"]
    labels = ["control", "second initialization", "control, weight decay", "hsic", "variational"]
    assert list(map(method_label, methods)) == labels
    assert [method_label(method, "linear probe") for method in ("none", "decayed")] == [
        "linear probe", "linear probe, weight decay",
    ]  # fmt: skip


def test_a_method_has_one_color_whatever_else_a_run_has():
    names = [*ibreg.names(), "none", "null", "decayed", "my_layer", "beta_1e-3"]
    alone = {name: method_styles([name])[name]["color"] for name in names}
    together = method_styles(reversed(names))
    assert {name: together[name]["color"] for name in names} == alone
    assert method_color("my_layer") == "#882255"  # on every machine


def test_every_bottleneck_has_a_color_of_its_own():
    colors = [method_color(name) for name in [*ibreg.names(), "none", "null"]]
    assert len({*colors}) == len(colors)
    assert len({*LEARNER_COLORS.values(), method_color("key_value"), method_color("none")}) == len(LEARNER_COLORS) + 2


def test_methods_of_one_color_have_other_lines():
    names = [f"method {number}" for number in range(400)]
    same = [name for name in names if method_color(name) == method_color("variational")][:3]
    assert len(same) == 3
    styles = method_styles(["variational", *same]).values()
    assert len({style["linestyle"] for style in styles}) == 4
    assert len({style["color"] for style in styles}) == 1


@pytest.mark.parametrize("color", [*COLORS.values(), *(style["color"] for style in CONTROL_STYLES.values())])
def test_every_color_can_be_seen_on_white(color):
    red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in (red, green, blue)]
    luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
    assert 1.05 / (luminance + 0.05) > 2  # the contrast of WCAG; the grey of 0.73 that was invisible has 1.9


def test_only_plots_import_matplotlib():
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "matplotlib" for name in names):
                importing.add(path.parent.relative_to(PACKAGE).as_posix())
    assert importing == {"plots"}


@pytest.mark.slow  # test_house reads the imports, which is quick
def test_tables_do_without_matplotlib():
    code = "import sys, ibreg.runs.report.comparison; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
