"""Names, order, colors and lines of methods: one for tables and plots.

A method is a model that a run trains. `none` is the control, the model without a bottleneck; `null` is its second
initialization, `decayed` the control with tuned weight decay; any other name is a bottleneck or another regularizer.
Methods take their colors in the order in which they first appear, so a run that names them in one order has one color
per method in all plots. The colors are Okabe and Ito's, which color-blind readers can tell apart.
"""

from collections.abc import Iterable
from typing import Any

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CONTROLS = ("none", "null", "decayed")  # in the order of tables and legends
CONTROL_STYLES = {
    "none": {"color": "#666666", "linestyle": "-", "marker": "o"},
    "null": {"color": "#BBBBBB", "linestyle": "-", "marker": "o"},
    "decayed": {"color": "#666666", "linestyle": "--", "marker": "d"},
}


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


def method_styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Chooses color, line and marker of each method, in the order of `sort_methods`.

    The line changes where the colors start again.

    Returns:
        Keyword arguments for `Axes.plot`, by method.
    """
    styles = {}
    for method in sort_methods(methods):
        if method in CONTROL_STYLES:
            styles[method] = dict(CONTROL_STYLES[method])
        else:
            turn, index = divmod(len(styles.keys() - CONTROL_STYLES.keys()), len(COLORS))
            styles[method] = {"color": COLORS[index], "linestyle": LINES[turn % len(LINES)], "marker": MARKERS[index]}
    return styles
