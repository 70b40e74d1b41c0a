"""The benchmark: its tables, and that all forms of a quantity have one value."""

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


def test_all_forms_of_a_quantity_are_equal(recipe):
    x = torch.randn(32, 64, dtype=torch.float64)
    code = torch.randn(32, 256, dtype=torch.float64) + x.repeat(1, 4)
    for name, (ours, *others, _) in recipe.QUANTITIES.items():
        for other in filter(None, others):
            torch.testing.assert_close(ours(x, code), other(x, code), rtol=1e-5, atol=1e-12, msg=name)


@pytest.mark.slow
def test_networks_with_every_bottleneck_take_a_step(recipe):
    after_resnet = list(itertools.takewhile(lambda case: "ResNet" in case[0], recipe.overhead_cases()))
    assert len(after_resnet) == len(ibreg.names())
    for _, _, bottleneck, _ in after_resnet:
        bottleneck()
    _, plain, _, _ = after_resnet[0]  # the same network in all of them
    plain()


def test_tables_have_ratios(run, tmp_path):
    result = run("repeats=1", "cases=[mlp]", "only=training", "samples=[16]", "threads=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("MNIST MLP", "ratio", "conditional CS", "publ./ours"):
        assert word in result.stdout
    assert "evaluation" not in result.stdout


def test_help_shows_the_options(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert "largest_dense: 8192" in result.stdout
    assert "experiment" not in result.stdout


@pytest.mark.parametrize("overrides", [["cases=[mpl]"], ["repeats=0"]])
def test_errors_say_what_is_valid(run, tmp_path, overrides):
    result = run(*overrides, cwd=tmp_path)
    assert result.returncode != 0
    assert "cases must be some of mlp" in result.stderr
