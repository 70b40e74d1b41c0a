"""What every registered bottleneck claims: where its noise goes, what its rate is, what minimizing its penalty does.

Each test stands for a fault that was found in published code. A layer that cannot satisfy one says why in the table
above that test.
"""

import math

import pytest
import torch
from torch import nn

import ibreg
from tests.contract.table import (
    BATCH,
    CLASSES,
    CONCEPTS,
    FEATURES,
    build,
    build_first,
    cases,
    every_case,
    every_name,
    every_rank,
    measure,
    needed,
)

RATES = [name for name in ibreg.names() if build_first(name).rate_bounds is not None]

# ---- noise

LABELS_ENTER_THE_CODE = {
    "concept_embedding": "in training it intervenes with the true concepts of some samples (RandInt, arXiv 2209.09056)",
}


@every_case
@every_rank
def test_noise_reaches_the_code_in_training_and_not_in_evaluation(name, options, shape):
    layer, x = build(name, options), torch.randn(shape)
    codes = torch.stack([measure(layer, x, seed=seed).z for seed in range(10)])
    spread = codes.std(0).flatten(1).amax(1)
    if name in LABELS_ENTER_THE_CODE:
        assert not layer.stochastic  # the samples that are intervened on are random, the code of the others is not
    elif layer.stochastic:
        assert (spread > 0).all()
    else:
        assert (spread == 0).all()
    layer.eval()
    assert torch.equal(measure(layer, x, seed=0).z, measure(layer, x, seed=1).z)


@every_case
def test_shuffled_labels_leave_the_code_alone(name, options):
    if name in LABELS_ENTER_THE_CODE:
        options = options | {"intervention_probability": 0.0}
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    shuffled = {need: value.roll(1, 0) for need, value in needed(layer).items()}
    for training in (True, False):
        layer.train(training)
        assert torch.equal(measure(layer, x).z, measure(layer, x, **shuffled).z)


@every_case
@every_rank
def test_the_code_of_a_sample_does_not_depend_on_its_batch(name, options, shape):
    layer, x = build(name, options), torch.randn(shape)
    measure(layer, x)  # what moves in training has moved
    layer.eval()
    whole = layer(x)
    for row in (0, BATCH - 1):
        torch.testing.assert_close(layer(x[row : row + 1]), whole[row : row + 1], rtol=1e-5, atol=1e-6)


# ---- rates


def zero_mean_and_unit_scale(layer):
    """Puts the codes of an encoder with noise at N(0, I)."""
    nn.init.zeros_(layer.encoder.weight)
    with torch.no_grad():
        layer.encoder.bias.view(2, -1).copy_(torch.tensor([[0.0], [math.log(math.expm1(1.0))]]))


def constant_unit_vectors(layer):
    """Gives every concept the same vector for all inputs, of length 1, with noise of scale 1."""
    zero_mean_and_unit_scale(layer)
    with torch.no_grad():
        layer.encoder.bias.view(2, -1)[0] = 1.0


def nothing(layer):
    """A constant input has a constant code already."""


# What makes a layer's code independent of an input of zeros, and the rate that is left, in nats.
WITHOUT_INFORMATION = {
    "gaussian_channel": (nothing, 0.0),
    "nonlinear": (nothing, 0.0),
    # Means have length 1 and so cannot reach the prior: KL(N(mu, I) || N(0, I)) = |mu|^2 / 2 for each concept.
    "probabilistic_concept": (constant_unit_vectors, CONCEPTS / 2),
    "variational": (zero_mean_and_unit_scale, 0.0),
}

# Options of a layer with some units, and with twice as many of them; or why its rate is no sum over units.
TWICE_AS_MANY_UNITS = {
    "gaussian_channel": ({"in_features": FEATURES}, {"in_features": 2 * FEATURES}),
    "nonlinear": "the rate is the information about which sample of the batch it is, at most log(batch)",
    "probabilistic_concept": ({"concepts": CONCEPTS}, {"concepts": 2 * CONCEPTS}),
    "variational": ({"out_features": 4}, {"out_features": 8}),
}


@pytest.mark.parametrize("table", [WITHOUT_INFORMATION, TWICE_AS_MANY_UNITS], ids=["information", "units"])
def test_every_layer_with_a_rate_has_an_entry(table):
    missing = set(RATES) - set(table)
    assert not missing, f"add {sorted(missing)} to the tables WITHOUT_INFORMATION and TWICE_AS_MANY_UNITS of {__file__}"
    assert set(table) <= set(RATES)


