"""What all concept bottlenecks share: the concept loss against numpy, interventions, positions, heads, models."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from torch import nn
from torch.nn import functional as F

import ibreg
from ibreg.layers.concept.base import ConceptIntervention
from ibreg.layers.intervention import intervening

FEATURES, BATCH = 5, 6
SHAPES = {2: (BATCH, FEATURES), 3: (BATCH, 7, FEATURES), 4: (BATCH, FEATURES, 2, 3)}
ENTRIES = ["red", {"name": "round", "weight": 3}, {"name": "digit", "values": [0, 1, 2], "weight": 0.5}]
CONTINUOUS = {"name": "size", "kind": "continuous", "weight": 2}

LAYERS = [
    pytest.param("concept", {}, id="probability"),
    pytest.param("concept", {"code": "hard"}, id="hard"),
    pytest.param("concept_embedding", {"embedding_features": 3}, id="embedding"),
    pytest.param("probabilistic_concept", {"embedding_features": 3}, id="probabilistic"),
    pytest.param("stochastic_concept", {}, id="stochastic"),
    pytest.param("post_hoc_concept", {"code": "probability"}, id="post_hoc"),
]
every_layer = pytest.mark.parametrize(("name", "options"), LAYERS)


def build(name, options, concepts=ENTRIES, **further):
    return ibreg.build(name, in_features=FEATURES, concepts=concepts, **options, **further)


def truth(batch=BATCH):
    """Labels 0 or 1, one-hot in the group."""
    labels = torch.zeros(batch, 5)
    labels[:, :2] = torch.randint(2, (batch, 2)).float()
    labels[:, 2:] = F.one_hot(torch.arange(batch) % 3, 3).float()
    return labels


def everything(labels):
    return ConceptIntervention(torch.ones(labels.shape, dtype=torch.bool), labels)


# ---- the loss


def reference_loss(layer, logits, labels):
    """Loss in float64 numpy: binary, categorical, continuous columns, NaN left out, unlabeled samples too."""
    positive = np.ones(logits.shape[1]) if layer.pos_weight is None else np.broadcast_to(layer.pos_weight, 6)
    total, samples = 0.0, 0
    for row, label in zip(logits, labels, strict=True):
        samples += not np.isnan(label).all()
        for column in (0, 1):
            if not np.isnan(label[column]):
                p = expit(row[column])
                loss = -positive[column] * label[column] * np.log(p) - (1 - label[column]) * np.log(1 - p)
                total += layer.concepts.weights[column] * loss
        if not np.isnan(label[2]):
            total += 0.5 * -(label[2:5] * log_softmax(row[2:5])).sum()
        if not np.isnan(label[5]):
            total += 2 * (row[5] - label[5]) ** 2
    return total / max(samples, 1)


@pytest.mark.parametrize("pos_weight", [None, 4.0, [0.5, 2.0, 9.0, 9.0, 9.0, 9.0]])
@pytest.mark.parametrize("name", ["concept", "concept_embedding"])
def test_concept_loss_against_numpy(name, pos_weight):
    layer = build(name, {}, [*ENTRIES, CONTINUOUS], pos_weight=pos_weight).double()
    x = 3 * torch.randn(BATCH, FEATURES, dtype=torch.float64)
    labels = torch.cat([truth(), torch.randn(BATCH, 1)], 1).double()
    labels[0, :2] = torch.tensor([0.3, 0.8])
    labels[1, 0] = labels[2, 5] = torch.nan
    labels[3, 2:5] = torch.nan
    labels[4] = torch.nan
    logits = layer.eval().concept_logits(x).detach().numpy()
    out = layer.train().measure(x, concepts=labels)
    assert out.penalty.item() == pytest.approx(reference_loss(layer, logits, labels.numpy()), rel=1e-6)
    assert out.logs["concept_loss"] == out.penalty
    assert layer.eval().measure(x, concepts=labels).logs["concept_loss"] == out.penalty


def test_concept_scores():
    layer = build("concept", {}, [*ENTRIES, CONTINUOUS]).eval()
    x = torch.randn(BATCH, FEATURES)
    labels = torch.cat([truth(), torch.randn(BATCH, 1)], 1)
    labels[0] = labels[1, 0] = torch.nan
    logs = layer.measure(x, concepts=labels).logs
    logits, known = layer.concept_logits(x), ~labels.isnan()
    binary = ((logits[:, :2] > 0) == (labels[:, :2] > 0.5))[known[:, :2]]
    group = (logits[1:, 2:5].argmax(1) == labels[1:, 2:5].argmax(1)).float()
    expected = (binary.sum() + group.sum()) / (len(binary) + len(group))
    torch.testing.assert_close(logs["concept_accuracy"], expected)
    torch.testing.assert_close(logs["concept_error"], (logits[1:, 5] - labels[1:, 5]).square().mean())


@every_layer
def test_missing_labels_have_no_loss(name, options):
    layer = build(name, options)
    model = ibreg.Regularized(nn.Sequential(layer))
    output, penalty, logs = model(torch.randn(BATCH, FEATURES), concepts=torch.full((BATCH, 5), torch.nan))
    assert logs["0/concept_loss"] == logs["0/concept_accuracy"] == 0
    (output.sum() + penalty).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


@every_layer
def test_a_missing_label_is_a_concept_of_weight_0(name, options):
    layer, x = build(name, options), torch.randn(BATCH, FEATURES, requires_grad=True)
    complete = truth()
    labels = complete.clone()
    labels[:, 1:] = torch.nan
    torch.manual_seed(0)
    loss = layer.measure(x, concepts=labels).logs["concept_loss"]
    layer.concept_weights[1:] = 0
    torch.manual_seed(0)
    torch.testing.assert_close(layer.measure(x, concepts=complete).logs["concept_loss"], loss)


@every_layer
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(BATCH, 4), ValueError, r"labels of shape \(batch, concepts\) = \(6, 5\), got \(6, 4\)"),
        (torch.zeros(BATCH), ValueError, r"= \(6, 5\), got \(6,\)"),
        (torch.zeros(BATCH - 1, 5), ValueError, r"= \(6, 5\), got \(5, 5\)"),
        (torch.full((BATCH, 5), 2.0), RuntimeError, r"labels of binary concepts that are in \[0, 1\], or NaN"),
        (torch.full((BATCH, 5), -0.1), RuntimeError, "or NaN where they are missing"),
        (torch.full((BATCH, 5), torch.inf), RuntimeError, "or NaN where they are missing"),
    ],
)
def test_labels_that_do_not_fit(name, options, labels, error, message):
    with pytest.raises(error, match=message):
        build(name, options).measure(torch.randn(BATCH, FEATURES), concepts=labels)


# ---- interventions


@every_layer
@pytest.mark.parametrize("head", ["identity", "linear", "mlp"])
def test_the_truth_everywhere_is_the_head_of_true_concepts(name, options, head):
    if name == "post_hoc_concept":
        layer, labels = build(name, options).eval(), truth()
    else:
        size = {} if head == "identity" else {"out_features": 4}
        layer, labels = build(name, options, head=head, **size).eval(), truth()
    x = torch.randn(BATCH, FEATURES)
    code = labels
    if name == "concept_embedding":
        context = F.leaky_relu(layer.encoder(x)).reshape(BATCH, 5, 6)
        code = torch.where(labels.bool().unsqueeze(2), context[..., :3], context[..., 3:]).flatten(1)
    if name == "probabilistic_concept":
        anchors = layer.anchors / layer.anchors.norm(dim=-1, keepdim=True)
        code = torch.where(labels.bool().unsqueeze(2), anchors[1], anchors[0]).flatten(1)
    with intervening({layer: everything(labels)}):
        assert torch.equal(layer(x), layer.decoder(code))
        assert torch.equal(layer.measure(x, concepts=truth()).z, layer(x))
    assert not torch.equal(layer(x), layer.decoder(code))


@every_layer
def test_interventions_act_in_training_too(name, options):
    layer, labels, x = build(name, options).train(), truth(), torch.randn(BATCH, FEATURES)
    evaluated = {}
    for training in (True, False):
        layer.train(training)
        with intervening({layer: everything(labels)}):
            evaluated[training] = layer.measure(x, concepts=truth()).z
    torch.testing.assert_close(evaluated[True], evaluated[False])


@every_layer
def test_only_what_the_mask_covers_is_set(name, options):
    layer, x = build(name, options).eval(), torch.randn(BATCH, FEATURES)
    mask = torch.zeros(BATCH, 5, dtype=torch.bool)
    mask[::2, 0] = True
    plain = layer(x)
    with intervening({layer: ConceptIntervention(mask, torch.full((BATCH, 5), torch.nan).masked_fill(mask, 1.0))}):
        set_to_one = layer(x)
    assert set_to_one.isfinite().all()
    torch.testing.assert_close(set_to_one[1::2], plain[1::2])
    assert not torch.equal(set_to_one[::2], plain[::2])
    assert torch.equal(layer(x), plain)
    with intervening({layer: ConceptIntervention(torch.zeros_like(mask), truth())}):
        torch.testing.assert_close(layer(x), plain)


@every_layer
@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (ConceptIntervention(torch.zeros(BATCH, 2, dtype=torch.bool), torch.zeros(BATCH, 2)), r"mask .*\(6, 5\), got"),
        (ConceptIntervention(torch.zeros(5, dtype=torch.bool), torch.zeros(5)), r"\(6, 5\), got \(5,\)"),
        (ConceptIntervention(torch.tensor([0, 3]), torch.zeros(BATCH, 5)), "bool tensor .* convert indices to a mask"),
        (ConceptIntervention(torch.ones(BATCH, 5), torch.zeros(BATCH, 5)), "must be a bool tensor"),
        (ConceptIntervention(torch.ones(BATCH, 5).bool(), torch.zeros(BATCH, 1)), r"values of .*got \(6, 1\)"),
        (
            ConceptIntervention(torch.ones(BATCH, 5).bool(), torch.zeros(BATCH, 5), "percentile"),
            "'probability', 'logit'",
        ),
    ],
)
def test_interventions_that_do_not_fit(name, options, intervention, message):
    layer = build(name, options).eval()
    with intervening({layer: intervention}), pytest.raises(ValueError, match=message):
        layer(torch.randn(BATCH, FEATURES))


@every_layer
def test_setting_a_concept_to_nan_is_an_error(name, options):
    layer = build(name, options).eval()
    unknown = everything(torch.full((BATCH, 5), torch.nan))
    with intervening({layer: unknown}), pytest.raises(RuntimeError, match="sets concepts to finite values"):
        layer(torch.randn(BATCH, FEATURES))


@pytest.mark.parametrize(("name", "options"), [LAYERS[0], LAYERS[4]])
def test_interventions_reach_compiled_models(name, options):
    layer, labels, x = build(name, options).eval(), truth(), torch.randn(BATCH, FEATURES)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    with intervening({layer: everything(labels)}):
        torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(compiled(x), layer(x))


# ---- predictions


@every_layer
def test_predictions_are_probabilities_of_the_logits(name, options):
    layer, x = build(name, options).eval(), torch.randn(BATCH, FEATURES)
    logits, probabilities = layer.concept_logits(x), layer.predict_concepts(x)
    torch.testing.assert_close(probabilities[:, :2], logits[:, :2].sigmoid())
    torch.testing.assert_close(probabilities[:, 2:], logits[:, 2:].softmax(1))
    with intervening({layer: everything(truth())}):
        torch.testing.assert_close(layer.predict_concepts(x), probabilities)


@pytest.mark.parametrize("code", ["probability", "hard", "logit"])
@pytest.mark.parametrize("name", ["concept", "stochastic_concept", "post_hoc_concept"])
def test_the_space_of_interventions_is_that_of_the_code(name, code):
    layer = build(name, {"code": code})
    assert layer.intervention_space == ("logit" if code == "logit" else "probability")


# ---- positions, draws


@every_layer
@pytest.mark.parametrize("rank", [3, 4])
def test_concepts_are_read_from_the_mean_of_positions(name, options, rank):
    layer, x = build(name, options).eval(), torch.randn(SHAPES[rank])
    pooled = x.mean(1) if rank == 3 else x.mean((2, 3))
    expected = layer(pooled)
    z = layer(x)
    at_positions = z.flatten(1, 1) if rank == 3 else z.flatten(2).mT
    for position in range(at_positions.shape[1]):
        torch.testing.assert_close(at_positions[:, position], expected)


@every_layer
def test_padding_does_not_affect_concepts(name, options):
    layer, x = build(name, options).eval(), torch.randn(3, 7, FEATURES)
    mask = torch.arange(7) < torch.tensor([7, 4, 1]).unsqueeze(1)
    expected = torch.stack([layer(x[i : i + 1, :length])[0, 0] for i, length in enumerate([7, 4, 1])])
    for kind in (mask, mask.float()):
        padded = layer.measure(torch.where(mask.unsqueeze(-1), x, 1e6), mask=kind).z
        torch.testing.assert_close(padded[:, 0], expected)
    with pytest.raises(ValueError, match="mask must have the shape"):
        layer.measure(x, mask=mask[:, :3])


def stochastic(name):
    return build(name, {}, out_features=4)


@pytest.mark.parametrize("name", ["probabilistic_concept", "stochastic_concept"])
def test_several_draws(name):
    model = ibreg.Regularized(nn.Sequential(stochastic(name), nn.Linear(4, 2)), draws=3)
    x = torch.randn(BATCH, FEATURES)
    output, penalty, _ = model(x, concepts=truth())
    assert output.shape == (3, BATCH, 2)
    (output.square().mean() + penalty).backward()
    layer = model.model[0]
    with intervening({layer: everything(truth())}):
        draws = model(x, concepts=truth()).output
    torch.testing.assert_close(draws[0], draws[2])
    averaged = ibreg.predict(model, x, draws=64, seed=0, mean="output")
    assert averaged.shape == (BATCH, 2)


def test_interventions_after_the_samples_of_another_layer():
    embedding = build("concept_embedding", {"embedding_features": 3})
    net = nn.Sequential(ibreg.VariationalBottleneck(FEATURES), embedding)
    model, labels, x = ibreg.Regularized(net, draws=3), truth(), torch.randn(BATCH, FEATURES)
    assert model(x, concepts=labels).output.shape == (3, BATCH, 15)
    assert ibreg.predict(net, x, draws=3, mean="output").shape == (BATCH, 15)
    scaled = build("concept", {})
    net = nn.Sequential(ibreg.VariationalBottleneck(FEATURES), scaled)
    with intervening({scaled: everything(labels)}):
        torch.testing.assert_close(ibreg.Regularized(net, draws=3)(x, concepts=labels).output, labels.expand(3, -1, -1))


# ---- heads


def test_heads_and_their_sizes():
    assert build("concept", {}).head == "identity"
    assert build("concept", {}).out_features == 5
    assert build("concept", {"residual": 2}).out_features == 7
    assert build("concept", {"out_features": 3}).head == "linear"
    assert build("concept", {"head": "linear"}).out_features == FEATURES
    assert [type(part) for part in build("concept", {"head": "mlp", "out_features": 3}).decoder] == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concepts": None}, "has no concepts: pass their number, concepts=5"),
        ({"head": "tree"}, "head must be None or one of 'identity', 'linear', 'mlp', got 'tree'"),
        (
            {"head": "identity", "out_features": 3},
            "so out_features must be its size 2, got 3: leave",
        ),
        ({"out_features": 0}, "out_features must be None or an integer of at least 1 [(]size of the output[)], got 0"),
        ({"pos_weight": [1.0]}, "pos_weight must be one number or one for each of 2 concepts, got 1 numbers"),
        ({"pos_weight": 0.0}, "pos_weight must be None, a finite number above 0, or a list .*, got 0.0"),
        ({"pos_weight": [1.0, float("nan")]}, r"or a list of such numbers, one per concept, got \[1.0, nan\]"),
        ({"pos_weight": "balanced"}, "pos_weight must be None, a finite number above 0, or .*, got 'balanced'"),
        ({"concepts": ["a", "a"]}, "'a' is used twice"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ibreg.ConceptBottleneck(**{"in_features": FEATURES, "concepts": 2, **options})


# ---- in models


class Backbone(nn.Module):
    """Maps, pooling and a classifier, as in networks for images."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, FEATURES, 3), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(FEATURES, 3)

    def forward(self, x):
        return self.fc(self.avgpool(self.features(x)).flatten(1))


