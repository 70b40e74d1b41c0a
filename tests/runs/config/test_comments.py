"""YAML with its comments, in two columns of any width."""

import re
from pathlib import Path

import pytest
import yaml

from ibreg.runs.config.comments import entries, in_columns, paragraphs, reflow

CONFIGS = Path(__file__).parents[3] / "configs"
YAMLS = sorted(CONFIGS.rglob("*.yaml"))
LISTED = (
    "experiment",
    "comparison",
)  # shown as they are; their sections may be lists, or in flow style on a line below
TEXT = """\
# A head of
# two lines.
#
#   python recipes/classification.py   # a command

first: 1            # one
section:            # of two keys,
                    #   and a long comment
  nested: [a, "b"]  # lists; 'a#b' has no comment in it

  last: ${x.y}
url: a#b
"""


def words(text):
    return re.sub(r"# @package \S+|#", "", text).split()


def test_entries_have_values_comments_and_empty_lines():
    found = entries(TEXT)
    assert {path: entry.comment for path, entry in found.items()} == {
        ("first",): "one",
        ("section",): "of two keys, and a long comment",
        ("section", "nested"): "lists; 'a#b' has no comment in it",
        ("section", "last"): "",
        ("url",): "",
    }
    assert [entry.value for entry in found.values()] == ["1", "", '[a, "b"]', "${x.y}", "a#b"]
    assert [entry.spaced for entry in found.values()] == [True, False, False, True, False]


@pytest.mark.parametrize("path", [path for path in YAMLS if path.parent.name not in LISTED], ids=lambda path: path.stem)
def test_entries_are_those_that_a_parser_finds(path):
    text = path.read_text().partition("\nhydra:")[0]  # the rest are lines of help
    found = entries(text)

    def paths(section, at=()):
        for key, value in section.items():
            yield (*at, key)
            if not found[*at, key].value and isinstance(value, dict):
                yield from paths(value, (*at, key))

    assert list(found) == list(paths(yaml.safe_load(text)))


def test_every_key_has_a_comment():
    bare = [
        (path.stem, keys)
        for path in YAMLS
        if path.parent.name not in LISTED
        for keys, entry in entries(path.read_text().partition("\nhydra:")[0]).items()
        if not entry.comment and keys[-1] != "name" and keys[0] not in ("defaults", "settings", "bottleneck")
    ]
    assert not bare  # but for names, and methods in a section that is explained


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_reflow_keeps_every_word_and_the_width(path):
    before = path.read_text()
    for width in (80, 100, 120):
        after = reflow(before, width)
        assert words(after) == words(before)
        wrapped = [line for line in after.partition("\nhydra:")[0].splitlines() if re.match(r"[^#].*  # ", line)]
        assert all(len(line) <= width for line in wrapped)
    assert yaml.safe_load(after) == yaml.safe_load(before)


def test_comments_are_in_one_column_and_continued_below_it():
    text = in_columns("key: value", "some words that do not fit beside the key", 34, 12)
    assert text.splitlines() == [
        "key: value  # some words that do",
        "            #   not fit beside the",
        "            #   key",
    ]
    assert in_columns("key: value", "", 30) == "key: value"


def test_a_value_of_several_lines_is_one():
    found = entries("marks:  # missing\n  [a,\n   'b c']\nlast: 1\n")
    assert found["marks",] == ("[a, 'b c']", "missing", False)
    text = in_columns("  marks: [aaaa, bbbb, cccc, dddd]", "missing", 24, 10)
    assert text == "  marks: [aaaa, bbbb,\n      cccc, dddd]\n          # missing"


def test_a_comment_beside_a_long_value_begins_in_the_next_line():
    text = in_columns("key: " + "v" * 30, "words that need room", 40, 10)
    assert text.splitlines() == ["key: " + "v" * 30, "          # words that need room"]
    # Beside it, where there is room.
    assert in_columns("key: " + "v" * 10, "short", 40, 10) == "key: " + "v" * 10 + "  # short"


def test_paragraphs_keep_indented_lines():
    assert paragraphs("one two\nthree\n\n  a   b\nfour", 7) == "one two\nthree\n\n  a   b\nfour"
