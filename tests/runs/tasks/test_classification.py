"""Predictions over a data set, against the same by hand."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import ibreg
from ibreg.prediction import predict_samples
from ibreg.runs.data.rows import Rows
from ibreg.runs.tasks.classification import classify, mixup

CPU = Accelerator(cpu=True)


@pytest.fixture
def rows():
    # More than a batch of the evaluation.
    return Rows(torch.randn(1200, 6), torch.randint(3, (1200,)))


def test_a_control_is_predicted_by_its_softmax(rows):
    model = nn.Linear(6, 3)
    found = classify(model, rows, CPU, draws=4)
    torch.testing.assert_close(found.probabilities, model(rows.inputs).softmax(1).detach())
    assert torch.equal(found.targets, rows.targets)
    assert found.cross_entropy is None
    assert found.rate is None
    assert model.training


def test_samples_are_averaged_as_probabilities_and_penalized_one_by_one(rows):
    model = ibreg.Regularized(nn.Sequential(ibreg.VariationalBottleneck(6, 4), nn.Linear(4, 3)))
    found = classify(model, rows, CPU, draws=5)
    outputs = torch.cat(
        [
            predict_samples(model, rows.inputs[part], draws=5, seed=batch)
            for batch, part in enumerate((slice(1000), slice(1000, None)))
        ],
        dim=1,
    )
    each = outputs.double().log_softmax(2)
    torch.testing.assert_close(found.probabilities, each.exp().mean(0).float())
    expected = -each.gather(2, rows.targets.expand(5, -1).unsqueeze(2)).mean().item()
    assert found.cross_entropy == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        rate = model.eval()(rows.inputs).logs["0/rate"].item()
    assert found.rate == pytest.approx(rate, rel=1e-5)
    metrics = found.metrics()
    assert metrics["rate"] == found.rate
    assert metrics["information"] < 1.1


def test_the_mean_code_gives_no_bound_of_information(rows):
    model = ibreg.Regularized(nn.Sequential(ibreg.VariationalBottleneck(6, 4), nn.Linear(4, 3)))
    found = classify(model, rows, CPU)
    assert "information" not in found.metrics()
    torch.testing.assert_close(found.probabilities, ibreg.predict(model, rows.inputs).softmax(1))


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 2, 2)])
def test_rows_are_mixed_with_their_neighbors_and_labels_alike(shape):
    x, y = torch.randn(shape), torch.tensor([0, 1, 2, 0, 1, 2])
    seen = x.clone()
    mixed, shares = mixup(0.4, classes=3)(x, y)
    assert torch.equal(x, seen)
    share = shares[0, 0].item()
    assert 0 < share < 1
    # From the definition (arXiv 1710.09412, equation 2), every row with the one before it.
    before = [(row - 1) % 6 for row in range(6)]
    for row in range(6):
        torch.testing.assert_close(mixed[row], share * x[row] + (1 - share) * x[before[row]])
        expected = torch.zeros(3)
        expected[y[row]] += share
        expected[y[before[row]]] += 1 - share
        torch.testing.assert_close(shares[row], expected)


def test_weights_of_mixup_have_the_beta_distribution():
    mix, alpha = mixup(0.4, classes=2), 0.4
    drawn = torch.stack([mix(torch.zeros(2, 1), torch.tensor([0, 1]))[1][0, 0] for _ in range(2000)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
