"""The contract of every registered bottleneck: a new one enters by its registration, with a row below if needed."""

import copy
import inspect
import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import ibreg
from ibreg import registry

FEATURES, CLASSES, BATCH, CONCEPTS = 6, 3, 8, 3
CONFIGS = Path(__file__).parent.parent / "configs" / "bottleneck"

# As many concepts of other kinds.
GROUP = [{"name": "parity", "values": ["even", "odd"]}, "large"]
KINDS = [{"name": "parity", "values": ["even", "odd"]}, {"name": "size", "kind": "continuous", "weight": 0.5}]

# The settings that each bottleneck is tested with; a name without a row is tested with its defaults.
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
        # What stands before the layer learns in these tests.
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
# Those whose estimator needs more than one sample: a batch of one is an error that says so.
NEEDS_MORE_SAMPLES = {"cauchy_schwarz", "hsic"}

CASES = [
    pytest.param(name, options, id=f"{name}-{row}")
    for name in ibreg.names()
    for row, options in ROWS.get(name, {"default": {}}).items()
]
every_case = pytest.mark.parametrize(("name", "options"), CASES)
every_name = pytest.mark.parametrize("name", ibreg.names())
RANKS = pytest.mark.parametrize("shape", [(BATCH, FEATURES), (BATCH, 5, FEATURES), (BATCH, FEATURES, 3, 2)], ids=len)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def build(name, options, **further):
    return ibreg.build(name, in_features=FEATURES, **options, **further)


def build_first(name):
    """The bottleneck with the first row of its settings."""
    return build(name, next(iter(ROWS.get(name, {"default": {}}).values())))


def code_features(layer):
    return getattr(layer, "out_features", None) or FEATURES


def needed(layer, batch=BATCH):
    """What a caller hands over beside the input, for layers that need it."""
    values = {
        "target": torch.arange(batch) % CLASSES,
        "concepts": (torch.arange(batch).unsqueeze(1) % torch.tensor([2, 3, 4]) == 0).float(),
        "inputs": torch.linspace(-1, 1, batch * 4).reshape(batch, 4),
    }
    return {need: values[need] for need in layer.needs}


def network(layer):
    return nn.Sequential(nn.Linear(FEATURES, FEATURES), layer, nn.Linear(code_features(layer), 2))


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


# ---- shapes, modes, gradients


