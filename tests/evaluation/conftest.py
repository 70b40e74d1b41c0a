import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ibreg.runs.data.classification import load


def train_on_digits(seed):
    """A small network trained on scikit-learn's digits, in [0, 1]."""
    data = load("digits")
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(120):
        rows = torch.randint(len(data.train), (128,))
        loss = F.cross_entropy(network(data.train.inputs[rows]), data.train.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="session")
def networks():
    """Two networks that differ in their seed."""
    return train_on_digits(0), train_on_digits(1)


@pytest.fixture(scope="session")
def known_digits(networks):
    """The test digits that the first network knows."""
    data = load("digits")
    known = networks[0](data.test.inputs).argmax(1) == data.test.targets
    assert known.double().mean() > 0.9
    return data.test.inputs[known], data.test.targets[known]
