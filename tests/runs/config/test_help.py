"""`--help` of the recipes: every key with its comment, the chosen files, the choices that there are."""

import re
from inspect import Parameter
from pathlib import Path
from string import Template

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import ibreg
from ibreg import registry
from ibreg.runs.config.composition import register_with_hydra
from ibreg.runs.data import classification, concepts, regression, streams
from ibreg.runs.data.regression_request import RegressionRequest
from ibreg.runs.dispatch import keyword_options
from ibreg.runs.optimizers import OPTIMIZERS

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = ["classification", "concepts", "continual", "finetune", "regression", "robustness"]
IMAGES = {"cifar10", "colored_mnist", "digits", "fashion_mnist", "image_folder", "mnist"}


@pytest.fixture
def helped(monkeypatch):
    """The help of a recipe with overrides, as Hydra prints it in a terminal of some width."""
    register_with_hydra()

    def call(recipe, *overrides, width=120):
        monkeypatch.setenv("COLUMNS", str(width))
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose(recipe, overrides, return_hydra_config=True)
        return Template(cfg.hydra.help.template).substitute()

    return call


def joined(text):
    """Each key in one line with all of its comment, words apart by one blank."""
    text = re.sub(r"\n +#  +", " ", text)
    return [" ".join(line.split()) for line in re.sub(r"\n +# ", " # ", text).splitlines()]


def rows_of(yaml, upto="\nhydra:"):
    """The lines of a YAML that hold keys, in the same form."""
    text = yaml.read_text().partition(upto)[0]
    body = text[text.index("\nrecipe:") :] if "\nrecipe:" in text else re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    return [row for row in joined(body) if row]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_key_of_the_yaml_and_of_the_chosen_files_has_its_comment(helped, recipe):
    shown = joined(helped(recipe))
    config = OmegaConf.load(CONFIGS / f"{recipe}.yaml")
    replaced = ("data:", "bottleneck:", *(f"{name}: {{" for name in ibreg.names()))
    for row in rows_of(CONFIGS / f"{recipe}.yaml"):
        assert row in shown or row.startswith(replaced), row
    files = [
        path for entry in config.defaults if entry != "_self_" for path in (f"{k}/{v}.yaml" for k, v in entry.items())
    ]
    for path in (path for path in files if (CONFIGS / path).is_file()):
        group = path.partition("/")[0]
        for row in rows_of(CONFIGS / path):
            changed = group == "data" and row.split(":")[0] in config.get("data", {})
            assert row in shown or changed, row
    for name in config.bottlenecks:
        comments = {row.partition(" # ")[2] for row in rows_of(CONFIGS / "bottleneck" / f"{name}.yaml")}
        assert comments <= {row.partition(" # ")[2] for row in shown}


def test_the_chosen_files_are_shown(helped):
    shown = joined(helped("concepts", "data=concept_csv", "bottlenecks=[hsic]", "model=lenet"))
    several_lines = ("missing_marks", "[", '"')
    for row in rows_of(CONFIGS / "data" / "concept_csv.yaml") + rows_of(CONFIGS / "model" / "lenet.yaml"):
        assert row in shown or row.startswith(several_lines)
    (marks,) = (row for row in shown if row.startswith('missing_marks: ["", NA, N/A, "#N/A", '))
    assert "# cells of a missing value" in shown[shown.index(marks) + 1]
    for row in rows_of(CONFIGS / "bottleneck" / "hsic.yaml"):
        assert row in shown
    assert not [row for row in shown if row.startswith("embedding_features:")]  # of the bottlenecks by default


def test_a_value_that_must_be_given_is_pointed_out(helped):
    assert "Keys: key=value; ??? needs a value" in helped("classification", "data=csv").splitlines()
    assert "???" not in helped("classification", "data=csv", "data.path=a.csv", "data.target=y")


def test_values_are_those_of_the_experiment_and_the_command_line(helped):
    text = helped("classification", "experiment=vib_mnist", "epochs=3", "data.root='/my data'")
    shown = [row.partition(" # ")[0] for row in joined(text)]
    for row in ("epochs: 3", "batch_size: 100", "root: /my data", "validation: 0", "out_features: 256", "beta: 1e-3"):
        assert row in shown
    assert "experiment=vib_mnist" in shown
    assert "Alemi et al. 2017 (arXiv 1612.00410), section 4.1" in text
    # The values of YAMLs are those that Hydra composes.
    assert "epochs: 30" not in shown


def test_an_optimizer_is_shown_with_its_options(helped):
    shown = joined(helped("classification", "optimizer=sgd"))
    assert [row for row in shown if row.startswith("optimizer: # sgd, of torch.optim, ")]
    assert {"name: sgd", "momentum: 0", "nesterov: false"} <= set(shown)
    assert "eps: 1e-8" in joined(helped("classification"))


