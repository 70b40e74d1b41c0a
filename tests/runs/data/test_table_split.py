"""Splits by groups and in the order of a column."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ibreg.runs.data.classification import load
from ibreg.runs.data.concepts import load as load_concepts
from ibreg.runs.data.regression import load as load_regression
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.table_split import split_classes, split_quantities
from ibreg.runs.data.tables.reading import Table
from ibreg.runs.data.tables.roles import Roles

ROWS = 400


def rows_of(**columns):
    cells = {name: np.array([str(cell) for cell in column], dtype=object) for name, column in columns.items()}
    count = len(next(iter(cells.values())))
    return Table("t.csv", cells | {"y": np.array(["a"] * count, dtype=object)}, range(2, count + 2), {"", "na"})


def split(table, *, labels=None, names=(), test=0.2, validation=0.2, limit=0, split_seed=0, **roles):
    request = RegressionRequest(validation=validation, limit=limit, split_seed=split_seed)
    decided = Roles.of(table, "y", **roles)
    if labels is None:
        return split_quantities(request, table, decided, test)
    return split_classes(request, table, decided, labels, names, test)


def near(counts, test=0.2, validation=0.2):
    """Whether training, validation and test rows have at least half and at most twice of what is asked, or one off."""
    train, held_out, tested = counts
    asked = [(tested, test * sum(counts), sum(counts)), (held_out, validation * (train + held_out), train + held_out)]
    return all(
        abs(got - wanted) <= 1 or (wanted / 2 <= got <= 2 * wanted and total - got >= (total - wanted) / 2)
        for got, wanted, total in asked
    )


def split_or_refused(table, **options):
    """Splits, or returns None where the counts that the message states are far from what is asked."""
    try:
        splits = split(table, **options)
    except ValueError as error:
        message = str(error)
    else:
        assert near([len(rows) for rows in splits])
        return splits
    counts = re.search(r"would give (\d+) training, (\d+) validation and (\d+) test rows, far from", message)
    assert counts, message
    assert not near([int(count) for count in counts.groups()])
    return None


# --- groups


def grouped(groups=40, classes=3, seed=0):
    """Rows of groups of different sizes, whose members are mostly of one class."""
    rng = np.random.default_rng(seed)
    of_rows = rng.choice(groups, ROWS, p=rng.dirichlet(np.full(groups, 3)))
    labels = np.where(rng.random(ROWS) < 0.6, of_rows % classes, rng.integers(classes, size=ROWS))
    return rows_of(g=of_rows), of_rows, labels


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits_and_fractions_are_about_those_that_are_asked_for(seed):
    table, of_rows, labels = grouped()
    splits = split(table, groups="g", labels=labels, names="abc", split_seed=seed)
    assert sorted(np.concatenate(splits)) == list(range(ROWS))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not set(of_rows[splits[one]]) & set(of_rows[splits[other]])
    fractions = [len(rows) / ROWS for rows in splits]
    np.testing.assert_allclose(fractions, [0.64, 0.16, 0.2], atol=0.04)
    shares = np.array([np.bincount(labels[rows], minlength=3) / len(rows) for rows in splits])
    np.testing.assert_allclose(shares, [np.bincount(labels) / ROWS] * 3, atol=0.12)


def test_groups_are_split_by_the_seed_alone():
    table, _, labels = grouped()
    one, same, other = (split(table, groups="g", labels=labels, names="abc", split_seed=seed) for seed in (0, 0, 1))
    assert all(map(np.array_equal, one, same))
    assert not np.array_equal(one[2], other[2])


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=60).filter(lambda groups: len(set(groups)) > 2))
def test_any_three_groups_can_be_split_unless_one_is_too_large(groups):
    splits = split_or_refused(rows_of(g=groups), groups="g")
    if splits is None:
        return
    assert all(len(rows) for rows in splits)
    assert sorted(np.concatenate(splits)) == list(range(len(groups)))
    found = [{groups[row] for row in rows} for rows in splits]
    assert sum(map(len, found)) == len(set(groups))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1] * 20, "the groups must be .* and test rows, got 1; split by another column, or remove data.groups"),
        ([1, 2] * 10, "groups must be two or more to split training and validation rows, got 1.*data.validation=0"),
        ([*range(19), ""], "column 'g', line 21: the group is missing; remove the row or fill it in"),
        ([*range(19), "NA"], "column 'g', line 21: the group is missing"),
    ],
)
def test_groups_that_cannot_be_split(groups, message):
    with pytest.raises(ValueError, match=message):
        split(rows_of(g=groups), groups="g")
    with pytest.raises(ValueError, match="the only class is 'a'"):
        split(rows_of(g=range(20)), groups="g", labels=np.zeros(20, dtype=int), names=["a"])


def test_a_class_of_one_group_is_in_the_training_rows_or_an_error():
    groups = np.repeat(range(10), 10)
    labels = (groups == 3).astype(int)
    train, _, _ = split(rows_of(g=groups), groups="g", labels=labels, names=["no", "yes"])
    assert (labels[train] == 1).any()
    labels = np.repeat([0, 1], 50)
    groups = np.repeat([0, 1], 50)
    with pytest.raises(ValueError, match=r"groups='g' leaves no training row of class '(no|yes)' among 50"):
        split(rows_of(g=groups), groups="g", labels=labels, names=["no", "yes"], validation=0, test=0.4)


@pytest.mark.parametrize("of_rows", [[0] * 50 + [*range(1, 11)] * 5, [0] * 60 + [1] * 6 + [*range(2, 36)]])
def test_groups_of_unequal_size_are_split_where_that_is_possible(of_rows):
    for seed in range(5):
        splits = split(rows_of(g=of_rows), groups="g", split_seed=seed)
        assert [len(rows) for rows in splits] == pytest.approx([64, 16, 20], abs=4)


@pytest.mark.parametrize(
    ("of_rows", "options", "message"),
    [
        ([0] * 95 + [*range(1, 6)], {}, r"9\d training, 1 .* and [34] test rows.*data.test=0.2: 95 of 100 rows have 0"),
        (["Bern"] * 190 + [*range(10)], {}, "data.test=0.2: 190 of 200 rows have Bern .* data.test to .*, such as 0.0"),
        ([0] * 50 + [1] * 50, {"validation": 0}, "50 training, 0 validation and 50 test rows.*such as 0.5$"),
        ([0] * 90 + [1] * 10, {"validation": 0, "test": 0.7}, "data.test=0.7: 90 of 100 rows have 0"),
        ([0] * 76 + [*range(1, 25)], {}, "data.validation=0.2: 76 of 8. rows have 0 .* set data.validation to .* 0.0"),
    ],
)
def test_a_group_that_makes_a_split_far_from_its_fraction_is_named(of_rows, options, message):
    with pytest.raises(ValueError, match=f"data.groups=g would give .*{message}") as caught:
        split(rows_of(g=of_rows), groups="g", **options)
    assert "\n" not in str(caught.value)


def test_a_limit_keeps_training_rows_and_leaves_the_others():
    table, _, labels = grouped()
    full, few = (split(table, groups="g", labels=labels, names="abc", limit=limit) for limit in (0, 60))
    assert len(few[0]) == 60
    assert set(few[0]) < set(full[0])
    assert np.array_equal(few[2], full[2])
    np.testing.assert_allclose(np.bincount(labels[few[0]]) / 60, np.bincount(labels[full[0]]) / len(full[0]), atol=0.03)
    assert len(split(table, groups="g", limit=50)[0]) == 50


# --- order


DAYS = pd.date_range("2020-01-01", periods=100)


@pytest.mark.parametrize(
    "times",
    [
        range(100),
        [day / 7 - 5 for day in range(100)],
        [f"{number:.1e}" for number in np.logspace(-20, 20, 100)],
        DAYS.strftime("%Y-%m-%d"),
        DAYS.strftime("%d.%m.%Y"),
        DAYS.strftime("%b %d, %Y %H:%M"),
        [day.strftime("%Y-%m-%dT%H:%M") + ["+02:00", "Z"][day.day % 2] for day in DAYS],
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_training_rows_are_first_and_test_rows_last(times, seed):
    shuffled = np.random.default_rng(seed).permutation(100)
    splits = split(
        rows_of(t=np.array(list(times), dtype=object)[shuffled]), order="t", split_seed=seed, validation=0.25
    )
    assert [sorted(shuffled[rows]) for rows in splits] == [list(range(60)), list(range(60, 80)), list(range(80, 100))]


def test_a_limit_keeps_the_latest_training_rows():
    assert sorted(split(rows_of(t=range(100)), order="t", validation=0.25, limit=10)[0]) == list(range(50, 60))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=10, max_size=50))
def test_rows_of_equal_time_stay_together_where_that_is_possible(times):
    splits = split_or_refused(rows_of(t=times), order="t")
    if splits is None:
        return
    train, validation, test = splits
    assert sorted(np.concatenate([train, validation, test])) == list(range(len(times)))
    assert min(map(len, (train, validation, test))) > 0
    latest, first = (max(times[row] for row in rows) for rows in (train, validation)), min(times[row] for row in test)
    assert max(latest) <= first
    if len(set(times)) > 1:
        assert not {times[row] for row in [*train, *validation]} & {times[row] for row in test}


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([*range(2000, 2030), *[2030] * 370], {}, "24 training, 6 validation and 370 test rows, far from data.test="
         "0.2: 370 of 400 rows have 2030 in the column .* data.test to another fraction, such as 0.925$"),
        ([2018] * 200 + [2019] * 30 + [2020] * 170, {}, "170 test rows.*: 170 of 400 rows have 2020 .* such as 0.425$"),
        (["2020-01-01"] * 97 + ["2020-01-02"] * 3, {}, "3 test rows, .*data.test=0.2: 97 of 100 rows have 2020-01-01"),
        ([1] * 77 + [2, 3, 4] + [5] * 20, {}, "77 training, 3 validation.*data.validation=0.2: 77 of 80 rows have 1"),
        ([1] * 40 + [2] * 60, {"test": 0.1, "validation": 0}, "60 test rows, far from data.test=0.1: 60 of 100"),
        ([1] * 5 + [2] * 95, {"test": 0.6, "validation": 0}, "5 training, .* 95 test rows, far from data.test=0.6"),
    ],
)  # fmt: skip
def test_ties_that_make_a_split_far_from_its_fraction_are_named(times, options, message):
    with pytest.raises(ValueError, match=f"data.order=t would give .*{message}"):
        split(rows_of(t=times), order="t", **options)


@pytest.mark.parametrize(
    ("counts", "test", "held"),
    [((68, 23, 9), 0.2, 32), ((50, 30, 20), 0.2, 20), ((85, 5, 10), 0.2, 15), ((60, 15, 16, 9), 0.2, 25)],
)
def test_the_cut_is_between_times_next_to_the_fraction(counts, test, held):
    splits = split(rows_of(t=np.repeat(range(len(counts)), counts)), order="t", test=test, validation=0)
    assert len(splits[2]) == held


def test_the_fraction_that_the_message_suggests_splits_the_rows():
    table = rows_of(t=[*range(2000, 2030), *[2030] * 370])
    assert [len(rows) for rows in split(table, order="t", test=0.925)] == [24, 6, 370]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([*range(19), ""], "column 't', line 21: the cell that orders the row is missing"),
        (["red", "blue"] * 10, "order must be a column of numbers, or of dates and times .*'t' is text, such as red"),
        (["yes", "no"] * 10, "order must be a column of numbers, .* 't' is boolean"),
        ([*range(19), "later"], "column 't', line 21: later is not a number"),
        (["01/02/2020"] * 20, "month and day of 01/02/2020 may be exchanged"),
        ([1], "test=0.2 of 1 rows leaves one split empty"),
    ],
)
def test_columns_that_order_nothing(times, message):
    with pytest.raises(ValueError, match=message):
        split(rows_of(t=times), order="t")


def test_every_class_has_training_rows_or_the_order_is_refused():
    labels = np.repeat([0, 1], [95, 5])
    with pytest.raises(ValueError, match=r"leaves no training row of class 'new' among 64: remove data\.order"):
        split(rows_of(t=range(100)), order="t", labels=labels, names=["old", "new"])


# --- the data sets


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "patient": rng.integers(0, 30, ROWS),
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 300, ROWS), unit="D"),
            "age": rng.normal(50, 10, ROWS).round(3),
            "sick": rng.choice(["yes", "no"], ROWS),
            "grade": rng.choice(["a", "b", "c"], ROWS),
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


LOADERS = [
    (load, {"name": "csv", "target": "grade"}),
    (load_regression, {"name": "csv", "target": "age"}),
    (load_concepts, {"name": "concept_csv", "target": "grade", "concepts": ["sick"]}),
]


@pytest.mark.parametrize(("loader", "options"), LOADERS)
def test_all_data_sets_of_tables_take_groups_and_order(file, loader, options):
    by_group = loader(path=file, **options, groups="patient")
    assert not any(name.startswith("patient") for name in by_group.input_names)
    in_time = loader(path=file, **options, order="day")
    assert "day" not in in_time.input_names  # elapsed time: test rows lie beyond all training rows
    assert "day weekday (sin)" in in_time.input_names
    assert "day" in by_group.input_names
    assert sum(map(len, (in_time.train, in_time.validation, in_time.test))) == ROWS
    assert by_group.input_shape == (len(by_group.input_names),) == by_group.train[0][0].shape
    with pytest.raises(ValueError, match=r"data\.groups=patient and data\.order=day are two ways of splitting the"):
        loader(path=file, **options, order="day", groups="patient")
    with pytest.raises(ValueError, match="has no column 'Day'; the closest is 'day'"):
        loader(path=file, **options, order="Day")
    with pytest.raises(ValueError, match=f"data.target and data.groups must be .* got {options['target']!r}"):
        loader(path=file, **options, groups=options["target"])
    with pytest.raises(ValueError, match="test must be a"):
        loader(path=file, **options, groups="patient", test=1.0)


def test_a_column_of_numbers_that_orders_the_rows_is_no_input(file):
    found = load(path=file, name="csv", target="grade", order="age", drop=["day"])
    assert [column.note for column in found.columns if column.column == "age"] == [
        "left out: orders the rows, and test rows lie beyond all training rows"
    ]


def test_the_order_of_the_file_and_of_a_column_exclude_each_other(file):
    with pytest.raises(ValueError, match="split=chronological takes the rows in the order of the file: leave it out"):
        load_regression("csv", path=file, target="age", split="chronological", order="day")
    with pytest.raises(ValueError, match="split=chronological takes"):
        load_regression("csv", path=file, target="age", split="chronological", groups="patient")
