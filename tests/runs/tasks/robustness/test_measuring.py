"""What counts as an attack: nothing but a changed input."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ibreg import VariationalBottleneck
from ibreg.runs.data.pixels import Pixels
from ibreg.runs.tasks.robustness import measuring


@pytest.mark.parametrize("draws", [0, 3])
def test_an_attack_that_changes_nothing_fells_no_image(monkeypatch, draws):
    for attack in ("fgsm", "pgd"):
        monkeypatch.setattr(measuring, attack, lambda model, x, y, **options: x)
    model = nn.Sequential(nn.Flatten(), VariationalBottleneck(16, 4), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[1].encoder.weight.zero_()  # every image has the same code but for its noise, which decides
        model[1].encoder.bias.zero_()
    subject = measuring.Subject(model, draws)
    x, y = torch.rand(300, 1, 4, 4), torch.randint(3, (300,))
    options = OmegaConf.create({"draws": 2, "steps": 1, "step_size": None, "restarts": 1, "ensemble": []})
    found = measuring.accuracies_under_attack(
        subject, x, y, eps=[0.1, 0.2], norm="inf", options=options, pixels=Pixels((1, 4, 4), 0.0, 1.0)
    )
    clean = subject.accuracy(x, y)
    assert 0.1 < clean < 0.9
    assert found == dict.fromkeys(found, clean)
