"""Plots of continual learning: PNG files, and figures with the expected curves, bands and regions."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy import stats

from ibreg.plots import continual as plots

METHODS = ("none", "null", "mlp", "joint", "key_value")


@pytest.fixture
def curves():
    rng = np.random.default_rng(0)
    return {method: rng.random((3, 2 if method == "joint" else 5)).tolist() for method in METHODS}


@pytest.fixture
def regions():
    rng = np.random.default_rng(0)
    answers = {
        method: rng.integers(0, 4, (1 if method == "joint" else 2, 6, 6)) for method in ("none", "joint", "key_value")
    }
    targets = np.repeat(np.arange(4), 5)
    return answers, rng.normal(size=(20, 2)), targets, [(2, 0), (1, 3)]


def lines(panel):
    return {line.get_label(): line for line in panel.get_lines()}


def test_a_curve_is_the_mean_over_seeds_and_its_band_the_95_percent_interval(curves):
    (panel,) = plots._draw_accuracy(curves, chance=0.2).axes
    found = lines(panel)
    labels = {"linear probe", "second initialization", "mlp", "joint (all classes at once)", "key_value", "chance"}
    assert set(found) == labels
    assert found["mlp"].get_xdata().tolist() == [0, 1, 2, 3, 4]
    assert found["mlp"].get_ydata() == pytest.approx(np.mean(curves["mlp"], axis=0))
    band = panel.collections[list(found).index("mlp")].get_paths()[0].vertices
    for split in range(5):
        of_seeds = [seed[split] for seed in curves["mlp"]]
        low, high = stats.t.interval(0.95, 2, loc=np.mean(of_seeds), scale=stats.sem(of_seeds))
        edges = band[band[:, 0] == split][:, 1]
        assert (edges.min(), edges.max()) == (pytest.approx(max(low, 0)), pytest.approx(min(high, 1)))


def test_a_method_trained_on_all_classes_at_once_is_a_horizontal_line(curves):
    (panel,) = plots._draw_accuracy(curves, chance=None).axes
    joint = lines(panel)["joint (all classes at once)"]
    assert joint.get_ydata() == pytest.approx([np.mean(curves["joint"], axis=0)[1]] * 5)
    assert joint.get_linestyle() == "--"


def test_one_split_is_no_horizontal_line():
    (panel,) = plots._draw_accuracy({"none": [[0.1, 0.9]]}, chance=None).axes
    assert lines(panel)["linear probe"].get_ydata().tolist() == [0.1, 0.9]


def test_a_method_has_one_color_in_both_plots_of_curves(curves):
    (accuracy,) = plots._draw_accuracy(curves, chance=None).axes
    (usage,) = plots._draw_usage({method: curves[method] if method == "key_value" else [] for method in METHODS}).axes
    assert set(lines(usage)) == {"key_value"}
    assert lines(usage)["key_value"].get_color() == lines(accuracy)["key_value"].get_color()
    assert lines(usage)["key_value"].get_ydata() == pytest.approx(np.mean(curves["key_value"], axis=0))


def test_regions_stand_under_the_points_of_the_classes_learned_so_far(regions):
    answers, points, targets, splits = regions
    figure = plots._draw_regions(answers, points, targets, splits, (-1, 1, -1, 1), list("abcd"))
    panels = np.array(figure.axes).reshape(3, 2)
    assert [[panel.get_visible() for panel in row] for row in panels] == [[True, True], [False, True], [True, True]]
    assert [row[column].get_ylabel() for row, column in zip(panels, (0, 1, 0), strict=True)] == [
        "linear probe", "joint", "key_value",
    ]  # fmt: skip
    assert [panel.get_title() for panel in panels[0]] == ["after c, a", "after b, d"]
    for row, stages in ((0, answers["none"]), (2, answers["key_value"])):
        for place, stage in enumerate(stages):
            (image,) = panels[row, place].get_images()
            assert np.array_equal(image.get_array(), stage)
            seen = [label for split in splits[: place + 1] for label in split]
            drawn = panels[row, place].collections
            assert len(drawn) == len(seen)
            for label, scatter in zip(seen, drawn, strict=True):
                assert np.array_equal(scatter.get_offsets(), points[targets == label])
                assert to_hex(scatter.get_facecolor()[0]) == plots.CLASS_COLORS[label].lower()
                # The same color as its region.
                assert to_hex(image.cmap(image.norm(label))) == plots.CLASS_COLORS[label].lower()
    assert panels[1, 1].get_images()[0].get_array().tolist() == answers["joint"][0].tolist()


def test_files_are_pngs(curves, regions, tmp_path):
    answers, points, targets, splits = regions
    paths = [
        plots.accuracy_over_splits(curves, tmp_path / "accuracy.png", chance=0.1),
        plots.key_usage({"key_value": curves["key_value"]}, tmp_path / "usage.png"),
        plots.decision_regions(
            answers, points, targets, splits, tmp_path / "regions.png", extent=(-1, 1, -1, 1), names=list("abcd")
        ),
    ]
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths)


def test_invalid_values_are_errors(regions, tmp_path):
    answers, points, targets, splits = regions
    path, place = tmp_path / "no.png", {"extent": (-1, 1, -1, 1), "names": list("abcd")}
    with pytest.raises(ValueError, match="no method has a curve"):
        plots.accuracy_over_splits({}, path)
    with pytest.raises(ValueError, match="curve of none must have one row per seed"):
        plots.accuracy_over_splits({"none": [[0.1, 0.2], [0.1]]}, path)
    with pytest.raises(ValueError, match="no method has keys"):
        plots.key_usage({"none": []}, path)
    with pytest.raises(ValueError, match="no method has regions"):
        plots.decision_regions({}, points, targets, splits, path, **place)
    with pytest.raises(ValueError, match=r"regions of \['none'\] must have a stage for each of the 2 splits"):
        plots.decision_regions({"none": np.zeros((3, 4, 4))}, points, targets, splits, path, **place)
    with pytest.raises(ValueError, match="at most 10 classes, got 11"):
        plots.decision_regions(answers, points, targets, splits, path, extent=(-1, 1, -1, 1), names=list("abcdefghijk"))
    assert not path.exists()
