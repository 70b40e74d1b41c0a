"""What code around a bottleneck may rely on: layout, modes, wrappers, states, and several samples of each input."""

import math

import pytest
import torch
from torch import nn

import ibreg
from ibreg import Regularized, VariationalBottleneck, predict
from ibreg.prediction import predict_samples
from ibreg.schedules import PatienceGate, TargetRate


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("host", "x"),
    [
        (nn.Conv2d(1, 6, 3), torch.randn(2, 1, 8, 8)),
        (nn.Linear(4, 6), torch.randn(2, 5, 4)),
        (nn.Linear(4, 6), torch.randn(1, 4)),
        (nn.LSTM(4, 6), torch.randn(5, 2, 4)),
        (nn.LSTM(4, 6, batch_first=True), torch.randn(2, 5, 4)),
    ],
)
def test_the_output_can_be_viewed_and_changed_in_place_like_that_of_the_host(host, x, training):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.host = host

        def forward(self, x):
            h = self.host(x)
            h = h[0] if isinstance(h, tuple) else h
            return h.relu_().view(h.size(0), -1)

    net = Net().train(training)
    ibreg.inject(net, {"host": VariationalBottleneck(6)})
    try:
        Regularized(net).train(training)(x).output.sum().backward()
        if not training:
            net(x).sum().backward()
    finally:
        ibreg.eject(net)


def test_channels_last_maps_keep_their_memory_format():
    x = torch.randn(2, 6, 4, 4).to(memory_format=torch.channels_last)
    assert VariationalBottleneck(6).eval()(x).is_contiguous(memory_format=torch.channels_last)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = VariationalBottleneck(4)

    def forward(self, x, mask=None):
        h = self.layer(x)
        return h.mean(1) if mask is None else (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def test_keywords_reach_a_model_that_was_compiled_first():
    net, x, mask = Masked().eval(), torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(Regularized(compiled).eval()(x, mask=mask).output, net(x, mask=mask))


def test_a_mask_with_values_other_than_0_and_1_is_an_error():
    additive = torch.tensor([[0.0, -1e4], [0.0, 0.0]])
    with pytest.raises(RuntimeError, match="a mask must be 1 where a position counts"):
        VariationalBottleneck(4).measure(torch.randn(2, 2, 4), mask=additive)


def test_evaluating_the_network_inside_is_enough():
    net = nn.Sequential(nn.Linear(4, 4), VariationalBottleneck(4))
    model = Regularized(net, draws=3)
    net.eval()
    x = torch.randn(5, 4)
    output = model(x)
    assert output.penalty == 0
    assert torch.equal(output.output, net(x))


class Module(nn.Module):
    """Holds the wrapper as an attribute, as a LightningModule does."""

    def __init__(self, net):
        super().__init__()
        self.model = Regularized(net)


def test_a_module_that_holds_the_wrapper_is_unwrapped(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), VariationalBottleneck(4))
    module, x = Module(net), torch.randn(5, 4)
    assert list(ibreg.bottlenecks(module)) == ["1"]
    schedule = TargetRate(module, 1.0)
    before = float(net[1].beta)
    schedule.step(module.model(x))
    assert float(net[1].beta) != before
    assert torch.equal(predict(module, x), net.eval()(x))
    assert predict(module, x, draws=4, seed=0).shape == (5, 4)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 4), VariationalBottleneck(4))

    def forward(self, x):
        return x + self.branch(x)


@pytest.mark.parametrize("batch", [1, 3])
def test_samples_of_a_bottleneck_in_a_residual_branch(batch):
    net, x = Residual(), torch.randn(batch, 4)
    nn.init.constant_(net.branch[1].encoder.bias.data[4:], 1.0)
    outputs = predict_samples(net, x, draws=2000, seed=0)
    assert outputs.shape == (2000, batch, 4)
    assert torch.equal(outputs, predict_samples(net, x, draws=2000, seed=0))
    torch.testing.assert_close(outputs.mean(0), net.eval()(x), atol=0.15, rtol=0)
    assert (outputs.std(0) > 0.5).all()


