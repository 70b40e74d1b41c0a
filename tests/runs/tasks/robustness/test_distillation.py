"""Distillation against numpy; pruning against a count."""

import numpy as np
import pytest
import torch
from torch import nn

from ibreg.runs.checkpoint import save_checkpoint
from ibreg.runs.config.section import read
from ibreg.runs.tasks.robustness.distillation import Distillation, Distilled, load_teacher, prune_smallest


def test_the_loss_is_that_of_numpy():
    teacher = nn.Linear(4, 3).double()
    x, logits = torch.randn(5, 4).double(), torch.randn(5, 3).double()
    y = torch.tensor([0, 1, 2, 2, 1])
    loss = Distilled(teacher, temperature=30.0, weight=10.0)(logits, y, inputs=x)

    def logs(values):
        return values - np.log(np.exp(values).sum(1, keepdims=True))

    own, soft = logs(logits.numpy()), logs(logits.numpy() / 30)
    taught = logs(teacher(x).detach().numpy() / 30)
    expected = -own[np.arange(5), y.numpy()].mean() + 10 * 900 * (np.exp(taught) * (taught - soft)).sum(1).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-8)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_smallest_weights_of_all_layers_go_and_stay_away():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 10))
    before = torch.cat([network[0].weight.flatten(), network[2].weight.flatten()]).detach().abs()
    kept = before.sort().values[round(0.9 * len(before)) :]
    pruned = prune_smallest(network, 0.9)

    def weights():
        return torch.cat([pruned[0].weight.flatten(), pruned[2].weight.flatten()]).detach().abs()

    gone = weights() == 0
    torch.testing.assert_close(weights()[~gone].sort().values, kept)
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=0.1)
    for _ in range(2):
        pruned(torch.randn(3, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    pruned(torch.randn(3, 1, 4, 4))
    assert torch.equal(weights() == 0, gone)


def test_a_network_without_weights_is_refused():
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        prune_smallest(nn.ReLU(), 0.5)


@pytest.mark.parametrize(
    ("option", "value", "valid"),
    [
        *(("prune", amount, "a number above 0 and below 1") for amount in (0, 1.0, -0.1, 1)),
        *(("temperature", value, "a number above 0") for value in (0, -1, float("inf"))),
        ("weight", -1, "a number of at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(option, value, valid):
    options = {"teacher": None, "temperature": 30, "weight": 10, "prune": 0.9, option: value}
    with pytest.raises(ValueError, match=f"distillation.{option} must be {valid}, got {value}"):
        read(Distillation, options, "distillation")


def test_the_teacher_is_the_control_of_the_same_seed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    taught = nn.Linear(2, 3)
    with pytest.raises(FileNotFoundError, match="0 controls 'none' of seed 3"):
        load_teacher(nn.Linear(2, 3), tmp_path, "hsic", 3)
    save_checkpoint(tmp_path / "checkpoints" / "none-decay0-seed3.pt", {"weights": taught.state_dict()})
    save_checkpoint(tmp_path / "checkpoints" / "none-decay0-seed4.pt", {"weights": {}, "optimizer": {}})
    assert torch.equal(load_teacher(nn.Linear(2, 3), tmp_path, "hsic", 3).weight, taught.weight)
    with pytest.raises(ValueError, match="unfinished training run"):
        load_teacher(nn.Linear(2, 3), tmp_path, "hsic", 4)
    with pytest.raises(ValueError, match="another architecture"):
        load_teacher(nn.Linear(2, 4), tmp_path, "hsic", 3)
    # The second control has its own initialization here too; it measures the noise between initializations.
    with pytest.raises(FileNotFoundError, match="0 controls 'null' of seed 3"):
        load_teacher(nn.Linear(2, 3), tmp_path, "null", 3)
    second = nn.Linear(2, 3)
    save_checkpoint(tmp_path / "checkpoints" / "null-decay0-seed3.pt", {"weights": second.state_dict()})
    assert torch.equal(load_teacher(nn.Linear(2, 3), tmp_path, "null", 3).weight, second.weight)
    assert torch.equal(load_teacher(nn.Linear(2, 3), tmp_path, "none", 3).weight, taught.weight)
