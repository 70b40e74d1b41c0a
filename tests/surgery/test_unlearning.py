import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg import KeyValueBottleneck, Regularized, unlearn

CLASSES, FEATURES = 5, 8


@pytest.fixture(scope="module")
def trained_once():
    """A model trained on five classes, and the data of each."""
    torch.manual_seed(0)
    centers = 4 * torch.randn(CLASSES, FEATURES)
    x, y = torch.randn(500, FEATURES), torch.arange(500) % CLASSES
    x = x + centers[y]
    model = nn.Sequential(KeyValueBottleneck(FEATURES, CLASSES, codebooks=16, pairs=64, key_features=6))
    model[0].initialize(x)
    model[0].freeze_keys()
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    wrapped = Regularized(model)
    for _ in range(40):
        F.cross_entropy(wrapped(x).output, y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, [(x[y == label], y[y == label]) for label in range(CLASSES)]


@pytest.fixture
def trained(trained_once):
    return copy.deepcopy(trained_once)


@pytest.mark.parametrize("by", ["activations", "examples"])
@pytest.mark.parametrize("pairs", [None, 10_000])
def test_one_class_is_forgotten_the_others_are_not_and_undo_is_exact(trained, by, pairs):
    model, data = trained
    model.train()
    before = [model.eval()(x) for x, _ in data]
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    report = unlearn(Regularized(model), [data[3]], [data[n] for n in range(CLASSES) if n != 3], by=by, pairs=pairs)
    assert model.training
    assert report.forgotten[0] > 0.98
    assert report.forgotten[1] <= 0.01
    assert report.retained[0] > 0.98
    assert report.retained[1] >= report.retained[0] - 0.01
    assert report.pairs == int(model[0].masked.sum())
    assert report.pairs == report.activated
    after = model.eval()(data[3][0])
    assert report.forgotten[1] == (after.argmax(1) == 3).float().mean()

    report.undo()
    for (x, _), expected in zip(data, before, strict=True):
        assert torch.equal(model(x), expected)
    for key, value in state.items():
        assert torch.equal(value, model.state_dict()[key])


def pairs_of(layer, x):
    """The nearest of the used pairs, `(rows, codebooks)`, from all distances."""
    distances = torch.cdist(layer.queries_of(x), layer.keys).masked_fill(~layer.usable().unsqueeze(1), torch.inf)
    return (distances.argmin(-1) + layer.pairs * torch.arange(layer.codebooks).unsqueeze(1)).T


def test_which_pairs_are_masked(trained):
    model, data = trained
    layer, x = model[0], data[1][0]
    activated = pairs_of(layer, x)
    counts = activated.flatten().bincount(minlength=layer.masked.numel())
    report = unlearn(model, [x[:30], x[30:]], pairs=20)
    assert (report.forgotten, report.retained) == (None, None)
    assert report.activated == int((counts > 0).sum())
    masked = layer.masked.flatten()
    assert masked.sum() == report.pairs == 20
    assert counts[masked].min() >= counts[~masked].max()
    report.undo()
    report = unlearn(model, [x], fraction=0.25)
    assert report.pairs == round(0.25 * int((counts > 0).sum()))
    report.undo()
    assert unlearn(model, [x], fraction=1).pairs == int((counts > 0).sum())
    layer.masked.zero_()

    report = unlearn(model, [x[:3], x[3:]], by="examples", pairs=16 * 2)
    in_order = activated.flatten().tolist()
    expected = set(list(dict.fromkeys(in_order))[:32])
    assert set(layer.masked.flatten().nonzero().flatten().tolist()) == expected


def test_stacked_unlearning_is_undone_in_any_order(trained):
    model, data = trained
    state = model[0].masked.clone()
    first = unlearn(model, [data[0]], fraction=0.5)
    between = model[0].masked.clone()
    second = unlearn(model, [data[1], data[0]])
    assert not (first.masked[model[0]] & second.masked[model[0]]).any()
    second.undo()
    assert torch.equal(model[0].masked, between)
    second = unlearn(model, [data[1], data[0]])
    first.undo()
    second.undo()
    assert torch.equal(model[0].masked, state)


def test_masks_are_saved_and_stay_in_training(trained):
    model, data = trained
    report = unlearn(model, [data[2]])
    x, _ = data[2]
    twin = nn.Sequential(KeyValueBottleneck(FEATURES, CLASSES, codebooks=16, pairs=64, key_features=6))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(x), model.eval()(x))
    masked, usage = report.masked[model[0]], model[0].usage
    Regularized(twin.train())(x)
    assert torch.equal(twin[0].usage[masked], usage[masked])
    assert twin[0].usage.sum() > usage.sum()


def test_bad_requests_change_nothing(trained):
    model, data = trained
    for options, message in (
        ({"by": "gradients"}, "by must be one of 'activations', 'examples', got 'gradients'"),
        ({"pairs": 0}, "pairs must be None or an integer of at least 1"),
        ({"pairs": 0.5}, "pairs must be None or an integer of at least 1 .*, got 0.5"),
        ({"fraction": 0}, "fraction must be None or a finite number above 0 and at most 1, got 0"),
        ({"fraction": 1.5}, "got 1.5"),
        ({"pairs": 3, "fraction": 0.5}, "one of pairs and fraction must be None, got pairs=3 and fraction=0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            unlearn(model, [data[0]], **options)
    with pytest.raises(ValueError, match="no data to forget"):
        unlearn(model, [])
    with pytest.raises(ValueError, match="no key-value bottleneck in the model"):
        unlearn(ibreg.inject(nn.Sequential(nn.Linear(3, 3)), {"0": ibreg.VariationalBottleneck(3)}), [data[0]])
    assert not model[0].masked.any()


def test_data_that_can_be_read_once_only_are_refused_and_labels_are_optional():
    model = nn.Sequential(KeyValueBottleneck(4, 2, codebooks=3, pairs=8)).eval()
    x = torch.randn(16, 4)
    for data in (x, iter([x])):
        with pytest.raises(ValueError, match="a list or a DataLoader"):
            unlearn(model, data)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8)
    report = unlearn(model, loader, fraction=1e-6)
    assert report.pairs == 1  # a fraction of some pairs is at least one pair
    assert report.forgotten is None
    with pytest.raises(ValueError, match="pairs must be None or an integer of at least 1"):
        unlearn(model, loader, pairs=True)
