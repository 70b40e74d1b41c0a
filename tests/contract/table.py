"""The registered bottlenecks and the settings they are tested with: a new one enters by its registration alone.

A layer whose required options have no default, or whose variants are worth a test, gets rows in `ROWS`. Other tables of
this folder ask for an entry where they need one and say what to add.
"""

import pytest
import torch
from torch import nn

import ibreg

FEATURES, CLASSES, BATCH, CONCEPTS = 6, 3, 8, 3

# Concepts of other kinds, with the same number of columns.
GROUP = [{"name": "parity", "values": ["even", "odd"]}, "large"]
KINDS = [{"name": "parity", "values": ["even", "odd"]}, {"name": "size", "kind": "continuous", "weight": 0.5}]

# The settings that each bottleneck is tested with; a name that is missing here is tested with its defaults.
ROWS = {
    "cauchy_schwarz": {
        "default": {},
        "smaller": {"out_features": 4, "normalized": True, "block_size": 5},
        "stochastic": {"stochastic": True, "start": "identity", "normalize_code": False, "positions": "mean"},
    },
    "concept": {
        "default": {"concepts": CONCEPTS},
        "hard": {"concepts": CONCEPTS, "code": "hard", "residual": 2, "out_features": 4, "head": "mlp"},
        "logit": {"concepts": KINDS, "code": "logit", "out_features": FEATURES, "pos_weight": 2.0},
        "prior": {
            "concepts": CONCEPTS,
            "out_features": 2,
            "residual": 1,
            "head_l1": 0.1,
            "head_prior": [[1, 0, -1], [0.0, 1.0, 0.0]],
        },
    },
    "concept_embedding": {
        "default": {"concepts": CONCEPTS},
        "smaller": {"concepts": KINDS, "embedding_features": 2, "out_features": 4, "intervention_probability": 0.5},
    },
    "codebook": {"default": {"codes": 12, "top_k": 3}, "one": {"codes": 5, "top_k": 1}},
    "distance_aware": {
        "default": {},
        "smaller": {"out_features": 4, "gaussians": 3, "uniform_steps": 0, "temperature": 0.5},
        "identity": {"start": "identity", "uniform_steps": 1},
    },
    "gaussian_channel": {"default": {}, "learned": {"learned": True, "noise": 0.5}},
    "hsic": {
        "default": {},
        "normalized": {"estimator": "normalized", "bandwidth_t": ("rms", 1.0), "lambda_y": 0.0},
        "debiased": {"estimator": "debiased"},
        "blocks": {"block_size": 5, "positions": "mean"},
        "cka": {"estimator": "cka", "lambda_x": 0.0},
    },
    "key_value": {
        # The module before the layer learns in these tests.
        "default": {"codebooks": 4, "pairs": 16, "key_features": 3, "straight_through": True},
        "linear": {
            "codebooks": 3,
            "pairs": 8,
            "splitter": "chunk",
            "decoder": "linear",
            "value_features": 5,
            "top_k": 2,
            "out_features": 4,
            "straight_through": True,
        },
        "learned": {"codebooks": 2, "pairs": 9, "splitter": "learned", "search": "product", "straight_through": True},
    },
    "nonlinear": {
        "default": {},
        "smaller": {"out_features": 4, "lagrangian": "power", "power": 0.5},
        "identity": {"start": "identity", "initial_log_variance": 2.0},
        "blocks": {"lagrangian": "exponential", "block_size": 5},
    },
    "post_hoc_concept": {
        "default": {"concepts": CONCEPTS},
        "hybrid": {"concepts": KINDS, "code": "probability", "hybrid": True, "out_features": 4, "head_l2": 0.01},
    },
    "probabilistic_concept": {
        "default": {"concepts": CONCEPTS},
        "smaller": {"concepts": GROUP, "embedding_features": 2, "out_features": 4, "pos_weight": [1.0, 1.0, 3.0]},
    },
    "stochastic_concept": {
        "default": {"concepts": CONCEPTS},
        "global": {"concepts": KINDS, "covariance": "global", "out_features": 4, "precision_weight": 0.1},
        "logit": {"concepts": CONCEPTS, "code": "logit", "samples": 7, "head": "linear"},
    },
    "variational": {
        "default": {},
        "smaller": {"out_features": 4},
        "identity": {"start": "identity"},
        "learned": {"prior": "learned", "rate": "monte_carlo"},
        "conditional": {"prior": "conditional", "classes": CLASSES},
        "exponential": {"lagrangian": "exponential", "alpha": 0.5},
        "power": {"lagrangian": "power", "power": 0.5, "rate": "monte_carlo"},
    },
}
# Layers whose estimator needs more than one sample: a batch of one is an error that says so.
NEEDS_MORE_SAMPLES = {"cauchy_schwarz", "hsic"}


def rows_of(name):
    return ROWS.get(name, {"default": {}})


def cases(further_marks=()):
    """Every row of every registered bottleneck; the marks are for the rows after a bottleneck's first."""
    return [
        pytest.param(name, options, id=f"{name}-{row}", marks=further_marks if position else ())
        for name in ibreg.names()
        for position, (row, options) in enumerate(rows_of(name).items())
    ]


every_case = pytest.mark.parametrize(("name", "options"), cases())
every_case_first_quick = pytest.mark.parametrize(("name", "options"), cases(pytest.mark.slow))
every_name = pytest.mark.parametrize("name", ibreg.names())
every_rank = pytest.mark.parametrize(
    "shape", [(BATCH, FEATURES), (BATCH, 5, FEATURES), (BATCH, FEATURES, 3, 2)], ids=len
)


def build(name, options, **further):
    return ibreg.build(name, in_features=FEATURES, **options, **further)


def build_first(name, **further):
    """Builds a bottleneck with the first row of its settings."""
    return build(name, next(iter(rows_of(name).values())) | further)


def code_features(layer):
    return getattr(layer, "out_features", None) or FEATURES


def needed(layer, batch=BATCH):
    """The side information that a layer's penalty needs."""
    values = {
        "target": torch.arange(batch) % CLASSES,
        "concepts": (torch.arange(batch).unsqueeze(1) % torch.tensor([2, 3, 4]) == 0).float(),
        "inputs": torch.linspace(-1, 1, batch * 4).reshape(batch, 4),
    }
    return {need: values[need] for need in layer.needs}


def network(layer):
    return nn.Sequential(nn.Linear(FEATURES, FEATURES), layer, nn.Linear(code_features(layer), 2))


def injected(layer):
    """The same network with the layer after a module, by a hook, instead of in the sequence."""
    net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(code_features(layer), 2))
    return ibreg.inject(net, {"1": layer})


def measure(layer, x, *, seed=0, **further):
    """Code, penalty and logs of a layer, with the noise of a seed."""
    torch.manual_seed(seed)
    return layer.measure(x, **(needed(layer, len(x)) | further))


def step(model, x, further, seed=0):
    """One forward and backward pass: output, penalty, gradients."""
    torch.manual_seed(seed)
    model.zero_grad()
    output, penalty, _ = model(x, **further)
    (output.square().mean() + penalty).backward()
    return output.detach(), penalty.detach(), [p.grad.clone() for p in model.parameters()]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


def tensors(module):
    return {key: value.clone() for key, value in module.state_dict().items()}
