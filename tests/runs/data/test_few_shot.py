"""Few images of each class: how many, which, and that test images are what they are said to be."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ibreg.evaluation.corruptions import corrupt
from ibreg.runs.data.classification import ClassificationData, load
from ibreg.runs.data.few_shot import corrupted, few_shot, of_classes, spread
from ibreg.runs.data.rows import Rows


@pytest.fixture(scope="module")
def digits():
    return load("digits", validation=0)


def key(rows):
    return {rows[index][0].numpy().tobytes() for index in range(len(rows))}


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(3, 30), min_size=2, max_size=5), shots=st.integers(2, 3), seed=st.integers(0, 99))
def test_every_class_has_so_many_and_no_row_is_in_both_parts(counts, shots, seed):
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    rows = Rows(torch.arange(len(targets)), targets)
    data = ClassificationData("made", rows, None, rows, (), tuple(map(str, range(len(counts)))))
    few = few_shot(data, shots, validation=0.2, seed=seed)
    assert few.train.targets.bincount().tolist() == [shots - 1] * len(counts)
    assert few.validation.targets.bincount().tolist() == [1] * len(counts)
    kept = [part[index] for part in (few.train, few.validation) for index in range(len(part))]
    assert len({int(row) for row, _ in kept}) == shots * len(counts)
    assert all(targets[row] == label for row, label in kept)


def test_a_seed_draws_the_same_images_another_draws_others_and_more_include_fewer(digits):
    def images(shots, seed):
        few = few_shot(digits, shots, validation=0.2, seed=seed)
        return key(few.train) | key(few.validation)

    assert images(5, 1) == images(5, 1) != images(5, 2)
    assert images(5, 1) < images(20, 1)
    assert len(images(5, 1)) == 50


def test_zero_takes_all_and_holds_a_share_of_each_class_out(digits):
    few = few_shot(digits, 0, validation=0.25, seed=0)
    assert len(few.train) + len(few.validation) == len(digits.train)
    share = few.validation.targets.bincount() / digits.train.targets.bincount()
    assert (share - 0.25).abs().max() < 0.01
    assert few_shot(digits, 0, validation=0, seed=0).validation is None


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        (1, "shots=1 .* leaves no training image of class '0'"),
        (1000, r"shots must be at most \d+, the training images of class '0', got 1000"),
    ],
)
def test_too_few_images_are_refused(digits, shots, message):
    with pytest.raises(ValueError, match=message):
        few_shot(digits, shots, validation=0.2, seed=0)


def test_training_images_are_augmented_and_those_held_out_are_not(digits):
    data = replace(digits, train=Rows(digits.train.inputs, digits.train.targets, lambda images, generator: images + 1))
    plain, few = (few_shot(each, 5, validation=0.4, seed=3) for each in (digits, data))
    assert torch.equal(few.train.__getitems__([0, 1])[0], plain.train.__getitems__([0, 1])[0] + 1)
    assert torch.equal(few.validation.__getitems__([0, 1])[0], plain.validation.__getitems__([0, 1])[0])


def test_some_classes_are_renumbered(digits):
    some = of_classes(digits, [9, 2])
    assert some.class_names == ("9", "2")
    assert len(some.train) == (digits.train.targets == 9).sum() + (digits.train.targets == 2).sum()
    nines = key(Rows(digits.train.inputs[digits.train.targets == 9], digits.train.targets[digits.train.targets == 9]))
    for index in range(len(some.train)):
        image, label = some.train[index]
        assert (image.numpy().tobytes() in nines) == (label == 0)


@pytest.mark.parametrize("labels", [[], [3], [3, 3], [0, 10], [-1, 2]])
def test_classes_that_are_none_are_refused(digits, labels):
    with pytest.raises(ValueError, match=r"two or more different integers from 0 to 9"):
        of_classes(digits, labels)


def test_rows_are_spread_over_the_classes(digits):
    ordered = Rows(torch.arange(100), torch.arange(100) // 10)
    assert spread(ordered, 20).targets.bincount().tolist() == [2] * 10
    assert spread(ordered, 0) is spread(ordered, 200) is ordered


def test_images_are_corrupted_and_their_targets_stay():
    images = torch.rand(4, 3, 16, 16)
    found = corrupted(Rows(images, torch.arange(4)), "contrast", 3)
    assert torch.equal(found.inputs, corrupt(images, "contrast", 3))
    assert torch.equal(found.targets, torch.arange(4))
