"""Parts that the plots share: a grid of panels, curves with bands or bars over seeds, one legend, PNG files."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import offset_copy

from ibreg.plots.style import method_label, plot_name

Curves = Mapping[str, Mapping[Any, Sequence[float]]]  # values over seeds, as `curves[method][x]`
Bounds = Callable[[Sequence[float]], tuple[Any, Any, Any]]  # of such values: mean, low, high

# Scripts that matplotlib's own font lacks are drawn in the first of these that is installed.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Micro Hei",
    "Arial Unicode MS",
)  # fmt: skip
BAR_DISTANCE = 4.0  # of the outermost bars from their marker, in typographic points: about as wide as the marker


def panel_grid(count: int, *, most: int, size: tuple[float, float], **options: Any) -> tuple[Figure, np.ndarray]:
    """Creates a figure with rows of equally large panels, the rows filled evenly.

    Args:
        count: number of panels needed; those left over are hidden by `finish`.
        most: greatest number of panels in a row.
        size: width and height of a panel, in inches.
        options: keyword arguments for `Figure.subplots`.

    Returns:
        The figure, and its panels as an array `(rows, columns)`.
    """
    rows = math.ceil(count / most)
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def check_finite(points: Sequence[Mapping[str, Any]], *keys: str) -> None:
    """Checks the numbers of points.

    Args:
        points: one mapping per point.
        keys: keys of the numbers.

    Raises:
        ValueError: If there is no point, or one of its numbers is not finite.
    """
    if not points:
        raise ValueError("there is nothing to draw: no points")
    for point in points:
        if not all(math.isfinite(point[key]) for key in keys):
            raise ValueError(f"{', '.join(keys)} of a point must be finite, got {dict(point)}")


def curves_of(points: Iterable[Mapping[str, Any]], *, x: str, y: str, panel: str | None = None) -> dict[Any, Curves]:
    """Collects the values over seeds, as `curves[panel][method][x]`.

    Args:
        points: one per method, seed, panel and x.
        x: key of the horizontal coordinate.
        y: key of the value.
        panel: key of the panel that a point belongs to; without it there is one panel, None.
    """
    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for point in points:
        curves[panel and point[panel]][point["method"]][point[x]].append(point[y])
    return dict(curves)


def extremes(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns mean, least and greatest value."""
    return float(np.mean(values)), float(np.min(values)), float(np.max(values))


def draw_curves(
    panel: Axes,
    curves: Curves,
    styles: Mapping[str, Mapping[str, Any]],
    *,
    bounds: Bounds = extremes,
    label: Callable[[str], str] = method_label,
    opacity: float = 0.2,
) -> None:
    """Draws the mean over seeds as a line and its bounds as a band, per method.

    A value that is not finite leaves a gap: a seed that diverged is not dropped.

    Args:
        panel: axes to draw on.
        curves: values over seeds, as `curves[method][x]`.
        styles: keyword arguments for the line of each method, in the order of drawing; methods without curve are
            skipped.
        bounds: maps the values at one x to mean, low and high.
        label: names a method in the legend.
        opacity: of the bands.
    """
    import seaborn  # slow to import, and needed only when a run is over

    for method, style in styles.items():
        for number, segment in enumerate(_finite_segments(curves.get(method, {}))):
            x, y = np.array([(x, value) for x, values in segment for value in values], dtype=float).T
            seaborn.lineplot(
                x=x,
                y=y,
                errorbar=lambda values: bounds(list(values))[1:],
                err_kws={"alpha": opacity, "linewidth": 0},
                label=None if number else plot_name(label(method)),
                legend=False,
                ax=panel,
                **{"linewidth": 1.2, "markersize": 4} | dict(style),
            )
    panel.grid(alpha=0.3)


def _finite_segments(curve: Mapping[Any, Sequence[float]]) -> Iterator[list[tuple[Any, Sequence[float]]]]:
    """Yields the parts of a curve between the gaps; a plot by seaborn would drop a value that is not finite."""
    for finite, points in groupby(sorted(curve.items()), key=lambda point: bool(np.isfinite(point[1]).all())):
        if finite:
            yield list(points)


