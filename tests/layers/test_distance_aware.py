"""The distance-aware bottleneck against torch.distributions: its penalty, its moving averages, its uncertainty."""

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

import ibreg
from ibreg import DistanceAwareBottleneck, Regularized
from ibreg.layers.distance_aware import DECAY, DIRICHLET
from ibreg.layers.encoder import noise_scale

FEATURES, CODE, GAUSSIANS = 6, 4, 3


def build(**options):
    layer = DistanceAwareBottleneck(FEATURES, CODE, gaussians=GAUSSIANS, **({"uniform_steps": 0} | options)).double()
    with torch.no_grad():
        layer.variances.uniform_(0.5, 2)
        layer.weights.copy_(torch.tensor([0.2, 0.3, 0.5]))
        layer.encoder.bias[CODE:] = -1.0
    return layer


def reference(layer, x, temperature=1.0):
    """Divergences and responsibilities by torch.distributions."""
    mean, raw = layer.encoder(x).chunk(2, -1)
    code = Independent(Normal(mean.unsqueeze(-2), noise_scale(raw).unsqueeze(-2)), 1)
    divergences = kl_divergence(code, Independent(Normal(layer.centroids, layer.variances.sqrt()), 1))
    responsibilities = (layer.weights.log() - temperature * divergences).softmax(-1).detach()
    return divergences, responsibilities


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_uncertainty_from_the_formula(temperature):
    layer, x = build(temperature=temperature).eval(), torch.randn(7, FEATURES, dtype=torch.float64)
    divergences, responsibilities = reference(layer, x, temperature)
    expected = (divergences * responsibilities).sum(-1)
    out = layer.measure(x)
    torch.testing.assert_close(out.logs["uncertainty"], expected.mean().float())
    torch.testing.assert_close(out.z, layer.encoder(x)[:, :CODE])
    output, score = ibreg.uncertainty(Regularized(nn.Sequential(layer)), x)
    torch.testing.assert_close(score, expected)
    assert torch.equal(output, out.z)
    tokens = ibreg.uncertainty(layer, x.reshape(1, 7, FEATURES)).uncertainty
    torch.testing.assert_close(tokens, expected.sum(0, keepdim=True))