@every_case
@RANKS
def test_shape_type_and_mode(name, options, shape):
    layer, x = build(name, options), torch.randn(shape, requires_grad=True)
    expected = list(shape)
    expected[layer.feature_axis(x)] = code_features(layer)
    out = layer.measure(x, **needed(layer))
    assert list(out.z.shape) == expected
    assert (out.penalty.shape, out.penalty.dtype) == ((), torch.float32)
    assert out.penalty.requires_grad
    for value in out.logs.values():
        assert value.shape == ()
        assert not value.requires_grad

    before = tensors(layer.eval())
    first, second = (layer.measure(x, **needed(layer)) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert torch.equal(first.z, layer(x))
    assert list(first.z.shape) == expected
    assert first.penalty.item() == second.penalty.item() == 0
    assert not first.penalty.requires_grad
    assert first.logs.keys() == out.logs.keys()
    assert_equal(list(before.values()), list(tensors(layer).values()))


@every_case
def test_targets_are_optional_outside_training(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    model.eval()
    assert model(x).penalty == 0
    model.train()
    with torch.no_grad():
        assert torch.isfinite(model(x).penalty)


@every_case
@RANKS
def test_every_parameter_gets_a_gradient(name, options, shape):
    layer = build(name, options)
    out = layer.measure(torch.randn(shape, requires_grad=True), **needed(layer))
    ((out.z - 1).square().mean() + out.penalty).backward()  # a code may start at 0, where a square has no slope
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


AWKWARD = {
    "constant": torch.ones(BATCH, FEATURES),
    "zero": torch.zeros(BATCH, FEATURES),
    "duplicated": torch.linspace(-2, 2, FEATURES * 2).reshape(2, FEATURES).repeat(BATCH // 2, 1),
    "large": 1e4 * torch.linspace(-2, 2, BATCH * FEATURES).sin().reshape(BATCH, FEATURES),
    "small": 1e-4 * torch.linspace(-2, 2, BATCH * FEATURES).sin().reshape(BATCH, FEATURES),
}


@every_case
@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.filterwarnings("ignore:the rate of bottleneck .* is above 0.98 of log")
@pytest.mark.filterwarnings("ignore:by the kernel of bottleneck .* of a batch are all")
def test_awkward_inputs_stay_finite(name, options, kind):
    layer = build(name, options)
    x = AWKWARD[kind].clone().requires_grad_()
    out = layer.measure(x, **needed(layer))
    (out.z.square().mean() + out.penalty).backward()
    assert torch.isfinite(out.penalty)
    assert all(torch.isfinite(p.grad).all() for p in (x, *layer.parameters()))
    assert all(torch.isfinite(value).all() for value in tensors(layer).values())


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_in_place_operations_behind_the_layer_change_neither_penalty_nor_logs(name, options, training):
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    model = ibreg.Regularized(nn.Sequential(nn.Linear(FEATURES, FEATURES), layer)).train(training)
    behind = ibreg.Regularized(nn.Sequential(*copy.deepcopy(model.model), nn.ReLU(inplace=True))).train(training)
    results = []
    for each in (model, behind):
        torch.manual_seed(1)
        results.append(each(x, **needed(layer)))
    assert torch.equal(results[1].output, results[0].output.relu())
    assert torch.equal(results[0].penalty, results[1].penalty)
    assert results[0].logs == results[1].logs
    results[1].output.sum().backward()


@every_case
def test_the_penalty_reads_no_parameter(name, options):
    # Sharded parameters are freed when the model's forward is over.
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    model = ibreg.Regularized(nn.Sequential(layer))

    def poison(module, args, output):
        for parameter in module.parameters():
            parameter.data.fill_(float("nan"))

    torch.manual_seed(1)
    expected = copy.deepcopy(model)(x, **needed(layer)).penalty
    model.model.register_forward_hook(poison)
    torch.manual_seed(1)
    assert torch.equal(model(x, **needed(layer)).penalty, expected)


@every_case
def test_batch_of_one(name, options):
    layer, x = build(name, options), torch.randn(1, FEATURES, requires_grad=True)
    if name in NEEDS_MORE_SAMPLES:
        with pytest.raises(ValueError, match="samples"):
            layer.measure(x, **needed(layer, batch=1))
        return
    out = layer.measure(x, **needed(layer, batch=1))
    out.penalty.backward()
    assert torch.isfinite(out.penalty)
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@every_case
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_nan_is_an_error_that_names_the_layer_and_poisons_nothing(name, options, bad, training):
    layer = build(name, options)
    x = torch.randn(BATCH, FEATURES)
    x[3, 2] = bad
    before = tensors(layer.train(training))
    with pytest.raises(RuntimeError, match=f"bottleneck {type(layer).__name__}.*NaN or infinite"):
        layer.measure(x, **needed(layer))
    model = ibreg.Regularized(nn.ModuleDict({"body": nn.Sequential(nn.Identity(), layer)})["body"]).train(training)
    with pytest.raises(RuntimeError, match="bottleneck 1 got NaN or infinite"):
        model(x, **needed(layer))
    assert_equal(list(before.values()), list(tensors(layer).values()))


# ---- precision, compilation


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_penalty_in_float32(name, options, dtype):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    references = [model(x, **needed(layer)).penalty.detach() for _ in range(2)]
    with torch.autocast("cpu", dtype):
        output, penalty, _ = model(x, **needed(layer))
        loss = output.float().square().mean() + penalty
    loss.backward()
    assert output.dtype == dtype
    assert penalty.dtype == torch.float32
    if torch.equal(*references):  # without noise in it, the penalty moves by the 8 bits of its features alone
        torch.testing.assert_close(penalty, references[0], rtol=0.02, atol=1e-6)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_beta_stays_float32(name, options, dtype):
    layer = build(name, options, beta=1e-8)
    model = ibreg.Regularized(network(layer)).to(dtype)
    assert "beta" in layer.state_dict()
    assert (layer.beta.shape, layer.beta.dtype) == ((), torch.float32)
    assert layer.beta.item() == torch.tensor(1e-8).item()
    assert all(parameter.dtype == dtype for parameter in layer.parameters())
    assert model(torch.randn(BATCH, FEATURES, dtype=dtype), **needed(layer)).penalty.dtype == torch.float32


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_at_construction(name, options, dtype):
    layer = build(name, options, dtype=dtype)
    assert layer.beta.dtype == torch.float32
    assert all(parameter.dtype == dtype for parameter in layer.parameters())


@every_case
def test_compiled_without_graph_break_equals_eager(name, options):
    layer = build(name, options)
    assert_compiled_equals_eager(layer, draws=2 if layer.stochastic else 1)


@every_name
def test_one_draw_compiled_without_graph_break_equals_eager(name):
    layer = build_first(name)
    if not layer.stochastic:
        pytest.skip("compiled above with one draw")
    assert_compiled_equals_eager(layer, draws=1)


def assert_compiled_equals_eager(layer, draws):
    model, x = ibreg.Regularized(network(layer), draws=draws), torch.randn(BATCH, FEATURES)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    eager, traced = step(model, x, needed(layer)), step(compiled, x, needed(layer))
    for a, b in zip((*eager[:2], *eager[2]), (*traced[:2], *traced[2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert type(compiled(x, **needed(layer))) is type(model(x, **needed(layer)))

    model.eval()
    twin.eval()
    expected, measured = model(x, **needed(layer)), compiled(x, **needed(layer))
    torch.testing.assert_close(measured.output, expected.output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured.logs, expected.logs, rtol=1e-5, atol=1e-6)
    assert measured.penalty == expected.penalty == 0

    with pytest.raises(RuntimeError, match="bottleneck 1 got NaN or infinite"):
        compiled(torch.full_like(x, float("nan")), **needed(layer))


@every_name
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor_smoke(name):
    layer = build_first(name)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    eager = [step(model, x, needed(layer), seed)[1] for seed in range(2)]
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own, about the machine
        _, penalty, gradients = step(torch.compile(model, fullgraph=True), x, needed(layer))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(penalty)
    if torch.equal(*eager):  # inductor draws other noise
        torch.testing.assert_close(penalty, eager[0], rtol=1e-5, atol=1e-7)


# ---- copies, state


@every_case
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
@pytest.mark.parametrize("used", [False, True])
def test_copies_are_equal_and_independent(name, options, copied, used):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    if used:
        output = model(x, **needed(layer))  # its graph is alive while the model is copied
    twin = copied(model)
    left, right = step(model, x, needed(layer)), step(twin, x, needed(layer))
    assert_equal(left[:2], right[:2])
    assert_equal(left[2], right[2])
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert layer.beta != 0
    if used:
        output.penalty.backward()


@every_case
def test_no_state_outside_the_state_dict(name, options):
    layer = build(name, options)
    model = ibreg.Regularized(network(layer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        step(model, torch.randn(BATCH, FEATURES), needed(layer), seed)
        optimizer.step()
    layer.beta.fill_(0.03)

    fresh = ibreg.build(name, **layer.config())
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(BATCH, FEATURES)
    results = []
    for module in (layer, fresh):
        torch.manual_seed(7)
        results.append(module.train().measure(x, **needed(layer)))
    assert torch.equal(results[0].z, results[1].z)
    assert torch.equal(results[0].penalty, results[1].penalty)
    assert fresh.beta == layer.beta
    assert torch.equal(layer.eval()(x), fresh.eval()(x))


@every_case
def test_weights_from_before_the_layer_was_there_load_and_broken_ones_do_not(name, options):
    layer = build(name, options)
    net = network(layer)
    before = tensors(layer)
    net.load_state_dict({key: value + 1 for key, value in tensors(net).items() if not key.startswith("1.")})
    assert_equal(list(before.values()), list(tensors(layer).values()))
    state = tensors(net)
    del state["1.beta"]
    if len(layer.state_dict()) > 1:
        with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"1.beta\""):
            net.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict({**tensors(net), "1.other": torch.zeros(())})


@every_case
def test_config_round_trip(name, options):
    layer = build(name, options, beta=0.0123)
    config = layer.config()
    assert config.keys() == registry.options(name).keys()
    assert config["beta"] == 0.0123
    assert ibreg.build(name, **config).config() == config
    layer.beta.fill_(1 / 3)
    assert ibreg.build(name, **layer.config()).beta == layer.beta
    assert repr(layer).startswith(type(layer).__name__)


@every_case
def test_moving_average_of_weights(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    before = [p.detach().clone() for p in model.parameters()]
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    layer.beta.fill_(0.5)
    average.update_parameters(model)
    for old, mean in zip(before, average.module.parameters(), strict=True):
        torch.testing.assert_close(mean, old + 0.1)
    assert all(value == 0.5 for key, value in average.state_dict().items() if key.endswith("beta"))
    average.eval()
    assert torch.equal(average(x).output, ibreg.predict(average, x))


@every_case
def test_meta_device(name, options):
    layer = build(name, options, device="meta")
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    layer.to_empty(device="cpu")
    torch.manual_seed(3)
    layer.reset_parameters()
    expected = build(name, options)
    torch.manual_seed(3)
    expected.reset_parameters()
    assert_equal(list(expected.state_dict().values()), list(layer.state_dict().values()))
    assert layer.beta.item() == pytest.approx(registry.options(name)["beta"])


@every_name
def test_built_bare(name):
    layer = ibreg.build(name)
    assert isinstance(layer, ibreg.Bottleneck)
    assert (layer.registry_name, type(layer)) == (name, registry.find(name))
    assert layer.config() == registry.options(name)
    if layer.sized:
        with pytest.raises(ValueError, match="does not know its in_features: pass them, or inject it with example=x"):
            layer.eval()(torch.zeros(2, FEATURES))
        if "concepts" in registry.options(name):
            with pytest.raises(ValueError, match="does not know its concepts: pass their number"):
                layer.materialize(FEATURES)
            layer = ibreg.build(name, concepts=CONCEPTS)
        layer.materialize(FEATURES)
        assert layer.eval()(torch.zeros(2, FEATURES)).shape == (2, code_features(layer))


# ---- checkpoints, calls, warnings


class Checkpointed(nn.Module):
    def __init__(self, net, use_reentrant):
        super().__init__()
        self.net = net
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.use_reentrant)


@every_case
def test_non_reentrant_checkpoint_is_bit_equal(name, options):
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    net = network(layer)
    plain, thrifty = ibreg.Regularized(net), ibreg.Regularized(Checkpointed(copy.deepcopy(net), use_reentrant=False))
    if layer.reads_scope:
        with pytest.raises(RuntimeError, match="leave it out of the checkpointed part"):
            thrifty(x, **needed(layer))
        return
    left, right = step(plain, x, needed(layer)), step(thrifty, x, needed(layer))
    assert_equal(left[:2], right[:2])
    assert_equal(left[2], right[2])
    assert_equal(list(tensors(net).values()), list(tensors(thrifty.model.net).values()))


@every_case
def test_reentrant_checkpoint_raises(name, options):
    layer = build(name, options)
    model = ibreg.Regularized(Checkpointed(network(layer), use_reentrant=True))
    with pytest.raises(RuntimeError, match=r"bottleneck net\.1 .*use_reentrant=False"):
        model(torch.randn(BATCH, FEATURES, requires_grad=True), **needed(layer))


@every_case
def test_two_calls_count_twice(name, options):
    class Twice(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) + self.layer(x)

    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    torch.manual_seed(2)
    alone = copy.deepcopy(layer)
    calls = [alone.measure(x, **needed(layer)) for _ in range(2)]
    torch.manual_seed(2)
    _, penalty, logs = ibreg.Regularized(Twice(layer))(x, **needed(layer))
    torch.testing.assert_close(penalty, layer.beta * (calls[0].penalty + calls[1].penalty))
    for quantity, value in logs.items():
        torch.testing.assert_close(value, (calls[0].logs[quantity[6:]] + calls[1].logs[quantity[6:]]) / 2)


@every_case
def test_warns_once_without_a_scope(name, options):
    layer, x = build(name, options), torch.randn(BATCH, FEATURES)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    layer.train()
    with pytest.warns(UserWarning, match="training without its penalty: wrap the model, model = ibreg") as caught:
        layer(x)
    assert caught[0].filename == __file__
    layer(x)


@every_name
def test_no_warning_while_compiling_or_recomputing(name):
    layer, x = build_first(name), torch.randn(BATCH, FEATURES)
    torch._dynamo.reset()
    torch.compile(network(layer), fullgraph=True, backend="aot_eager")(x)
    if not layer.reads_scope:
        model = ibreg.Regularized(Checkpointed(network(layer), use_reentrant=False))
        step(model, x, needed(layer))


@every_case
def test_missing_targets_are_an_error_that_says_what_to_pass(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    for need in layer.needs:
        if need == "inputs":  # the first positional tensor stands in
            continue
        given = {key: value for key, value in needed(layer).items() if key != need}
        with pytest.raises(ValueError, match=rf"bottleneck 1 needs .*call model\(x, .*{need}=\.\.\."):
            model(x, **given)
    assert torch.isfinite(model(x, **needed(layer)).penalty)


# ---- transformations


@every_case
def test_functional_call_and_func_grad(name, options):
    layer = build(name, options)
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters):
        output, penalty, _ = functional_call(model, parameters, (x,), needed(layer))
        return output.square().mean() + penalty

    torch.manual_seed(0)
    measured = grad(loss)(parameters)
    output, penalty, gradients = step(copy.deepcopy(model), x, needed(layer))
    torch.manual_seed(0)
    torch.testing.assert_close(loss(parameters), output.square().mean() + penalty)
    for expected, name_ in zip(gradients, parameters, strict=True):
        torch.testing.assert_close(measured[name_], expected)


def injected(layer):
    """The same network with the layer behind a hook instead of in the sequence."""
    net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(code_features(layer), 2))
    return ibreg.inject(net, {"1": layer})


@every_case
@pytest.mark.parametrize("around", [network, injected])
def test_export_in_evaluation(name, options, around):
    net, x = around(build(name, options)).eval(), torch.randn(BATCH, FEATURES)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    larger = torch.randn(BATCH + 3, FEATURES)
    torch.testing.assert_close(program.module()(larger), net(larger))


@every_case
def test_onnx_in_evaluation(name, options, tmp_path):
    pytest.importorskip("onnxscript", reason="ONNX needs onnxscript: pip install 'ibreg[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime: pip install 'ibreg[onnx]'")
    net, x = injected(build(name, options)).eval(), torch.randn(BATCH, FEATURES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about torch's internals
        batch = torch.export.Dim("batch", min=2)
        program = torch.onnx.export(net, (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    program.save(tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    larger = torch.randn(BATCH + 3, FEATURES)
    (measured,) = session.run(None, {session.get_inputs()[0].name: larger.numpy()})
    torch.testing.assert_close(torch.from_numpy(measured), net(larger).detach(), rtol=1e-5, atol=1e-6)


@every_case
def test_gradients_of_each_sample(name, options):
    layer = build(name, options)
    if name in NEEDS_MORE_SAMPLES:
        pytest.skip("a penalty of the batch has no part that belongs to one sample")
    model, x = ibreg.Regularized(network(layer)), torch.randn(BATCH, FEATURES)
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters, x, further):
        further = {key: value.unsqueeze(0) for key, value in further.items()}
        output, penalty, _ = functional_call(model, parameters, (x.unsqueeze(0),), further)
        return output.square().mean() + penalty

    gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(parameters, x, needed(layer))
    for key, value in parameters.items():
        assert gradients[key].shape == (BATCH, *value.shape)
        assert torch.isfinite(gradients[key]).all()


# ---- what stands around a layer


@every_name
def test_docstring(name):
    cls = registry.find(name)
    documentation = inspect.getdoc(cls)
    assert "Args:" in documentation
    assert ">>> " in documentation
    for option in (*registry.options(name), "device"):
        assert f"    {option}: " in documentation


@every_name
def test_yaml_holds_every_option_with_its_default(name):
    path = CONFIGS / f"{name}.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path))
    expected = registry.options(name)
    del expected["in_features"]
    assert config == json.loads(json.dumps(expected))  # YAML has no tuples
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert all("  # " in line for line in lines[1:] if line)


# ---- registry


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"'variatonal' \(did you mean 'variational'\?\): choose one of .*variational"):
        ibreg.build("variatonal")


@every_name
def test_unknown_option_lists_the_valid_ones(name):
    said = r"has no option 'betta' \(did you mean 'beta'\?\): choose from in_features, .*beta.* device, dtype"
    with pytest.raises(ValueError, match=said):
        ibreg.build(name, betta=1)


def test_names_are_unique_lower_case_identifiers():
    assert ibreg.names() == sorted(set(ibreg.names()))
    with pytest.raises(ValueError, match="lower-case identifier"):
        ibreg.register("Not-a-name")
    with pytest.raises(ValueError, match="belongs to VariationalBottleneck already"):
        ibreg.register("variational")(type("Other", (ibreg.Bottleneck,), {}))
