"""Painted digits: the shares that are asked for, and nothing else changed."""

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibreg.runs.data.classification import load
from ibreg.runs.data.colored import GROUPS, groups_of, paint

DATA = Path(os.environ.get("IBREG_DATA") or "data")
needs_mnist = pytest.mark.skipif(not (DATA / "MNIST" / "raw").is_dir(), reason="no MNIST under IBREG_DATA")


def painted(rows=20_000, **options):
    torch.manual_seed(0)
    images, digits = torch.rand(rows, 1, 2, 2), torch.randint(10, (rows,))
    options = {"correlation": 0.9, "label_noise": 0.0, "generator": torch.Generator().manual_seed(1)} | options
    return images, digits, *paint(images, digits, **options)


def assert_share(found, expected, samples):
    assert abs(found.double().mean() - expected) <= 4 * math.sqrt(expected * (1 - expected) / samples)


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("label_noise", [0.0, 0.25])
def test_color_and_label_agree_as_often_as_is_asked_for(correlation, label_noise):
    images, digits, colored, labels = painted(correlation=correlation, label_noise=label_noise)
    green = colored[:, 1].flatten(1).any(1)
    assert_share(green == labels, correlation, 20_000)
    assert_share(labels != (digits >= 5), label_noise, 20_000)
    # Wrong labels have the same correlation: color follows the label, not the digit.
    wrong = labels != (digits >= 5)
    if wrong.any():
        assert_share((green == labels)[wrong], correlation, int(wrong.sum()))
    torch.testing.assert_close(colored.sum(1, keepdim=True), images)
    assert (colored[:, 2] == 0).all()


@settings(deadline=None, max_examples=30)
@given(
    mean=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    std=st.lists(st.floats(0.1, 2), min_size=3, max_size=3),
)
def test_groups_are_told_in_any_scale(mean, std):
    _, _, colored, labels = painted(rows=100)
    green = colored[:, 1].flatten(1).any(1)
    scaled = (colored - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    groups = groups_of(scaled, labels)
    assert torch.equal(groups, 2 * labels + green)
    assert [GROUPS[group].split(", ")[1] == "green" for group in groups] == green.tolist()


@pytest.mark.parametrize("changes", [{"correlation": 1.5}, {"correlation": -0.1}, {"label_noise": "much"}])
def test_shares_are_checked(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be a fraction"):
        painted(rows=10, **changes)


@needs_mnist
def test_the_set_has_the_digits_of_mnist_with_colors():
    found = load("colored_mnist", root=DATA, limit=2000, correlation=0.8, test_correlation=0.1)
    gray = load("mnist", root=DATA, limit=2000)
    assert found.input_shape == (3, 28, 28)
    assert found.class_names == ("0 to 4", "5 to 9")
    for name, share in (("train", 0.8), ("validation", 0.8), ("test", 0.1)):
        part, digits = getattr(found, name), getattr(gray, name)
        assert torch.equal(part.targets, (digits.targets >= 5).long())
        torch.testing.assert_close(part.inputs.amax(1), digits.inputs.squeeze(1))
        groups = groups_of(part.inputs, part.targets)
        assert_share((groups == 0) | (groups == 3), share, len(part))
    again = load("colored_mnist", root=DATA, limit=2000, correlation=0.8, test_correlation=0.1)
    assert torch.equal(again.test.inputs, found.test.inputs)
    other = load("colored_mnist", root=DATA, limit=2000, split_seed=1, test_correlation=0.1)
    assert not torch.equal(other.test.inputs, found.test.inputs)


@needs_mnist
def test_without_validation_there_is_none():
    assert load("colored_mnist", root=DATA, limit=200, validation=0).validation is None
