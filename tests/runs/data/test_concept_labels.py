"""Concept labels of a table: text, booleans, missing marks, and continuous concepts in any unit."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from ibreg.layers.concept.specification import Concepts
from ibreg.runs.data.concept_labels import concept_labels
from ibreg.runs.data.concepts import load
from ibreg.runs.data.tables.reading import MISSING_MARKS, Table

MARKS = frozenset(mark.lower() for mark in MISSING_MARKS)
NAN = float("nan")


def labels(concept, *cells):
    table = Table(None, {"c": np.array(cells, dtype=object)}, range(2, 2 + len(cells)), MARKS)
    entry = concept if isinstance(concept, str) else {"name": "c", **concept}
    return concept_labels(table, Concepts.of([entry])).T.tolist()


@pytest.mark.parametrize(
    ("concept", "cells", "expected"),
    [
        ("c", ["1", "0", "", "NA"], [[1, 0, NAN, NAN]]),
        ("c", ["True", "False", "?"], [[1, 0, NAN]]),
        ("c", ["yes", "NO", "Y", "f"], [[1, 0, 1, 0]]),
        ("c", ["0.25", "1.0"], [[0.25, 1]]),
        ({"kind": "continuous"}, ["-1e3", "", "0.5"], [[-1000, NAN, 0.5]]),
        ({"values": ["yes", "no"]}, ["no", "yes", ""], [[0, 1, NAN], [1, 0, NAN]]),
        ({"values": ["se", "no", "dk"]}, ["no", "dk"], [[0, 0], [1, 0], [0, 1]]),
        ({"values": ["010", "20"]}, ["20", "010", "n/a"], [[0, 1, NAN], [1, 0, NAN]]),
        ({"values": ["NA", "EU"]}, ["NA", "EU", ""], [[1, 0, NAN], [0, 1, NAN]]),
        ({"values": [0, 1]}, ["1", "0"], [[0, 1], [1, 0]]),
        ({"values": ["12:30", "13:45"]}, ["13:45", "12:30"], [[0, 1], [1, 0]]),
    ],
)
def test_cells_become_labels(concept, cells, expected):
    np.testing.assert_array_equal(labels(concept, *cells), expected)


@pytest.mark.parametrize(
    ("concept", "cells", "message"),
    [
        ("c", ["old", "young"], r"line 2, must be a number or empty .*, got old; for text, list its values: {name: c, "
                                r'values: \["old", "young"\]}'),
        ("c", ["", "no", "on"], r'line 4, .* got on.*values: \["no", "on"\]'),
        ("c", ["1", "0", "many"], r"line 4, must be a number or empty \(no label\), got many$"),
        ("c", ["1", "yes"], r"line 3, must be a number or empty \(no label\), got yes$"),
        ({"kind": "continuous"}, ["low", "high"], r'line 2, must be a number.*values: \["high", "low"\]'),
        ({"kind": "continuous"}, ["yes", "no"], "line 2, must be a number"),
        ({"kind": "continuous"}, ["1", "inf"], "line 3, must be a number or empty .*, got inf"),
        ({"kind": "continuous"}, ["1", "1_0"], "line 3, must be a number or empty .*, got 1_0"),
        ({"values": ["a", "b"]}, ["a", "c"], r"line 3, must be one of \['a', 'b'\] or empty \(no label\), got c$"),
        ({"values": [8, 16]}, ["010", "020"], r"line 2, must be one of \['8', '16'\] or empty .*, got 010"),
        ({"values": ["yes", "no"]}, ["Yes"], r"line 2, must be one of \['yes', 'no'\] or empty .*, got Yes"),
    ],
)  # fmt: skip
def test_cells_that_are_no_labels_are_named(concept, cells, message):
    with pytest.raises(ValueError, match=f"column 'c', {message}"):
        labels(concept, *cells)


CONCEPTS = ["fever", {"name": "crp", "kind": "continuous"}, {"name": "age", "values": ["young", "old"]}]


def clinic(folder, unit=1.0, seed=0):
    """A table of 80 patients, with a lab value in some unit and missing labels."""
    rng = np.random.default_rng(seed)
    crp = np.exp(rng.normal(1, 1, 80))
    frame = pd.DataFrame(
        {
            "pulse": rng.normal(80, 10, 80).round(1),
            "site": rng.choice(["Bern", "Basel"], 80),
            "fever": rng.choice(["True", "False", ""], 80),
            "crp": [repr(float(value)) if row % 7 else "" for row, value in enumerate(crp * unit)],
            "age": rng.choice(["young", "old", "NA"], 80),
            "kind": rng.choice(["ill", "well"], 80),
        }
    )
    file = folder / f"clinic{unit:g}.csv"
    frame.to_csv(file, index=False)
    return load("concept_csv", path=file, target="kind", concepts=CONCEPTS), np.where(frame.crp == "", np.nan, crp)


@pytest.mark.parametrize("unit", [1024.0, 1000.0, 1e-6, 1e300, 1e-300])
def test_the_unit_of_a_continuous_concept_changes_nothing_but_the_unit(tmp_path, unit):
    (one, crp), (other, _) = clinic(tmp_path), clinic(tmp_path, unit)
    tolerance = {"rtol": 0, "atol": 0} if unit == 1024 else {"rtol": 1e-5, "atol": 1e-5}
    for part in ("train", "validation", "test"):
        for name in ("inputs", "targets", "concepts"):
            assert_close(
                getattr(getattr(one, part), name), getattr(getattr(other, part), name), equal_nan=True, **tolerance
            )
    assert other.label_stds[1] == pytest.approx(unit * one.label_stds[1])
    in_units = torch.cat([one.in_units(part.concepts)[:, 1] for part in (one.train, one.validation, one.test)])
    np.testing.assert_allclose(np.sort(in_units), np.sort(crp), rtol=1e-5)


def test_continuous_labels_are_standardized_by_the_known_training_labels(tmp_path):
    found, _ = clinic(tmp_path)
    known = found.train.concepts[:, 1]
    known = known[~known.isnan()]
    assert_close(known.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(known.std(correction=0), torch.tensor(1.0))
    assert found.label_means[0] == found.label_means[2] == 0
    assert found.label_stds[0] == found.label_stds[2] == 1
    assert set(found.train.concepts[:, 0].nan_to_num(2).tolist()) == {0, 1, 2}
    assert found.input_names == ("pulse", "site=Basel", "site=Bern")
    assert [column.read_as for column in found.columns] == [
        "number", "text", "binary concept", "continuous concept", "categorical concept", "class",
    ]  # fmt: skip


def test_a_constant_continuous_concept_is_centered_and_keeps_its_unit(tmp_path):
    lines = ["x,c,y", *(f"{row * row % 13},5.5,{'ab'[row % 2]}" for row in range(40))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    found = load("concept_csv", path=tmp_path / "t.csv", target="y", concepts=[{"name": "c", "kind": "continuous"}])
    assert found.train.concepts.abs().max() == 0
    assert (found.label_means, found.label_stds) == ((5.5,), (1.0,))


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ([True], "a concept must be a name or a mapping with a name, got True: YAML reads yes"),
        (
            [{"name": "c", "values": [True, False]}],
            "each value of concept 'c' must be a string, got True: YAML",
        ),
        ([{"name": "c", "value": ["a", "b"]}], "concept 'c' has no field 'value'"),
        ([], r"data.concepts must be a list of columns, such as \[red, .* or the path of a YAML file.*, got \[\]"),
        (5, "data.concepts must be a list of columns"),
        (["C"], "has no column 'C'; the closest is 'c'"),
        (["c", "c"], "'c' is used twice"),
        (["x", "y"], "data.target and data.concepts must be different columns, got 'y' for both"),
    ],
)
def test_concepts_that_are_not_described(tmp_path, concepts, message):
    rows = [f"{i * i % 13},{i % 2},{i % 3 % 2},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,c,5,y", *rows]))
    with pytest.raises(ValueError, match=message):
        load("concept_csv", path=tmp_path / "t.csv", target="y", concepts=concepts)
    assert load("concept_csv", path=tmp_path / "t.csv", target="y", concepts=[5, "c"]).concepts.names == ("5", "c")
