"""Names, order, colors and lines of methods, and the user's names in plots: the same for all plots and tables.

A method is a model that a run trains. `none` is the control, the model without a bottleneck; `null` is its second
initialization, `decayed` the control with tuned weight decay; any other name is a bottleneck or another regularizer.
The color of a method is a function of its name alone, so that it is the same in every plot of every recipe. The colors
are Okabe and Ito's and those of Tol's muted scheme, which color-blind readers can tell apart as far as that goes;
methods that are often compared with each other have the most different ones.
"""

from collections.abc import Iterable
from typing import Any
from zlib import crc32

CONTROLS = ("none", "null", "decayed")  # in the order of tables and legends
# The lines of controls are drawn over all others, and have gaps, through which equal lines can be seen.
CONTROL_STYLES = {
    "none": {"color": "#4D4D4D", "linestyle": "--", "marker": "o", "zorder": 3},
    "null": {"color": "#8C8C8C", "linestyle": (0, (2, 1)), "marker": "o", "zorder": 3},
    "decayed": {"color": "#4D4D4D", "linestyle": "-.", "marker": "d", "zorder": 3},
    "pretrained": {"color": "#8C8C8C", "linestyle": "-.", "marker": "d", "zorder": 3},
}
COLORS = {
    "variational": "#0072B2",
    "hsic": "#D55E00",
    "cauchy_schwarz": "#009E73",
    "nonlinear": "#CC79A7",
    "dropout": "#E69F00",
    "gaussian_channel": "#56B4E9",
    "codebook": "#7B4B2A",
    "distance_aware": "#332288",
    "key_value": "#44AA99",
    "concept": "#117733",
    "concept_embedding": "#882255",
    "probabilistic_concept": "#999933",
    "stochastic_concept": "#AA4499",
    "post_hoc_concept": "#CC6677",
}
# Learners without a bottleneck, which are compared with `key_value` alone.
LEARNER_COLORS = {"mlp": "#E69F00", "ewc": "#0072B2", "replay": "#CC79A7", "joint": "#D55E00"}
LINES = ("-", (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = ("s", "^", "D", "v", "P", "X")
MOST_CHARACTERS = 48


def sort_methods(methods: Iterable[str]) -> list[str]:
    """Sorts methods: the control, its second initialization, its weight decay, then the others in the order given.

    Example:
        >>> sort_methods(["variational", "null", "hsic", "none", "hsic"])
        ['none', 'null', 'variational', 'hsic']
    """
    ranks = {method: rank for rank, method in enumerate(CONTROLS)}
    return sorted(dict.fromkeys(methods), key=lambda method: ranks.get(method, len(ranks)))


def method_label(method: str, control: str = "control") -> str:
    """Names a method for a reader.

    Args:
        method: key of the method in configurations, `metrics.csv` and `summary.json`.
        control: what the control is, such as "linear probe".

    Example:
        >>> method_label("none"), method_label("null"), method_label("hsic")
        ('control', 'second initialization', 'hsic')
    """
    labels = {"none": control, "null": "second initialization", "decayed": f"{control}, weight decay"}
    return labels.get(method, method)


def plot_name(name: str, most: int = MOST_CHARACTERS) -> str:
    r"""Returns a name of the user's (a column, a class, a method) as plots show it: a short line of printable text.

    Of a long name both ends are kept, since names of a table often differ at one of them. An underscore in front gets
    a space before it: matplotlib leaves labels that begin with one out of legends.

    Example:
        >>> plot_name("blood pressure\n(mmHg)"), plot_name("_id"), plot_name(""), plot_name("x" * 30, most=9)
        ('blood pressure (mmHg)', ' _id', '(no name)', 'xxxx…xxxx')
    """
    line = " ".join("".join(character if character.isprintable() else " " for character in name).split())
    if len(line) > most:
        line = f"{line[: most // 2]}…{line[len(line) - (most - 1) // 2 :]}"
    return f" {line}" if line.startswith("_") else line or "(no name)"


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Chooses color, line and marker of each method, in the order of `sort_methods`.

    Of methods with the same color, which only names outside of `COLORS` can have, the later ones get another line.

    Returns:
        Keyword arguments for `Axes.plot`, by method.

    Example:
        >>> [style["color"] for style in method_styles(["hsic", "none"]).values()]
        ['#4D4D4D', '#D55E00']
    """
    styles: dict[str, dict[str, Any]] = {}
    for method in sort_methods(methods):
        if method in CONTROL_STYLES:
            styles[method] = dict(CONTROL_STYLES[method])
            continue
        color, number = method_color(method), crc32(method.encode())
        same = sum(style["color"] == color for style in styles.values())
        marker = MARKERS[[*COLORS].index(method) % len(MARKERS) if method in COLORS else number // 97 % len(MARKERS)]
        styles[method] = {"color": color, "linestyle": LINES[same % len(LINES)], "marker": marker}
    return styles


def method_color(method: str) -> str:
    """Returns the color of a method; that of an unknown name is chosen by a hash, the same on every machine."""
    if method in CONTROL_STYLES:
        return CONTROL_STYLES[method]["color"]
    known = COLORS | LEARNER_COLORS
    return known.get(method) or [*COLORS.values()][crc32(method.encode()) % len(COLORS)]
