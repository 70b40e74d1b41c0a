import csv
import inspect
import os
import shutil
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

from ibreg.runs.data import classification as data
from ibreg.runs.data import regression as regression_data
from ibreg.runs.data import uci
from ibreg.runs.data.regression import load, names
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.rows import loader
from ibreg.runs.dispatch import keyword_options

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
DATA = Path(os.environ.get("IBREG_DATA") or "data")
HOUSING = DATA / "scikit_learn_data" / "cal_housing_py3.pkz"
HOURS, DUST, ENERGY = (
    DATA / "uci" / name for name in ("hour.csv", "PRSA_data_2010.1.1-2014.12.31.csv", "energydata_complete.csv")
)
OF_REGRESSION = ["split", "noise_columns", "target_noise"]  # beside what classification asks too


def needs(file):
    return pytest.mark.skipif(not file.exists(), reason=f"no {file.name} under IBREG_DATA")


def rows_of(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def whole(found):
    """All rows in the order training, validation, test: inputs, standardized targets."""
    parts = [part for part in (found.train, found.validation, found.test) if part is not None]
    return torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts])


def write_table(folder, rows=100):
    """Rows in the order of time: a time, a column that is constant, and a target."""
    file = folder / "table.csv"
    lines = ["time,flat,price", *(f"{row / 2},7,{100 + 3 * row}" for row in range(rows))]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def table(tmp_path):
    return {"name": "csv", "path": write_table(tmp_path), "target": "price"}


# --- standardization and settings


def test_inputs_and_targets_are_standardized_by_the_training_rows():
    found = load("diabetes", validation=0.25)
    values, targets = load_diabetes(return_X_y=True, scaled=False)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [266, 88, 88]
    train = found.train.inputs.double().numpy()
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0), 1, atol=1e-6)
    assert float(found.train.targets.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(found.train.targets.double().std(correction=0)) == pytest.approx(1, abs=1e-6)
    # A linear model sees through any standardization of whole rows: the same fit, whatever their order.
    inputs, standard = whole(found)
    in_units = found.in_units(standard).squeeze(1).numpy()
    assert sorted(in_units.round().tolist()) == sorted(targets.tolist())
    fit, expected = LinearRegression().fit(inputs, in_units), LinearRegression().fit(values, targets)
    assert fit.score(inputs, in_units) == pytest.approx(expected.score(values, targets), abs=1e-6)


def test_targets_are_columns_that_a_head_of_one_unit_fits():
    found = load("diabetes")
    x, y = next(iter(loader(found.train, 32)))
    assert x.shape == (32, 10)
    assert y.shape == (32, 1)
    assert x.dtype == y.dtype == torch.float32
    assert found.in_units(y).dtype == torch.float64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 1.0}, r"^data\.validation must be a number of at least 0 and below 1, got 1\.0$"),
        ({"test": 0}, r"^data\.test must be a number above 0 and below 1, got 0$"),
        ({"test": 0.999}, "test=0.999 of 442 rows leaves one split empty: set data.test"),
        ({"validation": 0.001}, "validation=0.001 of 354 rows leaves one split empty"),
        ({"limit": -1}, r"^data\.limit must be an integer of at least 0, got -1$"),
        ({"limit": 1}, "is .* in all 1 training rows: nothing to learn"),
        ({"split_seed": -1}, r"^data\.split_seed must be an integer of at least 0 and below .*, got -1$"),
        ({"split": "time"}, r"^data\.split must be one of random, chronological, got time$"),
        (
            {"split": "chronological"},
            r"^data\.split must be random for diabetes, .* those of appliances_energy, .*, got chronological$",
        ),
        ({"noise_columns": -1}, r"^data\.noise_columns must be an integer of at least 0, got -1$"),
        ({"noise_columns": 0.5}, r"^data\.noise_columns must be an integer of at least 0, got 0\.5$"),
        ({"target_noise": -0.1}, r"^data\.target_noise must be a number of at least 0, got -0\.1$"),
        ({"target_noise": float("nan")}, r"^data\.target_noise must be a number of at least 0, got nan$"),
        (
            {"columns": 3},
            r"^data has no key 'columns' \(did you mean 'noise_columns'\?\): it has name, root, .*, test$",
        ),
    ],
)
def test_settings_out_of_range_say_what_is_valid(settings, message):
    with pytest.raises(ValueError, match=message):
        load("diabetes", **settings)


