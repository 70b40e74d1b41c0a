"""The roles of columns: names that do not exist, roles that exclude each other, options of another kind."""

import numpy as np
import pytest

from ibreg.runs.data.tables.reading import Table
from ibreg.runs.data.tables.roles import Roles


def table(*columns):
    return Table("t.csv", {column: np.array(["1"], dtype=object) for column in columns}, [2], {""})


@pytest.mark.parametrize(
    ("wanted", "columns", "closest"),
    [
        ("y", ["a", "b", "Y"], "Y"),
        ("OUTCOME", ["outcome", "OUT", "COME"], "outcome"),
        ("kinds", ["a", "b", "kind"], "kind"),
        ("sales", ["sale", "Sales", "sal"], "Sales"),
        ("SALES_$", ["sales", "sales_$", "b"], "sales_$"),
        ("grosse", ["größe", "a", "b"], "größe"),
        ("5", ["a", "50"], "50"),
        (" age", ["age", "b"], "age"),
    ],
)
def test_the_closest_column_is_named(wanted, columns, closest):
    message = f"t.csv has no column '.*'; the closest is '{closest.replace('$', '.')}' of"
    for options in ({"drop": [wanted]}, {"groups": wanted}, {"order": wanted}, {"kinds": {wanted: "text"}}):
        with pytest.raises(ValueError, match=message):
            Roles.of(table("target", *columns), "target", **options)
    with pytest.raises(ValueError, match=message):
        Roles.of(table(*columns), wanted)


def test_names_that_yaml_reads_as_numbers_are_text():
    roles = Roles.of(table("5", "6", "7", "8", "1.5"), 5, drop=[6], groups=7, kinds={8: "text", 1.5: "number"})
    assert roles == Roles("5", ("6",), "7", None, (), {"8": "text", "1.5": "number"})
    assert roles.features(table("5", "6", "7", "8", "1.5")) == ["8", "1.5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": "a"}, r"drop must be a list of columns, data.drop=\[a\], got 'a'"),
        ({"drop": 5}, "drop must be a list of columns, .*, got 5"),
        ({"kinds": ["a"]}, r"kinds must map columns to kinds, data.kinds={zip: text}, got \['a'\]"),
        ({"kinds": "a"}, "kinds must map columns to kinds"),
        ({"kinds": {"a": "string"}}, r"the kind of column 'a' must be one of \['number', 'boolean', 'text', 'date'\]"),
        ({"kinds": {"a": None}}, "the kind of column 'a' must be one of .*, got 'None'"),
        ({"kinds": {"y": "text"}}, "kinds must name columns that are inputs, got 'y'"),
        ({"kinds": {"a": "text"}, "drop": ["a"]}, "kinds must name columns that are inputs, got 'a'"),
        ({"kinds": {"a": "text"}, "groups": "a"}, "kinds must name columns that are inputs, got 'a'"),
        ({"drop": ["y"]}, r"drop must not contain the target 'y', got \['y'\]"),
        ({"drop": ["a"], "groups": "a"}, "drop must not contain the groups 'a'"),
        ({"drop": ["a"], "order": "a"}, "drop must not contain the order 'a'"),
        ({"drop": ["a"], "concepts": ["a"]}, "drop must not contain the concepts 'a'"),
        ({"groups": "y"}, "target and groups must be different columns, got 'y' for both"),
        ({"order": "y"}, "target and order must be different columns, got 'y' for both"),
        ({"concepts": ["a", "y"]}, "target and concepts must be different columns, got 'y' for both"),
        ({"concepts": ["a"], "groups": "a"}, "groups and concepts must be different columns, got 'a' for both"),
        ({"order": "a", "groups": "b"}, "groups=b and order=a are two ways of splitting the rows: leave one out"),
    ],
)
def test_options_that_exclude_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        Roles.of(table("a", "b", "y"), "y", **options)
