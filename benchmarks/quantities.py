"""Kernel quantities of the benchmark: the library's, dense and published form of each.

Each takes x `(samples, 64)` and a code `(samples, 256)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks import textbook
from ibreg.functional import conditional_cs_divergence, cs_divergence, cs_qmi, hsic, nonlinear_rate

BANDWIDTHS = (8.0, 16.0)  # of x and code: sqrt(features)
HSIC_OPTIONS = {"bandwidth_x": BANDWIDTHS[0], "bandwidth_y": BANDWIDTHS[1]}
CS_OPTIONS = {"bandwidth_x": BANDWIDTHS[0], "bandwidth_t": BANDWIDTHS[1]}


def of_grams(quantity: Callable, make: Callable, x: Tensor, code: Tensor) -> Tensor:
    """Evaluates a quantity of two Gram matrices with the bandwidths of the benchmark."""
    return quantity(make(x, BANDWIDTHS[0]), make(code, BANDWIDTHS[1]))


def by_grams(dense: Callable, published: Callable) -> tuple[Callable, Callable]:
    """Turns two forms in Gram matrices into functions of x and code."""
    return partial(of_grams, dense, textbook.gram), partial(of_grams, published, textbook.repeated_gram)


def conditional(divergence: Callable, x: Tensor, code: Tensor) -> Tensor:
    """Evaluates a divergence between targets, a function of x, and predictions, the code."""
    return divergence(x, x.repeat(1, 4), code, *BANDWIDTHS)


def of_halves(divergence: Callable, x: Tensor, code: Tensor) -> Tensor:
    """Evaluates a divergence between the first half of a code and the second."""
    return divergence(*code.chunk(2), BANDWIDTHS[1])


# The library's form, dense, published (None: none is known), and the minimum number of multiplications per pair of
# samples: for HSIC the distances of both variables in the forward, those of the code in the backward (64 + 256 + 256).
QUANTITIES = {
    "HSIC, biased": (
        partial(hsic, estimator="biased", **HSIC_OPTIONS),
        *by_grams(textbook.dense_hsic, textbook.published_hsic),
        576,
    ),
    "HSIC, unbiased": (
        partial(hsic, **HSIC_OPTIONS),
        *by_grams(textbook.dense_unbiased_hsic, textbook.published_unbiased_hsic),
        576,
    ),
    "CKA": (
        partial(hsic, estimator="cka", **HSIC_OPTIONS),
        *by_grams(textbook.dense_cka, textbook.published_cka),
        576,
    ),
    "HSIC, normalized": (
        partial(hsic, estimator="normalized", **HSIC_OPTIONS),
        *by_grams(textbook.dense_normalized_hsic, textbook.published_normalized_hsic),
        576,
    ),
    "HSIC, debiased": (
        partial(hsic, estimator="debiased", **HSIC_OPTIONS),
        partial(of_grams, textbook.dense_debiased_hsic, textbook.gram),
        None,
        576,
    ),
    "CS-QMI": (
        partial(cs_qmi, **CS_OPTIONS),
        *by_grams(textbook.dense_cs_qmi, textbook.published_cs_qmi),
        576,
    ),
    "CS-QMI, normalized": (
        partial(cs_qmi, normalized=True, **CS_OPTIONS),
        *by_grams(textbook.normalized(textbook.dense_cs_qmi), textbook.normalized(textbook.published_cs_qmi)),
        576,
    ),
    "CS divergence": (
        partial(of_halves, lambda p, q, h: cs_divergence(p, q, bandwidth=h)),
        partial(of_halves, textbook.dense_cs_divergence),
        None,
        448,
    ),
    "conditional CS divergence": (
        partial(conditional, lambda x, y, t, h, k: conditional_cs_divergence(x, y, t, bandwidth_x=h, bandwidth_y=k)),
        partial(conditional, textbook.dense_conditional_cs_divergence),
        None,
        1344,
    ),
    "nonlinear rate": (
        lambda x, code: nonlinear_rate(code, code.new_tensor(2 * math.log(BANDWIDTHS[1]))),
        lambda x, code: textbook.dense_nonlinear_rate(code, BANDWIDTHS[1]),
        None,
        512,
    ),
}
INVERTING = ("HSIC, normalized", "HSIC, debiased")
