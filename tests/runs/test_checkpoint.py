"""The state of a training from one epoch to the next."""

import torch
from torch import nn

from ibreg.runs.checkpoint import load_checkpoint, next_state, save_checkpoint


def test_selected_weights_outlive_the_epochs_behind_them(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    chosen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = {"model": model, "optimizer": optimizer}
    first = next_state(None, {"epoch": 1}, {"accuracy": 0.5}, selected=model, parts=parts)
    nn.init.zeros_(model.weight)
    second = next_state(first, {"epoch": 2}, {"accuracy": 0.4}, selected=None, parts=parts)
    save_checkpoint(tmp_path / "state.pt", second)
    read = load_checkpoint(tmp_path / "state.pt")
    assert (read["epoch"], read["best"], read["validation"]) == (2, 1, {"accuracy": 0.5})
    assert read["rows"] == [{"epoch": 1}, {"epoch": 2}]
    assert all(torch.equal(read["weights"][name], chosen[name]) for name in chosen)
    assert torch.equal(read["model"]["weight"], torch.zeros(1, 2))
    last = next_state(second, {"epoch": 3}, {"accuracy": 0.6}, selected=model, parts={})
    assert last.keys() == {"epoch", "rows", "best", "validation", "weights"}
    assert (last["best"], last["validation"]) == (3, {"accuracy": 0.6})
    assert torch.equal(last["weights"]["weight"], torch.zeros(1, 2))


def test_there_may_be_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "none.pt") is None
