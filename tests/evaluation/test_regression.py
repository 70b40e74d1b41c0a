"""Metrics of regression against the formulas in float64 numpy, and against invariants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

from ibreg.evaluation.regression import gaussian_information, regression_metrics


def random_pairs(seed, samples=50):
    rng = np.random.default_rng(seed)
    targets = rng.normal(3, 2, samples)
    return targets + rng.normal(0, 1, samples), targets


def test_metrics_agree_with_their_formulas_and_with_torchmetrics():
    predictions, targets = random_pairs(0)
    errors = predictions - targets
    measured = regression_metrics(predictions, targets)
    assert measured == pytest.approx(
        {
            "rmse": math.sqrt((errors**2).mean()),
            "mae": abs(errors).mean(),
            "r2": 1 - (errors**2).sum() / ((targets - targets.mean()) ** 2).sum(),
        },
        rel=1e-12,
    )
    assert all(type(value) is float for value in measured.values())
    pair = torch.tensor(predictions), torch.tensor(targets)
    assert measured["rmse"] == pytest.approx(mean_squared_error(*pair, squared=False).item())
    assert measured["mae"] == pytest.approx(mean_absolute_error(*pair).item())
    assert measured["r2"] == pytest.approx(r2_score(*pair).item())


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_errors_scale_with_the_unit_and_r2_does_not(seed, scale, shift):
    predictions, targets = random_pairs(seed, samples=20)
    measured = regression_metrics(predictions, targets)
    changed = regression_metrics(scale * predictions + shift, scale * targets + shift)
    assert changed["rmse"] == pytest.approx(scale * measured["rmse"], rel=1e-8)
    assert changed["mae"] == pytest.approx(scale * measured["mae"], rel=1e-8)
    assert changed["r2"] == pytest.approx(measured["r2"], rel=1e-6, abs=1e-8)
    assert measured["mae"] <= measured["rmse"]
    order = np.random.default_rng(seed).permutation(20)
    assert regression_metrics(predictions[order], targets[order]) == pytest.approx(measured)


def test_r2_is_0_for_the_mean_and_1_for_the_targets():
    _, targets = random_pairs(1)
    assert regression_metrics(np.full(50, targets.mean()), targets)["r2"] == pytest.approx(0, abs=1e-12)
    assert regression_metrics(targets, targets) == {"rmse": 0, "mae": 0, "r2": 1}
    assert regression_metrics(-targets, targets)["r2"] < 0


def test_columns_and_vectors_are_equivalent_and_never_broadcast():
    predictions, targets = (torch.tensor(values, dtype=torch.float32) for values in random_pairs(2))
    expected = regression_metrics(predictions, targets)
    predictions.requires_grad_()
    for pair in (
        (predictions.unsqueeze(1), targets),
        (predictions, targets.unsqueeze(1)),
        (predictions.unsqueeze(1), targets.unsqueeze(1)),
    ):
        assert regression_metrics(*pair) == expected


PAIR = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        (PAIR[:1], PAIR[:1], "predictions must have at least two samples, got 1"),
        (PAIR[:0], PAIR[:0], "predictions must have at least two samples, got 0"),
        (PAIR[:2], PAIR, "equal lengths, got 2 and 3"),
        (PAIR.repeat(2, 1).T, PAIR, r"predictions must have shape \(samples,\) or \(samples, 1\), got \(3, 2\)"),
        (PAIR, PAIR[:, None, None], "targets must have shape"),
        (PAIR[0], PAIR, r"predictions must have shape .* got \(\)"),
        (PAIR / 0, PAIR, "predictions must be finite, got 3 values"),
        (PAIR, torch.tensor([1.0, math.nan, 2.0]), "targets must be finite, got 1 values"),
        (PAIR, torch.full((3,), 7.0), "targets must vary for R², got 3 times 7"),
    ],
)
def test_invalid_predictions_are_errors(predictions, targets, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(predictions, targets)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.99])
def test_information_is_that_of_a_gaussian_channel(correlation):
    r"""For a Gaussian pair I = -0.5 log(1 - rho^2), and the best prediction has R² = rho^2."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=400_000)
    targets = correlation * seen + math.sqrt(1 - correlation**2) * rng.normal(size=400_000)
    measured = regression_metrics(correlation * seen, targets)
    information = gaussian_information(measured["r2"])
    assert information == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.01)
    assert information == pytest.approx(0.5 * math.log(targets.var() / measured["rmse"] ** 2), abs=1e-9)


def test_information_is_negative_for_predictions_worse_than_the_mean():
    assert gaussian_information(-3.0) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("r2", [1.0, 1.5, math.nan, -math.inf])
def test_information_of_an_invalid_r2_is_an_error(r2):
    with pytest.raises(ValueError, match="finite and below 1"):
        gaussian_information(r2)
