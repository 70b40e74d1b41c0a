"""Calibration and selective accuracy against their formulas, sample by sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from ibreg.evaluation.classification.calibration import calibration_metrics, selective_accuracy
from ibreg.evaluation.classification.metrics import classification_metrics


def random_predictions(seed, samples=200, classes=5):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.4), samples)
    return probabilities, np.array([rng.choice(classes, p=row) for row in probabilities])


def test_selective_accuracy_is_that_of_the_most_confident_samples():
    probabilities, targets = random_predictions(0)
    order = sorted(range(200), key=lambda sample: -probabilities[sample].max())
    right = [float(probabilities[sample].argmax() == targets[sample]) for sample in order]
    for coverage, kept in ((0.005, 1), (0.1, 20), (0.5, 100), (0.995, 199), (1.0, 200)):
        assert selective_accuracy(probabilities, targets, coverage) == pytest.approx(np.mean(right[:kept]))
    expected = np.mean([1 - np.mean(right[:kept]) for kept in range(1, 201)])
    assert calibration_metrics(probabilities, targets)["aurc"] == pytest.approx(expected)


def test_samples_of_equal_confidence_count_by_their_mean():
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]])
    targets = np.array([0, 0, 1, 1, 0])
    assert selective_accuracy(probabilities, targets, 0.2) == 0.5
    assert selective_accuracy(probabilities, targets, 0.8) == 0.5
    assert selective_accuracy(probabilities, targets, 1.0) == pytest.approx(0.6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), coverage=st.floats(0.01, 1))
def test_the_order_of_the_samples_does_not_matter(seed, coverage):
    probabilities, targets = random_predictions(seed, samples=40)
    probabilities = probabilities.round(1) + 1e-9  # many ties
    probabilities /= probabilities.sum(1, keepdims=True)
    order = np.random.default_rng(seed).permutation(40)
    assert selective_accuracy(probabilities, targets, coverage) == pytest.approx(
        selective_accuracy(probabilities[order], targets[order], coverage)
    )
    assert selective_accuracy(probabilities, targets, 1.0) == pytest.approx(
        classification_metrics(probabilities, targets)["accuracy"]
    )


def test_calibration_metrics_agree_with_the_single_ones():
    probabilities, targets = random_predictions(3)
    found = calibration_metrics(torch.as_tensor(probabilities), torch.as_tensor(targets), coverages=[0.5, 0.95])
    assert list(found) == ["ece", "nll", "brier", "accuracy_at_50", "accuracy_at_95", "aurc"]
    theirs = multiclass_calibration_error(
        torch.as_tensor(probabilities), torch.as_tensor(targets), num_classes=5, n_bins=15
    )
    assert found["ece"] == pytest.approx(theirs.item(), abs=1e-6)
    assert (
        found["accuracy_at_50"] > found["accuracy_at_95"] > classification_metrics(probabilities, targets)["accuracy"]
    )


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.1, float("nan")])
def test_a_coverage_out_of_range_is_an_error(coverage):
    with pytest.raises(ValueError, match="coverage must be above 0 and at most 1"):
        selective_accuracy(*random_predictions(0), coverage)


def test_logits_are_an_error():
    with pytest.raises(ValueError, match="apply a softmax to logits"):
        selective_accuracy(torch.randn(5, 3), torch.zeros(5, dtype=torch.long), 0.5)
