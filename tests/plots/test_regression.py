"""Plots of regression: PNG files, and figures with the expected points, lines and bands."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from ibreg.plots import regression as plots

METHODS = ("none", "null", "variational", "hsic", "nonlinear")


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    truth = rng.normal(10, 3, 300)
    return {
        method: (truth + rng.normal(place / 10, 1, 300), truth[:, None])
        for place, method in enumerate(METHODS[2:] + METHODS[:2])
    }


@pytest.fixture
def rows():
    """Rows as `csv.DictReader` returns them: strings, empty if a value is missing."""
    return [
        {
            "method": method,
            "seed": str(seed),
            "epoch": str(epoch),
            "validation/cs_qmi": str((10 + seed) / epoch),
            "validation/rate": str(100 / epoch) if method == "variational" else "",
            "validation/information": str(epoch / 10 + seed),
        }
        for method in METHODS
        for seed in (1, 3)
        for epoch in (1, 2, 3, 4)
    ]


@pytest.fixture
def points():
    return [
        {"method": method, "seed": seed, "attack": attack, "eps": eps, "rmse": 1 + seed + eps}
        for method in METHODS
        for seed in (0, 1, 5)
        for attack in ("FGSM", "PGD-40")
        for eps in (0.3, 0.0, 0.1)
    ]


def labeled(panel):
    return {line.get_label(): line for line in panel.get_lines()}


def shown(figure):
    return [panel for panel in figure.axes if panel.get_visible()]


def test_every_plot_is_a_png_and_leaves_global_state_alone(tmp_path, predictions, rows, points):
    before = dict(matplotlib.rcParams)
    written = [
        plots.prediction_plot(predictions, tmp_path / "predictions.png", quantity="price (€)"),
        plots.residual_plot(predictions, str(tmp_path / "residuals.png"), quantity="price (€)"),
        plots.information_plane(rows, tmp_path / "plane.png"),
        plots.attack_curves(points, tmp_path / "attacks.png", unit="€"),
    ]
    assert written == [tmp_path / f"{name}.png" for name in ("predictions", "residuals", "plane", "attacks")]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert path.stat().st_size > 10_000
    assert dict(matplotlib.rcParams) == before


def test_predictions_are_drawn_over_targets_the_control_first(predictions):
    figure = plots._draw_predictions(predictions, "price (€)")
    assert figure.get_suptitle() == "price (€), seeds pooled"
    panels = shown(figure)
    labels = ["control", "second initialization", "variational", "hsic", "nonlinear"]
    assert [panel.get_title().split("\n")[0] for panel in panels] == labels
    for method, panel in zip(METHODS, panels, strict=True):
        predicted, truth = predictions[method]
        np.testing.assert_allclose(panel.collections[0].get_offsets(), np.column_stack([truth[:, 0], predicted]))
        rmse = math.sqrt(((predicted - truth[:, 0]) ** 2).mean())
        assert f"RMSE {rmse:.4g}" in panel.get_title()
        assert (panel.get_xlabel(), panel.get_xlim()) == ("truth", panels[0].get_xlim())
        line = labeled(panel)["agreement"]
        assert line.get_slope() == 1
        assert line.get_xy1()[0] == line.get_xy1()[1]


def test_residuals_have_their_mean_along_the_prediction(predictions):
    for method, panel in zip(METHODS, shown(plots._draw_residuals(predictions, "price (€)")), strict=True):
        predicted, truth = predictions[method][0], predictions[method][1][:, 0]
        offsets = panel.collections[0].get_offsets()
        np.testing.assert_allclose(offsets, np.column_stack([predicted, predicted - truth]))
        across, mean = labeled(panel)["mean"].get_data()
        assert len(across) == plots.RESIDUAL_BINS
        assert (np.diff(across) > 0).all()
        assert mean.mean() == pytest.approx((predicted - truth).mean())  # 300 samples fill the bins evenly
        lowest = np.argsort(predicted)[:20]
        assert (across[0], mean[0]) == pytest.approx((predicted[lowest].mean(), (predicted - truth)[lowest].mean()))


@pytest.mark.parametrize("plot", [plots.prediction_plot, plots.residual_plot])
def test_prediction_plots_need_finite_predictions_and_a_method(tmp_path, plot):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot({}, tmp_path / "plot.png", quantity="price")
    with pytest.raises(ValueError, match="finite"):
        plot({"none": (np.array([1, math.nan]), np.array([1, 2]))}, tmp_path / "plot.png", quantity="price")
    assert not list(tmp_path.iterdir())


def test_few_points_are_drawn_too(tmp_path):
    two = {"none": (np.array([1.0, 2.0]), np.array([1.5, 2.5]))}
    assert plots.residual_plot(two, tmp_path / "plot.png", quantity="price").stat().st_size > 5_000


def test_the_trajectory_through_the_plane_is_the_mean_over_seeds_from_hollow_to_filled(rows):
    (panel,) = plots._draw_information_plane(rows, "validation/cs_qmi", "validation/information").axes
    trajectory, first, last = panel.get_lines()[:3]
    np.testing.assert_allclose(trajectory.get_xdata(), [12 / epoch for epoch in (1, 2, 3, 4)])
    np.testing.assert_allclose(trajectory.get_ydata(), [2 + epoch / 10 for epoch in (1, 2, 3, 4)])
    assert (*first.get_data(), first.get_markerfacecolor()) == (12, 2.1, "white")
    assert (*last.get_data(), last.get_label()) == (3, 2.4, "control")
    assert panel.get_xlabel() == "CS-QMI(X;Z) (nats)"
    assert "log(var y / MSE)" in panel.get_ylabel()
    assert [label for label in labeled(panel) if not label.startswith("_")] == [
        "control", "second initialization", "variational", "hsic", "nonlinear",
    ]  # fmt: skip


def test_the_plane_leaves_out_what_has_no_rate_and_keeps_the_colors(rows):
    (panel,) = plots._draw_information_plane(rows, "validation/rate", "validation/information").axes
    (name,) = [label for label in labeled(panel) if not label.startswith("_")]
    assert name == "variational"
    assert panel.get_xlabel() == "rate: I(X;Z), upper bound (nats)"
    (other,) = plots._draw_information_plane(rows, "validation/cs_qmi", "validation/information").axes
    assert to_hex(labeled(panel)[name].get_color()) == to_hex(labeled(other)[name].get_color())


def test_the_plane_skips_epochs_without_a_finite_value(rows):
    rows[1] |= {"validation/cs_qmi": "nan"}
    rows[2] |= {"validation/information": ""}
    rows[6] |= {"validation/information": ""}
    (panel,) = plots._draw_information_plane(rows, "validation/cs_qmi", "validation/information").axes
    np.testing.assert_allclose(panel.get_lines()[0].get_xdata(), [12, 3])


@pytest.mark.parametrize(("largest", "scale"), [(9, "linear"), (4000, "log")])
def test_a_wide_plane_is_logarithmic_with_plain_numbers(rows, largest, scale):
    rows[0] |= {"validation/cs_qmi": str(largest)}
    figure = plots._draw_information_plane(rows, "validation/cs_qmi", "validation/information")
    (panel,) = figure.axes
    assert panel.get_xscale() == scale
    figure.draw_without_rendering()
    ticks = [label.get_text() for label in panel.get_xticklabels(which="both") if label.get_text()]
    assert ticks
    assert not any("10^" in text for text in ticks)


@pytest.mark.parametrize("compression", ["validation/cs_qmi", "validation/nothing"])
def test_the_plane_needs_a_point(tmp_path, rows, compression):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.information_plane(
            rows if "nothing" in compression else [], tmp_path / "plane.png", compression=compression
        )


def test_attacks_have_a_panel_each_with_mean_and_band_over_seeds(points):
    figure = plots._draw_attack_curves(points, "€", "standard deviations")
    fgsm, pgd = shown(figure)
    assert [fgsm.get_title(), pgd.get_title()] == ["FGSM", "PGD-40"]
    assert fgsm.get_ylabel() == "RMSE (€)"
    assert fgsm.get_xlabel() == "eps (standard deviations)"
    assert list(labeled(pgd)) == ["control", "second initialization", "variational", "hsic", "nonlinear"]
    line = labeled(pgd)["hsic"]
    np.testing.assert_allclose(line.get_xdata(), [0, 0.1, 0.3])
    np.testing.assert_allclose(line.get_ydata(), [3, 3.1, 3.3])
    band = pgd.collections[3].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (1, 6.3)


def test_attack_curves_need_finite_points(tmp_path, points):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.attack_curves([], tmp_path / "attacks.png")
    with pytest.raises(ValueError, match="finite"):
        plots.attack_curves([points[0] | {"rmse": math.inf}], tmp_path / "attacks.png")
    assert not list(tmp_path.iterdir())
