"""Registry of the bottlenecks: `register` a class under a name, `build` it by that name, list all `names`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ibreg.layers.base import Bottleneck

_Class = TypeVar("_Class", bound="type[Bottleneck]")
_classes: dict[str, type[Bottleneck]] = {}
_OPTIONAL = {"quantizer": "ibreg.layers.quantizer"}  # need optional packages: registered when first asked for


def register(name: str) -> Callable[[_Class], _Class]:
    """Registers a bottleneck class under a name, as a class decorator.

    Args:
        name: lower case, one per class; it is also the stem of the layer's file and of its YAML.

    Raises:
        ValueError: If the name is not a lower-case identifier, or belongs to another class.
    """
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"a registry name must be a lower-case identifier such as 'variational', got {name!r}")

    def add(cls: _Class) -> _Class:
        known = _classes.get(name)
        # The same class again is a module that was reloaded, as notebooks do.
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"the name {name!r} belongs to {known.__qualname__} already: choose another")
        cls.registry_name = name
        _classes[name] = cls
        return cls

    return add


def names() -> list[str]:
    """Lists the registered bottlenecks, sorted, without the adapters of optional packages.

    Example:
        >>> import ibreg
        >>> "variational" in ibreg.names()
        True
    """
    return sorted(_classes.keys() - _OPTIONAL.keys())


def find(name: str) -> type[Bottleneck]:
    """Returns the class that is registered under a name.

    Raises:
        ValueError: If no class has that name; the message lists the valid names.
    """
    if name in _OPTIONAL:
        importlib.import_module(_OPTIONAL[name])
    if name not in _classes:
        raise ValueError(
            f"no bottleneck is called {name!r}{_hint([name], _classes)}: choose one of {', '.join(names())}"
        )
    return _classes[name]


def options(name: str) -> dict[str, Any]:
    """Returns the options of a bottleneck with their defaults, without device and dtype, which its host decides."""
    return find(name).defaults()


def build(name: str, **settings: Any) -> Bottleneck:
    """Builds a bottleneck by name.

    Args:
        name: one of `names()`.
        **settings: options of the class's constructor; all have defaults.

    Raises:
        ValueError: If the name or an option is unknown; the message suggests the closest one and lists the valid ones.

    Example:
        >>> import ibreg
        >>> ibreg.build("variational", in_features=8, beta=1e-2)
        VariationalBottleneck(8 -> 8, beta=0.01)
    """
    cls = find(name)
    valid = [*cls.defaults(), "device", "dtype"]
    unknown = [option for option in settings if option not in valid]
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise ValueError(f"{name!r} has no option {listed}{_hint(unknown, valid)}: choose from {', '.join(valid)}")
    return cls(**settings)


def _hint(unknown: Iterable[str], valid: Iterable[str]) -> str:
    """Suggests the closest valid name of each unknown one; empty where none is close."""
    close = [match for name in unknown for match in difflib.get_close_matches(str(name), list(valid), n=1)]
    return f" (did you mean {' and '.join(map(repr, close))}?)" if close else ""
