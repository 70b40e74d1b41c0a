"""The schedule of beta by name: the same as the class of `ibreg.schedules` with its options."""

import pytest
from torch import nn

import ibreg
from ibreg import schedules
from ibreg.runs.beta_schedules import SCHEDULES, BetaSchedule
from ibreg.runs.config.section import read


def section(**values):
    return read(BetaSchedule, {"name": "none", "steps": 4, "rate": 2.0} | values, "schedule")


def model():
    return nn.Sequential(ibreg.build("variational", in_features=3, beta=0.8))


def test_none_keeps_beta():
    assert section().build("variational", model()) is None


@pytest.mark.parametrize(
    ("name", "kind", "first", "last"),
    [("linear_warmup", schedules.LinearWarmup, 0, 0.8), ("cosine", schedules.Cosine, 0.8, 0)],
)
def test_a_warmup_is_that_of_the_class(name, kind, first, last):
    ours, theirs = model(), model()
    schedule, reference = section(name=name).build("variational", ours), kind(theirs, 4)
    assert type(schedule) is kind
    betas = []
    for _ in range(6):
        betas.append((float(ours[0].beta), float(theirs[0].beta)))
        schedule.step(None)
        reference.step(None)
    assert [one for one, _ in betas] == pytest.approx([other for _, other in betas])
    assert betas[0][0] == pytest.approx(first)
    assert betas[4][0] == betas[5][0] == pytest.approx(last)


@pytest.mark.parametrize(
    ("rate", "method", "target"), [(3.0, "variational", 3.0), ({"variational": 5, "hsic": 1}, "variational", 5)]
)
def test_the_target_rate_of_a_method(rate, method, target):
    asked = section(name="target_rate", rate=rate)
    assert asked.rate_of(method) == target
    schedule = asked.build(method, model())
    assert type(schedule) is schedules.TargetRate
    assert schedule.rate == {"0": target}


def test_every_schedule_is_built():
    assert set(SCHEDULES) == {"none", "linear_warmup", "cosine", "target_rate"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "linear"}, "schedule.name must be one of none, linear_warmup, cosine, target_rate, got linear"),
        ({"steps": 0}, "schedule.steps must be an integer of at least 1, got 0"),
        (
            {"rate": 0},
            "schedule.rate must be a number above 0 or a section whose values are each a number above 0, got 0",
        ),
        ({"rate": {"hsic": -1}}, "schedule.rate must be a number above 0 or a section"),
        ({"rates": 1}, r"schedule has no key 'rates' \(did you mean 'rate'\?\): it has name, steps, rate"),
    ],
)
def test_a_schedule_that_is_not_valid(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        section(**values)
