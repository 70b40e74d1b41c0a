"""Every key of recipes, data sets, models and methods, misspelt and with wrong values: one line says what is valid."""

import re
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ibreg import registry
from ibreg.runs import optimizers
from ibreg.runs.config.composition import build_bottleneck, register_with_hydra
from ibreg.runs.config.section import read
from ibreg.runs.data import classification, concepts, regression, streams
from ibreg.runs.data.concept_rows import ConceptRequest
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.data.split import Request
from ibreg.runs.dispatch import choose, options_of
from ibreg.runs.models import classifiers, encoders
from ibreg.runs.tasks.continual import learners
from ibreg.runs.tasks.regression import task_losses
from tests.recipes.command_line import module_of
from tests.runs.config.wrong import CANDIDATES, wrong_sections

ROOT = Path(__file__).parents[3]
RECIPES = ("classification", "concepts", "continual", "finetune", "regression", "robustness")
# Values of options that have no default.
GIVEN = {
    "path": "file", "target": "column", "table": "file", "concepts": ["column"], "architecture": "resnet18",
    "places": ["trunk"], "model": {"name": "mlp"}, "data": {"name": "digits"}, "hidden": [3], "memory": 5,
    "strength": 1.0, "samples": 10, "at": [3], "every": 3, "factor": 0.5, "inject_at": "trunk", "configuration": {},
}  # fmt: skip


@cache
def composed(recipe):
    register_with_hydra()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose(recipe, ["output_dir=unused"]), resolve=True)


def given_or_default(model, **values):
    """A valid section."""
    fields = model.model_fields.items()
    defaults = {key: GIVEN[key] if field.is_required() else field.default for key, field in fields if key != "name"}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()} | values


def problems(model, values, function, section=""):
    """Returns the problems of all wrong sections, of which there are some."""
    function(values)
    found = [wrong.problem(function, section) for wrong in wrong_sections(model, values)]
    assert len(found) >= 2 * len(values) - 2
    return [problem for problem in found if problem]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_of_a_recipe(recipe):
    model = module_of(recipe).main.config
    mistakes = list(wrong_sections(model, composed(recipe)))
    assert len(mistakes) > 300
    assert problems(model, composed(recipe), partial(read, model)) == []


DATA = [
    (sets, name, request)
    for sets, request in (
        (classification, Request), (streams, Request), (regression, RegressionRequest), (concepts, ConceptRequest)
    )
    for name in sets.SETS
]  # fmt: skip


@pytest.mark.parametrize(("sets", "name", "request_class"), DATA, ids=[f"{s.__name__[16:]}-{n}" for s, n, _ in DATA])
def test_every_option_of_a_data_set(sets, name, request_class):
    model = options_of(sets.SETS[name], request_class)
    assert problems(model, given_or_default(model, name=name), sets.request, "data") == []


@pytest.mark.parametrize("name", classifiers.names())
def test_every_option_of_a_model(name):
    model = options_of(classifiers._MODELS[name], classifiers.Model)
    assert problems(model, given_or_default(model, name=name), classifiers.model_options, "model") == []


@pytest.mark.parametrize("name", sorted(optimizers.OPTIMIZERS))
def test_every_option_of_an_optimizer(name):
    model = optimizers._model_of(name)
    assert problems(model, given_or_default(model, name=name), optimizers.optimizer_section, "optimizer") == []


@pytest.mark.parametrize("name", optimizers.LR_SCHEDULES)
def test_every_option_of_a_schedule_of_the_learning_rate(name):
    model = options_of(optimizers.LR_SCHEDULES[name], optimizers.LRScheduleSection)
    assert problems(model, given_or_default(model, name=name), optimizers.lr_schedule_section, "lr_schedule") == []


CHOSEN = [
    (kind, name, functions)
    for kind, functions in (("encoder", encoders._ENCODERS), ("learner", learners.LEARNERS))
    for name in functions
]


@pytest.mark.parametrize(("kind", "name", "functions"), CHOSEN, ids=[f"{kind}-{name}" for kind, name, _ in CHOSEN])
def test_every_option_of_an_encoder_or_learner(kind, name, functions):
    model = options_of(functions[name])
    function = partial(choose, kind, name, functions, section=kind)
    assert problems(model, given_or_default(model), function, kind) == []


@pytest.mark.parametrize("name", task_losses.names())
def test_every_option_of_a_task_loss(name):
    model = options_of(task_losses._LOSSES[name])
    function = lambda options: task_losses.build(name, **options)  # noqa: E731
    assert problems(model, given_or_default(model), function, "task_loss") == []


@pytest.mark.parametrize("name", registry.names())
def test_every_option_of_a_bottleneck(name):
    defaults = registry.options(name)
    for option in defaults:
        messages = {}
        for value in CANDIDATES:
            try:
                build_bottleneck(SimpleNamespace(bottleneck={name: defaults | {option: value}}), name)
            except ValueError as error:
                messages[repr(value)] = str(error)
        assert len(messages) >= 4, option
        for value, message in messages.items():
            # A single concept may be what is wrong.
            where = (
                f"{name}(.concepts|: a concept|: the number of concepts)"
                if option == "concepts"
                else f"{name}.{option}"
            )
            got = value.removeprefix("[").removesuffix("]") if option == "concepts" else value
            assert re.search(rf"^bottleneck.{where} must be .+{re.escape(got)}", message), message
            assert "\n" not in message


@pytest.mark.parametrize("name", registry.names())
def test_every_option_of_a_bottleneck_misspelt(name):
    model, values = module_of("classification").main.config, composed("classification")
    for option in registry.options(name):
        sections = values["bottleneck"] | {name: values["bottleneck"][name] | {f"{option}q": 1}}
        known = ", ".join(registry.options(name))
        message = rf"^bottleneck.{name} has no key '{option}q' \(did you mean '{option}'\?\): it has {known}$"
        with pytest.raises(ValueError, match=message):
            read(model, values | {"bottleneck": sections})


@pytest.mark.parametrize(
    ("recipe", "key", "value", "suggested"),
    [
        ("continual", "settings", {"mlpp": [{"lr": 1}]}, "mlp"),
        ("continual", "learner", {"mlpp": {}}, "mlp"),
        ("concepts", "trainings", {"concpt": "joint"}, "concept"),
        ("robustness", "places", {"hsik": ["trunk"]}, "hsic"),
        ("regression", "task_losses", {"hsik": {"name": "huber"}}, "hsic"),
    ],
)
def test_a_section_of_methods_names_those_that_there_are(recipe, key, value, suggested):
    values = composed(recipe) | {key: composed(recipe)[key] | value}
    message = rf"^{key} must (be|have sections) of .*{suggested}.*, got {next(iter(value))}.*did you mean '{suggested}'"
    with pytest.raises(ValueError, match=message):
        read(module_of(recipe).main.config, values)
