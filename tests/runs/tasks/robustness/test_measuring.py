"""An attack counts only if it changes the input."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ibreg import VariationalBottleneck
from ibreg.runs.tasks.robustness import measuring


@pytest.mark.parametrize("draws", [0, 3])
def test_an_attack_that_changes_nothing_leaves_the_accuracy(monkeypatch, draws):
    for attack in ("fgsm", "pgd"):
        monkeypatch.setattr(measuring, attack, lambda model, x, y, **options: x)
    model = nn.Sequential(nn.Flatten(), VariationalBottleneck(16, 4), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[1].encoder.weight.zero_()  # all images have the same code up to noise, which decides
        model[1].encoder.bias.zero_()
    subject = measuring.Subject(model, draws)
    x, y = torch.rand(300, 1, 4, 4), torch.randint(3, (300,))
    options = OmegaConf.create({"draws": 2, "steps": 1, "step_size": None, "restarts": 1, "ensemble": []})
    rows = measuring.accuracies_under_attack(
        subject, x, y, eps=[0.1, 0.2], norm="inf", options=options, clamp=(0.0, 1.0)
    )
    clean = measuring.accuracy_of(subject.is_correct(x, y))
    assert 0.1 < clean < 0.9
    assert rows == [
        {"attack": attack, "norm": "linf", "eps": eps, "accuracy": clean}
        for eps in (0.0, 0.1, 0.2)
        for attack in ("fgsm", "pgd")
    ]
