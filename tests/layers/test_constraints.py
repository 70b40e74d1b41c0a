"""Constraints of options: which values are valid, what a message says, and what is kept."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibreg.layers.constraints import Above, AtLeast, Axis, Between, Bool, Constraint, Count, Number, OneOf, Optional

INVALID = [None, True, "1", [1], math.nan, math.inf, 10**400]


@pytest.mark.parametrize("value", INVALID)
@pytest.mark.parametrize("constraint", [Number(), AtLeast(0), Above(0), Between(0, 1)], ids=str)
def test_what_is_no_finite_number_is_refused_by_name(constraint, value):
    with pytest.raises(ValueError, match=r"^beta must be a finite number"):
        constraint.check("beta", value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_limits_are_those_of_their_names(value):
    assert AtLeast(0).allows(value) == (value >= 0)
    assert Above(0).allows(value) == (value > 0)
    assert Between(0, 1).allows(value) == (0 <= value <= 1)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (AtLeast(0), "x must be a finite number of at least 0, got '?'"),
        (Number(above=0.5, most=1), "x must be a finite number above 0.5 and at most 1, got '?'"),
        (Between(0, 1), "x must be a finite number of at least 0 and at most 1, got '?'"),
        (Number(), "x must be a finite number, got '?'"),
        (Count("size"), "x must be an integer of at least 1 (size), got '?'"),
        (OneOf(("a", "b")), "x must be one of 'a', 'b', got '?'"),
        (Bool(), "x must be True or False, got '?'"),
        (Optional(Bool()), "x must be None or True or False, got '?'"),
        (Axis(), "x must be an integer other than 0, the batch (the feature axis), got '?'"),
    ],
)
def test_messages_say_what_is_valid(constraint, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared whole
        constraint.check("x", "?")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("constraint", "value", "kept"),
    [
        (Count("size"), np.int64(3), 3),
        (AtLeast(0), np.float32(0.5), 0.5),
        (OneOf(("a",)), np.str_("a"), "a"),
        (Optional(Count("size")), None, None),
        (Axis(), np.int64(-1), -1),
    ],
)
def test_what_is_kept_can_be_written_to_a_file(constraint: Constraint, value, kept):
    assert constraint.check("x", value) == kept
    assert json.loads(json.dumps(constraint.check("x", value))) == kept
