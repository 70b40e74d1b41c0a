"""The command line: awkward values reach the configuration as they were typed."""

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, RangeSweep
from hypothesis import given
from hypothesis import strategies as st

from ibreg.runs.config.command_line import check_one_run, check_options, prepared, swept_keys, value_of
from ibreg.runs.config.mapping_keys import decoded, decoded_text

GROUPS = ["data", "optimizer"]


def parsed(argument):
    return OverridesParser.create().parse_override(prepared([argument], GROUPS)[0])


@pytest.mark.parametrize(
    "text",
    [
        "~/data", "~", "a b", "a  b", "größe", "中文", "😀", "é'", "it's", "'a", "a''", 'say "hi"', r"C:\Users\me",
        "C:\\Users\\", r"C:\a b\größe.csv", "~/a b\\", r"a\'b", r"\'", "\\", r"\\server\share", r"\d+", "^a$",
        "$HOME/x", "$", "${", "sales_$_per_$", "#1", "a=b", "x=[1]", "a:b", "12:30", "2024-01-01", "50%", "%d", "(x)",
        "f(x)", "f(x", ")", "[", "]", "{", "}", "[1", "a]", "*", "?", "!x", "&x", "|", "@x", "a@b", "`", "<NA>", "a;b",
        "a>b", "1.5.2", "0x1f", "...", "no", "None", "file:///x y", "a\nb", "extend_list(x)", "{é:}", "[a,,é]",
    ],
)  # fmt: skip
def test_text_stays_text(text):
    assert parsed(f"key={text}").value() == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""), ("null", None), ("true", True), ("1", 1), ("-1", -1), ("1e-3", 1e-3), ("inf", math.inf), ("'1'", "1"),
        ("'a,b'", "a,b"), ('"a, b"', "a, b"), ("'größe, netto'", "größe, netto"), ("${lr}", "${lr}"), ("[]", []),
        ("{}", {}), ("${oc.env:HOME}/é", "${oc.env:HOME}/é"), ("[a, b]", ["a", "b"]), ("[~/a,b c]", ["~/a", "b c"]),
        ("[é,ü]", ["é", "ü"]), ("[it's,he's]", ["it's", "he's"]), ("[<NA>,?]", ["<NA>", "?"]),
        ("['',NA,é]", ["", "NA", "é"]), ("['a,b',é]", ["a,b", "é"]), ("['1',1,null,true,é]", ["1", 1, None, True, "é"]),
        (r"['it\'s',é]", ["it's", "é"]), ("[[~/a],[b,[é]]]", [["~/a"], ["b", ["é"]]]), ("[a:b,c=d]", ["a:b", "c=d"]),
        ("[(x),f(y)]", ["(x)", "f(y)"]), ("[~/a\\]", ["~/a\\"]), ("[${a},~/x]", ["${a}", "~/x"]),
        ("[sales_$_per_$,#1]", ["sales_$_per_$", "#1"]), ("[100%,😀]", ["100%", "😀"]), ("{a:~/x}", {"a": "~/x"}),
        ("{a: ~/x, b: 1}", {"a": "~/x", "b": 1}), ("{a b:c d}", {"a b": "c d"}),
        ("{a:'x,y',b:~/c}", {"a": "x,y", "b": "~/c"}), ("{x:[~/a,{y:größe}]}", {"x": ["~/a", {"y": "größe"}]}),
        ("{a:C:/x,b:é}", {"a": "C:/x", "b": "é"}), ("{a:${b},c:~/x}", {"a": "${b}", "c": "~/x"}),
        ("{column:text,zip:(number)}", {"column": "text", "zip": "(number)"}),
    ],
)  # fmt: skip
def test_lists_and_sections_of_awkward_values(text, value):
    assert parsed(f"key={text}").value() == value


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text == text.strip()))
def test_every_text_without_commas_and_brackets_is_itself_or_what_yaml_reads(text):
    # Quotes around the whole and interpolations mean something; numbers, booleans and null are no texts.
    if any(mark in text for mark in ",[]{}()'\"\\") or text[:1] in "=":
        return
    value = parsed(f"key={text}").value()
    assert value == text or not isinstance(value, str)


AWKWARD = st.text(st.sampled_from("ab ~ßé\\'#$%&*=:;<>?@!😀.-_/|"), min_size=1).filter(
    lambda text: text == text.strip() and text[0] not in "'\\" and not text.endswith("\\")
)


