"""Chooses a function by name, with its name and options checked before it is called."""

import inspect
from collections.abc import Callable, Iterable, Mapping


def choose(
    kind: str, name: str, functions: Mapping[str, Callable], options: Iterable[str], *, beside: str = ""
) -> Callable:
    """Returns the function of a name, after checking that it takes these options.

    Args:
        kind: What the functions make, for messages.
        name: One of the keys of `functions`.
        functions: Functions by name; their options are their keyword-only arguments.
        options: Names of the options that are set.
        beside: What the message on unknown options says after those that the function has.

    Raises:
        ValueError: For an unknown name or option, and a missing option; the message lists the valid ones.

    Example:
        >>> def mlp(features, *, hidden): ...
        >>> choose("model", "mlp", {"mlp": mlp}, ["hiden"])
        Traceback (most recent call last):
        ValueError: mlp has no option ['hiden']: it has ['hidden']
    """
    if name not in functions:
        raise ValueError(f"no {kind} {name!r}: it is one of {sorted(functions)}")
    function, options = functions[name], set(options)
    valid = keyword_options(function)
    if unknown := sorted(options - valid.keys()):
        raise ValueError(f"{name} has no option {unknown}: it has {list(valid)}{beside}")
    if missing := [option for option in valid if valid[option] is inspect.Parameter.empty and option not in options]:
        raise ValueError(f"{name} needs the option {missing}")
    return function


def keyword_options(function: Callable) -> dict[str, object]:
    """Lists the keyword-only arguments of a function with their defaults, `inspect.Parameter.empty` where none."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
