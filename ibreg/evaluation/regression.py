"""Metrics of a regressor's predictions, and their information about the target."""

import math

import numpy as np
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor


def regression_metrics(predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> dict[str, float]:
    r"""Measures root mean squared error, mean absolute error and coefficient of determination of predictions.

    .. math::
        \mathrm{rmse} = \sqrt{\tfrac1n \sum_i (\hat y_i - y_i)^2}, \qquad
        \mathrm{mae} = \tfrac1n \sum_i |\hat y_i - y_i|, \qquad
        r^2 = 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}

    All metrics are computed in float64. R² is 0 if each prediction is the mean of these targets, and negative for worse
    predictions.

    Args:
        predictions: `(samples,)` or `(samples, 1)`, in the unit of the target.
        targets: `(samples,)` or `(samples, 1)`; the shape may differ from that of predictions.

    Returns:
        `rmse` and `mae` (in the unit of the target) and `r2` (at most 1).

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
        raise ValueError(f"targets must vary for R², got {len(targets)} times {targets[0]:g}")
    return {
        "rmse": float(root_mean_squared_error(targets, predictions)),
        "mae": float(mean_absolute_error(targets, predictions)),
        "r2": float(r2_score(targets, predictions)),
    }


def gaussian_information(r2: float) -> float:
    r"""Computes the information of predictions with this error about a Gaussian target, in nats.

    .. math::
        I(\hat Y; Y) \ge \tfrac12 \log \frac{\operatorname{var} y}{\mathrm{mse}} = -\tfrac12 \log(1 - r^2)

    It is a lower bound if the target is Gaussian; for other targets it is a scale of the error, 0 for the constant
    prediction.

    Args:
        r2: coefficient of determination, below 1.

    Raises:
        ValueError: If R² is 1 or more (without error the information about a continuous target is unbounded), or not
            finite.

    Example:
        >>> round(gaussian_information(0.75), 4)
        0.6931
    """
    if not -math.inf < r2 < 1:
        raise ValueError(f"r2 must be finite and below 1, got {r2}")
    return -0.5 * math.log1p(-r2)


def checked_pairs(predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks predictions and targets, and returns them as float64 vectors.

    Raises:
        ValueError: If there are fewer than two samples, shapes are wrong, or a value is not finite.
    """
    predictions, targets = _checked("predictions", predictions), _checked("targets", targets)
    if len(predictions) != len(targets):
        raise ValueError(f"predictions and targets must have equal lengths, got {len(predictions)} and {len(targets)}")
    return predictions, targets


def _checked(kind: str, values: Tensor | np.ndarray) -> np.ndarray:
    values = torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()
    if values.shape not in ((len(values),), (len(values), 1)) if values.ndim else True:
        raise ValueError(f"{kind} must have shape (samples,) or (samples, 1), got {values.shape}")
    if len(values) < 2:
        raise ValueError(f"{kind} must have at least two samples, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{kind} must be finite, got {np.count_nonzero(~np.isfinite(values))} values that are not")
    return values.reshape(-1)
