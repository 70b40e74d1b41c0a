"""Robustness plots: PNG files, and figures with the expected lines, bars and images."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats

from ibreg.evaluation.out_of_distribution import detection_metrics
from ibreg.plots import robustness as plots
from ibreg.plots.style import method_label

METHODS = ("variational", "null", "none", "hsic")


@pytest.fixture
def attacks():
    return [
        {
            "method": method,
            "seed": seed,
            "attack": attack,
            "eps": eps,
            "accuracy": 0.9 - eps * (1 + seed / 10 + place / 10),
        }
        for place, method in enumerate(METHODS)
        for seed in (0, 1, 2)
        for attack in ("FGSM", "PGD-40", "PGD-40, expectation of 10")
        for eps in (0.2, 0.0, 0.1)
    ]


@pytest.fixture
def corruptions():
    clean = [
        {"method": method, "seed": s, "kind": "clean", "severity": 0, "accuracy": 0.95}
        for method in METHODS
        for s in (0, 1)
    ]
    return clean + [
        {
            "method": method,
            "seed": seed,
            "kind": kind,
            "severity": severity,
            "accuracy": 0.9 - harm * severity - 0.01 * seed,
        }
        for method in METHODS
        for seed in (0, 1)
        for kind, harm in (("impulse_noise", 0.1), ("jpeg", 0.02))
        for severity in (1, 3, 5)
    ]


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    both = rng.normal(size=200), torch.as_tensor(rng.normal(2, 1, 300))
    return {"hsic": {"energy": both}, "none": {"energy": both}, "variational": {"energy": both, "rate": both}}


@pytest.fixture
def images():
    images = torch.rand(3, 3, 8, 8)
    predicted = {"clean": ["cat", "dog", "dog"], "FGSM": ["dog", "dog", "cat"], "PGD": ["dog", "cat", "cat"]}
    attacked = {"FGSM": (images + 0.1).clamp(0, 1), "PGD": (images - 0.2).clamp(0, 1)}
    return images, attacked, predicted, ["cat", "dog", "cat"]


def curves(panel):
    """The line of each method, and the caps of its bars."""
    lines = [line for line in panel.get_lines() if not line.get_label().startswith("_")]
    bars = [container.lines[1] for container in panel.containers]
    return {line.get_label(): (line, caps) for line, caps in zip(lines, bars, strict=True)}


def test_every_plot_is_a_png_and_leaves_global_state_alone(tmp_path, attacks, corruptions, scores, images):
    before = dict(matplotlib.rcParams)
    written = [
        plots.accuracy_under_attack(attacks, tmp_path / "attacks.png", samples=100),
        plots.accuracy_under_corruption(corruptions, str(tmp_path / "corruptions.png"), samples=100),
        plots.ood_histograms(
            scores, tmp_path / "ood.png", in_distribution="mnist", out_of_distribution="fashion_mnist"
        ),
        plots.attacked_images(*images, tmp_path / "images.png"),
    ]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert dict(matplotlib.rcParams) == before


# --- attacks


def test_each_attack_has_a_panel_with_a_curve_for_each_method(attacks):
    figure = plots._draw_attacks(attacks, samples=100)
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["FGSM", "PGD-40", "PGD-40, expectation of 10"]
    for panel in panels:
        lines = curves(panel)
        assert list(lines) == ["control", "second initialization", "variational", "hsic"]
        for place, method in enumerate(METHODS):
            line, caps = lines[method_label(method)]
            mean = [0.9 - eps * (1.1 + place / 10) for eps in (0.0, 0.1, 0.2)]
            assert line.get_ydata() == pytest.approx(mean)
            assert list(line.get_xdata()) == [0, 0.1, 0.2]  # eps can be read off
            values = [0.9 - 0.2 * (1 + seed / 10 + place / 10) for seed in (0, 1, 2)]
            expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
            assert [cap.get_ydata()[2] for cap in caps] == pytest.approx(list(expected))
    [legend] = figure.legends
    assert len(legend.get_texts()) == 4


# --- corruptions


def test_corruptions_are_averaged_over_kinds_and_over_severities(corruptions):
    figure = plots._draw_corruptions(corruptions, samples=100)
    by_severity, by_kind = figure.axes
    line, _ = curves(by_severity)["variational"]
    expected = [0.95, *(0.9 - 0.06 * severity - 0.005 for severity in (1, 3, 5))]
    assert line.get_ydata() == pytest.approx(expected)
    assert list(line.get_xdata()) == [0, 1, 3, 5]
    assert [text.get_text() for text in by_kind.get_yticklabels()] == ["impulse noise", "jpeg"]
    points = {line.get_label(): line for line in by_kind.get_lines()}
    assert points["hsic"].get_xdata() == pytest.approx([0.9 - 0.3 - 0.005, 0.9 - 0.06 - 0.005])
    assert list(points) == ["control", "second initialization", "variational", "hsic"]


def test_clean_accuracy_alone_is_nothing_to_draw(corruptions):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots._draw_corruptions([point for point in corruptions if point["severity"] == 0], samples=10)


# --- out-of-distribution inputs


def test_histograms_are_fractions_with_the_auroc_in_the_title(scores):
    figure = plots._draw_histograms(scores, "mnist", "fashion_mnist")
    visible = [panel for panel in figure.axes if panel.get_visible()]
    auroc = detection_metrics(*scores["none"]["energy"])["auroc"]
    assert [panel.get_title() for panel in visible] == [
        f"{method}: AUROC {auroc:.3f}" for method in ("control", "hsic", "variational", "variational")
    ]
    bars = [bar.get_height() for bar in visible[0].containers[0]]
    # The axis leaves half a percent out at either end.
    assert 0.98 <= sum(bars) <= 1
    assert visible[3].get_xlabel() == "rate of the code (nats)"


# --- images


def test_images_show_predictions_and_changes(images):
    images, attacked, predicted, truth = images
    figure = plots._draw_images(images, attacked, predicted, truth, (0.0, 1.0))
    panels = np.array(figure.axes).reshape(5, 3)
    assert [panel.get_title() for panel in panels[0]] == predicted["clean"]
    assert [panel.get_title() for panel in panels[3]] == predicted["PGD"]
    incorrect = [panel.title.get_color() != "black" for panel in panels[1]]
    assert incorrect == [True, False, False]
    np.testing.assert_allclose(panels[0, 1].get_images()[0].get_array(), images[1].permute(1, 2, 0))
    change = (attacked["PGD"] - images).mean(1)[2]
    np.testing.assert_allclose(panels[4, 2].get_images()[0].get_array(), change, atol=1e-6)


def test_images_of_another_range_are_shown_from_black_to_white(images):
    images, attacked, predicted, truth = images
    wide = {name: 2 * each - 1 for name, each in attacked.items()}
    figure = plots._draw_images(2 * images - 1, wide, predicted, truth, (-1.0, 1.0))
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_array(), images[0].permute(1, 2, 0), atol=1e-6)


# --- wrong use


def test_nothing_to_draw_is_an_error(images):
    images, attacked, predicted, truth = images
    with pytest.raises(ValueError, match="nothing to draw"):
        plots._draw_attacks([], samples=10)
    with pytest.raises(ValueError, match="nothing to draw"):
        plots._draw_histograms({"none": {}}, "a", "b")
    with pytest.raises(ValueError, match="images must be"):
        plots._draw_images(images[:0], {}, {"clean": []}, [], (0.0, 1.0))
    with pytest.raises(ValueError, match=r"\[2, 3\] samples"):
        plots._draw_images(images, attacked, predicted | {"PGD": ["cat"] * 2}, truth, (0.0, 1.0))
    with pytest.raises(ValueError, match="must be finite"):
        plots._draw_attacks(
            [{"method": "none", "seed": 0, "attack": "PGD", "eps": 0.1, "accuracy": math.nan}], samples=10
        )
