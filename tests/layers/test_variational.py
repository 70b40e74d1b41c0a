"""The variational bottleneck against a numpy reference of its whole penalty, and its options one by one."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg.layers.variational import VariationalBottleneck

FEATURES, CODE, CLASSES, BATCH = 5, 3, 4, 6
SHAPES = {2: (BATCH, FEATURES), 3: (BATCH, 7, FEATURES), 4: (BATCH, FEATURES, 2, 3)}
ranks = pytest.mark.parametrize("rank", SHAPES)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def randomized(*args, **options):
    """A layer with random parameters."""
    layer = VariationalBottleneck(*args, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def conditional(**options):
    return randomized(FEATURES, CODE, prior="conditional", classes=CLASSES, **options)


def gaussians(layer, x, axis):
    """Mean, deviation (features last) in float64 numpy."""
    weight, bias = (p.detach().double().numpy() for p in (layer.encoder.weight, layer.encoder.bias))
    parameters = np.moveaxis(x.double().numpy(), axis, -1) @ weight.T + bias
    return parameters[..., : layer.out_features], np.logaddexp(0, parameters[..., layer.out_features :])


def kl(mean, deviation, prior_mean=0.0, prior_variance=1.0):
    ratio = deviation**2 / prior_variance
    return 0.5 * ((mean - prior_mean) ** 2 / prior_variance + ratio - 1 - np.log(ratio)).sum(-1)


def per_sample(values):
    return values.reshape(len(values), -1).sum(1).mean()


def prior_of(layer):
    return layer.prior_mean.detach().double().numpy(), np.exp(layer.prior_log_variance.detach().double().numpy())


U = {"linear": lambda r, p: r, "power": lambda r, p: r ** (1 + p), "exponential": lambda r, p: np.expm1(p * r) / p}


# ---- the penalty


@ranks
@pytest.mark.parametrize("prior", ["standard", "learned", "conditional"])
@pytest.mark.parametrize(
    ("lagrangian", "alpha"), [("linear", 1.0), ("linear", 0.3), ("power", 1.0), ("exponential", 0.0)]
)
def test_penalty_against_numpy(rank, prior, lagrangian, alpha):
    classes = CLASSES if prior == "conditional" else None
    layer = randomized(FEATURES, CODE, prior=prior, classes=classes, lagrangian=lagrangian, alpha=alpha, power=0.05)
    x = torch.randn(SHAPES[rank])
    target = torch.arange(BATCH) % CLASSES
    mean, deviation = gaussians(layer, x, 1 if rank == 4 else -1)
    prior_mean, prior_variance = (0.0, 1.0) if prior == "standard" else prior_of(layer)
    if prior == "conditional":
        spread = (BATCH, *[1] * (rank - 2), CODE)
        prior_mean, prior_variance = prior_mean[target].reshape(spread), prior_variance[target].reshape(spread)
    rate = kl(mean, deviation, prior_mean, prior_variance)
    entropy = (0.5 * np.log(2 * np.pi * np.e * deviation**2)).sum(-1)
    expected = U[lagrangian](per_sample(rate + (1 - alpha) * entropy), 0.05)

    out = layer.measure(x, target=target)
    np.testing.assert_allclose(out.penalty.detach(), expected, rtol=2e-5)
    np.testing.assert_allclose(out.logs["rate"], per_sample(rate), rtol=2e-5)
    code = layer.eval()(x)
    np.testing.assert_allclose(code.detach(), np.moveaxis(mean, -1, 1 if rank == 4 else -1), rtol=1e-4, atol=1e-5)


def test_samples_have_the_mean_and_the_standard_deviation_of_the_code():
    layer = randomized(FEATURES, CODE)
    x = torch.randn(1, FEATURES)
    mean, deviation = gaussians(layer, x, -1)
    codes = layer.measure(x.expand(40_000, -1)).z.detach()
    np.testing.assert_allclose(codes.mean(0), mean[0], atol=4 * deviation.max() / 200)
    np.testing.assert_allclose(codes.std(0), deviation[0], rtol=0.02)


def test_dim_for_maps_with_channels_last():
    layer = randomized(FEATURES, CODE, dim=-1)
    twin = VariationalBottleneck(FEATURES, CODE)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(SHAPES[4])
    last, first = layer.measure(x.movedim(1, -1)), twin.measure(x)
    assert last.z.shape == (BATCH, 2, 3, CODE)
    torch.testing.assert_close(last.penalty, first.penalty)
    torch.testing.assert_close(layer.eval()(x.movedim(1, -1)).movedim(-1, 1), twin.eval()(x))
    assert VariationalBottleneck(FEATURES, CODE, dim=1).eval()(torch.randn(2, FEATURES, 9)).shape == (2, CODE, 9)


@pytest.mark.parametrize("prior", ["standard", "learned", "conditional"])
def test_monte_carlo_rate_converges_to_the_analytic_one(prior):
    classes = CLASSES if prior == "conditional" else None
    layer = randomized(FEATURES, CODE, prior=prior, classes=classes, rate="monte_carlo")
    x, target = torch.randn(1, FEATURES).expand(40_000, -1), torch.ones(40_000, dtype=torch.long)
    out = layer.measure(x, target=target)
    assert out.penalty != out.logs["rate"]
    torch.testing.assert_close(out.penalty.detach(), out.logs["rate"], rtol=0.02, atol=0.02)


def test_monte_carlo_rate_is_that_of_the_sampled_code():
    layer = randomized(FEATURES, CODE, rate="monte_carlo", prior="learned")
    x = torch.randn(BATCH, FEATURES)
    out = layer.measure(x)
    mean, deviation = gaussians(layer, x, -1)
    z = out.z.detach().double()
    prior_mean, prior_variance = (torch.as_tensor(value) for value in prior_of(layer))
    code = torch.distributions.Normal(torch.as_tensor(mean), torch.as_tensor(deviation))
    prior = torch.distributions.Normal(prior_mean, prior_variance.sqrt())
    expected = (code.log_prob(z) - prior.log_prob(z)).sum(1).mean()
    torch.testing.assert_close(out.penalty.detach().double(), expected, rtol=1e-4, atol=1e-5)


def test_monte_carlo_rate_keeps_its_noise_beside_a_large_mean():
    # In float32 a deviation of 5e-5 is lost beside a mean of 1000: the rate must not be computed from the sampled code.
    layer = VariationalBottleneck(2, 2, rate="monte_carlo", start="identity")
    nn.init.constant_(layer.encoder.bias[2:].data, -10.0)
    out = layer.measure(torch.full((20_000, 2), 1000.0))
    mean_part = 2 * 1000.0**2 / 2
    assert out.penalty.item() - mean_part == pytest.approx(out.logs["rate"].item() - mean_part, abs=0.5)


@pytest.mark.parametrize("rate", ["analytic", "monte_carlo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("raw", [-100.0, -1000.0])
def test_finite_at_a_raw_scale_of_minus_100(rate, dtype, raw):
    layer = VariationalBottleneck(FEATURES, CODE, rate=rate)
    nn.init.constant_(layer.encoder.bias.data[CODE:], raw)
    nn.init.zeros_(layer.encoder.weight.data[CODE:])
    x = torch.randn(BATCH, FEATURES, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = layer.measure(x)
    (out.penalty + out.z.float().square().mean()).backward()
    assert out.penalty.dtype == torch.float32
    assert out.penalty.item() == pytest.approx(-CODE * math.log(1e-30), rel=0.1)
    for gradient in (x.grad, *(parameter.grad for parameter in layer.parameters())):
        assert torch.isfinite(gradient).all()


def test_rate_has_a_gradient_down_to_a_tiny_scale():
    layer = VariationalBottleneck(FEATURES, CODE)
    nn.init.constant_(layer.encoder.bias.data[CODE:], -60.0)
    nn.init.zeros_(layer.encoder.weight.data[CODE:])
    layer.measure(torch.randn(BATCH, FEATURES)).penalty.backward()
    # Each unit's rate grows by 1 nat per unit of -raw.
    torch.testing.assert_close(layer.encoder.bias.grad[CODE:], torch.full((CODE,), -1.0), rtol=0.01, atol=0)


# ---- conditional prior


@ranks
def test_hard_targets_equal_one_hot_probabilities(rank):
    layer, x = conditional(), torch.randn(SHAPES[rank])
    target = torch.arange(BATCH) % CLASSES
    hard = layer.measure(x, target=target)
    soft = layer.measure(x, target=F.one_hot(target, CLASSES).float())
    torch.testing.assert_close(hard.penalty, soft.penalty)
    torch.testing.assert_close(hard.logs, soft.logs)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("spread", [0.5, 30.0])
def test_soft_targets_against_the_expected_divergence(rank, spread):
    layer, x = conditional(), torch.randn(SHAPES[rank])
    nn.init.normal_(layer.prior_mean, mean=spread, std=spread)
    target = torch.softmax(torch.randn(BATCH, CLASSES), -1)
    mean, deviation = (value[..., None, :] for value in gaussians(layer, x, -1))
    each = kl(mean, deviation, *prior_of(layer))
    weights = target.double().numpy().reshape(BATCH, *[1] * (rank - 2), CLASSES)
    expected = per_sample((weights * each).sum(-1))
    np.testing.assert_allclose(layer.measure(x, target=target).penalty.detach(), expected, rtol=2e-5)


def test_ignored_targets_are_left_out():
    layer, x = conditional(), torch.randn(BATCH, FEATURES)
    target = torch.tensor([0, -100, 2, 3, -100, 1])
    kept = target != -100
    out, expected = layer.measure(x, target=target), layer.measure(x[kept], target=target[kept])
    torch.testing.assert_close(out.penalty, expected.penalty)
    torch.testing.assert_close(out.logs["rate"], expected.logs["rate"])
    nothing = layer.measure(x, target=torch.full((BATCH,), -100))
    nothing.penalty.backward()
    assert nothing.penalty == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters() if parameter.grad is not None)


def test_targets_of_each_token():
    layer, x = conditional(), torch.randn(BATCH, 7, FEATURES)
    target = torch.randint(CLASSES, (BATCH, 7))
    target[:, 5:] = -100
    mean, deviation = gaussians(layer, x, -1)
    prior_mean, prior_variance = prior_of(layer)
    rate = kl(mean, deviation, prior_mean[target.clamp(min=0)], prior_variance[target.clamp(min=0)])[:, :5]
    np.testing.assert_allclose(layer.measure(x, target=target).penalty.detach(), per_sample(rate), rtol=2e-5)
    soft = F.one_hot(target.clamp(min=0), CLASSES).float()
    mask = target != -100
    torch.testing.assert_close(
        layer.measure(x, target=soft, mask=mask).penalty, layer.measure(x, target=target).penalty
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_targets_of_any_integer_type(dtype):
    layer, x = conditional(), torch.randn(BATCH, FEATURES)
    target = torch.arange(BATCH) % CLASSES
    assert layer.measure(x, target=target.to(dtype)).penalty == layer.measure(x, target=target).penalty


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.zeros(BATCH, 2), ValueError, r"class probabilities of shape \(6, 4\), got \(6, 2\)"),
        (torch.zeros(BATCH), ValueError, r"class probabilities of shape \(6, 4\), got \(6,\)"),
        (torch.zeros(BATCH - 1, dtype=torch.long), ValueError, r"class indices of shape \(6,\), got \(5,\)"),
        (torch.zeros(BATCH, 1, dtype=torch.long), ValueError, r"class indices of shape \(6,\), got \(6, 1\)"),
        (torch.full((BATCH,), CLASSES), RuntimeError, "class indices from 0 to 3, or -100 to be left out"),
        (torch.full((BATCH,), -1), RuntimeError, "class indices from 0 to 3, or -100 to be left out"),
    ],
)
def test_targets_that_do_not_fit(target, error, message):
    with pytest.raises(error, match=message):
        conditional().measure(torch.randn(BATCH, FEATURES), target=target)


def test_conditional_prior_in_evaluation():
    layer, x = conditional().eval(), torch.randn(BATCH, FEATURES)
    assert layer.measure(x).logs == {}
    out = layer.measure(x, target=torch.zeros(BATCH, dtype=torch.long))
    assert out.penalty == 0
    assert out.logs["rate"] > 0


# ---- masks, logs


def test_mask_leaves_padding_out():
    layer, x = randomized(FEATURES, CODE), torch.randn(3, 7, FEATURES)
    lengths = [7, 4, 1]
    mask = torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    alone = [layer.measure(x[i : i + 1, :length]).penalty for i, length in enumerate(lengths)]
    for kind in (mask, mask.long(), mask.float()):
        out = layer.measure(x, mask=kind)
        torch.testing.assert_close(out.penalty, torch.stack(alone).mean())
        padded = layer.measure(torch.where(mask.unsqueeze(-1), x, 1e6), mask=kind)
        torch.testing.assert_close(padded.penalty, out.penalty)
        torch.testing.assert_close(padded.logs, out.logs)


def test_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"the bottleneck's positions, \(6, 7\), got \(6, 3\)"):
        VariationalBottleneck(FEATURES).measure(torch.randn(BATCH, 7, FEATURES), mask=torch.ones(BATCH, 3))


@ranks
def test_active_units_are_those_whose_mean_varies(rank):
    layer = VariationalBottleneck(4, start="identity").eval()
    x = torch.zeros((100, 4) if rank == 2 else (20, 5, 4) if rank == 3 else (20, 4, 5, 1))
    rows = x.movedim(1, -1).flatten(0, -2) if rank == 4 else x.flatten(0, -2)
    units = torch.tensor([0.0, 0.09, 0.11, 3.0])  # deviations of the means; 0.1 is the threshold
    rows = torch.where(torch.arange(100).unsqueeze(1) % 2 == 0, 1, -1) * units + 50
    x = rows.reshape(20, 5, 1, 4).movedim(-1, 1) if rank == 4 else rows.reshape(x.shape)
    assert layer.measure(x).logs["active_units"] == 2


def test_active_units_without_padding():
    layer = VariationalBottleneck(2, start="identity").eval()
    x = torch.zeros(4, 6, 2)
    x[:, :3, 0] = torch.tensor([1.0, -1.0, 0.5])
    x[:, 3:, 1] = torch.randn(4, 3)
    assert layer.measure(x).logs["active_units"] == 2
    assert layer.measure(x, mask=(torch.arange(6) < 3).expand(4, 6)).logs["active_units"] == 1


# ---- starts, options


@ranks
def test_identity_start_is_exact_in_evaluation(rank):
    layer, x = VariationalBottleneck(FEATURES, start="identity"), 100 * torch.randn(SHAPES[rank])
    assert torch.equal(layer.eval()(x), x)
    z = layer.train().measure(x).z
    assert (z - x).std().item() == pytest.approx(0.1, rel=0.3)


def test_default_start():
    layer = VariationalBottleneck(FEATURES, CODE, prior="learned")
    assert F.softplus(layer.encoder.bias[CODE:]).tolist() == pytest.approx([math.log1p(math.exp(-5))] * CODE)
    assert not layer.encoder.bias[:CODE].any()
    assert not layer.prior_mean.any()
    assert not layer.prior_log_variance.any()
    assert VariationalBottleneck(FEATURES).out_features == FEATURES


def test_identity_start_keeps_the_accuracy_of_a_trained_network():
    torch.manual_seed(0)
    x = torch.randn(2000, FEATURES)
    y = (x @ torch.randn(FEATURES, CLASSES)).argmax(1)
    net = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    before = (net(x).argmax(1) == y).float().mean()
    ibreg.inject(net, {"1": VariationalBottleneck(16, start="identity")})
    noisy = ibreg.Regularized(net)(x).output
    assert before > 0.95
    assert torch.equal(net.eval()(x).argmax(1) == y, ibreg.predict(net, x).argmax(1) == y)
    assert (net(x).argmax(1) == y).float().mean() == before
    assert (noisy.argmax(1) == y).float().mean() > before - 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "uniform"}, "prior must be one of 'standard', 'learned', 'conditional', got 'uniform'"),
        ({"rate": "exact"}, "rate must be one of 'analytic', 'monte_carlo', got 'exact'"),
        ({"lagrangian": "log"}, "lagrangian must be one of 'linear', 'power', 'exponential', got 'log'"),
        ({"start": "zero"}, "start must be one of 'default', 'identity', got 'zero'"),
        ({"alpha": 1.1}, "alpha must be a finite number of at least 0 and at most 1, got 1.1"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"power": 0.0}, "power must be a finite number above 0"),
        ({"lagrangian": "power", "alpha": 0.5}, "use lagrangian='exponential'"),
        (
            {"prior": "conditional"},
            "classes must be the number of classes with prior='conditional' and None with others",
        ),
        ({"classes": 3}, "classes must be the number of classes with prior='conditional' and None with others"),
        (
            {"prior": "conditional", "classes": 1},
            "classes must be None or an integer of at least 2 [(]number of classes[)]",
        ),
        ({"beta": -1.0}, "at least 0, got -1.0"),
        ({"beta": float("inf")}, "a finite number"),
        ({"start": "identity", "out_features": 2}, "got 2; leave it out, or use start='default'"),
        (
            {"in_features": 0},
            "in_features must be None or an integer of at least 1 [(]size of the feature axis[)], got 0",
        ),
        ({"dim": 0}, "dim must be None or an integer other than 0"),
        ({"out_features": 0}, "out_features must be None or an integer of at least 1 [(]size of the code[)], got 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        VariationalBottleneck(**{"in_features": FEATURES, **options})


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((FEATURES,), {}, r"takes \(batch, features\) or more axes, got shape \(5,\)"),
        ((BATCH, 4), {}, r"takes 5 features on axis 1, got an input of shape \(6, 4\)$"),
        ((BATCH, FEATURES, 9), {}, r"takes 5 features on axis 2, .*; axis 1 has that size: pass dim=1"),
        ((BATCH, 2, 3, FEATURES), {}, r"takes 5 features on axis 1, .*; axis 3 has that size: pass dim=3"),
        ((BATCH, FEATURES), {"dim": 2}, "dim=2, which is no feature axis"),
        ((FEATURES, BATCH), {"dim": -2}, "dim=-2, which is no feature axis"),
    ],
)
def test_inputs_that_do_not_fit(shape, options, message):
    with pytest.raises(ValueError, match=message):
        VariationalBottleneck(FEATURES, **options).eval()(torch.zeros(shape))


def test_an_empty_batch_has_a_penalty_of_0():
    out = VariationalBottleneck(FEATURES).measure(torch.zeros(0, FEATURES))
    out.penalty.backward()
    assert out.z.shape == (0, FEATURES)
    assert out.penalty == out.logs["rate"] == out.logs["active_units"] == 0


def test_noise_differs_between_calls_and_follows_the_seed():
    layer, x = VariationalBottleneck(FEATURES), torch.zeros(BATCH, FEATURES)
    first, second = layer.measure(x).z, layer.measure(x).z
    torch.manual_seed(0)
    VariationalBottleneck(FEATURES)
    assert not torch.equal(first, second)
    assert torch.equal(layer.measure(x).z, first)
