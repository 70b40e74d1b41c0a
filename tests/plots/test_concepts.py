"""Plots of concept runs: their contents, and PNG files for few and many concepts."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from ibreg.evaluation.concepts.curves import InterventionCurve
from ibreg.plots import concepts as concept_plots
from ibreg.plots.concepts import (
    MEASURES,
    ConceptSample,
    head_plot,
    intervention_plot,
    leakage_plot,
    sample_plot,
)


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures that are written."""
    figures = []

    def keep(figure, path):
        figures.append(figure)
        figure.savefig(path, format="png", dpi=40)
        return path

    monkeypatch.setattr(concept_plots, "write_png", keep)
    return figures


def curve(seed, orders=5, steps=4):
    accuracy = np.sort(np.random.default_rng(seed).random((orders, steps + 1)), axis=1)
    return InterventionCurve(accuracy, np.linspace(0, 1, steps + 1))


def bands(panel):
    """The lower and upper edge of every band, at each place."""
    found = []
    for band in panel.collections:
        x, y = band.get_paths()[0].vertices.T
        found.append([(y[x == place].min(), y[x == place].max()) for place in np.unique(x)])
    return np.array(found)


def test_curves_are_means_over_seeds_with_their_interval(drawn, tmp_path):
    seeds = [curve(seed) for seed in range(3)]
    path = intervention_plot({"random": {"hard": seeds, "logit": seeds[:1]}}, tmp_path / "curves.png")
    assert path.stat().st_size > 1000
    panel = drawn[0].axes[0]
    means = np.stack([each.mean for each in seeds])
    np.testing.assert_allclose(panel.lines[0].get_ydata(), means.mean(0))
    half = student_t.ppf(0.975, 2) * means.std(0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(bands(panel)[0], np.stack([means.mean(0) - half, means.mean(0) + half], 1))
    # One seed: its own interval over orders.
    np.testing.assert_allclose(panel.lines[1].get_ydata(), seeds[0].mean)
    np.testing.assert_allclose(bands(panel)[1][:, 1], seeds[0].mean + seeds[0].half_width)
    assert panel.get_title() == "random"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["hard", "logit"]


def test_leakage_shows_means_and_controls_of_what_was_measured(drawn, tmp_path):
    measured = {
        "hard": [{"ctl": 0.1, "ctl_control": 0.0, "sign": 0.9}, {"ctl": 0.3, "ctl_control": 0.1, "sign": 0.7}],
        "logit": [{"ctl": 0.8, "ctl_control": 0.0}, {"ctl": 0.6, "ctl_control": 0.0}],
    }
    leakage_plot(measured, tmp_path / "leakage.png")
    panels = [panel for panel in drawn[0].axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == [MEASURES["sign"], MEASURES["ctl"]]
    heights = [bar.get_height() for bar in panels[1].patches]
    np.testing.assert_allclose(heights, [0.2, 0.7])
    controls = [line.get_ydata()[0] for line in panels[1].lines if line.get_marker() == "D"]
    np.testing.assert_allclose(controls, [0.05, 0.0])
    assert len(panels[0].patches) == 1


def test_heads_are_images_of_their_effects(drawn, tmp_path):
    effects = {"hard": torch.randn(3, 4), "logit": torch.randn(3, 4)}
    head_plot(effects, tmp_path / "heads.png", concepts=list("abcd"), classes=["x", "y", "z"])
    first = drawn[0].axes[0]
    centered = effects["hard"] - effects["hard"].mean(0)
    np.testing.assert_allclose(first.images[0].get_array(), centered)
    assert [text.get_text() for text in first.get_xticklabels()] == list("abcd")
    low, high = first.images[0].get_clim()
    assert -low == high == pytest.approx(float(centered.abs().max()))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (7,)])
def test_samples_show_input_concepts_and_contributions(drawn, tmp_path, shape):
    labels = torch.tensor([1.0, torch.nan, 0.0])
    added = torch.tensor([2.0, -1.0, 0.0])
    sample = ConceptSample(torch.rand(shape), torch.tensor([0.9, 0.2, 0.4]), labels, added, "3", "5")
    sample_plot([sample, sample], tmp_path / "samples.png", concepts=["even", "prime", "loop"])
    shown, found, added = drawn[0].axes[:3]
    assert shown.get_title() == "predicted 3\ntrue 5"
    np.testing.assert_allclose([bar.get_width() for bar in found.patches], [0.9, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose([bar.get_width() for bar in added.patches], [2, -1, 0])
    assert [text.get_text() for text in found.get_yticklabels()] == ["even", "prime", "loop"]


def test_many_names_are_left_out(drawn, tmp_path):
    names = [f"concept {number}" for number in range(60)]
    head_plot({"hard": torch.randn(2, 60)}, tmp_path / "heads.png", concepts=names, classes=["0", "1"])
    assert not {text.get_text() for text in drawn[0].axes[0].get_xticklabels()} & set(names)


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no curve of interventions"):
        intervention_plot({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="no method has a measure"):
        leakage_plot({"none": [{}]}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="no method has a head"):
        head_plot({}, tmp_path / "a.png", concepts=[], classes=[])
    with pytest.raises(ValueError, match="no sample"):
        sample_plot([], tmp_path / "a.png", concepts=[])
