"""Plots of several runs show each seed and the mean in the unit of the heading, or a metric over what was swept."""

import numpy as np
import pytest
from scipy import stats

from ibreg.plots.comparison import _draw, _draw_sweep, comparison_plot, sweep_plot

ROWS = [
    {"run": "lr=0.1", "method": "none", "values": [0.1, 0.3]},
    {"run": "lr=0.1", "method": "hsic", "values": [0.2, None, float("nan")]},
    {"run": "lr=1", "method": "hsic", "values": [None]},
]
LONG = (
    "data=csv data.path=/home/somebody/measurements/of/the/third/campaign.csv data.target=concentration model.hidden="
)


def test_seeds_and_means_are_on_the_line_of_their_method():
    (axes,) = _draw(ROWS, "error (%)", 100).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["control", "hsic"]
    assert [text.get_text() for text in axes.texts] == ["lr=0.1"]
    seeds, mean, *of_hsic = axes.get_lines()
    np.testing.assert_allclose(seeds.get_xdata(), [10, 30])
    np.testing.assert_allclose(mean.get_xdata(), [20])
    np.testing.assert_allclose(of_hsic[0].get_xdata(), [20])
    control, hsic = axes.get_yticks()
    assert set(seeds.get_ydata()) == set(mean.get_ydata()) == {control}
    assert set(of_hsic[0].get_ydata()) == {hsic}
    assert axes.get_xlabel() == "error (%)"


@pytest.mark.parametrize("length", [20, 200, 900])
def test_long_names_of_runs_are_whole_and_leave_the_axes_their_width(length):
    names = [(LONG * 9)[:length] + f" lr={number}" for number in range(3)]
    rows = [{"run": name, "method": method, "values": [1, 2]} for name in names for method in ("none", "hsic")]
    figure = _draw(rows, "error (%)", 1)
    figure.draw_without_rendering()  # a layout that collapses is a warning, and so an error
    (axes,) = figure.axes
    assert [text.get_text().replace("\n", "") .replace(" ", "") for text in axes.texts] == [
        name.replace(" ", "") for name in names
    ]  # fmt: skip
    assert axes.get_position().width > 0.7
    inside = figure.bbox
    for text in axes.texts:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert box.y1 <= inside.y1


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no row has a finite value"):
        comparison_plot(ROWS[2:], tmp_path / "p.png", heading="error")
    with pytest.raises(ValueError, match="no row has a finite value"):
        sweep_plot([{"value": 1, "method": "none", "values": [None]}], tmp_path / "p.png", swept="lr", heading="error")
    assert not list(tmp_path.iterdir())


def swept(numbers, values=(0.1, 0.2, 0.4)):
    return [
        {"value": number, "method": method, "values": [value + place for value in values]}
        for place, number in enumerate(numbers)
        for method in ("none", "hsic")
    ]


def test_a_sweep_is_drawn_over_its_number_with_the_interval_over_seeds():
    (axes,) = _draw_sweep(swept([0.001, 0.01, 0.1]), "lr", "error (%)", 100).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == ["control", "hsic"]
    np.testing.assert_allclose(lines["hsic"].get_xdata(), [0.001, 0.01, 0.1])
    np.testing.assert_allclose(lines["hsic"].get_ydata(), 100 * (np.mean([0.1, 0.2, 0.4]) + np.arange(3)))
    band = axes.collections[0].get_paths()[0].vertices
    values = [10, 20, 40]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    low, high = max(low, 0), min(high, 100)
    edges = band[np.isclose(band[:, 0], 0.001), 1]
    assert (edges.min(), edges.max()) == (pytest.approx(low), pytest.approx(high))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("lr", "error (%)")


def test_intervals_of_two_seeds_do_not_squeeze_the_lines():
    axes = _draw_sweep(swept([1, 2], [0.5, 0.6]), "lr", "loss", 1).axes[0]
    assert axes.get_ylim() == pytest.approx((0.5 - 0.11, 1.6 + 0.11))
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() > 1.6 + 0.11  # another unit than percent has no limits


@pytest.mark.parametrize(
    ("numbers", "scale"),
    [
        ([0.001, 0.01, 0.1], "log"),
        ([1, 2, 4], "linear"),
        ([0, 0.01, 1], "linear"),
        ([-1, 10], "linear"),
        ([5], "linear"),
    ],
)
def test_numbers_over_decades_get_a_logarithmic_axis_with_plain_numbers(numbers, scale):
    figure = _draw_sweep(swept(numbers), "lr", "error", 1)
    figure.draw_without_rendering()
    assert figure.axes[0].get_xscale() == scale
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels(which="both")]
    assert not any("$" in tick for tick in ticks)


def test_a_diverged_seed_leaves_a_gap_and_one_seed_has_no_band(tmp_path):
    rows = swept([1, 2, 3])
    rows[2]["values"] = [0.1, None, 0.2]
    axes = _draw_sweep(rows, "lr", "error", 1).axes[0]
    assert [line.get_xdata().tolist() for line in axes.get_lines()][:2] == [[1], [3]]
    assert sweep_plot(swept([1, 2], [0.1]), tmp_path / "one.png", swept="lr", heading="error").is_file()
