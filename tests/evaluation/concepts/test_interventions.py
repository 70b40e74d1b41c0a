"""Interventions: the head applied to the values that are set, percentiles of training data, intervention curves."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t
from torch import nn
from torch.testing import assert_close

import ibreg
from ibreg.evaluation.concepts.curves import InterventionCurve, intervention_curve
from ibreg.evaluation.concepts.interventions import (
    concept_layer,
    intervene,
    intervention_groups,
    intervention_values,
    percentiles,
    wrong_labels,
)
from ibreg.evaluation.concepts.policies import POLICIES
from ibreg.evaluation.concepts.predictions import class_probabilities, predict_concepts
from ibreg.evaluation.concepts.session import Policy, Session
from ibreg.layers.concept.specification import Concepts

MIXED = [
    {"name": "red", "group": "look"},
    {"name": "digit", "values": [0, 1, 2]},
    {"name": "round", "group": "look"},
    {"name": "size", "kind": "continuous"},
]


def classifier(concepts=3, classes=3, **options):
    layer = ibreg.ConceptBottleneck(6, concepts, **options)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), layer, nn.Linear(layer.out_features, classes)).eval()


def truth_of(concepts, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for kind, run in Concepts.of(concepts).runs:
        width = run.stop - run.start
        if kind == "categorical":
            labels.append(torch.eye(width)[torch.randint(width, (rows,), generator=generator)])
        elif kind == "binary":
            labels.append(torch.randint(2, (rows, width), generator=generator).float())
        else:
            labels.append(torch.randn(rows, width, generator=generator))
    return torch.cat(labels, 1)


# --- setting concepts


@pytest.mark.parametrize("code", ["probability", "hard"])
@pytest.mark.parametrize("concepts", [3, MIXED])
def test_setting_all_concepts_to_the_truth_is_the_head_applied_to_the_truth(code, concepts):
    net = classifier(concepts, code=code)
    x, truth = torch.randn(7, 4), truth_of(concepts, 7)
    everything = torch.ones_like(truth).bool()
    for model in (net, ibreg.Regularized(net)):
        with intervene(model, everything, truth):
            assert torch.equal(net(x), net[3](truth))
        predicted = predict_concepts(model, x, mask=everything, labels=truth)
        assert torch.equal(predicted.output, net[3](truth))
        assert torch.equal(predicted.values, truth)
        assert torch.equal(predicted.codes.squeeze(2), truth)


def test_an_intervention_ends_with_its_block_and_acts_within_its_mask():
    net, x = classifier(), torch.randn(5, 4)
    before = net(x)
    mask = torch.zeros(5, 3).bool()
    with intervene(net, mask, torch.full((5, 3), torch.nan)):
        assert torch.equal(net(x), before)
    mask[2, 1] = True
    with intervene(net, mask, torch.ones(5, 3)):
        changed = (net(x) != before).any(1)
    assert changed.tolist() == [False, False, True, False, False]
    with pytest.raises(RuntimeError), intervene(net, mask, torch.ones(5, 3)):
        raise RuntimeError
    assert torch.equal(net(x), before)


def test_percentiles_are_those_of_the_training_logits():
    logits = torch.randn(101, 3, dtype=torch.float64)
    percent = 100 * torch.rand(9, 3, dtype=torch.float64)
    expected = [
        [np.percentile(logits[:, column], float(percent[row, column])) for column in range(3)] for row in range(9)
    ]
    assert_close(percentiles(logits, percent), torch.tensor(expected, dtype=torch.float64))
    net, x, training = classifier(code="logit"), torch.randn(4, 4), torch.randn(200, 4)
    of_training = predict_concepts(net, training).logits
    everything, truth = torch.ones(4, 3).bool(), truth_of(3, 4)
    expected = torch.where(truth == 1, of_training.quantile(0.95, 0), of_training.quantile(0.05, 0))
    with intervene(net, everything, 5 + 90 * truth, "percentile", training_logits=of_training):
        assert_close(net(x), net[3](expected))
    predicted = predict_concepts(net, x, mask=everything, labels=truth, training_logits=of_training)
    assert_close(predicted.codes.squeeze(2), expected)


def test_a_continuous_concept_is_set_to_its_label_in_a_code_of_logits_too():
    net = classifier(MIXED, code="logit")
    truth, training = truth_of(MIXED, 5), torch.randn(50, 6)
    values, space = intervention_values(net[2], truth, training)
    assert space == "logit"
    assert torch.equal(values[:, 5], truth[:, 5])
    assert_close(
        values[:, 0], torch.where(truth[:, 0] == 1, training[:, 0].quantile(0.95), training[:, 0].quantile(0.05))
    )


def test_predictions_do_not_depend_on_the_number_of_rows_or_the_mode():
    net = ibreg.Regularized(classifier(MIXED, residual=2)).train()
    x = torch.randn(2500, 4)
    predicted = predict_concepts(net, x)
    assert net.training
    assert predicted.output.shape == (2500, 3)
    assert predicted.codes.shape == (2500, 6, 1)
    few = predict_concepts(net, x[1200:1205])
    for all_rows, some in zip(predicted, few, strict=True):
        assert_close(all_rows[1200:1205], some)
    assert torch.equal(predicted.codes.squeeze(2), predicted.values)


def test_concepts_with_unknown_labels_are_not_set():
    net, x, truth = classifier(), torch.randn(6, 4), truth_of(3, 6)
    truth[2] = torch.nan
    predicted = predict_concepts(net, x, mask=torch.ones(6, 3).bool(), labels=truth)
    assert_close(predicted.output[2], net(x)[2])
    assert torch.equal(predicted.values[3], truth[3])


def test_wrong_labels_are_wrong_everywhere():
    truth = truth_of(MIXED, 300)
    wrong = wrong_labels(Concepts.of(MIXED), truth)
    assert torch.equal(wrong[:, [0, 4]], 1 - truth[:, [0, 4]])
    digits, other = truth[:, 1:4].argmax(1), wrong[:, 1:4].argmax(1)
    assert (wrong[:, 1:4].sum(1) == 1).all()
    assert (digits != other).all()
    assert all(len(other[digits == digit].unique()) == 2 for digit in range(3))
    assert wrong[:, 5].isnan().all()  # no number is exactly incorrect


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([0, 2]), r"must be a bool tensor \(batch, 3 concepts\), .* torch.int64; indices become one by"),
        ([0, 2], r"got \[0, 2\]; indices"),
        (torch.ones(5, 2).bool(), r"got \(5, 2\) of torch.bool"),
        (torch.ones(5, 3), "of torch.float32"),
    ],
)
def test_indices_and_other_shapes_are_not_a_mask(mask, message):
    net = classifier()
    with pytest.raises(ValueError, match=message), intervene(net, mask, torch.ones(5, 3)):
        pass


def test_errors_state_what_is_valid():
    net, x, mask = classifier(code="logit"), torch.randn(5, 4), torch.ones(5, 3).bool()
    with pytest.raises(ValueError, match="space of an intervention must be one of 'probability'"):
        intervene(net, mask, mask.float(), "percent").__enter__()
    with pytest.raises(ValueError, match="percentiles are those of training data"):
        intervene(net, mask, mask.float(), "percentile").__enter__()
    with pytest.raises(ValueError, match="must be from 0 to 100, got 500"):
        intervene(net, mask, 500 * mask.float(), "percentile", training_logits=torch.randn(9, 3)).__enter__()
    with pytest.raises(ValueError, match=r"values must have the shape of the mask \(5, 3\)"):
        intervene(net, mask, torch.ones(5, 2)).__enter__()
    with pytest.raises(ValueError, match="must have a concept bottleneck to intervene on, got none"):
        intervene(nn.Linear(3, 3), mask, mask.float()).__enter__()
    with pytest.raises(ValueError, match="an intervention sets percentiles of training data"):
        predict_concepts(net, x, mask=mask, labels=mask.float())
    twice = nn.Sequential(layer := ibreg.ConceptBottleneck(3, 3), layer)
    with pytest.raises(ValueError, match="bottleneck 0 must run once in a forward pass, got 2 calls"):
        predict_concepts(twice, torch.randn(5, 3))
    with pytest.raises(ValueError, match="must have one concept bottleneck, got 0: none"):
        concept_layer(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="got 2: 0, 1"):
        concept_layer(nn.Sequential(ibreg.ConceptBottleneck(3, 3), ibreg.ConceptBottleneck(3, 3)))


# --- curves


def solvable(rows=200, concepts=4, seed=0, accuracy=0.7):
    """A model whose head is correct where its concepts are, y = [more than half]; a fraction of them is correct."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(2, (rows, concepts), generator=generator).float()
    correct = torch.rand(rows, concepts, generator=generator) < accuracy
    confidence = 0.5 + 2 * torch.rand(rows, concepts, generator=generator)
    x = torch.where(correct, truth, 1 - truth) * 2 * confidence - confidence  # the logits
    layer = ibreg.ConceptBottleneck(concepts, concepts)
    net = nn.Sequential(layer, nn.Linear(concepts, 2)).eval()
    with torch.no_grad():
        layer.encoder.weight.copy_(torch.eye(concepts))
        layer.encoder.bias.zero_()
        net[1].weight.copy_(torch.stack([-torch.ones(concepts), torch.ones(concepts)]))
        net[1].bias.copy_(torch.tensor([concepts / 2 + 0.5, -concepts / 2 - 0.5]))
    return net, x, (truth.sum(1) > concepts / 2).long(), truth


