"""The plot of several runs shows each seed and the mean, in the unit of the heading."""

import numpy as np
import pytest

from ibreg.plots.comparison import _draw, comparison_plot

ROWS = [
    {"run": "lr=0.1", "method": "none", "values": [0.1, 0.3]},
    {"run": "lr=0.1", "method": "hsic", "values": [0.2, None, float("nan")]},
    {"run": "lr=1", "method": "hsic", "values": [None]},
]


def test_seeds_and_means_are_on_the_line_of_their_method():
    (axes,) = _draw(ROWS, "error (%)", 100).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lr=0.1  control", "lr=0.1  hsic"]
    seeds, mean, *of_hsic = axes.get_lines()
    np.testing.assert_allclose(seeds.get_xdata(), [10, 30])
    np.testing.assert_allclose(mean.get_xdata(), [20])
    np.testing.assert_allclose(of_hsic[0].get_xdata(), [20])
    assert set(seeds.get_ydata()) == set(mean.get_ydata()) == {0}
    assert set(of_hsic[0].get_ydata()) == {1}
    assert axes.get_xlabel() == "error (%)"


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no row has a finite value"):
        comparison_plot(ROWS[2:], tmp_path / "p.png", heading="error")
    assert not list(tmp_path.iterdir())
