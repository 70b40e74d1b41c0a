"""Options of bottlenecks, checked alike: what the option is, what is valid, and what came.

Configurations hand over texts where numbers belong, and `True` is a number to Python: neither gets through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def check_choice(option: str, value: Any, valid: Iterable[str]) -> None:
    """Raises a ValueError where an option is not one of the valid names.

    Example:
        >>> check_choice("start", "idenity", ("default", "identity"))
        Traceback (most recent call last):
        ValueError: start is one of 'default', 'identity', got 'idenity'
    """
    valid = tuple(valid)
    if not (isinstance(value, str) and value in valid):
        raise ValueError(f"{option} is one of {', '.join(map(repr, valid))}, got {value!r}")


def check_number(
    option: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    """Raises a ValueError where an option is no finite number, or out of its range.

    Example:
        >>> check_number("beta", "0.1", least=0)
        Traceback (most recent call last):
        ValueError: beta is a finite number of at least 0, got '0.1'
    """
    fine = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (fine and least <= value <= most and value > above):
        limits = [f"of at least {least:g}"] * (least > -math.inf) + [f"above {above:g}"] * (above > -math.inf)
        limits += [f"of at most {most:g}"] * (most < math.inf)
        raise ValueError(f"{option} is {' '.join(['a finite number', ' and '.join(limits)]).strip()}, got {value!r}")


def check_count(option: str, value: Any, what: str, *, least: int = 1) -> None:
    """Raises a ValueError where an option is no integer, or too small a one.

    Example:
        >>> check_count("out_features", 2.5, "size of the code")
        Traceback (most recent call last):
        ValueError: out_features is the size of the code, an integer of at least 1, got 2.5
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{option} is the {what}, an integer of at least {least}, got {value!r}")


def check_switch(option: str, value: Any) -> None:
    """Raises a ValueError where an option is neither True nor False.

    Example:
        >>> check_switch("stochastic", "yes")
        Traceback (most recent call last):
        ValueError: stochastic is True or False, got 'yes'
    """
    if not isinstance(value, bool):
        raise ValueError(f"{option} is True or False, got {value!r}")
