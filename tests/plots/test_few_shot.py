"""Accuracy over labeled images: lines and bars are those of the points."""

import pytest

from ibreg.plots.few_shot import _draw_images_curve, images_curve

POINTS = [
    {"method": method, "seed": seed, "images": images, "accuracy (%)": base + seed + images / 10, "ece (%)": base / 10}
    for method, base in (("none", 50), ("dropout", 55), ("variational", 60))
    for images in (5, 50, 500)
    for seed in (0, 4)
]


def test_lines_are_means_over_seeds_and_bars_reach_from_the_least_to_the_greatest():
    figure = _draw_images_curve(POINTS)
    panel = figure.axes[0]
    lines = [line for line in panel.get_lines() if not line.get_label().startswith("_")]
    for line, container, base in zip(lines, panel.containers, (50, 55, 60), strict=True):
        _, _, (bars,) = container.lines
        assert line.get_ydata().tolist() == pytest.approx([base + 2 + images / 10 for images in (5, 50, 500)])
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert ends == [pytest.approx([base + images / 10, base + 4 + images / 10]) for images in (5, 50, 500)]
        assert line.get_xdata().tolist() == [5, 50, 500]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["5", "50", "500"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy (%)", "ece (%)"]


def test_bars_are_inside_the_axes():
    panel = _draw_images_curve(POINTS).axes[0]
    low, high = panel.get_ylim()
    assert low < 50.5
    assert high > 114
    assert panel.get_xscale() == "log"


def test_one_number_of_images_is_drawn_too(tmp_path):
    assert images_curve([point for point in POINTS if point["images"] == 5], tmp_path / "one.png").is_file()


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no points"):
        images_curve([], tmp_path / "none.png")
