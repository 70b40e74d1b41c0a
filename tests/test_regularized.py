"""`Regularized`, `Penalized` and `predict`: what they promise, sentence by sentence."""

import copy
import inspect
import threading
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import ibreg
from ibreg import Bottleneck, Penalized, Regularized, RegularizedOutput, VariationalBottleneck, predict
from ibreg.layers.scope import current_scope
from ibreg.prediction import predict_samples
from ibreg.regularized import DrawnOutput

FEATURES, CLASSES, BATCH = 4, 3, 6


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Spy(Bottleneck):
    """Charges the batch mean of the squares, draws nothing, and remembers the scopes that its penalty saw."""

    sized = False

    def __init__(self, in_features=None, *, beta=1.0, dim=None, device=None):
        super().__init__(in_features, beta=beta, dim=dim, device=device)
        self.seen = []

    def transform(self, x, scope=None):
        return x, x

    def penalty(self, state, scope):
        self.seen.append(scope)
        penalty = state.square().flatten(1).sum(1).mean()
        return penalty, {"squares": penalty}


class Greedy(Spy):
    """Needs everything."""

    @property
    def needs(self):
        return "inputs", "target", "concepts"


class Tokens(nn.Module):
    """A transformer encoder with a bottleneck behind it."""

    def __init__(self, layer):
        super().__init__()
        block = nn.TransformerEncoderLayer(FEATURES, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        self.layer = layer

    def forward(self, x, mask=None):
        return self.layer(self.encoder(x, src_key_padding_mask=None if mask is None else ~mask))


def mlp(*layers, out=CLASSES):
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), *(layers or [VariationalBottleneck(5)]), nn.Linear(5, out))


def batch(size=BATCH):
    return torch.randn(size, FEATURES), torch.arange(size) % CLASSES


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_close(left, right, **tolerance):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# ---- what comes out


@pytest.mark.parametrize("training", [True, False])
def test_same_type_in_training_and_evaluation(training):
    x, _ = batch()
    out = Regularized(mlp()).train(training)(x)
    assert type(out) is RegularizedOutput
    assert out.output.shape == (BATCH, CLASSES)
    assert (out.penalty.shape, out.penalty.dtype) == ((), torch.float32)
    assert out.penalty.requires_grad is training
    assert bool(out.penalty > 0) is training
    assert sorted(out.logs) == ["2/active_units", "2/rate"]
    assert all(value.shape == () and not value.requires_grad for value in out.logs.values())


def test_penalty_is_the_sum_of_beta_times_penalty():
    net = mlp(Spy(beta=0.5), Spy(beta=0.25))
    x, _ = batch()
    squares = net[1](net[0](x)).square().sum(1).mean()
    _, penalty, logs = Regularized(net)(x)
    torch.testing.assert_close(penalty, 0.75 * squares)
    assert list(logs) == ["2/squares", "3/squares"]
    net[2].beta.fill_(2)
    torch.testing.assert_close(Regularized(net)(x).penalty, 2.25 * squares)


def test_logs_are_averaged_over_calls_and_penalties_added():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Spy(beta=0.5)

        def forward(self, x):
            return self.layer(x) + self.layer(2 * x)

    x, _ = batch()
    squares = x.square().sum(1).mean()
    _, penalty, logs = Regularized(Two())(x)
    torch.testing.assert_close(penalty, 0.5 * (squares + 4 * squares))
    torch.testing.assert_close(logs, {"layer/squares": (squares + 4 * squares) / 2})


