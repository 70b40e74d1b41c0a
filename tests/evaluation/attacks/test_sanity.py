"""The sanity checks pass on a plain network and fail where its gradients are masked."""

import pytest
import torch
from torch import nn

import ibreg
from ibreg.evaluation.attacks import sanity
from ibreg.evaluation.attacks.sanity import Check, sanity_checks

OPTIONS = {
    "inf": {"eps": [0.05, 0.1, 0.15], "steps": [1, 5, 20]},
    "2": {"eps": [0.3, 0.6, 0.9], "steps": [1, 5, 20], "norm": "2"},
}
NAMES = ["never rises", "about 0", "another model", "noise alone"]


class Scaled(nn.Module):
    """Multiplies logits until the softmax is 1 in float32 and the gradient of the cross-entropy 0."""

    def forward(self, logits):
        return 1e4 * logits


class Rounded(nn.Module):
    """Rounds the input to a few levels: no gradient comes through."""

    def forward(self, x):
        return (8 * x).round() / 8


def some(digits):
    return (part[:160] for part in digits)


def failed(checks):
    return [name for name, check in zip(NAMES, checks, strict=True) if not check.passed]


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_a_plain_network_passes(networks, known_digits, norm):
    checks = sanity_checks(*networks, *some(known_digits), **OPTIONS[norm])
    for name, check in zip(NAMES, checks, strict=True):
        assert check.passed, check
        assert name in check.name
    assert checks[1].figures == {f"eps {1 if norm == 'inf' else 8}": 0.0}
    # The figures are not trivial.
    assert checks[2].figures["transferred"] > checks[2].figures["own"] + 0.1
    assert 0.05 < min(checks[0].figures.values()) < max(checks[0].figures.values()) < 0.99


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("mask", ["saturated", "rounded"])
def test_masked_gradients_fail(networks, known_digits, mask, norm):
    network, surrogate = networks
    masked = nn.Sequential(network, Scaled()) if mask == "saturated" else nn.Sequential(Rounded(), network)
    checks = sanity_checks(masked, surrogate, *some(known_digits), **OPTIONS[norm])
    assert "about 0" in failed(checks)
    assert "another model" in failed(checks)
    if mask == "rounded":
        assert "noise alone" in failed(checks)


def test_noise_of_a_single_draw_masks_and_the_mean_over_draws_does_not():
    """The classifier's evidence is drowned in noise; only its mean over draws shows where it falls."""
    torch.manual_seed(3)
    layer = ibreg.VariationalBottleneck(8, 8, beta=0)
    model = nn.Sequential(layer, nn.Linear(8, 3))
    with torch.no_grad():
        layer.encoder.weight[:8] = torch.eye(8)
        layer.encoder.weight[8:] = 0
        layer.encoder.bias.fill_(0)
        layer.encoder.bias[8:] = 1.0  # sigma 1.3
    x = torch.randn(150, 8)
    target = ibreg.predict(model, x, draws=64, seed=1).argmax(1)
    surrogate = nn.Sequential(nn.Linear(8, 3))
    checks = sanity_checks(
        model, surrogate, x, target, eps=[0.1, 0.3, 0.8], steps=(2, 10), clamp=None, large_eps=10.0, expectation=32
    )
    assert failed(checks) == []


def test_a_difference_within_two_standard_errors_is_none():
    right = {n: torch.tensor([1.0] * n + [0.0] * (100 - n)).double() for n in (50, 52, 56, 60)}
    # Shuffled, the samples of the two do not coincide, and the error is that of two independent shares.
    mixed = right[56][torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    assert sanity._never_rises({1: right[50], 2: mixed}, {0.1: mixed}, 0.1, 2).passed
    assert not sanity._never_rises({1: right[50], 2: right[60]}, {0.1: right[60]}, 0.1, 2).passed
    assert not sanity._never_rises({2: right[50]}, {0.1: right[50], 0.2: right[60]}, 0.1, 2).passed


def test_outcomes_are_printed():
    check = Check("accuracy is about 0 at a large eps", False, {"eps 1": 0.4})
    assert str(check) == "FAILED: accuracy is about 0 at a large eps (eps 1 0.400)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": []}, "the checks need some eps"),
        ({"steps": []}, "the checks need some eps, steps"),
        ({"x": torch.zeros(0, 4), "target": torch.zeros(0, dtype=torch.long)}, "and 0"),
        ({"target": torch.zeros(5)}, "target must be classes"),
        ({"target": torch.zeros(4, dtype=torch.long)}, "target must be classes"),
        ({"eps": [-1.0]}, "eps must be a finite number"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    given = {"x": torch.rand(5, 4), "target": torch.zeros(5, dtype=torch.long), "eps": [0.1], "steps": [1]} | changes
    x, target = given.pop("x"), given.pop("target")
    with pytest.raises(ValueError, match=message):
        sanity_checks(nn.Linear(4, 3), nn.Linear(4, 3), x, target, **given)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_without_a_box_the_range_of_the_inputs_leaves_the_attack_free(norm):
    torch.manual_seed(0)
    x = 3 * torch.randn(100, 400)
    model, surrogate = nn.Linear(400, 2), nn.Linear(400, 2)
    with torch.no_grad():
        model.weight *= 1e-3
        model.bias.copy_(torch.tensor([0.0, 0.3]))
        surrogate.load_state_dict(model.state_dict())
    target = model(x).argmax(1)
    eps = [1.0, 2.0] if norm == "inf" else [20.0, 40.0]
    checks = sanity_checks(model, surrogate, x, target, eps=eps, norm=norm, steps=[5], clamp=None)
    width = float(x.max() - x.min())
    (free,) = checks[1].figures
    assert free == f"eps {width if norm == 'inf' else 20 * width:g}"
    assert checks[1].passed
