"""What a search keeps, where it stops, and how targets and momentum steer it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

import ibreg
from ibreg.evaluation.attacks.ball import Ball
from ibreg.evaluation.attacks.gradient import fgsm, pgd
from ibreg.evaluation.attacks.objective import Judgement, Objective, Worst, margin
from ibreg.regularized import unwrap

NORMS = ("inf", "2")


def classifier(features=8, classes=3):
    return nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, classes))


def labeled(model, batch=200, features=8):
    x = torch.randn(batch, features)
    return x, model(x).argmax(1)


def right(model, x, y):
    return model(x).argmax(1) == y


class Watched(nn.Module):
    """Remembers the points that go through."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach())
        return self.model(x)

    def samples(self):
        return sum(map(len, self.seen))


# --- what is kept


def test_points_that_fool_come_first_and_greater_values_next():
    x = torch.zeros(4, 1)
    worst = Worst(x)
    worst.meet(x, Judgement(torch.zeros(4), torch.tensor([False, False, True, True])), torch.arange(len(x)))
    seen = Judgement(torch.tensor([1.0, -1.0, 5.0, 5.0]), torch.tensor([False, True, False, True]))
    worst.meet(x + 1, seen, torch.arange(len(x)))
    assert worst.x.flatten().tolist() == [1, 1, 0, 1]
    assert worst.value.tolist() == [1, -1, 0, 5]
    assert worst.fooled.tolist() == [False, True, True, True]
    assert x.flatten().tolist() == [0, 0, 0, 0]


def test_a_value_that_is_not_a_number_is_never_kept():
    worst = Worst(torch.zeros(1, 1))
    worst.meet(
        torch.ones(1, 1), Judgement(torch.tensor([torch.nan]), torch.zeros(1, dtype=torch.bool)), torch.tensor([0])
    )
    assert worst.x.item() == 0


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_accuracy_never_rises_with_steps_or_restarts(norm, early_stop):
    model = classifier()
    x, y = labeled(model)

    def still_right(**options):
        return right(model, pgd(model, x, y, eps=0.3, norm=norm, step_size=0.1, early_stop=early_stop, **options), y)

    few, more, restarted = still_right(steps=2), still_right(steps=6), still_right(steps=2, restarts=3)
    assert (more <= few).all()
    assert (restarted <= few).all()
    assert more.sum() <= few.sum() < 200


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_is_never_weaker_than_fgsm(norm):
    model = classifier()
    x, y = labeled(model)
    options = {"eps": 0.4, "norm": norm}
    by_one = right(model, fgsm(model, x, y, **options), y)
    assert (right(model, pgd(model, x, y, **options), y) <= by_one).all()
    assert (right(model, pgd(model, x, y, steps=1, step_size=1e-6, **options), y) <= by_one).all()


# --- early stop


@pytest.mark.parametrize("norm", NORMS)
def test_early_stop_fools_the_same_samples_with_less_work(norm):
    model = Watched(classifier())
    x, y = labeled(model)
    options = {"eps": 0.4, "norm": norm, "steps": 20, "restarts": 2, "seed": 3}
    work = []
    fooled = []
    for early_stop in (False, True):
        model.seen.clear()
        attacked = pgd(model, x, y, early_stop=early_stop, **options)
        work.append(model.samples())
        fooled.append(~right(model, attacked, y))
    assert torch.equal(*fooled)
    assert 0.1 < fooled[0].double().mean() < 0.9
    assert work[0] == 200 * (2 + 2 * 21)
    assert work[1] < 0.8 * work[0]


def test_early_stop_leaves_samples_that_are_wrong_already_and_ends_with_the_last_one():
    model = Watched(classifier())
    x, y = labeled(model)
    model.seen.clear()
    wrong = (y + 1) % 3
    assert torch.equal(pgd(model, x, wrong, eps=0.4, steps=20, early_stop=True), x)
    assert model.samples() == 200


def test_early_stop_of_a_sample_does_not_touch_the_others():
    model = classifier().double()
    x, y = torch.randn(30, 8).double(), torch.randint(3, (30,))
    options = {"eps": 0.5, "steps": 8, "random_start": False, "early_stop": True}
    alone = torch.cat([pgd(model, x[i : i + 1], y[i : i + 1], **options) for i in range(30)])
    torch.testing.assert_close(pgd(model, x, y, **options), alone)


# --- targets


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize("norm", NORMS)
def test_targeted_attacks_on_linear_regressors_have_their_best_case_in_closed_form(attack, norm):
    model, x = nn.Linear(6, 1).double(), torch.randn(40, 6).double()
    wanted = 100 * torch.randn(40, 1).double().sign()
    attacked = attack(model, x, wanted, eps=0.3, norm=norm, targeted=True)
    reach = 0.3 * torch.linalg.vector_norm(model.weight, ord={"inf": 1, "2": 2}[norm])
    torch.testing.assert_close(model(attacked), model(x) + wanted.sign() * reach, rtol=0, atol=1e-5)


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("loss", [None, margin])
def test_targeted_attacks_make_a_classifier_say_the_wanted_class(loss, early_stop):
    model = classifier()
    x, y = labeled(model)
    wanted = (y + 1) % 3
    attacked = pgd(model, x, wanted, eps=1.0, steps=20, targeted=True, loss=loss, early_stop=early_stop)
    assert (model(attacked).argmax(1) == wanted).double().mean() > 0.5
    other = pgd(model, x, wanted, eps=1.0, steps=20, loss=loss)
    assert (model(other).argmax(1) != wanted).all()