@given(st.lists(AWKWARD, min_size=1, max_size=4))
def test_every_list_of_awkward_texts(texts):
    value = parsed(f"key=[{','.join(texts)}]").value()
    assert [str(entry) for entry in value] == texts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_every_list_of_quoted_texts(texts):
    escaped = [in_quotes(text) for text in texts]
    assert parsed(f"key=[{','.join(escaped)}]").value() == texts


def in_quotes(text):
    """A string as Hydra's documentation quotes it: backslashes count in front of a quote alone."""
    quoted, backslashes = "", 0
    for mark in f"{text}'":
        quoted += "\\" * (backslashes + 1) + "'" if mark == "'" else mark
        backslashes = backslashes + 1 if mark == "\\" else 0
    return f"'{quoted.removesuffix(chr(92) + chr(39))}'"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3,1e-2", [1e-3, 1e-2]), ("choice(a,b)", ["a", "b"]), ("~/a,~/b", ["~/a", "~/b"]),
        ("choice(~/a,b c)", ["~/a", "b c"]), ("größe,2", ["größe", 2]), ("sort(3,1)", [1, 3]),
        ("adam,sgd", ["adam", "sgd"]),
    ],
)  # fmt: skip
def test_a_sweep_has_each_of_its_values(text, values):
    sweep = parsed(f"key={text}").value()
    assert isinstance(sweep, ChoiceSweep)
    assert [getattr(value, "text", value) for value in sweep.list] == values
    with pytest.raises(ValueError, match=r"^key must be one value, got .*: a list is key=\[.*\], and --multirun runs"):
        check_one_run(prepared([f"key={text}"], GROUPS))


def test_ranges_and_globs_are_sweeps():
    assert isinstance(parsed("key=range(1,3)").value(), RangeSweep)
    assert parsed("data=glob(*)").value() == Glob(include=["*"])
    assert parsed("key=glob(~*)").value() == Glob(include=["~*"])
    for argument in ("key=range(1,3)", "data=glob(*)", "data=digits,mnist", "+key=1,2", "hydra.x=1,2"):
        with pytest.raises(ValueError, match="must be one value"):
            check_one_run(prepared([argument], GROUPS))
    check_one_run(prepared(["key=[1,2]", "key='1,2'", "~key", "-m", "data=digits", "key={a:1,b:2}"], GROUPS))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["epochs=3"], ["++epochs=3"]),
        (["+epochs=3", "++epochs=3", "~epochs", "~epochs=3"], ["+epochs=3", "++epochs=3", "~epochs", "~epochs=3"]),
        (["data=csv", "optimizer=sgd"], ["data=csv", "optimizer=sgd"]),
        (["data.path=~/x"], ["++data.path='~/x'"]),
        (["+data.path=~/x"], ["+data.path='~/x'"]),
        (["data@unlabeled=mnist", "hydra/sweeper=optuna"], ["data@unlabeled=mnist", "hydra/sweeper=optuna"]),
        (["hydra.job.name=é", "hydra.x=1"], ["hydra.job.name='é'", "hydra.x=1"]),
        (["-m", "--multirun", "--help", "-h"], ["-m", "--multirun", "--help", "-h"]),
        (["--config-dir", "my configs", "lr=1"], ["++lr=1", "--config-dir", "my configs"]),
        (["data=csv", "--multirun", "lr=1,2"], ["data=csv", "++lr=1,2", "--multirun"]),
        (["lr=1", "--config-dir=a", "a=2", "-m"], ["++lr=1", "++a=2", "--config-dir=a", "-m"]),
        (["lr=1", "-cd", "a=b", "epochs=2"], ["++lr=1", "++epochs=2", "-cd", "a=b"]),
        (["--info", "lr=1"], ["++lr=1", "--info"]),
        (["-i", "all", "lr=1"], ["++lr=1", "-i", "all"]),
        (["--cfg", "job", "lr=1", "--resolve"], ["++lr=1", "--cfg", "job", "--resolve"]),
        (
            ["optimizer=5", "data=true", "data=null", "data={a:1}"],
            ["optimizer='5'", "data='true'", "data=null", "data='{a:1}'"],
        ),
        (["--config-dir=größe", "-cd", "größe"], ["--config-dir=größe", "-cd", "größe"]),
        (["--cfg", "job", "-c", "all", "--package", "data", "-p", "data"], None),
        (["--info", "defaults", "--config-name", "x", "-cn", "x"], None),
    ],
)
def test_keys_are_set_and_flags_keep_their_values(arguments, expected):
    assert prepared(arguments, GROUPS) == (expected or arguments)


