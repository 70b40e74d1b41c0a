"""Accuracies of groups against the definition and invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibreg.evaluation.classification.groups import group_accuracies


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), samples=st.integers(1, 60), number=st.integers(1, 5))
def test_the_worst_group_has_the_least_accuracy(seed, samples, number):
    rng = np.random.default_rng(seed)
    predictions, targets, groups = (
        rng.integers(0, 3, samples),
        rng.integers(0, 3, samples),
        rng.integers(0, number, samples),
    )
    names = [f"group {n}" for n in range(number)]
    found = group_accuracies(predictions, torch.as_tensor(targets), groups, names)
    for group in range(number):
        rows = [row for row in range(samples) if groups[row] == group]
        if rows:
            expected = sum(predictions[row] == targets[row] for row in rows) / len(rows)
            assert found[f"accuracy/group {group}"] == pytest.approx(expected)
        else:
            assert f"accuracy/group {group}" not in found
    each = [value for name, value in found.items() if name.startswith("accuracy/")]
    assert found["worst_group_accuracy"] == min(each) <= found["accuracy"] <= max(each) + 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": torch.zeros(3)}, "predictions must be integers"),
        ({"targets": torch.zeros(0, dtype=torch.long)}, "targets must be integers"),
        ({"groups": torch.zeros(2, dtype=torch.long)}, r"equal lengths, got \(3, 3, 2\)"),
        ({"groups": torch.tensor([0, 1, 2])}, "groups must be from 0 to 1, indices of 2 names, got 0 to 2"),
        ({"groups": torch.tensor([0, 1, -1])}, "got -1 to 1"),
        ({"names": ["red", "red"]}, "names of groups must be unique"),
    ],
)
def test_invalid_arguments_are_errors(changes, message):
    given_to_all = {name: torch.zeros(3, dtype=torch.long) for name in ("predictions", "targets", "groups")} | changes
    with pytest.raises(ValueError, match=message):
        group_accuracies(**{"names": ["red", "green"]} | given_to_all)
