"""Parameters for an optimizer: which are frozen, and the weight decay and the learning rate of the others.

For fine-tuning: load weights, `freeze`, `ibreg.inject`, then build the optimizer on `parameter_groups` or
`learning_rate_groups`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from ibreg.layers.constraints import AtLeast, OneOf
from ibreg.regularized import named_bottlenecks, unwrap

FREEZE_MODES = ("frozen", "head", "last_stage", "full")


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Groups parameters for weight decay, without decay of the biases and raw scales of bottlenecks.

    Weight decay pulls parameters to 0, and a raw scale of 0 is noise of a certain size: with decay the layer would have
    another prior than the one whose penalty beta weighs. Exempt are a bottleneck's parameters of fewer than two axes,
    and those in the `undecayed` of its class, such as a learned prior. The backbone has weight decay throughout.

    Args:
        model: with or without bottlenecks, wrapped or not; call it after `inject` and after freezing, as parameters
            without `requires_grad` are left out.
        weight_decay: of the other parameters, at least 0.

    Returns:
        one group with the weight decay, and one without if any parameter is exempt.

    Raises:
        ValueError: If weight_decay is below 0, or no parameter requires a gradient.

    Example:
        >>> import ibreg, torch
        >>> net = ibreg.inject(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), {"1": ibreg.VariationalBottleneck(8)})
        >>> optimizer = torch.optim.AdamW(ibreg.parameter_groups(net, weight_decay=0.05), lr=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(3, 0.05), (1, 0.0)]
    """
    AtLeast(0).check("weight_decay", weight_decay)
    exempt = {
        parameter
        for layer in named_bottlenecks(model)
        for name, parameter in layer.named_parameters()
        if parameter.dim() < 2 or name in layer.undecayed
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: nothing is left to train")
    groups = [
        {"params": [parameter for parameter in trained if parameter not in exempt], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_groups(model: nn.Module, *, lr: float, lr_backbone: float) -> list[dict[str, Any]]:
    """Groups parameters for two learning rates: that of bottlenecks and head, and that of the rest of the backbone.

    Args:
        model: with or without bottlenecks, wrapped or not; call it after `freeze` and `inject`.
        lr: learning rate of the bottlenecks and of the head, the last module with parameters of its own.
        lr_backbone: learning rate of all other parameters.

    Returns:
        one group for each learning rate. Frozen parameters are in the groups; they get no gradient, and so no weight
        decay.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [(len(group["params"]), group["lr"]) for group in learning_rate_groups(net, lr=0.1, lr_backbone=0.01)]
        [(2, 0.1), (2, 0.01)]
    """
    network = unwrap(model)
    added = [parameter for layer in named_bottlenecks(network) for parameter in layer.parameters()]
    head = head_name(network)
    head_parameters, others = [], []
    for name, parameter in _backbone_parameters(network).items():
        (head_parameters if name.rpartition(".")[0] == head else others).append(parameter)
    return [{"params": [*added, *head_parameters], "lr": lr}, {"params": others, "lr": lr_backbone}]


def freeze(model: nn.Module, mode: str, last_stage: str | Sequence[str] | None = None) -> nn.Module:
    """Freezes a pretrained network for fine-tuning, in place; call it before `inject`, as bottlenecks are trained.

    Args:
        model: a network whose last module with parameters is its head.
        mode: what is trained: "frozen" (nothing), "head", "last_stage" (and the head) or "full" (everything).
        last_stage: dotted names of the modules of the last stage; None: the last child with parameters before the head.

    Returns:
        the model.

    Raises:
        ValueError: If the mode is unknown, a module does not exist (the closest names are listed), or the last stage
            cannot be determined without its name.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> [parameter.requires_grad for parameter in freeze(net, "head").parameters()]
        [False, False, True, True]
    """
    OneOf(FREEZE_MODES).check("mode", mode)
    model.requires_grad_(mode == "full")
    trained = [] if mode in ("frozen", "full") else [head_name(model)]
    if mode == "last_stage":
        named = [last_stage] if isinstance(last_stage, str) else last_stage
        trained += [_last_stage(model)] if named is None else list(named)
    modules = dict(model.named_modules())
    for name in trained:
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=3, cutoff=0.0)
            raise ValueError(f"last_stage: the model has no module {name!r}; closest: {', '.join(close)}")
        modules[name].requires_grad_(True)
    return model


def training_mode(model: nn.Module) -> nn.Module:
    """Sets training mode, except for frozen modules: there dropout is off and running statistics do not change.

    Bottlenecks are in training mode wherever they are.

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
    for layer in named_bottlenecks(model):
        layer.train()
    return model


def head_name(model: nn.Module) -> str:
    """Returns the name of the head: the last module with parameters of its own that is not part of a bottleneck.

    Example:
        >>> head_name(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        '2'
    """
    return list(_backbone_parameters(model))[-1].rpartition(".")[0]


def _backbone_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    added = {parameter for layer in named_bottlenecks(model) for parameter in layer.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if parameter not in added}


def _last_stage(model: nn.Module) -> str:
    """Returns the name of the last child with parameters before the head, if there are several of them."""
    head = head_name(model)
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    before = [name for name in children if not f"{head}.".startswith(f"{name}.")]
    if len(before) < 2:
        stages = ", ".join(name for name, module in model.named_modules() if name and any(module.children()))
        raise ValueError(
            f"all modules of this {type(model).__name__} before its head are in one child: set last_stage to the names "
            f"of one or more of {stages}"
        )
    return before[-1]