def test_evaluation_penalizes_nothing_moves_nothing_and_logs():
    net = mlp()
    x, _ = batch()
    before = copy.deepcopy(net.state_dict())
    first, second = (Regularized(net).eval()(x) for _ in range(2))
    assert first.penalty == second.penalty == 0
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.output, net(x))
    assert first.logs["2/rate"] > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    # Gradients of the output are there: attacks need them.
    x.requires_grad_()
    Regularized(net).eval()(x).output.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_a_bottleneck_that_is_the_whole_model(compiled):
    model = Regularized(VariationalBottleneck(FEATURES, 2))
    x, _ = batch()
    if compiled:
        torch._dynamo.reset()
        model = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert sorted(model(x).logs) == ["VariationalBottleneck/active_units", "VariationalBottleneck/rate"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
@pytest.mark.parametrize("part", ["", "1", "1.1"])
def test_a_model_that_is_compiled_in_parts_still_leaves_its_penalty(part):
    net = nn.Sequential(nn.Linear(FEATURES, 5), nn.Sequential(nn.ReLU(), VariationalBottleneck(5)), nn.Linear(5, 2))
    x, _ = batch()
    expected = Regularized(net)(x)
    torch._dynamo.reset()
    net.get_submodule(part).compile(backend="aot_eager")
    for _ in range(2):
        out = Regularized(net)(x)
        torch.testing.assert_close(out.penalty, expected.penalty)
        torch.testing.assert_close(out.logs, expected.logs)
    out.penalty.backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own
def test_a_graph_of_a_network_without_bottleneck_in_place_of_one_with_is_told():
    """Newer Dynamos do not guard hooks: whoever compiles the network, not its wrapper, has to hear of it."""
    torch._dynamo.reset()
    plain, net = (nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(2))
    x, _ = batch()
    plain.compile(backend="eager")
    plain(x)
    ibreg.inject(net, {"1": VariationalBottleneck(5)})
    wrapped = Regularized(net)
    wrapped.compile(backend="eager")
    assert wrapped(x).penalty > 0
    net.compile(backend="eager")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        charged = Regularized(net)(x).penalty > 0
    assert charged or any("1.bottleneck was not called" in str(each.message) for each in told)
    torch._dynamo.reset()
    assert Regularized(net)(x).penalty > 0


# ---- what goes in


def test_the_scope_holds_what_the_caller_hands_over():
    layer = Greedy()
    model = Regularized(mlp(layer))
    x, y = batch()
    concepts, inputs = torch.rand(BATCH, 2), torch.rand(BATCH, 9)
    mask = torch.ones(BATCH, 7)
    model(x, target=y, concepts=concepts, inputs=inputs, mask=mask)
    (scope,) = layer.seen
    assert (scope.target is y, scope.concepts is concepts, scope.inputs is inputs, scope.mask is mask) == (True,) * 4
    model(x, target=y, concepts=concepts)
    assert layer.seen[-1].inputs is x


def test_inputs_default_to_the_first_positional_tensor():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Spy()

        def forward(self, flag, x):
            return self.layer(x)

    model = Regularized(Named())
    x, _ = batch()
    model("flag", x)
    model("flag", x=x)
    assert [scope.inputs is x for scope in model.model.layer.seen] == [True, False]
    assert model.model.layer.seen[1].inputs is None


def test_missing_values_are_an_error_that_says_what_to_pass():
    model = Regularized(mlp(Greedy()))
    x, y = batch()
    with pytest.raises(
        ValueError, match=r"bottleneck 2 needs target and concepts: call model\(x, target=\.\.\., concepts="
    ):
        model(x)
    with pytest.raises(ValueError, match=r"bottleneck 2 needs concepts: call model\(x, concepts=\.\.\.\)"):
        model(x, target=y)
    with torch.no_grad():
        assert model(x).penalty == 0
    out = model.eval()(x)
    assert (out.penalty, out.logs) == (0, {})


def test_keywords_that_the_model_declares_go_to_it_too():
    class Curious(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Spy()

        def forward(self, x, target=None, mask=None, *, scale=1.0):
            self.got = target, mask
            return self.layer(x) * scale

    model = Regularized(Curious())
    x, y = batch()
    out = model(x, target=y, concepts=y, inputs=x, scale=2.0)
    assert model.model.got[0] is y
    assert model.model.got[1] is None
    assert torch.equal(out.output, 2 * x)
    with pytest.raises(TypeError, match="unexpected keyword"):
        model(x, scales=2.0)


def test_the_attention_mask_of_a_transformer_is_not_the_padding_mask():
    block = nn.TransformerEncoderLayer(FEATURES, 2, 8, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
    ibreg.inject(encoder, {"layers.0": VariationalBottleneck(FEATURES)})
    x = torch.randn(2, 5, FEATURES)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    assert "mask" in inspect.signature(encoder.forward).parameters
    model = Regularized(encoder)
    torch.manual_seed(1)
    out = model(x, mask=mask, src_key_padding_mask=~mask)
    torch.manual_seed(1)
    assert torch.equal(out.output, model(x, src_key_padding_mask=~mask).output)
    assert out.penalty < model(x, src_key_padding_mask=~mask).penalty


def test_mask_leaves_padding_out_of_the_rate():
    model = Regularized(Tokens(VariationalBottleneck(FEATURES, beta=1.0)))
    lengths = [5, 3, 1]
    x = torch.randn(3, 5, FEATURES)
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    padded = model(x, mask=mask)
    alone = [model(x[i : i + 1, :length]) for i, length in enumerate(lengths)]
    torch.testing.assert_close(padded.penalty, torch.stack([out.penalty for out in alone]).mean())
    torch.testing.assert_close(padded.logs["layer/rate"], torch.stack([out.logs["layer/rate"] for out in alone]).mean())


# ---- draws


def test_draws_are_unfolded_and_repeat_what_stands_behind():
    first, behind = VariationalBottleneck(5), Greedy()
    net = mlp(Spy(), first, behind, VariationalBottleneck(5))
    model = Regularized(net, draws=3)
    x, y = batch()
    sizes = []
    net[0].register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    net[-1].register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    concepts = {"a": torch.rand(BATCH, 2)}
    out = model(x, target=y, concepts=concepts)
    assert isinstance(out, DrawnOutput)
    assert out.output.shape == (3, BATCH, CLASSES)
    assert sizes == [BATCH, 3 * BATCH]
    assert not torch.equal(out.output[0], out.output[1])

    (scope,) = behind.seen
    assert torch.equal(scope.inputs, x.repeat(3, 1))
    assert torch.equal(scope.target, y.repeat(3))
    assert torch.equal(scope.concepts["a"], concepts["a"].repeat(3, 1))
    assert scope.mask is None
    (scope,) = net[2].seen
    assert scope.target is y

    assert type(model.eval()(x)) is RegularizedOutput
    assert model(x).output.shape == (BATCH, CLASSES)


def test_draw_n_of_a_sample_is_that_sample():
    net = nn.Sequential(VariationalBottleneck(FEATURES, start="identity"), nn.Identity())
    x = 100 * torch.arange(BATCH * FEATURES).reshape(BATCH, FEATURES).float()
    out = Regularized(net, draws=4)(x).output
    assert (out - x).abs().max() < 1


def test_the_rate_does_not_depend_on_the_number_of_draws():
    net = mlp()
    x, _ = batch()
    torch.testing.assert_close(Regularized(net, draws=5)(x).penalty, Regularized(net)(x).penalty)


def test_a_conditional_bottleneck_after_the_samples_sees_its_own_targets():
    conditional = VariationalBottleneck(5, prior="conditional", classes=CLASSES, beta=1.0)
    nn.init.normal_(conditional.prior_mean, std=3)
    net = mlp(VariationalBottleneck(5, start="identity", beta=0.0), conditional)
    x, y = batch()
    model = Regularized(net, draws=4)
    codes = []
    handle = conditional.register_forward_pre_hook(lambda module, args: codes.append(args[0]))
    penalty = model(x, target=y).penalty
    handle.remove()
    expected = [conditional.measure(code, target=y).penalty for code in codes[0].unflatten(0, (4, -1))]
    torch.testing.assert_close(penalty, torch.stack(expected).mean())


def test_mask_is_repeated_for_what_stands_behind():
    net = nn.Sequential(
        VariationalBottleneck(FEATURES, start="identity", beta=0.0), Spy(), VariationalBottleneck(FEATURES)
    )
    x = torch.randn(2, 5, FEATURES)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    out = Regularized(net, draws=3)(x, mask=mask)
    assert out.output.shape == (3, 2, 5, FEATURES)
    assert torch.equal(net[1].seen[0].mask, mask.repeat(3, 1))


@pytest.mark.parametrize("kind", ["tuple", "dict", "nested"])
def test_draws_unfold_tuples_and_dicts(kind):
    class Structured(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = VariationalBottleneck(FEATURES)

        def forward(self, x):
            z = self.layer(x)
            pair = z, z.sum(1)
            return {"tuple": pair, "dict": {"label": "name", "logits": z}, "nested": [{"pair": pair}]}[kind]

    x, y = batch()
    output = Regularized(Structured(), draws=2)(x).output
    logits = {"tuple": lambda o: o[0], "dict": lambda o: o["logits"], "nested": lambda o: o[0]["pair"][0]}[kind]
    assert logits(output).shape == (2, BATCH, FEATURES)
    if kind == "dict":
        assert output["label"] == "name"
    # The task loss sees one draw at a time, in the structure that the model returns.
    out = RegularizedOutput.__new__(DrawnOutput, output, torch.tensor(0.5), {})
    loss = Penalized(lambda output, target: F.cross_entropy(logits(output), target))(out, y)
    expected = torch.stack([F.cross_entropy(draw, y) for draw in logits(output)]).mean() + 0.5
    torch.testing.assert_close(loss, expected)


def test_draws_need_a_stochastic_bottleneck():
    with pytest.raises(ValueError, match=r"draws=2 needs a stochastic bottleneck, the model has Spy\("):
        Regularized(mlp(Spy()), draws=2)
    with pytest.raises(ValueError, match="draws must be an integer of at least 1, got 0"):
        Regularized(mlp(), draws=0)
    net = mlp()
    model = Regularized(net, draws=2)
    net[2].eval()
    with pytest.warns(UserWarning, match="is in eval mode"), pytest.raises(RuntimeError, match="ran in training mode"):
        model(batch()[0])


def test_draws_inside_an_activation_checkpoint_are_refused():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    with pytest.raises(RuntimeError, match=r"bottleneck net\.2 takes 2 samples of each row inside an activation check"):
        Regularized(Checkpointed(), draws=2)(batch()[0])


# ---- errors and warnings


def test_no_bottleneck():
    with pytest.raises(ValueError, match=r"there is no bottleneck in the model: put one in, ibreg\.inject"):
        Regularized(nn.Linear(2, 2))
    model = Regularized(ibreg.inject(nn.Sequential(nn.Linear(FEATURES, 5)), {"0": VariationalBottleneck(5)}))
    ibreg.eject(model)
    with pytest.raises(ValueError, match="there is no bottleneck"):
        model(batch()[0])


def test_nesting():
    for model in (Regularized(mlp()), nn.Sequential(Regularized(mlp()))):
        with pytest.raises(ValueError, match="is, or contains, a Regularized already"):
            Regularized(model)


def test_warns_once_and_by_name_of_a_bottleneck_that_was_not_called():
    net = mlp()
    net.add_module("idle", nn.Identity())
    net.idle.layer = Spy()
    model = Regularized(net)
    x, _ = batch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.eval()(x)
        model.train()
        model(x)
        model(x)
    (warning,) = caught
    assert str(warning.message).startswith(
        "bottleneck idle.layer was not called: check that its host is called as a module"
    )
    assert warning.filename == __file__


def test_warns_once_and_by_name_of_a_bottleneck_left_in_eval():
    net = mlp(VariationalBottleneck(5), Spy())
    model = Regularized(net)
    net[3].eval()
    x, _ = batch()
    with pytest.warns(UserWarning, match="bottleneck 3 is in eval mode while the model trains") as caught:
        out = model(x)
    assert caught[0].filename == __file__
    torch.testing.assert_close(out.penalty, 1e-3 * out.logs["2/rate"])
    model(x)


def test_exceptions_leave_no_scope_open():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Spy()

        def forward(self, x, fail=True):
            x = self.layer(x)
            if fail:
                raise KeyError("mine")
            return x

    model = Regularized(Broken())
    x, _ = batch()
    with pytest.raises(KeyError, match="mine"):
        model(x)
    assert current_scope() is None
    assert model(x, fail=False).penalty == x.square().sum(1).mean()
    with pytest.warns(UserWarning, match="without its penalty"):
        model.model.layer(x)


def test_nan_names_the_layer():
    x, _ = batch()
    x[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="bottleneck 2 got NaN or infinite values in its input"):
        Regularized(mlp())(x)
    assert current_scope() is None


def test_threads_do_not_mix_their_scopes():
    meeting = threading.Barrier(2, timeout=30)

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Spy()

        def forward(self, x):
            meeting.wait()
            x = self.layer(x)
            meeting.wait()
            return self.layer(x)

    model = Regularized(Meeting())
    results = {}

    def run(scale):
        results[scale] = model(torch.full((2, 2), scale), target=torch.tensor([scale])).penalty.item()

    threads = [threading.Thread(target=run, args=(scale,)) for scale in (1.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {1.0: 4.0, 3.0: 36.0}
    assert all(torch.equal(scope.target, scope.inputs[:1, 0]) for scope in model.model.layer.seen)


# ---- Penalized


def test_penalized_adds_the_penalty_and_takes_bare_tensors():
    criterion = Penalized(nn.CrossEntropyLoss())
    x, y = batch()
    out = Regularized(mlp())(x)
    torch.testing.assert_close(criterion(out, y), F.cross_entropy(out.output, y) + out.penalty)
    torch.testing.assert_close(criterion(out.output, y), F.cross_entropy(out.output, y))


def test_penalized_takes_the_mean_over_draws():
    x, y = batch()
    out = Regularized(mlp(), draws=3)(x)
    expected = sum(F.cross_entropy(draw, y) for draw in out.output) / 3 + out.penalty
    torch.testing.assert_close(Penalized(nn.CrossEntropyLoss())(out, y), expected)


@pytest.mark.parametrize("draws", [1, 3])
def test_penalized_passes_inputs_to_losses_that_need_them(draws):
    class Reconstruction(nn.Module):
        needs_inputs = True

        def forward(self, output, target, inputs):
            assert output.shape[0] == inputs.shape[0] == BATCH
            return F.mse_loss(output, inputs)

    x, y = batch()
    out = Regularized(mlp(out=FEATURES), draws=draws)(x)
    output = out.output if draws > 1 else out.output.unsqueeze(0)
    expected = torch.stack([F.mse_loss(one, x) for one in output]).mean() + out.penalty
    torch.testing.assert_close(Penalized(Reconstruction())(out, y, x), expected)
    with pytest.raises(ValueError, match=r"needs the inputs: call criterion\(output, target, inputs\)"):
        Penalized(Reconstruction())(out, y)
    plain = Penalized(nn.CrossEntropyLoss())
    torch.testing.assert_close(plain(out, y, x), plain(out, y))


# ---- training loops


def trained(model, batches, scale=1.0):
    """Gradients of the mean loss over batches, accumulated."""
    model.zero_grad()
    for x, y in batches:
        (Penalized(nn.CrossEntropyLoss())(model(x, target=y), y) * scale / len(batches)).backward()
    return gradients(model)


def noiseless(**options):
    """A network whose noise is too small for float32 to see, with a rate that is charged all the same."""
    layer = VariationalBottleneck(5, beta=0.1, **options)
    nn.init.constant_(layer.encoder.bias.data[5:], -100.0)
    nn.init.zeros_(layer.encoder.weight.data[5:])
    return mlp(layer)


@pytest.mark.parametrize("options", [{}, {"prior": "conditional", "classes": CLASSES}], ids=["standard", "conditional"])
def test_accumulation_over_four_batches_equals_the_large_one(options):
    model = Regularized(noiseless(**options))
    x, y = batch(24)
    whole = trained(model, [(x, y)])
    parts = trained(model, list(zip(x.chunk(4), y.chunk(4), strict=True)))
    assert_close(parts, whole)
    assert all(gradient.abs().sum() > 0 for gradient in whole)


def test_two_forwards_before_one_backward():
    net = mlp()
    model = Regularized(net)
    criterion = Penalized(nn.CrossEntropyLoss())
    pairs = [batch(), batch()]
    separate = []
    for seed, (x, y) in enumerate(pairs):
        torch.manual_seed(seed)
        model.zero_grad()
        criterion(model(x), y).backward()
        separate.append(gradients(model))
    model.zero_grad()
    losses = []
    for seed, (x, y) in enumerate(pairs):
        torch.manual_seed(seed)
        losses.append(criterion(model(x), y))
    sum(losses).backward()
    assert_close(gradients(model), [a + b for a, b in zip(*separate, strict=True)])


def test_beta_may_move_between_forward_and_backward():
    net = mlp()
    model = Regularized(net)
    x, y = batch()
    gradients_ = []
    for moved in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        loss = Penalized(nn.CrossEntropyLoss())(model(x), y)
        if moved:
            net[2].beta.fill_(100)
        loss.backward()
        gradients_.append(gradients(model))
    assert_close(*gradients_)


def test_a_scaled_loss_has_scaled_gradients():
    model = Regularized(noiseless())
    data = [batch()]
    assert_close(trained(model, data, scale=2.0**10), [2.0**10 * gradient for gradient in trained(model, data)])


def test_grad_scaler():
    model = Regularized(noiseless())
    x, y = batch()
    expected = trained(model, [(x, y)])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = Penalized(nn.CrossEntropyLoss())(model(x), y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert_close(gradients(model), expected, rtol=0.02, atol=5e-3)
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_models_that_return_their_own_loss():
    @dataclass
    class Output:
        loss: torch.Tensor
        logits: torch.Tensor

    class Hosted(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.net = mlp(VariationalBottleneck(5, prior="conditional", classes=CLASSES))
            self.kind = kind

        def forward(self, pixel_values=None, labels=None):
            logits = self.net(pixel_values)
            return self.kind(loss=F.cross_entropy(logits, labels), logits=logits)

    x, y = batch()
    for kind in (Output, dict):
        model = Regularized(Hosted(kind))
        result = model(pixel_values=x, labels=y, target=y)
        loss = result.output["loss"] if kind is dict else result.output.loss
        assert type(result.output) is kind
        (loss + result.penalty).backward()
        assert all(gradient.abs().sum() > 0 for gradient in gradients(model))


# ---- predict


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_predict_without_draws_is_the_network_in_evaluation(wrapped, training):
    net = mlp(VariationalBottleneck(5), nn.Dropout(), nn.BatchNorm1d(5))
    model = (Regularized(net) if wrapped else net).train(training)
    net[3].eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(net.state_dict())
    x, _ = batch()
    measured = [predict(model, x), predict(model, x, draws=3)]
    with torch.no_grad():
        measured.append(predict_samples(model, x, draws=2))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(output.requires_grad for output in measured)
    net.eval()
    assert torch.equal(measured[0], net(x))


def test_modes_come_back_after_an_error():
    net = mlp()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(net, torch.zeros(2, FEATURES + 1), draws=2)
    assert all(module.training for module in net.modules())
    assert current_scope() is None


def test_predict_follows_its_seed_and_leaves_the_global_generator_alone():
    net = mlp(VariationalBottleneck(5, start="identity"))
    x, _ = batch()
    state = torch.get_rng_state()
    first, again, other = (predict(net, x, draws=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    predict(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(predict(net, x, draws=4), predict(net, x, draws=4))


def test_predict_averages_probabilities_of_classes_and_outputs_of_one_column():
    x, _ = batch()
    net = mlp(VariationalBottleneck(5, start="identity"))
    outputs = predict_samples(net, x, draws=5, seed=3)
    assert outputs.shape == (5, BATCH, CLASSES)
    probabilities = predict(net, x, draws=5, seed=3)
    torch.testing.assert_close(probabilities, outputs.softmax(-1).mean(0))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(BATCH))
    torch.testing.assert_close(predict(net, x, draws=5, seed=3, mean="output"), outputs.mean(0))

    regression = mlp(VariationalBottleneck(5, start="identity"), out=1)
    expected = predict_samples(regression, x, draws=5, seed=3).mean(0)
    torch.testing.assert_close(predict(regression, x, draws=5, seed=3), expected)
    flat = nn.Sequential(regression, nn.Flatten(0))
    torch.testing.assert_close(predict(flat, x, draws=5, seed=3), expected.flatten())
    assert predict(regression, x, draws=5, seed=3, mean="softmax").unique().tolist() == [1.0]


def test_a_dropout_inside_a_drawing_bottleneck_stays_off():
    class Noisy(Spy):
        stochastic = True

        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def transform(self, x, scope=None):
            draws = scope.claim_draws(self) if scope is not None and self.training else 1
            x = self.dropout(x).repeat(draws, 1)
            return x, x

    x, _ = batch()
    assert torch.equal(predict_samples(nn.Sequential(Noisy()), x, draws=2), torch.stack([x, x]))


def test_predict_draws_from_every_stochastic_bottleneck():
    net = mlp(VariationalBottleneck(5, start="identity"), VariationalBottleneck(5, start="identity"))
    x, _ = batch()
    net[2].encoder.bias.data[5:] = -100.0  # the first draws its mean: what varies is the second's noise
    assert (predict_samples(net, x, draws=3, seed=0).std(0) > 0).all()


def test_predict_needs_no_targets():
    net = mlp(VariationalBottleneck(5, prior="conditional", classes=CLASSES))
    assert predict(net, batch()[0], draws=2, seed=0).shape == (BATCH, CLASSES)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (mlp, {"draws": -1}, r"draws must be an integer of at least 0 \(number of Monte Carlo samples\), got -1"),
        (lambda: mlp(Spy()), {"draws": 2}, "draws=2 needs a stochastic bottleneck"),
        (lambda: nn.Linear(FEATURES, 2), {"draws": 2}, "draws=2 needs a stochastic bottleneck"),
        (mlp, {"draws": 2, "mean": "median"}, "mean must be None or one of 'softmax', 'output', got 'median'"),
        (mlp, {"mean": "median"}, "mean must be None or one of 'softmax', 'output', got 'median'"),
    ],
)
def test_predict_refuses(net, options, message):
    with pytest.raises(ValueError, match=message):
        predict(net(), batch()[0], **options)


def test_predict_looks_inside_wrappers():
    net = mlp()
    x, _ = batch()
    expected = predict(net, x)
    average = torch.optim.swa_utils.AveragedModel(Regularized(net))
    compiled = torch.compile(Regularized(net), backend="eager")
    assert torch.equal(predict(average, x), expected)
    assert torch.equal(predict(compiled, x), expected)
