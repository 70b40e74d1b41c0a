"""Task losses of regression by name, on the standardized target: `build("huber", delta=2.0)`."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ibreg.losses import ConditionalCauchySchwarz
from ibreg.runs.config.section import Positive
from ibreg.runs.dispatch import choose


def build(name: str, section: str = "task_loss", **options: Any) -> nn.Module:
    """Builds a task loss by name.

    Args:
        name: One of `names()`.
        section: Their key in a configuration, for messages.
        **options: The options of the loss, as in `configs/task_loss/<name>.yaml`.

    Raises:
        ValueError: If the name or an option is unknown, or a value is out of range.

    Example:
        >>> build("huber", delta=2.0)
        HuberLoss()
    """
    make = choose("task loss", name, _LOSSES, options, section)
    try:
        return make()
    except (TypeError, ValueError) as error:  # the option is the first word
        raise ValueError(f"{section}.{error}") from error


def names() -> list[str]:
    """Lists the losses that `build` knows.

    Example:
        >>> names()
        ['absolute_error', 'conditional_cauchy_schwarz', 'huber', 'squared_error']
    """
    return sorted(_LOSSES)


def huber(*, delta: Positive = 1.0) -> nn.Module:
    """Builds the Huber loss, quadratic for small and linear for large errors.

    Args:
        delta: Error at which it becomes linear, in standard deviations of the target.
    """
    return nn.HuberLoss(delta=delta)


def conditional_cauchy_schwarz(
    *,
    share: float = 0.5,
    bandwidth_x: Any = ("rms", 0.1),
    bandwidth_y: Any = ("rms", 1.0),
    mode: str = "symmetric",
    block_size: int | None = None,
    gather: bool = False,
) -> nn.Module:
    """Builds the conditional Cauchy-Schwarz divergence, which checks its options itself."""
    return ConditionalCauchySchwarz(
        share=share, bandwidth_x=bandwidth_x, bandwidth_y=bandwidth_y, mode=mode, block_size=block_size, gather=gather
    )


_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "squared_error": nn.MSELoss,
    "absolute_error": nn.L1Loss,
    "huber": huber,
    "conditional_cauchy_schwarz": conditional_cauchy_schwarz,
}
