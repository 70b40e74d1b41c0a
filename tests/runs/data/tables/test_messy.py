"""One table as people have them, through the three kinds of data sets, as csv, compressed csv and parquet."""

import numpy as np
import pandas as pd
import pytest
import torch

from ibreg.runs.data.classification import load
from ibreg.runs.data.concepts import load as load_concepts
from ibreg.runs.data.regression import load as load_regression

ROWS = 200
CONCEPTS = ["fever", {"name": "age group", "values": ["young", "old"]}, {"name": "crp", "kind": "continuous"}]
LOADERS = {
    "classification": (load, {"name": "csv", "target": "outcome"}),
    "regression": (load_regression, {"name": "csv", "target": "sales_$_per_$"}),
    "concepts": (load_concepts, {"name": "concept_csv", "target": "outcome", "concepts": CONCEPTS}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """200 visits of 40 patients with text, dates, missing cells, booleans, constants and names."""
    folder = tmp_path_factory.mktemp("messy")
    rng = np.random.default_rng(0)
    age, crp = rng.normal(50, 15, ROWS).round(1), np.exp(rng.normal(1, 1, ROWS)).round(2)
    frame = pd.DataFrame(
        {
            "name": [f"Person, {row}" for row in range(ROWS)],
            "patient": rng.integers(0, 40, ROWS),
            "age": np.where(rng.random(ROWS) < 0.1, np.nan, age),
            "visits": pd.array(rng.integers(0, 9, ROWS), dtype="Int64"),
            "sex": rng.choice(["m", "f"], ROWS),
            "smoker": pd.array(rng.random(ROWS) < 0.3, dtype="boolean"),
            "visit": pd.Timestamp("2021-01-01") + pd.to_timedelta(rng.integers(0, 500_000, ROWS), unit="min"),
            "ward": "3B",
            "crp": np.where(rng.random(ROWS) < 0.1, np.nan, crp),
            "fever": rng.choice(["yes", "no"], ROWS),
            "age group": np.where(age > 50, "old", "young"),
            "sales_$_per_$": (crp * 10 + rng.normal(0, 1, ROWS)).round(2),
            "outcome": np.where(age + 5 * crp > 70, "ill", "well"),
        }
    )
    frame.loc[rng.random(ROWS) < 0.1, ["visits", "smoker", "sex", "visit", "fever"]] = None
    frame.to_csv(folder / "t.csv")  # with pandas' index
    frame.to_csv(folder / "t.csv.gz", index=False)
    frame.to_parquet(folder / "t.parquet")
    return folder


@pytest.mark.parametrize("kind", LOADERS)
def test_a_table_is_the_same_as_csv_and_parquet(files, kind):
    loader, options = LOADERS[kind]
    from_csv, *others = (loader(path=files / name, **options) for name in ("t.csv", "t.csv.gz", "t.parquet"))
    assert from_csv.columns[0].column == ""  # the index that pandas has written
    assert from_csv.columns[0].note == "left out: numbers the rows"
    for other in others:
        assert other.input_names == from_csv.input_names
        assert other.columns == from_csv.columns[1:]
        for part in ("train", "validation", "test"):
            torch.testing.assert_close(getattr(other, part).inputs, getattr(from_csv, part).inputs, rtol=0, atol=0)
            torch.testing.assert_close(getattr(other, part).targets, getattr(from_csv, part).targets, rtol=0, atol=0)


def test_every_column_is_told(files):
    found = load(path=files / "t.parquet", name="csv", target="outcome")
    assert {column.column: (column.read_as, column.inputs) for column in found.columns} == {
        "name": ("text", 0), "patient": ("number", 1), "age": ("number", 2), "visits": ("number", 2),
        "sex": ("text", 3), "smoker": ("boolean", 2), "visit": ("date", 8), "ward": ("text", 0), "crp": ("number", 2),
        "fever": ("boolean", 2), "age group": ("text", 2), "sales_$_per_$": ("number", 1), "outcome": ("class", 0),
    }  # fmt: skip
    missing = {column.column: column.missing for column in found.columns if column.missing}
    frame = pd.read_parquet(files / "t.parquet")
    assert missing == {name: int(count) for name, count in frame.isna().sum().items() if count}
    assert found.input_names[:3] == ("patient", "age", "age missing")
    assert len(found.input_names) == found.input_shape[0] == sum(column.inputs for column in found.columns)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("options", [{"groups": "patient"}, {"order": "sales_$_per_$"}, {"drop": ["age", "sex"]}])
def test_a_table_is_split_and_encoded_whatever_the_options(files, kind, options):
    loader, own = LOADERS[kind]
    if options.get("order") == own["target"]:
        options = {"order": "patient"}
    found = loader(path=files / "t.csv", **own, **options)
    assert sum(map(len, (found.train, found.validation, found.test))) == ROWS
    for part in (found.train, found.validation, found.test):
        assert part.inputs.isfinite().all()
    left = {column.column for column in found.columns if column.inputs == 0}
    assert left >= {"", "name", "ward", own["target"], *options.get("drop", ()), *map(str, options.values())} - {
        str(options.get("drop"))
    }