def test_a_training_step_from_the_formula():
    layer, x = build(), torch.randn(7, FEATURES, dtype=torch.float64)
    divergences, responsibilities = reference(layer, x)
    mean, raw = (tensor.detach() for tensor in layer.encoder(x).chunk(2, -1))
    rows = responsibilities.sum(0)
    squares = noise_scale(raw).square().unsqueeze(1) + (mean.unsqueeze(1) - layer.centroids.detach()).square()
    moments = ((responsibilities.unsqueeze(-1) * squares).sum(0) + DIRICHLET * layer.variances) / (
        rows + DIRICHLET
    ).unsqueeze(-1)
    variances = DECAY * layer.variances + (1 - DECAY) * moments
    weights = DECAY * layer.weights + (1 - DECAY) * (rows + DIRICHLET) / (7 + GAUSSIANS * DIRICHLET)
    out = layer.measure(x)
    torch.testing.assert_close(layer.variances, variances)
    torch.testing.assert_close(layer.weights, weights)
    divergences, _ = reference(layer, x)  # by the updated variances
    expected = (divergences * responsibilities).sum(-1).mean()
    torch.testing.assert_close(out.penalty, expected.float())
    wanted = torch.autograd.grad(expected, [layer.centroids, *layer.encoder.parameters()])
    measured = torch.autograd.grad(out.penalty, [layer.centroids, *layer.encoder.parameters()])
    for one, other in zip(measured, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_codes_far_from_0_lose_no_digits_of_value_and_gradient():
    layer, x = build(), torch.randn(7, FEATURES, dtype=torch.float64)
    with torch.no_grad():
        layer.centroids.add_(1000).copy_(layer.centroids.float())
        layer.encoder.weight.copy_(layer.encoder.weight.float())
        layer.encoder.bias[:CODE] += 1000
        layer.encoder.bias.copy_(layer.encoder.bias.float())
    single = DistanceAwareBottleneck(FEATURES, CODE, gaussians=GAUSSIANS, uniform_steps=0)
    single.load_state_dict(layer.state_dict())
    penalties = layer.measure(x).penalty, single.measure(x.float()).penalty
    torch.testing.assert_close(*reversed(penalties), rtol=1e-3, atol=0)
    wide, narrow = (
        torch.autograd.grad(penalty, [each.centroids, *each.encoder.parameters()])
        for penalty, each in zip(penalties, (layer, single), strict=True)
    )
    for one, other in zip(narrow, wide, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-3, atol=1e-4)


def test_responsibilities_are_equal_in_the_first_steps():
    layer, x = build(uniform_steps=2), torch.randn(7, FEATURES, dtype=torch.float64)
    for step in range(3):
        uniform = torch.full((7, GAUSSIANS), 1 / 3, dtype=torch.float64)
        _, later = reference(layer, x)
        responsibilities = layer.responsibilities(layer.moments(layer.transform(x)[1]))
        torch.testing.assert_close(responsibilities, uniform if step < 2 else later)
        layer.measure(x)
    assert layer.steps == 3


def test_empty_batches_and_padding_do_not_update_the_moving_averages():
    layer = build()
    before = layer.variances.clone(), layer.weights.clone()
    layer.measure(torch.zeros(0, FEATURES, dtype=torch.float64))
    assert torch.equal(before[0], layer.variances)
    assert torch.equal(before[1], layer.weights)
    x = torch.randn(2, 5, FEATURES, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    padded, alone = build(), build()
    alone.load_state_dict(padded.state_dict())
    left, right = padded.measure(x, mask=mask), alone.measure(x[mask.bool()])
    torch.testing.assert_close(padded.variances, alone.variances)
    torch.testing.assert_close(padded.weights, alone.weights)
    torch.testing.assert_close(2 * left.penalty, 3 * right.penalty)


def test_uncertainty_detects_out_of_distribution_inputs():
    torch.manual_seed(0)
    centers = 2 * torch.randn(GAUSSIANS, FEATURES)
    x, y = centers.repeat(60, 1) + 0.3 * torch.randn(180, FEATURES), torch.arange(180) % GAUSSIANS
    layer = DistanceAwareBottleneck(FEATURES, CODE, beta=1e-2, gaussians=GAUSSIANS, uniform_steps=20)
    net = nn.Sequential(layer, nn.Linear(CODE, GAUSSIANS))
    model, criterion = Regularized(net), ibreg.Penalized(nn.CrossEntropyLoss())
    others = [p for p in net.parameters() if p is not layer.centroids]
    optimizer = torch.optim.Adam([{"params": others}, {"params": [layer.centroids], "lr": 1e-1}], lr=1e-2)
    for _ in range(150):
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    near = ibreg.uncertainty(net, x)
    far = ibreg.uncertainty(net, x.roll(3, 1) * 3)
    assert (near.output.argmax(1) == y).float().mean() > 0.95
    assert (far.uncertainty.unsqueeze(1) > near.uncertainty).float().mean() > 0.9  # the area under the ROC curve


def test_wrong_options_and_models_say_what_is_valid():
    with pytest.raises(
        ValueError, match=r"gaussians must be an integer of at least 1 [(]number of Gaussians[)], got 0"
    ):
        DistanceAwareBottleneck(4, gaussians=0)
    with pytest.raises(ValueError, match="temperature must be a finite number of at least 0, got -1"):
        DistanceAwareBottleneck(4, temperature=-1)
    with pytest.raises(
        ValueError, match=r"uniform_steps must be an integer of at least 0 \(number of first training batches\)"
    ):
        DistanceAwareBottleneck(4, uniform_steps=-1)
    with pytest.raises(ValueError, match="uncertainty needs a DistanceAwareBottleneck that the model calls"):
        ibreg.uncertainty(nn.Linear(2, 2), torch.zeros(3, 2))
