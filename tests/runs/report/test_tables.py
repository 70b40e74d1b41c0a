"""Tables on the terminal and in a text."""

import json
import math
from importlib.metadata import version

import pytest
from rich.cells import cell_len
from rich.console import Console

from ibreg.runs.report import tables as report
from ibreg.runs.report.summary import read_summary, summarize

COLUMNS = [("test/error", "test error (%)", 100, 2), ("test/rate", "rate (nats)", 1, 1)]
SMALL = {
    "hsic": {"test/error": [0.02, 0.03], "test/rate": [1.0, 2.0]},
    "null": {"test/error": [0.05, 0.05]},
    "none": {"test/error": [0.03, 0.05]},
}
SMALL_TABLE = """\
| method                | test error (%) | difference to control [95 % CI] | rate (nats) |
|:----------------------|---------------:|--------------------------------:|------------:|
| control               |    4.00 ± 1.41 |                               - |           - |
| second initialization |    5.00 ± 0.00 |          +1.00 [-11.71, +13.71] |           - |
| hsic                  |    2.50 ± 0.71 |            -1.50 [-7.85, +4.85] |   1.5 ± 0.7 |"""


def summary_of(values):
    results, paired = summarize(values)
    return {"results": results, "paired": paired}


def test_markdown_table_is_aligned_and_puts_the_control_first():
    assert report.markdown_table(summary_of(SMALL), COLUMNS) == SMALL_TABLE


def test_a_bar_in_a_heading_does_not_end_its_cell():
    table = report.markdown_table(summary_of(SMALL), [("test/error", "error | %", 100, 2)])
    assert table.splitlines()[0].startswith(r"| method                |  error \| % | difference")
    assert len({len(line) for line in table.splitlines()}) == 1


def test_a_difference_without_an_interval_is_explained_below_the_table(write, tmp_path, capsys):
    equal = {"none": {"test/error": [0.8, 0.9]}, "hsic": {"test/error": [0.775, 0.875]}}
    write(tmp_path / "summary.json", equal, headline=COLUMNS[:1])
    report.print_run(tmp_path, "finished")
    printed = capsys.readouterr().out
    assert report.SAME in printed
    assert report.INTERVAL in printed
    (tmp_path / "results").mkdir()
    write(tmp_path / "results" / "small.json", equal, headline=COLUMNS[:1])
    assert report.SAME in report.render_readme(README, tmp_path / "results")
    write(tmp_path / "summary.json", SMALL, headline=COLUMNS[:1])
    report.print_run(tmp_path, "finished")
    assert report.SAME not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["[red]", "[/]", "[bold]x[/bold]", "a[b", "{x}", "%s"])
def test_names_of_folders_are_no_markup(write, tmp_path, capsys, name):
    folder = tmp_path / name.replace("/", "|")
    folder.mkdir()
    write(folder / "summary.json", SMALL, headline=COLUMNS[:1])
    report.print_run(folder, "finished")
    assert f"finished: {folder}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("heading", "shown"),
    [
        ("RMSE, sales_$_per_$", "RMSE, sales_$_per_$"),
        ("two\nlines", "two lines"),
        ("a\ttab", "a tab"),
        ("[red]", "[red]"),
        ("a|b", r"a\|b"),
        ("", ""),
        ("年龄 🦓", "年龄 🦓"),
        ("x" * 300, "x" * 300),
    ],
)
def test_headings_with_names_of_users_keep_the_table_a_table(heading, shown):
    columns = [("test/error", heading, 100, 2)]
    lines = report.markdown_table(summary_of(SMALL), columns).splitlines()
    assert len(lines) == 5
    assert len({cell_len(line) for line in lines}) == 1
    assert lines[0].replace(r"\|", "").count("|") == 4
    assert shown in lines[0]
    console = Console(width=400)
    with console.capture() as capture:
        console.print(report.console_table(summary_of(SMALL), columns))
    assert "4.00 ± 1.41" in capture.get()


def test_a_run_is_printed_with_its_own_columns_and_files(write, tmp_path, capsys):
    write(tmp_path / "summary.json", SMALL, headline=COLUMNS[:1])
    (tmp_path / ".lock").touch()
    (tmp_path / "checkpoints").mkdir()
    report.print_run(tmp_path, "finished before")
    printed = capsys.readouterr().out
    assert "test error (%)" in printed
    assert "rate" not in printed
    assert f"finished before: {tmp_path}\n  {tmp_path / 'summary.json'}\n" in printed
    assert ".lock" not in printed
    assert "checkpoints" not in printed


def test_console_table_shows_the_same_cells():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report.console_table(summary_of(SMALL), COLUMNS))
    lines = [line.replace("┃", "│").strip("│") for line in capture.get().splitlines()]
    shown = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in SMALL_TABLE.splitlines()]
    assert shown == [written[0], *written[2:]]


