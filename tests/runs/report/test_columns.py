import csv

from ibreg.runs.data.classification import load
from ibreg.runs.data.tables.columns import ColumnReport
from ibreg.runs.report.columns import print_columns, write_columns


def test_reports_are_printed_and_written_as_they_stand(tmp_path, capsys):
    class Data:
        columns = (
            ColumnReport("[red]x", "number", 2, 3, "standardized"),
            ColumnReport("sales_$_per_$", "text", 0, 0, "left out: a, b " + "c" * 200),
        )

    print_columns(Data)
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[3].strip("│").split("│")] == ["[red]x", "number", "2", "3", "standardized"]
    assert "sales_$_per_$" in lines[4]
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
