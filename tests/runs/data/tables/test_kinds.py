"""What columns are read as: by all their cells, by the option `kinds`, and the errors of cells that do not fit."""

import itertools

import numpy as np
import pytest

from ibreg.runs.data.tables.kinds import read_column
from ibreg.runs.data.tables.reading import MISSING_MARKS, Table

MARKS = frozenset(mark.lower() for mark in MISSING_MARKS)


def column(*cells, kind=None):
    table = Table(None, {"x": np.array(cells, dtype=object)}, range(2, 2 + len(cells)), MARKS)
    return read_column(table, "x", kind)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "", "2.5", "NA"], "number"),
        (["0", "1", "1"], "number"),
        (["007", "010"], "number"),
        (["9007199254740993", "-1e-5"], "number"),
        (["2020", "2021"], "number"),
        (["20200101", "20210101"], "number"),
        (["True", "False", ""], "boolean"),
        (["yes", "NO", "?"], "boolean"),
        (["t", "f"], "boolean"),
        (["Y"], "boolean"),
        (["2020-01-01", "", "2020-02-01"], "date"),
        (["12:30", "13:45"], "date"),
        (["2020-01", "2021-03"], "date"),
        (["1.2.2020", "13.2.2020"], "date"),
        (["red", "", "blue"], "text"),
        (["yes", "no", "maybe"], "text"),
        (["1", "2", "many"], "text"),
        (["E10", "250", "V45"], "text"),
        (["F", "N"], "text"),
        (["t", "Y", ""], "text"),
        (["yes", "t"], "text"),
        (["No", "f", "N"], "text"),
        (["yes", "f"], "text"),
        (["yes", "no", "y"], "text"),
        (["Y", "y"], "text"),
        (["TRUE", "false", "True"], "boolean"),
        (["a-1", "b-2"], "text"),
        (["", "NA"], "text"),
        (["12-345", "13-999"], "text"),
        (["10.0.0.1", "10.0.0.2"], "text"),
    ],
)
def test_what_all_cells_are(cells, kind):
    found = column(*cells)
    assert found.kind == kind
    assert found.missing.tolist() == [cell in ("", "NA", "?") for cell in cells]
    assert len(found.values) == len(cells)
    assert found.values[0].isna().tolist() == found.missing.tolist()


def test_numbers_are_those_that_python_reads():
    cells = ["0.1", "1e-320", "-9007199254740993", "", "5."]
    np.testing.assert_array_equal(column(*cells).values[0], [float(cell or "nan") for cell in cells])


@pytest.mark.parametrize(
    ("cells", "kind", "found"),
    [
        (["8001", "3000"], "text", ["8001", "3000"]),
        (["20200101", "20210101"], "date", None),
        (["yes", "no"], "text", ["yes", "no"]),
        (["2020-01-01", "NA"], "text", ["2020-01-01", None]),
        (["1", "2"], "number", [1.0, 2.0]),
        (["", ""], "number", [np.nan, np.nan]),
        (["", ""], "date", None),
    ],
)
def test_a_kind_may_be_asked_for(cells, kind, found):
    read = column(*cells, kind=kind)
    assert (read.kind, read.decided) == (kind, True)
    if found is not None:
        np.testing.assert_array_equal(read.values[0], found)


