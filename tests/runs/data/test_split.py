import numpy as np
import pytest

from ibreg.runs.data.split import Request


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_are_stratified_within_one_row_and_disjoint(seed):
    labels = np.random.default_rng(7).choice(3, 500, p=[0.7, 0.2, 0.1])
    request = Request(validation=0.15, split_seed=seed, limit=200)
    parts = request.stratified_split(labels, ["a", "b", "c"], test=0.2)
    assert [len(part) for part in parts] == [200, 60, 100]
    assert len(set(np.concatenate(parts))) == 360
    for part in parts:
        expected = np.bincount(labels) * len(part) / len(labels)
        # Each of up to three consecutive splits rounds by less than one row.
        assert np.abs(np.bincount(labels[part]) - expected).max() < 2
    held_out = np.bincount(labels[parts[2]])
    assert np.abs(held_out - np.bincount(labels) * 0.2).max() < 1


def test_a_limit_that_loses_a_rare_class_names_it():
    labels = np.array([0] * 4 + [1] * 396)
    with pytest.raises(ValueError, match="limit=20 leaves no training row of class 'rare'"):
        Request(validation=0, limit=20).stratified_split(labels, ["rare", "common"], test=0.25)
