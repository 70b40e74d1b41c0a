"""Checkpoints, and the states of optimizers by names of parameters."""

import pytest
import torch
from torch import nn

from ibreg.runs.checkpoint import load_checkpoint, load_optimizer_state, model_state, optimizer_state, save_checkpoint


def trained(optimizer_class, **options):
    """A model and its optimizer after three steps, in two groups of parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    groups = [{"params": list(model[2].parameters()), "lr": 0.1}, {"params": list(model[0].parameters())}]
    optimizer = optimizer_class(groups, lr=0.01, **options)
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    model(torch.linspace(-1, 1, 15).view(5, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


OPTIMIZERS = [
    (torch.optim.AdamW, {"fused": True, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {}),
]


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
def test_an_optimizer_resumes_bit_identically_from_its_file(tmp_path, optimizer_class, options):
    model, optimizer = trained(optimizer_class, **options)
    optimizer.param_groups[0]["lr"] = 0.05  # as a schedule leaves it
    state = {"model": model_state(model), "optimizer": optimizer_state(model, optimizer)}
    assert [group["params"] for group in state["optimizer"]["param_groups"]] == [
        ["2.weight", "2.bias"],
        ["0.weight", "0.bias"],
    ]
    save_checkpoint(tmp_path / "state.pt", state)
    step(model, optimizer)

    read, (resumed, again) = load_checkpoint(tmp_path / "state.pt"), trained(optimizer_class, **options)
    fresh = optimizer_class(again.param_groups, lr=0.01, **options)
    resumed.load_state_dict(read["model"])
    load_optimizer_state(resumed, fresh, read["optimizer"])
    assert fresh.param_groups[0]["lr"] == 0.05
    step(resumed, fresh)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_state_of_an_optimizer_without_a_step_changes_nothing():
    model, optimizer = trained(torch.optim.SGD)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer_state(model.requires_grad_(False), optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_there_may_be_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "none.pt") is None
