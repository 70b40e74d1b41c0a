"""The width of the terminal, and a pipe whose reader has gone."""

import os
import sys

import pytest

from ibreg.runs.config.terminal import discard_output, terminal_width


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("200", 120), ("61", 61)])
def test_the_width_is_that_of_the_terminal_and_at_most_120(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == width


def test_output_goes_nowhere_once_the_reader_has_gone(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(BrokenPipeError):
            print("printed for nobody", flush=True)
        discard_output()
        print("and this goes nowhere", flush=True)