NUMBERS = [str(number) for number in range(30)]
DAYS = [f"2020-01-{day:02}" for day in range(1, 31)]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([*NUMBERS, "cat"], r"line 32: cat is not a number, as 30 of 31 cells .*data.kinds={x:text}.*data.drop=\[x\]"),
        ([*NUMBERS, "", "1,5", "2"], "line 33: 1,5 is not a number, as 31 of 32 cells"),
        ([*NUMBERS, "1_000"], "line 32: 1_000 is not a number"),
        ([*NUMBERS, "<5"], "line 32: <5 is not a number"),
        ([*NUMBERS, "n.a."], "line 32: n.a. is not a number"),
        ([*DAYS, "2020-02-30"], "line 32: 2020-02-30 is not a date, as 30 of 31 cells"),
        (["0000-00-00", *DAYS], "line 2: 0000-00-00 is not a date"),
        ([*DAYS, "unknown"], "line 32: unknown is not a date"),
        ([*NUMBERS, "inf"], r"line 32: inf is not a finite number.*data.drop=\[x\]"),
        (["-Infinity", "1"], "line 2: -Infinity is not a finite number"),
        (["1", "1e999"], "line 3: 1e999 is not a finite number"),
        (["1", "-1e400"], "line 3: -1e400 is not a finite number"),
        (["1", "9" * 400], "line 3: 9+ is not a finite number"),
        (["03/04/2020", "05/06/2020"], "line 2: month and day of 03/04/2020 may be exchanged.*data.kinds={x:text}"),
    ],
)
def test_cells_that_do_not_fit_are_named(cells, message):
    with pytest.raises(ValueError, match=f"column 'x', {message}"):
        column(*cells)


WORDS = ("true", "yes", "t", "y", "false", "no", "f", "n")


@pytest.mark.parametrize("words", list(itertools.combinations(WORDS, 2)))
def test_two_different_texts_are_never_the_same_input(words):
    values = column(*words).values[0]
    assert values[0] != values[1]


@pytest.mark.parametrize(
    "cells",
    [
        ["1,234", "12,000", "950"],
        ["1,234.50", "1,234,567.00", "-3,000"],
        ["$12", "$5.50", "-$1,000"],
        ["12 \u20ac", "5,50 \u20ac"],
        ["USD 12", "7"],
        ["12%", "7.5 %", ""],
        ["1,5", "2,75", "-3,0"],
        ["1 000", "12 500", "950"],
        ["1 000", "2 000"],
        ["1\u202f000", "12\u00a0500,5"],
        ["1'234", "12'500.05"],
        ["1.234,56", "12,50"],
        ["(1,234)", "1,234"],
        [*(f"{number},5" for number in range(30)), "unknown"],
    ],
)
def test_numbers_that_are_not_written_plainly_are_refused(cells):
    message = "column 'x', line [234]: .* looks like a number with a thousands separator.*data.kinds={x:text}"
    with pytest.raises(ValueError, match=message):
        column(*cells)
    assert column(*cells, kind="text").kind == "text"


@pytest.mark.parametrize(
    "cells",
    [
        ["1.2.3", "1.10.0"],  # versions
        ["10.0.0.1", "192.168.100.200"],
        ["612 345 678", "698 765 432"],  # telephone numbers and postcodes
        ["030 123 456", "040 123 4567"],
        ["555-123-4567", "+1 555 123 4567"],
        ["110 001", "400 051"],
        ["123 45", "999 10"],
        ["SW1A 1AA", "12345-678"],
        ["1,2,3", "4,5"],  # lists
        ["1, 5", "2, 7"],
        ["10-20", "20-30"],
        ["1/2", "3/4"],
        ["<5", ">10"],
        ["$HOME", "$PATH"],
        ["12 kg", "7 lb"],
        ["1,234", "many", "few", "3"],
        ["1,5 mm", "2,5 mm"],
    ],
)
def test_text_with_digits_is_not_taken_for_numbers(cells):
    assert column(*cells).kind == "text"


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        (["F", "N"], "boolean", "line 2: F is not true or false"),
        (["1", "cat"], "number", "line 3: cat is not a number. Correct the cell"),
        (["yes", "maybe"], "boolean", "line 3: maybe is not true or false, yes or no"),
        (["2020-01-01", "5"], "date", "line 3: 5 is not a date"),
        (["1", "inf"], "number", "line 3: inf is not a finite number"),
        (["0", "2"], "boolean", "line 2: 0 is not true or false"),
    ],
)
def test_a_kind_that_is_asked_for_must_fit(cells, kind, message):
    with pytest.raises(ValueError, match=f"column 'x', {message}"):
        column(*cells, kind=kind)