def accuracy_of(model, x, target):
    return float((model(x).argmax(1) == target).double().mean())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_curve_starts_at_the_accuracy_without_interventions_and_ends_at_that_of_the_truth(policy):
    net, x, target, truth = solvable()
    curve = intervention_curve(net, x, target, truth, policy=policy)
    assert curve.accuracy.shape == (5 if policy == "random" else 1, 5)
    assert (curve.accuracy[:, 0] == accuracy_of(net, x, target)).all()
    assert (curve.accuracy[:, -1] == accuracy_of(net[1], truth, target)).all()
    assert curve.accuracy[0, -1] == 1
    assert_close(curve.spent, np.arange(5) / 4)
    assert curve.mean[0] < curve.area < 1
    wrong = intervention_curve(net, x, target, truth, policy=policy, wrong=True)
    assert (wrong.accuracy[:, -1] == accuracy_of(net[1], 1 - truth, target)).all()
    assert wrong.area < curve.mean[0]


def test_the_oracle_is_best_and_every_policy_beats_random():
    net, x, target, truth = solvable(rows=400, concepts=6)
    areas = {policy: intervention_curve(net, x, target, truth, policy=policy).area for policy in POLICIES}
    assert max(areas, key=areas.get) == "greedy"
    for policy in ("uncertainty", "coop", "expected_gain"):
        assert areas[policy] > areas["random"]


