"""Summaries and tables: intervals against SciPy, files that survive a kill, tables as a reader sees them."""

import json
import math
from importlib.metadata import version

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from ibreg.training import report

RNG = np.random.default_rng(0)
VALUES = {
    "variational": {"test/error": RNG.uniform(0.01, 0.02, 5).tolist(), "test/rate": [10.0, 11.0, 12.0, 13.0, 14.0]},
    "none": {"test/error": RNG.uniform(0.01, 0.02, 5).tolist(), "test/nll": [0.5] * 5},
    "null": {"test/error": RNG.uniform(0.01, 0.02, 5).tolist(), "test/nll": [0.5] * 5},
}
COLUMNS = [("test/error", "test error (%)", 100, 2), ("test/rate", "rate (nats)", 1, 1)]


def write(path, values=VALUES, **options):
    results, paired = report.summarize(values)
    return report.write_summary(
        path, recipe="classification", data="digits", seeds=range(5), results=results, paired=paired,
        selected={"variational": {"beta": 1e-3}}, wall_s=1.5, **options,
    )  # fmt: skip


def test_spread_is_that_of_a_sample():
    entry = report.summarize(VALUES)[0]["variational"]["test/rate"]
    assert entry == {"mean": 12.0, "std": pytest.approx(math.sqrt(2.5)), "values": [10.0, 11.0, 12.0, 13.0, 14.0]}


@pytest.mark.parametrize("arm", ["variational", "null"])
def test_differences_are_paired_with_a_student_interval(arm):
    paired = report.summarize(VALUES)[1]
    ours, control = VALUES[arm]["test/error"], VALUES["none"]["test/error"]
    interval = stats.ttest_rel(ours, control).confidence_interval(0.95)
    entry = paired[arm]["test/error"]
    assert (entry["low"], entry["high"]) == pytest.approx((interval.low, interval.high))
    assert entry["mean"] == pytest.approx(np.mean(ours) - np.mean(control))
    np.testing.assert_allclose(entry["values"], np.subtract(ours, control))


def test_only_metrics_of_both_are_paired_and_equal_values_give_an_empty_interval():
    paired = report.summarize(VALUES)[1]
    assert list(paired) == ["variational", "null"]
    assert list(paired["variational"]) == ["test/error"]
    assert paired["null"]["test/nll"] == {"mean": 0, "low": 0, "high": 0, "values": [0] * 5}


def test_one_seed_has_no_spread_and_no_interval():
    results, paired = report.summarize({"none": {"loss": [1.0]}, "hsic": {"loss": [0.5]}})
    assert results["hsic"]["loss"] == {"mean": 0.5, "std": None, "values": [0.5]}
    assert paired["hsic"]["loss"] == {"mean": -0.5, "low": None, "high": None, "values": [-0.5]}


def test_the_control_may_be_absent_or_another():
    assert report.summarize({"hsic": VALUES["null"]})[1] == {}
    assert list(report.summarize(VALUES, control="null")[1]) == ["variational", "none"]


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_values_that_cannot_be_paired_are_refused(values):
    with pytest.raises(ValueError, match=r"has no value|cannot be paired with 3"):
        report.summarize({"none": {"loss": [1.0, 2.0, 3.0]}, "hsic": {"loss": values}})


def test_summary_comes_back_with_versions_and_hardware(tmp_path):
    path = write(tmp_path / "summary.json", device="cpu", command="python recipes/x.py", headline=COLUMNS)
    summary = report.read_summary(path)
    results, paired = report.summarize(VALUES)
    assert (summary["results"], summary["paired"]) == (results, paired)
    assert (summary["recipe"], summary["data"], summary["wall_s"]) == ("classification", "digits", 1.5)
    assert summary["seeds"] == [0, 1, 2, 3, 4]
    assert summary["selected"] == {"variational": {"beta": 1e-3}}
    assert summary["versions"]["torch"] == version("torch")
    assert {"python", "ibreg"} < summary["versions"].keys()
    assert summary["hardware"]["device"] == "cpu"
    assert summary["hardware"]["threads"] == torch.get_num_threads()
    assert (summary["command"], summary["headline"]) == ("python recipes/x.py", [list(column) for column in COLUMNS])
    assert {"command", "headline"}.isdisjoint(report.read_summary(write(tmp_path / "plain.json")))


def test_numbers_that_are_not_finite_become_null(tmp_path):
    diverged = {"none": {"loss": [1.0, 2.0]}, "hsic": {"loss": [math.nan, math.inf]}}
    path = write(tmp_path / "summary.json", diverged)

    def refuse(literal):
        raise AssertionError(f"{literal} is no JSON")

    summary = json.loads(path.read_text(), parse_constant=refuse)
    assert summary["results"]["hsic"]["loss"] == {"mean": None, "std": None, "values": [None, None]}
    assert summary["paired"]["hsic"]["loss"]["low"] is None


