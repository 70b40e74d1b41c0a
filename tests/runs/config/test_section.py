"""Sections: what a schema allows in words, values in messages, the closest name."""

import re
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from ibreg.runs.config.section import (
    Count,
    Different,
    Name,
    Names,
    NotNegative,
    Positive,
    Section,
    Share,
    did_you_mean,
    no_key,
    one_of,
    read,
    shown,
    valid,
)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Count, "an integer of at least 1"),
        (NotNegative, "a number of at least 0"),
        (Positive, "a number above 0"),
        (Share, "a number of at least 0 and below 1"),
        (Annotated[int, Field(ge=0, lt=2**32)], "an integer of at least 0 and below 4294967296"),
        (Annotated[float, Field(gt=-0.5, le=1e-3)], "a number above -0.5 and at most 0.001"),
        (Annotated[float, Field(le=3)], "a number of at most 3"),
        (Annotated[int, Field(lt=3)], "an integer below 3"),
        (Name, "a string that is not empty"),
        (str, "a string"),
        (bool, "true or false"),
        (float | None, "a number or null"),
        (str | int | None, "a string, an integer or null"),
        (Names, "a list of different strings"),
        (list[Any], "a list of entries, each any value"),
        (list[str | int], "a list of entries, each a string or an integer"),
        (list[dict[str, Any]], "a list of sections"),
        (list[list[int]], "a list of entries, each a list of integers"),
        (Annotated[list[float], Field(min_length=2, max_length=2)], "a list of 2 numbers"),
        (Annotated[list[Count], Field(min_length=1, examples=[[1, 2]]), *Different],
         "a list of one or more different integers of at least 1, such as [1,2]"),
        (list[Literal["a", "b"]], "a list of entries, each one of a, b"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (Literal["no", "1"], "one of no, '1'"),
        (Annotated[str, *one_of(["x", "y"])], "one of x, y"),
        (dict[str, Any], "a section"),
        (dict[str, Positive], "a section whose values are each a number above 0"),
        (Positive | dict[str, Positive], "a number above 0 or a section whose values are each a number above 0"),
        (Annotated[Any, Field(json_schema_extra={"valid": "a thing"})], "a thing"),
    ],
)  # fmt: skip
def test_words_for_what_an_annotation_allows(annotation, words):
    schema = TypeAdapter(annotation).json_schema()
    assert valid(schema, schema) == words


NUMBERS = st.sampled_from([int, float]).flatmap(
    lambda kind: st.tuples(
        st.just("integer" if kind is int else "number"),
        st.dictionaries(st.sampled_from(["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"]), st.integers()),
    )
)
LEAVES = st.one_of(
    NUMBERS.map(lambda pair: {"type": pair[0], **pair[1]}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string"}, {"type": "string", "minLength": 1}]),
    st.lists(st.text(min_size=1), min_size=1).map(lambda names: {"enum": names}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        inner.map(lambda entry: {"type": "array", "items": entry}),
        inner.map(lambda entry: {"type": "object", "additionalProperties": entry}),
    ),
    max_leaves=5,
)


@given(SCHEMAS)
def test_every_schema_has_words_in_one_line(schema):
    words = valid(schema, schema)
    assert "another value" not in words
    assert len(words.splitlines()) == 1
    assert words.strip()


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists) | st.dictionaries(st.text(), st.text())
)
def test_every_value_is_shown_in_one_line_of_limited_length(value):
    text = shown(value)
    assert 0 < len(text) <= 200
    assert len(text.splitlines()) == 1


@given(st.text())
def test_a_string_is_told_from_what_it_looks_like(text):
    if shown(text) in ("true", "false", "null", "1.0", "1"):
        pytest.fail("a string that is no string")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ("true", "'true'"), ("null", "'null'"), (1.0, "1.0"), ("1", "'1'"),
     ("1e-3", "'1e-3'"), ("nan", "'nan'"), ("", "''"), ("  ", "'  '"), ("a\nb", "a b"), (["a", 1], "['a', 1]"),
     ({"a": None}, "{'a': None}"), ("x" * 300, "x" * 197 + "...")],
)  # fmt: skip
def test_a_value_as_it_stands_in_a_configuration(value, text):
    assert shown(value) == text


