"""Classification plots: PNG files, and figures with the expected lines, bars and notes."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from ibreg.evaluation.classification.metrics import calibration_bins, classification_metrics
from ibreg.plots import classification as plots
from ibreg.plots.style import method_label

METHODS = ("none", "null", "variational", "hsic")


@pytest.fixture
def rows():
    """Rows as `csv.DictReader` returns them: strings, empty if a value is missing."""
    return [
        {
            "method": method,
            "seed": str(seed),
            "epoch": str(epoch),
            "train/loss": str(seed + 1 / epoch),
            "validation/rate": str(epoch) if method == "variational" else "",
            "validation/nothing": "",
            "validation/none": None,
        }
        for method in METHODS
        for seed in (1, 2, 6)
        for epoch in (1, 2, 3, 4)
    ]


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    return {method: (rng.dirichlet(np.ones(4), 300), rng.integers(0, 4, 300)) for method in METHODS[2:] + METHODS[:2]}


@pytest.fixture
def points():
    return [
        {"method": method, "beta": 10.0**-power, "rate": scale * 4.0**power / 100, "information": 1.0, "accuracy": 0.9}
        for method, scale in (("variational", 1), ("nonlinear", 1.05))
        for power in range(6)
    ]


def labeled(panel):
    return {line.get_label(): line for line in panel.get_lines()}


def test_every_plot_is_a_png_and_leaves_global_state_alone(tmp_path, rows, predictions, points):
    before = dict(matplotlib.rcParams)
    written = [
        plots.learning_curves(rows, tmp_path / "curves.png"),
        plots.reliability_diagram(predictions, str(tmp_path / "reliability.png")),
        plots.information_curve(points, tmp_path / "information.png", label_entropy=1.4),
    ]
    assert written == [tmp_path / f"{name}.png" for name in ("curves", "reliability", "information")]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert path.stat().st_size > 10_000
    assert dict(matplotlib.rcParams) == before


def test_learning_curves_have_a_panel_per_measured_quantity_and_a_line_per_method(rows):
    figure = plots._draw_learning_curves(rows, {})
    loss, rate = (panel for panel in figure.axes if panel.get_visible())
    assert [loss.get_ylabel(), rate.get_ylabel()] == ["training loss", "validation rate of the code\n(nats)"]
    assert loss.get_xlabel() == "epoch"
    assert list(labeled(loss)) == ["control", "second initialization", "variational", "hsic"]
    assert list(labeled(rate)) == ["variational"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(labeled(loss))


def test_learning_curves_are_mean_and_band_over_seeds(rows):
    panel = plots._draw_learning_curves(rows, {}).axes[0]
    line = labeled(panel)["control"]
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(line.get_ydata(), [3 + 1 / epoch for epoch in (1, 2, 3, 4)])
    band = panel.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1.25, 7)


def test_learning_curves_take_a_single_epoch_an_unfinished_seed_and_a_diverged_one(tmp_path, rows):
    single = plots._draw_learning_curves([row for row in rows if row["epoch"] == "1"], {})
    assert labeled(single.axes[0])["control"].get_marker() == "o"
    broken = [row for row in rows if (row["seed"], row["epoch"]) != ("6", "4")]
    broken[1] |= {"train/loss": "nan"}
    broken[2] |= {"train/loss": "inf"}
    panel = plots._draw_learning_curves(broken, {}).axes[0]
    color = labeled(panel)["control"].get_color()
    segments = [line.get_xydata().tolist() for line in panel.get_lines() if line.get_color() == color]
    assert segments == [[[1, 4]], [[4, 1.75]]]  # a gap where a seed diverged, not the mean of the others
    assert plots.learning_curves(broken, tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("rows", [[], [{"method": "none", "seed": 0, "epoch": 1, "train/loss": ""}]])
def test_learning_curves_need_a_value(tmp_path, rows):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.learning_curves(rows, tmp_path / "curves.png")


def test_reliability_diagrams_show_the_gap_and_the_error(predictions):
    figure = plots._draw_reliability_diagram(predictions)
    diagrams, histograms = figure.axes[:4], figure.axes[4:]
    for method, diagram, histogram in zip(METHODS, diagrams, histograms, strict=True):
        error = 100 * classification_metrics(*predictions[method])["ece"]
        assert diagram.get_title() == f"{method_label(method)}\nECE of pooled seeds {error:.2f} %"
        accuracy, gap = diagram.containers
        faint = [bar.get_facecolor()[3] < 1 for bar in accuracy]
        assert faint == [count < plots.FEW for count in calibration_bins(*predictions[method])[0]]
        tops = [bar.get_y() + bar.get_height() for bar in gap if not math.isnan(bar.get_height())]
        centers = [bar.get_x() + bar.get_width() / 2 for bar in gap if not math.isnan(bar.get_height())]
        np.testing.assert_allclose(tops, centers, atol=0.5 / 15)
        shares = [bar.get_height() for bar in histogram.containers[0]]
        assert sum(shares) == pytest.approx(1)
        weighted = [s * abs(bar.get_height()) for s, bar in zip(shares, gap, strict=True) if s > 0]
        assert 100 * sum(weighted) == pytest.approx(error)
        assert len(accuracy) == 15


def test_reliability_diagrams_need_a_method(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.reliability_diagram({}, tmp_path / "reliability.png")


def test_information_curve_has_both_upper_limits_and_a_beta_beside_every_point(points):
    plane, accuracy = plots._draw_information_curve(points, label_entropy=1.4).axes
    lines = labeled(plane)
    assert set(lines["H(Y)"].get_ydata()) == {1.4}
    rates, diagonal = lines["I(Z;Y) = I(Z;X)"].get_data()
    np.testing.assert_array_equal(diagonal[rates <= 1.4], rates[rates <= 1.4])
    assert np.isnan(diagonal[rates > 1.4]).all()
    assert {lines[label].get_linestyle() for label in ("H(Y)", "I(Z;Y) = I(Z;X)")} == {"--"}
    assert sorted(note.get_text() for note in plane.texts) == sorted(
        2 * ["1", "0.1", "0.01", "0.001", "0.0001", "1e-5"]
    )
    np.testing.assert_allclose(labeled(accuracy)["variational"].get_ydata(), 0.9)


def test_an_upper_limit_outside_of_the_plot_is_not_in_the_legend(points):
    for least, shown in ((0.5, True), (20.0, False)):
        chosen = [point | {"rate": least + place} for place, point in enumerate(points)]
        figure = plots._draw_information_curve(chosen, label_entropy=1.4)
        labels = {text.get_text() for text in figure.legends[0].get_texts()}
        assert ("I(Z;Y) = I(Z;X)" in labels) == shown
        assert "H(Y)" in labels


def test_the_axis_of_the_information_curve_names_the_bound_of_a_conditional_prior(points):
    label = plots._draw_information_curve(points, label_entropy=1.4).axes[1].get_xlabel()
    assert "I(Z;X), upper bound" in label
    assert "rate + H(Y)" in label


def test_betas_do_not_overlap(points):
    notes = plots._draw_information_curve(points, label_entropy=1.4).axes[0].texts
    boxes = [note.get_window_extent() for note in notes]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


@pytest.mark.parametrize(
    ("rates", "scale"),
    [((1, 2), "linear"), ((0.5, 200), "log"), ((0.0, 200), "symlog"), ((1e-6, 3), "symlog"), ((0.0, 1e-3), "linear")],
)
def test_rates_over_decades_get_a_logarithmic_axis(points, rates, scale):
    chosen = [points[0] | {"rate": rate} for rate in rates]
    assert plots._draw_information_curve(chosen, label_entropy=1.4).axes[0].get_xscale() == scale


def test_information_curve_needs_points_with_finite_numbers(tmp_path, points):
    path = tmp_path / "information.png"
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.information_curve([], path, label_entropy=1.4)
    with pytest.raises(ValueError, match="must be finite"):
        plots.information_curve([points[0] | {"information": math.nan}], path, label_entropy=1.4)
    assert not path.exists()


def test_colors_are_those_of_the_method_in_every_plot(rows, predictions):
    loss = plots._draw_learning_curves(rows, {}).axes[0]
    curves = {label: to_hex(line.get_color()) for label, line in labeled(loss).items()}
    assert len(set(curves.values())) == 4
    # Whatever else is there, and in another order.
    ordered = {method: predictions[method] for method in ("hsic", "variational")}
    bars = [to_hex(panel.patches[0].get_facecolor()) for panel in plots._draw_reliability_diagram(ordered).axes[:2]]
    assert bars == [curves["hsic"], curves["variational"]]


def test_the_control_is_drawn_over_other_lines_and_equal_lines_show_through_its_gaps(rows):
    lines = labeled(plots._draw_learning_curves(rows, {}).axes[0])
    assert lines["control"].get_zorder() > max(lines[method].get_zorder() for method in ("variational", "hsic"))
    assert lines["control"].get_linestyle() == "--"


@pytest.mark.parametrize(
    ("quantity", "label"),
    [
        ("train/loss", "training loss"),
        ("validation/nll", "validation NLL (nats)"),
        ("validation/rmse", "validation RMSE, price (€)"),
        ("validation/concept_auroc", "validation concept AUROC (fraction)"),
        ("test/rows_per_class", "test rows per class"),
    ],
)
def test_axes_of_learning_curves_are_named_in_words_with_units(quantity, label):
    rows = [{"method": "none", "seed": 0, "epoch": 1, quantity: 1.0}]
    panel = plots._draw_learning_curves(rows, {"rmse": "price (€)"}).axes[0]
    assert panel.get_ylabel().replace("\n", " ") == label


def test_the_information_curve_says_what_it_bounds(points):
    figure = plots._draw_information_curve(points, label_entropy=1.4)
    assert "at most the information on the horizontal axis" in figure.get_suptitle().replace("\n", " ")
    assert figure.axes[0].get_ylabel() == "I(Z;Y), lower bound: H(Y) - NLL (nats)"
