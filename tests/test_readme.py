"""The README's Python snippets run, and its tables agree with the committed results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ibreg.runs.report.tables import render_readme

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
OPTIONAL = {"lightning", "transformers", "timm"}  # warnings of these packages are not tested
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("position", range(len(SNIPPETS)))
def test_a_snippet_runs_in_a_new_process(position, tmp_path):
    snippet = SNIPPETS[position]
    optional = OPTIONAL & set(
        re.findall(r"\w+", " ".join(re.findall(r"^(?:import|from) (.*)$", snippet, re.MULTILINE)))
    )
    for package in optional:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install {package}")
    script = tmp_path / "snippet.py"
    script.write_text(snippet)
    warnings = [] if optional else ["-W", "error"]
    result = subprocess.run([sys.executable, *warnings, script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_other_training_loops_take_at_most_40_lines():
    for package in (*sorted(OPTIONAL), "accelerate"):
        (snippet,) = (snippet for snippet in SNIPPETS if re.match(rf"import (\w+, )*{package}\b", snippet))
        assert len([line for line in snippet.splitlines() if line.strip()]) <= 40, package


def test_the_own_bottleneck_takes_25_lines_and_has_the_value_of_its_formula(tmp_path):
    (snippet,) = (snippet for snippet in SNIPPETS if "class SmallCodeBottleneck" in snippet)
    body = snippet[snippet.index("@ibreg.register") : snippet.index("print(")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 25
    script = tmp_path / "own.py"
    # Padding is left out, and the layer can be injected, saved and loaded.
    script.write_text(
        snippet
        + """
from torch import nn
torch.manual_seed(0)
x, mask = torch.randn(6, 5, 4), torch.rand(6, 5) > 0.5
measured = SmallCodeBottleneck(power=3).measure(x, mask=mask)
assert abs(float(measured.penalty) - float(x[mask].abs().pow(3).sum() / 6)) < 1e-4
net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
ibreg.inject(net, {"1": ibreg.build("small_code", power=2)})
output = ibreg.Regularized(net)(torch.randn(7, 4))
assert output.output.shape == (7, 2) and output.penalty.requires_grad
ibreg.save_bottlenecks(net, "own.safetensors")
x = torch.randn(7, 4)
before = net.eval()(x)
assert torch.equal(ibreg.load_bottlenecks(ibreg.eject(net), "own.safetensors")(x), before)
"""
    )
    result = subprocess.run([sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_tables_are_those_of_the_committed_results():
    assert render_readme(README, ROOT / "recipes" / "results") == README


def test_there_are_two_set_up_commands_and_ci_runs_the_second():
    assert len(COMMANDS) == 2
    assert set(COMMANDS[1].split(" && ")) < set((ROOT / ".ci" / "run").read_text().splitlines())


def test_images_of_the_readme_are_committed():
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / image).is_file(), image