def test_an_unknown_name_lists_the_sets():
    with pytest.raises(
        ValueError, match=r"^data\.name: no regression data set 'housing': it is one of appliances_energy, "
    ):
        load("housing")


# --- the YAML files


@pytest.mark.parametrize("name", [name for name in names() if name != "csv"])
def test_the_yaml_has_the_options_with_their_defaults_and_no_other(name):
    written = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    common = keyword_options(RegressionRequest)
    # Those that only regression asks stand in the recipe's own YAML, once for all sets.
    common = {option: default for option, default in common.items() if option not in OF_REGRESSION}
    own = {p.name: p.default for p in list(inspect.signature(regression_data.SETS[name]).parameters.values())[1:]}
    assert written == {**common, **own, "name": name}
    assert OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml")) == written


def test_tables_of_classification_and_regression_are_asked_for_alike():
    """One csv.yaml serves both."""
    written = yaml.safe_load((CONFIGS / "csv.yaml").read_text())
    signatures = [
        {p.name: p.default for p in list(inspect.signature(function).parameters.values())[1:]}
        for function in (data.csv_file, regression_data.csv_file)
    ]
    assert signatures[0] == signatures[1]
    common = list(keyword_options(RegressionRequest))
    assert set(written) == {"name", *common, *signatures[1]} - set(OF_REGRESSION)
    assert {option: written[option] for option in ("drop", "test")} == {"drop": [], "test": 0.2}


def test_options_may_come_from_a_hydra_configuration(tmp_path):
    cfg = OmegaConf.load(CONFIGS / "csv.yaml")
    cfg.merge_with({"root": str(tmp_path), "path": write_table(tmp_path).name, "target": "price", "drop": ["flat"]})
    assert load(**OmegaConf.to_container(cfg)).input_shape == (1,)


# --- csv


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5,7,cheap", "column 'price', line 102: .* must be a finite number, got cheap.*classification"),
        ("5,7,inf", "column 'price', line 102: .* must be a finite number, got inf"),
        ("5,7,", "column 'price', line 102: the target is missing"),
        ("five,7,5", "column 'time', line 102: five"),
    ],
)
def test_tables_that_cannot_be_used_say_why(table, line, message):
    with table["path"].open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load(**table)


def test_a_constant_target_is_refused(table):
    with pytest.raises(ValueError, match=r"target of csv is 7\.0 in all 64 training rows"):
        load("csv", path=table["path"], target="flat")


def test_the_axis_is_named_after_the_column(table):
    assert load(**table).quantity == "price"


# --- the sets


@needs(HOUSING)
def test_housing_is_without_the_capped_rows_and_in_log_units():
    found = load("california_housing", root=DATA)
    inputs, targets = whole(found)
    assert inputs.shape == (19_648, 8)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [12_574, 3_144, 3_930]
    price = found.in_units(targets).exp()
    assert float(price.max()) < 5
    assert float(price.min()) == pytest.approx(0.14999, abs=1e-5)


@needs(HOURS)
def test_bicycles_are_counted_without_what_sums_to_them():
    found = load("bike_sharing", root=DATA, split="chronological")
    inputs, targets = whole(found)
    rows = rows_of(HOURS)
    assert inputs.shape == (17_379, 4 + 12 + 24 + 7 + 4 + 7)
    counted = found.in_units(targets).squeeze(1)
    assert counted.round().tolist() == [float(row["cnt"]) for row in rows]
    assert rows == sorted(rows, key=lambda row: (row["dteday"], int(row["hr"])))
    # The hour's columns stand behind 4 seasons and 12 months: one of them is up, in the place of the hour.
    hours = inputs[:, 16:40]
    up = hours > hours.mean(0) + 1
    assert (up.sum(1) == 1).all()
    assert sorted({(int(column), row["hr"]) for column, row in zip(up.int().argmax(1), rows, strict=True)}) == sorted(
        (column, hour) for column, hour in enumerate(sorted(map(str, range(24))))
    )
    # No column tells the casual or the registered users.
    casual = np.array([float(row["casual"]) for row in rows])
    assert np.abs([np.corrcoef(column, casual)[0, 1] for column in inputs.T.numpy()]).max() < 0.5