@pytest.mark.parametrize("argument", ["epochs", "=3", "+=3", "~", "++", "größe", "a b", ""])
def test_an_argument_without_a_key_or_value(argument):
    with pytest.raises(ValueError, match=r"^an argument must be key=value, got "):
        prepared([argument], GROUPS)


@pytest.mark.parametrize("argument", ["data.kinds.größe=text", "a b=1", "kinds.é={a:b}", "+größe=[1]", "a'b=1"])
def test_a_key_outside_of_the_grammar(argument):
    with pytest.raises(ValueError, match=r"^a key on the command line must be of ASCII letters, .*--config-dir$"):
        prepared([argument], GROUPS)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None), (["lr=1"], None), (["imports=[a,b.c]"], ["a", "b.c"]), (["imports=[a]", "imports=[]"], []),
        (["imports=a"], "a"), (["imports=[a"], "[a"), (["imports=['~x']"], ["~x"]), (["imports="], ""),
    ],
)  # fmt: skip
def test_the_value_of_a_key(arguments, value):
    assert value_of(arguments, "imports") == value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--zzz", "--zzz is no option: the options are --config-dir, .*; keys are set without dashes, zzz=...$"),
        ("--epochs=3", "--epochs is no option: .*without dashes, epochs=3$"),
        ("--multi", r"--multi is no option \(did you mean '--multirun'\?\): "),
        ("--confg-dir=x", r"--confg-dir is no option \(did you mean '--config-dir'\?\): "),
        ("-x", "-x is no option: "),
        ("-1", "-1 is no option: "),
        ("--", "-- is no option: .*without dashes, key=...$"),
    ],
)
def test_an_option_that_there_is_not(argument, message):
    for arguments in ([argument], ["lr=1", argument], [argument, "lr=1"]):
        with pytest.raises(ValueError, match=f"^{message}"):
            prepared(arguments, GROUPS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-dir"], "argument --config-dir/-cd: expected one argument"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["--info", "nothing"], "invalid choice: 'nothing'"),
        (["--multirun=1"], "ignored explicit argument '1'"),
        (["--package"], "expected one argument"),
    ],
)
def test_an_option_without_a_valid_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_options(prepared(arguments, GROUPS))


NAMES = [
    "Größe (cm)", "😀", "it's", "a=b", "{x}", "#id", "2019", "1.5", "true", "null", "[x]", "a b", "a/b", "a.b", "%",
    "中",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_key_of_a_mapping_is_the_text_that_was_typed(name):
    for text in (f"{{{name}:text,b:[1,{{{name}: 2}}]}}", f"{{b:[1,{{'{escaped(name)}' : 2}}],'{escaped(name)}':text}}"):
        assert decoded(parsed(f"data.kinds={text}").value()) == {name: "text", "b": [1, {name: 2}]}
        argument = prepared([f"data.kinds={text}"], GROUPS)[0]
        # As the command of a run shows it, it can be typed again.
        assert prepared([decoded_text(argument).lstrip("+")], GROUPS) == [argument]


def escaped(name):
    return name.replace("'", "\\'")


@pytest.mark.parametrize("name", ["a:b", "a,b", "}", "{", "[", "'", '"', " a", ""])
def test_a_key_of_a_mapping_in_quotes(name):
    assert decoded(parsed(f"k={{'{escaped(name)}':1,c:2}}").value()) == {name: 1, "c": 2}


def test_a_sweep_over_mappings():
    sweep = parsed("k=choice({é:1},{a=b:2})").value()
    assert [decoded(entry) for entry in sweep.list] == [{"é": 1}, {"a=b": 2}]


def test_the_keys_of_a_sweep():
    arguments = prepared(["lr=1,2", "-m", "epochs=[1,2]", "data=choice(a,b)", "name='1,2'", "+x=range(3)"], GROUPS)
    assert swept_keys(arguments) == ["lr", "data", "x"]