def test_names_of_methods_are_not_wrapped_with_many_columns():
    console = Console(width=80)
    values = {"variational": {f"test/{name}": [0.1, 0.2] for name in "abcdef"}}
    columns = [(f"test/{name}", f"a long heading of {name}", 1, 4) for name in "abcdef"]
    with console.capture() as capture:
        console.print(report.console_table(summary_of(values), columns))
    assert "│ variational │" in capture.get()


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({"none": {"test/error": [0.5]}, "hsic": {"test/error": [0.25]}}, ["hsic", "25.00", "-25.00"]),
        ({"hsic": {"test/error": [0.25, 0.25]}}, ["hsic", "25.00 ± 0.00"]),
        (
            {"none": {"test/error": [0.8, 0.9]}, "hsic": {"test/error": [0.775, 0.875]}},
            ["hsic", "82.50 ± 7.07", "-2.50 (=)"],
        ),
        ({"none": {"test/error": [0.5, 0.5]}, "hsic": {"test/error": [math.nan, 0.5]}}, ["hsic", "nan", "nan"]),
        ({"none": {"test/error": [0.5, 0.5]}, "hsic": {"test/nll": [1.0, 1.0]}}, ["hsic", "-", "-"]),
        (
            {"none": {"test/error": [0.5, 0.5]}, "hsic": {"test/error": [0.499999, 0.499999]}},
            ["hsic", "50.00 ± 0.00", "+0.00 (=)"],
        ),
    ],
    ids=["one seed", "no control", "equal differences", "diverged", "no such metric", "no negative zero"],
)
def test_cells(write, tmp_path, values, row):
    written = read_summary(write(tmp_path / "summary.json", values))
    for summary in (summary_of(values), written):
        last = report.markdown_table(summary, COLUMNS[:1]).splitlines()[-1]
        assert [cell.strip() for cell in last.strip("|").split("|")] == row


def test_a_table_needs_a_metric():
    with pytest.raises(ValueError, match="must have at least one metric"):
        report.markdown_table(summary_of(SMALL), [])


README = "# Title\n\n<!-- table: small -->\nold\n<!-- end table -->\n\nText.\n"


@pytest.fixture
def results(write, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder / "small.json", SMALL, command="python recipes/classification.py seeds=[0,1]", device="cpu")
    return folder


def test_readme_has_the_table_and_its_provenance(results):
    rendered = report.render_readme(README, results)
    table = report.markdown_table(summary_of(SMALL), [report.DEFAULT_COLUMNS[0], report.DEFAULT_COLUMNS[3]])
    assert rendered.startswith(
        f"# Title\n\n<!-- table: small -->\n\n{table}\n\n`python recipes/classification.py seeds="
    )
    assert rendered.endswith(", cpu.\n\n<!-- end table -->\n\nText.\n")
    assert "; seeds 0, 1, 2, 3, 4; python 3." in rendered
    assert f"torch {version('torch')}" in rendered
    assert "old" not in rendered
    assert report.render_readme(rendered, results) == rendered


def test_readme_takes_several_tables_and_their_own_columns(write, results):
    write(results / "other.json", SMALL, headline=[("test/rate", "bits", 1 / math.log(2), 1)])
    second = README.replace("small", "other")
    rendered = report.render_readme(README + second, results)
    assert rendered == report.render_readme(README, results) + report.render_readme(second, results)
    assert "| hsic                  | 2.2 ± 1.0 |" in rendered


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (README.replace("small", "smal"), "there is no table 'smal': .* holds small"),
        (README.replace("<!-- end table -->", ""), "table: small --> is not closed"),
        (README.replace("<!-- end table -->", "<!-- table: small -->"), "table: small --> is not closed"),
        (README.replace("<!-- table: small -->", ""), "closes nothing"),
        (README + "<!-- end table -->", "closes nothing"),
    ],
)
def test_wrong_markers_are_errors(results, text, message):
    with pytest.raises(ValueError, match=message):
        report.render_readme(text, results)


def test_command_line_rewrites_in_place_and_checks(tmp_path, results, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    arguments = [str(readme), "--results", str(results)]
    assert report.main([*arguments, "--check"]) == 1
    assert readme.read_text() == README
    assert "do not agree with" in capsys.readouterr().out
    assert report.main(arguments) == 0
    assert readme.read_text() == report.render_readme(README, results)
    assert report.main([*arguments, "--check"]) == 0


def test_command_line_names_the_error(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    for file, message in ((readme, "there is no table 'small'"), (tmp_path / "absent.md", "absent.md")):
        with pytest.raises(SystemExit, match="2"):
            report.main([str(file), "--results", str(tmp_path)])
        assert message in capsys.readouterr().err


def test_unreliable_numbers_are_marked_and_explained_under_the_table(write, tmp_path):
    path = write(tmp_path / "doubted.json", {"none": {"a": [1.0, 2.0, 3.0, 4.0, 5.0]}, "hsic": {"a": [2.0] * 5}})
    summary = json.loads(path.read_text())
    text = "<!-- table: doubted -->\n<!-- end table -->"
    summary["headline"] = [["a", "accuracy", 1, 1]]
    path.write_text(json.dumps(summary))
    assert "(!)" not in report.render_readme(text, tmp_path)
    summary["results"]["hsic"]["a"]["doubtful"] = True
    path.write_text(json.dumps(summary))
    rendered = report.render_readme(text, tmp_path)
    assert "2.0 ± 0.0 (!)" in rendered
    assert "(!) not reliable: a sanity check of the attacks failed" in rendered
    assert "3.0 ± 1.6 |" in rendered