@pytest.mark.parametrize(("name", "options"), [case for case in cases() if case.values[0] in RATES])
@every_rank
@pytest.mark.filterwarnings("ignore:the rate of bottleneck .* is above 0.98 of log")
def test_a_rate_is_at_least_zero(name, options, shape):
    layer = build(name, options)
    for scale in (1e-3, 1.0, 10.0):
        for training in (True, False):
            assert measure(layer.train(training), scale * torch.randn(shape)).logs["rate"] >= 0


@pytest.mark.parametrize("name", RATES)
@every_rank
def test_a_code_without_information_has_the_least_rate(name, shape):
    clear, least = WITHOUT_INFORMATION[name]
    layer = build_first(name)
    clear(layer)
    out = measure(layer, torch.zeros(shape))
    positions = 1 if name == "probabilistic_concept" else math.prod(shape) // (BATCH * FEATURES)
    assert out.logs["rate"].item() == pytest.approx(positions * least, abs=1e-5)
    if least == 0:
        assert out.penalty.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in RATES if not isinstance(TWICE_AS_MANY_UNITS.get(name), str)])
def test_twice_as_many_units_have_twice_the_rate(name):
    rates = []
    for options in TWICE_AS_MANY_UNITS[name]:
        layer = ibreg.build(name, **({"in_features": FEATURES} | options))
        for parameter in layer.parameters():  # all units are the same function of the input
            nn.init.constant_(parameter, 0.1)
        x = torch.linspace(-2, 2, BATCH).unsqueeze(1).expand(BATCH, layer.in_features or FEATURES)
        concepts = torch.ones(BATCH, options.get("concepts", CONCEPTS))
        rates.append(measure(layer, x.contiguous(), concepts=concepts).logs["rate"].item())
    assert rates[0] > 0
    assert rates[1] == pytest.approx(2 * rates[0], rel=1e-5)


# ---- minimizing the penalty

# The quantity that falls while the penalty alone is minimized, computed from the logs; or why there is none.
CLAIMS = {
    "cauchy_schwarz": lambda layer, logs: logs["cs_qmi"],
    "codebook": lambda layer, logs: logs["distance"],
    "concept": lambda layer, logs: logs["concept_loss"],
    "concept_embedding": lambda layer, logs: logs["concept_loss"],
    "distance_aware": lambda layer, logs: logs["uncertainty"],
    "dropout": "the penalty is 0",
    "gaussian_channel": lambda layer, logs: logs["rate"],
    "hsic": lambda layer, logs: layer.lambda_x * logs.get("hsic_x", 0) - layer.lambda_y * logs.get("hsic_y", 0),
    "key_value": lambda layer, logs: logs["distance"],
    "nonlinear": lambda layer, logs: logs["rate"],
    "post_hoc_concept": lambda layer, logs: logs["head_penalty"],
    "probabilistic_concept": lambda layer, logs: logs["concept_loss"],
    "stochastic_concept": lambda layer, logs: logs["concept_loss"],
    "variational": lambda layer, logs: logs["rate"],
}


@every_name
def test_every_layer_claims_something(name):
    assert name in CLAIMS, f"add {name!r} to the table CLAIMS of {__file__}: what does its penalty lower?"


@pytest.mark.parametrize(
    ("name", "options"), [case for case in cases() if not isinstance(CLAIMS.get(case.values[0]), str)]
)
def test_minimizing_the_penalty_lowers_what_it_claims_to_lower(name, options):
    claim = CLAIMS[name]
    layer, x = build(name, options), torch.randn(4 * BATCH, FEATURES)
    model = ibreg.Regularized(nn.Sequential(nn.Linear(FEATURES, FEATURES), layer))
    further = needed(layer, 4 * BATCH) | {"target": torch.randint(CLASSES, (4 * BATCH,))}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def claimed():
        logs = model.eval()(x, **further).logs
        return float(claim(layer, {key.rpartition("/")[2]: value for key, value in logs.items()}))

    before = claimed()
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        (model(x, **further).penalty / layer.beta).backward()
        optimizer.step()
    assert claimed() < before
