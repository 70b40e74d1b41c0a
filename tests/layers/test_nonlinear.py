"""The nonlinear bottleneck against a numpy reference of its penalty; its warning, its initialization and its errors."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn

import ibreg
from ibreg.layers.nonlinear import NonlinearBottleneck

FEATURES, CODE, BATCH = 5, 3, 6
SHAPES = {2: (BATCH, FEATURES), 3: (BATCH, 7, FEATURES), 4: (BATCH, FEATURES, 2, 3)}
ranks = pytest.mark.parametrize("rank", SHAPES)

U = {"linear": lambda r, p: r, "power": lambda r, p: r ** (1 + p), "exponential": lambda r, p: np.expm1(p * r) / p}


def randomized(**options):
    """A layer with random parameters, with enough noise for codes of several positions."""
    layer = NonlinearBottleneck(FEATURES, CODE, **options)
    for parameter in layer.encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    nn.init.constant_(layer.log_variance, 2.3)
    return layer


def means(layer, x, axis=-1):
    """Features last, in float64 numpy."""
    weight, bias = (parameter.detach().double().numpy() for parameter in layer.encoder.parameters())
    return np.moveaxis(x.double().numpy(), axis, -1) @ weight.T + bias


def rate_of(mean, log_variance):
    mean = mean.reshape(len(mean), -1)
    squares = ((mean[:, None] - mean) ** 2).sum(-1)
    return math.log(len(mean)) - logsumexp(-squares / (2 * math.exp(log_variance)), axis=1).mean()


# ---- the penalty


@ranks
@pytest.mark.parametrize(("lagrangian", "power"), [("linear", 1.0), ("power", 1.0), ("power", 0.5), ("exponential", 2)])
def test_penalty_against_numpy(rank, lagrangian, power):
    layer, x = randomized(lagrangian=lagrangian, power=power), torch.randn(SHAPES[rank])
    axis = 1 if rank == 4 else -1
    mean = means(layer, x, axis)
    rate = rate_of(mean, 2.3)
    out = layer.measure(x)
    np.testing.assert_allclose(out.penalty.detach(), U[lagrangian](rate, power), rtol=2e-5)
    np.testing.assert_allclose(out.logs["rate"], rate, rtol=2e-5)
    np.testing.assert_allclose(out.logs["saturation"], rate / math.log(BATCH), rtol=2e-5)
    np.testing.assert_allclose(out.logs["noise"], math.exp(1.15), rtol=1e-5)
    logs = layer.eval().measure(x).logs
    assert logs == out.logs
    np.testing.assert_allclose(layer(x).detach(), np.moveaxis(mean, -1, axis), rtol=1e-4, atol=1e-5)


def test_samples_have_the_mean_of_the_code_and_one_standard_deviation():
    layer, x = randomized(), torch.randn(1, FEATURES)
    with torch.no_grad():
        codes = layer(x.expand(40_000, -1))
    deviation = math.exp(1.15)
    np.testing.assert_allclose(codes.mean(0), means(layer, x)[0], atol=4 * deviation / 200)
    np.testing.assert_allclose(codes.std(0), np.full(CODE, deviation), rtol=0.02)


def test_the_rate_is_independent_of_the_number_of_samples():
    layer, x = randomized(), torch.randn(SHAPES[2])
    net = nn.Sequential(layer, nn.Linear(CODE, 2))
    once, thrice = (ibreg.Regularized(net, draws=draws)(x) for draws in (1, 3))
    assert thrice.output.shape == (3, BATCH, 2)
    assert not torch.equal(thrice.output[0], thrice.output[1])
    assert torch.equal(once.penalty, thrice.penalty)


def test_two_far_clusters_cost_log_two():
    layer = NonlinearBottleneck(FEATURES, start="identity")
    x = 10.0 * torch.tensor([0, 1, 0, 1, 0, 1]).unsqueeze(1).expand(-1, FEATURES)
    torch.testing.assert_close(layer.measure(x).penalty, torch.tensor(math.log(2)))
    assert layer.measure(torch.ones(BATCH, FEATURES)).penalty == 0
    assert layer.measure(torch.randn(1, FEATURES)).logs["saturation"] == 0


def test_mask_leaves_padding_out():
    layer, x = randomized(), torch.randn(SHAPES[3])
    mask = torch.arange(7) < torch.tensor([7, 7, 5, 3, 1, 2]).unsqueeze(1)
    rate = layer.measure(x, mask=mask).penalty
    padded = torch.where(mask.unsqueeze(-1), x, 9.0)
    torch.testing.assert_close(layer.measure(padded, mask=mask.float()).penalty, rate)
    longer = torch.cat((x, torch.randn(BATCH, 2, FEATURES)), 1)
    torch.testing.assert_close(layer.measure(longer, mask=nn.functional.pad(mask, (0, 2))).penalty, rate)
    expected = rate_of(means(layer, x) * mask.unsqueeze(-1).numpy(), 2.3)
    np.testing.assert_allclose(rate.detach(), expected, rtol=2e-5)
    with pytest.raises(ValueError, match=r"the bottleneck's positions, \(6, 7\), got \(6, 5\)"):
        layer.measure(x, mask=mask[:, :5])


def test_results_are_independent_of_the_block_size():
    x, results = torch.randn(SHAPES[2]), []
    for block_size in (None, 1, 4):
        torch.manual_seed(0)
        layer = randomized(block_size=block_size)
        penalty = layer.measure(x).penalty
        results.append((penalty, *torch.autograd.grad(penalty, [layer.encoder.weight, layer.log_variance])))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-7)


def test_minimizing_the_penalty_contracts_the_codes_and_raises_the_noise():
    layer, x = NonlinearBottleneck(FEATURES), torch.randn(64, FEATURES)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    rates = []
    for _ in range(60):
        out = layer.measure(x)
        optimizer.zero_grad()
        out.penalty.backward()
        optimizer.step()
        rates.append(out.penalty.item())
    assert rates[-1] < 0.01 * rates[0]
    assert layer.log_variance > 0


# ---- starts


def test_default_start_is_far_from_saturation():
    for features in (4, 64, 1024):
        layer = NonlinearBottleneck(features)
        assert 0.02 < layer.measure(torch.randn(128, features)).logs["saturation"] < 0.5


def test_identity_start_keeps_the_features():
    layer, x = NonlinearBottleneck(FEATURES, start="identity"), torch.randn(SHAPES[2]) / 10
    assert torch.equal(layer.eval()(x), x)
    np.testing.assert_allclose(layer.measure(x).logs["noise"], 0.1, rtol=1e-6)


def test_initial_log_variance_and_reset():
    for start in ("default", "identity"):
        layer = NonlinearBottleneck(FEATURES, start=start, initial_log_variance=-3.0)
        nn.init.zeros_(layer.log_variance)
        layer.beta.fill_(7)
        layer.reset_parameters()
        assert layer.log_variance == -3
        assert layer.beta == torch.tensor(0.1)


# ---- saturation


def saturated():
    return 1e3 * torch.randn(BATCH, FEATURES)


def test_warns_of_saturation_once_and_by_name():
    model = ibreg.Regularized(nn.Sequential(nn.Identity(), NonlinearBottleneck(FEATURES)))
    with pytest.warns(UserWarning, match=r"the rate of bottleneck 1 is above 0\.98 of log\(batch size\)") as caught:
        logs = model(saturated()).logs
    assert len(caught) == 1
    assert logs["1/saturation"] == 1
    model(saturated())


def test_does_not_warn_below_saturation_in_evaluation_or_while_compiling():
    layer = NonlinearBottleneck(FEATURES)
    model = ibreg.Regularized(nn.Sequential(layer))
    model(torch.randn(BATCH, FEATURES))
    model(torch.randn(1, FEATURES))
    model.eval()(saturated())
    torch._dynamo.reset()
    compiled = torch.compile(model.train(), fullgraph=True, backend="aot_eager")
    assert compiled(saturated()).logs["0/saturation"] == 1
    assert not layer._warned_of_saturation


# ---- training


def test_training_reaches_the_information_of_the_label():
    # Four clusters, two labels: the code keeps the information about the label, log 2, and little else.
    generator = torch.Generator().manual_seed(0)
    cluster = torch.randint(4, (400,), generator=generator)
    x = 3 * torch.eye(4)[cluster] + 0.3 * torch.randn(400, 4, generator=generator)
    y = cluster % 2
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), NonlinearBottleneck(16, 2, beta=0.1), nn.Linear(2, 2))
    model, criterion = ibreg.Regularized(net), ibreg.Penalized(nn.CrossEntropyLoss())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(400):
            output = model(x)
            optimizer.zero_grad()
            criterion(output, y).backward()
            optimizer.step()
    assert (model.eval()(x).output.argmax(1) == y).float().mean() > 0.99
    assert abs(output.logs["2/rate"] - math.log(2)) < 0.15


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lagrangian": "cubic"}, "lagrangian must be one of 'linear', 'power', 'exponential', got 'cubic'"),
        ({"start": "zero"}, "start must be one of 'default', 'identity', got 'zero'"),
        ({"power": 0}, "power must be a finite number above 0"),
        ({"initial_log_variance": math.inf}, "initial_log_variance must be None or a finite number, got inf"),
        ({"block_size": 0}, "block_size must be None or an integer of at least 1 [(]number of rows"),
        ({"out_features": 0}, "out_features must be None or an integer of at least 1 [(]size of the code[)]"),
        ({"out_features": 3, "start": "identity"}, "out_features must be in_features=5 with start='identity', got 3"),
    ],
)
def test_wrong_options_say_what_is_valid(options, message):
    with pytest.raises(ValueError, match=message):
        NonlinearBottleneck(FEATURES, **options)
