r"""Pruning a trained network and distilling it into the pruned one: PwoA, Jian et al. 2022 (arXiv 2210.04311).

.. math::
    \ell = \mathrm{CE}(s, y) + w\, T^2\,
    \mathrm{KL}\big(\operatorname{softmax}(t / T) \,\|\, \operatorname{softmax}(s / T)\big)

with logits s of the student and t of the teacher. The squared temperature keeps the scale of the gradient (Hinton et
al. 2015, arXiv 1503.02531). The paper's code prunes the same fraction of every layer, with ADMM; here the smallest
weights over all layers are pruned at once and the others are trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.config.section import Name, NotNegative, Positive, Section
from ibreg.runs.folder import CHECKPOINTS
from ibreg.runs.tasks.robustness.adversarial import divergence

PRUNED = (nn.Linear, nn.Conv2d)


class Distillation(Section):
    """The distillation of a pruned teacher.

    Attributes:
        teacher: folder of a finished robustness run, whose controls are the teachers; None: no distillation.
        temperature: T, by which logits are divided.
        weight: w, of the divergence.
        prune: fraction of the weights that is pruned, the smallest.
    """

    teacher: Name | None
    temperature: Positive
    weight: NotNegative
    prune: Annotated[float, Field(gt=0, lt=1)]


class Distilled(nn.Module):
    """Cross-entropy plus the divergence from a teacher's prediction at a temperature.

    Args:
        teacher: a classifier that returns logits, frozen; it reads the `inputs` of the loss, which are normalized.
        temperature: T, by which logits are divided, above 0.
        weight: w, the weight of the divergence, at least 0.

    Example:
        >>> teacher = nn.Linear(3, 2)
        >>> loss, x = Distilled(teacher, temperature=30.0, weight=10.0), torch.randn(5, 3)
        >>> logits, y = teacher(x), torch.tensor([0, 1, 0, 1, 0])
        >>> bool(torch.isclose(loss(logits, y, inputs=x), F.cross_entropy(logits, y), atol=1e-2))
        True
    """

    needs_inputs = True

    def __init__(self, teacher: nn.Module, temperature: float, weight: float):
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature
        self.weight = weight

    def forward(self, output: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
        """Returns the loss of a batch.

        Args:
            output: logits of the student, `(batch, classes)`.
            target: classes, `(batch,)`.
            inputs: inputs of the student, normalized.
        """
        with torch.no_grad():
            probabilities = (self.teacher.to(inputs.device)(inputs) / self.temperature).softmax(1)
        distance = divergence(output / self.temperature, probabilities).mean()
        return F.cross_entropy(output, target) + self.weight * self.temperature**2 * distance


def load_teacher(network: nn.Module, folder: str | Path, method: str, seed: int) -> nn.Module:
    """Loads the weights of a control of a finished run into a network, and returns the network.

    Args:
        network: changed in place.
        folder: folder of the run.
        method: method of the student: the teacher of the second control is the run's second control, that of every
            other method is the first.
        seed: seed of the training run.

    Raises:
        FileNotFoundError: If the run has no control of this seed, or several.
        ValueError: If its training run is unfinished, its file is damaged, or the architecture differs.
    """
    control = "null" if method == "null" else "none"
    files = sorted((Path(folder).expanduser() / CHECKPOINTS).glob(f"{control}-decay*-seed{seed}.pt"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"distillation.teacher={folder} has {len(files)} controls {control!r} of seed {seed}: it must be the "
            "folder of a finished run with control=true, the same seeds and tune=false"
        )
    state = load_checkpoint(files[0])
    if state is None or "optimizer" in state:
        raise ValueError(f"{files[0]} is an unfinished training run: resume it first, with resume=true")
    try:
        network.load_state_dict(state["weights"])
    except RuntimeError as error:
        raise ValueError(f"the teacher {files[0]} has another architecture: {error}") from error
    return network


def check_distillation(cfg: Any, build: Callable[[], nn.Module]) -> None:
    """Checks that there is a teacher for every seed.

    Args:
        cfg: the configuration of the robustness recipe.
        build: builds the network of teacher and student.

    Raises:
        FileNotFoundError: As in `load_teacher`.
        ValueError: As in `load_teacher`, or if the weights are averaged, which pruning prevents.
    """
    if cfg.distillation.teacher is None:
        return
    if cfg.ema:
        raise ValueError("distillation prunes, and a pruned network cannot be copied for an average: set ema=0")
    for method in ("none", "null") if cfg.control else ("none",):
        for seed in cfg.seeds:
            load_teacher(build(), cfg.distillation.teacher, method, seed)


def prune_smallest(network: nn.Module, amount: float) -> nn.Module:
    """Prunes the smallest weights over all layers, which stay 0 in training; returns the network.

    Args:
        network: changed in place: `weight` becomes `weight_orig` times the buffer `weight_mask`.
        amount: fraction of the weights of linear and convolutional layers, in (0, 1).

    Raises:
        ValueError: If there is no such layer.

    Example:
        >>> network = prune_smallest(nn.Linear(2, 1, bias=False), 0.5)
        >>> int((network.weight == 0).sum())
        1
    """
    weights = [(module, "weight") for module in network.modules() if isinstance(module, PRUNED)]
    if not weights:
        raise ValueError("there is no linear or convolutional layer to prune")
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=amount)
    return network
