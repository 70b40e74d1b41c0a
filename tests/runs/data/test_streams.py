"""Splits of classes, and the toy's points against what is known of Gaussians."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ibreg.runs.data.rows import Rows
from ibreg.runs.data.split import Request
from ibreg.runs.data.streams import (
    TOY_EXTENT,
    class_order,
    class_splits,
    load,
    rows_of,
    toy_gaussians,
    unlabeled_inputs,
)
from ibreg.runs.dispatch import keyword_options


def test_the_toy_has_eight_gaussians_on_a_ring():
    data = load("toy_gaussians", rows=80_000, deviation=0.2, validation=0)
    points = torch.cat([data.train.inputs, data.test.inputs]).double().numpy()
    labels = torch.cat([data.train.targets, data.test.targets]).numpy()
    assert np.bincount(labels).tolist() == [10_000] * 8
    for label in range(8):
        angle = np.pi * label / 4
        of_class = points[labels == label]
        # Five standard errors.
        assert of_class.mean(0) == pytest.approx([np.cos(angle), np.sin(angle)], abs=5 * 0.2 / 100)
        assert np.cov(of_class.T) == pytest.approx(0.04 * np.eye(2), abs=5 * 0.04 * np.sqrt(2) / 100)


def test_the_toy_depends_on_its_seed_alone_and_its_parts_are_disjoint():
    torch.manual_seed(1)
    first = load("toy_gaussians", split_seed=3)
    np.random.seed(2)
    again, other = load("toy_gaussians", split_seed=3), load("toy_gaussians", split_seed=4)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    parts = [first.train.inputs, first.validation.inputs, first.test.inputs]
    assert len(torch.cat(parts).unique(dim=0)) == sum(map(len, parts)) == 2400
    points = unlabeled_inputs(first)
    assert points.abs().max() <= TOY_EXTENT
    assert torch.equal(points, unlabeled_inputs(other))
    assert not torch.equal(points, unlabeled_inputs(first, seed=1))


def test_images_have_values_from_0_to_1_whatever_the_mean():
    data = load("digits", mean=0.5, std=0.5)
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 1)
    assert torch.equal(unlabeled_inputs(data), data.train.inputs)
    drawn = unlabeled_inputs(data, limit=50)
    assert len(drawn.flatten(1).unique(dim=0)) == 50
    assert all((data.train.inputs == row).flatten(1).all(1).any() for row in drawn)
    assert torch.equal(drawn, unlabeled_inputs(data, limit=50))


@given(st.integers(1, 12), st.integers(0, 1000), st.integers(1, 12))
def test_splits_hold_every_class_once(classes, seed, per_split):
    order = class_order(classes, seed)
    assert order == class_order(classes, seed)
    if classes % per_split:
        with pytest.raises(ValueError, match="classes_per_split must be one of"):
            class_splits(order, per_split)
        return
    splits = class_splits(order, per_split)
    assert {len(split) for split in splits} == {per_split}
    assert sorted(sum(splits, ())) == list(range(classes))


def test_seeds_give_other_orders():
    assert len({tuple(class_order(10, seed)) for seed in range(20)}) == 20
    assert class_order(10, None) == list(range(10))


def test_rows_of_a_split_are_those_of_its_classes():
    rows = Rows(torch.arange(8.0).view(8, 1), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]))
    kept = rows_of(rows, (3, 1))
    assert kept.inputs.flatten().tolist() == [1, 3, 5, 7]
    assert kept.targets.tolist() == [1, 3, 1, 3]


def test_the_yaml_of_the_toy_has_every_option_with_its_default(pytestconfig):
    options = OmegaConf.to_container(OmegaConf.load(pytestconfig.rootpath / "configs" / "data" / "toy_gaussians.yaml"))
    expected = keyword_options(Request) | keyword_options(toy_gaussians) | {"name": "toy_gaussians"}
    assert options == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "toy"}, r"^data\.name: no data set 'toy': it is one of .*, toy_gaussians$"),
        (
            {"name": "toy_gaussians", "size": 3},
            "^data has no key 'size': it has name, root, .*, rows, deviation, test$",
        ),
        ({"name": "toy_gaussians", "rows": 100}, r"^data\.rows must be a multiple of the 8 classes, got 100$"),
        ({"name": "toy_gaussians", "rows": 0}, r"^data\.rows must be an integer of at least 1, got 0$"),
        ({"name": "toy_gaussians", "deviation": 0}, r"^data\.deviation must be a number above 0, got 0$"),
        ({"name": "toy_gaussians", "test": 1.0}, r"^data\.test must be a number above 0 and below 1, got 1\.0$"),
        ({"name": "cifar10", "augment": True}, "encoded once"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        load(**settings)
