"""Classification in two processes: by Accelerate or torchrun, with whole models or shards, begun and resumed."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.folder import CHECKPOINTS, CONFIG
from tests.recipes.command_line import script_of
from tests.recipes.folders import assert_same_results, summary_of

RECIPE = "classification"

HSIC = ["bottlenecks=[hsic]", "bottleneck.hsic.gather=true", "control=false", "seeds=[0]", "epochs=3"]
HSIC += ["device=cpu", "batch_size=64", "sweep.betas=[]", "model.hidden=[32]"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FSDP2 = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"]
FSDP2 += ["--main_process_port", "0"]
# Without --multi_gpu, the launcher starts a single process where there is no GPU.
MULTI_GPU = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
MULTI_GPU += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(launch, tmp_path):
    options = [*HSIC, "control=true", "accumulate=2"]
    one = launch(*options).rename(tmp_path / "one")
    double = subprocess.run(
        [sys.executable, *MULTI_GPU, str(script_of("classification")), *options, "output_dir=two"],
        cwd=tmp_path, env=os.environ | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert double.returncode == 0, double.stderr
    assert double.stdout.count("none-decay0-seed0 epoch 1/3") == 1
    assert "terminate called" not in double.stderr
    assert "destroy_process_group" not in double.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    two = tmp_path / "two"
    assert summary_of(two)["hardware"]["processes"] == 2
    assert (two / CONFIG).is_file()
    assert_same_results(one, two, tolerance=1e-5)
    for metric, entry in summary_of(one)["results"]["none"].items():
        assert summary_of(two)["results"]["none"][metric]["values"] == pytest.approx(entry["values"], abs=1e-5), metric


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_in_bfloat16(launch, two_processes):
    # bfloat16 has 8 bits, and a process rounds the gradient of its own rows.
    options = [*HSIC, "precision=bf16"]
    assert_same_results(launch(*options), two_processes(*options), tolerance=2**-8)


@pytest.fixture
def begun(tmp_path):
    """Runs the recipe with a launcher and kills it after its first checkpoint; returns what it printed."""

    def call(launcher, *overrides):
        script = tmp_path / "begun.py"
        script.write_text(
            "import gc, os, runpy, sys\n"
            "import ibreg.runs.training as run\n"
            "from torch.distributed.fsdp import FSDPModule\n"
            "def killed(*state):\n"
            "    save_checkpoint(*state)\n"
            "    print('sharded:', any(issubclass(type(each), FSDPModule) for each in gc.get_objects()), flush=True)\n"
            "    os._exit(1)\n"
            "save_checkpoint, run.save_checkpoint = run.save_checkpoint, killed\n"
            f"sys.argv[0] = {str(script_of('classification'))!r}\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        result = subprocess.run(
            [sys.executable, *launcher, str(script), *overrides, f"output_dir={tmp_path / 'run'}"],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert result.returncode != 0
        (path,) = (tmp_path / "run" / CHECKPOINTS).glob("*.pt")
        assert load_checkpoint(path)["epoch"] == 1
        return result.stdout

    return call


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_with_one(launch, begun, tmp_path):
    whole = launch(*HSIC).rename(tmp_path / "whole")
    assert "sharded: False" in begun(TORCHRUN, *HSIC)
    assert_same_results(whole, launch(*HSIC, "resume=true"), tolerance=1e-5)


@pytest.mark.slow
def test_two_processes_with_shards_of_a_model_equal_one_and_resume_as_two_or_one(launch, begun, tmp_path):
    whole = launch(*HSIC).rename(tmp_path / "whole")
    assert "sharded: True" in begun(FSDP2, *HSIC)
    shutil.copytree(tmp_path / "run", tmp_path / "two")
    double = subprocess.run(
        [sys.executable, *FSDP2, str(script_of("classification")), *HSIC, "output_dir=two", "resume=true"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert double.returncode == 0, double.stderr
    assert "hsic-decay0-seed0: resumed" in double.stdout
    assert "destroy_process_group" not in double.stderr
    assert summary_of(tmp_path / "two")["hardware"]["processes"] == 2
    assert_same_results(whole, tmp_path / "two", tolerance=1e-5)
    assert_same_results(whole, launch(*HSIC, "resume=true"), tolerance=1e-5)


@pytest.mark.parametrize(("version", "override", "message"), [("1", "ema=0", "version 2"), ("2", "ema=0.9", "ema=0.9")])
def test_what_fsdp_cannot_do_is_refused(launch, tmp_path, monkeypatch, version, override, message):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": version, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    launcher |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launcher |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        launch(override, "device=cpu")
    torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(True)
    assert not (tmp_path / "run").exists()
