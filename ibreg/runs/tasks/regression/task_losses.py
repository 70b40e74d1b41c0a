"""Task losses of regression by name, on the standardized target: `build("huber", delta=2.0)`."""

from collections.abc import Callable

from torch import nn

from ibreg.losses import ConditionalCauchySchwarz
from ibreg.runs.dispatch import choose


def build(name: str, **options) -> nn.Module:
    """Builds a task loss by name.

    Args:
        name: One of `names()`.
        options: The options of the loss, as in `configs/task_loss/<name>.yaml`.

    Raises:
        ValueError: If the name or an option is unknown, or a value is out of range.

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
    """Builds the Huber loss, quadratic for small and linear for large errors.

    Args:
        delta: Error at which it becomes linear, in standard deviations of the target.
    """
    if not (isinstance(delta, int | float) and 0 < delta < float("inf")):
        raise ValueError(f"delta must be greater than 0, in standard deviations of the target, got {delta!r}")
    return nn.HuberLoss(delta=delta)


_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "squared_error": nn.MSELoss,
    "absolute_error": nn.L1Loss,
    "huber": huber,
    "conditional_cauchy_schwarz": ConditionalCauchySchwarz,
}
