"""Plots of concept runs: their contents, and PNG files for few and many concepts."""

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from ibreg.evaluation.concepts.curves import InterventionCurve
from ibreg.evaluation.concepts.policies import POLICIES
from ibreg.plots import concepts as concept_plots
from ibreg.plots.concepts import (
    MEASURES,
    ConceptSample,
    head_plot,
    intervention_plot,
    leakage_plot,
    sample_plot,
)


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


def test_curves_are_means_over_seeds_with_their_interval():
    seeds = [curve(seed) for seed in range(3)]
    figure = concept_plots._draw_interventions({"random": {"hard": seeds, "logit": seeds[:1]}}, {})
    panel = figure.axes[0]
    means = np.stack([each.mean for each in seeds])
    np.testing.assert_allclose(panel.lines[0].get_ydata(), means.mean(0))
    half = student_t.ppf(0.975, 2) * means.std(0, ddof=1) / np.sqrt(3)
    interval = np.stack([means.mean(0) - half, means.mean(0) + half], 1)
    np.testing.assert_allclose(bands(panel)[0], interval.clip(0, 1))
    # One seed: its own interval over orders.
    np.testing.assert_allclose(panel.lines[1].get_ydata(), seeds[0].mean)
    np.testing.assert_allclose(bands(panel)[1][:, 1], (seeds[0].mean + seeds[0].half_width).clip(0, 1))
    assert panel.get_title() == "random order"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["hard", "logit"]


def test_two_seeds_leave_the_axis_to_the_lines_and_bands_end_at_0_and_1():
    seeds = [curve(seed) for seed in range(2)]
    figure = concept_plots._draw_interventions({"coop": {"hard": seeds}, "greedy": {"hard": seeds}}, {"coop": 0.97})
    panel, other = figure.axes
    assert bands(panel).min() >= 0
    assert bands(panel).max() <= 1
    means = np.mean([each.mean for each in seeds], axis=0)
    low, high = panel.get_ylim()
    assert means.min() - 0.1 < low < means.min()
    assert 0.97 < high < 1.07
    labels = [line.get_label() for line in panel.lines]
    assert labels == ["hard", "control (no bottleneck)"]
    assert set(panel.lines[1].get_ydata()) == {0.97}
    assert [line.get_label() for line in other.lines] == ["hard"]
    assert panel.get_title().startswith("CooP: uncertain concepts")


@pytest.mark.parametrize(
    ("panel", "words"),
    [
        ("random, wrong values", "random order, wrong values"),
        ("uncertainty", "most uncertain concept first"),
        ("uncertainty, shifted", "most uncertain concept first, shifted"),
        ("expected_gain", "largest expected gain first: the decrease of the uncertainty about the class"),
        ("greedy", "oracle that knows the class: largest gain first"),
    ],
)
def test_policies_are_named_in_words(panel, words):
    figure = concept_plots._draw_interventions({panel: {"hard": [curve(0)]}}, {})
    assert figure.axes[0].get_title().replace("\n", " ") == words


def test_wrong_values_have_an_axis_of_their_own():
    high = InterventionCurve(np.array([[0.9, 0.95]]), np.array([0.0, 1.0]))
    ruined = InterventionCurve(np.array([[0.9, 0.0]]), np.array([0.0, 1.0]))
    curves = {"random": {"hard": [high]}, "coop": {"hard": [high]}, "random, wrong values": {"hard": [ruined]}}
    right, other, wrong = concept_plots._draw_interventions(curves, {}).axes[:3]
    assert right.get_ylim() == other.get_ylim() == pytest.approx((0.88, 0.97))
    assert wrong.get_ylim()[0] < 0


def test_every_policy_has_words():
    assert set(concept_plots.POLICIES) == set(POLICIES)


def test_leakage_shows_means_and_controls_of_what_was_measured():
    measured = {
        "hard": [{"ctl": 0.1, "ctl_control": 0.0, "sign": 0.9}, {"ctl": 0.3, "ctl_control": 0.1, "sign": 0.7}],
        "logit": [{"ctl": 0.8, "ctl_control": 0.0}, {"ctl": 0.6, "ctl_control": 0.0}],
    }
    panels = [panel for panel in concept_plots._draw_leakage(measured).axes if panel.get_visible()]
    titles = ["\n".join(panel.get_title().split("\n")[:-1]).replace("\n", " ") for panel in panels]
    assert titles == [MEASURES["sign"][0], MEASURES["ctl"][0]]
    assert [panel.get_title().split("\n")[-1][0] for panel in panels] == ["↑", "↓"]
    heights = [bar.get_height() for bar in panels[1].patches]
    np.testing.assert_allclose(heights, [0.2, 0.7])
    controls = [line.get_ydata()[0] for line in panels[1].lines if line.get_marker() == "D"]
    np.testing.assert_allclose(controls, [0.05, 0.0])
    assert len(panels[0].patches) == 1


