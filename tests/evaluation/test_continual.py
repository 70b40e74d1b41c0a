"""Metrics of continual learning against sums written out from the papers' formulas, sample by sample."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from ibreg.evaluation.continual import (
    accuracy_matrix,
    backward_transfer,
    forgetting,
    forward_transfer,
    overall_accuracy,
)

SPLITS = [(3, 0), (1,), (4, 2)]


@pytest.fixture
def stages():
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.repeat(np.arange(5), [7, 9, 3, 8, 4]))
    guesses = rng.integers(0, 5, (4, targets.size))
    return np.where(rng.random(guesses.shape) < 0.4, targets, guesses), targets


def test_matrix_and_overall_accuracy_are_those_of_scikit_learn(stages):
    predictions, targets = stages
    matrix = accuracy_matrix(torch.tensor(predictions), torch.tensor(targets), SPLITS)
    assert matrix.shape == (4, 3)
    for stage, row in enumerate(matrix):
        for classes, found in zip(SPLITS, row, strict=True):
            rows = [sample for sample, target in enumerate(targets) if target in classes]
            assert found == pytest.approx(accuracy_score(targets[rows], predictions[stage][rows]), abs=1e-15)
    overall = [accuracy_score(targets, predicted) for predicted in predictions]
    assert overall_accuracy(predictions, targets, SPLITS) == pytest.approx(overall, abs=1e-12)


def test_samples_of_classes_in_no_split_do_not_count(stages):
    predictions, targets = stages
    kept = np.isin(targets, [3, 0, 1])
    part = overall_accuracy(predictions[:3], targets, SPLITS[:2])
    assert part == pytest.approx([accuracy_score(targets[kept], row[kept]) for row in predictions[:3]], abs=1e-12)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_transfer_and_forgetting_are_the_papers_sums(splits, seed):
    matrix = np.random.default_rng(seed).random((splits + 1, splits))
    if splits == 1:
        assert all(math.isnan(metric(matrix)) for metric in (backward_transfer, forward_transfer, forgetting))
        return
    backward = forward = forgot = 0.0
    for split in range(1, splits + 1):  # row i of the matrix is after split i, counted from 1, row 0 before all
        if split < splits:
            backward += matrix[splits, split - 1] - matrix[split, split - 1]
            forgot += max(matrix[i, split - 1] for i in range(1, splits)) - matrix[splits, split - 1]
        if split > 1:
            forward += matrix[split - 1, split - 1] - matrix[0, split - 1]
    assert backward_transfer(matrix) == pytest.approx(backward / (splits - 1), abs=1e-12)
    assert forward_transfer(matrix) == pytest.approx(forward / (splits - 1), abs=1e-12)
    assert forgetting(matrix) == pytest.approx(forgot / (splits - 1), abs=1e-12)
    # The best accuracy on a split is at least the one just after it.
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12


def test_knowing_only_the_last_split_is_complete_forgetting_and_knowing_all_is_none():
    targets = np.repeat(np.arange(6), 5)
    splits = [(0, 1), (2, 3), (4, 5)]
    last = [np.where(np.isin(targets, list(classes)), targets, classes[0]) for classes in splits]
    seen = [np.where(targets < 2 * stage, targets, 0) for stage in (1, 2, 3)]
    nothing = np.full(targets.size, -1)
    forgetful = accuracy_matrix(np.stack([nothing, *last]), targets, splits)
    faithful = accuracy_matrix(np.stack([nothing, *seen]), targets, splits)
    assert (forgetting(forgetful), backward_transfer(forgetful)) == (1, -1)
    assert (forgetting(faithful), backward_transfer(faithful), forward_transfer(faithful)) == (0, 0, 0)
    assert overall_accuracy(np.stack([nothing, *seen]), targets, splits) == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize(
    ("predictions", "targets", "splits", "message"),
    [
        (np.zeros((3, 4)), np.zeros(5), [(0,), (1,)], r"\(stages, samples\)"),
        (np.zeros(4), np.zeros(4), [(0,)], r"\(stages, samples\)"),
        (np.zeros((2, 4)), np.zeros(4), [(0,), (1,)], "3 stages for 2 splits"),
        (np.zeros((3, 4)), np.zeros(4), [(0,), (1,)], r"must have a sample, got none of the classes \[\[1\]\]"),
    ],
)
def test_invalid_shapes_are_errors(predictions, targets, splits, message):
    for metric in (accuracy_matrix, overall_accuracy):
        with pytest.raises(ValueError, match=message):
            metric(predictions, targets, splits)


def test_a_matrix_of_another_shape_is_an_error():
    for metric in (backward_transfer, forward_transfer, forgetting):
        with pytest.raises(ValueError, match="one row more than columns"):
            metric(np.zeros((3, 3)))
