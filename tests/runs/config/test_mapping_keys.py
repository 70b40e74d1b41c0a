"""Keys of mappings outside of Hydra's grammar, from the command line to the configuration and the command of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibreg.runs.config.mapping_keys import decoded, decoded_text, encoded
from tests.recipes.command_line import module_of, run_here


@given(st.text())
def test_a_key_is_itself_again(key):
    assert decoded({encoded(key): {encoded(key): 1}}) == {key: {key: 1}}
    assert decoded([{encoded(key): [key]}]) == [{key: [key]}]
    assert encoded(key).isascii()


@pytest.mark.parametrize("key", ["a", "a_1", "a b", "a/b", "a-b", "C", "x.y"])
def test_a_key_that_hydra_reads_stays(key):
    assert encoded(key) == decoded_text(key) == key


def test_other_values_stay():
    for value in (None, 1, True, 0.5, "text", [], {}, {"a": None}):
        assert decoded(value) == value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("grid.betas={größe:[1]}", "größe"),
        ("bottleneck.hsic={it's:1}", 'bottleneck.hsic has no key "it\'s": it has '),
        ("model={#id:1}", "model must be one of lenet, mlp, "),
        ("data={2019:1}", "data must be one of cifar10, "),
        ("sweep={😀:1}", "sweep has no key '😀': it has betas, epochs"),
        ("lr={a=b:1}", "lr must be a number above 0, got {'a=b': 1}"),
        ("imports={é:1}", "imports must be a list, such as imports=[...], got {é:1}"),
    ],
)
def test_a_message_has_the_key_as_it_was_typed(tmp_path, argument, message):
    for arguments in ([argument], ["--multirun", argument]):
        result = run_here("classification", *arguments, cwd=tmp_path)
        assert result.returncode == 2
        assert message in result.stderr
        assert "__key_" not in result.stderr
        assert result.stderr.count("\n") == 1


NAMES = ["Größe (cm)", "😀", "it's", "a=b", "{x}", "#id", "2019", "null"]


@pytest.mark.parametrize("options", [[], ["--multirun"]])
@pytest.mark.parametrize("name", NAMES)
def test_the_kind_of_a_column_with_any_name(tmp_path, monkeypatch, name, options):
    def stop(cfg):
        raise ValueError(f"kinds {cfg.data.kinds}")

    monkeypatch.setattr(module_of("classification"), "build_accelerator", stop)
    arguments = ["data=csv", "data.path=w.csv", "data.target=y", f"data.kinds={{{name}:text}}", "control=false"]
    result = run_here("classification", *options, *arguments, cwd=tmp_path)
    assert result.stderr == f"classification: kinds { ({name: 'text'}) }\n"


@pytest.mark.slow
def test_a_run_with_names_of_any_kind(tmp_path):
    rows = [",".join([*(str((row * 7 + k) % 5) for k in range(len(NAMES))), "ab"[row % 2]]) for row in range(60)]
    (tmp_path / "w.csv").write_text("\n".join([",".join([*NAMES, "y"]), *rows]), encoding="utf-8")
    kinds = ",".join(f"{name}:text" for name in NAMES)
    arguments = [
        "data=csv",
        "data.path=w.csv",
        "data.target=y",
        f"data.kinds={{{kinds}}}",
        "bottlenecks=[]",
        "epochs=1",
    ]
    arguments += ["seeds=[0]", "sweep.betas=[]", "model.hidden=[4]", "device=cpu", "output_dir=run", "batch_size=8"]
    result = run_here("classification", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "__key_" not in written + (tmp_path / "run" / "summary.json").read_text(encoding="utf-8") + result.stdout
