"""The text of a table: csv in the forms that people have, and parquet, which is read as the same text."""

import datetime
import gzip
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibreg.runs.data.tables import parquet
from ibreg.runs.data.tables.reading import MISSING_MARKS, read_table


def written(folder, text, name="t.csv"):
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def cells(table):
    return {name: column.tolist() for name, column in table.cells.items()}


PLAIN = {"a": ["1", "2"], "b": ["x", ""], "y": ["0", "1"]}


@pytest.mark.parametrize(
    "text",
    [
        "a,b,y\n1,x,0\n2,,1\n",
        "a,b,y,\n1,x,0,\n2,,1,\n",  # a comma at the end of every line
        "a,b,y\n1,x,0,\n2,,1,\n",  # of every row
        "a,b,y,,\n1,x,0\n2,,1\n",  # of the header
        "a,b,y\n1,x,0,,,\n2,,1\n",  # of one row
        "sep=,\na,b,y\n1,x,0\n2,,1\n",  # Excel's
        '"sep=,"\r\na,b,y\r\n1,x,0\r\n2,,1\r\n',
        "# by the clinic, and others: Bern, Basel\n# of 2020\na,b,y\n1,x,0\n2,,1\n",
        "\ufeffa, b ,y\n\n1,  x,0\n  \n2,,1",
        '"a","b","y"\n"1","x","0"\n2,"",1\n',
    ],
)
def test_the_same_table_in_the_forms_that_people_have(tmp_path, text):
    assert cells(read_table(written(tmp_path, text))) == PLAIN
    assert cells(read_table(written(tmp_path, gzip.compress(text.encode(), mtime=0), "t.csv.gz"))) == PLAIN


def test_names_and_cells_stay_text_and_lines_are_those_of_the_file(tmp_path):
    text = '#id,sales_$_per_$,"a, b",5\n010,"two\nlines",NA,1e3\n\n0x1A,"a ""b""",None,12:30\n'
    table = read_table(written(tmp_path, text))
    assert cells(table) == {
        "#id": ["010", "0x1A"], "sales_$_per_$": ["two\nlines", 'a "b"'], "a, b": ["NA", "None"], "5": ["1e3", "12:30"],
    }  # fmt: skip
    assert table.place("5", 1) == "column '5', line 5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b y\n1 2 x\n", "has columns separated by blanks: save it with commas"),
        ("a;b\n1;2\n", "separated by semicolons"),
        ("a\tb\n1\t2\n", "separated by tabs"),
        ("a|b\n1|2\n", "separated by bars"),
        ("sep=;\na;b\n1;2\n", "has columns separated by ';': save it with commas"),
        ("a,b,y\n1,2,x\n# note\n1,2,x\n", "line 3: 1 cell under a header of 3 columns; comments must stand above"),
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 cells under a header of 2 columns; quote cells that contain a comma"),
        ('a,b\n1,2\n1,"2\n1,2\n', "line 3: unexpected end of data; close every quote"),
        ('a,b\n1,2\n"5" nails,2\n', "line 3: ',' expected after .*; close every quote, and double those inside quotes"),
        (
            'a,b\n"1,2\n1",2,3\n1,2\n',
            "line 2: 3 cells under a header of 2 columns; a quote that opens here is closed on",
        ),
        ("a,b\nr1,1,2\nr2,3,4\n", "a header of 2 columns above rows of 3 cells: give the first column a name"),
        ("a,b,a\n1,2,3\n", "more than one column named 'a'"),
        ("a,,\n1,2,3\n", "more than one column named ''"),
        ("a,b\n", "has no rows"),
        ("# a\n", "has no rows"),
        ("", "has no rows"),
        ("größe\n1\n".encode("latin-1"), "is not UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), "is not UTF-8 text"),
        ("a,b\n1,2\n3,x\0y\n", "line 3: a cell holds a NUL byte, which is no text: remove it, or save"),
        ("a,b\n\0,2\n", "line 2: a cell holds a NUL byte"),
        ('a,b\n\n"1\n",2\n"\0",2\n', "line 5: a cell holds a NUL byte"),
        ("a\0,b\n1,2\n", "line 1: a cell holds a NUL byte"),
        ("# \0\na,b\n1,2\n", "line 1: a cell holds a NUL byte"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1: a cell holds a NUL byte"),
        (gzip.compress(b"a,b\n1,2\n3,\0", mtime=0), "line 3: a cell holds a NUL byte"),
        (b"PK\x03\x04" + b"\0" * 40, "is an Excel file or a zip archive: save the table as csv"),
        (b"\xd0\xcf\x11\xe0" + b"\0" * 40, "is an Excel file"),
        (b"\x1f\x8b\x08\x00" + b"\0" * 40, "is a damaged gzip file"),
        (b"PAR1" + b"\0" * 40, "is a damaged parquet file"),
    ],
)
def test_a_file_that_is_no_table_says_why(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, text))


def test_an_open_quote_takes_the_rest_of_the_file_and_is_named(tmp_path):
    rows = "".join(f"{i},x\n" for i in range(20))
    with pytest.raises(ValueError, match="line 22: unexpected end of data; close every quote"):
        read_table(written(tmp_path, f'a,b\n{rows}"5,x\n{rows}'))


