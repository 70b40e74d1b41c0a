"""The trials of a run, and the selection of grid points."""

import pytest

from ibreg.registry import names
from ibreg.runs.config.help import CONTROL_LAYERS
from ibreg.runs.tasks.finetuning import FinetuneConfig
from ibreg.runs.tasks.robustness.configuration import RobustnessConfig
from ibreg.runs.trials import (
    CONTROLS,
    Point,
    Trial,
    as_good_as,
    epochs_in_all,
    epochs_of,
    methods,
    option_of,
    plan,
    points_of,
    select,
)


def test_null_is_trained_at_the_selected_weight_decay_alone(configured):
    cfg = configured("tune=true", "grid.weight_decay=[0,1e-2,1e-1]", "seeds=[3,5]", "sweep.betas=[1]")
    comparison, sweep = plan(cfg)
    assert [trial.method for trial in comparison] == 6 * ["none"] + 6 * ["variational"]
    assert sweep == [Trial("variational", 3, 0.0, ("beta", 1.0), sweep=True)]

    def quality(trial):
        return (trial.weight_decay if trial.method == "none" else -trial.beta,)

    selected = select(cfg, comparison, quality)
    assert list(selected) == ["none", "null", "variational"]
    assert selected["none"] == [Trial("none", 3, 0.1), Trial("none", 5, 0.1)]
    assert selected["null"] == [Trial("null", 3, 0.1), Trial("null", 5, 0.1)]
    assert [trial.beta for trial in selected["variational"]] == [1e-4, 1e-4]
    trained = [*comparison, *selected["null"], *sweep]
    assert epochs_in_all(cfg) == sum(epochs_of(cfg, trial) for trial in trained)


def test_without_a_grid_every_method_has_one_trial_for_each_seed(configured):
    cfg = configured("seeds=[0,1]", "epochs=7", "sweep.betas=[]", "weight_decay=0.5")
    comparison, sweep = plan(cfg)
    selected = select(cfg, comparison, lambda trial: ())
    assert sweep == []
    assert selected["null"] == [Trial("null", 0, 0.5), Trial("null", 1, 0.5)]
    assert epochs_in_all(cfg) == 7 * 3 * 2


def test_without_a_control_there_is_no_null(configured):
    cfg = configured("control=false", "seeds=[0]", "epochs=7", "sweep.betas=[]")
    comparison, _ = plan(cfg)
    assert list(select(cfg, comparison, lambda trial: ())) == ["variational"]
    assert epochs_in_all(cfg) == 7


def test_all_methods_of_a_seed_except_null_share_their_randomness():
    assert Trial("none", 4, 0.0).key == Trial("variational", 4, 0.1, ("beta", 1.0)).key == (4, 0)
    assert Trial("null", 4, 0.0).key == (4, 1)


def test_a_bottleneck_may_have_a_grid_of_its_own(configured):
    grid = ["tune=true", "grid.beta=[1,2,3]", "+grid.betas.hsic=[4,5,6]"]
    comparison, _ = plan(configured(*grid, "bottlenecks=[variational,hsic]", "seeds=[0]", "sweep.betas=[]"))
    betas = {
        method: [trial.beta for trial in comparison if trial.method == method] for method in ("variational", "hsic")
    }
    assert betas == {"variational": [1, 2, 3], "hsic": [4, 5, 6]}


def test_without_a_grid_beta_is_chosen_around_that_of_each_bottleneck(configured):
    options = ["tune=true", "bottlenecks=[variational,hsic]", "bottleneck.variational.beta=0.5", "seeds=[0]"]
    comparison, _ = plan(configured(*options, "sweep.betas=[]"))
    betas = {
        method: [trial.beta for trial in comparison if trial.method == method] for method in ("variational", "hsic")
    }
    assert betas["variational"] == pytest.approx([0.05, 0.5, 5])
    assert betas["hsic"] == pytest.approx([0.1, 1, 10])