def test_several_training_samples_in_a_residual_branch_fail_with_a_reason():
    with pytest.raises(RuntimeError) as caught:
        Regularized(Residual(), draws=3)(torch.randn(5, 4))
    assert "main path" in caught.value.__notes__[0]


def test_only_what_grew_with_the_batch_is_unfolded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = VariationalBottleneck(4)
            self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True)

        def forward(self, x):
            out, (h, _) = self.lstm(self.layer(x))
            return out, h, out.mean()

    out, h, mean = Regularized(Net(), draws=3)(torch.randn(6, 7, 4)).output
    assert out.shape == (3, 6, 7, 5)
    assert h.shape == (2, 18, 5)
    assert mean.shape == ()


def test_predict_has_to_be_told_what_the_output_of_a_sequence_is():
    net, x = nn.Sequential(VariationalBottleneck(4), nn.Linear(4, 3)), torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match=r"mean must be 'softmax' .* or 'output' for an output of shape"):
        predict(net, x, draws=2)
    assert predict(net, x, draws=2, mean="output").shape == (2, 5, 3)


def test_the_gate_restores_the_beta_that_another_schedule_set():
    net = nn.Sequential(nn.Linear(4, 4), VariationalBottleneck(4))
    model, gate = Regularized(net), PatienceGate(net, patience=1)
    target = TargetRate(net, 1.0)
    target.step(model(torch.randn(5, 4)))
    moved = net[1].beta.clone()
    assert moved != net[1].initial_beta
    gate.step(task_loss=1.0)
    assert net[1].beta == moved
    gate.step(task_loss=1.0)
    assert net[1].beta == 0
    twin = PatienceGate(net, patience=1)
    twin.load_state_dict(gate.state_dict())
    twin.step(task_loss=0.5)
    assert net[1].beta == moved


def test_weights_of_another_objective_are_not_loaded(tmp_path):
    def network(**options):
        return nn.Sequential(nn.Linear(4, 4), VariationalBottleneck(4, **options))

    path = tmp_path / "saved.safetensors"
    ibreg.save_bottlenecks(network(alpha=0.0, lagrangian="exponential", beta=0.5), path)
    plain = network()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match="lagrangian, alpha differ"):
        ibreg.load_bottlenecks(plain, path)
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    same = network(alpha=0.0, lagrangian="exponential")
    ibreg.load_bottlenecks(same, path)
    assert same[1].beta == same[1].initial_beta == 0.5


@pytest.mark.parametrize("rows", [torch.ones(5, 3), torch.zeros(5, 3), torch.randn(5, 3)])
def test_soft_targets_that_are_not_probabilities_are_an_error(rows):
    layer = VariationalBottleneck(4, prior="conditional", classes=3)
    with pytest.raises(RuntimeError, match="class probabilities"):
        layer.measure(torch.randn(5, 4), target=rows)


def test_ignored_samples_are_left_out_with_a_label_for_each_sample_or_each_position():
    layer, x = VariationalBottleneck(4, prior="conditional", classes=3), torch.randn(6, 5, 4)
    nn.init.normal_(layer.prior_mean)
    target = torch.tensor([0, -100, 2, -100, 1, -100])
    once = layer.measure(x, target=target)
    by_position = layer.measure(x, target=target[:, None].expand(6, 5))
    torch.testing.assert_close(once.logs["rate"], by_position.logs["rate"])
    torch.testing.assert_close(once.logs["rate"], layer.measure(x[::2], target=target[::2]).logs["rate"])


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_inputs_must_be_floating_point(dtype):
    with pytest.raises(ValueError, match="takes a floating-point tensor"):
        VariationalBottleneck(4)(torch.ones(2, 4, dtype=dtype))


@pytest.mark.parametrize("wrong", ["1e-3", None, math.nan])
def test_beta_is_a_number(wrong):
    with pytest.raises(ValueError, match="beta must be a finite number of at least 0"):
        VariationalBottleneck(4, beta=wrong)
