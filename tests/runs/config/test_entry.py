"""The entry point of a recipe: a user's mistake is one line on stderr, and a mistake in the code a traceback."""

import functools
import importlib.metadata
import os
import sys
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import ibreg
from ibreg import registry
from ibreg.runs.config.entry import import_bottlenecks, one_line, plain_warnings
from tests.recipes.command_line import module_of, run_here
from tests.recipes.folders import summary_of

QUICK = [
    "seeds=[0]",
    "epochs=1",
    "sweep.betas=[]",
    "model.hidden=[8]",
    "device=cpu",
    "data.limit=600",
    "output_dir=run",
]
MINE = '''
import ibreg

@ibreg.register("{name}")
class Mine(ibreg.VariationalBottleneck):
    """A bottleneck of a user's own."""
'''
pytestmark = pytest.mark.usefixtures("_forgotten_modules")


@pytest.fixture(autouse=True)
def _empty_images(monkeypatch):
    """Drawing takes longer than training."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: None)


@pytest.fixture
def _forgotten_modules():
    """Forgets bottlenecks, modules and folders of modules that a test has brought in."""
    known, modules, path = set(registry._classes), set(sys.modules), list(sys.path)
    yield
    for name in set(registry._classes) - known:
        del registry._classes[name]
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]
    sys.path[:] = path


def told(folder, *arguments, recipe="classification"):
    """Runs a recipe and returns the line that it ends with, without the name of the recipe in front."""
    result = run_here(recipe, *arguments, cwd=folder)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    name, _, line = result.stderr.partition(": ")
    assert name == recipe
    return line.rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epoch=3"], "classification has no key 'epoch' (did you mean 'epochs'?): it has "),
        (["data.path=~/table.csv"], "data has no key 'path': it has name, root, "),
        (["lr=größe"], "lr must be a number above 0, got größe"),
        (["data=mnits"], "image_folder, mnist, got mnits (did you mean 'mnist'?)"),
        (["data=", "lr=1"], "data must be one of cifar10, "),
        (["experiment=cs_ib_bike"], "belongs to another recipe: python recipes/regression.py experiment="),
        (["optimizer=adm"], "(did you mean 'adam'?)"),
        (["bottlenecks=[variationl]"], "no bottleneck 'variationl' (did you mean 'variational'?): choose from "),
        (["bottleneck=hsic"], "choose some by bottlenecks=[hsic]"),
        (["bottlenecks=hsic,dropout"], "must be one value, got hsic,dropout: a list is bottlenecks=[hsic,dropout]"),
        (["data=csv"], "a value is missing for data.path, data.target: give it on the command line, data.path="),
        (["epochs"], "an argument must be key=value, got 'epochs'"),
        (["sweep=[1]"], "sweep must be a section, whose keys are set by sweep.KEY=..., got [1]"),
        (["model.hidden={a:1}"], "model.hidden must be a list, such as model.hidden=[...], got {a:1}"),
        (["optimizer=5"], "optimizer must be one of adadelta, "),
        (["model=true"], "model must be one of lenet, "),
        (["optimizer.name=sgd"], "; optimizer=sgd, in an experiment `override /optimizer: sgd` in its defaults, "),
        (["lr=1", "--foo"], "--foo is no option "),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["lr=${nothing}"], "Interpolation key 'nothing' not found"),
        (["imports=[my_nothing]"], "imports must name modules that Python finds from "),
        (["imports=my_module"], "imports must be a list of different strings, got my_module"),
        (["data=csv", "data.path=no.csv", "data.target=x"], "no table at "),
        (["--config-dir", "nowhere"], "Additional config directory "),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, arguments, message):
    assert message in told(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: [1\nepochs: 3\n", "line 4, column 7"),
        ("\tlr: 1\n", "line 3, column 1"),
        ("lr: ${nothing.here}\n", "Interpolation key 'nothing.here' not found"),
        ("epoch: 3\n", "classification has no key 'epoch' (did you mean 'epochs'?)"),
        ("model: mlp\n", "model must be a section of keys, got mlp: choose one by model=mlp, in an experiment by "),
        ("sweep: 1\n", "sweep must be a section with the keys betas, epochs, got 1"),
        ("sweep: [1]\n", "experiment/mine.yaml must be a mapping of keys, with a list where the recipe has one"),
        ("imports: {a: 1}\n", "experiment/mine.yaml must be a mapping of keys, with a list where the recipe has one"),
        ("lr: '1e-3'\n", "lr must be a number above 0, got '1e-3'"),
    ],
)
def test_a_mistake_in_a_yaml_of_ones_own(tmp_path, text, message):
    folder = tmp_path / "my configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\nrecipe: classification\n{text}")
    line = told(tmp_path, "--config-dir", "my configs", "experiment=mine")
    assert message in line
    assert "mine.yaml" in line or "column" not in message


def test_an_existing_run_is_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("lr: 1\n")
    line = told(tmp_path, *QUICK)
    assert line == "run holds an unfinished run (resume=true resumes it): overwrite=true replaces it"
    assert (tmp_path / "run" / "config.yaml").read_text() == "lr: 1\n"


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["lr=1e30", "bottlenecks=[]"], "none-decay0-seed0", "nan"),
        (["lr=1e30", "bottlenecks=[hsic]", "control=false"], "hsic-", "nan"),
        (["lr=1e30", "bottlenecks=[variational]", "control=false"], "variational-", "nan"),
        # The step after a finite loss, in the only batch of the epoch.
        (["lr=1e38", "bottlenecks=[]", "batch_size=360"], "none-decay0-seed0", "nan"),
        (["lr=1e38", "bottlenecks=[hsic]", "control=false", "batch_size=360"], "hsic-", "nan"),
    ],
)
def test_a_training_run_that_diverges(tmp_path, arguments, name, value):
    line = told(tmp_path, *QUICK, "data=digits", "optimizer=sgd", *arguments)
    assert line.startswith(name)
    assert line.endswith(f": the loss must be finite, got {value} in epoch 1: lower lr or beta")


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    shown = told(tmp_path, "seeds=[0]", "model=timm", "model.architecture=resnet10t", "device=cpu")
    assert "pip install" in shown
    assert "timm" in shown


@pytest.mark.parametrize(("variable", "raised"), [("1", True), ("0", False), ("", False)])
def test_the_full_error_on_request(tmp_path, monkeypatch, variable, raised):
    monkeypatch.setenv("HYDRA_FULL_ERROR", variable)
    if raised:
        with pytest.raises(ValueError, match="lr must be a number above 0, got abc"):
            run_here("classification", "lr=abc", cwd=tmp_path)
    else:
        assert told(tmp_path, "lr=abc") == "lr must be a number above 0, got abc"
    assert os.environ["HYDRA_FULL_ERROR"] == variable


@pytest.mark.parametrize("error", [AttributeError, TypeError, KeyError, IndexError, RuntimeError, AssertionError])
def test_a_mistake_in_the_code_keeps_its_traceback(tmp_path, monkeypatch, error):
    def broken(cfg):
        raise error("a mistake of ours")

    monkeypatch.setattr(module_of("classification"), "build_accelerator", broken)
    with pytest.raises(error, match="a mistake of ours"):
        run_here("classification", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["--multirun", "lr=abc,def", "control=false"], "run 1 (lr=abc): lr must be a number above 0, got abc"),
        (["lr=-1", "-m", "epochs=1,2"], "run 1 (epochs=1): lr must be a number above 0, got -1"),
        (["clip=-1,0", "--multirun", "lr=1,2"], "run 1 (clip=-1 lr=1): clip must be a number of at least 0, got -1"),
        (["-m", "imports=[{é:1}],[]"], "run 1 (imports=[{'é':1}]): imports must be a list of different strings, got "),
        (["--multirun", "lr=abc"], "lr must be a number above 0, got abc"),
    ],
)
def test_the_error_of_a_sweep_names_the_run(tmp_path, arguments, run):
    assert told(tmp_path, *arguments).startswith(run)


def test_a_sweep_does_not_write_all_runs_into_one_folder(tmp_path):
    message = told(tmp_path, "--multirun", "lr=1e-3,1e-2", "output_dir=runs/mine")
    assert message.startswith("output_dir is the folder of one run, and each run of a sweep has its own in outputs/")


def test_an_error_without_words_is_named():
    assert one_line("classification", OSError()) == "OSError"
    assert one_line("classification", ValueError("one\n  two\n")) == "one two"


def test_a_bottleneck_of_ones_own(tmp_path):
    (tmp_path / "my_layers.py").write_text(MINE.format(name="mine"))
    arguments = ["imports=[my_layers]", "bottlenecks=[mine]", "bottleneck.mine.beta=0.5", "control=false"]
    result = run_here("classification", *QUICK, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["selected"]["mine"]["beta"] == 0.5
    assert "test/rate" in summary["results"]["mine"]
    # Its options are checked as all others are.
    line = told(tmp_path, "imports=[my_layers]", "bottlenecks=[mine]", "bottleneck.mine.beta=-1")
    assert line == "bottleneck.mine.beta must be a finite number of at least 0, got -1"


def test_a_bottleneck_of_an_installed_package(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(MINE.format(name="installed"))
    monkeypatch.syspath_prepend(tmp_path)
    entry = importlib.metadata.EntryPoint("installed", "my_package", "ibreg.bottlenecks")
    found = lambda group: [entry] if group == "ibreg.bottlenecks" else []  # noqa: E731
    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    import_bottlenecks(None)
    assert "installed" in registry.names()
    line = told(tmp_path, "bottlenecks=[installed]", "bottleneck.installed.beta=-1")
    assert line == "bottleneck.installed.beta must be a finite number of at least 0, got -1"


def test_a_module_that_fails_for_a_reason_of_its_own(tmp_path):
    (tmp_path / "my_layers.py").write_text("import my_missing_dependency\n")
    line = told(tmp_path, "imports=[my_layers]")
    assert line == (
        "imports: my_layers could not be imported: ModuleNotFoundError: No module named 'my_missing_dependency'"
    )
    (tmp_path / "my_other.py").write_text("from ibreg import nothing_such\n")
    assert "cannot import name 'nothing_such' from 'ibreg'" in told(tmp_path, "imports=[my_other]")
    (tmp_path / "my_name.py").write_text(MINE.format(name="My Name"))
    assert "a registry name must be a lower-case identifier" in told(tmp_path, "imports=[my_name]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def (\n", "SyntaxError: invalid syntax (my_broken.py, line 1)"),
        ("nothing\n", "NameError: name 'nothing' is not defined"),
        ("raise KeyError('x')\n", "KeyError: 'x'"),
        ("import my_missing\n", "ModuleNotFoundError: No module named 'my_missing'"),
        ("assert False, 'two\\nlines'\n", "AssertionError: two lines"),
    ],
)
def test_a_module_that_fails(tmp_path, monkeypatch, text, message):
    (tmp_path / "my_broken.py").write_text(text)
    assert told(tmp_path, "imports=[my_broken]") == f"imports: my_broken could not be imported: {message}"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ImportError) as caught:
        run_here("classification", "imports=[my_broken]", cwd=tmp_path)
    assert type(caught.value.__cause__).__name__ == message.partition(":")[0]


@pytest.mark.parametrize("module", [".my_module", "my_nothing.part", "my/module", "''"])
def test_a_module_that_there_is_not(tmp_path, module):
    named = module.strip("'")
    assert f"imports must name modules that Python finds from {tmp_path}, got {named}: run " in told(
        tmp_path, f"imports=[{module}]"
    )


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: you tried to allocate 9 bytes"),
                                   RuntimeError("Storage size calculation overflowed with sizes=[9]")])  # fmt: skip
def test_too_little_memory(tmp_path, monkeypatch, error):
    def large(*_):
        raise error

    monkeypatch.setattr(module_of("classification"), "build_accelerator", large)
    line = told(tmp_path)
    assert line == f"not enough memory: lower the size of the model, batch_size or data.limit ({error})"


@pytest.mark.parametrize("size", [10**9, 10**13, 10**18])
def test_a_model_that_is_too_large(tmp_path, size):
    line = told(tmp_path, *QUICK, "data=digits", "bottlenecks=[]", f"model.hidden=[{size},{size}]")
    assert line.startswith("not enough memory: lower the size of the model, ")


def test_warnings_are_one_line_each():
    before = warnings.formatwarning
    with plain_warnings("classification"):
        shown = functools.partial(warnings.formatwarning, lineno=1)
        own = str(Path(ibreg.__file__).parent / "runs" / "x.py")
        assert shown("a\n  b", UserWarning, own) == "classification: warning: a b\n"
        assert shown("a", UserWarning, sys.argv[0]) == "classification: warning: a\n"
        # Of other packages, and of other kinds, the place tells whose they are.
        for category, file in ((UserWarning, "/x/torch/y.py"), (DeprecationWarning, own), (FutureWarning, own)):
            assert shown("a", category, file) == before("a", category, file, 1)
    assert warnings.formatwarning is before


def test_a_warning_of_a_run_is_one_line(tmp_path):
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *where, file=None, line=None: shown.append(warnings.formatwarning(*where[:4]))
        result = run_here("classification", *QUICK, "data=digits", "ema=0.9999", "bottlenecks=[]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in shown if "ema=0.9999" in line]
    assert line.startswith("classification: warning: ema=0.9999: after ")
    assert line.count("\n") == 1