def test_deviations_of_fractions_end_at_0_and_1():
    measured = {"hard": [{"sign": 1.0, "ctl": 0.0}, {"sign": 0.8, "ctl": 0.4}]}
    sign, ctl = [panel for panel in concept_plots._draw_leakage(measured).axes if panel.get_visible()]
    ends = [panel.collections[0].get_segments()[0][:, 1].tolist() for panel in (sign, ctl)]
    np.testing.assert_allclose(ends, [[0.9 - np.std([1, 0.8], ddof=1), 1.0], [0.0, 0.2 + np.std([0, 0.4], ddof=1)]])


def test_heads_are_images_of_their_effects():
    effects = {"hard": torch.randn(3, 4), "logit": torch.randn(3, 4)}
    first = concept_plots._draw_heads(effects, list("abcd"), ["x", "y", "z"]).axes[0]
    centered = effects["hard"] - effects["hard"].mean(0)
    np.testing.assert_allclose(first.images[0].get_array(), centered)
    assert [text.get_text() for text in first.get_xticklabels()] == list("abcd")
    low, high = first.images[0].get_clim()
    assert -low == high == pytest.approx(float(centered.abs().max()))


def test_the_plot_of_heads_has_a_size_that_can_be_drawn_however_many_classes_there_are():
    few, many = (
        concept_plots._draw_heads({"hard": torch.randn(count, 4)}, list("abcd"), [str(row) for row in range(count)])
        for count in (30, 3_000)
    )
    assert many.get_figheight() == few.get_figheight() < 15
    assert many.axes[0].images[0].get_array().shape == (3_000, 4)


def sample(shape=(7,), labels=(1.0, torch.nan, 0.0)):
    added, values = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.9, 0.2, 0.4])
    return ConceptSample(17, torch.rand(shape), values, torch.tensor(labels), added, "3", "5")


NAMES = ["even", "prime", "loop"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (7,)])
def test_samples_show_input_concepts_and_contributions(shape):
    shown, found, added = concept_plots._draw_samples([sample(shape)] * 2, NAMES, {}, ()).axes[:3]
    assert shown.get_title() == "test row 17\npredicted 3\ntrue 5"
    np.testing.assert_allclose([bar.get_width() for bar in found.patches], [0.9, 0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose([bar.get_width() for bar in added.patches], [2, -1, 0])
    assert [text.get_text() for text in found.get_yticklabels()] == NAMES


def test_continuous_concepts_are_drawn_apart_from_probabilities():
    figure = concept_plots._draw_samples([sample()], NAMES, {"prime": (10.0, 5.0)}, ())
    _, probabilities, values, added = figure.axes
    assert [text.get_text() for text in probabilities.get_yticklabels()] == ["even", "loop"]
    assert [text.get_text() for text in values.get_yticklabels()] == ["prime\n11 (true unknown)"]
    np.testing.assert_allclose([bar.get_width() for bar in probabilities.patches], [0.9, 0.4], rtol=1e-6)
    assert (probabilities.get_xlabel(), values.get_xlabel()) == ("probability", "standard deviations from the mean")
    assert [text.get_text() for text in added.get_yticklabels()] == NAMES
    assert (
        len(concept_plots._draw_samples([sample()], NAMES, dict.fromkeys(NAMES, (0.0, 1.0)), ()).axes) == 3
    )  # no panel of probabilities


def test_columns_of_the_input_are_named():
    columns = [f"column {number}" for number in range(7)]
    named = concept_plots._draw_samples([sample()], NAMES, {}, columns).axes[0]
    assert [text.get_text() for text in named.get_yticklabels()] == columns
    bare = concept_plots._draw_samples([sample()], NAMES, {}, ()).axes[0]
    assert bare.get_xlabel() == "column of the input"


def test_many_names_are_left_out():
    names = [f"concept {number}" for number in range(60)]
    panel = concept_plots._draw_heads({"hard": torch.randn(2, 60)}, names, ["0", "1"]).axes[0]
    assert not {text.get_text() for text in panel.get_xticklabels()} & set(names)


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no curve of interventions"):
        intervention_plot({}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="no method has a measure"):
        leakage_plot({"none": [{}]}, tmp_path / "a.png")
    with pytest.raises(ValueError, match="no method has a head"):
        head_plot({}, tmp_path / "a.png", concepts=[], classes=[])
    with pytest.raises(ValueError, match="no sample"):
        sample_plot([], tmp_path / "a.png", concepts=[])
