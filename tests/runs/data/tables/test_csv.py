import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ibreg.runs.data.classification import load
from ibreg.runs.data.tables.standardization import standardized

DATA = Path(os.environ.get("IBREG_DATA") or "data")
needs_zoo = pytest.mark.skipif(not (DATA / "concepts").is_dir(), reason="no concepts/zoo.csv under IBREG_DATA")


def write_csv(folder, rows, name="table.csv"):
    file = folder / name
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def table(n=60, seed=0):
    """A header and n rows of two columns and three classes in the ratio 3 : 2 : 1."""
    noise = np.random.default_rng(seed).normal(5, 3, (n, 2))
    kinds = ["owl", "owl", "owl", "bat", "bat", "emu"]
    return ["size,weight,kind", *(f"{a!r},{b!r},{kinds[i % 6]}" for i, (a, b) in enumerate(noise.tolist()))]


def test_columns_are_standardized_by_the_training_rows(tmp_path):
    lines = table(90)
    found = load("csv", root=tmp_path, path=write_csv(tmp_path, lines).name, target="kind")
    raw = np.array([[float(cell) for cell in line.split(",")[:2]] for line in lines[1:]])
    kinds = np.array([line.split(",")[2] for line in lines[1:]])
    parts = found.train, found.validation, found.test
    assert [len(part) for part in parts] == [64, 8, 18]
    assert found.class_names == ("bat", "emu", "owl")

    train = found.train.inputs.double().numpy()
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-6)
    # The raw training rows are found again by their order, and numpy standardizes every row by them.
    everything = np.concatenate([part.inputs.double().numpy() for part in parts])
    labels = np.concatenate([part.targets.numpy() for part in parts])
    rows = np.argsort(raw[:, 0])[np.argsort(np.argsort(everything[:, 0]))]
    fitted = raw[rows[: len(train)]]
    np.testing.assert_allclose(everything, (raw[rows] - fitted.mean(0)) / fitted.std(0), atol=1e-5)
    assert (np.array(found.class_names)[labels] == kinds[rows]).all()


def test_constant_columns_are_left_out(tmp_path):
    lines = ["flat,size,kind", *(f"0.1,{i / 2},{'ab'[i % 2]}" for i in range(40))]
    found = load("csv", path=write_csv(tmp_path, lines), target="kind")
    assert found.input_names == ("size",)
    assert found.columns[0].note == "left out: 0.1 in all training rows"


def test_integer_classes_keep_their_own_order(tmp_path):
    lines = ["size,grade", *(f"{i / 2},{[10, 9, -1][i % 3]}" for i in range(60))]
    found = load("csv", path=write_csv(tmp_path, lines), target="grade")
    assert found.class_names == ("-1", "9", "10")
    size = found.train.inputs[:, 0]
    assert found.train.targets.dtype == torch.int64
    assert size.shape == found.train.targets.shape


def test_spaces_a_byte_order_mark_quotes_and_blank_lines_do_no_harm(tmp_path):
    rows = [
        "\ufeffsize, kind",
        "",
        *(f'"{i / 2}", "{["a b", "c,d"][i % 2]}"'.replace(", ", ",") for i in range(40)),
        "",
    ]
    found = load("csv", path=write_csv(tmp_path, rows), target="kind")
    assert found.class_names == ("a b", "c,d")


def test_the_same_path_is_looked_up_under_the_root_first(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path, table(60))
    assert len(load("csv", root="root", path="table.csv", target="kind").test) == 12
    write_csv(tmp_path / "root", table(120))
    assert len(load("csv", root="root", path="table.csv", target="kind").test) == 24


PAIR = ["a,b,kind", *(f"{i / 2},{i * i},{'xy'[i % 2]}" for i in range(40))]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([*PAIR[:5], "cat,1,x", *PAIR[5:]], {}, r"column 'a', line 6: cat is not a number.*data.drop=\[a\]"),
        ([*PAIR, "NaN,inf,x"], {}, r"column 'b', line 42: inf is not a finite number.*data.drop=\[b\]"),
        ([*PAIR, "1,2,"], {}, "column 'kind', line 42: the target is missing"),
        ([*PAIR, "1,2"], {}, "line 42: 2 cells under a header of 3 columns"),
        (PAIR, {"target": "kinds"}, r"no column 'kinds'; the closest is 'kind' of \['a', 'b', 'kind'\]"),
        (PAIR, {"drop": ["A"]}, "no column 'A'"),
        (PAIR, {"drop": "a"}, "drop must be a list of columns, such as .*, got a"),
        (PAIR, {"drop": ["kind"]}, "data.drop must not contain data.target, 'kind'"),
        (PAIR, {"drop": ["a", "b"]}, "no feature column left"),
        (PAIR, {"target": "a"}, "column 'a' holds fractions such as 0.5"),
        (PAIR[:1], {}, "has no rows"),
        ([""], {}, "has no rows"),
        ([line.replace(",", ";") for line in PAIR], {}, "separated by semicolons: save it with commas"),
        ([line.replace(",", "\t") for line in PAIR], {}, "separated by tabs"),
        (["a,a,kind", "1,2,x"], {}, "more than one column named 'a'"),
        (["a,kind", *(f"{i},x" for i in range(9))], {}, "the only class is 'x'"),
        (["a,kind", *(f"{i},{i / 7}" for i in range(9))], {}, "column 'kind' holds fractions such as 0.14"),
        ([*PAIR, "1,2,z"], {}, "test=0.2 of 41 rows .* class 'z' has 1 of them. Set data.test closer"),
        ([*PAIR, "1,2,z", "1,3,z"], {}, "validation=0.1 of 33 rows .* class 'z' has 1 of them"),
    ],
)
def test_tables_that_cannot_be_used_say_why(tmp_path, lines, options, message):
    with pytest.raises(ValueError, match=message):
        load("csv", path=write_csv(tmp_path, lines), **{"target": "kind", **options})


def test_a_table_that_is_not_utf8_says_so(tmp_path):
    (tmp_path / "table.csv").write_bytes("größe,kind\n1,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        load("csv", path=tmp_path / "table.csv", target="kind")


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder: data.path is the csv file itself"):
        load("csv", path=tmp_path, target="kind")


def test_a_table_that_is_not_there_cannot_be_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table at .*which data.download=true cannot fetch"):
        load("csv", root=tmp_path, path="none.csv", target="kind", download=True)


@needs_zoo
def test_the_zoo_is_read():
    found = load(
        "csv",
        root=DATA,
        path="concepts/zoo.csv",
        target="type",
        drop=["animal"],
        test=0.3,
        validation=0.3,
        split_seed=1,
    )
    assert found.classes == 7
    assert found.input_shape == (16,)
    assert len(found.train) + len(found.validation) + len(found.test) == 101
    everything = load("csv", root=DATA, path="concepts/zoo.csv", target="type", test=0.3, validation=0.3, split_seed=1)
    assert "nearly every cell is another text" in everything.columns[0].note
    assert torch.equal(everything.test.inputs, found.test.inputs)


def test_columns_of_any_size_are_standardized_and_constant_ones_are_0_in_all_rows():
    values = np.array([[1.0, 5.0], [3.0, 5.0], [7.0, 27.0]])
    rows = np.array([0, 1])
    expected = np.array([[-1.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    for size in (1.0, 1e-200, 1e300):
        np.testing.assert_allclose(standardized(size * values, rows), expected, rtol=1e-15)
    with pytest.raises(ValueError, match="column 1 has values that overflow"):
        standardized(np.array([[1.0, 1e-300], [3.0, 2e-300], [2.0, 1e300]]), rows)
