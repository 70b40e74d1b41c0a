"""Adversarial training: its losses against numpy, what it buys, and that penalties stay those of the clean inputs."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg.evaluation.attacks.gradient import pgd
from ibreg.regularized import RegularizedOutput
from ibreg.runs.config.section import read
from ibreg.runs.data import classification as datasets
from ibreg.runs.data.images import Normalization
from ibreg.runs.models import classifiers as models
from ibreg.runs.tasks.robustness.adversarial import (
    TRADES,
    AdversarialTraining,
    PGDTraining,
    Search,
    build_adversary,
    divergence,
)


def linear(classes=2):
    return nn.Linear(4, classes).double()


def test_the_pgd_loss_of_a_linear_model_is_the_closed_form():
    """Two classes: the margin falls by eps times the L1 norm of the difference of the weights."""
    model, x = linear(), torch.randn(6, 4, dtype=torch.double)
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    loss = PGDTraining(Search(None, eps=0.3, steps=5))(model, ibreg.Penalized(nn.CrossEntropyLoss()), model(x), x, y)
    weight, bias = (part.detach().numpy() for part in (model.weight, model.bias))
    sign = np.where(y.numpy() == 1, 1, -1)
    margin = (
        sign * (x.numpy() @ (weight[1] - weight[0]) + bias[1] - bias[0]) - 0.3 * np.abs(weight[1] - weight[0]).sum()
    )
    assert loss.item() == pytest.approx(np.log1p(np.exp(-margin)).mean(), rel=1e-6)


def test_the_trades_loss_is_that_of_numpy():
    model, x, y = linear(3), torch.randn(5, 4, dtype=torch.double), torch.tensor([0, 1, 2, 1, 0])
    moved = x + 0.1
    trades = TRADES(lambda *args, **kwargs: moved, weight=6.0)
    loss = trades(model, ibreg.Penalized(nn.CrossEntropyLoss()), model(x), x, y)

    def logs(inputs):
        logits = inputs.numpy() @ model.weight.detach().numpy().T + model.bias.detach().numpy()
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    clean, attacked = logs(x), logs(moved)
    expected = -clean[np.arange(5), y.numpy()].mean() + 6 * (np.exp(clean) * (clean - attacked)).sum(1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-10)


def test_trades_ends_at_the_worst_corner_of_one_side():
    """The divergence of a linear model is convex in the input: each side of the clean point has its worst corner."""
    model, x = linear(), torch.randn(20, 4, dtype=torch.double)
    probabilities = model(x).softmax(1).detach()
    found = divergence(model(Search(None, eps=0.2, steps=20)(model, x, probabilities, loss=divergence)), probabilities)
    corner = 0.2 * (model.weight[1] - model.weight[0]).sign()
    sides = torch.stack([divergence(model(x + side * corner), probabilities) for side in (1, -1)])
    torch.testing.assert_close((found - sides).abs().amin(0), torch.zeros_like(found), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["pgd", "trades"])
def test_the_penalty_is_that_of_the_clean_inputs(name):
    options = {"name": name, "eps": 0.5, "warmup": 0, "steps": 2, "step_size": None, "weight": 1.0}
    adversary = build_adversary(OmegaConf.create(options), None, epoch=0)
    torch.manual_seed(0)
    net = ibreg.inject(nn.Sequential(nn.Linear(4, 3)), {"0": ibreg.HSICBottleneck()}).train()
    model, criterion = ibreg.Regularized(net), ibreg.Penalized(nn.CrossEntropyLoss())
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    clean = model(x, target=y)
    torch.manual_seed(1)
    loss = adversary(model, criterion, clean, x, y)
    torch.manual_seed(1)
    charged = RegularizedOutput(clean.output, clean.penalty + 10, clean.logs)
    difference = adversary(model, criterion, charged, x, y) - loss
    assert difference.item() == pytest.approx(10, rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.training


def test_attacked_inputs_stay_images_whatever_the_normalization():
    model = models.build(
        "mlp", input_shape=(1, 4, 4), classes=3, hidden=[8], normalization=Normalization((0.3,), (0.2,))
    )
    x = torch.rand(7, 1, 4, 4).round(decimals=1)
    attacked = Search((0.0, 1.0), eps=0.25, steps=3)(model, x, torch.zeros(7, dtype=torch.long))
    assert 0.2 < (attacked - x).abs().max() <= 0.25 + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_training_on_attacked_digits_raises_the_accuracy_under_pgd():
    """The same small network, steps and seed; 0.1 is far above two standard errors of 360 rows."""
    data = datasets.load("digits")
    x, y = data.train.inputs, data.train.targets
    accuracies = {}
    for name in ("none", "pgd", "trades"):
        options = {"name": name, "eps": 0.15, "warmup": 0, "steps": 3, "step_size": None, "weight": 6.0}
        adversary = build_adversary(OmegaConf.create(options), data.value_range, epoch=0)
        torch.manual_seed(0)
        model = models.build("mlp", input_shape=(1, 8, 8), classes=10, hidden=[64], normalization=data.normalization)
        criterion, optimizer = ibreg.Penalized(nn.CrossEntropyLoss()), torch.optim.Adam(model.parameters(), lr=5e-3)
        for step in range(100):
            rows = torch.randint(len(x), (128,), generator=torch.Generator().manual_seed(step))
            output = model(x[rows])
            loss = (
                adversary(model, criterion, output, x[rows], y[rows]) if adversary else F.cross_entropy(output, y[rows])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        attacked = pgd(model, data.test.inputs, data.test.targets, eps=0.15, steps=10, clamp=(0, 1), early_stop=True)
        accuracies[name] = float((model(attacked).argmax(1) == data.test.targets).float().mean())
    assert accuracies["pgd"] > accuracies["none"] + 0.1
    assert accuracies["trades"] > accuracies["none"] + 0.1


@pytest.mark.parametrize(("warmup", "radii"), [(0, [0.3, 0.3, 0.3, 0.3]), (2, [0.1, 0.2, 0.3, 0.3])])
def test_eps_grows_over_the_first_epochs(warmup, radii):
    options = {"name": "pgd", "eps": 0.3, "warmup": warmup, "steps": 2, "step_size": None, "weight": 6.0}
    built = [build_adversary(OmegaConf.create(options), None, epoch) for epoch in range(4)]
    assert [adversary.search.eps for adversary in built] == pytest.approx(radii)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "pdg"}, "adversarial.name must be one of none, pgd, trades, got pdg"),
        ({"eps": -0.1}, "adversarial.eps must be a number above 0, got -0.1"),
        ({"weight": "much"}, "adversarial.weight must be a number above 0, got much"),
        ({"step_size": 0}, "adversarial.step_size must be a number above 0 or null, got 0"),
        ({"warmup": -1}, "adversarial.warmup must be an integer of at least 0, got -1"),
        ({"warmup": 0.5}, "adversarial.warmup must be an integer of at least 0, got 0.5"),
    ],
)
def test_wrong_options_are_refused(changes, message):
    options = {"name": "pgd", "eps": 0.1, "warmup": 0, "steps": 2, "step_size": None, "weight": 6.0} | changes
    with pytest.raises(ValueError, match=message):
        read(AdversarialTraining, options, "adversarial")