def test_a_control_stops_at_the_first_epoch_that_is_as_good_as_the_other_method(configured):
    control = [Trial("none", seed, 0.1) for seed in (0, 1, 2, 3)]
    other = [Trial("hsic", seed, 0.0, ("beta", 1.0)) for seed in (0, 1, 2, 3)]
    errors = dict(zip(control, [[5.0, 3.0, 2.0]] * 4, strict=True))
    # As good after two epochs, after all of them, never, and at once.
    errors |= dict(zip(other, [[9.0, 3.0], [2.5, 2.5], [1.0], [7.0]], strict=True))
    stopped = as_good_as(control, other, errors.__getitem__)
    assert stopped == [Trial("none", 0, 0.1, stop=2), control[1], control[2], Trial("none", 3, 0.1, stop=1)]
    assert [epochs_of(configured("epochs=7"), trial) for trial in stopped] == [2, 7, 7, 1]
    assert len({trial.name for trial in stopped}) == 4
    assert {trial.key for trial in stopped} == {trial.key for trial in control}


def test_dropout_is_a_control_that_is_tuned_in_pairs_with_weight_decay(configured):
    given = ["dropout=0.5", "grid.dropout=[0.1,0.2,0.3]", "grid.weight_decay=[0,1e-2,1e-1]", "grid.beta=null"]
    given += ["data.validation=0.1", "weight_decay=0", "bottlenecks=[variational]", "seeds=[3]"]
    cfg = configured(*given, "tune=true", keys=FinetuneConfig)
    comparison, _ = plan(cfg)
    tried = [trial for trial in comparison if trial.method == "dropout"]
    assert [(trial.value("dropout"), trial.weight_decay) for trial in tried] == [(0.1, 0.0), (0.2, 0.01), (0.3, 0.1)]
    assert len({trial.name for trial in comparison}) == len(comparison) == 9
    selected = select(cfg, comparison, lambda trial: (-abs((trial.value("dropout") or 0) - 0.2),))
    assert selected["dropout"] == [Trial("dropout", 3, 0.01, ("dropout", 0.2))]
    assert selected["dropout"][0].name == "dropout0.2-decay0.01-seed3"
    assert option_of(selected["dropout"][0]) == ("rate", 0.2)
    assert points_of(configured(*given, "tune=false", keys=FinetuneConfig), "dropout") == [Point(0.0, ("dropout", 0.5))]
    assert "dropout" not in {trial.method for trial in plan(configured("tune=true"))[0]}


def test_files_are_named_and_rows_identified_by_the_point():
    names = [
        (Trial("none", 0, 0.0), "none-decay0-seed0"),
        (Trial("variational", 1, 0.1, ("beta", 1e-3), sweep=True), "sweep-variational-beta0.001-decay0.1-seed1"),
        (Trial("none", 0, 0.0, stop=3), "none-decay0-seed0-stop3"),
    ]
    for trial, name in names:
        assert trial.name == name
    row = {"method": "hsic", "seed": 0, "weight_decay": 0.5, "beta": 2.0, "sweep": False, "stop": None}
    assert Trial("hsic", 0, 0.5, ("beta", 2.0)).row() == row
    assert Trial("dropout", 0, 0.5, ("dropout", 0.1)).row() == row | {"method": "dropout", "beta": None, "dropout": 0.1}


def test_a_control_with_weight_decay_is_a_method_of_its_own(configured):
    given = ["decayed_control=0.5", "bottlenecks=[hsic]", "seeds=[0,1]", "tune=true"]
    cfg = configured(*given, keys=RobustnessConfig)
    assert methods(cfg) == ["none", "null", "decayed", "hsic"]
    decayed = [trial for trial in plan(cfg)[0] if trial.method == "decayed"]
    assert [(trial.seed, trial.weight_decay) for trial in decayed] == [(0, 0.5), (1, 0.5)]
    chosen = select(cfg, plan(cfg)[0], lambda trial: (-trial.weight_decay,))
    assert chosen["decayed"] == decayed


def test_the_layers_that_help_leaves_out_are_those_whose_name_is_a_control():
    assert set(CONTROL_LAYERS) == set(names()) & set(CONTROLS)
