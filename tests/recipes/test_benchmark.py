"""The benchmark: its tables, and that the forms which it measures against each other are forms of one quantity."""

import pytest
import torch

RECIPE = "benchmark"


def test_all_forms_of_a_quantity_give_the_same(recipe):
    x = torch.randn(32, 64, dtype=torch.float64)
    code = torch.randn(32, 256, dtype=torch.float64) + x.repeat(1, 4)
    for name, (ours, *others, _) in recipe.QUANTITIES.items():
        for other in filter(None, others):
            torch.testing.assert_close(ours(x, code), other(x, code), rtol=1e-5, atol=1e-12, msg=name)


def test_networks_with_every_bottleneck_take_a_step(recipe):
    for label, *steps, _ in recipe.overhead_cases():
        if "ViT" in label:
            break
        for step in steps:
            step()


def test_tables_have_ratios(run, tmp_path):
    result = run("repeats=1", "cases=[mlp]", "samples=[16]", "threads=1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("MNIST MLP", "ratio", "conditional CS", "publ./ours"):
        assert word in result.stdout


def test_help_shows_what_a_benchmark_takes(run, tmp_path):
    result = run("--help", cwd=tmp_path)
    assert "largest_dense: 8192" in result.stdout
    assert "experiment" not in result.stdout


@pytest.mark.parametrize("overrides", [["cases=[mpl]"], ["repeats=0"]])
def test_wrong_input_says_what_is_valid(run, tmp_path, overrides):
    result = run(*overrides, cwd=tmp_path)
    assert result.returncode != 0
    assert "cases are some of mlp" in result.stderr
