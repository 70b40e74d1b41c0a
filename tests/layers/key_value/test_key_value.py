import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg import KeyValueBottleneck, Regularized
from ibreg.layers.key_value.codebooks import DECAY, SMOOTHING
from ibreg.layers.key_value.fitting import replace_keys

FEATURES, CLASSES = 6, 3
SMALL = {"codebooks": 4, "pairs": 16, "key_features": 4}
EVERY_SEARCH = pytest.mark.parametrize("search", ["exact", "product"])


def build(**options):
    return KeyValueBottleneck(FEATURES, CLASSES, **(SMALL | options))


def data(samples=200, seed=0):
    return torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(seed))


def with_values(layer, seed=1):
    with torch.no_grad():
        layer.values.normal_(generator=torch.Generator().manual_seed(seed))
    return layer


def nearest_pairs(layer, x):
    """Indices of the nearest keys `(codebooks, rows)`, from all distances in float64."""
    distances = torch.cdist(
        layer.queries_of(x).double(), layer.keys.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances.argmin(-1)


def pair_values(layer):
    return layer.values.detach().unflatten(0, (layer.codebooks, layer.pairs))


def state(layer):
    return {key: value.clone() for key, value in layer.state_dict().items()}


def assert_same_keys(before, layer):
    for key, value in before.items():
        if key.startswith(("books", "split")):
            assert torch.equal(value, layer.state_dict()[key]), key


# ---- the code


@EVERY_SEARCH
@pytest.mark.parametrize("splitter", ["random_projection", "learned", "chunk"])
def test_code_is_the_mean_of_the_nearest_values(search, splitter):
    options = {"codebooks": 3, "key_features": 2} if splitter == "chunk" else {}
    layer, x = with_values(build(splitter=splitter, search=search, **options)).eval(), data()
    values = pair_values(layer)
    expected = torch.stack([values[c, j] for c, j in enumerate(nearest_pairs(layer, x))]).mean(0)
    torch.testing.assert_close(layer(x), expected)


def test_splitters():
    x = data(5)
    layer = build()
    assert layer.split.projection.shape == (4, FEATURES, 4)
    torch.testing.assert_close(layer.split.projection.norm(dim=1), torch.ones(4, 4))
    torch.testing.assert_close(layer.queries_of(x)[2], x @ layer.split.projection[2])
    assert dict(layer.named_parameters()).keys() == {"values"}
    assert "split.projection" in dict(build(splitter="learned").named_parameters())
    chunked = KeyValueBottleneck(FEATURES, 2, codebooks=3, pairs=4, splitter="chunk")
    assert torch.equal(chunked.queries_of(x)[1], x[:, 2:4])


def test_top_k_and_linear_decoder():
    layer, x = with_values(build(top_k=3, decoder="linear", value_features=5)).eval(), data(20)
    distances = torch.cdist(layer.queries_of(x), layer.keys)
    best = distances.topk(3, largest=False).indices
    values = pair_values(layer)
    votes = torch.stack([values[c][best[c]] for c in range(4)]).mean((0, 2))
    torch.testing.assert_close(layer(x), F.linear(votes, layer.decode.weight, layer.decode.bias))


def test_tokens_and_maps_are_rows():
    layer, x = with_values(build()).eval(), data(24)
    code = layer(x)
    assert torch.equal(layer(x.reshape(4, 6, FEATURES)), code.reshape(4, 6, CLASSES))
    maps = x.reshape(4, 2, 3, FEATURES).movedim(-1, 1)
    assert torch.equal(layer(maps), code.reshape(4, 2, 3, CLASSES).movedim(-1, 1))


def test_values_start_at_zero_with_the_mean_decoder():
    assert not build().values.any()
    assert not build().measure(data()).z.any()
    assert build(decoder="linear").values.std() > 0.5


def test_only_fetched_values_get_a_gradient_and_it_can_be_sparse():
    dense, x = build(), data(3)
    sparse = KeyValueBottleneck(FEATURES, CLASSES, sparse_gradients=True, **SMALL)
    sparse.load_state_dict(dense.state_dict())
    for layer in (dense, sparse):
        out = layer.measure(x)
        F.cross_entropy(out.z, torch.tensor([0, 1, 2])).backward()
    gradient = dense.values.grad.unflatten(0, (4, 16))
    hit = torch.zeros(4, 16, dtype=torch.bool).scatter(1, nearest_pairs(dense, x), True)
    assert torch.equal(gradient.abs().sum(-1) > 0, hit)
    assert sparse.values.grad.is_sparse
    assert torch.equal(sparse.values.grad.to_dense(), dense.values.grad)
    torch.optim.SGD(sparse.parameters(), lr=0.3).step()


def test_training_on_some_classes_does_not_change_the_predictions_of_others():
    torch.manual_seed(0)
    centers = 6 * torch.randn(4, FEATURES)
    x, y = centers.repeat_interleave(50, 0) + 0.1 * torch.randn(200, FEATURES), torch.arange(4).repeat_interleave(50)
    layer = KeyValueBottleneck(FEATURES, 4, codebooks=8, pairs=16, key_features=4)
    layer.initialize(x)
    layer.freeze_keys()
    optimizer = torch.optim.SGD(layer.parameters(), lr=30.0)
    for split in range(2):
        rows = y // 2 == split
        for _ in range(50):
            F.cross_entropy(layer.measure(x[rows]).z, y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (layer.eval()(x).argmax(1) == y).all()


# ---- gradients to the input


def test_after_a_trainable_encoder_the_error_says_to_freeze_it():
    model = Regularized(nn.Sequential(nn.Linear(FEATURES, FEATURES), build()))
    with pytest.raises(ValueError, match=r"bottleneck 1 passes no gradient .*requires_grad_\(False\).*straight_th"):
        model(data())
    model.model[0].requires_grad_(False)
    assert model(data()).penalty == 0
    with pytest.raises(ValueError, match="straight_through=True"):
        build(splitter="learned").measure(data())
    with torch.no_grad():
        model.model[0].requires_grad_(True)
        model(data())
    assert model.eval()(data()).output.shape == (200, CLASSES)


@pytest.mark.parametrize("top_k", [1, 2])
def test_straight_through_has_the_gradient_of_a_softmax_and_the_value_without(top_k):
    options = {"straight_through": True, "top_k": top_k, "codebooks": 2, "pairs": 9, "dtype": torch.float64}
    layer = with_values(build(**options))
    plain = build(top_k=top_k, codebooks=2, pairs=9, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = data(5).double().requires_grad_()
    out = layer.measure(x)
    assert torch.equal(out.z, plain.measure(x.detach()).z)

    def soft(x):
        distances = torch.cdist(layer.queries_of(x), layer.keys).square()
        near, indices = distances.topk(top_k + 1, largest=False)
        weights = (-near / near.detach().mean(-1, keepdim=True)).softmax(-1)
        values = torch.stack([pair_values(layer)[c][indices[c]] for c in range(2)])
        return (weights.unsqueeze(-1) * values).sum(2).mean(0)

    weight = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    measured = torch.autograd.grad((out.z * weight).sum(), x, retain_graph=True)[0]
    twin = x.detach().clone().requires_grad_()
    torch.testing.assert_close(measured, torch.autograd.grad((soft(twin) * weight).sum(), twin)[0])

    (commitment,) = torch.autograd.grad(out.penalty, x)
    distances = torch.cdist(layer.queries_of(twin), layer.keys).square()
    reference = distances.min(-1).values.mean(0).sum() / 5
    torch.testing.assert_close(out.penalty, reference.float())
    torch.testing.assert_close(commitment, torch.autograd.grad(reference, twin)[0])


def test_without_straight_through_there_is_no_penalty():
    out = build().measure(data())
    assert out.penalty == 0
    layer = build()
    torch.testing.assert_close(
        layer.measure(data()).logs["distance"],
        torch.cdist(layer.queries_of(data()), layer.keys).square().min(-1).values.mean(),
    )


# ---- keys are sums over counts

CALLS = ("ema", "k_means", "train", "masked", "eval", "freeze", "load", "double", "reset", "empty")


@EVERY_SEARCH
@given(calls=st.lists(st.sampled_from(CALLS), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_keys_are_sums_over_counts_after_every_public_call(search, calls, seed):
    torch.manual_seed(seed)
    layer, frozen = build(search=search), False
    for call in calls:
        before = state(layer)
        x = 3 * torch.randn(64, FEATURES, dtype=layer.values.dtype)
        if call in ("ema", "k_means"):
            if frozen:
                with pytest.raises(RuntimeError, match="keys are frozen"):
                    layer.initialize(x, method=call)
            else:
                layer.initialize(x, method=call, epochs=2)
        elif call == "train":
            layer.train().measure(x)
        elif call == "masked":
            layer.train().measure(x.reshape(8, 8, FEATURES), mask=torch.rand(8, 8) < 0.5)
        elif call == "empty":
            layer.train().measure(x[:0])
        elif call == "eval":
            layer.eval().measure(x)
        elif call == "freeze":
            layer.freeze_keys()
        elif call == "load":
            fresh = build(search=search, dtype=layer.values.dtype)
            fresh.load_state_dict(layer.state_dict())
            layer = fresh
        elif call == "double":
            layer.double()
        elif call == "reset":
            layer.reset_parameters()
        frozen = (frozen or call == "freeze") and call != "reset"
        books = layer.books
        assert torch.equal(books.keys, books.sums / books.counts.unsqueeze(-1))
        assert books.keys.isfinite().all()
        assert (books.counts > 0).all()
        assert (layer.usage >= 0).all()
        if call in ("eval", "freeze", "load", "empty") or (frozen and call in ("ema", "k_means", "train", "masked")):
            assert_same_keys(before, layer)


@EVERY_SEARCH
def test_moving_average_from_the_formula(search):
    layer, x = build(search=search), data(40)
    layer.initialize(data(seed=3), epochs=1)
    books = layer.books
    sums, counts, keys = (tensor.double() for tensor in (books.sums, books.counts, books.keys))
    queries = layer.queries_of(x).double()
    if search == "product":
        queries = torch.stack([queries[..., :2], queries[..., 2:]], 1).flatten(0, 1)
    nearest = torch.cdist(queries, keys).argmin(-1)
    one_hot = F.one_hot(nearest, keys.shape[1]).double()
    total = DECAY * counts + (1 - DECAY) * one_hot.sum(1)
    smoothed = (total + SMOOTHING) / (1 + SMOOTHING * keys.shape[1] / total.sum(1, keepdim=True))
    moved = DECAY * sums + (1 - DECAY) * one_hot.mT @ queries
    moved = (moved + SMOOTHING * keys) * (smoothed / (total + SMOOTHING)).unsqueeze(-1)
    layer.measure(x)
    torch.testing.assert_close(books.counts.double(), smoothed, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(books.keys.double(), moved / smoothed.unsqueeze(-1), rtol=1e-5, atol=1e-5)


@EVERY_SEARCH
@pytest.mark.parametrize("method", ["ema", "k_means"])
def test_training_batches_move_keys_only_between_initialize_and_freeze_keys(search, method):
    layer = build(search=search)
    before = state(layer)
    layer.measure(data())
    assert_same_keys(before, layer)
    assert layer.usage.sum() == 200 * 4

    layer.initialize(data(), method=method, epochs=2)
    before = state(layer)
    layer.eval().measure(data(seed=1))
    assert_same_keys(before, layer)
    layer.train().measure(data(seed=1))
    assert not torch.equal(before["books.keys"], layer.books.keys)

    layer.freeze_keys()
    frozen = state(layer)
    loaded = build(search=search)
    loaded.load_state_dict(frozen)
    copied = copy.deepcopy(loaded)
    for twin in (layer, loaded, copied):
        for seed in range(3):
            twin.train().measure(data(seed=seed))
            twin.train().measure(data(48, seed=seed).reshape(8, 6, FEATURES))
        assert_same_keys(frozen, twin)


def test_frozen_keys_stay_in_compiled_training_and_moving_ones_move_as_in_eager():
    layer = build()
    layer.initialize(data(), epochs=1)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(Regularized(twin), fullgraph=True, backend="aot_eager")
    for frozen in (False, True):
        if frozen:
            layer.freeze_keys()
            twin.freeze_keys()
        before = state(twin)
        compiled(data(seed=1))
        layer.measure(data(seed=1))
        assert torch.equal(twin.books.keys, before["books.keys"]) == frozen
        for key, value in state(layer).items():
            torch.testing.assert_close(twin.state_dict()[key], value)


def test_keys_stay_float32_in_half_precision():
    layer = build()
    layer.initialize(data(), epochs=1)
    before = state(layer)
    layer.half()
    assert_same_keys(before, layer)
    assert layer.values.dtype == torch.float16
    assert layer.measure(data().half()).z.dtype == torch.float16


# ---- initialize


@pytest.mark.parametrize("method", ["ema", "k_means"])
def test_initialized_keys_are_nearer_and_in_use(method):
    torch.manual_seed(0)
    centers = 10 * torch.randn(8, FEATURES)
    x = centers[torch.randint(8, (2000,))] + torch.randn(2000, FEATURES)
    layer = build(pairs=64)
    before = layer.eval().measure(x).logs["distance"]
    done = layer.initialize(x, method=method)
    assert (done.samples, done.skipped) == (2000, 0)
    assert layer.measure(x).logs["distance"] < 0.05 * before
    used = [indices.unique().numel() for indices in nearest_pairs(layer, x)]
    assert min(used) >= 0.9 * 64
    assert done.used >= 0.9


def test_k_means_agrees_with_lloyd_iterations_from_the_same_start():
    layer, x = build(codebooks=1, pairs=4), data()
    layer.initialize(x, method="k_means", epochs=1)
    queries = layer.queries_of(x)[0].double()
    shifted = copy.deepcopy(layer)
    shifted.initialize(x, method="k_means", epochs=2)
    nearest = torch.cdist(queries, layer.keys[0].double()).argmin(-1)
    means = torch.stack([queries[nearest == key].mean(0) for key in range(4)])
    torch.testing.assert_close(shifted.keys[0].double(), means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shifted.books.counts[0], torch.bincount(nearest, minlength=4).float())


@EVERY_SEARCH
def test_k_means_survives_the_moving_average(search):
    torch.manual_seed(0)
    x = torch.randn(1000, FEATURES)
    layer = build(pairs=64, search=search)
    layer.initialize(x, method="k_means")
    norms = layer.books.keys.norm(dim=-1)
    layer.measure(x[:256])
    assert ((layer.books.keys.norm(dim=-1) - norms).abs() < 0.05 * norms).all()
    for _ in range(60):
        layer.measure(x[torch.randperm(1000)[:256]])
    used = [indices.unique().numel() for indices in layer.books.find(layer.queries_of(x))[1]]
    size = layer.books.size if search == "product" else 64
    assert min(used) >= 0.9 * (64 if search == "exact" else size)


def test_a_dead_key_is_replaced_by_a_row_and_stays_there():
    layer, x = build(), data(64)
    layer.initialize(x)
    books = layer.books
    sums, counts = books.sums.clone(), books.counts.clone()
    counts[:, 3] = 1e-4  # no row was assigned to it for a long time
    sums[:, 3] = 1e-4 * 1e3
    books.assign(sums, counts)
    dead = books.counts < 0.1 * 64 / 16
    rows = layer.queries_of(x)
    assert replace_keys(books, dead, rows, 64 / 16, torch.Generator().manual_seed(0)) == int(dead.sum()) >= 4
    revived = books.keys[dead]
    on_rows = (books.keys.unsqueeze(2) == rows.unsqueeze(1)).all(-1).any(-1)
    assert on_rows[dead].all()
    far = 100 + 0 * x  # mostly assigned to other keys
    layer.measure(far)
    untouched = books.counts[dead] < 64 / 16
    assert untouched.any()
    torch.testing.assert_close(books.keys[dead][untouched], revived[untouched], rtol=1e-5, atol=1e-6)


def test_non_finite_rows_are_skipped_and_counted():
    x = data(64)
    dirty = torch.cat(
        [x[:20], torch.full((3, FEATURES), float("nan")), x[20:], torch.full((1, FEATURES), float("inf"))]
    )
    clean, skipping = build(), build()
    skipping.load_state_dict(clean.state_dict())
    clean.initialize([x[:20], x[20:]])
    done = skipping.initialize([dirty[:23], dirty[23:]])
    assert (done.samples, done.skipped) == (64, 4)
    assert_same_keys(state(clean), skipping)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        skipping.measure(dirty)


def test_loaders_tokens_and_models():
    x = data(64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(64)), batch_size=16)
    by_loader, by_list, by_model, by_tokens = (build() for _ in range(4))
    for layer in (by_list, by_model, by_tokens):
        layer.load_state_dict(by_loader.state_dict())
    by_loader.initialize(loader)
    by_list.initialize(list(x.split(16)))
    assert_same_keys(state(by_loader), by_list)
    by_tokens.initialize([part.reshape(4, 4, FEATURES) for part in x.split(16)])
    assert_same_keys(state(by_loader), by_tokens)

    encoder = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Dropout(), nn.Identity())
    encoder[0].weight.data.copy_(torch.eye(FEATURES))
    encoder[0].bias.data.zero_()
    ibreg.inject(encoder, {"2": by_model})
    dirty = [torch.cat([part, torch.full((1, FEATURES), float("nan"))]) for part in x.split(16)]
    done = by_model.initialize(dirty, model=Regularized(encoder))
    assert (done.samples, done.skipped) == (64, 4)
    assert encoder.training
    assert encoder[1].training
    assert by_model.training
    assert_same_keys(state(by_loader), by_model)


def test_initialize_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    layer = build()
    torch.random.set_rng_state(before)
    layer.initialize(data())
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_failed_initialize_changes_nothing():
    layer = build()
    before = state(layer)
    for bad, message in (
        ([data(64), torch.zeros(3, 5)], "takes 6 features"),
        (data(15), "15 usable rows are too few for 16 keys"),
        (torch.full((40, FEATURES), float("nan")), "0 usable rows"),
        ([], "0 usable rows"),
        ([torch.zeros(40, FEATURES).long()], "floating-point"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.initialize(bad)
    with pytest.raises(ValueError, match="method must be one of 'ema', 'k_means', got 'kmeans'"):
        layer.initialize(data(), method="kmeans")
    with pytest.raises(ValueError, match=r"epochs must be an integer of at least 1 .*, got 0"):
        layer.initialize(data(), epochs=0)
    with pytest.raises(ValueError, match="did not call this layer"):
        layer.initialize(data(), model=nn.Linear(FEATURES, 2))
    for key, value in before.items():
        assert torch.equal(value, layer.state_dict()[key])
    with pytest.raises(ValueError, match="has no in_features"):
        KeyValueBottleneck().initialize(data())


# ---- usage


def test_usage_counts_and_pairs_that_are_never_fetched():
    layer, x = with_values(build(pairs=64, top_k=2)), data(10)
    assert layer.usable().all()
    layer.measure(x)
    nearest = torch.cdist(layer.queries_of(x), layer.keys).topk(2, largest=False).indices
    expected = torch.zeros(4, 64, dtype=torch.int64)
    for book, pairs in enumerate(nearest):
        expected[book] = torch.bincount(pairs.flatten(), minlength=64)
    assert torch.equal(layer.usage, expected)
    assert torch.equal(layer.usable(), expected > 0)
    with torch.no_grad():
        layer.values[(expected == 0).flatten()] = float("nan")
    assert layer.eval()(data(500, seed=5)).isfinite().all()
    assert layer.measure(x).logs["used"] == (expected > 0).float().mean()
    assert torch.equal(layer.usage, expected)


def test_padding_is_ignored():
    x = data(12).reshape(2, 6, FEATURES)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    padded = build(straight_through=True)
    padded.initialize(data(), epochs=1)
    alone = copy.deepcopy(padded)
    left, right = padded.measure(x, mask=mask), alone.measure(x[mask.bool()])
    assert torch.equal(padded.usage, alone.usage)
    torch.testing.assert_close(padded.books.keys, alone.books.keys)
    torch.testing.assert_close(2 * left.penalty, 4 * right.penalty)  # a sum over positions, a mean over samples


def test_masked_pairs_are_not_fetched_in_any_mode_and_without_others_the_code_is_zero():
    layer, x = with_values(build()), data(50)
    layer.masked[:, :15] = True
    expected = pair_values(layer)[:, 15].mean(0).expand(50, -1)
    torch.testing.assert_close(layer.measure(x).z, expected)
    torch.testing.assert_close(layer.eval()(x), expected)
    layer.masked[1:] = True
    torch.testing.assert_close(layer(x), pair_values(layer)[0, 15].expand(50, -1) / 4)
    layer.masked.fill_(True)
    assert torch.equal(layer(x), torch.zeros(50, CLASSES))
    assert not layer.train().measure(x).logs["distance"]
    assert layer.usage.sum() == layer.usage[:, 15].sum()


def test_function_transformations_do_not_change_statistics():
    layer, x = build(), data(5)
    layer.initialize(data(), epochs=1)
    before = state(layer)
    values = {"values": layer.values.detach()}
    model = Regularized(layer)

    def loss(values, x):
        output = torch.func.functional_call(model, {f"model.{key}": value for key, value in values.items()}, (x,))
        return (output.output - 1).square().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x.unsqueeze(1))["values"]
    assert gradients.shape == (5, *layer.values.shape)
    for key, value in before.items():
        assert torch.equal(value, layer.state_dict()[key])


# ---- errors, export


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"codebooks": 4, "splitter": "chunk", "key_features": None},
            "splits 6 features into 4 equal chunks.*divides 6",
        ),
        ({"codebooks": 3, "splitter": "chunk", "key_features": 3}, "got key_features=3"),
        ({"top_k": 17}, "top_k must be at most the 16 pairs of a codebook, got 17"),
        ({"top_k": 0}, "got 0"),
        (
            {"search": "product", "pairs": 15},
            "pairs must be a square number with search='product', got 15: use 9 or 16",
        ),
        ({"search": "product", "key_features": 3}, "key_features must be even with .*, got 3"),
        ({"search": "tree"}, "search must be one of 'exact', 'product', got 'tree'"),
        ({"splitter": "linear"}, "splitter must be one of 'random_projection', 'chunk', 'learned', got 'linear'"),
        ({"decoder": "vote"}, "decoder must be one of 'mean', 'linear', got 'vote'"),
        ({"codebooks": 0}, "codebooks must be an integer of at least 1 [(]number of codebooks[)], got 0"),
        ({"pairs": 2.5}, "pairs must be an integer of at least 1 .*, got 2.5"),
        ({"value_features": 4}, "value_features must be None with .*, got 4: use decoder='linear'"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@EVERY_SEARCH
def test_export_of_a_trained_layer(search):
    layer = with_values(build(search=search, top_k=2))
    layer.measure(data(20))
    layer.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (data(5),), dynamic_shapes=({0: batch},))
    x = data(300, seed=7)
    torch.testing.assert_close(program.module()(x), layer(x))


@EVERY_SEARCH
def test_onnx_gives_the_same(search):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    layer = with_values(build(search=search, top_k=2))
    layer.measure(data(20))
    layer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        batch = torch.export.Dim("batch", min=2)
        program = torch.onnx.export(layer, (data(5),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        (measured,) = program(data(300, seed=7))
    torch.testing.assert_close(torch.as_tensor(measured), layer(data(300, seed=7)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["ema", "k_means"])
def test_data_that_can_be_read_only_once_are_refused(method):
    layer = build()
    before = state(layer)
    with pytest.raises(ValueError, match="a list or a DataLoader, not a generator"):
        layer.initialize((batch for batch in data().split(50)), method=method)
    assert_same_keys(before, layer)


@pytest.mark.parametrize("method", ["ema", "k_means"])
def test_keys_are_fitted_in_float32_to_features_in_float64(method):
    layer, x = build(), data()
    layer.initialize(x.double(), method=method)
    other = build()
    other.load_state_dict(layer.state_dict())
    other.initialize(x, method=method)
    torch.testing.assert_close(layer.books.keys, other.books.keys)
    layer.train().measure(x.double().requires_grad_(False), target=torch.arange(len(x)) % 3)
