"""The YAML of each recipe and its pydantic model have the same keys, and what the YAMLs choose is valid."""

from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ibreg.runs import optimizers
from ibreg.runs.config.section import Section, read
from ibreg.runs.data import classification, concepts, regression, streams
from ibreg.runs.models import classifiers
from tests.recipes.command_line import module_of
from tests.runs.config.test_wrong_configurations import GIVEN, RECIPES, ROOT, composed

CONFIGS = ROOT / "configs"


def load(path) -> dict[str, Any]:
    """Reads numbers such as 1e-3 as Hydra does; values that must be given are given."""
    read: Any = OmegaConf.to_container(OmegaConf.load(path))
    return {key: GIVEN[key] if value == "???" else value for key, value in read.items()}


def chosen(group):
    return sorted((CONFIGS / group).glob("*.yaml"), key=str)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_the_keys_of_its_model(recipe):
    model = module_of(recipe).main.config
    written = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    own = [key for key in written if key not in ("defaults", "hydra")]
    groups = [key for entry in written["defaults"] if isinstance(entry, dict) for key in entry]
    groups = [group for group in groups if " " not in group and group != "experiment"]
    assert {*own, *groups} == set(model.model_fields)
    assert model.model_config["title"] == recipe == written["recipe"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_sections_of_a_recipe_have_the_keys_of_their_models(recipe):
    values = composed(recipe)
    checked = read(module_of(recipe).main.config, values)
    sections = {key: value for key, value in checked if isinstance(value, Section)}
    assert len(sections) >= 3
    for key, section in sections.items():
        assert set(dict(section)) == set(values[key]), key
        assert section.model_dump(mode="json") == values[key], key
    # The configuration that is written is the one that was composed.
    assert yaml.safe_load(yaml.safe_dump(checked.contents())) == yaml.safe_load(yaml.safe_dump(values))


@pytest.mark.parametrize("path", chosen("data"), ids=lambda path: path.stem)
def test_the_yaml_of_a_data_set_is_valid(path):
    values = load(path)
    taken = [sets for sets in (classification, concepts, regression, streams) if values["name"] in sets.SETS]
    assert taken
    for sets in taken:
        assert set(dict(sets.request(values))) >= set(values)


@pytest.mark.parametrize("path", chosen("model"), ids=lambda path: path.stem)
def test_the_yaml_of_a_model_is_valid(path):
    values = load(path)
    checked = classifiers.model_options(values)
    assert set(dict(checked)) == set(values)


@pytest.mark.parametrize("path", chosen("lr_schedule"), ids=lambda path: path.stem)
def test_the_yaml_of_a_schedule_of_the_learning_rate_has_its_options_and_defaults(path):
    values = load(path)
    assert dict(optimizers.lr_schedule_section(values)) == values
    required = {key for key, value in OmegaConf.to_container(OmegaConf.load(path)).items() if value == "???"}
    defaults = {key: value for key, value in values.items() if key not in required}
    least = {key: value for key, value in values.items() if key in required} | {"name": values["name"]}
    assert dict(optimizers.lr_schedule_section(least)) == least | defaults


def test_every_schedule_of_the_learning_rate_has_a_yaml():
    assert sorted(path.stem for path in chosen("lr_schedule")) == sorted(optimizers.LR_SCHEDULES)