def test_scores_of_policies_against_their_formulas():
    net, x, target, truth = solvable(rows=50, concepts=3)
    p = torch.sigmoid(x)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())

    def classes(values):
        return net[1](values).softmax(1)

    def with_value(column, value):
        return classes(torch.cat([p[:, :column], value.view(-1, 1), p[:, column + 1 :]], 1))

    before, shannon = classes(p), lambda q: -(q * q.log()).sum(1)
    predicted = before.argmax(1)
    gains, changes, truths = [], [], []
    for column in range(3):
        zero, one = with_value(column, torch.zeros(50)), with_value(column, torch.ones(50))
        present = p[:, column]
        gains.append(shannon(before) - (1 - present) * shannon(zero) - present * shannon(one))
        moved = [(after - before).gather(1, predicted[:, None]).abs()[:, 0] for after in (zero, one)]
        changes.append((1 - present) * moved[0] + present * moved[1])
        truths.append((with_value(column, truth[:, column]) - before).gather(1, target[:, None])[:, 0])
    expected = {
        "uncertainty": entropy,
        "expected_gain": torch.stack(gains, 1),
        "coop": entropy + torch.stack(changes, 1),
        "greedy": torch.stack(truths, 1),
    }

    session = Session(net, x, target, truth)
    with torch.no_grad():
        for policy, scores in expected.items():
            assert_close(POLICIES[policy].score(session), scores)
            assert torch.equal(session.choose(POLICIES[policy]), scores.argmax(1))


