"""Interventions: the head applied to what was set, percentiles of training data, curves that begin and end right."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t
from torch import nn
from torch.testing import assert_close

import ibreg
from ibreg.evaluation.concepts.curves import InterventionCurve, corrections, intervention_curve
from ibreg.evaluation.concepts.interventions import (
    as_corrections,
    class_probabilities,
    concept_layer,
    find_concepts,
    intervene,
    percentiles,
    wrong_labels,
)
from ibreg.evaluation.concepts.policies import POLICIES, Situation
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
        found = find_concepts(model, x, mask=everything, labels=truth)
        assert torch.equal(found.output, net[3](truth))
        assert torch.equal(found.values, truth)
        assert torch.equal(found.codes.squeeze(2), truth)


def test_outside_of_the_block_and_of_the_mask_nothing_changes():
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
    of_training = find_concepts(net, training).logits
    everything, truth = torch.ones(4, 3).bool(), truth_of(3, 4)
    expected = torch.where(truth == 1, of_training.quantile(0.95, 0), of_training.quantile(0.05, 0))
    with intervene(net, everything, 5 + 90 * truth, "percentile", training_logits=of_training):
        assert_close(net(x), net[3](expected))
    # The truth of a code of logits is these percentiles, whoever asks.
    found = find_concepts(net, x, mask=everything, labels=truth, training_logits=of_training)
    assert_close(found.codes.squeeze(2), expected)


def test_the_truth_of_a_continuous_concept_is_its_value_in_a_code_of_logits_too():
    net = classifier(MIXED, code="logit")
    truth, training = truth_of(MIXED, 5), torch.randn(50, 6)
    values, space = as_corrections(net[2], truth, training)
    assert space == "logit"
    assert torch.equal(values[:, 5], truth[:, 5])
    assert_close(
        values[:, 0], torch.where(truth[:, 0] == 1, training[:, 0].quantile(0.95), training[:, 0].quantile(0.05))
    )


def test_findings_do_not_depend_on_the_number_of_rows_nor_on_the_mode():
    net = ibreg.Regularized(classifier(MIXED, residual=2)).train()
    x = torch.randn(2500, 4)
    found = find_concepts(net, x)
    assert net.training
    assert found.output.shape == (2500, 3)
    assert found.codes.shape == (2500, 6, 1)
    few = find_concepts(net, x[1200:1205])
    for all_rows, some in zip(found, few, strict=True):
        assert_close(all_rows[1200:1205], some)
    assert torch.equal(found.codes.squeeze(2), found.values)


def test_unknown_labels_are_not_set():
    net, x, truth = classifier(), torch.randn(6, 4), truth_of(3, 6)
    truth[2] = torch.nan
    found = find_concepts(net, x, mask=torch.ones(6, 3).bool(), labels=truth)
    assert_close(found.output[2], net(x)[2])
    assert torch.equal(found.values[3], truth[3])


def test_wrong_labels_are_wrong_everywhere():
    truth = truth_of(MIXED, 300)
    wrong = wrong_labels(Concepts.of(MIXED), truth)
    assert torch.equal(wrong[:, [0, 4]], 1 - truth[:, [0, 4]])
    digits, other = truth[:, 1:4].argmax(1), wrong[:, 1:4].argmax(1)
    assert (wrong[:, 1:4].sum(1) == 1).all()
    assert (digits != other).all()
    assert all(len(other[digits == digit].unique()) == 2 for digit in range(3))
    assert wrong[:, 5].isnan().all()  # of a number nothing is exactly wrong


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([0, 2]), r"a mask is a bool tensor \(batch, 3 concepts\) .* torch.int64; indices become one by"),
        ([0, 2], r"got \[0, 2\]; indices"),
        (torch.ones(5, 2).bool(), r"got \(5, 2\) of torch.bool"),
        (torch.ones(5, 3), "of torch.float32"),
    ],
)
def test_indices_and_wrong_shapes_are_no_mask(mask, message):
    net = classifier()
    with pytest.raises(ValueError, match=message), intervene(net, mask, torch.ones(5, 3)):
        pass


def test_what_does_not_fit_says_what_is_valid():
    net, x, mask = classifier(code="logit"), torch.randn(5, 4), torch.ones(5, 3).bool()
    with pytest.raises(ValueError, match="space of an intervention is one of 'probability'"):
        intervene(net, mask, mask.float(), "percent").__enter__()
    with pytest.raises(ValueError, match="percentiles are those of training data"):
        intervene(net, mask, mask.float(), "percentile").__enter__()
    with pytest.raises(ValueError, match="from 0 to 100, got 500"):
        intervene(net, mask, 500 * mask.float(), "percentile", training_logits=torch.randn(9, 3)).__enter__()
    with pytest.raises(ValueError, match=r"values have the shape of the mask \(5, 3\)"):
        intervene(net, mask, torch.ones(5, 2)).__enter__()
    with pytest.raises(ValueError, match="there is no concept bottleneck"):
        intervene(nn.Linear(3, 3), mask, mask.float()).__enter__()
    with pytest.raises(ValueError, match="a correction is a percentile of training data"):
        find_concepts(net, x, mask=mask, labels=mask.float())
    twice = nn.Sequential(layer := ibreg.ConceptBottleneck(3, 3), layer)
    with pytest.raises(ValueError, match="bottleneck 0 ran 2 times in one pass"):
        find_concepts(twice, torch.randn(5, 3))
    with pytest.raises(ValueError, match="with one concept bottleneck, it has 0: none"):
        concept_layer(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="it has 2: 0, 1"):
        concept_layer(nn.Sequential(ibreg.ConceptBottleneck(3, 3), ibreg.ConceptBottleneck(3, 3)))


# --- curves


def solvable(rows=200, concepts=4, seed=0, accuracy=0.7):
    """A model whose head is right where its concepts are: y = [more than half of them], found right in a share."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(2, (rows, concepts), generator=generator).float()
    right = torch.rand(rows, concepts, generator=generator) < accuracy
    sure = 0.5 + 2 * torch.rand(rows, concepts, generator=generator)
    x = torch.where(right, truth, 1 - truth) * 2 * sure - sure  # the logits
    layer = ibreg.ConceptBottleneck(concepts, concepts)
    net = nn.Sequential(layer, nn.Linear(concepts, 2)).eval()
    with torch.no_grad():
        layer.encoder.weight.copy_(torch.eye(concepts))
        layer.encoder.bias.zero_()
        net[1].weight.copy_(torch.stack([-torch.ones(concepts), torch.ones(concepts)]))
        net[1].bias.copy_(torch.tensor([concepts / 2 + 0.5, -concepts / 2 - 0.5]))
    return net, x, (truth.sum(1) > concepts / 2).long(), truth


