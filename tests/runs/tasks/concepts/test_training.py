"""Joint, sequential and independent training: gradients of the losses, and the input of the head."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ibreg
from ibreg.regularized import Penalized
from ibreg.runs.config.section import read
from ibreg.runs.data import concepts as concept_data
from ibreg.runs.tasks.concepts.training import TRAININGS, ConceptsConfig, trained_as, training_of, with_concepts


def model_of(seed=0, **options):
    torch.manual_seed(seed)
    layer = ibreg.ConceptBottleneck(6, 3, **options)
    return ibreg.Regularized(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), layer, nn.Linear(layer.out_features, 2)))


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, generator=generator)
    return x, torch.arange(8) % 2, torch.randint(2, (8, 3), generator=generator).float()


def gradients(model, task=True):
    x, y, c = batch()
    output = model(x, target=y, concepts=c)
    loss = Penalized(nn.CrossEntropyLoss())(output, y) if task else output.penalty
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))


def test_without_joint_training_the_encoder_learns_from_concepts_alone():
    joint, concepts_alone = gradients(model_of()), gradients(model_of(), task=False)
    assert not torch.allclose(joint["model.0.weight"], concepts_alone["model.0.weight"])
    for training in ("sequential", "independent"):
        found = gradients(trained_as(model_of(), training))
        for name in ("model.0.weight", "model.0.bias", "model.2.encoder.weight", "model.2.encoder.bias"):
            assert_close(found[name], concepts_alone[name])
        assert found["model.3.weight"].abs().sum() > 0
    assert gradients(trained_as(model_of(), "joint")).keys() == joint.keys()
    for name, each in gradients(trained_as(model_of(), "joint")).items():
        assert torch.equal(each, joint[name])


def test_the_head_reads_predicted_or_true_concepts():
    x, y, c = batch()
    c[2, 1] = torch.nan
    sequential, independent = (trained_as(model_of(), training) for training in ("sequential", "independent"))
    plain = model_of()
    assert torch.equal(sequential(x, target=y, concepts=c).output, plain(x, target=y, concepts=c).output)
    predicted = plain.model[2].predict_concepts(plain.model[:2](x))
    expected = plain.model[3](torch.where(c.isnan(), predicted, c))
    assert_close(independent(x, target=y, concepts=c).output, expected)
    # In evaluation it reads its own concepts, whether labels are there or not.
    independent.eval()
    assert_close(independent(x, target=y, concepts=c).output, plain.model[3](predicted))
    assert_close(independent.model(x), plain.model[3](predicted))


def test_a_head_inside_the_layer_is_trained_too():
    for training in ("sequential", "independent"):
        found = gradients(trained_as(model_of(head="linear", out_features=5), training))
        assert found["model.2.decoder.weight"].abs().sum() > 0
        alone = gradients(model_of(head="linear", out_features=5), task=False)
        assert_close(found["model.0.weight"], alone["model.0.weight"])


def test_states_fit_each_other():
    joint, independent = model_of(), trained_as(model_of(seed=1), "independent")
    independent.load_state_dict(joint.state_dict())
    x, _, _ = batch()
    assert torch.equal(independent.eval()(x).output, joint.eval()(x).output)


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({"code": "logit"}, "independent", "true concepts, which are not logits"),
        ({"residual": 2}, "sequential", "a code of 5 features is more than its 3 concepts"),
        ({"residual": 2}, "independent", "use training=joint"),
    ],
)
def test_codes_that_are_more_than_their_concepts_must_be_trained_jointly(options, training, message):
    with pytest.raises(ValueError, match=message):
        trained_as(model_of(**options), training)


@pytest.fixture
def concepts(configured):
    return partial(configured, keys=ConceptsConfig)


def test_layers_get_the_concepts_of_the_data(concepts):
    data = concept_data.load("digits_concepts")
    cfg = concepts("bottlenecks=[concept,concept_embedding,variational]", "balanced=true")
    filled = with_concepts(cfg, data)
    assert filled.bottleneck["concept"]["concepts"] == list(data.concepts.names)
    assert filled.bottleneck["concept"]["out_features"] == 6
    assert filled.bottleneck["concept_embedding"]["out_features"] == 6 * 16
    weights = (1 - data.train.concepts).sum(0) / data.train.concepts.sum(0)
    assert filled.bottleneck["concept"]["pos_weight"] == pytest.approx(weights.tolist())
    assert cfg.bottleneck["concept"]["concepts"] is None
    assert filled.bottleneck["variational"] == cfg.bottleneck["variational"]
    assert read(ConceptsConfig, filled.contents()) == filled  # as the run folder keeps it


def test_a_layer_keeps_its_own_options(concepts):
    data = concept_data.load("digits_concepts")
    own = ("bottleneck.concept.head=linear", "bottleneck.concept.out_features=9", "bottleneck.concept.pos_weight=2")
    cfg = concepts(*own)
    filled = with_concepts(cfg, data)
    assert filled.bottleneck["concept"]["out_features"] == 9
    assert filled.bottleneck["concept"]["pos_weight"] == 2
    with pytest.raises(ValueError, match="concepts must be 6 as in the labels of digits_concepts, got 4"):
        with_concepts(concepts("bottleneck.concept.concepts=4"), data)
    with pytest.raises(ValueError, match="fitted to a frozen network"):
        with_concepts(concepts("bottlenecks=[post_hoc_concept]"), data)


def test_the_training_of_a_method_takes_precedence_over_that_of_all(concepts):
    cfg = concepts("training=sequential", "+trainings.concept=independent")
    assert training_of(cfg, "concept") == "independent"
    assert training_of(cfg, "concept_embedding") == "sequential"
    assert set(TRAININGS) == {"joint", "sequential", "independent"}
    with pytest.raises(ValueError, match=r"^training must be one of joint, sequential, independent, got apart$"):
        concepts("training=apart")
    with pytest.raises(
        ValueError, match=r"^trainings.concept must be one of joint, sequential, independent, got apart"
    ):
        concepts("+trainings.concept=apart")
    with pytest.raises(ValueError, match=r"^trainings must be of .*, got conzept \(did you mean 'concept'\?\)$"):
        concepts("+trainings.conzept=joint")