def test_a_method_of_a_name_of_its_own_has_the_comments_of_its_bottleneck(helped):
    text = helped("classification", "bottlenecks=[mine]", "+bottleneck.mine={name:dropout,rate:0.2}")
    assert "rate: 0.2 # probability that an entry of the code is set to 0 in training, in [0, 1]" in joined(text)
    assert "mine: # dropout: Dropout, Hinton et al. 2012" in " ".join(text.split())


def test_a_bottleneck_of_ones_own_is_explained_by_its_docstring(monkeypatch, helped):
    class SmallCodeBottleneck(ibreg.Bottleneck):
        """Keeps the code small.

        More of it.
        """

        def __init__(self, *, power: float = 2.0, beta: float = 0.1):
            super().__init__(beta=beta)

    monkeypatch.setitem(registry._classes, "small_code", SmallCodeBottleneck)
    register_with_hydra()
    text = helped("classification", "bottlenecks=[small_code]")
    shown = joined(text)
    assert {"small_code: # Keeps the code small.", "power: 2.0", "beta: 0.1"} <= set(shown)
    assert "small_code" in text[text.index("Choices") :]


@pytest.mark.parametrize(
    ("recipe", "data"),
    [
        ("classification", classification.names()),
        ("robustness", classification.names()),
        ("concepts", concepts.names()),
        ("regression", regression.names()),
        ("continual", streams.names()),
        ("finetune", sorted(IMAGES)),
    ],
)
def test_choices_are_those_that_there_are(helped, recipe, data):
    shown = helped(recipe)
    block = shown[shown.index("Choices: group=choice") : shown.index("Command line")].splitlines()[2:]
    text = re.sub(r"\n {10,}", " ", "\n".join(block))
    choices = {line.split()[0]: line.split(maxsplit=1)[1].split(", ") for line in text.splitlines() if line}
    assert choices["data"] == data
    assert choices["bottlenecks=[...]"] == [name for name in ibreg.names() if name != "dropout"]
    experiments = sorted((CONFIGS / "experiment").glob("*.yaml"))
    own = [path.stem for path in experiments if re.search(f"^recipe: {recipe}$", path.read_text(), re.MULTILINE)]
    assert choices["experiment"] == own
    assert choices.pop("optimizer", sorted(OPTIMIZERS)) == sorted(OPTIMIZERS)
    for group in set(choices) - {"data", "experiment", "bottlenecks=[...]"}:
        assert choices[group] == [path.stem for path in sorted((CONFIGS / group).glob("*.yaml"))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_fits_a_terminal_of_80_columns(helped, recipe):
    text = helped(recipe, width=80)
    keys = text[: text.index("Examples")].splitlines()
    assert [line for line in keys if len(line) > 80 and "  # " in line] == []
    rows = rows_of(CONFIGS / f"{recipe}.yaml")
    commented = [row for row in rows if "#" in row and not row.startswith(("bottleneck", "data:"))]
    assert len(commented) > 20
    assert set(commented) <= set(joined(text))


def test_a_file_of_ones_own_is_a_choice_and_is_shown(tmp_path, monkeypatch):
    register_with_hydra()
    (tmp_path / "data").mkdir()
    own = "# My clinic's table.\nname: csv\npath: clinic.csv   # where it is\ntarget: outcome   # what to predict\n"
    (tmp_path / "data" / "clinic.yaml").write_text(own)
    (tmp_path / "data" / "other.yaml").write_text("name: zoo\n")  # of another recipe
    monkeypatch.setenv("COLUMNS", "120")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose(
            "classification", ["data=clinic", f"hydra.searchpath=[file://{tmp_path}]"], return_hydra_config=True
        )
    shown = joined(Template(cfg.hydra.help.template).substitute())
    assert "data: # clinic: My clinic's table." in shown
    assert "path: clinic.csv # where it is" in shown
    (choices,) = (row for row in shown if row.startswith("data cifar10"))
    assert choices.split(" ", 1)[1].split(", ") == sorted([*classification.names(), "clinic"])


@pytest.mark.parametrize(
    "override",
    ["bottlenecks=hsic", "bottlenecks=null", "bottlenecks=[nosuch]", "grid=null", "~data", "~data.limit",
     "data.limit=no", "bottleneck.variational=null", "+data.shape=[1,{a:2}]"],
)  # fmt: skip
def test_help_comes_whatever_is_wrong_with_the_values(helped, override):
    assert "batch_size: 128" in helped("classification", override)


def test_options_of_all_regression_sets_need_no_plus():
    options = OmegaConf.to_container(OmegaConf.load(CONFIGS / "regression.yaml")).get("data")
    shared = keyword_options(RegressionRequest)
    assert options == {name: shared[name] for name in options}
    assert Parameter.empty not in options.values()
    for path in (CONFIGS / "data" / f"{name}.yaml" for name in regression.names()):
        assert shared.keys() <= options.keys() | OmegaConf.load(path).keys(), path.stem
