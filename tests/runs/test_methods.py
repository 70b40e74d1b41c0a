"""The model of a method: where its bottleneck is injected, which layers fit after it, which beta it has."""

import pytest
import torch

import ibreg
from ibreg.runs.methods import beta_used, build_method, build_schedule
from ibreg.runs.models import classifiers as models
from ibreg.runs.trials import Trial

EXAMPLE = torch.zeros(1, 1, 8, 8)


def built(cfg, trial=None):
    def network(code_features):
        return models.build(**cfg.model.options(), input_shape=(1, 8, 8), classes=10, code_features=code_features)

    return build_method(cfg, trial or Trial("variational", 0, 0.0), network, EXAMPLE)


@pytest.mark.parametrize(
    ("overrides", "widths"),
    [
        ([], {"trunk.bottleneck": (128, 128)}),
        (["bottleneck.variational.out_features=16"], {"trunk.bottleneck": (128, 16)}),
        (["inject_at=trunk.1"], {"trunk.1.bottleneck": (256, 256)}),
        # As wide as the place: the head, which is elsewhere, keeps its width.
        (["inject_at=trunk.1", "bottleneck.variational.out_features=256"], {"trunk.1.bottleneck": (256, 256)}),
        (["inject_at=[trunk.1,trunk]"], {"trunk.1.bottleneck": (256, 256), "trunk.5": (128, 128)}),
    ],
)
def test_a_bottleneck_goes_where_it_is_told(configured, overrides, widths):
    model = built(configured(*overrides, "draws=3"))
    found = {name: (layer.in_features, layer.out_features) for name, layer in ibreg.bottlenecks(model).items()}
    assert sorted(found.values()) == sorted(widths.values())
    assert model.draws == 3
    assert ibreg.predict(model, EXAMPLE).shape == (1, 10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["inject_at=avgpool"], r"inject_at=avgpool: the model has no module 'avgpool'.*; it has trunk, trunk\.0, "),
        (["inject_at=head.weight"], "inject_at=head.weight: "),
        (
            ["inject_at=trunk.1", "bottleneck.variational.out_features=7"],
            r"inject_at=trunk.1 with bottleneck.variational.out_features gives 7 features for 256 after trunk\.1, "
            r"which the next layer does not accept \(.*\): leave out_features=null, or inject at trunk alone",
        ),
        (
            ["inject_at=[trunk.1,trunk]", "bottleneck.variational.out_features=16"],
            "gives 16 features for 256 after trunk.1, 16 features for 128 after trunk",
        ),
        (["inject_at=trunk.4", "bottleneck.variational.out_features=7"], "7 features for 128 after trunk.4"),
    ],
)
def test_a_place_that_cannot_take_the_bottleneck_is_named(configured, overrides, message):
    with pytest.raises(ValueError, match=message):
        built(configured(*overrides))


def test_a_model_that_fails_by_itself_is_not_blamed_on_the_bottleneck(configured):
    class Broken(torch.nn.Sequential):
        def forward(self, x):
            self[0](x)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match=r"^broken$"):
        build_method(
            configured("inject_at='0'"),
            Trial("variational", 0, 0.0),
            lambda width: Broken(torch.nn.Linear(8, 8)),
            EXAMPLE,
        )


def test_the_beta_of_a_summary_is_the_one_that_was_used(configured):
    cfg = configured("bottleneck.variational.beta=0.25")
    assert beta_used(cfg, [Trial("none", 0, 0.0)], {}) is None
    assert beta_used(cfg, [Trial("variational", 0, 0.0, ("beta", 0.5))], {}) == 0.5
    assert beta_used(cfg, [Trial("variational", 0, 0.0)], {}) == 0.25


def test_the_beta_that_a_target_rate_found_is_the_mean_over_seeds(configured):
    cfg = configured("schedule.name=target_rate")
    trials = [Trial("variational", seed, 0.0) for seed in (0, 1)]
    states = {}
    for trial, beta in zip(trials, (0.5, 1.0), strict=True):
        model = built(cfg, trial)
        for layer in ibreg.bottlenecks(model).values():
            layer.beta.fill_(beta)
        states[trial] = {"weights": model.state_dict()}
    assert beta_used(cfg, trials, states) == 0.75


def test_several_codes_are_drawn_by_stochastic_bottlenecks_alone(configured):
    cfg = configured("draws=3")
    assert built(cfg, Trial("variational", 0, 0.0)).draws == 3
    assert built(cfg, Trial("hsic", 0, 0.0)).draws == 1


def test_the_control_has_no_schedule_of_beta(configured):
    cfg = configured("schedule.name=cosine", "schedule.steps=9")
    assert build_schedule(cfg, "none", built(cfg, Trial("none", 0, 0.0))) is None
    assert build_schedule(cfg, "variational", built(cfg)).length == 9


def test_dropout_is_injected_where_the_bottleneck_is_and_penalizes_nothing(configured):
    model = built(configured(), Trial("dropout", 0, 0.0, ("dropout", 0.25)))
    (layer,) = ibreg.bottlenecks(model).values()
    ones = torch.ones(400, 128)
    dropped = layer.train().measure(ones)
    assert (dropped.z == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.z.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert dropped.penalty == 0
    assert torch.equal(layer.eval()(ones), ones)
    assert build_schedule(configured("schedule.name=target_rate"), "dropout", model) is None