def test_a_failed_write_leaves_the_old_summary(tmp_path):
    path = write(tmp_path / "summary.json")
    before = path.read_text()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(path, command=object())
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_broken_summaries_are_named(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(FileNotFoundError, match=r"there is no summary at .*summary\.json"):
        report.read_summary(path)
    whole = write(path).read_text()
    for text in ("", whole[: len(whole) // 2], "results"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"summary\.json is cut short or no JSON"):
            report.read_summary(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cut short or no JSON"):
        report.read_summary(path)
    path.write_text(json.dumps({key: 0 for key in report.KEYS if key not in ("seeds", "paired")}))
    with pytest.raises(ValueError, match=r"misses seeds, paired$"):
        report.read_summary(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="misses recipe"):
        report.read_summary(path)


SMALL = {
    "hsic": {"test/error": [0.02, 0.03], "test/rate": [1.0, 2.0]},
    "null": {"test/error": [0.05, 0.05]},
    "none": {"test/error": [0.03, 0.05]},
}
SMALL_TABLE = """\
| bottleneck       | test error (%) | difference to none [95 %] | rate (nats) |
|:-----------------|---------------:|--------------------------:|------------:|
| none             |    4.00 ± 1.41 |                         - |           - |
| none, other init |    5.00 ± 0.00 |    +1.00 [-11.71, +13.71] |           - |
| hsic             |    2.50 ± 0.71 |      -1.50 [-7.85, +4.85] |   1.5 ± 0.7 |"""


def summary_of(values):
    results, paired = report.summarize(values)
    return {"results": results, "paired": paired}


def test_markdown_table_is_aligned_and_puts_the_control_first():
    assert report.markdown_table(summary_of(SMALL), COLUMNS) == SMALL_TABLE


def test_console_table_shows_the_same_cells():
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report.console_table(summary_of(SMALL), COLUMNS))
    lines = [line.replace("┃", "│").strip("│") for line in capture.get().splitlines()]
    shown = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in SMALL_TABLE.splitlines()]
    assert shown == [written[0], *written[2:]]


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({"none": {"test/error": [0.5]}, "hsic": {"test/error": [0.25]}}, ["hsic", "25.00", "-25.00"]),
        ({"hsic": {"test/error": [0.25, 0.25]}}, ["hsic", "25.00 ± 0.00"]),
        ({"none": {"test/error": [0.5, 0.5]}, "hsic": {"test/error": [math.nan, 0.5]}}, ["hsic", "nan", "nan"]),
        ({"none": {"test/error": [0.5, 0.5]}, "hsic": {"test/nll": [1.0, 1.0]}}, ["hsic", "-", "-"]),
        (
            {"none": {"test/error": [0.5, 0.5]}, "hsic": {"test/error": [0.499999, 0.499999]}},
            ["hsic", "50.00 ± 0.00", "+0.00 [+0.00, +0.00]"],
        ),
    ],
    ids=["one seed", "no control", "diverged", "no such metric", "no negative zero"],
)
def test_cells(tmp_path, values, row):
    written = report.read_summary(write(tmp_path / "summary.json", values))
    for summary in (summary_of(values), written):
        last = report.markdown_table(summary, COLUMNS[:1]).splitlines()[-1]
        assert [cell.strip() for cell in last.strip("|").split("|")] == row


def test_a_table_needs_a_metric():
    with pytest.raises(ValueError, match="needs a metric"):
        report.markdown_table(summary_of(SMALL), [])


README = "# Title\n\n<!-- table: small -->\nold\n<!-- end table -->\n\nText.\n"


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    write(folder / "small.json", SMALL, command="python recipes/classification.py seeds=[0,1]", device="cpu")
    return folder


def test_readme_holds_the_table_and_where_it_comes_from(results):
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


def test_readme_takes_several_tables_and_their_own_columns(results):
    write(results / "other.json", SMALL, headline=[("test/rate", "bits", 1 / math.log(2), 1)])
    second = README.replace("small", "other")
    rendered = report.render_readme(README + second, results)
    assert rendered == report.render_readme(README, results) + report.render_readme(second, results)
    assert "| hsic             | 2.2 ± 1.0 |" in rendered


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
def test_wrong_markers_are_refused(results, text, message):
    with pytest.raises(ValueError, match=message):
        report.render_readme(text, results)


def test_command_line_rewrites_in_place_and_checks(tmp_path, results, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    arguments = [str(readme), "--results", str(results)]
    assert report.main([*arguments, "--check"]) == 1
    assert readme.read_text() == README
    assert "are not those of" in capsys.readouterr().out
    assert report.main(arguments) == 0
    assert readme.read_text() == report.render_readme(README, results)
    assert report.main([*arguments, "--check"]) == 0


def test_command_line_names_what_is_wrong(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    for file, message in ((readme, "there is no table 'small'"), (tmp_path / "absent.md", "absent.md")):
        with pytest.raises(SystemExit, match="2"):
            report.main([str(file), "--results", str(tmp_path)])
        assert message in capsys.readouterr().err