def test_a_sample_that_says_the_wanted_class_already_is_fooled():
    model = classifier()
    x, y = labeled(model)
    _, fooled = Objective(model, y, targeted=True).judge(x, 0)
    assert fooled.all()


# --- momentum


@pytest.mark.parametrize("norm", NORMS)
def test_momentum_adds_up_gradients_of_length_one(norm):
    model = classifier().double()
    x, y = torch.randn(5, 8).double(), torch.randint(3, (5,))
    mu, alpha, eps = 0.7, 0.05, 0.2
    point, kept = x.clone(), torch.zeros_like(x)
    for _ in range(6):
        point = point.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y, reduction="sum"), point)
        kept = mu * kept + gradient / gradient.abs().sum(1, keepdim=True)
        step = kept.sign() if norm == "inf" else kept / kept.norm(dim=1, keepdim=True)
        change = point.detach() + alpha * step - x
        if norm == "inf":
            change = change.clamp(-eps, eps)
        else:
            change = change * (eps / change.norm(dim=1, keepdim=True)).clamp(max=1)
        point = x + change
    watched = Watched(model)
    pgd(watched, x, y, eps=eps, steps=6, step_size=alpha, momentum=mu, random_start=False, norm=norm)
    torch.testing.assert_close(watched.seen[-1], point)


def test_a_tiny_gradient_has_a_momentum():
    model = nn.Linear(3, 1, bias=False)
    nn.init.constant_(model.weight, 1e-30)
    attacked = pgd(model, torch.zeros(2, 3), torch.full((2, 1), -1.0), eps=0.1, steps=5, momentum=1.0)
    assert attacked.isfinite().all()
    assert (attacked.abs() <= 0.1).all()


# --- losses, norms, models that draw noise by themselves


@settings(deadline=None, max_examples=50)
@given(classes=st.integers(2, 6), seed=st.integers(0, 1000))
def test_the_margin_is_above_zero_exactly_where_the_classifier_is_wrong(classes, seed):
    torch.manual_seed(seed)
    logits, y = torch.randn(20, classes), torch.randint(classes, (20,))
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)
    expected = [max(row[c] - row[k] for c in range(classes) if c != k) for row, k in zip(logits.tolist(), y.tolist())]  # noqa: B905
    torch.testing.assert_close(margin(logits, y), torch.tensor(expected))


def test_the_margin_finds_what_a_saturated_cross_entropy_hides():
    model = nn.Sequential(classifier(), Scale(1e4))
    x, y = labeled(model)
    hidden = right(model, pgd(model, x, y, eps=0.3, steps=10, random_start=False), y).double().mean()
    found = right(model, pgd(model, x, y, eps=0.3, steps=10, random_start=False, loss=margin), y).double().mean()
    assert found < hidden - 0.1


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_norms_may_be_numbers():
    model = classifier()
    x, y = labeled(model)
    for number, name in ((2, "2"), (torch.inf, "inf")):
        options = {"eps": 0.2, "steps": 2}
        assert torch.equal(pgd(model, x, y, norm=number, **options), pgd(model, x, y, norm=name, **options))
    assert Ball(x, 0.1, 2.0, None).norm == "2"


class OwnNoise(nn.Module):
    def forward(self, x):
        return x[:, :3] + torch.randn(len(x), 3)


def test_a_model_with_noise_of_its_own_leaves_the_global_generator_alone():
    x, y = torch.randn(9, 8), torch.randint(3, (9,))
    before = torch.get_rng_state()
    attacks = (
        lambda seed: pgd(OwnNoise(), x, y, eps=0.1, steps=2, seed=seed),
        lambda seed: fgsm(OwnNoise(), x, y, eps=0.1),
    )
    for attack in attacks:
        assert torch.equal(attack(1), attack(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_step_reaches_the_edge_of_the_ball():
    model = nn.Linear(4, 1).double()
    x = torch.randn(5, 4).double()
    attacked = pgd(model, x, model(x) + 1, eps=0.3, steps=4, random_start=False)
    torch.testing.assert_close((attacked - x).abs(), torch.full_like(x, 0.3))


def test_images_that_a_network_normalizes_are_attacked_in_pixels():
    """With a first module that normalizes, eps and bounds are those of pixels, for every channel alike."""
    torch.manual_seed(4)
    host = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), ibreg.VariationalBottleneck(6, 3, beta=0), nn.Linear(3, 3))
    model = ibreg.Regularized(host).eval()
    normalize = v2.Normalize([0.2, 0.5, 0.8], [0.1, 0.5, 2.0])
    pixels = torch.rand(20, 3, 2, 2)
    whole = nn.Sequential(normalize, unwrap(model))
    y = whole(pixels).argmax(1)
    attacked = pgd(whole, pixels, y, eps=0.1, clamp=(0, 1), steps=10)
    assert ((attacked - pixels).abs() <= 0.1 + 1e-6).all()
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not torch.equal(attacked, pixels)
    worse = nn.functional.cross_entropy(model(normalize(attacked)).output, y)
    assert worse > nn.functional.cross_entropy(model(normalize(pixels)).output, y)
