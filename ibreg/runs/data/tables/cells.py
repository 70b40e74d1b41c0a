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
BOOLEANS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
TRUE, FALSE = {"true", "yes", "t", "y"}, {"false", "no", "f", "n"}

# Numbers as people write them: 1,234.5, 1 234, 1'234, 1.234,5, 1,5; with a currency, a percent sign or in parentheses.
_DIGITS = r"(\d{1,3}([,'\u2019 \u00a0\u202f]\d{3})+([.,]\d+)?|\d{1,3}(\.\d{3})+,\d+|\d+,\d+|\d+\.?\d*|\.\d+)"
_CURRENCY = r"((US)?[$\u20ac\u00a3\u00a5\u20b9]|USD|EUR|GBP|CHF)"
FORMATTED = re.compile(
    rf"(?P<open>\()?[+\u2212-]?({_CURRENCY}\s?[+\u2212-]?{_DIGITS}|{_DIGITS}(\s?({_CURRENCY}|%))?)(?(open)\))", re.ASCII
)
# Groups of digits between blanks are telephone numbers and postcodes too.
_BLANKS = re.compile(r"\d[ \u00a0\u202f]\d")

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


def formatted_numbers(values: np.ndarray) -> np.ndarray:
    """Tells which texts look like numbers with a separator, a currency or a percent sign: `(values,)`, bool.

    Groups of digits between blanks count where numbers and nothing else have them: where the texts differ in length, or
    all are from 1 000 to 9 999. Telephone numbers and postcodes are of one length, or begin with 0.

    Args:
        values: different texts.

    Example:
        >>> formatted_numbers(np.array(["1,234", "$12", "12 %", "1,5", "1 000", "3"], dtype=object)).tolist()
        [True, True, True, True, True, False]
        >>> formatted_numbers(np.array(["612 345 678", "612 345 679", "1,2,3", "1.2.3"], dtype=object)).tolist()
        [False, False, False, False]
    """
    matches = np.array([FORMATTED.fullmatch(value) is not None for value in values], dtype=bool)
    formatted = matches & ~are_numbers(values)
    blanks = formatted & np.array([_BLANKS.search(value) is not None for value in values], dtype=bool)
    groups = values[blanks]
    same_length = len({len(value) for value in groups}) == 1 and max(map(len, groups)) > len("1 000")
    if same_length or any(value.startswith("0") for value in groups):
        formatted &= ~blanks
    return formatted


def may_be_booleans(values: np.ndarray) -> bool:
    """Tells whether different texts are the two words of a pair, such as yes and no, in any case, or one such word.

    Example:
        >>> [may_be_booleans(np.array(texts, dtype=object)) for texts in (["Yes", "no"], ["F", "N"], ["yes", "t"])]
        [True, False, False]
    """
    words = {value.lower() for value in values}
    return words in BOOLEANS or (len(values) == 1 and words <= TRUE | FALSE)


def as_booleans(values: np.ndarray) -> np.ndarray:
    """Converts yes and no, in the usual spellings, to 1 and 0; NaN where a text is neither.

    Different words for the same, such as F and N alone, are other text: all are NaN.

    Args:
        values: different texts.

    Example:
        >>> as_booleans(np.array(["True", "no", "Y", "maybe"], dtype=object)).tolist()
        [1.0, 0.0, 1.0, nan]
    """
    lower = [value.lower() for value in values]
    if len(set(lower)) > 1 and (TRUE.issuperset(lower) or FALSE.issuperset(lower)):
        return np.full(len(lower), np.nan)
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
