"""The encoding of columns against pandas and numpy, fitted on the training rows alone."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibreg.runs.data.tables.encoding import encode
from ibreg.runs.data.tables.reading import MISSING_MARKS, Table
from ibreg.runs.data.tables.roles import Roles

MARKS = frozenset(mark.lower() for mark in MISSING_MARKS)
ROWS = 300
TRAINING = np.arange(0, ROWS, 2)


def table_of(**columns):
    cells = {name: np.array(column, dtype=object) for name, column in columns.items()}
    rows = len(next(iter(cells.values())))
    return Table("t.csv", cells | {"y": np.array(["a", "b"] * rows, dtype=object)[:rows]}, range(2, rows + 2), MARKS)


def encoded(training=TRAINING, options=(), **columns):
    table = table_of(**columns)
    return encode(table, Roles.of(table, "y", **dict(options)), training, {"y": ("class", "2 classes")})


def random_cells(kind, rng, rows=ROWS):
    """Cells of a kind, a tenth of them missing."""
    if kind == "number":
        cells = [repr(number) for number in rng.normal(50, 20, rows).round(2).tolist()]
    elif kind == "boolean":
        cells = rng.choice(["yes", "no"], rows, p=[0.7, 0.3]).tolist()
    elif kind == "text":
        cells = rng.choice(["red", "blue", "green", "rare"], rows, p=[0.5, 0.3, 0.19, 0.01]).tolist()
    else:
        times = pd.Timestamp("2020-02-01") + pd.to_timedelta(rng.integers(0, 500 * 24 * 60, rows), unit="min")
        cells = times.strftime("%Y-%m-%d %H:%M").tolist()
    return [cell if rng.random() > 0.1 else "NA" for cell in cells]


def standardized(values):
    values = np.asarray(values, dtype=float)
    return (values - values[TRAINING].mean()) / values[TRAINING].std()


def test_numbers_are_filled_in_by_the_median_standardized_and_flagged():
    cells = random_cells("number", np.random.default_rng(0))
    found = encoded(x=cells)
    series = pd.to_numeric(pd.Series(cells), errors="coerce")
    filled = series.fillna(series[TRAINING].median())
    assert found.names == ("x", "x missing")
    assert found.columns[0].note == "standardized, flag of missing cells"
    np.testing.assert_allclose(
        found.inputs, np.column_stack([standardized(filled), series.isna()]), rtol=1e-5, atol=1e-6
    )
    assert found.inputs.dtype == np.float32


def test_booleans_are_0_and_1_and_the_more_frequent_one_is_filled_in():
    cells = random_cells("boolean", np.random.default_rng(1))
    found = encoded(x=cells)
    series = pd.Series(cells).map({"yes": 1.0, "no": 0.0})
    np.testing.assert_array_equal(found.inputs, np.column_stack([series.fillna(1), series.isna()]))


def test_text_is_one_hot_with_rare_and_unknown_levels_together_and_missing_apart():
    cells = random_cells("text", np.random.default_rng(2))
    cells[1], cells[3] = "unknown", "rare"  # not in the training rows
    cells[4], cells[6] = "rare", "once"
    found = encoded(x=cells)
    series = pd.Series(cells)
    counts = series[TRAINING].value_counts()
    frequent = sorted(level for level in counts.index if counts[level] >= 2 and level != "NA")
    rare = ~series.isin([*frequent, "NA"])
    expected = pd.concat([*(series == level for level in frequent), rare, series == "NA"], axis=1)
    assert found.names == (*(f"x={level}" for level in frequent), "x (rare)", "x missing")
    np.testing.assert_array_equal(found.inputs, expected)
    assert (found.inputs.sum(1) == 1).all()


def test_an_unknown_level_is_nothing_where_no_level_is_rare():
    found = encoded(np.arange(8), x=["a", "b"] * 4 + ["c", ""])
    assert found.names == ("x=a", "x=b")
    assert found.inputs[-2:].tolist() == [[0, 0], [0, 0]]


def test_levels_beyond_the_hundredth_share_an_input():
    cells = [f"level {number % 150}" for number in range(1500)]
    found = encoded(np.arange(1500), x=cells)
    assert found.inputs.shape[1] == 100
    assert found.names[-1] == "x (rare)"
    assert found.columns[0].note == "one-hot, 51 rare levels in one input"


def test_dates_are_elapsed_time_and_what_varies_of_day_week_and_year():
    cells = random_cells("date", np.random.default_rng(3))
    found = encoded(x=cells)
    times = pd.to_datetime(pd.Series(cells), errors="coerce")
    seconds = (times - pd.Timestamp("2000-01-01")).dt.total_seconds()
    elapsed = standardized(seconds.fillna(seconds[TRAINING].median()))
    day = times.dt.hour / 24 + times.dt.minute / 24 / 60
    year = (times.dt.day_of_year - 1) / np.where(times.dt.year == 2020, 366, 365)
    cycles = [way(2 * np.pi * phase) for phase in (day, times.dt.day_of_week / 7, year) for way in (np.sin, np.cos)]
    expected = np.column_stack([elapsed, *(cycle.fillna(0) for cycle in cycles), times.isna()])
    assert found.names == (
        "x", "x time of day (sin)", "x time of day (cos)", "x weekday (sin)", "x weekday (cos)", "x day of year (sin)",
        "x day of year (cos)", "x missing",
    )  # fmt: skip
    np.testing.assert_allclose(found.inputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("cells", "cycles"),
    [
        ([f"2020-01-01 {hour:02}:00" for hour in range(20)], ["time of day"]),
        ([f"2020-01-{day:02}" for day in range(1, 21)], ["weekday", "day of year"]),
        ([f"{year}-01-01" for year in range(1990, 2010)], ["weekday"]),
        ([f"{hour:02}:15" for hour in range(20)], ["time of day"]),
        ([f"2020-01-{1 + 7 * (week % 4):02}" for week in range(20)], ["day of year"]),
    ],
)
def test_cycles_that_do_not_vary_are_no_inputs(cells, cycles):
    found = encoded(np.arange(20), x=cells)
    assert found.names == ("x", *(f"x {cycle} ({way})" for cycle in cycles for way in ("sin", "cos")))


def test_a_clock_that_is_moved_in_march_shows_the_time_at_the_place():
    found = encoded(np.arange(4), x=["2020-03-28T12:00+01:00", "2020-03-29T12:00+02:00", "2020-03-29T12:00+02:00"] * 2)
    assert not any("time of day" in name for name in found.names)  # it is noon


@pytest.mark.parametrize("kind", ["number", "boolean", "text", "date"])
def test_no_cell_of_a_test_row_changes_a_training_input(kind):
    rng = np.random.default_rng(4)
    cells, others = (random_cells(kind, rng) for _ in range(2))
    changed = [cell if row % 2 == 0 else other for row, (cell, other) in enumerate(zip(cells, others, strict=True))]
    assert changed != cells
    one, two = encoded(x=cells), encoded(x=changed)
    assert one.names == two.names
    np.testing.assert_array_equal(one.inputs[TRAINING], two.inputs[TRAINING])


@pytest.mark.parametrize("kind", ["number", "boolean", "text", "date"])
def test_a_cell_missing_in_test_rows_alone_is_filled_in_without_a_flag(kind):
    cells = [cell for cell in random_cells(kind, np.random.default_rng(5), 2000) if cell != "NA"][:100]
    with_gap = [*cells[:-1], ""]
    full, gap = (encoded(np.arange(80), x=each) for each in (cells, with_gap))
    assert gap.names == full.names
    assert np.isfinite(gap.inputs).all()
    np.testing.assert_array_equal(gap.inputs[:-1], full.inputs[:-1])
    assert gap.columns[0].missing == 1


X = [str(number * number % 97) for number in range(40)]  # a feature beside those that are left out


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("n", [str(row) for row in range(40)], "numbers the rows; data.kinds={n:number} keeps it"),
        ("n", [str(row + 1) for row in range(40)], "numbers the rows"),
        ("", [str(row * 7 % 41) for row in range(40)], "numbers the rows$"),
        ("Unnamed: 0", [str(row * 7 % 41) for row in range(40)], "numbers the rows"),
        ("index", [str(3 * row) for row in range(40)], "numbers the rows"),
        ("n", [f"{row}.0" for row in range(40)], "numbers the rows"),
        ("n", ["5"] * 40, "5 in all training rows"),
        ("n", ["5"] * 30 + ["6"] * 10, "5 in all training rows"),
        ("n", ["yes"] * 40, "yes in all training rows"),
        ("n", [""] * 40, "no cell in the training rows"),
        ("n", ["NA"] * 30 + ["1"] * 10, "no cell in the training rows"),
        ("n", [f"person {row}" for row in range(40)], "nearly every cell is another text$"),
        # kept, it would have an input for the one text that repeats
        (
            "n",
            [f"person {max(row, 9)}" for row in range(40)],
            "nearly every cell is another text; data.kinds={n:text} keeps",
        ),
        ("n", [f"ward {row // 2}" if row < 12 else f"bed {row}" for row in range(40)], "nearly every cell"),
        ("n", [f"a text, {row} words" for row in range(40)], "nearly every cell is another text$"),
    ],
)
def test_columns_that_cannot_help_are_left_out_and_the_reason_is_told(name, cells, reason):
    found = encoded(np.arange(30), **{name: cells, "x": X})
    assert found.names == ("x",)
    assert found.columns[0].inputs == 0
    assert pd.Series([found.columns[0].note]).str.contains(f"left out: {reason}", regex=True).all()
    with pytest.raises(ValueError, match=f"no feature column left beside the target 'y' [(]'{name}': "):
        encoded(np.arange(30), **{name: cells})


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("n", [str(row * 3) for row in range(40)], "number"),
        ("n", [str(row) for row in reversed(range(40))], "number"),
        ("", ["a", "b"] * 20, "text"),
        ("Unnamed: 0", [str(row % 5) for row in range(40)], "number"),
        ("n", ["1"] * 29 + [""] * 11, "number"),
        ("n", [f"ward {row // 4}" for row in range(40)], "text"),
    ],
)
def test_columns_that_are_kept(name, cells, kind):
    found = encoded(np.arange(30), **{name: cells, "x": X})
    assert found.columns[0].read_as == kind
    assert found.columns[0].inputs >= 1


def test_kinds_keep_what_would_be_left_out():
    rows = [str(row) for row in range(40)]
    names = ["Ann", "Bea", "Ann", *(f"person {row}" for row in range(37))]
    options = {"kinds": {"n": "number", "p": "text", "z": "text"}}
    found = encoded(np.arange(30), options, n=rows, p=names, z=[str(8000 + row % 3) for row in range(40)])
    assert found.names == ("n", "p=Ann", "p (rare)", "z=8000", "z=8001", "z=8002")


def test_every_column_of_the_file_is_reported_in_its_order():
    options = {"drop": ["d"], "groups": "g"}
    found = encoded(np.arange(30), options, x=[*X[:-1], ""], d=X, g=["u", "v"] * 20, flat=["1"] * 40)
    assert [(c.column, c.read_as, c.inputs, c.missing, c.note) for c in found.columns] == [
        ("x", "number", 1, 1, "standardized"),
        ("d", "", 0, 0, "left out: data.drop"),
        ("g", "group", 0, 0, "2 groups, none of them in two splits"),
        ("flat", "number", 0, 0, "left out: 1 in all training rows"),
        ("y", "class", 0, 0, "2 classes"),
    ]
    assert sum(column.inputs for column in found.columns) == len(found.names) == found.inputs.shape[1]


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1.0, 1e200, 1.7e308])
def test_numbers_of_any_size_have_the_same_inputs(size):
    values = np.random.default_rng(6).integers(1, 8, 40) / 8
    found = encoded(np.arange(30), x=[repr(float(value * size)) for value in values])
    expected = (values - values[:30].mean()) / values[:30].std()
    np.testing.assert_allclose(found.inputs[:, 0], expected, rtol=1e-2 if size == 1e-320 else 1e-6)


@pytest.mark.parametrize("cell", ["1e300", "-1e300", "1e45", "1.7e308"])
def test_a_cell_too_far_from_the_training_rows_is_named(cell):
    with pytest.raises(ValueError, match=rf"column 'x', line 41: {cell} overflows when standardized .*data.drop=\[x\]"):
        encoded(np.arange(30), z=X, x=[*X[:39], cell])


@settings(max_examples=10)
@given(st.lists(st.one_of(st.just(""), st.floats(-1e30, 1e30).map(repr)), min_size=4, max_size=30).filter(any))
def test_training_inputs_of_any_numbers_are_standardized(cells):
    found = encoded(np.arange(len(cells)), x=cells, z=[str(row * row) for row in range(len(cells))])
    assert np.isfinite(found.inputs).all()
    np.testing.assert_allclose(found.inputs[:, 0].mean(), 0, atol=1e-5)
    assert np.isclose(found.inputs[:, 0].std(), 1, atol=1e-3) or np.allclose(found.inputs[:, 0], 0, atol=1e-3)
