"""Keys of mappings on the command line that Hydra's grammar does not have: names of columns and concepts."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

ENCODED = re.compile(r"__key_((?:[0-9a-f]{2})*)__")


def encoded(key: str) -> str:
    """Writes a key as an identifier, if Hydra would not read it as the text that it is.

    Example:
        >>> encoded("year"), encoded("2019")
        ('year', '__key_32303139__')
    """
    try:
        value = OverridesParser.create().parse_override(f"key={{{key}:1}}").value()
    except Exception:  # Hydra's own, or one of its lexer, which it does not wrap
        value = None
    return key if value == {key: 1} else f"__key_{key.encode(errors='surrogatepass').hex()}__"


def decoded(value: Any) -> Any:
    """Returns the contents of a configuration with the keys as they were typed.

    Example:
        >>> decoded({"kinds": {encoded("a=b"): "text"}})
        {'kinds': {'a=b': 'text'}}
    """
    if isinstance(value, dict):
        return {decoded_text(key, quoted=False): decoded(entry) for key, entry in value.items()}
    return [decoded(entry) for entry in value] if isinstance(value, list) else value


def decoded_text(text: Any, *, quoted: bool = True) -> Any:
    """Returns a text, such as an argument, with the keys as they were typed, in quotes or without them.

    Example:
        >>> decoded_text(f"kinds={{{encoded('a=b')}:text}}")
        "kinds={'a=b':text}"
    """

    def typed(found: re.Match) -> str:
        key = bytes.fromhex(found[1]).decode(errors="surrogatepass")
        return "'{}'".format(key.replace("'", "\\'")) if quoted else key

    return ENCODED.sub(typed, text) if isinstance(text, str) else text
