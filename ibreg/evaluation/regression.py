"""Metrics of a regressor's predictions, and the information that they carry about the target."""

import math

import numpy as np
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor


def regression_metrics(predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> dict[str, float]:
    r"""Measures root mean squared error, mean absolute error and share of explained variance of a set of predictions.

    .. math::
        \mathrm{rmse} = \sqrt{\tfrac1n \sum_i (\hat y_i - y_i)^2}, \qquad
        \mathrm{mae} = \tfrac1n \sum_i |\hat y_i - y_i|, \qquad
        r^2 = 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}

    Everything is computed in float64. R² is 0 for the mean of these targets as the constant prediction, and negative
    for worse ones.

    Args:
        predictions: Floats of shape (samples,) or (samples, 1), in the unit of the target.
        targets: Numbers of either shape; the two need not have the same one.

    Returns:
        ``rmse`` and ``mae`` (in the unit of the target) and ``r2`` (at most 1).

    Raises:
        ValueError: If there are fewer than two samples, shapes are wrong, a value is not finite, or the targets do not
            vary.

    Example:
        >>> metrics = regression_metrics(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 3.0, 5.0]))
        >>> {name: round(value, 3) for name, value in metrics.items()}
        {'rmse': 0.816, 'mae': 0.667, 'r2': 0.75}
    """
    predictions, targets = checked_pairs(predictions, targets)
    if np.ptp(targets) == 0:
        raise ValueError(f"all {len(targets)} targets are {targets[0]:g}: R² needs targets that vary")
    return {
        "rmse": float(root_mean_squared_error(targets, predictions)),
        "mae": float(mean_absolute_error(targets, predictions)),
        "r2": float(r2_score(targets, predictions)),
    }


def gaussian_information(r2: float) -> float:
    r"""Gives the information, in nats, that predictions with this error carry about a Gaussian target.

    .. math::
        I(\hat Y; Y) \ge \tfrac12 \log \frac{\operatorname{var} y}{\mathrm{mse}} = -\tfrac12 \log(1 - r^2)

    It bounds the information from below where the target is Gaussian; for others it is a scale of the error, with 0 at
    the constant prediction.

    Args:
        r2: Share of explained variance, below 1.

    Raises:
        ValueError: If R² is 1 or more (without error the information about a continuous target has no bound), or is
            not finite.

    Example:
        >>> round(gaussian_information(0.75), 4)
        0.6931
    """
    if not -math.inf < r2 < 1:
        raise ValueError(f"r2 is a finite number below 1, got {r2}")
    return -0.5 * math.log1p(-r2)


def checked_pairs(predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives predictions and targets as float64 vectors, or says what is wrong with them.

    Raises:
        ValueError: If there are fewer than two samples, shapes are wrong, or a value is not finite.
    """
    predictions, targets = _checked("predictions", predictions), _checked("targets", targets)
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions, but {len(targets)} targets")
    return predictions, targets


def _checked(kind: str, values: Tensor | np.ndarray) -> np.ndarray:
    values = torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()
    if values.shape not in ((len(values),), (len(values), 1)) if values.ndim else True:
        raise ValueError(f"{kind} need shape (samples,) or (samples, 1), got {values.shape}")
    if len(values) < 2:
        raise ValueError(f"{kind} need two samples or more, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{kind} have {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    return values.reshape(-1)
