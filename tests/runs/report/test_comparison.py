"""Several runs in one table, against scipy."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats

from ibreg.runs.folder import CONFIG, SUMMARY
from ibreg.runs.report.arrangement import arrange, read_runs
from ibreg.runs.report.comparison import cells, columns, compare, flat

COMPARE = Path(__file__).resolve().parents[3] / "recipes" / "compare.py"
HEADLINE = [("test/error", "test error (%)", 100, 2), ("test/nll", "test NLL (nats)", 1, 4)]
FIRST = {"none": [0.10, 0.12, 0.11, 0.13, 0.10], "hsic": [0.09, 0.10, 0.11, 0.12, 0.08]}
SECOND = {"none": [0.10, 0.12, 0.11, 0.13, 0.10], "hsic": [0.07, 0.09, 0.08, 0.11, 0.08]}


def metrics_of(errors):
    return {method: {"test/error": row, "test/nll": [3 * value for value in row]} for method, row in errors.items()}


@pytest.fixture
def outputs(tmp_path, write):
    """Two finished runs that differ in one override."""
    for name, errors, beta in (("a", FIRST, 1), ("b", SECOND, 10)):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / CONFIG).touch()
        command = f"python recipes/classification.py bottleneck.hsic.beta={beta} lr=1e-3"
        write(tmp_path / "outputs" / name / SUMMARY, metrics_of(errors), command=command, headline=HEADLINE)
    return tmp_path / "outputs"


def test_differences_are_those_of_paired_seeds(outputs):
    runs, _ = read_runs([outputs])
    rows = compare(arrange(runs), columns(runs))
    assert [(row["run"][-2:], row["method"]) for row in rows] == [
        ("=1", "none"), ("=1", "hsic"), ("10", "none"), ("10", "hsic"),
    ]  # fmt: skip
    hsic = rows[3]
    test = stats.ttest_rel(SECOND["hsic"], FIRST["hsic"]).confidence_interval(0.95)
    assert hsic["to_first"]["low"] == pytest.approx(test.low)
    assert hsic["to_first"]["high"] == pytest.approx(test.high)
    test = stats.ttest_rel(SECOND["hsic"], SECOND["none"]).confidence_interval(0.95)
    assert hsic["to_control"]["low"] == pytest.approx(test.low)
    assert hsic["to_control"]["high"] == pytest.approx(test.high)
    assert rows[0]["to_first"] is None
    assert rows[1]["to_first"] is None
    assert rows[2]["to_first"]["mean"] == 0


@pytest.mark.parametrize("change", [{"seeds": [0, 1, 2, 3, 9]}, {"data": "mnist"}, {"recipe": "regression"}])
def test_other_seeds_or_data_are_not_paired(outputs, change):
    runs, _ = read_runs([outputs])
    runs[1].summary.update(change)
    rows = compare(arrange(runs), columns(runs))
    assert all(row["to_first"] is None for row in rows)
    assert rows[3]["to_control"] is not None
    assert not any("first run" in heading for heading in cells(rows, columns(runs))[0])


def test_a_seed_that_diverged_is_not_dropped(outputs):
    runs, _ = read_runs([outputs])
    runs[1].summary["results"]["hsic"]["test/error"]["values"][2] = None  # as JSON has it
    difference = compare(arrange(runs), columns(runs))[3]["to_first"]
    assert difference["mean"] != difference["mean"]


def test_the_metric_asked_for_comes_first(outputs):
    runs, _ = read_runs([outputs])
    assert [key for key, *_ in columns(runs)] == ["test/error", "test/nll"]
    assert [key for key, *_ in columns(runs, "test/nll")] == ["test/nll", "test/error"]
    row = flat(compare(arrange(runs), columns(runs, "test/nll"))[3])
    assert row["to_first mean"] == pytest.approx(3 * (sum(SECOND["hsic"]) - sum(FIRST["hsic"])) / 5)
    with pytest.raises(ValueError, match=r"metric must be one of test/error, test/nll, got 'test/f1'"):
        columns(runs, "test/f1")


def call(*arguments, cwd):
    return subprocess.run([sys.executable, COMPARE, *arguments], cwd=cwd, capture_output=True, text=True)


def test_a_table_a_csv_and_a_plot_and_what_is_left_out(outputs, tmp_path):
    (outputs / "killed").mkdir()
    (outputs / "killed" / CONFIG).touch()
    (outputs / "broken").mkdir()
    (outputs / "broken" / SUMMARY).write_text('{"recipe": "class')
    result = call("outputs", "nowhere", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for folder, reason in (("killed", "not finished"), ("broken", "truncated"), ("nowhere", "no such folder")):
        (line,) = (line for line in result.stderr.splitlines() if folder in line.partition(": ")[0])
        assert reason in line
    table = (outputs / "comparison.md").read_text()
    assert table in result.stdout
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 2 + 4
    assert "\nfirst run: bottleneck.hsic.beta=1 (outputs/a)\n" in table
    assert "95 % CI: Student's t over the paired differences of the seeds." in table
    assert "test error - first run [95 % CI]" in table
    with (outputs / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["none", "hsic", "none", "hsic"]
    assert [line["folder"] for line in lines] == ["outputs/a", "outputs/a", "outputs/b", "outputs/b"]
    assert float(lines[3]["test/error mean"]) == pytest.approx(sum(SECOND["hsic"]) / 5)
    assert (outputs / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # reading runs has quick ones
def test_nothing_to_compare(tmp_path):
    (tmp_path / "empty").mkdir()
    result = call("empty", cwd=tmp_path)
    assert result.returncode == 1
    assert "left out empty: no run" in result.stderr
    assert not list((tmp_path / "empty").iterdir())


def test_equal_differences_between_runs_have_no_interval(outputs):
    runs, _ = read_runs([outputs])
    for run, errors in zip(
        runs, (FIRST, {"none": FIRST["none"], "hsic": [e - 0.025 for e in FIRST["hsic"]]}), strict=True
    ):
        run.summary["results"]["hsic"]["test/error"]["values"] = errors["hsic"]
    rows = compare(arrange(runs), columns(runs))
    assert rows[3]["to_first"] | {"values": 0} == {
        "mean": pytest.approx(-0.025),
        "low": None,
        "high": None,
        "values": 0,
    }
    table = cells(rows, columns(runs))
    assert [row[4] for row in table[1:]] == ["-", "-", "+0.00 (=)", "-2.50 (=)"]
    assert flat(rows[3])["to_first low"] is None
