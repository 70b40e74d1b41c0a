import csv

import pytest

from ibreg.runs.data.classification import load
from ibreg.runs.data.tables.columns import ColumnReport
from ibreg.runs.report.columns import print_columns, write_columns


def test_reports_are_printed_and_written_as_they_stand(tmp_path, capsys):
    class Data:
        columns = (
            ColumnReport("[red]x", "number", 2, 3, "standardized"),
            ColumnReport("sales_$_per_$", "text", 0, 0, "left out: a, b " + "c" * 200),
        )
        train, validation, test = range(5), range(0), range(1)

    print_columns(Data)
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[3].strip("│").split("│")] == ["[red]x", "number", "2", "3", "standardized"]
    assert "sales_$_per_$" in lines[4]
    assert lines.pop() == "5 training, 0 validation and 1 test rows"
    assert len({len(line) for line in lines}) == 1  # aligned, no cell is folded
    write_columns(Data, tmp_path)
    with (tmp_path / "columns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["column"] for row in rows] == ["[red]x", "sales_$_per_$"]
    assert rows[0] == {"column": "[red]x", "read_as": "number", "inputs": "2", "missing": "3", "note": "standardized"}


def test_other_data_have_no_columns(tmp_path, capsys):
    print_columns(load("digits"))
    write_columns(load("digits"), tmp_path)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


NUMBER, OTHER = ("number", 1, 0, "standardized"), ("number", 2, 3, "standardized, flag of missing cells")


@pytest.mark.parametrize(
    ("reports", "printed"),
    [
        ([(f"c{place}", *NUMBER) for place in range(500)], ["c0 ... c499 (500 columns)"]),
        ([("a", *NUMBER), ("b", *NUMBER)], ["a, b (2 columns)"]),
        ([("a", *NUMBER), ("b", *OTHER), ("c", *NUMBER)], ["a", "b", "c"]),
        ([("a", *NUMBER), ("b", "text", *NUMBER[1:]), ("c", *OTHER), ("d", *OTHER)], ["a", "b", "c, d (2 columns)"]),
        ([("a", "number", 1, 0, "x"), ("b", "number", 1, 0, "y")], ["a", "b"]),
        ([(f"[{place}]", *OTHER) for place in range(3)], ["[0] ... [2] (3 columns)"]),
    ],
)
def test_equal_reports_in_a_row_share_a_line_of_the_table_but_not_of_the_file(tmp_path, capsys, reports, printed):
    class Data:
        columns = tuple(ColumnReport(*report) for report in reports)
        train = validation = test = range(1)

    print_columns(Data)
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == printed
    write_columns(Data, tmp_path)
    with (tmp_path / "columns.csv").open() as file:
        assert [row["column"] for row in csv.DictReader(file)] == [report[0] for report in reports]
