"""Options of training: a tracker, mixup, label smoothing."""

import pytest

import ibreg.runs.accelerator
from ibreg.runs.folder import CONFIG, TRACKED
from tests.recipes.folders import rows_of, summary_of

RECIPE = "classification"
SHORT = ["seeds=[0]", "epochs=2", "sweep.betas=[]", "model.hidden=[8]", "device=cpu", "control=false"]


def test_tensorboard_gets_every_epoch(launch):
    pytest.importorskip("tensorboard", reason="tracker=tensorboard needs tensorboard: pip install 'ibreg[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = launch(*SHORT, "tracker=tensorboard")
    (written,) = (folder / TRACKED).glob("events.*")
    events = EventAccumulator(str(written)).Reload()
    rows = rows_of(folder)
    assert len(rows) == 2
    for key in ("train/loss", "train/rate", "validation/accuracy"):
        tracked = events.Scalars(f"variational-decay0-seed0/{key}")
        assert [event.step for event in tracked] == [1, 2]
        assert [event.value for event in tracked] == pytest.approx([float(row[key]) for row in rows], rel=1e-6)
    launch(*SHORT, "overwrite=true")
    assert not (folder / TRACKED).exists()


def test_nothing_is_tracked_by_default(launch):
    assert not (launch(*SHORT, "epochs=1") / TRACKED).exists()


def test_a_tracker_whose_package_is_not_installed(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(ibreg.runs.accelerator, "get_available_trackers", list)
    with pytest.raises(ValueError, match=r"tracker=tensorboard needs a package .*pip install tensorboard"):
        launch(*SHORT, "tracker=tensorboard")
    assert not (tmp_path / "run" / CONFIG).exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tracker=tensorbord", "tracker must be one of none, .*tensorboard"),
        ("mixup=-1", "mixup must be a number of at least 0"),
        ("label_smoothing=1", "label_smoothing must be a number of at least 0 and below 1, got 1"),
    ],
)
def test_values_that_are_none(launch, override, message):
    with pytest.raises(ValueError, match=message):
        launch(*SHORT, override)


@pytest.mark.slow
def test_mixup_and_label_smoothing_train_bottlenecks_that_read_the_target_too(launch):
    mixed = ["mixup=0.4", "label_smoothing=0.1", "bottlenecks=[variational,hsic]", "epochs=4"]
    first = summary_of(launch(*SHORT, *mixed, "control=true"))
    again = summary_of(launch(*SHORT, *mixed, "control=true", "overwrite=true"))
    plain = summary_of(launch(*SHORT, "bottlenecks=[variational,hsic]", "epochs=4", "control=true", "overwrite=true"))
    assert first["results"] == again["results"]
    for method in ("none", "variational", "hsic"):
        # 8 hidden units after 4 epochs: better than chance, 0.1, and not the result without mixup.
        assert first["results"][method]["test/accuracy"]["mean"] > 0.2
        assert first["results"][method]["test/nll"] != plain["results"][method]["test/nll"]