@every_layer
@pytest.mark.parametrize("host", ["features", "avgpool"])
def test_injected_saved_and_loaded(name, options, host, tmp_path):
    backbone, x = Backbone(), torch.randn(BATCH, 1, 6, 6)
    keys = list(backbone.state_dict())
    net = Backbone()
    net.load_state_dict(backbone.state_dict())
    layer = ibreg.build(name, concepts=ENTRIES, **options, **({} if name == "post_hoc_concept" else {"head": "linear"}))
    ibreg.inject(net, {host: layer}, example=x[:1])
    assert [key for key in net.state_dict() if "bottleneck" not in key and key.startswith(("fc", "features.0"))] == keys
    assert layer.in_features == layer.out_features == FEATURES
    output, penalty, _ = ibreg.Regularized(net)(x, concepts=truth())
    (output.square().mean() + penalty).backward()
    path = tmp_path / "bottleneck.safetensors"
    ibreg.save_bottlenecks(net, path)
    loaded = ibreg.load_bottlenecks(backbone, path)
    assert next(iter(ibreg.bottlenecks(loaded).values())).concepts == ibreg.Concepts.of(ENTRIES)
    assert torch.equal(loaded.eval()(x), net.eval()(x))


def test_layers_of_other_concepts_are_not_mixed_up(tmp_path):
    first = ibreg.inject(Backbone(), {"avgpool": ibreg.ConceptBottleneck(FEATURES, ["a", "b"], head="linear")})
    second = ibreg.inject(Backbone(), {"avgpool": ibreg.ConceptBottleneck(FEATURES, ["b", "a"], head="linear")})
    ibreg.save_bottlenecks(first, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=r"concepts differ"):
        ibreg.load_bottlenecks(second, tmp_path / "file.safetensors")


def test_it_learns_the_concepts_and_the_task():
    torch.manual_seed(1)
    x = torch.randn(400, FEATURES)
    concepts = (x[:, :3] > 0).float()
    target = (concepts.sum(1) > 1.5).long()
    net = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), ibreg.ConceptBottleneck(16, 3), nn.Linear(3, 2))
    model, criterion = ibreg.Regularized(net), ibreg.Penalized(nn.CrossEntropyLoss())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        criterion(model(x, concepts=concepts), target).backward()
        optimizer.step()
    output, _, logs = model.eval()(x, concepts=concepts)
    assert logs["2/concept_accuracy"] > 0.97
    assert (output.argmax(1) == target).float().mean() > 0.97
