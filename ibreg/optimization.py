"""What an optimizer should know of a model with bottlenecks: which of its parameters are not to be decayed."""

from __future__ import annotations

from typing import Any

from torch import nn

from ibreg.layers.constraints import AtLeast
from ibreg.regularized import named_bottlenecks


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the groups of an optimizer that decays all weights but the biases and raw scales of the bottlenecks.

    Decay pulls to 0, and a raw scale of 0 is a noise of a certain size, not none: decayed, it is another prior than the
    one that beta weighs. Exempt are a bottleneck's parameters of fewer than two axes, and those that its class lists in
    `undecayed`, such as a learned prior. The backbone is decayed whole, as it is without a bottleneck.

    Args:
        model: with or without bottlenecks, wrapped or not; call it after `inject` and after freezing, for parameters
            that need no gradient are left out.
        weight_decay: of the others, at least 0.

    Returns:
        one group with the weight decay, and one without where there is something for it.

    Raises:
        ValueError: weight_decay below 0, or nothing to train.

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
        raise ValueError("no parameter of the model needs a gradient: nothing is left to train")
    groups = [
        {"params": [parameter for parameter in trained if parameter not in exempt], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
