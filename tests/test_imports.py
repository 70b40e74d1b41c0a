"""The core needs torch, einops and safetensors alone: the first README snippet runs after a bare install."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FIRST_SNIPPET = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
CORE = "torch, einops, safetensors.torch"
OPTIONAL = (
    *(
        "PIL",
        "accelerate",
        "hydra",
        "matplotlib",
        "omegaconf",
        "pandas",
        "pydantic",
        "rich",
        "scipy",
        "seaborn",
        "sklearn",
    ),
    *("torchmetrics", "torchvision", "yaml"),  # of the recipes
    *("art", "lightning", "onnx", "onnxruntime", "peft", "pyautoattack", "tensorboard", "timm", "transformers"),
    "vector_quantize_pytorch",
)


def run(script, folder):
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_core_imports_no_other_package(tmp_path):
    script = f"import json, sys, {CORE}; before = set(sys.modules); import ibreg; ibreg.names()"
    imported = json.loads(run(f"{script}; print(json.dumps(sorted(set(sys.modules) - before)))", tmp_path))
    packages = {module.partition(".")[0] for module in imported}
    assert packages - set(sys.stdlib_module_names) == {"ibreg"}
    assert "ibreg.layers.base" in imported
    assert not any(module.startswith(("ibreg.runs", "ibreg.plots", "ibreg.evaluation")) for module in imported)


@pytest.mark.parametrize(
    "script",
    [
        FIRST_SNIPPET,
        "import ibreg; [ibreg.build(name) for name in ibreg.names()]",
        "from ibreg import cli; assert [cli.main(['list', *name]) for name in ([], ['hsic'], ['data'])] == [0, 0, 0]",
    ],
)
def test_the_core_runs_without_extras(script, tmp_path):
    # `None` in `sys.modules` makes an import fail as if the package were not installed.
    run(f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n{script}", tmp_path)
    assert "save_bottlenecks" in FIRST_SNIPPET
