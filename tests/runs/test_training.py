"""The rehearsal of all methods, what is kept of a model, and the schedule of the learning rate."""

import math

import pytest
import torch
from torch import nn

import ibreg
from ibreg.runs.checkpoint import load_checkpoint, save_checkpoint
from ibreg.runs.comparison import rehearse
from ibreg.runs.data.rows import Rows
from ibreg.runs.optimizers import build_lr_schedule
from ibreg.runs.training import Task, divergence_told
from ibreg.runs.trials import Trial


class Made:
    train = Rows(torch.randn(20, 4), torch.randint(3, (20,)))
    validation = None


def task(model, loss=None, quality=lambda metrics: ()):
    return Task(
        data=dict.fromkeys(range(3), Made),
        model=model,
        loss=lambda trial: loss or nn.CrossEntropyLoss(),
        measure=lambda model, data: {},
        quality=quality,
    )


def network(trial):
    layers = nn.Sequential(nn.Linear(4, 3))
    if trial.method in ("none", "null"):
        return layers
    return ibreg.Regularized(ibreg.inject(layers, {"0": ibreg.build(trial.method, estimator="unbiased")}))


def test_a_rehearsal_takes_the_loss_of_every_method_and_leaves_no_gradient(configured):
    losses = []

    class Remembering(nn.CrossEntropyLoss):
        def forward(self, output, target):
            losses.append(super().forward(output, target))
            return losses[-1]

    rehearse(configured("bottlenecks=[hsic]"), task(network, Remembering()))
    assert len(losses) == 3
    assert not any(loss.requires_grad for loss in losses)


@pytest.mark.parametrize(("batch", "fails"), [(3, True), (4, False)])
def test_a_batch_below_the_minimum_of_an_estimator_is_found(configured, batch, fails):
    cfg = configured("bottlenecks=[hsic]", f"batch_size={batch}")
    if fails:
        with pytest.raises(ValueError, match="4 samples"):
            rehearse(cfg, task(network))
    else:
        rehearse(cfg, task(network))


def test_a_loss_that_does_not_fit_the_targets_is_found(configured):
    with pytest.raises(ValueError, match="must be the same as input size"):
        rehearse(configured(), task(lambda trial: nn.Linear(4, 3), nn.BCEWithLogitsLoss()))


def test_selected_weights_are_kept_until_a_better_epoch(configured):
    cfg, trial, model = configured(), Trial("none", 0, 0.0), nn.Linear(2, 1)
    judged = task(lambda trial: model, quality=lambda metrics: (metrics["accuracy"],))
    chosen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = judged.keep(cfg, trial, {}, 1, {"accuracy": 0.5}, model)
    nn.init.zeros_(model.weight)
    second = judged.keep(cfg, trial, first, 2, {"accuracy": 0.5}, model)
    assert (second["best"], second["validation"]) == (1, {"accuracy": 0.5})
    assert all(torch.equal(second["weights"][name], chosen[name]) for name in chosen)
    third = judged.keep(cfg, trial, second, 3, {"accuracy": 0.6}, model)
    assert (third["best"], third["validation"]) == (3, {"accuracy": 0.6})
    assert torch.equal(third["weights"]["weight"], torch.zeros(1, 2))
    for last in (judged.keep(configured("selection=last"), trial, third, 4, None, model),
                 judged.keep(cfg, Trial("none", 0, 0.0, stop=4), third, 4, {"accuracy": 0.1}, model)):  # fmt: skip
        assert last["best"] == 4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["lr_schedule=constant"], [1] * 6),
        (["lr_schedule=step", "lr_schedule.every=2", "lr_schedule.factor=0.5"], [1, 1, 0.5, 0.5, 0.25, 0.25]),
        (["lr_schedule=multi_step", "lr_schedule.at=[1,4]", "lr_schedule.factor=0.5"], [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        (["lr_schedule=exponential", "lr_schedule.factor=0.5"], [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        (["lr_schedule=linear", "lr_schedule.final=0.4"], [1, 0.9, 0.8, 0.7, 0.6, 0.5]),
        (["lr_schedule=cosine"], [(1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(6)]),
        (["lr_schedule=cosine", "lr_schedule.final=0.5"], [(3 + math.cos(math.pi * e / 6)) / 4 for e in range(6)]),
    ],
)
def test_the_learning_rate_falls_where_it_should_and_after_a_checkpoint_too(configured, tmp_path, overrides, expected):
    section = configured(*overrides).lr_schedule

    def build():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return optimizer, build_lr_schedule(section, optimizer, 6)

    optimizer, schedule = build()
    rates = []
    for epoch in range(6):
        if epoch == 3:
            save_checkpoint(tmp_path / "a.pt", {"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()})
            state, (optimizer, schedule) = load_checkpoint(tmp_path / "a.pt"), build()
            schedule.load_state_dict(state["schedule"])
            optimizer.load_state_dict(state["optimizer"])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("error", "diverged"),
    [
        (RuntimeError("bottleneck 1 got NaN or infinite values in its input"), True),
        (ValueError("probabilities must be at least 0 and not NaN: apply a softmax to logits"), True),
        (ValueError("predictions must be finite, got 3 values that are not"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("a definite infinitive of NaNs"), False),
        (KeyError("NaN"), False),
    ],
)
def test_errors_about_values_that_are_not_finite_are_a_divergence(error, diverged):
    raised = FloatingPointError if diverged else type(error)
    message = "vib-seed0: the loss must be finite, got nan in epoch 3: lower lr or beta" if diverged else None
    with pytest.raises(raised, match=message) as caught, divergence_told("vib-seed0", 2):
        raise error
    assert diverged == (caught.value.__cause__ is error)
