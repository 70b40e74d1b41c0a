"""Metrics against the formulas in float64 numpy, against torchmetrics, and against invariants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from ibreg.evaluation.classification.metrics import (
    calibration_bins,
    classification_metrics,
    information_bound,
    label_entropy,
)


def random_predictions(seed, samples=200, classes=5):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.4), samples)
    return probabilities, rng.integers(0, classes, samples)


def reference(probabilities, targets, bins):
    rows = np.arange(len(targets))
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(np.sum(right[place == b]) - np.sum(confidence[place == b])) for b in range(bins)]
    return {
        "accuracy": right.mean(),
        "error": (~right).mean(),
        "nll": -np.log(probabilities[rows, targets]).mean(),
        "brier": ((probabilities - np.eye(probabilities.shape[1])[targets]) ** 2).sum(1).mean(),
        "ece": sum(gaps) / len(targets),
    }


@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_agree_with_their_formulas(classes, bins):
    probabilities, targets = random_predictions(classes, classes=classes)
    measured = classification_metrics(probabilities, targets, bins=bins)
    assert measured == pytest.approx(reference(probabilities, targets, bins), rel=1e-12)
    assert all(type(value) is float for value in measured.values())


def test_calibration_error_agrees_with_torchmetrics_below_full_confidence():
    probabilities, targets = map(torch.as_tensor, random_predictions(0))
    theirs = multiclass_calibration_error(probabilities, targets, num_classes=5, n_bins=15)
    assert classification_metrics(probabilities, targets)["ece"] == pytest.approx(theirs.item(), abs=1e-6)


def test_full_confidence_shares_the_last_bin():
    confidence = np.repeat([1.0, 0.96], 500)
    targets = np.zeros(1000, dtype=int)
    targets[:40] = 1
    predictions = np.stack([confidence, 1 - confidence], axis=1), targets
    counts, accuracy, mean_confidence = calibration_bins(*predictions)
    assert (counts[-1], accuracy[-1]) == (1000, 0.96)
    assert mean_confidence[-1] == pytest.approx(0.98)
    assert np.isnan(accuracy[:-1]).all()
    assert classification_metrics(*predictions)["ece"] == pytest.approx(0.02)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_order_of_samples_does_not_matter(seed, random):
    probabilities, targets = random_predictions(seed, samples=20, classes=3)
    order = random.sample(range(20), 20)
    measured = classification_metrics(probabilities, targets)
    assert classification_metrics(probabilities[order], targets[order]) == pytest.approx(measured, rel=1e-9, abs=1e-12)
    assert measured["accuracy"] + measured["error"] == 1
    assert 0 <= measured["brier"] <= 2
    assert 0 <= measured["ece"] <= 1


@settings(deadline=None)
@given(st.integers(11, 20), st.integers(2, 6))
def test_calibrated_predictions_have_no_calibration_error(right, classes):
    """Of 20 predictions at confidence right / 20, exactly that many are correct."""
    confidence = right / 20
    probabilities = np.full((20, classes), (1 - confidence) / (classes - 1))
    probabilities[:, 0] = confidence
    targets = (np.arange(20) >= right).astype(int)
    assert classification_metrics(probabilities, targets)["ece"] == pytest.approx(0, abs=1e-12)


def test_worst_predictions():
    measured = classification_metrics(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    clipped = -math.log(np.finfo(np.float64).eps)
    assert measured == pytest.approx({"accuracy": 0, "error": 1, "nll": clipped, "brier": 2, "ece": 1})


def test_a_class_may_be_missing_and_inputs_may_be_float32_with_a_graph():
    logits = torch.randn(50, 100, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.arange(50, dtype=torch.int32) % 3
    measured = classification_metrics(logits.softmax(dim=1), targets)
    assert measured["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets.long()).item(), rel=1e-6)


HALVES = torch.full((4, 2), 0.5)
LABELS = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        (torch.empty(0, 2), torch.empty(0, dtype=torch.long), "samples >= 1"),
        (HALVES[:, 0], LABELS, "classes >= 2"),
        (HALVES[:, :1] * 2, LABELS, "classes >= 2"),
        (HALVES[None], LABELS, "classes >= 2"),
        (HALVES[:3], LABELS, "equal lengths, got 3 and 4"),
        (HALVES, LABELS[:, None], "samples >= 1"),
        (HALVES, LABELS.float(), "integers, got float32"),
        (HALVES, LABELS.bool(), "integers, got bool"),
        (HALVES, LABELS + 1, "targets must be below 2, the number of classes, got 2"),
        (HALVES, LABELS - 1, "targets must be at least 0, got -1"),
        (HALVES * math.nan, LABELS, "at least 0 and not NaN"),
        (torch.tensor([[1.5, -0.5]] * 4), LABELS, "apply a softmax to logits"),
        (HALVES * 1.1, LABELS, r"sums of 1\.1 to 1\.1"),
        (HALVES * math.inf, LABELS, "sums of inf"),
    ],
)
def test_invalid_predictions_are_errors(probabilities, targets, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(probabilities, targets)


def test_no_bins_are_an_error():
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration_bins(HALVES, LABELS, bins=0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_label_entropy_is_that_of_the_frequencies(targets):
    frequencies = np.unique(targets, return_counts=True)[1] / len(targets)
    assert label_entropy(np.array(targets)) == pytest.approx(-(frequencies * np.log(frequencies)).sum(), abs=1e-12)


def test_information_bound_is_tight_for_a_code_equal_to_the_label_and_zero_for_a_constant_one():
    assert information_bound(0.0, LABELS) == pytest.approx(math.log(2))
    assert information_bound(math.log(2), LABELS) == pytest.approx(0)
    assert information_bound(5.0, LABELS) < 0


@pytest.mark.parametrize("cross_entropy", [math.nan, math.inf, -0.1])
def test_invalid_cross_entropies_are_errors(cross_entropy):
    with pytest.raises(ValueError, match="finite and at least 0"):
        information_bound(cross_entropy, LABELS)


def test_entropy_of_no_labels_is_an_error():
    with pytest.raises(ValueError, match="samples >= 1"):
        label_entropy(torch.empty(0, dtype=torch.long))
