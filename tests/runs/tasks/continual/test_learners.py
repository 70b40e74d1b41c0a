"""Learners against closed forms: the Fisher information of a softmax, a reservoir's frequencies, losses written out."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg.runs.data.rows import Rows
from ibreg.runs.tasks.continual.bottlenecked import Bottlenecked
from ibreg.runs.tasks.continual.learners import ALL_AT_ONCE, ElasticWeights, Replay, build, fisher_information, names

CRITERION = nn.CrossEntropyLoss(label_smoothing=0.1)


def built(name, **options):
    return build(name, features=6, classes=4, criterion=CRITERION, options=options)


@pytest.fixture
def batch():
    return torch.randn(16, 6), torch.randint(4, (16,))


def test_fisher_information_of_a_softmax_is_its_closed_form(batch):
    """sum_k p_k (d_kc - p_c)^2 = p_c (1 - p_c), times the square of what the weight multiplies."""
    layer, x = nn.Linear(6, 4).double(), batch[0].double()
    p = layer(x).softmax(-1).detach().numpy()
    found = fisher_information(layer, x)
    spread = p * (1 - p)
    expected = np.einsum("nc,nd->cd", spread, x.numpy() ** 2) / len(x)
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-10)
    np.testing.assert_allclose(found["bias"], spread.mean(0), rtol=1e-10)


def test_fisher_information_of_a_deep_network_is_the_sum_over_rows_and_classes(batch):
    network, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double(), batch[0].double()
    expected = {name: torch.zeros_like(weight) for name, weight in network.named_parameters()}
    for row in x:
        for label in range(4):
            logs = network(row).log_softmax(-1)
            gradients = torch.autograd.grad(logs[label], list(network.parameters()))
            for total, gradient in zip(expected.values(), gradients, strict=True):
                total += logs[label].exp().detach() * gradient.square() / len(x)
    found = fisher_information(network, x)
    for name, total in expected.items():
        torch.testing.assert_close(found[name], total, rtol=1e-10, atol=0)


def test_ewc_holds_weights_by_the_sum_of_the_fisher_informations(batch):
    x, y = batch
    learner = ElasticWeights(nn.Linear(6, 4), CRITERION, strength=3.0, samples=1000)
    torch.testing.assert_close(learner(x, y), CRITERION(learner.network(x), y))
    first = fisher_information(learner.network, x[:8])
    learner.end_split(Rows(x[:8], y[:8]), torch.Generator())
    with torch.no_grad():
        learner.network.weight += 0.5
    second = fisher_information(learner.network, x[8:])
    learner.end_split(Rows(x[8:], y[8:]), torch.Generator())
    anchor = {name: weight.detach().clone() for name, weight in learner.network.named_parameters()}
    with torch.no_grad():
        learner.network.weight -= torch.randn(4, 6)
        learner.network.bias += 1
    held = sum(
        ((first[name] + second[name]) * (weight - anchor[name]) ** 2).sum()
        for name, weight in learner.network.named_parameters()
    )
    torch.testing.assert_close(learner(x, y), CRITERION(learner.network(x), y) + 1.5 * held)


def test_ewc_measures_a_sample_of_rows_by_its_generator(batch):
    def held(seed, samples):
        torch.manual_seed(0)
        learner = built("ewc", hidden=[], samples=samples)
        learner.end_split(Rows(*batch), torch.Generator().manual_seed(seed))
        return learner.fisher_head_weight

    assert torch.equal(held(1, 4), held(1, 4))
    assert not torch.allclose(held(1, 4), held(2, 4))
    torch.testing.assert_close(held(1, 16), held(2, 999))


def test_the_reservoir_is_a_uniform_sample_of_all_rows():
    places = np.zeros(60)
    for _ in range(400):
        learner = Replay(nn.Linear(1, 2), CRITERION, memory=6, features=1)
        for start in range(0, 60, 12):
            rows = torch.arange(start, start + 12)
            learner.after_step(rows[:, None].float(), rows)
        kept = learner.kept_classes.numpy()
        assert learner.kept.flatten().tolist() == kept.tolist()
        assert len(set(kept)) == 6
        places[kept] += 1
    assert places.sum() == 2400
    assert chisquare(places).pvalue > 1e-3


def test_replay_learns_the_batch_and_as_many_rows_of_the_memory(batch, monkeypatch):
    x, y = batch
    learner = built("replay", hidden=[], memory=8)
    torch.testing.assert_close(learner(x, y), CRITERION(learner.network(x), y))
    learner.after_step(x[:8], y[:8])
    monkeypatch.setattr(torch, "randint", lambda high, size, device: torch.arange(min(high, size[0])))
    torch.testing.assert_close(learner(x, y), CRITERION(learner.network(torch.cat([x, x[:8]])), torch.cat([y, y[:8]])))
    short = CRITERION(learner.network(torch.cat([x[:3], x[:3]])), torch.cat([y[:3], y[:3]]))
    torch.testing.assert_close(learner(x[:3], y[:3]), short)


@pytest.mark.parametrize("name", names())
def test_a_learner_resumes_from_its_state(name, batch):
    x, y = batch
    learner, other = built(name), built(name)
    learner.after_step(x, y)
    learner.end_split(Rows(x, y), torch.Generator())
    with torch.no_grad():
        for weight in learner.parameters():
            weight += torch.randn_like(weight) / 10
    other.load_state_dict(learner.state_dict())
    torch.manual_seed(1)
    expected = learner(x, y)
    torch.manual_seed(1)
    assert torch.equal(other(x, y), expected)
    expected.backward()
    assert all(weight.grad is not None for weight in learner.parameters())


def test_only_ewc_is_told_boundaries():
    assert set(ALL_AT_ONCE) < set(names())
    assert [name for name in names() if built(name).is_told_boundaries] == ["ewc"]


def test_a_bottleneck_learns_with_its_penalty(batch):
    x, y = batch
    layer = ibreg.VariationalBottleneck(6, 4, beta=0.5)
    learner = Bottlenecked(layer, 4, nn.CrossEntropyLoss())
    torch.manual_seed(1)
    loss = learner(x, y)
    torch.manual_seed(1)
    measured = layer.measure(x)
    torch.testing.assert_close(loss, F.cross_entropy(measured.z, y) + 0.5 * measured.penalty)
    torch.testing.assert_close(learner.eval().logits(x), layer(x))


def test_a_code_of_another_size_goes_through_a_head(batch):
    x, y = batch
    layer = ibreg.VariationalBottleneck(6, 3, beta=0)
    learner = Bottlenecked(layer, 4, CRITERION)
    learner(x, y).backward()
    head = learner.network.model[1]
    assert head.weight.grad.abs().sum() > 0
    torch.testing.assert_close(learner.eval().logits(x), head(layer(x)))


def test_keys_start_from_inputs_without_labels_once_and_stay(batch, tmp_path, monkeypatch):
    def prepared(seed):
        torch.manual_seed(seed)
        learner = Bottlenecked(ibreg.KeyValueBottleneck(6, 4, codebooks=3, pairs=8, key_features=2), 4, CRITERION)
        drawn = learner.layer.keys.clone()
        learner.prepare(torch.randn(64, 6, generator=torch.Generator().manual_seed(5)),
                        {"method": "ema", "epochs": 2}, tmp_path, described="")  # fmt: skip
        assert not torch.equal(learner.layer.keys, drawn)
        return learner

    first, other = prepared(1), prepared(2)
    monkeypatch.setattr(ibreg.KeyValueBottleneck, "initialize", None)
    again = prepared(1)
    assert torch.equal(first.layer.keys, again.layer.keys)
    assert not torch.equal(first.layer.keys, other.layer.keys)
    x, y = batch
    keys = again.layer.keys.clone()
    assert again.usage() == {"used": 0}
    again(x, y).backward()
    assert torch.equal(again.layer.keys, keys)
    hit = again.layer.usage > 0
    assert again.usage() == {"used": pytest.approx(int(hit.sum()) / 24)}
    assert torch.equal((again.layer.values.grad != 0).any(1), hit.flatten())


def test_centroids_learn_faster(batch):
    learner = Bottlenecked(ibreg.DistanceAwareBottleneck(6, 4, gaussians=3), 4, CRITERION)
    rest, centroids = learner.parameter_groups(0.1)
    assert (rest["lr"], centroids["lr"]) == (0.1, pytest.approx(3))
    assert [weight.shape for weight in centroids["params"]] == [(3, 4)]
    found = {*map(id, rest["params"]), *map(id, centroids["params"])}
    assert found == set(map(id, learner.parameters()))
    assert len(rest["params"]) + 1 == len(list(learner.parameters()))
    (only,) = built("mlp").parameter_groups(0.1)
    assert len(only["params"]) == 4


def test_uncertainty_is_the_distance_to_a_codebook_or_the_lack_of_confidence(batch):
    x, _ = batch
    learner = built("linear").eval()
    probabilities = torch.exp(learner.logits(x)) / torch.exp(learner.logits(x)).sum(1, keepdim=True)
    torch.testing.assert_close(learner.uncertainty(x), 1 - probabilities.amax(1))
    layer = ibreg.DistanceAwareBottleneck(6, 4, gaussians=3)
    aware = Bottlenecked(layer, 4, CRITERION).eval()
    torch.testing.assert_close(aware.uncertainty(x).mean(), layer.measure(x).logs["uncertainty"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("emc", {}, r"^no learner 'emc' \(did you mean 'ewc'\?\): it is one of ewc, joint, linear, mlp, replay$"),
        ("linear", {"hidden": [3]}, "^linear has no key 'hidden': it has no options$"),
        ("mlp", {"hidden": [0]}, r"^mlp.hidden must be a list of integers of at least 1, got \[0\]$"),
        ("mlp", {"hidden": 3}, "^mlp.hidden must be a list of integers of at least 1, got 3$"),
        ("ewc", {"strength": -1}, "^ewc.strength must be a number of at least 0, got -1$"),
        ("ewc", {"strength": float("inf")}, "^ewc.strength must be a number of at least 0, got inf$"),
        ("ewc", {"samples": 0}, "samples must be an integer of at least 1, got 0"),
        ("replay", {"memory": 0}, "memory must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        built(name, **options)
