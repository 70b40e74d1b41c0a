"""From a name to a bottleneck: `register` a class, `build` it by name, list the `names`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ibreg.layers.base import Bottleneck

_Class = TypeVar("_Class", bound=type)
_classes: dict[str, type[Bottleneck]] = {}
_OPTIONAL = {"quantizer": "ibreg.layers.quantizer"}  # need further packages: registered when first asked for


def register(name: str):
    """Makes a bottleneck class known under a name, as a class decorator.

    Args:
        name: lower case, one per class; it is also the stem of the layer's file and of its YAML.

    Raises:
        ValueError: the name is not a lower-case identifier, or belongs to another class already.
    """
    if not (name.isidentifier() and name == name.lower()):
        raise ValueError(f"a registry name is a lower-case identifier such as 'variational', got {name!r}")

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
    """Lists the registered bottlenecks, sorted; adapters of other packages are not among them.

    Example:
        >>> import ibreg
        >>> "variational" in ibreg.names()
        True
    """
    return sorted(_classes.keys() - _OPTIONAL.keys())


def find(name: str) -> type[Bottleneck]:
    """Returns the class that stands behind a name.

    Raises:
        ValueError: no such name; the message lists the valid ones.
    """
    if name in _OPTIONAL:
        importlib.import_module(_OPTIONAL[name])
    if name not in _classes:
        close = difflib.get_close_matches(str(name), _classes, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"no bottleneck is called {name!r}{hint}: choose one of {', '.join(names())}")
    return _classes[name]


def options(name: str) -> dict[str, Any]:
    """Lists the options of a bottleneck with their defaults, without the device and dtype that a host decides."""
    parameters = inspect.signature(find(name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("self", "device", "dtype")}


def build(name: str, **settings: Any) -> Bottleneck:
    """Builds a bottleneck by name.

    Args:
        name: one of `names()`.
        **settings: options of the class's constructor; all have defaults.

    Raises:
        ValueError: an unknown name or option; the message lists the valid ones.

    Example:
        >>> import ibreg
        >>> ibreg.build("variational", in_features=8, beta=1e-2)
        VariationalBottleneck(8 -> 8, beta=0.01)
    """
    cls = find(name)
    valid = [*options(name), "device", "dtype"]
    unknown = [key for key in settings if key not in valid]
    if unknown:
        raise ValueError(f"{name!r} has no option {', '.join(map(repr, unknown))}: choose from {', '.join(valid)}")
    return cls(**settings)