@pytest.mark.parametrize("mark", ["", "NA", "n/a", "NULL", "None", "?", "-", "<NA>", "#N/A", "NaT", "nan", ".", "\\N"])
def test_marks_of_missing_values(tmp_path, mark):
    table = read_table(written(tmp_path, f"a,b\n{mark},1\nx,2\n"))
    assert table.missing("a").tolist() == [True, False]
    assert read_table(table.file, ["x", "Y"]).missing("a").tolist() == [False, True]


def test_no_mark_is_listed_twice():
    assert len({mark.lower() for mark in MISSING_MARKS}) == len(MISSING_MARKS)


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=["Cs"]))] * 2),
        min_size=1,
    )
)
def test_any_text_is_read_as_it_stands(tmp_path_factory, rows):
    frame = pd.DataFrame(rows, columns=["a", "b"])
    file = tmp_path_factory.mktemp("any") / "t.csv"
    frame.to_csv(file, quoting=1, index=False, lineterminator="\n")
    table = read_table(file)
    assert cells(table) == {name: [cell.strip() for cell in frame[name]] for name in frame}


# --- parquet


def test_typed_cells_become_the_text_of_a_csv_file(tmp_path):
    frame = pd.DataFrame(
        {
            "whole": pd.array([9007199254740993, None, -3], dtype="Int64"),
            "yes": pd.array([True, None, False], dtype="boolean"),
            "time": pd.to_datetime(["2020-01-01 00:00", None, "2020-01-02 10:30"]),
            "zone": pd.to_datetime(["2020-01-01 10:00", None, "2020-07-01 10:00"]).tz_localize("Europe/Zurich"),
            "number": [0.1, np.nan, np.inf],
            "single": np.array([0.1, 0.25, 1e10], dtype=np.float32),
            "text": ["a", None, " NA "],
            "level": pd.Categorical(["u", None, "v"]),
            "decimal": [Decimal("1.50"), None, Decimal("2")],
            "day": [datetime.date(2020, 1, 1), None, datetime.date(2020, 2, 1)],
            "clock": [datetime.time(10, 5), None, datetime.time(0, 0)],
            "lasts": pd.to_timedelta([90, None, 0], unit="s"),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    assert cells(read_table(tmp_path / "t.parquet")) == {
        "whole": ["9007199254740993", "", "-3"],
        "yes": ["True", "", "False"],
        "time": ["2020-01-01 00:00:00", "", "2020-01-02 10:30:00"],
        "zone": ["2020-01-01 10:00:00+01:00", "", "2020-07-01 10:00:00+02:00"],
        "number": ["0.1", "", "inf"],
        "single": ["0.1", "0.25", "1e+10"],
        "text": ["a", "", "NA"],
        "level": ["u", "", "v"],
        "decimal": ["1.50", "", "2.00"],
        "day": ["2020-01-01", "", "2020-02-01"],
        "clock": ["10:05:00", "", "00:00:00"],
        "lasts": ["90.0", "", "0.0"],
    }


def test_an_index_of_pandas_is_a_column_of_a_parquet_file(tmp_path):
    frame = pd.DataFrame({"a": [1, 2, 3]})
    for index, expected in (
        (pd.Index([3, 0, 7]), {"": ["3", "0", "7"]}),
        (pd.Index(["x", "y", "z"], name="id"), {"id": ["x", "y", "z"]}),
        (pd.RangeIndex(3), {}),
        (pd.MultiIndex.from_arrays([[0, 0, 1], list("uvu")], names=["n", "m"]), {"n": ["0", "0", "1"], "m": [*"uvu"]}),
    ):  # fmt: skip
        frame.set_axis(index).to_parquet(tmp_path / "t.parquet")
        assert cells(read_table(tmp_path / "t.parquet")) == {**expected, "a": ["1", "2", "3"]}


@pytest.mark.parametrize(
    ("columns", "levels", "name"),
    [
        (["a", "b"], ["a"], "a"),
        (["1", "b"], ["1"], "1"),
        (["a", "b"], ["x", "b"], "b"),
        (["a", "b"], ["x", "x"], "x"),
        (["", "b"], [None], ""),
    ],
)
def test_an_index_with_the_name_of_a_column_is_refused(tmp_path, columns, levels, name):
    index = pd.MultiIndex.from_arrays([[5, 7]] * len(levels), names=levels)
    index = index if len(levels) > 1 else index.get_level_values(0)
    frame = pd.DataFrame([[1, 2], [3, 4]], columns=columns).set_axis(index)
    frame.to_parquet(tmp_path / "t.parquet")
    message = (
        rf"t\.parquet has an index .* name of a column \(cannot insert {name}, already exists\): rename the index, "
    )
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(("cells", "row"), [(["x\0y", "b"], 1), (["a", "\0"], 2), ([None, "b\0"], 2)])
def test_nul_bytes_of_a_parquet_file_are_refused(tmp_path, cells, row):
    pd.DataFrame({"a": [1, 2], "b": cells}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=rf"t\.parquet, column 'b', row {row}: the cell holds a NUL byte"):
        read_table(tmp_path / "t.parquet")


def test_a_parquet_file_without_rows_or_without_pyarrow(tmp_path, monkeypatch):
    file = tmp_path / "anything"  # the content decides, not the name
    pd.DataFrame({"a": [1.0]}).to_parquet(file)
    table = read_table(file)
    assert table.place("a", 0) == "column 'a', row 1"
    pd.DataFrame({"a": []}).to_parquet(file)
    with pytest.raises(ValueError, match="has no rows"):
        read_table(file)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'needs pyarrow: pip install "ibreg\[parquet\]"'):
        parquet.parquet_cells(file)