@torch.no_grad()
def test_a_session_sets_the_chosen_concepts_and_keeps_account():
    net, x, target, truth = solvable(rows=30, concepts=3)
    truth[0, 2] = torch.nan
    session = Session(net, x, target, truth, costs=torch.tensor([1.0, 2.0, 5.0]))
    session.intervene(torch.full((30,), 2))
    p = torch.sigmoid(x)
    values = torch.cat([p[:, :2], torch.where(truth.isnan(), p, truth)[:, 2:]], 1)
    assert_close(session.concept_probabilities, values)
    assert_close(session.class_probabilities, net[1](values).softmax(1))
    assert session.accuracy == float((net[1](values).argmax(1) == target).double().mean())
    assert session.spent_fraction == 5 / 8
    assert session.remaining.tolist() == [[True, True, False]] * 30
    # A policy chooses among the remaining interventions, divides scores by costs and takes unlabeled concepts last.
    first = Policy(lambda session: torch.tensor([3.0, 4.0, 9.0]).expand(30, 3))
    assert session.choose(first).tolist() == [0] * 30
    assert Session(net, x, target, truth).choose(first).tolist() == [1] + [2] * 29
    assert Session(net, x, target, truth, costs=session.costs).choose(first._replace(stochastic=True))[1:].eq(2).all()
    outcome = session.outcome(torch.tensor([True, False, False]).expand(30, 3), torch.ones(30, 3))
    assert_close(outcome, net[1](torch.cat([torch.ones(30, 1), values[:, 1:]], 1)).softmax(1))


def test_interventions_set_groups_together_and_never_a_part_of_a_categorical_one():
    concepts = Concepts.of(MIXED)
    assert intervention_groups(concepts, "group") == {"look": (0, 4), "digit": (1, 2, 3), "size": (5,)}
    assert intervention_groups(concepts, "concept") == {"red": (0,), "round": (4,), "digit": (1, 2, 3), "size": (5,)}
    net, x, truth = classifier(MIXED), torch.randn(40, 4), truth_of(MIXED, 40)
    target = net(x).argmax(1)
    for by, steps in (("group", 3), ("concept", 4)):
        for policy in POLICIES:
            curve = intervention_curve(net, x, target, truth, policy=policy, by=by)
            assert curve.accuracy.shape[1] == steps + 1
            assert curve.accuracy[0, 0] == 1
            assert curve.accuracy[0, -1] == accuracy_of(net[3], truth, target)


def test_costs_are_spent_and_divide_the_scores():
    net, x, target, truth = solvable(rows=100, concepts=3)
    costs = {"concept_0": 10.0}
    curve = intervention_curve(net, x, target, truth, policy="uncertainty", costs=costs)
    # Score per cost: the intervention of cost 10 comes last for nearly all samples.
    p = torch.sigmoid(x)
    scores = -(p * p.log() + (1 - p) * (1 - p).log()) / torch.tensor([10.0, 1.0, 1.0])
    first = scores.argmax(1)
    assert curve.spent[1] * 12 == pytest.approx(float(torch.where(first == 0, 10.0, 1.0).mean()))
    assert curve.spent[-1] == pytest.approx(1)
    assert curve.spent[2] < 0.3
    # Costs do not affect a random order: on average each intervention costs a third of all.
    random = intervention_curve(net, x, target, truth, policy="random", costs=costs, orders=20)
    np.testing.assert_allclose(random.spent, np.arange(4) / 3, atol=0.03)


def test_concepts_without_a_label_come_last_and_are_not_set():
    net, x, target, truth = solvable(rows=60, concepts=3)
    truth[:, 1] = torch.nan
    curve = intervention_curve(net, x, target, truth, policy="random")
    assert (curve.accuracy[:, -1] == curve.accuracy[:, -2]).all()
    with_truth = torch.where(truth.isnan(), torch.sigmoid(x), truth)
    assert curve.accuracy[0, -1] == accuracy_of(net[1], with_truth, target)


