"""Concept metrics against scikit-learn and formulas; reliance on models whose behavior is known by construction."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.testing import assert_close

import ibreg
from ibreg.evaluation.classification.metrics import classification_metrics
from ibreg.evaluation.concepts.metrics import class_concept_matrix, concept_metrics, head_agreement
from ibreg.evaluation.concepts.reliance import ablated, completeness, concept_reliance, head_effects
from ibreg.layers.concept.specification import Concepts

MIXED = Concepts.of(["red", {"name": "digit", "values": [0, 1, 2]}, {"name": "size", "kind": "continuous"}])


def mixed_labels(rows, generator):
    digits = torch.eye(3)[torch.randint(3, (rows,), generator=generator)]
    red = torch.randint(2, (rows, 1), generator=generator).float()
    return torch.cat([red, digits, torch.randn(rows, 1, generator=generator)], 1)


def test_metrics_agree_with_scikit_learn_and_with_their_formulas():
    generator = torch.Generator().manual_seed(0)
    labels = mixed_labels(400, generator)
    logits = 1.5 * (labels - 0.4) + torch.randn(400, 5, generator=generator)
    labels[:30, 0] = torch.nan
    labels[50:80, 1:4] = torch.nan
    found = concept_metrics(logits, labels, MIXED)
    red, digit = ~labels[:, 0].isnan(), ~labels[:, 1].isnan()
    accuracies = [
        ((logits[red, 0] > 0) == labels[red, 0]).float().mean(),
        (logits[digit, 1:4].argmax(1) == labels[digit, 1:4].argmax(1)).float().mean(),
    ]
    assert found["concept_accuracy"] == pytest.approx(float(sum(accuracies)) / 2)
    softmax = logits[digit, 1:4].softmax(1)
    areas = [roc_auc_score(labels[red, 0], logits[red, 0])]
    areas += [roc_auc_score(labels[digit, 1 + place], softmax[:, place]) for place in range(3)]
    assert found["concept_auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    p = torch.sigmoid(logits[red, :1].double())
    errors = [
        classification_metrics(torch.cat([1 - p, p], 1), labels[red, 0].long())["ece"],
        classification_metrics(logits[digit, 1:4].double().softmax(1), labels[digit, 1:4].argmax(1))["ece"],
    ]
    assert found["concept_ece"] == pytest.approx(np.mean(errors))
    assert found["concept_rmse"] == pytest.approx(float((logits[:, 4] - labels[:, 4]).square().mean().sqrt()))


def test_the_threshold_is_a_logit_of_0_and_the_auroc_is_of_probabilities():
    """A logit of 0.3 is a positive prediction: a threshold of 0.5 on logits would miss it."""
    labels = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    found = concept_metrics(torch.tensor([[0.3], [0.2], [-0.1], [-4.0]]), labels, Concepts.of(1))
    assert found["concept_accuracy"] == 1
    assert found["concept_auroc"] == 1
    # Thresholded labels would tie here and give 0.5.
    ordered = concept_metrics(torch.tensor([[3.0], [2.0], [1.0], [0.5]]), labels, Concepts.of(1))
    assert ordered["concept_auroc"] == 1
    assert ordered["concept_accuracy"] == 0.5


def test_a_concept_whose_labels_are_all_the_same_has_no_auroc():
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    found = concept_metrics(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), labels, Concepts.of(2))
    assert found["concept_auroc"] == 1
    assert "concept_auroc" not in concept_metrics(torch.ones(2, 1), torch.ones(2, 1), Concepts.of(1))


def test_invalid_shapes_and_labels():
    with pytest.raises(ValueError, match=r"concept logits must have shape \(batch, 2 concepts\)"):
        concept_metrics(torch.ones(4, 3), torch.ones(4, 2), Concepts.of(2))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        concept_metrics(torch.ones(4, 2), 2 * torch.ones(4, 2), Concepts.of(2))


def test_a_concept_without_a_label_here_is_left_out():
    logits, labels = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]), torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])
    assert concept_metrics(logits, labels, Concepts.of(2)) == concept_metrics(
        logits[:, :1], labels[:, :1], Concepts.of(1)
    )
    assert concept_metrics(logits, torch.full((2, 2), torch.nan), Concepts.of(2)) == {}


def test_the_effects_of_a_head_are_its_own_where_corrections_move_other_concepts():
    layer = ibreg.StochasticConceptBottleneck(4, 3, code="probability", out_features=2, head="linear").eval()
    nn.init.normal_(layer.factor_encoder.bias, std=2.0)
    x = torch.randn(20, 4)
    effects = head_effects(nn.Sequential(layer), x, layer.concept_logits(x).detach())
    assert_close(effects, layer.decoder.weight.detach(), rtol=1e-4, atol=1e-5)


def test_a_head_agrees_with_the_matrix_that_it_is_made_of():
    generator = torch.Generator().manual_seed(0)
    labels, target = torch.randint(2, (200, 4), generator=generator).float(), torch.arange(200) % 3
    labels[3, 1] = torch.nan
    matrix = class_concept_matrix(labels, target, 3)
    expected = np.stack([np.nanmean(labels[target == label].numpy(), 0) for label in range(3)])
    assert_close(matrix, torch.tensor(expected))
    # A softmax is invariant to terms shared by all classes, and the agreement to scale.
    assert head_agreement(7 * matrix + torch.randn(1, 4, generator=generator), matrix) == pytest.approx(1)
    assert head_agreement(-matrix, matrix) == pytest.approx(-1)
    one = torch.tensor([[1.0, -2.0]])
    assert head_agreement(one, torch.tensor([[-1.0, 2.0], [1.0, -2.0]])) == pytest.approx(1)
    weights = torch.randn(3, 4, generator=generator)
    centered, other = (part - part.mean(0) for part in (weights, matrix))
    expected = torch.nn.functional.cosine_similarity(centered.flatten(), other.flatten(), dim=0)
    assert head_agreement(weights, matrix) == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match="must differ between classes"):
        head_agreement(torch.ones(3, 4), matrix)
    with pytest.raises(ValueError, match=r"weights and matrix must have the same shape \(classes, concepts\)"):
        head_agreement(weights, matrix[:, :3])
    with pytest.raises(ValueError, match="class 3 has no known label of concept 0"):
        class_concept_matrix(labels, target, 4)


# --- reliance


def built(residual=0, flipped=False):
    """Concepts are both inputs, predicted without error; the class is the first one, read from it or bypassing it."""
    layer = ibreg.ConceptBottleneck(2, 2, residual=residual)
    net = nn.Sequential(layer, nn.Linear(2 + residual, 2)).eval()
    with torch.no_grad():
        layer.encoder.weight.copy_(torch.cat([20 * torch.eye(2), torch.tensor([[20.0, 0.0]] * residual)]))
        layer.encoder.bias.zero_()
        read = torch.zeros(2 + residual)
        read[2 if residual else 0] = -1.0 if flipped else 1.0
        net[1].weight.copy_(torch.stack([-read, read]) * 10)
        net[1].bias.copy_(torch.zeros(2) if residual else torch.tensor([5.0, -5.0]) * (-1 if flipped else 1))
    return net


def samples(rows=400):
    x = torch.rand(rows, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = x + 0.2 * x.sign()
    truth = (x > 0).float()
    return x, truth[:, 0].long(), truth


def training_logits(net, x):
    return net[0].concept_logits(x).detach()


def test_a_model_that_reads_its_concepts_fails_without_them():
    net, (x, target, truth) = built(), samples()
    found = concept_reliance(net, x, target, truth, training_logits(net, x))
    assert found["truth_accuracy"] == found["certain_accuracy"] == 1
    assert found["ablated_accuracy"] == pytest.approx(0.5, abs=0.05)
    assert found["sign"] == pytest.approx(0.75)  # the first always helps, the second does nothing
    for name in ("truth_accuracy", "ablated_accuracy", "sign"):
        assert found[f"{name}_control"] == pytest.approx(0.5, abs=0.08)


def test_a_model_that_bypasses_its_concepts_keeps_its_accuracy_without_them():
    net, (x, target, truth) = built(residual=1), samples()
    found = concept_reliance(net, x, target, truth, training_logits(net, x))
    assert found["ablated_accuracy"] == 1
    assert found["sign"] == 0.5
    assert found["ablated_accuracy_control"] == pytest.approx(0.5, abs=0.08)


def test_a_head_with_a_flipped_weight_has_a_low_sign():
    net, (x, target, truth) = built(flipped=True), samples()
    found = concept_reliance(net, x, target, truth, training_logits(net, x))
    assert found["truth_accuracy"] == 0
    assert found["sign"] == pytest.approx(0.25)


def test_a_code_of_logits_is_set_to_training_percentiles():
    layer = ibreg.ConceptBottleneck(2, 2, code="logit")
    net = nn.Sequential(layer, nn.Linear(2, 2)).eval()
    x, target, truth = samples()
    training = training_logits(net, x)
    found = concept_reliance(net, x, target, truth, training)
    set_to = torch.where(truth == 1, training.quantile(0.95, 0), training.quantile(0.05, 0))
    accuracy = (net[1](set_to).argmax(1) == target).double().mean()
    assert found["truth_accuracy"] == pytest.approx(float(accuracy))
    certain = (net[1](layer.concepts.logits(truth)).argmax(1) == target).double().mean()
    assert found["certain_accuracy"] == pytest.approx(float(certain))
    constant = (net[1](training.mean(0, keepdim=True)).argmax(1) == target).double().mean()
    assert found["ablated_accuracy"] == pytest.approx(float(constant))


def test_completeness_is_0_at_chance_and_1_at_the_reference():
    truth = torch.randint(2, (1000, 4), generator=torch.Generator().manual_seed(0)).float()
    exclusive = (truth[:, 0] != truth[:, 1]).long()
    found = completeness(truth, exclusive, reference=1.0)
    assert found["completeness"] > 0.95
    assert abs(found["completeness_control"]) < 0.15
    assert abs(completeness(truth[:, 2:], exclusive, reference=1.0)["completeness"]) < 0.15
    half = completeness(truth[:, :1], truth[:, 0].long() + truth[:, 1].long(), reference=1.0, classes=3)
    # From one of two coins: the most frequent sum of its side, 1/2, which is the largest class's share.
    assert abs(half["completeness"]) < 0.15
    with pytest.raises(ValueError, match=r"above that of the largest class, 0\.\d+, got 0\.4"):
        completeness(truth, exclusive, reference=0.4)
    with pytest.raises(ValueError, match="fitted and evaluated on 20 samples each, got 30"):
        completeness(truth[:30], exclusive[:30], reference=1.0)


# --- heads


@torch.no_grad()
def test_an_ablated_concept_is_a_head_without_its_weights():
    layer = ibreg.ConceptBottleneck(4, MIXED)
    net = nn.Sequential(layer, nn.Linear(5, 3)).eval()
    x, training = torch.randn(30, 4), torch.randn(200, 5)
    without = ["red", "digit=0", "digit=1", "digit=2"]
    expected = nn.Linear(5, 3)
    expected.weight.copy_(net[1].weight)
    expected.weight[:, :4] = 0
    expected.bias.copy_(net[1].bias + net[1].weight[:, :4] @ MIXED.probabilities(training).mean(0)[:4])
    assert_close(ablated(ibreg.Regularized(net), x, without, training), expected(layer(x)))
    with pytest.raises(ValueError, match="there is no concept 'blue'"):
        ablated(net, x, ["blue"], training)


@torch.no_grad()
def test_effects_of_a_linear_head_are_its_weights():
    x, training = torch.randn(30, 4), torch.randn(200, 5)
    net = nn.Sequential(ibreg.ConceptBottleneck(4, MIXED), nn.Linear(5, 3)).eval()
    effects, weights = head_effects(net, x, training), net[1].weight
    assert_close(effects[:, 0], weights[:, 0])
    assert_close(effects[:, 1:4], weights[:, 1:4] - weights[:, 1:4].mean(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert_close(effects[:, 4], weights[:, 4] * training[:, 4].std())
    # In a code of logits a concept goes from its 5th to its 95th percentile.
    net = nn.Sequential(ibreg.ConceptBottleneck(4, 5, code="logit"), nn.Linear(5, 3)).eval()
    reach = training.quantile(0.95, 0) - training.quantile(0.05, 0)
    assert_close(head_effects(net, x, training), net[1].weight * reach, rtol=1e-4, atol=1e-5)
