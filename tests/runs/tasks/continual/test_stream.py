"""Trials, stages and snapshots of a run of continual learning, without the recipe around it."""

from functools import partial

import pytest
import torch

from ibreg.evaluation.continual import accuracy_matrix, forgetting
from ibreg.runs.comparison import rehearse
from ibreg.runs.data.rows import Rows
from ibreg.runs.tasks.continual.configuration import ContinualConfig
from ibreg.runs.tasks.continual.stream import (
    Stream,
    build_learner,
    measure,
    predicted_classes,
    random_stream,
    stream_task,
)
from ibreg.runs.tasks.continual.testing import examine
from ibreg.runs.trials import Trial, epochs_in_all, methods, plan, select, settings_of

CPU = torch.device("cpu")
SETTINGS = ["settings.none=[{lr:1},{lr:2}]", "settings.mlp=[{lr:1},{lr:2,hidden:[3]}]"]


@pytest.fixture
def cfg(configured):
    return partial(configured, keys=ContinualConfig)


@pytest.fixture
def stream():
    """Four classes at the corners of a square, two of them in each split."""
    targets = torch.arange(4).repeat(10)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])[targets]
    rows = Rows(corners, targets)
    return Stream(rows, rows, rows, None, corners, [(3, 0), (1, 2)], 4)


def trial(method, seed=0, index=0):
    return Trial(method, seed, setting=("setting", index))


def test_methods_and_their_settings(cfg):
    composed = cfg("learners=[mlp]", *SETTINGS, "settings.key_value=[{lr:1},{lr:2}]")
    assert methods(composed) == ["none", "null", "mlp", "key_value"]
    assert settings_of(composed, "null") == settings_of(composed, "none") == [{"lr": 1}, {"lr": 2}]
    assert settings_of(cfg("tune=false", *SETTINGS), "mlp") == [{"lr": 1}]
    assert methods(cfg("control=false", "learners=[]")) == ["key_value"]


def test_every_setting_is_tried_on_the_first_seeds_alone(cfg):
    comparison, sweep = plan(cfg("seeds=[4,7,9]", "tuning_seeds=2", "learners=[mlp]", "bottlenecks=[]", *SETTINGS))
    assert sweep == []
    assert {trial.method for trial in comparison} == {"none", "mlp"}
    tried = [(trial.value("setting"), trial.seed) for trial in comparison if trial.method == "mlp"]
    assert sorted(tried) == [(0, 4), (0, 7), (1, 4), (1, 7)]
    comparison, _ = plan(cfg("seeds=[4,7,9]", "tune=false", "learners=[mlp]", "bottlenecks=[]", *SETTINGS))
    assert [(trial.value("setting"), trial.seed) for trial in comparison if trial.method == "mlp"] == [
        (0, 4), (0, 7), (0, 9),
    ]  # fmt: skip


def test_the_best_setting_has_the_highest_mean_at_the_end_and_of_equal_ones_the_first(cfg):
    three = "[{lr:1},{lr:2},{lr:3}]"
    composed = cfg(
        "seeds=[0,1,5]", "tuning_seeds=2", "learners=[mlp]", "bottlenecks=[]", f"settings.mlp={three}",
        f"settings.none={three}",
    )  # fmt: skip
    ends = {0: (0.9, 0.1), 1: (0.6, 0.6), 2: (0.6, 0.6)}
    selected = select(composed, plan(composed)[0], lambda trial: (ends[trial.value("setting")][trial.seed],))
    assert selected["mlp"] == [trial("mlp", seed, 1) for seed in (0, 1, 5)]
    assert selected["null"] == [trial("null", seed, 1) for seed in (0, 1, 5)]
    # Three settings on two seeds and the selected one on the third, for two methods; the second initialization.
    assert epochs_in_all(composed, lambda cfg, trial: 1) == 2 * (3 * 2 + 1) + 3


def test_a_trial_is_named_and_seeded_by_what_it_is():
    trials = [trial(method, seed, index) for method in ("none", "null", "mlp") for seed in (0, 1) for index in (0, 1)]
    assert len({trial.name for trial in trials}) == 12
    assert trial("mlp", 3, 1).name == "mlp-setting1-seed3"
    assert trial("none", 3).key == trial("mlp", 3, 1).key != trial("null", 3).key


def test_options_of_a_learner_and_of_a_setting_meet(cfg, stream):
    composed = cfg(*SETTINGS, "learners=[mlp]", "bottlenecks=[]", "learner.mlp.hidden=[5]")
    first, second = (build_learner(composed, trial("mlp", 0, index), stream) for index in (0, 1))
    assert (first.network.trunk[1].out_features, second.network.trunk[1].out_features) == (5, 3)
    assert first.criterion.label_smoothing == 0.1
    few = "bottleneck.key_value.pairs=8"
    layer = build_learner(cfg(few, "+bottleneck.key_value.out_features=7"), trial("key_value"), stream).network.model
    assert (layer[0].out_features, layer[1].out_features) == (7, 4)
    assert len(build_learner(cfg(few), trial("key_value"), stream).network.model) == 1


def test_joint_gets_all_classes_at_once(cfg, stream):
    assert stream.stages("joint") == [(3, 0, 1, 2)]
    assert stream.stages("ewc") == [(3, 0), (1, 2)]
    stages = stream_task(cfg(), {0: stream}, CPU).stages(trial("ewc"))
    assert [rows.targets.unique().tolist() for rows in stages] == [[0, 3], [1, 2]]


def test_more_keys_than_unlabeled_rows_are_found_before_training(cfg):
    composed = cfg("learners=[]", "control=false", "tune=false")
    task = {
        unlabeled: stream_task(
            composed,
            dict.fromkeys(composed.seeds, random_stream(rows=32, features=2, classes=8, unlabeled=unlabeled)),
            CPU,
        )
        for unlabeled in (127, 128)
    }
    rehearse(composed, task[128])
    with pytest.raises(ValueError, match="setting 1 of key_value: 127 unlabeled rows are too few for 128 keys"):
        rehearse(composed, task[127])


def test_what_is_examined_is_the_network_at_every_stage(cfg, stream):
    """Snapshots of a linear probe that is right about the last split alone."""
    composed = cfg()
    learner = build_learner(composed, trial("none"), stream)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    start = {"head.weight": torch.zeros(4, 2), "head.bias": torch.tensor([1.0, 0, 0, 0])}
    first = {"head.weight": corners * torch.tensor([1, 0, 0, 1])[:, None]}
    second = {"head.weight": corners * torch.tensor([0, 1, 1, 0])[:, None], "head.bias": torch.tensor([-9.0, 0, 0, -9])}
    assert learner.network.state_dict().keys() == start.keys()
    state = {"snapshots": [start, first, second]}
    examined = examine(composed, trial("none"), stream, state, CPU)
    assert examined.accuracies == [0.25, 0.5, 0.5]
    assert examined.used == []
    assert examined.metrics["forgetting"] == -examined.metrics["backward_transfer"] == 1
    assert examined.metrics["error"] == 0.5
    learner.network.load_state_dict(second)
    predicted = predicted_classes(learner, stream.test, CPU)
    matrix = accuracy_matrix(torch.stack([predicted] * 3), stream.test.targets, stream.splits)
    assert (matrix[-1].tolist(), forgetting(matrix)) == ([0, 1], 0)


def test_without_validation_rows_only_usage_is_measured(cfg, stream):
    learner = build_learner(cfg("bottleneck.key_value.pairs=8"), trial("key_value"), stream)
    assert measure(learner, None, CPU) == {"used": 0}