def test_interval_area_and_rows_follow_their_formulas():
    accuracy = np.random.default_rng(0).random((6, 4))
    curve = InterventionCurve(accuracy, np.array([0, 0.2, 0.5, 1.0]))
    half = student_t.ppf(0.975, 5) * accuracy.std(0, ddof=1) / math.sqrt(6)
    np.testing.assert_allclose(curve.half_width, half)
    mean = accuracy.mean(0)
    steps = zip(mean[:-1], mean[1:], np.diff(curve.spent), strict=True)
    assert curve.area == pytest.approx(sum((low + high) / 2 * width for low, high, width in steps))
    rows = curve.rows()
    assert [row["interventions"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["low"] == pytest.approx(mean[2] - half[2])
    assert (InterventionCurve(accuracy[:1], curve.spent).half_width == 0).all()


def test_curves_are_reproducible_and_do_not_use_the_global_generator():
    net, x, target, truth = solvable(rows=50)
    state = torch.get_rng_state()
    one = intervention_curve(net, x, target, truth)
    assert torch.equal(torch.get_rng_state(), state)
    assert (one.accuracy == intervention_curve(net, x, target, truth).accuracy).all()
    assert (one.accuracy != intervention_curve(net, x, target, truth, seed=9).accuracy).any()
    assert (one.accuracy[:, 1:-1].std(0) > 0).any()


def test_a_single_output_is_the_logit_of_the_second_class():
    output = torch.tensor([[2.0], [-1.0]])
    assert_close(class_probabilities(output), torch.cat([torch.sigmoid(-output), torch.sigmoid(output)], 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "entropy"}, "policy must be one of 'random', 'uncertainty', .*, got 'entropy'"),
        ({"orders": 4}, "orders must be at least 5 for an interval, got 4"),
        ({"by": "column"}, "by must be one of 'group', 'concept', got 'column'"),
        ({"costs": {"red": 1.0}}, "costs must be those of concept_0, .*, got costs of red"),
        ({"costs": {"concept_0": 0.0}}, "costs must be finite numbers above 0"),
        ({"labels": torch.ones(200, 3)}, r"concept labels must have shape \(batch, 4 concepts\), got \(200, 3\)"),
        ({"target": torch.ones(3).long()}, "must be equally many, got 200, 3 and 200"),
    ],
)
def test_invalid_settings_of_a_curve(settings, message):
    net, x, target, truth = solvable()
    arguments = {"x": x, "target": target, "labels": truth, **settings}
    with pytest.raises(ValueError, match=message):
        intervention_curve(net, **arguments)


def test_invalid_values_and_parts_of_a_group_are_errors():
    concepts = ["red", {"name": "digit", "values": [0, 1]}]
    net = nn.Sequential(ibreg.ConceptBottleneck(4, concepts), nn.Linear(3, 2)).eval()
    x, everything = torch.zeros(5, 4), torch.ones(5, 3).bool()
    truth = torch.tensor([[1.0, 0.0, 1.0]]).expand(5, 3)
    for mask, values, message in (
        (everything, 5 * truth, r"values of concept 'red' must be in \[0, 1\]"),
        (everything, torch.ones(5, 3), "values of the categorical group 'digit' must sum to 1"),
        (everything & torch.tensor([True, True, False]), truth, "a part of the categorical group 'digit'"),
    ):
        with pytest.raises(ValueError, match=message), intervene(net, mask, values):
            net(x)
    for options in (
        {"mask": everything},
        {"mask": everything, "labels": truth[:4]},
        {"mask": everything[:3], "labels": truth},
    ):
        with pytest.raises(ValueError, match="inputs, mask and labels must be equally many"):
            predict_concepts(net, x, **options)
    with pytest.raises(ValueError, match=r"labels of concept 'red' must be in \[0, 1\]"):
        intervention_curve(net, x, torch.zeros(5).long(), 7 * truth)
