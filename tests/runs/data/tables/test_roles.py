"""The roles of columns: names that do not exist, roles that exclude each other, options of another kind."""

import numpy as np
import pytest

from ibreg.runs.data.classification import load
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


@pytest.fixture
def file(tmp_path):
    rows = [f"{row * row % 13},{8000 + row % 4},{'ab'[row % 2]},{row % 6},{row % 5 / 2}" for row in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["5,6,7,8,1.5", *rows]))
    return tmp_path / "t.csv"


def test_names_that_yaml_reads_as_numbers_are_text(file):
    found = load("csv", path=file, target=7, drop=[1.5], groups=8, kinds={6: "text"})
    assert found.input_names == ("5", "6=8000", "6=8001", "6=8002", "6=8003")
    marked = load("csv", path=file, target="7", missing_marks=[8000, None, "NA"])
    assert [column.missing for column in marked.columns] == [0, 15, 0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": "a"}, r"data.drop must be a list of columns, such as \[name, id\], got a"),
        ({"drop": 5}, "data.drop must be a list of columns, .*, got 5"),
        ({"drop": [True]}, r"data.drop must be a list of columns, .*, got \[True\]"),
        ({"target": True}, "data.target must be the name of a column, got true"),
        ({"groups": ["a"]}, r"data.groups must be the name of a column or null, got \['a'\]"),
        ({"order": False}, "data.order must be the name of a column or null, got false"),
        ({"kinds": ["a"]}, r"data.kinds must be kinds by column, number, .*, such as {zip: text} or null, got \['a'\]"),
        ({"kinds": "a"}, "data.kinds must be kinds by column"),
        ({"kinds": {"5": "string"}}, "number, boolean, text.* date.*, got .*string"),
        ({"kinds": {"5": None}}, "number, boolean, text.* date.*, got .*(null|None)"),
        ({"missing_marks": "NA"}, r"data.missing_marks must be a list of cells, such as \['', NA\], got NA"),
        ({"missing_marks": [["NA"]]}, "data.missing_marks must be a list of cells"),
        ({"missing_marks": [True]}, "data.missing_marks must be a list of cells"),
        ({"test": 1.0}, "data.test must be a number above 0 and below 1, got 1.0"),
    ],
)
def test_options_of_another_type_say_what_is_valid(file, options, message):
    with pytest.raises(ValueError, match=message):
        load("csv", **{"path": str(file), "target": "7", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": {"y": "text"}}, "data.kinds must name input columns, of \\['a', 'b'\\], got 'y'"),
        ({"kinds": {"a": "text"}, "drop": ["a"]}, "data.kinds must name input columns, of .*, got 'a'"),
        ({"kinds": {"a": "text"}, "groups": "a"}, "data.kinds must name input columns, of .*, got 'a'"),
        ({"drop": ["y"]}, r"data.drop must not contain data.target, 'y', got \['y'\]"),
        ({"drop": ["a"], "groups": "a"}, "data.drop must not contain data.groups, 'a', got"),
        ({"drop": ["a"], "order": "a"}, "data.drop must not contain data.order, 'a', got"),
        ({"drop": ["a"], "concepts": ["a"]}, "data.drop must not contain data.concepts, 'a', got"),
        ({"groups": "y"}, "data.target and data.groups must be different columns, got 'y' for both"),
        ({"order": "y"}, "data.target and data.order must be different columns, got 'y' for both"),
        ({"concepts": ["a", "y"]}, "data.target and data.concepts must be different columns, got 'y' for both"),
        ({"concepts": ["a"], "groups": "a"}, "data.groups and data.concepts must be different columns, got 'a'"),
        ({"order": "a", "groups": "b"}, "data.groups=b and data.order=a are two ways of splitting the rows: leave one"),
    ],
)
def test_options_that_exclude_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        Roles.of(table("a", "b", "y"), "y", **options)


def test_of_many_columns_the_first_are_listed_and_the_closest_of_all_is_named():
    many = table(*(f"c{number}" for number in range(500)), "outcome")
    first = r"\['c0', 'c1', .*'c9', \.\.\. \(501 columns\)\]"
    with pytest.raises(ValueError, match=f"no column 'outcom'; the closest is 'outcome' of {first}$") as caught:
        Roles.of(many, "outcom")
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=f"data.target and data.groups must be .* for both; the file has {first}$"):
        Roles.of(many, "outcome", groups="outcome")
    with pytest.raises(ValueError, match=r"data.kinds must name input columns, of \['c0', .* \(500 columns\)\], got"):
        Roles.of(many, "outcome", kinds={"outcome": "text"})
    with pytest.raises(ValueError, match=r"data.drop must .*, got \['c0', .*'c9', ... \(20 columns\)\]"):
        Roles.of(many, "c1", drop=[f"c{number}" for number in range(20)])
    with pytest.raises(ValueError, match=r"the closest is 'c1' of \['c0', 'c1', .*, 'c9'\]$"):
        Roles.of(table(*(f"c{number}" for number in range(10))), "c1x")