@needs(DUST)
def test_dust_is_without_hours_that_were_not_measured():
    found = load("beijing_pm25", root=DATA, split="chronological")
    inputs, targets = whole(found)
    rows = rows_of(DUST)
    assert len(rows) == 43_824
    measured = [row for row in rows if row["pm2.5"]]
    assert len(measured) == len(inputs) == 43_824 - 2_067
    assert inputs.shape[1] == 2 + 2 + 4 + 6
    assert found.in_units(targets).squeeze(1).round().tolist() == [float(row["pm2.5"]) for row in measured]
    order = [tuple(int(row[key]) for key in ("year", "month", "day", "hour")) for row in measured]
    assert order == sorted(order)
    # Sine and cosine of the hour, standardized: the 24 hours stand on an ellipse, in their order.
    hours = torch.tensor([int(row["hour"]) for row in measured])
    sine, cosine = (torch.stack([inputs[hours == hour, column].mean() for hour in range(24)]) for column in (0, 1))
    turn = torch.arange(24) / 24 * 2 * torch.pi
    assert np.corrcoef(sine, turn.sin())[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(cosine, turn.cos())[0, 1] == pytest.approx(1, abs=1e-6)


@needs(DUST)
def test_dust_may_mark_what_is_missing_as_the_repository_does(tmp_path):
    (tmp_path / "uci").mkdir()
    lines = DUST.read_text().splitlines()[:200]
    marked = [line.replace(",,", ",NA,") for line in lines]
    assert marked != lines
    (tmp_path / "uci" / DUST.name).write_text("\n".join(marked) + "\n")
    count = sum(",NA," not in line for line in marked[1:])
    assert len(whole(load("beijing_pm25", root=tmp_path))[0]) == count


@needs(ENERGY)
def test_appliances_know_the_time_of_day_and_the_weekday():
    found = load("appliances_energy", root=DATA, split="chronological")
    inputs, targets = whole(found)
    rows = rows_of(ENERGY)
    assert inputs.shape == (19_735, 2 + 7 + 27)
    assert found.in_units(targets).squeeze(1).round().tolist() == [float(row["Appliances"]) for row in rows]
    assert rows == sorted(rows, key=lambda row: row["date"])
    weekday = inputs[:, 2:9].argmax(1)
    dates = np.array([row["date"] for row in rows], dtype="datetime64[D]")
    expected = (dates - np.datetime64("1970-01-01")).astype(int) % 7
    assert (weekday.numpy() == expected).all()
    without = load("appliances_energy", root=DATA, split="chronological", random_columns=False)
    assert without.input_shape == (34,)
    assert torch.equal(whole(without)[0], inputs[:, :34])
    assert torch.equal(inputs[:, 34], inputs[:, 35])


@needs(DATA / "MNIST" / "raw")
def test_digits_are_turned_by_their_angle():
    found = load("rotated_mnist", root=DATA, size=500)
    assert found.input_shape == (1, 28, 28)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [320, 80, 100]
    inputs, targets = whole(found)
    angles = found.in_units(targets).squeeze(1)
    assert -45 <= angles.min() < -40
    assert 40 < angles.max() <= 45
    assert (inputs.min(), inputs.max()) == found.value_range == (0, 1)
    again = load("rotated_mnist", root=DATA, size=500, split_seed=1)
    assert {row.numpy().tobytes() for row in inputs} == {row.numpy().tobytes() for row in whole(again)[0]}
    assert torch.equal(again.test.inputs, found.test.inputs)
    turned = load("rotated_mnist", root=DATA, size=500, rotation_seed=1)
    assert not torch.equal(turned.test.inputs, found.test.inputs)


@needs(DATA / "MNIST" / "raw")
def test_an_angle_is_counterclockwise_and_a_digit_one_stands_at_it():
    """The long axis of the ones, from the second moments of their ink, turns with the angle."""
    found = load("rotated_mnist", root=DATA, size=2000, test=0.5, largest_angle=40)
    originals = data.load("mnist", root=DATA, validation=0)
    rng = np.random.default_rng(0)
    rng.permutation(60_000)
    labels = originals.test.targets[rng.permutation(10_000)[:1000]]
    ones = found.test.inputs[labels == 1].squeeze(1).double()
    angles = found.in_units(found.test.targets[labels == 1]).squeeze(1)
    up, right = torch.meshgrid(-torch.arange(28.0).double(), torch.arange(28.0).double(), indexing="ij")
    ink = ones / ones.sum((1, 2), keepdim=True)
    center = [(ink * axis).sum((1, 2), keepdim=True) for axis in (right, up)]
    across, along = right - center[0], up - center[1]
    moments = [(ink * product).sum((1, 2)) for product in (across * across, across * along, along * along)]
    axis = 0.5 * torch.atan2(2 * moments[1], moments[0] - moments[2]).rad2deg() % 180  # of the ink, from the right
    slope, intercept = np.polyfit(angles, axis, 1)
    assert slope == pytest.approx(1, abs=0.1)
    assert 65 < intercept < 90  # the ones of MNIST lean to the right a little


@needs(DATA / "MNIST" / "raw")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 60_000}, "require 12000 of the 10000 images"),
        ({"size": 1}, "size=1 and test=0.2 require 0 of the"),
        ({"size": 0}, r"^data\.size must be an integer of at least 1, got 0$"),
        ({"largest_angle": 0}, r"^data\.largest_angle must be a number above 0 and at most 180, got 0$"),
        ({"rotation_seed": -1}, "rotation_seed must be an integer"),
        ({"test": 1.0}, r"^data\.test must be a number above 0 and below 1, got 1\.0$"),
        ({"noise_columns": 3}, "noise_columns=3 are for tables"),
        ({"split": "chronological"}, "no time order"),
    ],
)
def test_rotations_out_of_range_say_what_is_valid(settings, message):
    with pytest.raises(ValueError, match=message):
        load("rotated_mnist", root=DATA, **settings)


