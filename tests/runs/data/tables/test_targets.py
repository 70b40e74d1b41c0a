"""Classes keep the text of the file, quantities are finite numbers, and marks of missing values are neither."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibreg.runs.data.classification import load
from ibreg.runs.data.regression import load as load_regression
from ibreg.runs.data.tables.reading import MISSING_MARKS, Table, read_table
from ibreg.runs.data.tables.targets import target_classes, target_quantities

MARKS = frozenset(mark.lower() for mark in MISSING_MARKS)


def column(*cells, marks=MARKS):
    return Table(None, {"y": np.array(cells, dtype=object)}, range(2, 2 + len(cells)), marks)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["9007199254740993", "9007199254740992", "9007199254740995"],
         ["9007199254740992", "9007199254740993", "9007199254740995"]),
        (["10000000000000000905969665", "10000000000000000905969664"],
         ["10000000000000000905969664", "10000000000000000905969665"]),
        (["2.0", "10.0"], ["2.0", "10.0"]),
        (["+1", "-1", "0"], ["-1", "0", "+1"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["True", "False"], ["False", "True"]),
        (["1_0", "9"], ["1_0", "9"]),
        (["sales_$", "<b>", "ä, b"], ["<b>", "sales_$", "ä, b"]),
    ],
)  # fmt: skip
def test_classes_are_the_text_of_the_file_in_their_order(cells, names):
    labels, found = target_classes(column(*cells), "y")
    assert found == names
    assert [found[label] for label in labels] == cells


@pytest.mark.parametrize(
    ("cells", "names", "alike"),
    [
        (["10", "010", "2"], ["2", "010", "10"], "'010' and '10'"),
        (["1", "1.0", "0"], ["0", "1", "1.0"], "'1' and '1.0'"),
        (["1e1", "10", "+10"], ["+10", "10", "1e1"], "'[+]10' and '10' and '1e1'"),
        (["-0", "0", "a"], ["-0", "0", "a"], "'-0' and '0'"),
        (["True", "TRUE", "no"], ["TRUE", "True", "no"], "'TRUE' and 'True'"),
        (["new york", "New  York"], ["New  York", "new york"], "'New  York' and 'new york'"),
        (["caf\u00e9", "cafe\u0301"], ["cafe\u0301", "caf\u00e9"], "'cafe\u0301' and 'caf\u00e9'"),
        (["a", "A", "b", "B"], ["A", "B", "a", "b"], "'A' and 'a'; 'B' and 'b'"),
        ([*"abcdefg", *"ABCDEFG"], [*"ABCDEFG", *"abcdefg"], "'A' and 'a'; .*'E' and 'e'; 2 more"),
    ],
)
def test_classes_that_may_be_one_are_kept_apart_with_a_warning(cells, names, alike):
    message = f"column 'y': classes that may be one are kept apart: {alike}; write each class in one way if so$"
    with pytest.warns(UserWarning, match=message):
        labels, found = target_classes(column(*cells), "y")
    assert found == names
    assert [found[label] for label in labels] == cells


@pytest.mark.parametrize(
    "cells", [["1", "11"], ["a", "a."], ["o", "\u00f6"], ["yes", "y"], ["1", "true"], ["1_0", "10"], ["a b", "ab"]]
)
def test_other_classes_are_no_reason_to_warn(cells):
    assert set(target_classes(column(*cells), "y")[1]) == set(cells)


@given(st.lists(st.integers().map(str), min_size=1))
def test_integers_of_any_size_are_in_numerical_order(cells):
    labels, names = target_classes(column(*cells), "y")
    assert [int(name) for name in names] == sorted({int(cell) for cell in cells})
    assert [names[label] for label in labels] == cells


@pytest.mark.parametrize("classes", [["cat", "dog"], ["0", "1"], ["-5", "1.0"]])
@pytest.mark.parametrize("mark", [mark for mark in MISSING_MARKS if mark] + ["na", "NONE", "Null", "NAN"])
def test_a_mark_of_a_missing_value_is_no_class(classes, mark):
    message = r"column 'y', line 4: the target is missing, got .*; a class of that name is kept with data.missing_marks"
    with pytest.raises(ValueError, match=message):
        target_classes(column(*classes, mark), "y")
    if mark.strip("-.").isalpha():
        assert mark in target_classes(column("cat", mark, marks={""}), "y")[1]


def test_an_empty_cell_is_no_class_whatever_the_marks(tmp_path):
    with pytest.raises(
        ValueError, match=r"column 'y', line 3: the target is missing, got an empty cell; remove the row"
    ):
        target_classes(column("a", ""), "y")


@pytest.mark.parametrize("cell", ["inf", "-inf", "+Inf", "Infinity", "INF"])
@pytest.mark.parametrize("classes", [["cat", "dog"], ["0", "1"]])
def test_infinity_is_no_class(classes, cell):
    with pytest.raises(
        ValueError, match="column 'y', line 4: a class must be an integer or a string, got the infinite"
    ):
        target_classes(column(*classes, cell), "y")


@pytest.mark.parametrize("cells", [["0.5", "1"], ["1", "2", "1e-3"], ["-1.25", "3"], [".5", "1."]])
def test_fractions_are_no_classes(cells):
    with pytest.raises(ValueError, match=r"column 'y' holds fractions such as .*recipes/regression.py"):
        target_classes(column(*cells), "y")


def test_quantities_are_the_numbers_that_python_reads():
    cells = ["1", "-.5", "1e-300", "0.1", "9007199254740993"]
    assert target_quantities(column(*cells), "y").tolist() == [float(cell) for cell in cells]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("cheap", "a regression target must be a finite number, got cheap; for classes use recipes/classification.py"),
        ("inf", "must be a finite number, got inf"),
        ("1e999", "must be a finite number, got 1e999"),
        ("1_000", "must be a finite number, got 1_000"),
        ("1,5", "must be a finite number, got 1,5"),
        ("NA", "the target is missing, got NA; remove the row or fill it in$"),
        ("", "the target is missing, got an empty cell; remove the row or fill it in$"),
        ("?", r"the target is missing, got [?]"),
    ],
)
def test_what_is_no_quantity(cell, message):
    with pytest.raises(ValueError, match=f"column 'y', line 4: .*{message}"):
        target_quantities(column("1", "2", cell), "y")


def test_a_class_called_na_is_kept_on_request(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("a,y\n" + "".join(f"{i * i % 17},{['NA', 'SE'][i % 2]}\n" for i in range(40)))
    with pytest.raises(ValueError, match="line 2: the target is missing, got NA"):
        load("csv", path=file, target="y")
    assert load("csv", path=file, target="y", missing_marks=[""]).class_names == ("NA", "SE")
    assert read_table(file).missing("y").sum() == 20
    with pytest.raises(ValueError, match="line 2: the target is missing, got NA"):
        load_regression("csv", path=file, target="y")