KNOWN = ["epochs", "batch_size", "lr", "weight_decay", "Beta"]


@given(st.sampled_from(KNOWN), st.integers(0, 9), st.sampled_from("qxz"))
def test_a_name_with_one_more_letter_suggests_the_name(name, place, letter):
    assert did_you_mean(name[:place] + letter + name[place:], KNOWN) == f" (did you mean {name!r}?)"


@given(st.text() | st.none() | st.integers() | st.lists(st.text()))
def test_a_suggestion_is_one_of_the_names_or_nothing(name):
    assert did_you_mean(name, KNOWN) in ("", *(f" (did you mean {known!r}?)" for known in KNOWN))


def test_no_suggestion_where_nothing_is_close():
    assert did_you_mean("momentum", KNOWN) == did_you_mean(None, ["none"]) == did_you_mean(1, ["1"]) == ""
    assert did_you_mean("BETA", KNOWN) == " (did you mean 'Beta'?)"
    assert no_key("grid", "betta", ["beta"]) == "grid has no key 'betta' (did you mean 'beta'?): it has beta"


class Inner(Section):
    kinds: list[Annotated[str, *one_of(["blur", "noise"])]]
    rate: Positive | dict[str, Positive] = 1.0


class Outer(Section):
    inner: Inner
    several: list[Inner] = []
    by_name: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the configuration needs the key 'inner': give it a value, inner=..."),
        ({"inner": {}}, "inner needs the key 'kinds': give it a value, inner.kinds=..."),
        ({"inner": 3}, "inner must be a section with the keys kinds, rate, got 3"),
        ({"inner": {"kind": []}}, "inner has no key 'kind' (did you mean 'kinds'?): it has kinds, rate"),
        ({"inner": {"kinds": ["blurr"]}},
         "inner.kinds must be a list of entries, each one of blur, noise, got ['blurr'] (did you mean 'blur'?)"),
        ({"inner": {"kinds": ["blur", 3]}},
         "inner.kinds must be a list of entries, each one of blur, noise, got ['blur', 3]"),
        ({"inner": {"kinds": [], "rate": {"a": 0}}},
         "inner.rate must be a number above 0 or a section whose values are each a number above 0, got {'a': 0}"),
        ({"inner": {"kinds": []}, "several": [{"kinds": "blur"}]},
         "several[0].kinds must be a list of entries, each one of blur, noise, got blur"),
        ({"inner": {"kinds": []}, "several": [{"kinds": []}, {"kind": []}]},
         "several[1] has no key 'kind' (did you mean 'kinds'?): it has kinds, rate"),
        ({"inner": {"kinds": []}, "by_name": {"x": {"kinds": 3}}},
         "by_name.x.kinds must be a list of entries, each one of blur, noise, got 3"),
        ({"innre": {}}, "the configuration has no key 'innre' (did you mean 'inner'?): it has inner, several, by_name"),
    ],
)  # fmt: skip
def test_the_message_is_about_the_deepest_key(values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(Outer, values)
    with pytest.raises(ValueError, match="there"):
        read(Outer, values, "there")


@pytest.mark.parametrize("values", [None, 3, "text", [1], True])
def test_a_section_that_is_none(values):
    with pytest.raises(ValueError, match=r"^attack must be a section with the keys kinds, rate, got "):
        read(Inner, values, "attack")


def test_a_section_is_not_changed_and_has_no_further_keys():
    section = read(Inner, {"kinds": ["blur"]})
    with pytest.raises(ValueError, match="frozen"):
        section.rate = 3.0
    assert "rate" in section
    assert "speed" not in section
