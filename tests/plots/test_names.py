"""Names of the user's in every plot: no name is a formula, is left out, or keeps a plot from being written."""

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from ibreg.evaluation.concepts.curves import InterventionCurve
from ibreg.plots import classification, comparison, concepts, continual, few_shot, regression, robustness
from ibreg.plots.panels import write_png
from ibreg.plots.style import plot_name

NAMES = (
    "sales_$_per_store_$", "US$_to_C$", "$$", r"$\foo$", "$x_$", r"\$5", "$\\frac{1}{$", "[red] a|b", "two\nlines\tand",
    "_id", "", "x" * 300, "年龄 größe_µm", "🦓 {} %s \\",
)  # fmt: skip
RNG = np.random.default_rng(0)
PREDICTED = (np.full((4, 2), 0.5), np.array([0, 1, 0, 1]))
CURVE = InterventionCurve(np.array([[0.5, 0.8], [0.5, 0.9]]), np.array([0.0, 1.0]))
SAMPLE = (torch.rand(2), torch.rand(2), torch.rand(2), torch.rand(2))


def sample_of(name):
    return concepts.ConceptSample(0, *SAMPLE, name, name)


# Each plot with one name wherever it takes names of the user's; methods are among them.
PLOTS = {
    "learning_curves": lambda n, path: classification.learning_curves(
        [{"method": n, "seed": 0, "epoch": e, "validation/rmse": e} for e in (1, 2)], path, units={"rmse": n}
    ),
    "reliability": lambda n, path: classification.reliability_diagram({n: PREDICTED}, path),
    "information": lambda n, path: classification.information_curve(
        [{"method": n, "beta": 1e-3, "rate": 10.0**r, "information": 1.0, "accuracy": 0.9} for r in (-3, 2)], path,
        label_entropy=1.4,
    ),
    "predictions": lambda n, path: regression.prediction_plot({n: (np.arange(4.0), np.arange(4.0))}, path, quantity=n),
    "residuals": lambda n, path: regression.residual_plot({n: (np.arange(4.0), np.arange(4.0))}, path, quantity=n),
    "plane": lambda n, path: regression.information_plane(
        [{"method": n, "seed": 0, "epoch": e, "validation/rate": 10.0**e, "validation/information": e} for e in (1, 4)],
        path, compression="validation/rate",
    ),
    "attack_curves": lambda n, path: regression.attack_curves(
        [{"method": n, "seed": 0, "attack": "PGD", "eps": e, "rmse": 1 + e} for e in (0, 0.1)], path, unit=n
    ),
    "attacks": lambda n, path: robustness.accuracy_under_attack(
        [{"method": n, "seed": 0, "attack": "PGD", "eps": e, "accuracy": 1 - e} for e in (0, 0.1)], path, samples=9
    ),
    "corruptions": lambda n, path: robustness.accuracy_under_corruption(
        [{"method": n, "seed": 0, "kind": "jpeg", "severity": s, "accuracy": 0.5} for s in (1, 2)], path, samples=9
    ),
    "ood": lambda n, path: robustness.ood_histograms(
        {n: {"energy": (RNG.random(20), RNG.random(20))}}, path, in_distribution=n, out_of_distribution=n
    ),
    "images": lambda n, path: robustness.attacked_images(
        torch.rand(2, 1, 4, 4), {n: torch.rand(2, 1, 4, 4)}, {"clean": [n, n], n: [n, n]}, [n, "0"], path
    ),
    "interventions": lambda n, path: concepts.intervention_plot({"random": {n: [CURVE]}}, path),
    "leakage": lambda n, path: concepts.leakage_plot({n: [{"ctl": 0.2}]}, path),
    "heads": lambda n, path: concepts.head_plot({n: torch.rand(2, 2)}, path, concepts=[n, n], classes=[n, "b"]),
    "samples": lambda n, path: concepts.sample_plot(
        [sample_of(n)], path, concepts=[n, f"{n}2"], units={n: (0.0, 1.0)}, inputs=[n, "b"]
    ),
    "splits": lambda n, path: continual.accuracy_over_splits({n: [[0.1, 0.2], [0.2, 0.3]]}, path, chance=0.1),
    "usage": lambda n, path: continual.key_usage({n: [[0.1, 0.2], [0.2, 0.3]]}, path),
    "regions": lambda n, path: continual.decision_regions(
        {n: np.zeros((1, 2, 2), int)}, np.zeros((2, 2)), np.array([0, 1]), [(0, 1)], path, extent=(-1, 1, -1, 1),
        names=[n, "b"],
    ),
    "images_curve": lambda n, path: few_shot.images_curve(
        [{"method": n, "seed": 0, "images": k, "accuracy (%)": k} for k in (5, 50)], path
    ),
    "comparison": lambda n, path: comparison.comparison_plot([{"run": n, "method": n, "values": [1]}], path, heading=n),
    "sweep": lambda n, path: comparison.sweep_plot(
        [{"value": v, "method": n, "values": [1]} for v in (1, 10)], path, swept=n, heading=n
    ),
}  # fmt: skip


def test_every_plot_is_tested():
    modules = (classification, comparison, concepts, continual, few_shot, regression, robustness)
    public = {
        name
        for module in modules
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__ and "path" in getattr(
            getattr(value, "__code__", None), "co_varnames", ()
        )
    }  # fmt: skip
    assert len(public) == len(PLOTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_takes_every_name(plot, name, tmp_path):
    assert PLOTS[plot](name, tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_shows_a_name_as_it_stands(plot, tmp_path, monkeypatch):
    """The quick sibling: no text is a formula, and the name with dollars is among the texts."""
    figures = []

    def keep(path, draw, *arguments):
        return write_png(path, lambda: figures.append(draw(*arguments)) or figures[0])

    for module in (classification, comparison, concepts, continual, few_shot, regression, robustness):
        monkeypatch.setattr(module, "write_png", keep)
    PLOTS[plot](r"_$\foo$ [red] 年", tmp_path / "plot.png")
    texts = figures[0].findobj(Text)
    assert not any(text.get_parse_math() for text in texts)
    assert any(r"_$\foo$ [red] 年" in text.get_text().replace("\n", " ") for text in texts)
    assert not any("mathdefault" in text.get_text() for text in texts)  # numbers of logarithmic axes


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sales_$_per_store_$", "sales_$_per_store_$"),
        ("two\r\nlines\x00", "two lines"),
        ("_id", " _id"),
        ("\t", "(no name)"),
        ("a" * 100, "a" * 24 + "…" + "a" * 23),
        ("temperature_min" + "x" * 100, "temperature_minxxxxxxxxx…" + "x" * 23),
        ("年龄", "年龄"),
    ],
)
def test_a_name_is_a_short_line(name, shown):
    assert plot_name(name) == shown
    assert len(plot_name(name)) <= 49


def test_a_name_with_an_underscore_is_in_the_legend():
    figure = few_shot._draw_images_curve([{"method": "_mine", "seed": 0, "images": 5, "accuracy (%)": 1}])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [" _mine"]
