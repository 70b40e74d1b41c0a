"""The specification of concepts: descriptions, errors, and checks of labels."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

import ibreg
from ibreg.layers.concept.specification import LEAST_PROBABILITY, Concepts

MIXED = [
    "red",
    {"name": "striped", "group": "pattern", "weight": 2},
    {"name": "dotted", "group": "pattern"},
    {"name": "digit", "values": ["zero", "one", "two"], "weight": 0.5},
    {"name": "size", "kind": "continuous"},
]


def mixed():
    return Concepts.of(MIXED)


# ---- descriptions


def test_entries_become_columns():
    concepts = mixed()
    assert concepts.names == ("red", "striped", "dotted", "digit=zero", "digit=one", "digit=two", "size")
    assert concepts.kinds == ("binary",) * 3 + ("categorical",) * 3 + ("continuous",)
    assert concepts.groups == ("red", "pattern", "pattern", "digit", "digit", "digit", "size")
    assert concepts.weights == (1, 2, 1, 0.5, 0.5, 0.5, 1)
    assert concepts.members == {"red": (0,), "pattern": (1, 2), "digit": (3, 4, 5), "size": (6,)}
    assert concepts.runs == [("binary", slice(0, 3)), ("categorical", slice(3, 6)), ("continuous", slice(6, 7))]
    assert len(concepts) == 7
    assert concepts.index("dotted") == 2


def test_neighboring_categorical_groups_are_runs_of_their_own():
    concepts = Concepts.of([{"name": "first", "values": range(2)}, {"name": "second", "values": range(3)}])
    assert concepts.runs == [("categorical", slice(0, 2)), ("categorical", slice(2, 5))]


@pytest.mark.parametrize("description", [3, ["a", "b"], MIXED])
def test_entries_describe_it_again(description):
    concepts = Concepts.of(description)
    assert Concepts.of(json.loads(json.dumps(concepts.entries()))) == concepts
    assert Concepts.of(concepts) is concepts


def test_read_from_yaml(tmp_path):
    path = tmp_path / "concepts.yaml"
    path.write_text(
        "- red\n"
        "- {name: striped, group: pattern, weight: 2}\n"
        "- {name: dotted, group: pattern}\n"
        "- {name: digit, values: [zero, one, two], weight: 0.5}\n"
        "- {name: size, kind: continuous}\n"
    )
    assert Concepts.read(path) == mixed()
    path.write_text("red: 1\n")
    with pytest.raises(ValueError, match=r"concepts.yaml does not describe concepts: .*a list of names"):
        Concepts.read(path)
    path.write_text("[red\n")
    with pytest.raises(ValueError, match=r"concepts.yaml does not describe concepts"):
        Concepts.read(path)
    with pytest.raises(FileNotFoundError):
        Concepts.read(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("{name: red, values: [yes, no]}", ("red=yes", "red=no")),
        ("{name: size, values: [010, 020]}", ("size=010", "size=020")),
        ("{name: d, values: [12:30, 13:45]}", ("d=12:30", "d=13:45")),
        ("{name: country, values: [se, no, dk]}", ("country=se", "country=no", "country=dk")),
        ("{name: on, values: [off, true]}", ("on=off", "on=true")),
        ("{name: day, values: [2020-01-01, 2020-01-02]}", ("day=2020-01-01", "day=2020-01-02")),
        ("{name: mass, values: [1e3, 1_000, .5, 0x1A]}", ("mass=1e3", "mass=1_000", "mass=.5", "mass=0x1A")),
        ("{name: none, values: [null, ~]}", ("none=null", "none=~")),
        ("on", ("on",)),
        ("10", ("10",)),
    ],
)
def test_a_yaml_file_keeps_its_text(tmp_path, entry, names):
    path = tmp_path / "concepts.yaml"
    path.write_text(f"- {entry}\n")
    assert Concepts.read(path).names == names


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: a, weight: heavy}", "the weight of concept 'a' must be a finite number of at least 0, got 'heavy'"),
        ("{name: a, weight: [1]}", "the weight of concept 'a' must be a finite number"),
        ("{name: a, weight: yes}", "the weight of concept 'a' must be a finite number .*, got 'yes'"),
        ("{name: a, weight: nan}", "the weight of concept 'a' must be a finite number .*, got nan"),
        ("{name: a, values: [b, '']}", "each value of concept 'a' must not be empty, got ''"),
        ("name:", "the name of a concept must not be empty"),
        ("{name: a, values: yes}", "the values of concept 'a' must be a list of two or more, got 'yes'"),
    ],
)
def test_a_yaml_file_that_describes_no_concepts(tmp_path, entry, message):
    path = tmp_path / "concepts.yaml"
    path.write_text(f"- {entry}\n")
    with pytest.raises(ValueError, match=f"does not describe concepts: {message}"):
        Concepts.read(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"name": "red", "values": [True, False]},
            "each value of concept 'red' must be a string, got True: YAML",
        ),
        ({"name": True}, "the name of a concept must be a string, got True: YAML reads yes"),
        ({"name": "a", "group": False}, "the group of concept 'a' must be a string, got False: YAML"),
        ({"name": "a", "values": ["b", None]}, "each value of concept 'a' must be a string, got None: YAML"),
        (True, "a concept must be a name or a mapping with a name, got True: YAML reads .* quote them, as in 'yes'"),
        (None, "a concept must be a name or a mapping with a name, got None: YAML"),
    ],
)
def test_what_yaml_made_of_yes_and_no_is_to_be_quoted(entry, message):
    with pytest.raises(ValueError, match=message):
        Concepts.of([entry])


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (0, "the number of concepts must be at least 1, got 0"),
        (True, "concepts must be their number"),
        ("red", "must be their number, a list of names"),
        ({"red": 1}, "concepts must be their number"),
        (2.5, "concepts must be their number"),
        ([], "must name at least one concept"),
        ([3], "a concept must be a name or a mapping with a name, got 3"),
        ([{"kind": "binary"}], "a mapping with a name"),
        ([{"name": "a", "wheight": 2}], "'a' has no field 'wheight': choose from name, kind, group, weight, values"),
        (
            [{"name": "a", "kind": "ordinal"}],
            "the kind of concept 'a' must be one of 'binary', 'categorical', 'continuous'",
        ),
        ([{"name": "a", "weight": -1}], "the weight of concept 'a' must be a finite number of at least 0"),
        ([{"name": "a", "weight": math.nan}], "the weight of concept 'a' must be a finite number"),
        (["a", "b", "a"], "'a' is used twice"),
        ([{"name": "a", "values": [0, 1], "kind": "binary"}], "'a' has values, so it is categorical"),
        ([{"name": "a", "values": [0, 1], "group": "b"}], "categorical and a group of its own"),
        ([{"name": "a", "values": [0]}], "the values of concept 'a' must be a list of two or more"),
        ([{"name": "a", "values": []}], "the values of concept 'a' must be a list of two or more"),
        ([{"name": "a", "values": "abc"}], "the values of concept 'a' must be a list of two or more"),
        (
            [{"name": "a", "weight": "two"}],
            "the weight of concept 'a' must be a finite number .*, got 'two'",
        ),
        ([{"name": "g", "group": "h"}, {"name": "g", "values": [0, 1]}], "'g' is a concept of group 'h' and the name"),
        ([{"name": "a", "kind": "categorical"}], "must have two or more adjacent columns, 'a' has"),
        (
            [
                {"name": "a", "kind": "categorical", "group": "g"},
                "b",
                {"name": "c", "kind": "categorical", "group": "g"},
            ],
            r"must have two or more adjacent columns, 'g' has \[0, 2\]",
        ),
        (
            [{"name": "a", "kind": "categorical", "group": "g"}, {"name": "b", "group": "g"}],
            "'g' has binary and categorical concepts: all its columns must be of one kind",
        ),
        (
            [{"name": n, "kind": "categorical", "group": "g", "weight": w} for n, w in (("a", 1), ("b", 2))],
            "'g' share one loss: give them the same weight",
        ),
    ],
)
def test_invalid_descriptions(description, message):
    with pytest.raises(ValueError, match=message):
        Concepts.of(description)


def test_columns_of_variables_are_consecutive():
    first, second = Concepts.of(["a", "b"]).variables
    assert Concepts((first, second)) == Concepts.of(["a", "b"])
    for variables in ((second, first), (second,), (first, first)):
        with pytest.raises(ValueError, match="columns of the variables must be 0, 1, 2"):
            Concepts(variables)


def test_variables_keep_the_entries_and_their_columns():
    assert [(v.name, v.kind, v.columns, v.values) for v in mixed().variables] == [
        ("red", "binary", (0,), ()),
        ("striped", "binary", (1,), ()),
        ("dotted", "binary", (2,), ()),
        ("digit", "categorical", (3, 4, 5), ("zero", "one", "two")),
        ("size", "continuous", (6,), ()),
    ]
    entries = [*MIXED[:2], {"name": "b", "kind": "categorical", "group": "g"}]
    entries.append({"name": "c", "kind": "categorical", "group": "g"})
    assert Concepts.of(entries).entries() == entries
    assert mixed().entries() == MIXED


def test_units_are_categorical_groups_and_single_columns():
    expected = {"red": (0,), "striped": (1,), "dotted": (2,), "digit": (3, 4, 5), "size": (6,)}
    assert mixed().units == expected


def test_unknown_name():
    with pytest.raises(ValueError, match="there is no concept 'blue': choose from red, striped"):
        mixed().index("blue")


# ---- probabilities, logits, decisions


def test_probabilities_by_kind():
    logits = torch.randn(5, 7, dtype=torch.float64)
    expected = logits.numpy().copy()
    expected[:, :3] = expit(expected[:, :3])
    expected[:, 3:6] = softmax(expected[:, 3:6], axis=1)
    np.testing.assert_allclose(mixed().probabilities(logits), expected, rtol=1e-12)


def test_logits_are_the_inverse_and_finite_at_0_and_1():
    probabilities = mixed().probabilities(torch.randn(5, 7, dtype=torch.float64))
    torch.testing.assert_close(mixed().probabilities(mixed().logits(probabilities)), probabilities)
    certain = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 7.0]])
    logits = mixed().logits(certain)
    assert logits.isfinite().all()
    assert logits[0, 6] == 7
    torch.testing.assert_close(mixed().probabilities(logits), certain, rtol=0, atol=3 * LEAST_PROBABILITY)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.floats(0.1, 30))
def test_mixed_logits_are_those_of_the_mean_probability(draws, scale):
    logits = scale * torch.randn(draws, 4, 7, dtype=torch.float64)
    mean = mixed().probabilities(logits).mean(0)
    torch.testing.assert_close(mixed().probabilities(mixed().mixed_logits(logits)), mean)


def test_mixed_logits_keep_what_a_mean_of_probabilities_loses():
    logits = torch.full((3, 1, 2), 60.0, requires_grad=True)
    mixed_logits = Concepts.of(2).mixed_logits(logits)
    torch.testing.assert_close(mixed_logits, torch.full((1, 2), 60.0))
    mixed_logits.sum().backward()
    torch.testing.assert_close(logits.grad, torch.full((3, 1, 2), 1 / 3))


def test_decisions():
    probabilities = torch.tensor([[0.51, 0.5, 0.0, 0.3, 0.4, 0.3, -2.5]])
    assert mixed().decisions(probabilities).tolist() == [[1, 0, 0, 0, 1, 0, -2.5]]


# ---- labels


def good():
    labels = torch.tensor([[1.0, 0.0, 0.3, 0, 1, 0, 7.5], [0, 1, 1, 0.2, 0.3, 0.5, -3], [0, 0, 1, 1, 0, 0, 0]])
    labels[1, 0] = labels[2, 6] = math.nan
    labels[2, 3:6] = math.nan
    return labels


def test_labels_may_be_soft_and_missing():
    assert torch.equal(mixed().validate(good()).isnan(), good().isnan())
    assert mixed().validate(good().numpy()).dtype == torch.float32
    assert Concepts.of(2).validate([[0, 1], [1, 0]]).tolist() == [[0, 1], [1, 0]]


def broken(change):
    labels = good()
    change(labels)
    return labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4), r"concept labels must have shape \(batch, 7 concepts\), got \(4,\)"),
        (torch.zeros(4, 6), r"concept labels must have shape \(batch, 7 concepts\), got \(4, 6\)"),
        (
            broken(lambda y: y[0, :1].fill_(1.5)),
            r"labels of concept 'red' must be in \[0, 1\] or NaN .*, got 1.5",
        ),
        (broken(lambda y: y[0, :1].fill_(-1)), "labels of concept 'red' must be in"),
        (broken(lambda y: y[0, 6:].fill_(math.inf)), "labels of concept 'size' must be finite"),
        (broken(lambda y: y[:, 2].fill_(math.nan)), "all labels of concept 'dotted' are missing"),
        (broken(lambda y: y[0, 3:4].fill_(math.nan)), "labels for some columns of group 'digit' only"),
        (broken(lambda y: y[0, 3:4].fill_(1)), "labels of the categorical group 'digit' must sum to 1"),
        (torch.zeros(0, 7), "all labels of concept 'red' are missing"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        mixed().validate(labels)


def test_positive_weights_balance_the_classes():
    labels = torch.zeros(10, 3)
    labels[:2, 0] = 1  # 8 : 2
    labels[:, 1] = 0.25  # soft: 7.5 : 2.5
    labels[5:, 0] = math.nan  # 3 : 2 are left
    assert Concepts.of(3).positive_weights(labels) == pytest.approx([1.5, 3.0, 1.0])
    assert mixed().positive_weights(good())[3:] == [1, 1, 1, 1]


def test_it_is_a_public_name_that_needs_no_yaml():
    assert ibreg.Concepts is Concepts
    assert "yaml" not in vars(__import__("ibreg.layers.concept.specification", fromlist=["x"]))
