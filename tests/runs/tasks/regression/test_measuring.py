"""A regression's predictions, information, errors under attack and losses, against the same by hand."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from torch import nn

import ibreg
from ibreg.prediction import predict_samples
from ibreg.runs.data.regression_rows import RegressionData
from ibreg.runs.data.rows import Rows
from ibreg.runs.dispatch import keyword_options
from ibreg.runs.tasks.regression import task_losses
from ibreg.runs.tasks.regression.measuring import (
    Attack,
    RegressionConfig,
    build_task_loss,
    check_data,
    code_information,
    errors_under_attack,
    regress,
)

CPU = Accelerator(cpu=True)
CONFIGS = Path(__file__).parents[4] / "configs"
ATTACK = Attack(eps=[0.1, 0.5], steps=20, rows=60, draws=4)


@pytest.fixture
def data():
    parts = [Rows(torch.randn(count, 6), torch.randn(count, 1)) for count in (90, 50, 80)]
    return RegressionData("made", *parts, (6,), target_mean=7.0, target_std=3.0, quantity="length (m)")


@pytest.fixture
def stochastic():
    bottleneck = ibreg.build("nonlinear", in_features=8, out_features=4)  # its noise is as large as its code
    return ibreg.Regularized(nn.Sequential(nn.Linear(6, 8), bottleneck, nn.Tanh(), nn.Linear(4, 1)))


def test_a_control_is_predicted_in_the_unit_of_the_target(data):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1))
    found = regress(model, data.test, data, CPU, module="0", batch_size=30, draws=4)
    with torch.no_grad():
        torch.testing.assert_close(found.predictions, 3 * model(data.test.inputs).squeeze(1).double() + 7)
    torch.testing.assert_close(found.targets, 3 * data.test.targets.squeeze(1).double() + 7)
    assert found.rate is None
    metrics = found.metrics()
    assert metrics["rmse"] == pytest.approx((found.predictions - found.targets).square().mean().sqrt().item())
    assert metrics["information"] == pytest.approx(-0.5 * math.log(1 - metrics["r2"]))
    assert "rate" not in metrics
    assert model.training


def test_sampled_outputs_are_averaged_and_rates_are_those_of_batches(data, stochastic):
    found = regress(stochastic, data.test, data, CPU, module="1", batch_size=30, draws=5)
    batches = data.test.inputs.split(30)
    outputs = torch.cat([predict_samples(stochastic, x, draws=5, seed=place) for place, x in enumerate(batches)], 1)
    torch.testing.assert_close(found.predictions, 3 * outputs.mean(0).squeeze(1).double() + 7)
    stochastic.eval()
    with torch.no_grad():
        rates = [stochastic(x).logs["1/rate"].double() * len(x) for x in batches]
    assert found.rate == pytest.approx(float(sum(rates)) / 80, rel=1e-5)
    assert found.metrics()["rate"] == found.rate


def test_the_information_of_a_code_is_the_same_in_a_control_and_in_the_logs_of_a_bottleneck():
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    inputs = torch.randn(70, 6)
    plain = code_information(network, inputs, module="1", batch_size=30)
    ibreg.inject(network, {"1": ibreg.build("cauchy_schwarz")}, example=inputs[:1])
    model = ibreg.Regularized(network)
    assert code_information(model, inputs, module="1", batch_size=30) == pytest.approx(plain, rel=1e-9)
    model.eval()
    with torch.no_grad():
        logged = [model(batch).logs["1.bottleneck/cs_qmi"].item() for batch in inputs[:60].split(30)]
    assert plain == pytest.approx(sum(logged) / 2, rel=1e-5)
    assert not network[1]._forward_hooks or len(network[1]._forward_hooks) == 1  # the bottleneck's own


def test_the_information_of_fewer_rows_than_a_batch_is_that_of_all():
    network, inputs = nn.Sequential(nn.Linear(3, 2)), torch.randn(10, 3)
    with torch.no_grad():
        expected = ibreg.functional.cs_qmi(inputs, network(inputs)).item()
    assert code_information(network, inputs, module="0", batch_size=64) == pytest.approx(expected, rel=1e-6)


def test_attacks_on_a_linear_model_reach_its_exact_worst_case(data):
    model = nn.Linear(6, 1)
    found = errors_under_attack(model, data, ATTACK, torch.device("cpu"))
    with torch.no_grad():
        residuals = (model(data.test.inputs[:60]) - data.test.targets[:60]).double().abs()
        slope = model.weight.double().abs().sum()
    assert list(found) == [f"rmse_{name}_{eps}" for name in ("fgsm", "pgd") for eps in ("0", "0.1", "0.5")]
    for key, rmse in found.items():
        eps = float(key.rpartition("_")[2])
        worst = 3 * (residuals + eps * slope).square().mean().sqrt().item()
        # From its random start PGD may end on the other side of a target that was almost met.
        assert (0.99 if "pgd" in key else 1 - 1e-6) * worst < rmse < (1 + 1e-6) * worst


def test_a_stochastic_model_is_attacked_by_its_mean_and_its_expectation(data, stochastic):
    """Each row keeps the worse of the two, so that noise hides nothing."""
    from ibreg.evaluation.attacks.gradient import pgd

    found = errors_under_attack(stochastic, data, ATTACK, torch.device("cpu"))
    x, y = data.test.inputs[:60], data.test.targets[:60]
    errors = [
        (ibreg.predict(stochastic, pgd(stochastic, x, y, eps=0.5, steps=20, expectation=draws)) - y).square()
        for draws in (0, 4)
    ]
    expected = 3 * torch.maximum(*errors).double().mean().sqrt().item()
    assert found["rmse_pgd_0.5"] == pytest.approx(expected, rel=1e-6)
    assert not torch.equal(*errors)


def test_attacked_images_keep_to_the_range_of_pixels(data):
    inputs = torch.rand(60, 1, 2, 3)
    test = Rows(inputs, torch.zeros(60, 1))
    images = RegressionData("made", data.train, None, test, (1, 2, 3), 0.0, 1.0, "angle", value_range=(0.0, 1.0))
    seen = []

    class Seeing(nn.Sequential):
        def forward(self, x):
            seen.append(x.detach())
            return super().forward(x)

    errors_under_attack(Seeing(nn.Flatten(), nn.Linear(6, 1)), images, ATTACK, torch.device("cpu"))
    assert min(x.min() for x in seen) == 0
    assert max(x.max() for x in seen) == 1


def test_a_method_has_its_own_loss_and_the_others_the_common_one(configured):
    cfg = configured(
        "task_loss=huber", "task_loss.delta=3", "+task_losses.none={name:absolute_error}",
        "+task_losses.hsic={name:conditional_cauchy_schwarz,mode:paper,bandwidth_x:[rms,0.3]}",
        "bottlenecks=[hsic,variational]", keys=RegressionConfig,
    )  # fmt: skip
    assert build_task_loss(cfg, "variational").delta == 3
    assert isinstance(build_task_loss(cfg, "none"), nn.L1Loss)
    assert isinstance(build_task_loss(cfg, "null"), nn.L1Loss)
    own = build_task_loss(cfg, "hsic")
    assert (own.mode, list(own.bandwidth_x)) == ("paper", ["rms", 0.3])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "+task_losses.hsic={name:conditional_cauchy_schwarz,share:abc}",
            "^task_losses.hsic.share must be a number, got abc$",
        ),
        ("+task_losses.hsic=3", r"^task_losses.hsic must be a name and options, such as \{.*\}, got 3$"),
        ("++task_losses=3", "^task_losses must be a section whose values are each a name and options, .*, got 3$"),
        ("task_loss.name=hubert", r"^task_loss.name: no task loss 'hubert' \(did you mean 'huber'\?\): it is one of "),
        ("+task_loss.delta=1", "^task_loss has no key 'delta': it has no options$"),
        ("task_loss=huber task_loss.delta=0", "^task_loss.delta must be a number above 0, got 0$"),
        ("task_loss=conditional_cauchy_schwarz task_loss.share=2", r"^task_loss.share must be "),
        ("task_loss=conditional_cauchy_schwarz task_loss.mode=x", r"^task_loss.mode must be one of "),
        ("+task_losses.null={name:huber}", "^task_losses must be of none, .*, variational, got null$"),
    ],
)
def test_a_wrong_loss_is_named_with_its_key(configured, overrides, message):
    with pytest.raises(ValueError, match=message):
        configured(*overrides.split(), "bottlenecks=[hsic]", keys=RegressionConfig)


@pytest.mark.parametrize("name", task_losses.names())
def test_the_yaml_of_a_loss_has_its_options_and_defaults(name):
    written = OmegaConf.to_container(OmegaConf.load(CONFIGS / "task_loss" / f"{name}.yaml"))
    assert written.pop("name") == name
    options = keyword_options(task_losses._LOSSES[name])
    as_written = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    assert written == as_written
    assert isinstance(task_losses.build(name, **written), nn.Module)


def test_targets_that_do_not_vary_are_refused(data):
    check_data(data)
    constant = RegressionData("made", data.train, Rows(torch.zeros(3, 6), torch.ones(3, 1)), data.test, (6,), 0, 1, "m")
    with pytest.raises(ValueError, match="the validation part of made has 3 rows of one target"):
        check_data(constant)
