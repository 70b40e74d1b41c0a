"""What text says: numbers, booleans, and dates and times, of whole columns."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd

# A number as csv files have it: no underscores, hexadecimal digits or digits of other scripts, which float() reads.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
TRUE, FALSE = {"true", "yes", "t", "y"}, {"false", "no", "f", "n"}

_DAYS = (
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d.%m.%y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y",
    "%B %d, %Y",
)  # fmt: skip
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_CLOCKS = ("%H:%M", "%H:%M:%S", "%I:%M %p")
# Month and day in either order: a column tells which by a day after the 12th.
_EITHER_WAY = (("%m/%d/%Y", "%d/%m/%Y"), ("%m-%d-%Y", "%d-%m-%Y"), ("%m/%d/%y", "%d/%m/%y"))
_OFFSET = re.compile(r"\s*(Z|UTC|[+-]\d{2}(:?\d{2})?)$", re.IGNORECASE)
_PROBED = 20  # values that a format is tried on before it is tried on the whole column


class Times(NamedTuple):
    """Dates and times of a column.

    Args:
        instants: `(values,)`, datetime64 in UTC; NaT where a value is none.
        wall: the same as clocks and calendars at the place show them, without the offset from UTC.
    """

    instants: pd.Series
    wall: pd.Series


def are_numbers(values: np.ndarray) -> np.ndarray:
    """Tells which texts are numbers: `(values,)`, bool.

    Example:
        >>> are_numbers(np.array(["1", "-.5e3", "1_000", "0x1A", "1,5", "inf"], dtype=object)).tolist()
        [True, True, False, False, False, True]
    """
    return np.array([NUMBER.fullmatch(value) is not None for value in values], dtype=bool)


def as_booleans(values: np.ndarray) -> np.ndarray:
    """Converts yes and no, in the usual spellings, to 1 and 0; NaN where a text is neither.

    Example:
        >>> as_booleans(np.array(["True", "no", "Y", "maybe"], dtype=object)).tolist()
        [1.0, 0.0, 1.0, nan]
    """
    lower = [value.lower() for value in values]
    return np.array([1.0 if value in TRUE else 0.0 if value in FALSE else np.nan for value in lower])


def as_times(values: np.ndarray) -> tuple[Times, bool]:
    """Converts dates and times in the format that most of the texts have; ISO 8601 first.

    Args:
        values: different texts.

    Returns:
        The dates and times, and whether day and month may be exchanged.

    Example:
        >>> times, ambiguous = as_times(np.array(["31.12.2020", "1.1.2021"], dtype=object))
        >>> times.instants.dt.strftime("%Y-%m-%d").tolist(), ambiguous
        (['2020-12-31', '2021-01-01'], False)
        >>> as_times(np.array(["3/4/2020"], dtype=object))[1]
        True
    """
    texts = pd.Series(values, dtype=object).str.strip()
    best = _parsed(texts, "ISO8601")
    if best.instants.notna().all():
        return best, False
    probe = texts[:: max(1, len(texts) // _PROBED)].tolist()
    pairs = [tuple(day + time for day in days) for days in _EITHER_WAY for time in _TIMES]
    singles = [(day + time,) for day in _DAYS for time in _TIMES] + [(clock,) for clock in _CLOCKS]
    ambiguous = False
    for formats in (*singles, *pairs):
        if 2 * sum(any(_fits(text, form) for form in formats) for text in probe) < len(probe):
            continue
        found = [_parsed(texts, form) for form in formats]
        counts = [times.instants.notna().sum() for times in found]
        if max(counts) > best.instants.notna().sum():
            best, ambiguous = found[int(np.argmax(counts))], len(counts) == 2 and bool(counts[0] == counts[1])
    return best, ambiguous


def _fits(text: str, form: str) -> bool:
    with suppress(ValueError):
        datetime.strptime(text, form)
        return True
    return False


def _parsed(texts: pd.Series, form: str) -> Times:
    instants = pd.to_datetime(texts, format=form, errors="coerce", utc=True).dt.tz_localize(None)
    if form != "ISO8601" or instants.isna().all():
        return Times(instants, instants)
    with_time = texts.str.contains(":", regex=False)
    local = texts.where(~with_time, texts.str.replace(_OFFSET, "", regex=True))
    return Times(instants, pd.to_datetime(local, format=form, errors="coerce", utc=True).dt.tz_localize(None))
