"""The benchmark: its tables, and that the forms which it measures against each other are forms of one quantity."""

import itertools
from functools import partial

import pytest
import torch

import ibreg
from benchmarks import cost
from tests.recipes.command_line import call_here


@pytest.fixture(scope="module")
def recipe():
    return cost


@pytest.fixture(scope="module")
def run():
    """Runs the benchmark's command line in this process."""
    return partial(call_here, cost.__file__, cost.main)


def test_all_forms_of_a_quantity_give_the_same(recipe):
    x = torch.randn(32, 64, dtype=torch.float64)
    code = torch.randn(32, 256, dtype=torch.float64) + x.repeat(1, 4)
    for name, (ours, *others, _) in recipe.QUANTITIES.items():
        for other in filter(None, others):
            torch.testing.assert_close(ours(x, code), other(x, code), rtol=1e-5, atol=1e-12, msg=name)


def test_networks_with_every_bottleneck_take_a_step(recipe):
    behind_resnet = list(itertools.takewhile(lambda case: "ResNet" in case[0], recipe.overhead_cases()))
    assert len(behind_resnet) == len(ibreg.names())
    for _, _, bottleneck, _ in behind_resnet:
        bottleneck()
    _, plain, _, _ = behind_resnet[0]  # the same network in all of them
    plain()


def test_tables_have_ratios(run, tmp_path):
    result = run("repeats=1", "cases=[mlp]", "only=training", "samples=[16]", "threads=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("MNIST MLP", "ratio", "conditional CS", "publ./ours"):
        assert word in result.stdout
    assert "evaluation" not in result.stdout


def test_help_shows_what_a_benchmark_takes(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert "largest_dense: 8192" in result.stdout
    assert "experiment" not in result.stdout


@pytest.mark.parametrize("overrides", [["cases=[mpl]"], ["repeats=0"]])
def test_wrong_input_says_what_is_valid(run, tmp_path, overrides):
    result = run(*overrides, cwd=tmp_path)
    assert result.returncode != 0
    assert "cases are some of mlp" in result.stderr
