"""Wrong configurations: each is refused with the key that is wrong, before anything is loaded."""

import copy
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from ibreg import registry
from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.config.recipe import check_steps, read_recipe
from ibreg.runs.methods import build_bottleneck
from ibreg.runs.tasks.classification import ClassificationConfig


@pytest.fixture(scope="module")
def default():
    register_with_hydra()
    with initialize_config_dir(str(Path(__file__).parents[3] / "configs"), version_base="1.3"):
        return compose("classification", ["output_dir=unused"])


@pytest.fixture
def configured(default):
    """The checked configuration of the classification recipe with overrides, which is composed once."""

    def changed(*overrides):
        cfg = copy.deepcopy(default)
        for override in map(OverridesParser.create().parse_override, overrides):
            above, _, key = override.key_or_group.rpartition(".")
            section = OmegaConf.select(cfg, above) if above else cfg
            with open_dict(section):
                if override.is_delete():
                    del section[key]
                else:
                    section[key] = override.value()
        return read_recipe(ClassificationConfig, cfg)

    return changed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+epoch=3"], "classification has no key 'epoch' (did you mean 'epochs'?): it has output_dir, resume, "),
        (["+schedule.foo=3"], "schedule has no key 'foo': it has name, steps, rate"),
        (["+grid.betta=[1]"], "grid has no key 'betta' (did you mean 'beta'?): it has beta, betas, weight_decay"),
        (["+sweep.foo=1"], "sweep has no key 'foo': it has betas, epochs"),
        (["+data.tset=0.1"], "data has no key 'tset' (did you mean 'test'?): it has name, root, "),
        (["+data.augment=yes"], "data has no key 'augment': it has name, root, "),
        (["+model.hiden=[3]"], "model has no key 'hiden' (did you mean 'hidden'?): it has name, inject_at, hidden, "),
        (["+optimizer.beta=0.9"], "optimizer has no key 'beta' (did you mean 'betas'?): it has name, betas, eps"),
        (["+lr_schedule.every=3"], "lr_schedule has no key 'every': it has name"),
        (["~schedule.steps"], "schedule needs the key 'steps': give it a value, schedule.steps=..."),
        (["~grid.weight_decay"], "grid needs the key 'weight_decay': give it a value, grid.weight_decay=..."),
        (["~sweep.epochs"], "sweep needs the key 'epochs': give it a value, sweep.epochs=..."),
        (["~lr"], "classification needs the key 'lr': give it a value, lr=..."),
        (["~data"], "classification needs the key 'data': give it a value, data=..."),
        (["~data.name"], "data.name has no value: choose data=NAME, one of cifar10, "),
        (["~model.name"], "model.name has no value: choose model=NAME, one of lenet, "),
        (["~model.inject_at", "inject_at=trunk"], "model.inject_at has no value: choose model=NAME, one of lenet, "),
        (["~optimizer.name"], "optimizer.name has no value: choose optimizer=NAME, one of adadelta, "),
        (["grid=null"], "grid must be a section with the keys beta, betas, weight_decay, got null"),
    ],
)
def test_keys_that_a_recipe_does_not_have_and_keys_that_are_gone(configured, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        configured(*overrides)


def test_a_rate_for_each_bottleneck_stays_allowed(configured):
    overrides = ["schedule.name=target_rate", "schedule.rate={variational:10}"]
    configured(*overrides)


@pytest.mark.parametrize("option", sorted(registry.options("variational").keys() - {"in_features"}))
def test_an_option_that_is_removed_has_the_value_of_its_yaml(configured, option):
    removed = build_bottleneck(configured(f"~bottleneck.variational.{option}"), "variational")
    assert removed.config() == build_bottleneck(configured(), "variational").config()


COUNT, NUMBER, SHARE = "an integer of at least 1", "a number above 0", "a number of at least 0 and below 1"
LEAST, NUMBERS, MODULES = (
    "a number of at least 0",
    "a list of numbers of at least 0",
    "the name of a module, or a list of one or more different ones",
)
RATE = "a number above 0 or a section whose values are each a number above 0"
BETAS = "a list of 2 numbers of at least 0 and below 1"


@pytest.mark.parametrize(
    ("override", "valid", "got"),
    [
        ("lr=abc", NUMBER, "abc"),
        ("lr=-1", NUMBER, "-1"),
        ("lr=0", NUMBER, "0"),
        ("lr=nan", NUMBER, "nan"),
        ("lr=inf", NUMBER, "inf"),
        ("lr=true", NUMBER, "true"),
        ("lr=null", NUMBER, "null"),
        ("lr='0.1'", NUMBER, "'0.1'"),  # the quotes make it a string
        ("lr=[1]", NUMBER, "[1]"),
        ("weight_decay=abc", LEAST, "abc"),
        ("ema=abc", SHARE, "abc"),
        ("ema=1", SHARE, "1"),
        ("optimizer.betas=0.9", BETAS, "0.9"),
        ("optimizer.betas=[0.9,abc]", BETAS, "[0.9, 'abc']"),
        ("optimizer.betas=[0.9]", BETAS, "[0.9]"),
        ("optimizer.betas=[0.9,1]", BETAS, "[0.9, 1]"),
        ("optimizer.name=3", "one of adadelta, .*, sgd", "3"),
        ("epochs=2.5", COUNT, "2.5"),
        ("epochs=true", COUNT, "true"),
        ("epochs=0", COUNT, "0"),
        ("accumulate=abc", COUNT, "abc"),
        ("sweep.epochs=abc", COUNT, "abc"),
        ("sweep.betas=abc", NUMBERS, "abc"),
        ("sweep.betas=1e-3", NUMBERS, "0.001"),
        ("sweep.betas=[abc]", NUMBERS, "['abc']"),
        ("grid.beta=[inf]", f"{NUMBERS} or null", "[inf]"),
        ("grid.weight_decay=[-1]", NUMBERS, "[-1]"),
        ("schedule.name=cosin", "one of none, linear_warmup, cosine, target_rate", "cosin (did you mean 'cosine'?)"),
        ("schedule.steps=abc", COUNT, "abc"),
        ("schedule.rate=abc", RATE, "abc"),
        ("schedule.rate={variational:abc}", RATE, "{'variational': 'abc'}"),
        ("data.download=no", "true or false", "no"),
        ("data.test=1", "a number above 0 and below 1", "1"),
        ("data.split_seed=4294967296", "an integer of at least 0 and below 4294967296", "4294967296"),
        ("data.name=3", "one of cifar10, .*, mnist", "3"),
        ("model.name=[mlp]", "one of lenet, .*, transformers", "['mlp']"),
        ("model.hidden=[0]", "a list of integers of at least 1", "[0]"),
        ("resume=1", "true or false", "1"),
        ("resume='true'", "true or false", "'true'"),
        ("precision=fp8", "one of no, bf16, fp16", "fp8"),
        ("precision=false", "one of no, bf16, fp16", "false"),
        ("selection=bets", "one of best, last", "bets (did you mean 'best'?)"),
        ("tracker=tensorbord", "one of none, .*", "tensorbord (did you mean 'tensorboard'?)"),
        ("bottlenecks=variational", "a list of different strings", "variational"),
        ("bottlenecks=[hsic,hsic]", "a list of different strings", "['hsic', 'hsic']"),
        ("seeds=3", r"a list of one or more different integers of at least 0, such as \[0,1,2\]", "3"),
        ("inject_at=[trunk,trunk]", MODULES, "['trunk', 'trunk']"),
        ("inject_at=[]", MODULES, "[]"),
        ("inject_at=3", MODULES, "3"),
        ("inject_at=null", MODULES, "null"),
        ("imports=numpy", "a list of different strings", "numpy"),
        ("bottleneck.variational.beta=abc", "a finite number of at least 0", "'abc'"),
        ("bottleneck.variational.out_features=abc", r"None or an integer of at least 1 \(size of the code\)", "'abc'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_key(configured, override, valid, got):
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{key} must be {valid}, got {re.escape(got)}$"):
        configured(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["bottlenecks=[none]"], "bottlenecks must be none of the controls none, null, decayed, dropout, got none"),
        (["bottlenecks=[variationl]"], "no bottleneck 'variationl' (did you mean 'variational'?): choose from "),
        (["bottlenecks=[]", "control=false"], "there is nothing to train: name bottlenecks, or use control=true"),
        (["schedule.rate={other:1}"], "schedule.rate must be of cauchy_schwarz, "),
        (["schedule.rate={hsic:1}"], "schedule.rate has no rate for variational: give one number for all, or add it"),
        (["+grid.betas.variationl=[1]"], "got variationl (did you mean 'variational'?)"),
        (["tune=true", "grid.weight_decay=[0]"], "must have equally many values, so that the control is tuned as hard"),
        (["sweep.betas=[1,1]"], "two training runs are the same: values of a grid of beta, "),
        (["resume=true", "overwrite=true"], "resume continues a run and overwrite replaces it: give one of them"),
        (["data.validation=0"], "select on validation data: give data.validation, or selection=last"),
        (
            ["selection=last", "tune=true", "data.validation=0"],
            "tune=true and selection=best select on validation data",
        ),
        (
            ["+bottleneck.variationl={beta:1}"],
            "bottleneck has no key 'variationl' (did you mean 'variational'?): it has ",
        ),
        (
            ["+bottleneck.hsic.betta=1"],
            "bottleneck.hsic has no key 'betta' (did you mean 'beta'?): it has in_features, ",
        ),
        (
            ["+bottleneck.mine={name:hsik}"],
            "bottleneck.mine.name: no bottleneck is called 'hsik' (did you mean 'hsic'?)",
        ),
        (["+bottleneck.mine={beta:1}"], "to add a method give its name, bottleneck.mine.name=..."),
        (["+bottleneck.mine={name:hsic,slope:1}"], "bottleneck.mine has no key 'slope': it has in_features, beta, "),
    ],
)
def test_values_that_do_not_go_together(configured, overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        configured(*overrides)


@pytest.mark.parametrize(("folder", "got"), [(None, "null"), ("", "''"), (3, "3"), (True, "true")])
def test_an_output_folder_that_is_none(composed, folder, got):
    cfg = composed()
    cfg.output_dir = folder
    with pytest.raises(ValueError, match=f"^output_dir must be a string that is not empty, got {got}$"):
        read_recipe(ClassificationConfig, cfg)


def test_a_further_method_has_a_name_and_options(configured):
    cfg = configured("bottlenecks=[mine]", "+bottleneck.mine={name:hsic,beta:3}")
    assert build_bottleneck(cfg, "mine").config() == registry.build("hsic", beta=3).config()


def test_an_experiment_of_another_recipe_names_that_recipe(composed):
    with pytest.raises(ValueError, match=r"belongs to another recipe: python recipes/regression.py experiment=\.\.\."):
        read_recipe(ClassificationConfig, composed("experiment=cs_ib_bike"))


def test_all_missing_values_are_named(composed):
    message = (
        "a value is missing for data.path, data.target: give it on the command line, data.path=... data.target=..."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_recipe(ClassificationConfig, composed("data=csv"))


def test_the_batch_is_filled_and_shared(configured):
    cfg = configured("batch_size=65")
    check_steps(cfg, rows=65, processes=5)
    with pytest.raises(ValueError, match="batch_size must be at most 64, the number of training rows, got 65"):
        check_steps(cfg, rows=64, processes=1)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 processes, got 65"):
        check_steps(cfg, rows=1000, processes=2)


def test_an_average_that_remembers_its_first_step_is_told(configured):
    cfg = configured("batch_size=10", "epochs=5", "ema=0.99")  # 0.99^50 = 0.605, 0.99^500 = 0.007
    with pytest.warns(UserWarning, match=r"after 50 steps 61% of the averaged weights.*at most 0.912"):
        check_steps(cfg, rows=109, processes=1)
    check_steps(cfg, rows=1000, processes=1)