def share(model, x, target):
    return float((model(x).argmax(1) == target).double().mean())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_curve_starts_at_the_plain_accuracy_and_ends_at_that_of_the_truth(policy):
    net, x, target, truth = solvable()
    curve = intervention_curve(net, x, target, truth, policy=policy)
    assert curve.accuracy.shape == (5 if policy == "random" else 1, 5)
    assert (curve.accuracy[:, 0] == share(net, x, target)).all()
    assert (curve.accuracy[:, -1] == share(net[1], truth, target)).all()
    assert curve.accuracy[0, -1] == 1
    assert_close(curve.spent, np.arange(5) / 4)
    assert curve.mean[0] < curve.area < 1
    wrong = intervention_curve(net, x, target, truth, policy=policy, wrong=True)
    assert (wrong.accuracy[:, -1] == share(net[1], 1 - truth, target)).all()
    assert wrong.area < curve.mean[0]


def test_the_oracle_is_best_and_every_policy_at_least_as_good_as_chance():
    net, x, target, truth = solvable(rows=400, concepts=6)
    areas = {policy: intervention_curve(net, x, target, truth, policy=policy).area for policy in POLICIES}
    assert max(areas, key=areas.get) == "greedy"
    for policy in ("uncertainty", "coop", "expected_gain"):
        assert areas[policy] > areas["random"]


