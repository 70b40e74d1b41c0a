"""The ensemble of pyautoattack behind our interface."""

import sys

import pytest
import torch
from torch import nn

import ibreg
from ibreg.evaluation.attacks.ensemble import STANDARD, attack_ensemble
from ibreg.evaluation.attacks.gradient import pgd
from ibreg.evaluation.attacks.objective import margin

NORMS = ("inf", "2")


pytest.importorskip("pyautoattack", reason="pyautoattack is not installed: pip install ibreg[attacks]")


def classifier(classes=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 30), nn.Tanh(), nn.Linear(30, classes))


def images(model, batch=20, low=0.0, high=1.0):
    x = low + (high - low) * torch.rand(batch, 1, 6, 6)
    return x, model(x).argmax(1)


def length(change, norm):
    return torch.linalg.vector_norm(change.flatten(1), ord=float(norm), dim=1)


OPTIONS = {"steps": 10, "queries": 30}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", STANDARD)
def test_each_attack_fools_within_ball_and_box_and_leaves_the_rest(name, norm):
    model = classifier()
    x, y = images(model)
    eps = 0.1 if norm == "inf" else 0.4
    attacked = attack_ensemble(model, x, y, eps=eps, norm=norm, attacks=[name], **OPTIONS)
    fooled = model(attacked).argmax(1) != y
    assert fooled.any()
    assert torch.equal(attacked[~fooled], x[~fooled])
    assert (length(attacked - x, norm) <= eps * (1 + 1e-5)).all()
    assert 0 <= attacked.min() <= attacked.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_the_ensemble_is_as_strong_as_pgd_towards_every_class(norm):
    """An untrained classifier is sure of nothing, so that raising the cross-entropy alone finds less."""
    model = classifier()
    x, y = images(model, batch=60)
    options = {"eps": 0.04 if norm == "inf" else 0.15, "norm": norm}
    stands = model(attack_ensemble(model, x, y, **options, **OPTIONS)).argmax(1) == y
    towards = [
        pgd(model, x, (y + shift) % 5, targeted=True, loss=margin, clamp=(0, 1), **options) for shift in range(1, 5)
    ]
    stands_pgd = torch.stack([model(attacked).argmax(1) == y for attacked in towards]).all(0)
    assert 5 < stands.sum() < 55
    assert (stands != stands_pgd).sum() <= 1


def test_inputs_in_another_box_are_attacked_alike():
    """A network behind a change of scale stands or falls with the one before it."""
    model = classifier()
    x, y = images(model, batch=60)
    options = {**OPTIONS, "attacks": ["apgd_ce"]}
    plain = model(attack_ensemble(model, x, y, eps=0.05, **options)).argmax(1) == y
    wide = nn.Sequential(Shift(), model)
    attacked = attack_ensemble(wide, 4 * x - 2, y, eps=0.2, clamp=(-2.0, 2.0), **options)
    assert torch.equal(wide(attacked).argmax(1) == y, plain)
    assert ((attacked - (4 * x - 2)).abs() <= 0.2 + 1e-6).all()


class Shift(nn.Module):
    def forward(self, x):
        return (x + 2) / 4


def test_a_stochastic_classifier_falls_to_the_expectation():
    layer = ibreg.VariationalBottleneck(36, 8, beta=0)
    nn.init.normal_(layer.encoder.weight)
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(8, 5))
    x = torch.rand(30, 1, 6, 6)
    y = ibreg.predict(model, x, draws=50, seed=0).argmax(1)
    attacked = attack_ensemble(model, x, y, eps=0.2, attacks=["apgd_ce"], steps=10, expectation=10)
    assert (ibreg.predict(model, attacked, draws=50, seed=0).argmax(1) != y).double().mean() > 0.5


def test_nothing_is_left_behind():
    model = classifier().train()
    model[1].weight.requires_grad_(False)
    x, y = images(model)
    before, flags = torch.get_rng_state(), [parameter.requires_grad for parameter in model.parameters()]
    attacked = attack_ensemble(model, x, y, eps=0.1, attacks=["fab_targeted"], **OPTIONS)
    assert not torch.equal(attacked, x)
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    again = attack_ensemble(model, x, y, eps=0.1, attacks=["fab_targeted"], **OPTIONS)
    assert torch.equal(again, attacked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ["pgd"]}, "attacks must be some of apgd_ce"),
        ({"attacks": []}, "attacks must be some of"),
        ({"eps": -1.0}, "eps must be a finite number"),
        ({"queries": 0}, "queries must be an integer"),
        ({"clamp": (0.0, 0.5)}, "must be within clamp"),
        ({"clamp": None}, "need bounds"),
        ({"target": torch.zeros(4)}, "must be classes"),
        ({"target": torch.full((4,), 7)}, "must be classes below 3"),
        ({"x": torch.ones(4, 36)}, "square needs images"),
        ({"x": torch.ones(4, 1, 4, 9), "norm": "2"}, "square of pyautoattack does not run on images of 4 x 9"),
        ({}, "apgd_targeted needs at least four classes, got 3"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    given = {"x": torch.ones(4, 1, 6, 6), "target": torch.zeros(4, dtype=torch.long), "eps": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        attack_ensemble(classifier(classes=3), given.pop("x"), given.pop("target"), **given)


def test_tables_are_attacked_without_square():
    model = classifier()
    x = torch.rand(20, 36)
    y = model(x).argmax(1)
    attacked = attack_ensemble(model, x, y, eps=0.2, attacks=STANDARD[:3], **OPTIONS)
    assert (model(attacked).argmax(1) != y).double().mean() > 0.5


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r"ibreg\[attacks\]"):
        attack_ensemble(classifier(), torch.rand(2, 1, 6, 6), torch.tensor([0, 1]), eps=0.1)


@pytest.mark.parametrize("size", [(side, 16) for side in range(5, 31)] + [(16, side) for side in range(5, 31)])
def test_images_on_which_square_does_not_run_are_refused_and_no_others(size, monkeypatch):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 5))
    x = torch.rand(2, 1, *size)
    y = network(x).argmax(1)
    options = {"eps": 1e-3, "norm": "2", "attacks": ["square"], "queries": 1}
    try:
        attacked = attack_ensemble(network, x, y, **options)
    except ValueError:
        monkeypatch.setattr("ibreg.evaluation.attacks.ensemble._tiles_fit", lambda *size: True)
        with pytest.raises(RuntimeError):
            attack_ensemble(network, x, y, **options)
    else:
        assert attacked.shape == x.shape


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_inputs_may_have_any_layout(norm):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    x = torch.rand(4, 3, 16, 16).to(memory_format=torch.channels_last)
    y = network(x).argmax(1)
    attacked = attack_ensemble(network, x, y, eps=1e-3, norm=norm, **OPTIONS)
    assert ((attacked - x).flatten(1).norm(dim=1, p=float(norm)) <= 1e-3 + 1e-6).all()


@pytest.mark.parametrize("name", ["apgd_ce", "apgd_targeted"])
def test_what_is_found_carries_no_graph(name):
    model = classifier()
    x, y = images(model)
    assert not attack_ensemble(model, x, y, eps=0.3, attacks=[name], **OPTIONS).requires_grad


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = classifier()

    def forward(self, x):
        return self.inner((x > 0.5).float())


def test_a_path_that_is_cut_is_searched_without_a_gradient():
    model = Cut()
    x, y = images(model)
    attacked = attack_ensemble(model, x, y, eps=0.3, attacks=["apgd_ce"], **OPTIONS)
    assert (attacked - x).abs().max() <= 0.3 + 1e-6
