"""What a run of continual learning trains, chooses and keeps, without the recipe around it."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from ibreg.evaluation.continual import accuracy_matrix, forgetting
from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.data.rows import Rows
from ibreg.runs.tasks.continual.stream import (
    Stream,
    Training,
    all_methods,
    best_point,
    build_learner,
    measure,
    plan,
    predicted_classes,
    settings_of,
)
from ibreg.runs.tasks.continual.testing import examine

SETTINGS = ["settings.none=[{lr:1},{lr:2}]", "settings.mlp=[{lr:1},{lr:2,hidden:[3]}]"]


@pytest.fixture
def cfg(pytestconfig):
    register_with_hydra()

    def composed(*overrides):
        with initialize_config_dir(str(pytestconfig.rootpath / "configs"), version_base="1.3"):
            return compose("continual", ["output_dir=unused", *overrides])

    return composed


@pytest.fixture
def stream():
    """Four classes at the corners of a square, two of them in each split."""
    targets = torch.arange(4).repeat(10)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])[targets]
    rows = Rows(corners, targets)
    return Stream(rows, rows, rows, None, corners, [(3, 0), (1, 2)], 4)


def test_methods_and_their_settings(cfg):
    found = cfg("learners=[mlp]", *SETTINGS)
    assert all_methods(found) == ["none", "null", "mlp", "key_value"]
    assert settings_of(found, "null") == settings_of(found, "none") == [{"lr": 1}, {"lr": 2}]
    assert settings_of(cfg("tune=false", *SETTINGS), "mlp") == [{"lr": 1}]
    assert all_methods(cfg("control=false", "learners=[]")) == ["key_value"]


def test_every_setting_is_tried_on_the_first_seeds_alone(cfg):
    found = cfg("seeds=[4,7,9]", "tuning_seeds=2", *SETTINGS)
    tried = [(training.point, training.seed) for training in plan(found, "mlp")]
    assert sorted(tried) == [(0, 4), (0, 7), (1, 4), (1, 7)]
    assert plan(found, "null") == plan(cfg("tune=false", *SETTINGS), "mlp") == []


def test_the_best_setting_has_the_highest_mean_at_the_end_and_of_equals_the_first():
    tried = [Training("mlp", seed, point) for point in range(3) for seed in (0, 1)]
    ends = {0: (0.9, 0.1), 1: (0.6, 0.6), 2: (0.6, 0.6)}
    states = {
        training: {"rows": [{"validation/accuracy": 1.0}, {"validation/accuracy": ends[training.point][training.seed]}]}
        for training in tried
    }
    assert best_point(tried, states) == 1
    assert best_point([], states) == 0


def test_a_training_is_named_and_seeded_by_what_it_is():
    trainings = [
        Training(method, seed, point) for method in ("none", "null", "mlp") for seed in (0, 1) for point in (0, 1)
    ]
    assert len({training.name for training in trainings}) == 12
    assert Training("none", 3).key == Training("mlp", 3, 1).key != Training("null", 3).key


def test_options_of_a_learner_and_of_a_setting_meet(cfg, stream):
    sizes = {"features": 2, "classes": 4}
    found = cfg(*SETTINGS, "learner.mlp.hidden=[5]")
    first, second = (build_learner(found, Training("mlp", 0, point), **sizes) for point in (0, 1))
    assert (first.network.trunk[1].out_features, second.network.trunk[1].out_features) == (5, 3)
    assert first.criterion.label_smoothing == 0.1
    layer = build_learner(cfg("+bottleneck.key_value.out_features=7"), Training("key_value", 0), **sizes).network.model
    assert (layer[0].out_features, layer[1].out_features) == (7, 4)
    assert len(build_learner(cfg(), Training("key_value", 0), **sizes).network.model) == 1


def test_joint_gets_all_classes_at_once(cfg, stream):
    sizes = {"features": 2, "classes": 4}
    assert stream.stages(build_learner(cfg(), Training("joint", 0), **sizes)) == [(3, 0, 1, 2)]
    assert stream.stages(build_learner(cfg(), Training("ewc", 0), **sizes)) == [(3, 0), (1, 2)]


def test_what_is_examined_is_the_network_at_every_stage(cfg, stream):
    """Snapshots of a linear probe that is right about the last split alone."""
    found, training = cfg(), Training("none", 0)
    learner = build_learner(found, training, features=2, classes=4)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    start = {"head.weight": torch.zeros(4, 2), "head.bias": torch.tensor([1.0, 0, 0, 0])}
    first = {"head.weight": corners * torch.tensor([1, 0, 0, 1])[:, None]}
    second = {"head.weight": corners * torch.tensor([0, 1, 1, 0])[:, None], "head.bias": torch.tensor([-9.0, 0, 0, -9])}
    assert learner.network.state_dict().keys() == start.keys()
    state = {"snapshots": [start, first, second]}
    examined = examine(found, training, stream, state, torch.device("cpu"))
    assert examined.accuracies == [0.25, 0.5, 0.5]
    assert examined.used == []
    assert examined.metrics["forgetting"] == -examined.metrics["backward_transfer"] == 1
    assert examined.metrics["error"] == 0.5
    learner.network.load_state_dict(second)
    predicted = predicted_classes(learner, stream.test, torch.device("cpu"))
    matrix = accuracy_matrix(torch.stack([predicted] * 3), stream.test.targets, stream.splits)
    assert (matrix[-1].tolist(), forgetting(matrix)) == ([0, 1], 0)


def test_without_validation_rows_only_usage_is_measured(cfg):
    class Device:
        device = torch.device("cpu")

    learner = build_learner(cfg(), Training("key_value", 0), features=2, classes=4)
    assert measure(learner, None, Device) == {"validation/used": 0}
