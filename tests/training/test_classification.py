"""Predictions over a data set, against the same by hand."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import ibreg
from ibreg.regularized import draw
from ibreg.training.classification import classify
from ibreg.training.data import Rows

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


def test_draws_are_averaged_as_probabilities_and_charged_one_by_one(rows):
    model = ibreg.Regularized(nn.Sequential(ibreg.VariationalBottleneck(6, 4), nn.Linear(4, 3)))
    found = classify(model, rows, CPU, draws=5)
    outputs = torch.cat(
        [
            draw(model, rows.inputs[part], draws=5, seed=batch)
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
