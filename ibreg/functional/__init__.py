"""The quantities of the bottlenecks as pure functions of tensors."""

from ibreg.functional.gaussian import (
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_pool,
    log_softplus,
    softplus_gaussian_rate,
)
from ibreg.functional.lagrangian import exponential_lagrangian, linear_lagrangian, power_lagrangian

__all__ = [
    "exponential_lagrangian",
    "gaussian_entropy",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_pool",
    "linear_lagrangian",
    "log_softplus",
    "power_lagrangian",
    "softplus_gaussian_rate",
]
