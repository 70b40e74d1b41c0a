"""Numbers, booleans and times of text, against Python's own conversions."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibreg.runs.data.tables.cells import are_numbers, as_booleans, as_times


def texts(*values):
    return np.array(values, dtype=object)


@given(st.floats(allow_nan=False), st.sampled_from(["{!r}", "{:+e}", "{:.3g}", "{:E}"]))
def test_what_python_writes_is_a_number(number, form):
    assert are_numbers(texts(form.format(number))).all()


@pytest.mark.parametrize(
    "text", ["1_000", "0x1A", "1,5", "1 000", "\u0661", "5%", "$5", "1e", ".", "", "nan", "--1", "1.2.3"]
)
def test_what_is_no_number(text):
    assert not are_numbers(texts(text)).any()


def test_booleans_in_any_case():
    yes, no = ["True", "TRUE", "yes", "Yes", "t", "Y"], ["False", "FALSE", "no", "No", "f", "N"]
    assert as_booleans(texts(*yes, *no)).tolist() == [1] * 6 + [0] * 6
    assert np.isnan(as_booleans(texts("1", "", "ja", "on", "yess"))).all()
    assert np.isnan(as_booleans(texts("f", "n"))).all()  # two different texts
    assert np.isnan(as_booleans(texts("Yes", "T", "y"))).all()
    assert as_booleans(texts("No", "NO")).tolist() == [0, 0]


MOMENTS = [datetime(2020, 12, 31, 18, 5, 9), datetime(2021, 1, 13, 7, 0, 0), datetime(1999, 2, 28, 0, 0, 59)]
DAY_FORMS = [
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d.%m.%y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m/%d/%y",
    "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y",
]  # fmt: skip


@pytest.mark.parametrize("form", DAY_FORMS)
@pytest.mark.parametrize("clock", ["", " %H:%M", " %H:%M:%S", " %I:%M %p", " %H:%M:%S.%f"])
def test_dates_in_the_usual_forms(form, clock):
    times, ambiguous = as_times(texts(*(moment.strftime(form + clock) for moment in MOMENTS)))
    assert times.instants.tolist() == [datetime.strptime(m.strftime(form + clock), form + clock) for m in MOMENTS]
    assert times.wall.equals(times.instants)
    assert not ambiguous


@pytest.mark.parametrize("form", ["%H:%M", "%H:%M:%S", "%I:%M %p"])
def test_times_of_day_without_a_date(form):
    times, _ = as_times(texts(*(moment.strftime(form) for moment in MOMENTS)))
    expected = [datetime.strptime(moment.strftime(form), form) for moment in MOMENTS]
    assert times.instants.tolist() == expected


def test_offsets_from_utc_are_instants_and_the_clock_at_the_place():
    times, _ = as_times(texts("2020-03-29T01:30:00+01:00", "2020-03-29T03:30:00+02:00", "2020-03-29 12:00Z"))
    assert [time.hour for time in times.instants] == [0, 1, 12]
    assert [time.hour for time in times.wall] == [1, 3, 12]
    assert times.instants.diff()[1] == timedelta(hours=1)


def test_month_and_day_are_told_by_a_day_after_the_12th():
    american, unsure = as_times(texts("3/4/2020", "3/13/2020"))
    assert (american.instants[0].month, unsure) == (3, False)
    european, unsure = as_times(texts("3/4/2020", "13/4/2020"))
    assert (european.instants[0].month, unsure) == (4, False)
    assert as_times(texts("3/4/2020", "12/4/2020"))[1]


@pytest.mark.parametrize("text", ["2020-02-30", "24:10", "yesterday", "2020-13-01", "12-345", "Mai 5"])
def test_what_is_no_date(text):
    assert as_times(texts(text))[0].instants.isna().all()


@given(st.lists(st.datetimes(datetime(1700, 1, 1), datetime(9000, 1, 1)), min_size=1, max_size=5))
def test_iso_times_of_any_century(moments):
    times, ambiguous = as_times(texts(*(moment.isoformat() for moment in moments)))
    assert pd.to_datetime(times.instants).dt.to_pydatetime().tolist() == moments
    assert not ambiguous