def test_the_first_corrections_are_those_of_the_greatest_score():
    """Of two samples each the policy's own choice, against scores by hand."""
    net, x, target, truth = solvable(rows=50, concepts=3)
    p = torch.sigmoid(x)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())

    def classes(values):
        return net[1](values).softmax(1)

    def after(column, value):
        return classes(torch.cat([p[:, :column], value.view(-1, 1), p[:, column + 1 :]], 1))

    before, shannon = classes(p), lambda q: -(q * q.log()).sum(1)
    predicted = before.argmax(1)
    gains, changes, truths = [], [], []
    for column in range(3):
        zero, one = after(column, torch.zeros(50)), after(column, torch.ones(50))
        chance = p[:, column]
        gains.append(shannon(before) - (1 - chance) * shannon(zero) - chance * shannon(one))
        moved = [(each - before).gather(1, predicted[:, None]).abs()[:, 0] for each in (zero, one)]
        changes.append((1 - chance) * moved[0] + chance * moved[1])
        truths.append((after(column, truth[:, column]) - before).gather(1, target[:, None])[:, 0])
    expected = {
        "uncertainty": entropy,
        "expected_gain": torch.stack(gains, 1),
        "coop": entropy + torch.stack(changes, 1),
        "greedy": torch.stack(truths, 1),
    }

    def predict(mask, values):
        return classes(torch.where(mask, values, p))

    situation = Situation(
        Concepts.of(3), [(0,), (1,), (2,)], p, before, truth, target, predict, noise=torch.rand(50, 3)
    )
    with torch.no_grad():
        for policy, scores in expected.items():
            assert_close(POLICIES[policy].score(situation), scores)


def test_groups_are_corrected_together_and_categorical_values_never_alone():
    concepts = Concepts.of(MIXED)
    assert corrections(concepts, "group") == {"look": (0, 4), "digit": (1, 2, 3), "size": (5,)}
    assert corrections(concepts, "concept") == {"red": (0,), "round": (4,), "digit": (1, 2, 3), "size": (5,)}
    net, x, truth = classifier(MIXED), torch.randn(40, 4), truth_of(MIXED, 40)
    target = net(x).argmax(1)
    for by, steps in (("group", 3), ("concept", 4)):
        for policy in POLICIES:
            curve = intervention_curve(net, x, target, truth, policy=policy, by=by)
            assert curve.accuracy.shape[1] == steps + 1
            assert curve.accuracy[0, 0] == 1
            assert curve.accuracy[0, -1] == share(net[3], truth, target)


def test_costs_are_spent_and_weighed():
    net, x, target, truth = solvable(rows=100, concepts=3)
    costs = {"concept_0": 10.0}
    curve = intervention_curve(net, x, target, truth, policy="uncertainty", costs=costs)
    # Worth per cost: the dear one, ten times as dear, comes last for nearly all samples.
    p = torch.sigmoid(x)
    worth = -(p * p.log() + (1 - p) * (1 - p).log()) / torch.tensor([10.0, 1.0, 1.0])
    first = worth.argmax(1)
    assert curve.spent[1] * 12 == pytest.approx(float(torch.where(first == 0, 10.0, 1.0).mean()))
    assert curve.spent[-1] == pytest.approx(1)
    assert curve.spent[2] < 0.3
    # A random order does not look at costs: on average each correction costs a third of all.
    random = intervention_curve(net, x, target, truth, policy="random", costs=costs, orders=20)
    np.testing.assert_allclose(random.spent, np.arange(4) / 3, atol=0.03)


def test_concepts_without_a_label_are_corrected_last_and_stay():
    net, x, target, truth = solvable(rows=60, concepts=3)
    truth[:, 1] = torch.nan
    curve = intervention_curve(net, x, target, truth, policy="random")
    assert (curve.accuracy[:, -1] == curve.accuracy[:, -2]).all()
    with_truth = torch.where(truth.isnan(), torch.sigmoid(x), truth)
    assert curve.accuracy[0, -1] == share(net[1], with_truth, target)


