"""YAML with its comments, as text: the comment of each key, and both laid out in two columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

COLUMN = 34  # where comments begin, as in the YAMLs of the recipes
NARROWEST = 24  # of a comment beside a long value; below it the comment begins in the next line
COMMENT = re.compile(r"(?:^|\s+)#(?: |$)")
KEY = re.compile(r"( *)([\w-]+):")


class Line(NamedTuple):
    """A line of YAML: what stands before its comment, and the comment with its continuations in one line."""

    text: str
    comment: str


class Entry(NamedTuple):
    """A key of a YAML.

    Attributes:
        value: the value as it is written; "" for a section.
        comment: its comment in one line.
        spaced: whether an empty line stands before it.
    """

    value: str
    comment: str
    spaced: bool


def entries(text: str) -> dict[tuple[str, ...], Entry]:
    r"""Returns each key of a YAML, by its path.

    Args:
        text: block style, in which lists and short sections may be in flow style.

    Example:
        >>> entries("grid:  # equally many\n  beta: [1, 2]  # at least\n                #   0\n")[("grid", "beta")]
        Entry(value='[1, 2]', comment='at least 0', spaced=False)
    """
    found: dict[tuple[str, ...], Entry] = {}
    above: list[tuple[int, str]] = []  # indentation and key of the sections that a line is in
    spaced = False
    for line in _lines(text):
        if match := KEY.match(line.text):
            indent = len(match[1])
            above = [*((depth, key) for depth, key in above if depth < indent), (indent, match[2])]
            path = tuple(key for _, key in above)
            found[path] = Entry(line.text[match.end() :].strip(), line.comment, spaced)
        elif line.text and found:  # of a value in flow style that takes several lines
            path, entry = found.popitem()
            found[path] = entry._replace(value=f"{entry.value} {line.text.strip()}".strip())
        spaced = not (line.text or line.comment)
    return found


def in_columns(text: str, comment: str, width: int, column: int = COLUMN) -> str:
    """Lays out a line of YAML and its comment, which is wrapped, in two columns.

    Example:
        >>> print(in_columns("lr: 1e-3", "learning rate of AdamW", 32, 10))
        lr: 1e-3  # learning rate of
                  #   AdamW
    """
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    if len(text) > width:
        wrap.subsequent_indent = " " * (len(text) - len(text.lstrip()) + 4)
        text = wrap.fill(text)
    if not comment:
        return text
    beside = max(len(text) + 2, column)
    own_line = beside > column and width - beside < min(len(comment) + 2, NARROWEST)
    wrap.initial_indent = " " * (column if own_line else beside) + "# "
    wrap.subsequent_indent = " " * column + "#   "
    wrapped = wrap.fill(comment)
    return f"{text}\n{wrapped}" if own_line else text + wrapped[len(text) :]


def reflow(text: str, width: int) -> str:
    r"""Lays out a whole YAML: comments beside keys in one column, comments between keys as paragraphs.

    Lines of a comment that are indented, such as commands, stay as they are. Directives to Hydra are left out.

    Example:
        >>> print(reflow("# A head in\n# two lines.\nlr: 1 # learning rate\n", 80))
        # A head in two lines.
        lr: 1  # learning rate
    """
    lines = [line for line in _lines(text) if not line.comment.startswith("@package")]
    column = min(max((len(line.text) + 2 for line in lines if line.comment), default=0), COLUMN)
    blocks = []
    for alone, block in groupby(lines, key=lambda line: bool(line.comment and not line.text)):
        block = list(block)
        if alone:
            blocks.append(paragraphs("\n".join(line.comment for line in block), width, "# "))
        else:
            blocks.append("\n".join(in_columns(*line, width, column) for line in block))
    return "\n".join(blocks)


def paragraphs(text: str, width: int, indent: str = "") -> str:
    r"""Wraps the paragraphs of a text; lines that are indented stay as they are.

    Example:
        >>> print(paragraphs("Two lines\nof text:\n\n  python recipes/compare.py", 80, "# "))
        # Two lines of text:
        #
        #   python recipes/compare.py
    """
    wrapped = []
    for verbatim, block in groupby(text.splitlines(), key=lambda line: not line or line.startswith(" ")):
        if verbatim:
            wrapped += [f"{indent}{line}".rstrip() for line in block]
        else:
            joined = " ".join(block)
            wrapped += textwrap.wrap(
                joined, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False,
                break_long_words=False,
            )  # fmt: skip
    return "\n".join(wrapped)


def _lines(text: str) -> Iterator[Line]:
    """Splits a YAML into lines, with the comment lines below a key joined to the comment of that key."""
    held: Line | None = None
    for raw in text.splitlines():
        before, *comment = COMMENT.split(raw, maxsplit=1)
        line = Line(before.rstrip(), (comment[0].rstrip() or " ") if comment else "")  # " ": "#" alone, in a paragraph
        if held and held.text and line.comment and not line.text and raw[0] == " ":
            held = held._replace(comment=f"{held.comment} {line.comment.strip()}")
            continue
        if held:
            yield held
        held = line
    if held:
        yield held
