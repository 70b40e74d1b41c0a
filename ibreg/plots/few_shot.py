"""Plot of the accuracy over the number of labeled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ibreg.plots.panels import curves_of, draw_bars, finish, panel_grid, write_png
from ibreg.plots.style import method_styles


def images_curve(points: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draws each quantity over the number of labeled images per class: the mean over seeds of each method.

    Bars go from the least to the greatest seed.

    Args:
        points: one per method, seed and number of images: `method`, `seed`, `images` (per class); every other key is a
            quantity in percent.
        path: path of the PNG file.

    Raises:
        ValueError: If there is no point.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "images": k, "accuracy (%)": 50 + k} for k in (5, 20)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images_curve(points, f"{folder}/images.png").name
        'images.png'
    """
    return write_png(path, _draw_images_curve, points)


def _draw_images_curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    if not points:
        raise ValueError("there is nothing to draw: no points")
    quantities = [key for key in points[0] if key not in ("method", "seed", "images")]
    styles = method_styles(point["method"] for point in points)
    images = sorted({point["images"] for point in points})
    figure, panels = panel_grid(len(quantities), most=2, size=(5.2, 3.6))
    for panel, quantity in zip(panels.flat, quantities, strict=False):
        curves = curves_of(points, x="images", y=quantity)
        draw_bars(panel, curves[None], styles)
        panel.set_xscale("log")
        panel.set_xlim(images[0] / 1.6, images[-1] * 1.6)
        panel.set_xticks(images, [f"{count:g}" for count in images])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set(xlabel="labeled images per class", ylabel=quantity)
    return finish(figure)
