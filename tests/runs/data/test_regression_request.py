"""The splits of a regression data set, and the noise that is added."""

import numpy as np
import pytest
import torch

from ibreg.runs.data.regression import load
from ibreg.runs.data.regression_request import RegressionRequest


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


def prices(part, found):
    return found.in_units(part.targets).squeeze(1).round().tolist()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("split", ["random", "chronological"])
def test_parts_share_no_row_and_leave_none_out(seed, split):
    parts = RegressionRequest(split_seed=seed, split=split).split_rows(19_648, test=0.2)
    assert [len(part) for part in parts] == [12_574, 3_144, 3_930]
    assert sorted(np.concatenate(parts)) == list(range(19_648))


def test_a_chronological_split_keeps_the_order_of_time(table):
    found = load(**table, split="chronological", validation=0.25, test=0.2)
    assert prices(found.train, found) == [100 + 3 * row for row in range(60)]
    assert prices(found.validation, found) == [100 + 3 * row for row in range(60, 80)]
    assert prices(found.test, found) == [100 + 3 * row for row in range(80, 100)]
    assert found.target_mean == pytest.approx(100 + 3 * 29.5)
    assert found.target_std == pytest.approx(3 * np.arange(60).std())
    np.testing.assert_allclose(
        found.test.inputs[:, 0].numpy(), (np.arange(80, 100) - 29.5) / np.arange(60).std(), rtol=1e-6
    )
    assert found.input_names == ("time",)  # the constant column is left out
    latest = load(**table, split="chronological", validation=0.25, test=0.2, limit=10)
    assert prices(latest.train, latest) == [100 + 3 * row for row in range(50, 60)]
    assert prices(latest.test, latest) == prices(found.test, found)


def test_a_random_split_depends_on_its_seed_alone(table):
    torch.manual_seed(1)
    np.random.seed(1)
    first = load(**table, split_seed=3)
    torch.manual_seed(2)
    np.random.seed(2)
    again, other = load(**table, split_seed=3), load(**table, split_seed=4)
    assert torch.equal(whole(first)[0], whole(again)[0])
    assert prices(first.train, first) != prices(other.train, other)
    assert sorted(prices(first.train, first) + prices(first.validation, first) + prices(first.test, first)) == [
        100 + 3 * row for row in range(100)
    ]


def test_a_smaller_limit_is_a_subset_and_other_splits_stay(table):
    plain, none = load(**table), load(**table, validation=0)
    assert none.validation is None
    assert len(none.train) == 80
    assert prices(none.test, none) == prices(plain.test, plain)
    ten, thirty = load(**table, limit=10), load(**table, limit=30)
    assert set(prices(ten.train, ten)) < set(prices(thirty.train, thirty)) < set(prices(plain.train, plain))
    assert len(ten.train) == 10
    assert prices(ten.validation, ten) == prices(plain.validation, plain)
    assert prices(ten.test, ten) == prices(plain.test, plain)
    assert float(ten.train.targets.mean()) == pytest.approx(0, abs=1e-6)
    assert len(load(**table, limit=10**6).train) == 64


def test_noise_columns_are_standard_normal_and_leave_everything_else_alone():
    plain, noisy, wider = (load("diabetes", noise_columns=columns) for columns in (0, 40, 50))
    assert noisy.input_shape == (50,)
    for part, other in ((plain.train, noisy.train), (plain.test, noisy.test)):
        assert torch.equal(part.inputs, other.inputs[:, :10])
        assert torch.equal(part.targets, other.targets)
    assert torch.equal(noisy.train.inputs, wider.train.inputs[:, :50])
    columns = noisy.test.inputs[:, 10:]
    assert columns.std() == pytest.approx(1, abs=0.05)
    assert columns.mean() == pytest.approx(0, abs=0.05)
    assert (np.corrcoef(whole(noisy)[0][:, 10:].T) - np.eye(40)).max() < 0.3
    assert torch.equal(noisy.train.inputs, load("diabetes", noise_columns=40).train.inputs)
    assert not torch.equal(
        noisy.train.inputs[0, 10:], load("diabetes", noise_columns=40, split_seed=1).train.inputs[0, 10:]
    )


def test_target_noise_is_in_deviations_of_the_training_targets_alone(tmp_path):
    table = {"name": "csv", "path": write_table(tmp_path, 20_000), "target": "price"}
    plain, noisy, louder = (load(**table, target_noise=noise) for noise in (0, 0.5, 1.0))
    assert (noisy.target_mean, noisy.target_std) == (plain.target_mean, plain.target_std)
    for part in ("validation", "test"):
        assert torch.equal(getattr(plain, part).targets, getattr(noisy, part).targets)
    assert torch.equal(plain.train.inputs, noisy.train.inputs)
    noise = (noisy.train.targets - plain.train.targets).squeeze(1)
    assert noise.std() == pytest.approx(0.5, abs=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert abs(np.corrcoef(noise, plain.train.targets.squeeze(1))[0, 1]) < 0.05
    torch.testing.assert_close(louder.train.targets - plain.train.targets, 2 * noise.unsqueeze(1), rtol=1e-4, atol=1e-5)
    few, clean = load(**table, target_noise=0.5, limit=50), load(**table, limit=50)
    torch.testing.assert_close(few.train.targets - clean.train.targets, noise[:50].unsqueeze(1), rtol=1e-3, atol=1e-4)
