"""Losses of a regression behind one name: `build("huber", delta=2.0)`. All act on the standardized target."""

from collections.abc import Callable

from torch import nn

from ibreg.losses import ConditionalCauchySchwarz
from ibreg.runs.dispatch import choose


def build(name: str, **options) -> nn.Module:
    """Builds a task loss by name.

    Args:
        name: One of `names()`.
        options: The loss's own options, as they stand in `configs/task_loss/<name>.yaml`.

    Raises:
        ValueError: For an unknown name or option, and a value out of range.

    Example:
        >>> build("huber", delta=2.0)
        HuberLoss()
    """
    return choose("task loss", name, _LOSSES, options)(**options)


def names() -> list[str]:
    """Lists the losses that `build` knows.

    Example:
        >>> names()
        ['absolute_error', 'conditional_cauchy_schwarz', 'huber', 'squared_error']
    """
    return sorted(_LOSSES)


def huber(*, delta: float = 1.0) -> nn.Module:
    """Builds the loss that is squared near 0 and absolute far off.

    Args:
        delta: Error from which on it is absolute, in standard deviations of the target.
    """
    if not (isinstance(delta, int | float) and 0 < delta < float("inf")):
        raise ValueError(f"delta={delta!r} is an error in standard deviations of the target, greater than 0")
    return nn.HuberLoss(delta=delta)


_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "squared_error": nn.MSELoss,
    "absolute_error": nn.L1Loss,
    "huber": huber,
    "conditional_cauchy_schwarz": ConditionalCauchySchwarz,
}
