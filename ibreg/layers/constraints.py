"""Constraints on the options of a layer: a class declares the valid values, and `Bottleneck.keep` checks them.

    constraints = {"lambda_x": AtLeast(0), "estimator": OneOf(ESTIMATORS), "stop_gradient": Bool()}

Documentation and configuration files are checked against the same table. A string in place of a number is refused, and
so is `True`, which Python takes as a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


class Constraint:
    """The valid values of an option; `str(constraint)` completes the sentence "<option> must be ..."."""

    def allows(self, value: Any) -> bool:
        """Whether a value is valid."""
        raise NotImplementedError

    def check(self, option: str, value: Any) -> Any:
        """Returns a valid value, with NumPy and torch numbers as Python numbers, which can be written to a file.

        Raises:
            ValueError: `<option> must be <valid>, got <value>`.
        """
        if not self.allows(value):
            raise ValueError(f"{option} must be {self}, got {value!r}")
        return self.plain(value)

    def plain(self, value: Any) -> Any:
        """Returns a valid value as one of Python's own types."""
        return value


class Number(Constraint):
    """A finite number within limits.

    Example:
        >>> Number(above=0.5, most=1).check("certainty", "0.1")
        Traceback (most recent call last):
        ValueError: certainty must be a finite number above 0.5 and at most 1, got '0.1'
    """

    def __init__(self, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf):
        self.least, self.above, self.most = least, above, most

    def allows(self, value: Any) -> bool:
        """Whether a value is a finite number within the limits; a boolean is not a number."""
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        try:
            number = float(value)
        except OverflowError:  # an integer beyond the largest float
            return False
        return math.isfinite(number) and self.least <= number <= self.most and number > self.above

    def plain(self, value: Any) -> int | float:
        """Returns a Python number."""
        return value if type(value) in (int, float) else float(value)

    def __str__(self) -> str:
        limits = (("at least", self.least), ("above", self.above), ("at most", self.most))
        stated = " and ".join(f"{word} {limit:g}" for word, limit in limits if math.isfinite(limit))
        return f"a finite number {'of ' if stated.startswith('at') else ''}{stated}".strip()


class AtLeast(Number):
    """A finite number of at least a limit."""

    def __init__(self, least: float):
        super().__init__(least=least)


class Above(Number):
    """A finite number above a limit."""

    def __init__(self, above: float):
        super().__init__(above=above)


class Between(Number):
    """A finite number within two limits, both included."""

    def __init__(self, least: float, most: float):
        super().__init__(least=least, most=most)


class Count(Constraint):
    """An integer of at least a limit, and what it counts.

    Example:
        >>> Count("size of the code").check("out_features", 2.5)
        Traceback (most recent call last):
        ValueError: out_features must be an integer of at least 1 (size of the code), got 2.5
    """

    def __init__(self, what: str, *, least: int = 1):
        self.what, self.least = what, least

    def allows(self, value: Any) -> bool:
        """Whether a value is an integer that is large enough; a boolean is not an integer."""
        return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= self.least

    def plain(self, value: Any) -> int:
        """Returns a Python integer."""
        return int(value)

    def __str__(self) -> str:
        return f"an integer of at least {self.least} ({self.what})"


class OneOf(Constraint):
    """One of several strings.

    Example:
        >>> OneOf(("default", "identity")).check("start", "idenity")
        Traceback (most recent call last):
        ValueError: start must be one of 'default', 'identity', got 'idenity'
    """

    def __init__(self, choices: Iterable[str]):
        self.choices = tuple(choices)

    def allows(self, value: Any) -> bool:
        """Whether a value is one of the strings."""
        return isinstance(value, str) and value in self.choices

    def plain(self, value: Any) -> str:
        """Returns a Python string."""
        return str(value)

    def __str__(self) -> str:
        return f"one of {', '.join(map(repr, self.choices))}"


class Bool(Constraint):
    """True or False."""

    def allows(self, value: Any) -> bool:
        """Whether a value is a boolean."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


class Optional(Constraint):
    """None, or a value that another constraint allows.

    Example:
        >>> Optional(Above(0)).check("bandwidth", -1)
        Traceback (most recent call last):
        ValueError: bandwidth must be None or a finite number above 0, got -1
    """

    def __init__(self, constraint: Constraint):
        self.constraint = constraint

    def allows(self, value: Any) -> bool:
        """Whether a value is None, or allowed by the other constraint."""
        return value is None or self.constraint.allows(value)

    def plain(self, value: Any) -> Any:
        """Returns None, or the value as a Python type."""
        return None if value is None else self.constraint.plain(value)

    def __str__(self) -> str:
        return f"None or {self.constraint}"


class Axis(Constraint):
    """The number of an axis that is not the batch, 0."""

    def allows(self, value: Any) -> bool:
        """Whether a value is an integer other than 0."""
        return isinstance(value, Integral) and not isinstance(value, bool) and value != 0

    def plain(self, value: Any) -> int:
        """Returns a Python integer."""
        return int(value)

    def __str__(self) -> str:
        return "an integer other than 0, the batch (the feature axis)"