def test_interval_area_and_rows_follow_their_formulas():
    accuracy = np.random.default_rng(0).random((6, 4))
    curve = InterventionCurve(accuracy, np.array([0, 0.2, 0.5, 1.0]))
    half = student_t.ppf(0.975, 5) * accuracy.std(0, ddof=1) / math.sqrt(6)
    np.testing.assert_allclose(curve.half_width, half)
    mean = accuracy.mean(0)
    steps = zip(mean[:-1], mean[1:], np.diff(curve.spent), strict=True)
    assert curve.area == pytest.approx(sum((low + high) / 2 * width for low, high, width in steps))
    rows = curve.rows()
    assert [row["corrected"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["low"] == pytest.approx(mean[2] - half[2])
    assert (InterventionCurve(accuracy[:1], curve.spent).half_width == 0).all()


def test_curves_are_reproducible_and_leave_the_global_generator_alone():
    net, x, target, truth = solvable(rows=50)
    state = torch.get_rng_state()
    one = intervention_curve(net, x, target, truth)
    assert torch.equal(torch.get_rng_state(), state)
    assert (one.accuracy == intervention_curve(net, x, target, truth).accuracy).all()
    assert (one.accuracy != intervention_curve(net, x, target, truth, seed=9).accuracy).any()
    assert (one.accuracy[:, 1:-1].std(0) > 0).any()


def test_one_output_stands_for_two_classes():
    output = torch.tensor([[2.0], [-1.0]])
    assert_close(class_probabilities(output), torch.cat([torch.sigmoid(-output), torch.sigmoid(output)], 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "entropy"}, "no policy 'entropy': it is one of random, uncertainty"),
        ({"orders": 4}, "orders=4: an interval takes 5 or more"),
        ({"by": "column"}, "by='column' is 'group' or 'concept'"),
        ({"costs": {"red": 1.0}}, "costs name red, but corrections are concept_0"),
        ({"costs": {"concept_0": 0.0}}, "costs are finite numbers above 0"),
        ({"labels": torch.ones(200, 3)}, r"concept labels have shape \(batch, 4 concepts\), got \(200, 3\)"),
        ({"target": torch.ones(3).long()}, "200 inputs, 3 targets, 200 concept labels"),
    ],
)
def test_wrong_settings_of_a_curve_say_what_is_valid(settings, message):
    net, x, target, truth = solvable()
    arguments = {"x": x, "target": target, "labels": truth, **settings}
    with pytest.raises(ValueError, match=message):
        intervention_curve(net, **arguments)


def test_values_that_no_concept_has_and_parts_of_a_group_are_refused():
    concepts = ["red", {"name": "digit", "values": [0, 1]}]
    net = nn.Sequential(ibreg.ConceptBottleneck(4, concepts), nn.Linear(3, 2)).eval()
    x, everything = torch.zeros(5, 4), torch.ones(5, 3).bool()
    truth = torch.tensor([[1.0, 0.0, 1.0]]).expand(5, 3)
    for mask, values, message in (
        (everything, 5 * truth, r"values of concept 'red' are in \[0, 1\]"),
        (everything, torch.ones(5, 3), "values of the categorical group 'digit' sum to 1"),
        (everything & torch.tensor([True, True, False]), truth, "a part of the categorical group 'digit'"),
    ):
        with pytest.raises(ValueError, match=message), intervene(net, mask, values):
            net(x)
    for options in (
        {"mask": everything},
        {"mask": everything, "labels": truth[:4]},
        {"mask": everything[:3], "labels": truth},
    ):
        with pytest.raises(ValueError, match="give as many of each"):
            find_concepts(net, x, **options)
    with pytest.raises(ValueError, match=r"labels of concept 'red' are in \[0, 1\]"):
        intervention_curve(net, x, torch.zeros(5).long(), 7 * truth)
