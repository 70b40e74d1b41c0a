"""What tests read in the folder of a run."""

import csv
import json

import pytest
import torch

from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.folder import CHECKPOINTS, METRICS, SUMMARY


def summary_of(folder):
    return json.loads((folder / SUMMARY).read_text())


def rows_of(folder):
    with (folder / METRICS).open() as file:
        return list(csv.DictReader(file))


def weights_of(folder):
    return {path.name: load_checkpoint(path)["weights"] for path in sorted((folder / CHECKPOINTS).glob("*.pt"))}


def assert_equal_runs(first, second):
    kept = ("recipe", "data", "seeds", "results", "paired", "selected")
    assert [summary_of(first)[key] for key in kept] == [summary_of(second)[key] for key in kept]
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].keys() == other[name].keys()
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name]), name
    assert (first / METRICS).read_text() == (second / METRICS).read_text()


def assert_same_results(one, two, tolerance):
    """What two runs of one configuration measured in training and at test, but for rounding."""
    first, second = summary_of(one)["results"], summary_of(two)["results"]
    assert {method: set(metrics) for method, metrics in first.items()} == {
        method: set(second[method]) for method in second
    }
    for method, metrics in first.items():
        for metric, entry in metrics.items():
            # A rank of confidences jumps where rounding swaps two samples of some hundred.
            allowed = 1e-4 if metric == "test/aurc" else tolerance
            assert second[method][metric]["values"] == pytest.approx(entry["values"], abs=allowed), (method, metric)
    for row, other in zip(rows_of(one), rows_of(two), strict=True):
        for key in filter(row.get, ("train/loss", "train/penalty")):
            assert float(other[key]) == pytest.approx(float(row[key]), abs=tolerance), key
