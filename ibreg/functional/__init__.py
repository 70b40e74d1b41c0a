"""The penalties of the bottlenecks, and the quantities that they consist of, as pure functions of tensors."""

from ibreg.functional.conditioning import condition_gaussian, conditional_gain, move_by_gain
from ibreg.functional.elastic_net import elastic_net
from ibreg.functional.gaussian import (
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_pool,
    gaussian_rate,
)
from ibreg.functional.kernel.bandwidths import bandwidth_of
from ibreg.functional.kernel.dependence import cs_qmi, hsic, normalized_factor, normalized_hsic
from ibreg.functional.kernel.divergence import conditional_cs_divergence, cs_divergence
from ibreg.functional.kernel.kernels import delta_gram, gaussian_gram, inverse_multiquadric_gram, linear_gram
from ibreg.functional.kernel.pairs import tiled_gram
from ibreg.functional.kernel.pairwise_rate import nonlinear_rate
from ibreg.functional.kernel.rows import squared_distances
from ibreg.functional.lagrangian import exponential_lagrangian, linear_lagrangian, power_lagrangian
from ibreg.functional.lookup.nearest import nearest
from ibreg.functional.lookup.product import product_nearest

__all__ = [
    "bandwidth_of",
    "condition_gaussian",
    "conditional_cs_divergence",
    "conditional_gain",
    "cs_divergence",
    "cs_qmi",
    "delta_gram",
    "elastic_net",
    "exponential_lagrangian",
    "gaussian_entropy",
    "gaussian_gram",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_pool",
    "gaussian_rate",
    "hsic",
    "inverse_multiquadric_gram",
    "linear_gram",
    "linear_lagrangian",
    "move_by_gain",
    "nearest",
    "nonlinear_rate",
    "normalized_factor",
    "normalized_hsic",
    "power_lagrangian",
    "product_nearest",
    "squared_distances",
    "tiled_gram",
]
