"""Constraints of the options that only concept layers have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ibreg.layers.concept.specification import Concepts
from ibreg.layers.constraints import Above, Constraint, Number


class IsDescription(Constraint):
    """A description of concepts; the checked value is the `Concepts` that it describes."""

    def check(self, option: str, value: Any) -> Concepts | None:
        """Return the specification, or None.

        Raises:
            ValueError: If the value describes no concepts; the message is that of `Concepts.of`.
        """
        return None if value is None else Concepts.of(value)

    def __str__(self) -> str:
        return "None, a number of concepts, a list of names or of mappings, or an ibreg.Concepts"


class PositiveWeight(Constraint):
    """None, one number above 0, or one for each concept.

    Example:
        >>> PositiveWeight().check("pos_weight", [2, 0.5])
        [2.0, 0.5]
    """

    def allows(self, value: Any) -> bool:
        """Whether a value is None, a number above 0, or a list of them."""
        return value is None or Above(0).allows(value) or (_is_list(value) and all(map(Above(0).allows, value)))

    def plain(self, value: Any) -> float | list[float] | None:
        """Return Python numbers."""
        if value is None:
            return None
        return [float(weight) for weight in value] if _is_list(value) else float(value)

    def __str__(self) -> str:
        return "None, a finite number above 0, or a list of such numbers, one per concept"


class Matrix(Constraint):
    """A matrix of finite numbers: nested lists, a tensor or an array; the checked value is nested lists.

    Example:
        >>> Matrix().check("head_prior", [[1, 0], [0]])
        Traceback (most recent call last):
        ValueError: head_prior must be a matrix of numbers (a row per output, a column per concept), got [[1, 0], [0]]
    """

    def allows(self, value: Any) -> bool:
        """Whether a value has rows of equally many numbers."""
        value = _as_lists(value)
        if not (_is_list(value) and value and all(map(_is_list, value))):
            return False
        return len({len(row) for row in value}) == 1 and all(Number().allows(number) for row in value for number in row)

    def plain(self, value: Any) -> list[list[float]]:
        """Return lists of Python numbers."""
        return [[float(number) for number in row] for row in _as_lists(value)]

    def __str__(self) -> str:
        return "a matrix of numbers (a row per output, a column per concept)"


def _as_lists(value: Any) -> Any:
    """Returns a tensor or an array as nested lists, other values as they are."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
