"""Leakage of codes constructed without and with leakage; estimators against closed forms and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy as exact_entropy
from sklearn.metrics import mutual_info_score, roc_auc_score

from ibreg.evaluation.concepts.leakage import (
    cells,
    concept_task_leakage,
    entropy,
    inter_concept_leakage,
    leakage,
    mutual_information,
    niche_impurity,
    oracle_impurity,
)
from ibreg.evaluation.concepts.probes import _auroc, probe, probed_auroc


def coins(rows, concepts, seed=0):
    return torch.randint(2, (rows, concepts), generator=torch.Generator().manual_seed(seed)).float()


def noisy(truth, seed=1):
    """Probabilities without information beyond their own concept."""
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    return torch.sigmoid(3 * (2 * truth - 1) + 2 * noise)


# --- estimators


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=5, max_size=60))
def test_corrected_entropies_are_those_of_the_counts_plus_miller_and_madow(pairs):
    first, second = np.array(pairs).T
    counts = np.unique(first, return_counts=True)[1]
    assert entropy(first) == pytest.approx(exact_entropy(counts) + (len(counts) - 1) / (2 * len(first)))
    values = [len(np.unique(each, axis=0)) for each in (first, second, np.array(pairs))]
    correction = (values[0] + values[1] - values[2] - 1) / (2 * len(pairs))
    expected = mutual_info_score(first, second) + correction
    assert mutual_information(first, second) == pytest.approx(max(0, expected), abs=1e-12)


def test_the_correction_removes_the_bias():
    rng = np.random.default_rng(0)
    draws = [(rng.integers(10, size=200), rng.integers(5, size=200)) for _ in range(50)]
    uncorrected = np.mean([mutual_info_score(x, y) for x, y in draws])
    joint = [entropy(x) + entropy(y) - entropy(10 * y + x) for x, y in draws]
    assert uncorrected > 0.08  # 36 / 400
    assert abs(np.mean(joint)) < 0.02


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0 - 1e-7, 1.0, 3.0]), min_size=12, max_size=60), st.integers(2, 4))
def test_equal_values_are_in_one_cell_and_frequent_ones_alone(values, bins):
    found = cells(torch.tensor(values, dtype=torch.float64), bins)
    pairs = {(value, cell) for value, cell in zip(values, found, strict=True)}
    assert len(pairs) == len(set(values))
    assert len(np.unique(found)) <= bins
    for value, cell in pairs:
        if values.count(value) > len(values) / bins:
            assert [other for other, own in pairs if own == cell] == [value]
    rare = [cell for value, cell in sorted(pairs) if values.count(value) <= len(values) / bins]
    if len(pairs) > bins:
        assert (np.diff(rare) >= 0).all()


def test_cells_of_a_continuous_code_are_equally_large():
    found = cells(torch.randn(1000), 10)
    assert np.bincount(found).tolist() == [100] * 10
    vectors = torch.cat([torch.randn(100, 3) * 0.01, torch.randn(100, 3) * 0.01 + 1])
    found = cells(vectors, 2)
    assert len(set(found[:100])) == len(set(found[100:])) == 1
    assert found[0] != found[-1]


def test_a_saturated_code_keeps_its_information():
    """90 % of the probabilities are exactly 1 or 0: each has a cell of its own, and no information is lost."""
    truth = coins(2000, 1)[:, 0]
    code = torch.where(torch.rand(2000, generator=torch.Generator().manual_seed(0)) < 0.9, truth, 0.5)
    found = mutual_information(cells(code), truth.numpy())
    assert found == pytest.approx(0.9 * np.log(2), abs=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_code_that_is_saturated_on_one_side_is_as_good_as_its_mirror_image(sign):
    code = torch.rand(2000, generator=torch.Generator().manual_seed(0)).mul(10).clamp(max=1)
    rare = code < 1
    assert 0.05 < rare.double().mean() < 0.15
    found = mutual_information(cells(sign * code), rare.long().numpy())
    assert found == pytest.approx(entropy(rare.numpy()), abs=0.01)
    finer = (code < 0.5) & rare
    found = mutual_information(cells(sign * code), finer.long().numpy())
    assert found > 0.8 * entropy(finer.numpy())


def test_information_of_a_gaussian_code_is_near_the_integral():
    """c = ±1 with N(0, 1) around: I(code; c) = h(mixture) - h(N), by quadrature; cells lose a little of it."""
    generator = torch.Generator().manual_seed(0)
    truth = coins(20_000, 1)[:, 0]
    code = 2 * truth - 1 + torch.randn(20_000, generator=generator)
    grid = np.linspace(-9, 9, 20_001)
    mixture = sum(np.exp(-((grid - mean) ** 2) / 2) / np.sqrt(2 * np.pi) / 2 for mean in (-1, 1))
    integral = -np.trapezoid(mixture * np.log(mixture), grid) - 0.5 * np.log(2 * np.pi * np.e)
    found = mutual_information(cells(code, 20), truth.numpy())
    assert found == pytest.approx(integral, rel=0.05)


def test_areas_are_those_of_scikit_learn_with_ties_too():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(6, size=(3, 80)) / 5, rng.random(80) < 0.4
    expected = [roc_auc_score(positive, each) for each in scores]
    np.testing.assert_allclose(_auroc(scores, positive), expected)


def test_probes_read_their_features_only_and_do_not_use_the_global_generator():
    truth = coins(600, 3)
    state = torch.get_rng_state()
    masks = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    exclusive = (truth[:, :1] != truth[:, 1:2]).float()
    areas = probed_auroc(truth, torch.cat([exclusive, truth[:, 2:]], 1), masks)
    assert torch.equal(torch.get_rng_state(), state)
    assert areas[0, 0] > 0.99  # not linear in what it sees
    assert areas[1, 1] > 0.99
    np.testing.assert_allclose([areas[0, 1], areas[1, 0]], 0.5, atol=0.1)
    assert areas[2].tolist() == [0.5, 0.5]
    assert np.array_equal(areas, probed_auroc(truth, torch.cat([exclusive, truth[:, 2:]], 1), masks))
    with torch.no_grad():
        logits, rows = probe(truth, truth, masks)
    assert logits.shape == (3, 300, 3)
    assert len(rows.unique()) == 300


def test_probes_learn_from_the_known_labels():
    truth = coins(400, 2)
    labels = truth.clone()
    labels[:150, 0] = torch.nan
    areas = probed_auroc(truth, labels, torch.eye(2).bool())
    assert areas[0, 0] > 0.99


# --- no leak, full leak


def test_the_truth_and_its_noisy_copy_have_no_leakage():
    truth = coins(2000, 3)
    target = (truth.sum(1) > 1).long()
    for codes in (truth, noisy(truth)):
        found = leakage(codes, truth, target)
        assert found["ctl"] < 0.01
        assert found["icl"] < 0.01
        assert found["ois"] < 0.08
        # A code that correlates with its concept by less than 0.9 is not in its niche at the last beta: as the control.
        assert found["nis"] == pytest.approx(found["nis_control"], abs=0.05)
    assert leakage(truth, truth, target)["nis"] == pytest.approx(0.5, abs=0.05)


def test_a_code_that_encodes_the_class_leaks_all_of_it():
    """Concepts have no information on the class, which every code encodes in one bit beside its own."""
    truth, target = coins(2000, 3), coins(2000, 1, seed=5)[:, 0].long()
    codes = truth + 0.25 * target.unsqueeze(1)
    np.testing.assert_allclose(concept_task_leakage(codes, truth, target), 1, atol=0.01)
    found = leakage(codes, truth, target)
    assert found["ctl"] == pytest.approx(1, abs=0.01)
    assert found["ctl_control"] < 0.02


def test_codes_that_encode_all_concepts_leak_them_to_each_other():
    count = 5
    truth = coins(3000, count)
    every = (truth * 2.0 ** torch.arange(count)).sum(1, keepdim=True).expand(-1, count)
    pairs = inter_concept_leakage(every, truth, bins=32)
    assert pairs[~np.eye(count, dtype=bool)] == pytest.approx(1, abs=0.01)
    assert (np.diag(pairs) == 0).all()
    # Each code, here an embedding, predicts every concept: the maximum is 2/k * sqrt(k (k - 1)) / 2.
    embedded = torch.stack(
        [truth @ torch.randn(count, 8, generator=torch.Generator().manual_seed(s)) for s in range(count)], 1
    )
    assert oracle_impurity(embedded, truth) == pytest.approx(np.sqrt(1 - 1 / count), abs=0.05)
    assert oracle_impurity(truth, truth) == pytest.approx(0, abs=1e-12)


def test_a_concept_that_is_predicted_outside_of_its_niche_is_impure():
    """Each code is ±1 if the other concept is absent and ±2 if present: uncorrelated, yet it predicts both."""
    truth = coins(3000, 2)
    codes = (2 * truth - 1) * (1 + truth.flip(1))
    # At beta 0 all codes are in the niche, so that nothing is outside; at 0.1 ... 0.9 the other one is.
    assert niche_impurity(codes, truth) == pytest.approx(0.95, abs=0.03)
    assert leakage(codes, truth, truth[:, 0].long())["nis_control"] == pytest.approx(0.5, abs=0.05)


def test_a_code_shuffled_within_concepts_cannot_leak():
    truth, target = coins(2000, 3), coins(2000, 1, seed=7)[:, 0].long()
    codes = truth + 0.2 * target.unsqueeze(1) + 0.4 * truth.flip(1)
    found = leakage(codes, truth, target)
    assert found["ctl"] > 0.9
    assert found["icl"] > 0.3
    assert found["ois"] > 0.3
    for name, most in (("ctl", 0.02), ("icl", 0.02), ("ois", 0.1)):
        assert found[f"{name}_control"] < most
    assert found["nis_control"] == pytest.approx(0.5, abs=0.06)


def test_missing_labels_are_left_out():
    truth = coins(2000, 2)
    codes, target = noisy(truth), truth[:, 0].long()
    holes = truth.clone()
    holes[:600, 1] = torch.nan
    holes[900:1200, 0] = torch.nan
    assert concept_task_leakage(codes, holes, target).max() < 0.01
    assert inter_concept_leakage(codes, holes).max() < 0.01
    assert leakage(codes, holes, target)["ois"] < 0.1


def test_one_concept_has_no_pair():
    truth = coins(500, 1)
    found = leakage(noisy(truth), truth, truth[:, 0].long())
    assert "icl" not in found
    assert found["ctl"] < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t, y: (c[:, :2], t, y), r"codes must have shape \(samples, concepts\)"),
        (lambda c, t, y: (c, 2 * t, y), r"concept labels must be in \[0, 1\], got 0 \.\.\. 2"),
        (lambda c, t, y: (c, torch.cat([t[:, :2], 0 * t[:, :1]], 1), y), "concept 2 must have more than one value"),
        (lambda c, t, y: (c, t, 0 * y), "concept 0 must have more than one class"),
        (lambda c, t, y: (c, t, y[:50]), "must have one class per sample"),
        (
            lambda c, t, y: (c[:40], t[:40], y[:40]),
            "concept 0 must have 50 or more labeled samples for 10 cells, got 40",
        ),
        (lambda c, t, y: (c / 0, t, y), "codes must be finite, got NaN or infinite values"),
    ],
)
def test_invalid_inputs_are_errors(change, message):
    truth = coins(100, 3)
    with pytest.raises(ValueError, match=message):
        leakage(*change(truth, truth, truth[:, 0].long()))


def test_a_label_with_a_single_value_in_a_half_is_an_error():
    truth = coins(100, 2)
    truth[:, 1] = 0
    truth[3, 1] = 1
    with pytest.raises(ValueError, match="label 1 must have two values in both halves"):
        oracle_impurity(truth, truth)


def test_pairs_of_concepts_without_common_labels_are_left_out():
    truth = coins(400, 3)
    labels = truth.clone()
    labels[::2, 0] = torch.nan
    labels[1::2, 1] = torch.nan
    found = inter_concept_leakage(truth, labels)
    assert np.isnan(found[0, 1])
    assert not np.isnan(found[[0, 1], 2]).any()
    assert np.isfinite(leakage(truth, labels, (truth.sum(1) > 1).long())["icl"])
    alone = leakage(truth[:, :2], labels[:, :2], (truth.sum(1) > 1).long())
    assert "icl" not in alone
