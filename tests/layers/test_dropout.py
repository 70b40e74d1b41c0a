"""The dropout bottleneck against `torch.nn.Dropout`, its samples, and its penalty of 0."""

import pytest
import torch
from torch import nn

import ibreg
from ibreg import DropoutBottleneck, Regularized

FEATURES, BATCH = 6, 5
SHAPES = [(BATCH, FEATURES), (BATCH, 7, FEATURES), (BATCH, FEATURES, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=len)
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_one_sample_is_that_of_the_dropout_module_with_the_same_generator_state(shape, rate, training):
    x = torch.randn(shape)
    modules = [module.train(training) for module in (nn.Dropout(rate), DropoutBottleneck(rate=rate))]
    codes, states = [], []
    for module in modules:
        torch.manual_seed(3)
        with torch.no_grad():
            codes.append(module(x))
        states.append(torch.get_rng_state())
    assert torch.equal(*codes)
    assert torch.equal(*states)


def test_a_model_with_it_has_the_outputs_and_gradients_of_one_with_the_module():
    def built(dropout):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, FEATURES), dropout, nn.Linear(FEATURES, 2))

    x = torch.randn(BATCH, FEATURES)
    plain, model = built(nn.Dropout(0.4)), Regularized(built(DropoutBottleneck(rate=0.4)))
    torch.manual_seed(7)
    expected = plain(x)
    expected.square().sum().backward()
    torch.manual_seed(7)
    output, penalty, logs = model(x)
    (output.square().sum() + penalty).backward()
    assert torch.equal(output, expected)
    assert penalty == 0
    assert logs == {}
    for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, reference.grad)


def test_entries_are_dropped_with_the_rate_and_the_others_keep_the_mean():
    code = DropoutBottleneck(rate=0.25).measure(torch.ones(40_000, 3)).z
    torch.testing.assert_close(code.unique(), torch.tensor([0.0, 1 / 0.75]))
    torch.testing.assert_close((code == 0).float().mean(0), torch.full((3,), 0.25), rtol=0, atol=0.01)
    torch.testing.assert_close(code.mean(0), torch.ones(3), rtol=0, atol=0.02)


def test_several_samples_of_each_row_have_masks_of_their_own():
    x = torch.arange(1.0, BATCH * FEATURES + 1).reshape(BATCH, FEATURES)
    output, penalty, _ = Regularized(nn.Sequential(DropoutBottleneck()), draws=3)(x)
    assert output.shape == (3, BATCH, FEATURES)
    assert penalty == 0
    assert not torch.equal(output[0], output[1])
    for sample in output:
        assert torch.equal(sample, torch.where(sample == 0, 0, 2 * x))


def test_predictions_average_its_samples():
    model = nn.Sequential(DropoutBottleneck(rate=0.5), nn.Linear(FEATURES, 3))
    x = torch.randn(2, FEATURES)
    sampled = ibreg.predict(model, x, draws=4, seed=0)
    assert torch.equal(sampled, ibreg.predict(model, x, draws=4, seed=0))
    assert not torch.equal(sampled, ibreg.predict(model, x))
    assert torch.equal(ibreg.predict(model, x), model.eval()(x))


@pytest.mark.parametrize("rate", [-0.1, 1.1, "0.5", True, float("nan")])
def test_wrong_rate_says_what_is_valid(rate):
    with pytest.raises(ValueError, match="rate must be a finite number of at least 0 and at most 1, got"):
        DropoutBottleneck(rate=rate)


def test_size_is_checked_where_it_is_given():
    with pytest.raises(ValueError, match="takes 4 features on axis 1"):
        DropoutBottleneck(4)(torch.ones(2, FEATURES))
