"""Plots of what few labeled images are enough for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ibreg.plots.classification import finish, method_label, method_styles, panel_grid, write_png


def images_curve(points: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draws every quantity over the labeled images of each class, per method the mean over seeds and its spread.

    Bars go from the least to the greatest seed. Methods stand side by side, so that bars do not cover each other.

    Args:
        points: One per method, seed and number of images: ``method``, ``seed``, ``images`` (of each class); every other key
            is a quantity in percent.
        path: Where the PNG goes.

    Raises:
        ValueError: If there is no point.

    Example:
        >>> import tempfile
        >>> points = [{"method": "none", "seed": 0, "images": k, "accuracy (%)": 50 + k} for k in (5, 20)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images_curve(points, f"{folder}/images.png").name
        'images.png'
    """
    return write_png(_draw_images_curve(points), path)


def _draw_images_curve(points: Sequence[Mapping[str, Any]]) -> Figure:
    if not points:
        raise ValueError("there is nothing to draw: no points")
    quantities = [key for key in points[0] if key not in ("method", "seed", "images")]
    styles = method_styles(point["method"] for point in points)
    images = sorted({point["images"] for point in points})
    height, width = panel_grid(len(quantities), most=2)
    figure = Figure(figsize=(5.2 * width, 3.6 * height + 0.7), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).flat
    # Side by side within a tenth of the way from one number of images to the next.
    steps = np.log(images[1:]) - np.log(images[:-1]) if len(images) > 1 else np.array([1.0])
    places = np.linspace(-0.1, 0.1, len(styles))
    shifts = np.exp(steps.min() * (places - places.mean()))
    for panel, quantity in zip(panels, quantities, strict=False):
        for shift, (method, style) in zip(shifts, styles.items(), strict=True):
            values = [
                np.array([p[quantity] for p in points if p["method"] == method and p["images"] == count])
                for count in images
            ]
            mean = np.array([each.mean() for each in values])
            bars = [mean - [each.min() for each in values], [each.max() for each in values] - mean]
            panel.errorbar(
                np.array(images) * shift,
                mean,
                bars,
                **style,
                markersize=4,
                linewidth=1,
                capsize=2,
                label=method_label(method),
            )
        panel.set_xscale("log")
        panel.set_xlim(images[0] / 1.6, images[-1] * 1.6)
        panel.set_xticks(images, [str(count) for count in images])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set(xlabel="labeled images of each class", ylabel=quantity)
        panel.grid(alpha=0.3)
    return finish(figure)
