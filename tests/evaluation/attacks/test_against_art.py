"""FGSM and PGD against those of the adversarial-robustness-toolbox on the same trained network."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ibreg.evaluation.attacks.gradient import fgsm, pgd

pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed: pip install ibreg[attacks]")

from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier

# Radii at which FGSM and PGD fool about half of the digits.
CASES = [("inf", 0.15), ("2", 0.8)]


def art_attack(kind, network, norm, eps, clamp=(0.0, 1.0), **options):
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=clamp, device_type="cpu")
    norm = math.inf if norm == "inf" else 2
    attack = kind(estimator=classifier, norm=norm, eps=eps, **options)
    return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), F.one_hot(y, 10).float().numpy()))


def success(network, attacked, y, *, targeted=False):
    decision = network(attacked).argmax(1)
    return (decision == y if targeted else decision != y).double()


def assert_same_rate(ours, theirs):
    """Within two standard errors of the difference."""
    error = math.sqrt((ours.var() + theirs.var()) / len(ours))
    assert 0.1 < theirs.mean() < 0.95
    assert abs(ours.mean() - theirs.mean()) <= 2 * error


@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_fgsm_moves_to_the_same_points(networks, known_digits, norm, eps):
    (network, _), (x, y) = networks, known_digits
    clamp = (0.0, 1.0) if norm == "inf" else None  # with "2", theirs is short of eps where black and white are bounds
    ours = fgsm(network, x, y, eps=eps, norm=norm, clamp=clamp)
    theirs = art_attack(FastGradientMethod, network, norm, eps, clamp)(x, y)
    assert_same_rate(success(network, ours, y), success(network, theirs, y))
    # Pixels without a gradient (sign 0) may differ where rounding decides.
    assert ((ours - theirs).abs().flatten(1).amax(1) < 1e-4).double().mean() > 0.97


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_pgd_has_the_same_rate_of_success(networks, known_digits, norm, eps, targeted, momentum):
    (network, _), (x, y) = networks, known_digits
    eps = 1.3 * eps if targeted else eps
    aimed = (y + 1) % 10 if targeted else y
    options = {"eps": eps, "norm": norm}
    theirs = art_attack(
        ProjectedGradientDescentPyTorch, network, norm, eps, eps_step=eps / 8, max_iter=20, num_random_init=1,
        targeted=targeted, decay=momentum or None, batch_size=400, verbose=False,
    )(x, aimed)  # fmt: skip
    ours = pgd(
        network, x, aimed, steps=20, step_size=eps / 8, targeted=targeted, momentum=momentum, clamp=(0.0, 1.0),
        **options,
    )  # fmt: skip
    by_ours, by_theirs = (success(network, attacked, aimed, targeted=targeted) for attacked in (ours, theirs))
    assert_same_rate(by_ours, by_theirs)
