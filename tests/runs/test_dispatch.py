"""Functions by name: their keyword-only arguments are options, checked by their annotations."""

import re
from functools import partial
from typing import Annotated, Any

import pytest
from pydantic import Field
from torch import nn

from ibreg.runs.config.section import Positive, Section
from ibreg.runs.dispatch import choose, find, keyword_options, name_in, options_of


def scaled(values, *, factor: Positive = 2.0, names: list[str] = []):  # noqa: B006
    return values, factor, names


def shifted(values, *, by: Annotated[int, Field(ge=1)], further: Any = None):
    return values, by, further


FUNCTIONS = {"scaled": scaled, "shifted": shifted, "mse": nn.MSELoss}


class Named(Section):
    name: str


def test_a_function_with_its_options():
    assert choose("map", "scaled", FUNCTIONS, {"factor": 3})(1) == (1, 3, [])
    assert choose("map", "shifted", FUNCTIONS, {"by": 3, "further": {"a": 1}})(1) == (1, 3, {"a": 1})
    assert isinstance(choose("loss", "mse", FUNCTIONS, {})(), nn.MSELoss)
    # Defaults stay with the function.
    assert choose("map", "scaled", FUNCTIONS, {}).keywords == {}


@pytest.mark.parametrize(
    ("name", "options", "section", "message"),
    [
        ("scald", {}, "", "no map 'scald' (did you mean 'scaled'?): it is one of mse, scaled, shifted"),
        ("scald", {}, "map", "map.name: no map 'scald' (did you mean 'scaled'?): it is one of mse, scaled, shifted"),
        (None, {}, "map", "map.name must be one of mse, scaled, shifted, got null"),
        (3, {}, "", "the name of the map must be one of mse, scaled, shifted, got 3"),
        (["scaled"], {}, "map", "map.name must be one of mse, scaled, shifted, got ['scaled']"),
        ("scaled", {"factr": 1}, "map", "map has no key 'factr' (did you mean 'factor'?): it has factor, names"),
        ("scaled", {"factr": 1}, "", "scaled has no key 'factr' (did you mean 'factor'?): it has factor, names"),
        ("scaled", {"factor": 0}, "map", "map.factor must be a number above 0, got 0"),
        ("scaled", {"factor": True}, "map", "map.factor must be a number above 0, got true"),
        ("scaled", {"names": "a"}, "map", "map.names must be a list of strings, got a"),
        ("scaled", {"values": 1}, "map", "map has no key 'values': it has factor, names"),
        ("shifted", {}, "map", "map needs the key 'by': give it a value, map.by=..."),
        ("shifted", {"by": 0}, "map", "map.by must be an integer of at least 1, got 0"),
        ("mse", {"reduction": "sum"}, "map", "map has no key 'reduction': it has no options"),
        ("scaled", 3, "map", "map must be a section with the keys factor, names, got 3"),
    ],
)
def test_what_is_not_valid(name, options, section, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        choose("map", name, FUNCTIONS, options, section)


def test_the_function_of_a_name():
    assert find("map", "shifted", FUNCTIONS) is shifted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "map must be a section with the key name, one of mse, scaled, shifted, got null"),
        ("scaled", "map must be a section with the key name, one of mse, scaled, shifted, got scaled"),
        ([], "map must be a section with the key name, one of mse, scaled, shifted, got []"),
        ({}, "map.name has no value: choose map=NAME, one of mse, scaled, shifted"),
        ({"name": None}, "map.name has no value: choose map=NAME, one of mse, scaled, shifted"),
    ],
)
def test_a_section_without_a_name(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        name_in(options, FUNCTIONS, "map")
    assert name_in({"name": "scaled"}, FUNCTIONS, "map") == "scaled"


def test_options_are_the_keyword_only_arguments():
    assert keyword_options(scaled) == {"factor": 2.0, "names": []}
    assert list(keyword_options(shifted)) == ["by", "further"]
    assert keyword_options(nn.MSELoss) == {}
    assert keyword_options(partial(scaled, factor=1.0)) == {"factor": 1.0, "names": []}
    model = options_of(scaled, Named)
    assert list(model.model_fields) == ["name", "factor", "names"]
    assert options_of(scaled, Named) is model
    assert model(name="x").factor == 2.0
    assert options_of(scaled) is not model
