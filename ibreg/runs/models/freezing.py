"""What of a pretrained network is trained, and with which learning rate."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import compress
from typing import Any

from torch import nn

from ibreg.regularized import bottlenecks, unwrap

MODES = ("frozen", "head", "last_stage", "full")


def freeze(model: nn.Module, mode: str, last_stage: str | Sequence[str] | None = None) -> nn.Module:
    """Freezes the part of a network that a way of fine-tuning leaves as it is; bottlenecks go in afterwards.

    Args:
        model: a classifier, its last layer with parameters is the head.
        mode: what is trained beside bottlenecks: "frozen" (nothing), "head", "last_stage" (with the head) or "full".
        last_stage: dotted names of the modules that are the last stage; None: the last child with parameters before the
            head.

    Returns:
        the model.

    Raises:
        ValueError: another mode, a module that does not exist (the closest names are listed), a network whose last
            stage has to be named.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [parameter.requires_grad for parameter in freeze(net, "head").parameters()]
        [False, False, True, True]
    """
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}, got {mode!r}")
    model.requires_grad_(mode == "full")
    trained = [] if mode in ("frozen", "full") else [head_of(model)]
    if mode == "last_stage":
        named = [last_stage] if isinstance(last_stage, str) else last_stage
        trained += [_last_child(model)] if named is None else list(named)
    modules = dict(model.named_modules())
    for name in trained:
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=3, cutoff=0.0)
            raise ValueError(f"last_stage: the model has no module {name!r}; closest: {', '.join(close)}")
        modules[name].requires_grad_(True)
    return model


def head_of(model: nn.Module) -> str:
    """Names the last module that has parameters of its own.

    Example:
        >>> head_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        '2'
    """
    return list(dict(model.named_parameters()))[-1].rpartition(".")[0]


def _last_child(model: nn.Module) -> str:
    head = head_of(model)
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    before = [name for name in children if not f"{head}.".startswith(f"{name}.")]
    if len(before) < 2:
        known = ", ".join(name for name, module in model.named_modules() if name and any(module.children()))
        raise ValueError(
            f"all of this {type(model).__name__} before its head is in one module: say in last_stage which part is its "
            f"last stage, one or more of {known}"
        )
    return before[-1]


def training_mode(model: nn.Module) -> nn.Module:
    """Puts a model in training mode but for what is frozen: there dropout is off, and running statistics stay.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(4).requires_grad_(False), nn.Linear(4, 3))
        >>> [module.training for module in training_mode(net)]
        [False, True]
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
    for layer in bottlenecks(model).values():
        layer.train()
    return model


def learning_rate_groups(model: nn.Module, *, lr: float, lr_backbone: float) -> list[dict[str, Any]]:
    """Groups the parameters that are trained: the backbone's, and those of bottlenecks and head.

    Args:
        model: after `freeze` and the injection, wrapped or not.
        lr: learning rate of bottlenecks and head.
        lr_backbone: learning rate of all else.

    Returns:
        groups as an optimizer takes them; what is frozen gets no gradient there, and so no weight decay.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [(len(group["params"]), group["lr"]) for group in learning_rate_groups(net, lr=0.1, lr_backbone=0.01)]
        [(2, 0.1), (2, 0.01)]
    """
    network = unwrap(model)
    added = [parameter for layer in bottlenecks(network).values() for parameter in layer.parameters()]
    of_bottlenecks = set(map(id, added))
    own = {name: value for name, value in network.named_parameters() if id(value) not in of_bottlenecks}
    head = list(own)[-1].rpartition(".")[0]
    of_head = [name.rpartition(".")[0] == head for name in own]
    return [
        {"params": [*added, *compress(own.values(), of_head)], "lr": lr},
        {"params": list(compress(own.values(), (not is_head for is_head in of_head))), "lr": lr_backbone},
    ]