def within(bounds: Bounds, low: float, high: float) -> Bounds:
    """Clips bounds to the values that a quantity can have, such as 0 and 1 for a fraction.

    Example:
        >>> within(extremes, 0, 1)([0.5, 1.5])
        (1.0, 0.5, 1.0)
    """

    def clipped(values: Sequence[float]) -> tuple[Any, Any, Any]:
        mean, least, greatest = bounds(values)
        return mean, float(np.clip(least, low, high)), float(np.clip(greatest, low, high))

    return clipped


def draw_bars(
    panel: Axes, curves: Curves, styles: Mapping[str, Mapping[str, Any]], *, bounds: Bounds = extremes
) -> None:
    """Draws the mean over seeds as a line and its bounds as bars, per method.

    Markers are at their x; the bars stand side by side, a few points aside, so that they do not cover each other.

    Args:
        panel: axes to draw on.
        curves: values over seeds, as `curves[method][x]`.
        styles: keyword arguments for the line of each method, in the order of drawing; methods without curve are
            skipped.
        bounds: maps the values at one x to mean, low and high.
    """
    drawn = [method for method in styles if method in curves]
    for method, side in zip(drawn, sides(len(drawn)), strict=True):
        x = sorted(curves[method])
        mean, low, high = np.array([bounds(curves[method][value]) for value in x]).T
        figure: Any = panel.get_figure(root=True)
        aside = offset_copy(panel.transData, figure, x=BAR_DISTANCE * side, units="points")
        bars = {"color": styles[method]["color"], "linestyle": "", "elinewidth": 0.8, "capsize": 2}
        panel.errorbar(x, mean, [mean - low, high - mean], **bars, transform=aside, label="_bars")
        line = {"linewidth": 1.2, "markersize": 4} | dict(styles[method])
        panel.plot(x, mean, **line, label=plot_name(method_label(method)))
        # The axes do not see what is drawn aside.
        ends = np.array([(place, end) for place, *both in zip(x, low, high, strict=True) for end in both], dtype=float)
        panel.update_datalim(ends[np.isfinite(ends).all(axis=1)])
        panel.autoscale_view()
    panel.grid(alpha=0.3)


def sides(count: int) -> np.ndarray:
    """Returns evenly spaced positions from -1 to 1, 0 for a single one.

    Example:
        >>> sides(3).tolist(), sides(1).tolist()
        ([-1.0, 0.0, 1.0], [0.0])
    """
    return np.linspace(-1, 1, count) if count > 1 else np.zeros(count)


def finish(figure: Figure) -> Figure:
    """Hides the panels left over, and puts one legend for all under the figure."""
    entries = {}
    for panel in figure.axes:
        panel.set_visible(panel.has_data())
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    longest = max(map(len, entries), default=0)
    columns = max(int(figure.get_figwidth() // (0.6 + 0.09 * longest)), 1)
    # Further rows of entries are not taken from the height of the panels.
    figure.set_figheight(figure.get_figheight() + 0.22 * max(math.ceil(len(entries) / columns) - 1, 0))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.align_labels()
    return figure


def plain_numbers(axis: Axis) -> None:
    """Writes the numbers of a logarithmic axis as 0.01 or 1e-05 rather than as powers in mathematical notation.

    See `write_png`: dollars in the names of users are no formula, and so no text of a plot may be one.
    """
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def write_png(path: str | Path, draw: Callable[..., Figure], *arguments: Any) -> Path:
    """Draws a figure in the style of all plots, writes it and returns its path.

    Names of users are shown as they stand: `US$_to_C$` is no formula. A character that no font has is drawn as a box.

    Args:
        path: path of the PNG file.
        draw: draws the figure.
        arguments: those of `draw`.
    """
    fonts = set(get_font_names())
    family = ["sans-serif", *(font for font in FALLBACK_FONTS if font in fonts)]
    style: dict[Any, Any] = {"text.parse_math": False, "text.usetex": False, "font.family": family}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        draw(*arguments).savefig(path, format="png", dpi=150)
    return Path(path)
