"""Every recipe with an optimizer and a schedule of the learning rate of its user's choice."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from ibreg.runs.config.section import read
from ibreg.runs.folder import CONFIG
from tests.recipes.command_line import module_of, run_here
from tests.recipes.folders import summary_of

CHOSEN = ["optimizer=sgd", "optimizer.momentum=0.9", "lr_schedule=cosine", "clip=1"]
TWO_EPOCHS = {
    "classification": ["epochs=2", "sweep.betas=[]", "model.hidden=[8]", "control=false"],
    "regression": ["epochs=2", "model.hidden=[8]", "attack.eps=[]"],
    "concepts": ["epochs=2", "data=xor", "data.size=200", "model.hidden=[8]", "rows=100", "interventions.rows=20",
                 "interventions.policies=[random]", "bottlenecks=[concept]"],
    "robustness": ["epochs=2", "model.hidden=[8]", "attack.eps=[0.1]", "attack.steps=1", "attack.rows=20",
                   "corruption.rows=0", "ood.data=null", "sanity.rows=20", "sanity.steps=[1]", "decayed_control=0",
                   "bottlenecks=[hsic]"],
    "finetune": ["shots=[5]", "steps=2", "pretraining.epochs=1", "corrupted.kinds=[]", "shifted.kinds=[]",
                 "test_rows=40"],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "classification" else pytest.mark.slow) for name in TWO_EPOCHS]
)
def test_optimizer_schedule_and_clipping_are_those_of_the_command_line(name, tmp_path, monkeypatch):
    steps, step = [], torch.optim.SGD.step

    def observed(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        steps.append((self.param_groups[0]["lr"], self.param_groups[0]["momentum"], norm))
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", observed)
    result = run_here(name, *TWO_EPOCHS[name], *CHOSEN, "seeds=[0]", "device=cpu", "output_dir=run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rates, momenta, norms = map(set, zip(*steps, strict=True))
    config = OmegaConf.to_container(OmegaConf.load(tmp_path / "run" / CONFIG))
    assert rates == {config["lr"], config["lr"] / 2}  # of two epochs along half a cosine
    assert momenta == {0.9}
    assert max(norms) < 1 + 1e-5
    # The folder keeps a whole configuration, and the summary a command that repeats it.
    assert read(module_of(name).main.config, config).contents() == config
    assert all(override in summary_of(tmp_path / "run")["command"] for override in CHOSEN)


def test_continual_learning_keeps_its_own_optimizer(tmp_path):
    result = run_here("continual", *CHOSEN, "output_dir=run", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("continual: ")
    assert "optimizer" in line
    assert not (tmp_path / "run").exists()
