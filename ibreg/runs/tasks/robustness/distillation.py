r"""Pruning a trained network, and what the pruned one learns of it: PwoA, Jian et al. 2022 (arXiv 2210.04311).

.. math::
    \ell = \mathrm{CE}(s, y) + w\, T^2\,
    \mathrm{KL}\big(\operatorname{softmax}(t / T) \,\|\, \operatorname{softmax}(s / T)\big)

with logits s of the student and t of the teacher. The squared temperature keeps the size of the gradient (Hinton et al.
2015, arXiv 1503.02531). The paper's code prunes every layer by the same share, with ADMM; here the smallest weights of
all layers go at once and the rest is trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from ibreg.runs.checkpoint import load_checkpoint
from ibreg.runs.folder import CHECKPOINTS
from ibreg.runs.tasks.robustness.adversarial import divergence

PRUNED = (nn.Linear, nn.Conv2d)


class Distilled(nn.Module):
    """Cross-entropy, and the divergence from a teacher's softened prediction.

    Args:
        teacher: a classifier that returns logits; stays as it is.
        temperature: T, by which logits are divided, above 0.
        weight: w of the divergence, at least 0.

    Raises:
        ValueError: a number out of range.

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
        are_numbers = all(type(value) in (int, float) for value in (temperature, weight))
        if not (are_numbers and 0 < temperature < float("inf") and 0 <= weight < float("inf")):
            raise ValueError(
                f"distillation takes a temperature above 0 and a weight of at least 0, got {temperature} and {weight}"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature = temperature
        self.weight = weight

    def forward(self, output: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
        """Returns the loss of a batch.

        Args:
            output: the student's logits, `(batch, classes)`.
            target: classes, `(batch,)`.
            inputs: what the student saw.
        """
        with torch.no_grad():
            taught = (self.teacher.to(inputs.device)(inputs) / self.temperature).softmax(1)
        missed = divergence(output / self.temperature, taught).mean()
        return F.cross_entropy(output, target) + self.weight * self.temperature**2 * missed


def load_teacher(network: nn.Module, folder: str | Path, method: str, seed: int) -> nn.Module:
    """Gives a network the weights of a control of a run, and returns it.

    Args:
        network: changed in place.
        folder: of the run.
        method: that is trained: the second control learns of the run's second control, every other method of the first.
        seed: of the training.

    Raises:
        FileNotFoundError: the run has no control of this seed, or several.
        ValueError: its training has not ended, its file is damaged, or its weights are those of another architecture.
    """
    control = "null" if method == "null" else "none"
    found = sorted((Path(folder).expanduser() / CHECKPOINTS).glob(f"{control}-decay*-seed{seed}.pt"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"distillation.teacher={folder} has {len(found)} controls {control!r} of seed {seed}: it is the folder of "
            "a finished run with control=true, the same seeds and tune=false"
        )
    state = load_checkpoint(found[0])
    if "optimizer" in state:
        raise ValueError(f"{found[0]} is a training that has not ended: run it to its end first")
    try:
        network.load_state_dict(state["weights"])
    except RuntimeError as error:
        raise ValueError(f"the teacher {found[0]} is of another architecture: {error}") from error
    return network


def check_distillation(cfg: DictConfig, build: Callable[[], nn.Module]) -> None:
    """Checks that there is a teacher for every seed.

    Args:
        cfg: the recipe's configuration: `distillation`, `control`, `seeds`, `ema`.
        build: makes the network of teacher and student.

    Raises:
        FileNotFoundError, ValueError: as in `load_teacher`; numbers out of range; an average of weights, which a pruned
            network cannot have.
    """
    Distilled(nn.Identity(), cfg.distillation.temperature, cfg.distillation.weight)
    prune_smallest(nn.Linear(2, 1), cfg.distillation.prune)
    if cfg.distillation.teacher is None:
        return
    if cfg.ema:
        raise ValueError("distillation prunes, and a pruned network cannot be copied for an average: give ema=0")
    for method in ("none", "null") if cfg.control else ("none",):
        for seed in cfg.seeds:
            load_teacher(build(), cfg.distillation.teacher, method, seed)


def prune_smallest(network: nn.Module, amount: float) -> nn.Module:
    """Sets the smallest weights of all layers together to 0, where training leaves them; returns the network.

    Args:
        network: changed in place: `weight` becomes `weight_orig` times the buffer `weight_mask`.
        amount: share of the weights of linear and convolutional layers, in (0, 1).

    Raises:
        ValueError: a share out of range, no such layer.

    Example:
        >>> network = prune_smallest(nn.Linear(2, 1, bias=False), 0.5)
        >>> int((network.weight == 0).sum())
        1
    """
    if not (type(amount) is float and 0 < amount < 1):
        raise ValueError(f"distillation.prune is a share of the weights, above 0 and below 1, got {amount}")
    weights = [(module, "weight") for module in network.modules() if isinstance(module, PRUNED)]
    if not weights:
        raise ValueError("there is no linear or convolutional layer to prune")
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=amount)
    return network
