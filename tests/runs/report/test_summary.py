"""Summaries: intervals against scipy, and files that are written atomically."""

import json
import math
from importlib.metadata import version

import numpy as np
import pytest
import torch
from scipy import stats

from ibreg.runs.report.summary import KEYS, read_summary, summarize

RNG = np.random.default_rng(0)
VALUES = {
    "variational": {"test/error": RNG.uniform(0.01, 0.02, 5).tolist(), "test/rate": [10.0, 11.0, 12.0, 13.0, 14.0]},
    "none": {"test/error": RNG.uniform(0.01, 0.02, 5).tolist(), "test/nll": [0.5] * 5},
    "null": {"test/error": RNG.uniform(0.01, 0.02, 5).tolist(), "test/nll": [0.5] * 5},
}
COLUMNS = [("test/error", "test error (%)", 100, 2), ("test/rate", "rate (nats)", 1, 1)]


def test_spread_is_that_of_a_sample():
    entry = summarize(VALUES)[0]["variational"]["test/rate"]
    assert entry == {"mean": 12.0, "std": pytest.approx(math.sqrt(2.5)), "values": [10.0, 11.0, 12.0, 13.0, 14.0]}


@pytest.mark.parametrize("method", ["variational", "null"])
def test_differences_are_paired_with_a_student_interval(method):
    paired = summarize(VALUES)[1]
    ours, control = VALUES[method]["test/error"], VALUES["none"]["test/error"]
    interval = stats.ttest_rel(ours, control).confidence_interval(0.95)
    entry = paired[method]["test/error"]
    assert (entry["low"], entry["high"]) == pytest.approx((interval.low, interval.high))
    assert entry["mean"] == pytest.approx(np.mean(ours) - np.mean(control))
    np.testing.assert_allclose(entry["values"], np.subtract(ours, control))


def test_only_metrics_of_both_are_paired_and_equal_differences_have_no_interval():
    paired = summarize(VALUES)[1]
    assert list(paired) == ["variational", "null"]
    assert list(paired["variational"]) == ["test/error"]
    assert paired["null"]["test/nll"] == {"mean": 0, "low": None, "high": None, "values": [0] * 5}
    _, two = summarize({"none": {"loss": [0.875, 0.775]}, "hsic": {"loss": [0.9, 0.8]}})
    assert two["hsic"]["loss"] | {"values": 0} == {"mean": pytest.approx(0.025), "low": None, "high": None, "values": 0}


def test_one_seed_has_no_spread_and_no_interval():
    results, paired = summarize({"none": {"loss": [1.0]}, "hsic": {"loss": [0.5]}})
    assert results["hsic"]["loss"] == {"mean": 0.5, "std": None, "values": [0.5]}
    assert paired["hsic"]["loss"] == {"mean": -0.5, "low": None, "high": None, "values": [-0.5]}


def test_the_control_may_be_absent_or_another_method():
    assert summarize({"hsic": VALUES["null"]})[1] == {}
    assert list(summarize(VALUES, control="null")[1]) == ["variational", "none"]


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_values_that_cannot_be_paired_are_errors(values):
    with pytest.raises(ValueError, match=r"must have a value per seed|as many values as the control \(3\)"):
        summarize({"none": {"loss": [1.0, 2.0, 3.0]}, "hsic": {"loss": values}})


def test_a_summary_has_versions_and_hardware(write, tmp_path):
    path = write(tmp_path / "summary.json", VALUES, device="cpu", command="python recipes/x.py", headline=COLUMNS)
    summary = read_summary(path)
    results, paired = summarize(VALUES)
    assert (summary["results"], summary["paired"]) == (results, paired)
    assert (summary["recipe"], summary["data"], summary["wall_s"]) == ("classification", "digits", 1.5)
    assert summary["seeds"] == [0, 1, 2, 3, 4]
    assert summary["selected"] == {"variational": {"beta": 1e-3}}
    assert summary["versions"]["torch"] == version("torch")
    assert {"python", "ibreg"} < summary["versions"].keys()
    assert summary["hardware"]["device"] == "cpu"
    assert summary["hardware"]["threads"] == torch.get_num_threads()
    assert (summary["command"], summary["headline"]) == ("python recipes/x.py", [list(column) for column in COLUMNS])
    assert {"command", "headline"}.isdisjoint(read_summary(write(tmp_path / "plain.json", VALUES)))


def test_numbers_that_are_not_finite_become_null(write, tmp_path):
    diverged = {"none": {"loss": [1.0, 2.0]}, "hsic": {"loss": [math.nan, math.inf]}}
    path = write(tmp_path / "summary.json", diverged)

    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    summary = json.loads(path.read_text(), parse_constant=refuse)
    assert summary["results"]["hsic"]["loss"] == {"mean": None, "std": None, "values": [None, None]}
    assert summary["paired"]["hsic"]["loss"]["low"] is None


def test_a_failed_write_leaves_the_old_summary(write, tmp_path):
    path = write(tmp_path / "summary.json", VALUES)
    before = path.read_text()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(path, VALUES, command=object())
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_broken_summaries_are_named(write, tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(FileNotFoundError, match=r"there is no summary at .*summary\.json"):
        read_summary(path)
    whole = write(path, VALUES).read_text()
    for text in ("", whole[: len(whole) // 2], "results"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"summary\.json is truncated or not JSON"):
            read_summary(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="truncated or not JSON"):
        read_summary(path)
    path.write_text(json.dumps({key: 0 for key in KEYS if key not in ("seeds", "paired")}))
    with pytest.raises(ValueError, match=r"lacks seeds, paired$"):
        read_summary(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="lacks recipe"):
        read_summary(path)
