"""Wrong configurations: each is refused with the key that is wrong, before anything is loaded."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ibreg import registry
from ibreg.runs.config.recipe import check_steps
from ibreg.runs.methods import build_bottleneck

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPE = CONFIGS / "classification.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+epoch=3"], "classification has no key 'epoch' .did you mean 'epochs'"),
        (["+schedule.foo=3"], "schedule has no key 'foo': it has name, rate, steps"),
        (["+grid.betta=[1]"], "grid has no key 'betta' .did you mean 'beta"),
        (["+sweep.foo=1"], "sweep has no key 'foo'"),
        (["~schedule.steps"], "schedule needs the key 'steps', which was removed"),
        (["~grid.weight_decay"], "grid needs the key 'weight_decay'"),
        (["~sweep.epochs"], "sweep needs the key 'epochs'"),
        (["~lr"], "classification needs the key 'lr'"),
        (["~data"], "classification needs the key 'data'"),
        (["~data.name"], "data.name has no value"),
        (["~model.name"], "model.name has no value"),
        (["~model.inject_at"], "model.inject_at has no value"),
        (["grid=null"], "grid must be a section with the keys beta, betas, weight_decay, got None"),
    ],
)
def test_keys_that_a_recipe_does_not_have_and_keys_that_are_gone(configured, overrides, message):
    with pytest.raises(ValueError, match=message):
        configured(*overrides)


def test_a_rate_for_each_bottleneck_stays_allowed(configured):
    overrides = ["schedule.name=target_rate", "schedule.rate={variational:10}"]
    configured(*overrides)


# Hydra refuses to remove what is null.
@pytest.mark.parametrize(
    "option", [name for name, value in registry.options("variational").items() if value is not None]
)
def test_an_option_that_is_removed_has_the_value_of_its_yaml(configured, option):
    removed = build_bottleneck(configured(f"~bottleneck.variational.{option}"), "variational")
    assert removed.config() == build_bottleneck(configured(), "variational").config()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=abc", "lr must be a number greater than 0, got abc"),
        ("lr=-1", "lr must be a number greater than 0"),
        ("lr=nan", "lr must be a number greater than 0"),
        ("lr=true", "lr must be a number greater than 0"),
        ("lr=[1]", "lr must be a number greater than 0"),
        ("lr_factor=abc", "lr_factor must be a number greater than 0"),
        ("lr_every=1.5", "lr_every must be a number of epochs, 0 for never, or a list"),
        ("lr_every=[0,3]", "lr_every must be a number of epochs, 0 for never, or a list"),
        ("lr_every=[]", "lr_every must be a number of epochs, 0 for never, or a list"),
        ("weight_decay=abc", "weight_decay must be a number of at least 0"),
        ("ema=abc", r"ema must be a number in \[0, 1\)"),
        ("ema=1", r"ema must be a number in \[0, 1\)"),
        ("adam_betas=0.9", "adam_betas must be two numbers"),
        ("adam_betas=[0.9,abc]", "adam_betas must be two numbers"),
        ("adam_betas=[0.9]", "adam_betas must be two numbers"),
        ("epochs=2.5", "epochs must be an integer of at least 1"),
        ("epochs=true", "epochs must be an integer of at least 1"),
        ("accumulate=abc", "accumulate must be an integer of at least 1"),
        ("sweep.epochs=abc", "sweep.epochs must be an integer of at least 1"),
        ("sweep.betas=abc", "sweep.betas must be a list of numbers of at least 0"),
        ("sweep.betas=1e-3", "sweep.betas must be a list of numbers of at least 0"),
        ("sweep.betas=[abc]", "sweep.betas must be a list of numbers of at least 0"),
        ("grid.beta=[inf]", "grid.beta must be a list of numbers of at least 0"),
        ("grid.weight_decay=[-1]", "grid.weight_decay must be a list of numbers of at least 0"),
        ("schedule.steps=abc", "schedule.steps must be an integer of at least 1"),
        ("schedule.rate=abc", "schedule.rate must be a number of nats greater than 0"),
        ("schedule.rate={variational:abc}", "schedule.rate must be a number of nats greater than 0"),
        ("schedule.rate={other:1}", "schedule.rate has no rate for variational"),
        ("data.download=no", "data.download must be true or false, got no"),
        ("+data.augment=yes", "data.augment must be true or false, got yes"),
        ("resume=1", "resume must be true or false"),
        ("precision=fp8", "precision must be one of no, bf16, fp16"),
        ("bottlenecks=variational", r"bottlenecks must be a list such as \[variational\], got variational"),
        ("inject_at=[trunk,trunk]", "inject_at must be the name of a module, or a list of different ones"),
        ("inject_at=3", "inject_at must be the name of a module"),
        ("inject_at=null", "inject_at must be the name of a module"),
        ("bottleneck.variational.beta=abc", "bottleneck.variational: beta must be"),
        ("bottleneck.variational.out_features=abc", "bottleneck.variational: "),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_key(configured, override, message):
    with pytest.raises(ValueError, match=message):
        configured(override)


def test_an_empty_output_folder_is_refused(configured):
    with pytest.raises(ValueError, match="output_dir must be a string that is not empty, got null"):
        configured("output_dir=null")


def test_the_batch_is_filled_and_shared(configured):
    cfg = configured("batch_size=65")
    check_steps(cfg, rows=65, processes=5)
    with pytest.raises(ValueError, match="batch_size=65 is more than the 64 training rows"):
        check_steps(cfg, rows=64, processes=1)
    with pytest.raises(ValueError, match="batch_size=65 is split over 2 processes: give a multiple of 2"):
        check_steps(cfg, rows=1000, processes=2)


def test_an_average_that_remembers_its_first_step_is_told(configured):
    cfg = configured("batch_size=10", "epochs=5", "ema=0.99")  # 0.99^50 = 0.605, 0.99^500 = 0.007
    with pytest.warns(UserWarning, match=r"after 50 steps 61% of the averaged weights.*at most 0.912"):
        check_steps(cfg, rows=109, processes=1)
    check_steps(cfg, rows=1000, processes=1)


@pytest.mark.parametrize("group", ["bottleneck", "data", "model"])
def test_the_recipe_has_the_groups_that_are_checked(configured, group):
    assert OmegaConf.is_dict(configured()[group])
