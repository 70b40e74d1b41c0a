"""The terminal, or the pipe, that text is printed to."""

from __future__ import annotations

import os
import shutil
import sys

WIDEST = 120


def terminal_width() -> int:
    """Returns the width of the terminal, at most 120 columns, which is also that of a pipe or file."""
    return min(shutil.get_terminal_size(fallback=(WIDEST, 24)).columns, WIDEST)


def discard_output() -> None:
    """Lets what is still printed go nowhere, after the reader of a pipe has closed it, as `head` does.

    Python would complain of it once more when it ends.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