# --- files that are not there


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("california_housing", "cal_housing_py3.pkz"),
        ("bike_sharing", "hour.csv"),
        ("beijing_pm25", "PRSA_data_2010.1.1-2014.12.31.csv"),
        ("appliances_energy", "energydata_complete.csv"),
        ("rotated_mnist", "MNIST/raw"),
    ],
)
def test_missing_files_are_named_and_nothing_is_made(name, file, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"put .*{file}.* there, set data.root or IBREG_DATA.*download=true"):
        load(name, root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_your_own_table_cannot_be_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table at .*which data.download=true cannot fetch"):
        load("csv", root=tmp_path, path="none.csv", target="price", download=True)


@pytest.fixture
def repository(tmp_path):
    """A server on this machine that stands in for the one of the UCI repository, and the folder that it serves."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    folder = tmp_path / "repository"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@needs(HOURS)
def test_a_table_of_the_repository_is_fetched_once_and_unpacked(tmp_path, monkeypatch, repository):
    folder, address = repository
    (folder / "275").mkdir()
    with zipfile.ZipFile(folder / "275" / "bike+sharing+dataset.zip", "w") as archive:
        archive.write(HOURS, "hour.csv")
    monkeypatch.setattr(uci, "_UCI_ARCHIVES", address)
    found = load("bike_sharing", root=tmp_path / "here", download=True)
    assert [file.name for file in (tmp_path / "here" / "uci").iterdir()] == ["hour.csv"]
    shutil.rmtree(folder / "275")
    again = load("bike_sharing", root=tmp_path / "here", download=True)
    assert torch.equal(found.train.inputs, again.train.inputs)


def test_the_environment_variable_stands_in_for_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("IBREG_DATA", str(tmp_path))
    write_table(tmp_path)
    assert len(load("csv", path="table.csv", target="price").test) == 20
