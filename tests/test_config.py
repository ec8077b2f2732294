"""Settings files: any text gets its values, or one sentence that names the line."""

import math
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.cli import cli
from gridvlp.config import read_settings
from gridvlp.errors import UserError
from gridvlp.train.options import PreTrainingOptions, TrainingSettings


def parse(command, text, folder, *arguments):
    """The values of a command whose settings file has this text."""
    path = folder / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    return cli.commands[command].make_context(command, ["--config", str(path), *arguments]).params


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("run: 2026-11-24", "run", Path("2026-11-24")),
        ("run: on", "run", Path("on")),
        ("run: 7", "run", Path("7")),
        ("run: 1_0", "run", Path("1_0")),
        ("init: 0x10", "init", "0x10"),
        ("init: no", "init", "no"),
        ("grids: 100", "grids", "100"),
        ("grids: all", "grids", "all"),
        ("dropout: 0", "dropout", 0.0),
        ("learning-rate: 5e-4", "learning_rate", 5e-4),
        ("seed: 010", "seed", 10),
        ("allow-leakage: yes", "allow_leakage", True),
        ("allow-leakage: off", "allow_leakage", False),
        ("source: vqa", "sources", ("vqa",)),
        ("source: [vqa, gqa]", "sources", ("vqa", "gqa")),
        ("vocabulary: 'null'", "vocabulary", Path("null")),
        ("answers: &a x.json", "answers", Path("x.json")),
    ],
)
def test_a_value_is_read_as_on_the_command_line(tmp_path, line, name, value):
    found = parse("pretrain", f"pretrain:\n  {line}\n", tmp_path)[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("run:", "pretrain: run has no value: leave the line out"),
        ("run: null", "pretrain: run has no value"),
        ("run: ''", "pretrain: run has no value"),
        ("run: [a, b]", "pretrain: run takes one value, not a list"),
        ("source: [vqa, [gqa]]", "pretrain: source takes a value or a list of values"),
        ("source: [vqa, null]", "pretrain: source has no value"),
        ("run: {a: b}", "pretrain: run takes a value or a list of values"),
        ("run: &a [*a]", "pretrain: run takes a value or a list of values"),
        ("layers: on", "pretrain: Invalid value for '--layers': 'on' is not a valid integer"),
        ("layers: 3.7", "'3.7' is not a valid integer"),
        ("layers: 2026-11-24", "'2026-11-24' is not a valid integer"),
        ("precision: off", "Invalid value for '--precision': 'off' is not one of 'auto'"),
        ("precision: 32", "'32' is not one of"),
        (
            "allow-leakage: maybe",
            "Invalid value for '--allow-leakage': 'maybe' is not a valid bool",
        ),
        ("source: [vqa, 3]", "Invalid value for '--source': '3' is not one of"),
        ("run: !!python/name:os.system a", "has the tag"),
        ("run: !!int 3", "has the tag"),
        ('run: "a\\0b"', "has a character that no value can have"),
        ('run: "\\ud800"', "has a character that no value can have"),
        ("<<: {run: a}", "sections are not merged (<<): write the lines out"),
        ("config: x", "pretrain has no option 'config'"),
        ("? [a]\n  : b", "a name is wanted"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_line(tmp_path, line, told):
    with pytest.raises(UserError) as error:
        parse("pretrain", f"# mine\npretrain:\n  {line}\n", tmp_path)
    assert told in str(error.value)
    assert f"{tmp_path / 'mine.yaml'}, line 3: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pretrain: {run: a}\npretrain: {run: b}", "line 2: 'pretrain' is twice in the file"),
        ("pretrain:\n  run: a\n  run: b", "line 3: 'run' is twice in section 'pretrain'"),
        ("pretrain:\n\trun: a", "line 2, cannot be read as YAML: found character"),
        ("pretrain: [run]", "line 1: section 'pretrain' must hold `option: value` lines"),
        ("---\na: {}\n---\nb: {}", "cannot be read as YAML"),
        ("a: b: c", "line 1, cannot be read as YAML: mapping values are not allowed here"),
        ("[" * 50_000, "nested too deeply"),
        ("a: *b", "line 1, cannot be read as YAML: found undefined alias"),
        ("# " + "x" * 100_000, "more than 100,000 bytes"),
        (b"pretrain: {run: caf\xe9}", "cannot be read as YAML"),
        (b"\x00\x01", "cannot be read as YAML"),
        ("3", "must have a section for each command"),
        ("3: {}", "'3' is no command"),
    ],
)
def test_a_file_that_holds_no_settings_is_told(tmp_path, text, told):
    with pytest.raises(UserError) as error:
        parse("pretrain", text, tmp_path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_aliases_of_aliases_are_refused_before_they_grow(tmp_path):
    levels = "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 40))
    with pytest.raises(UserError, match="takes a value or a list of values"):
        read_settings_of(tmp_path, f"pretrain:\n  l0: &l0 [a]\n{levels}")


def read_settings_of(folder, text):
    (folder / "mine.yaml").write_text(text)
    return read_settings(folder / "mine.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_another_system_is_read(tmp_path, encoding):
    text = "pretrain:\r\n  run: läufe\r\n".encode(encoding)
    assert parse("pretrain", text, tmp_path)["run"] == Path("läufe")


def test_empty_files_and_sections_are_settings_too(tmp_path):
    for text in ("", "# nothing\n", "---\n", "pretrain:\n", "pretrain: {}\n"):
        assert parse("pretrain", text, tmp_path)["run"] == Path("runs/pretrain")


PLACES = [
    (name, option.opts[0].lstrip("-"))
    for name, command in cli.commands.items()
    for option in command.params
]
words = st.text(max_size=12) | st.sampled_from(
    [
        *("on", "off", "yes", "~", "null", "2026-11-24", "2026-13-99", "12:30:00", ".inf", ".nan"),
        *("1e999", "0o17", "0x", "-0", "9" * 5000, "!!binary a", "!!set {a}", "*a", "&a b", "? a"),
        *("[a, b]", "[[a]]", "{a: b}", "[", "'", '"\\u0000"', "|\n  a", ">\n", "%a", "@a", "`"),
        *("s3://b", "https://[", "http://\\x", "file://", "a/../b", "/", "-", "--", "#", "\t"),
    ]
)


def said(command, text, folder, *arguments):
    """The error that a file gets, if any; other exceptions are a traceback."""
    try:
        parse(command, text, folder, *arguments)
    except UserError as error:
        return str(error)
    except click.UsageError as error:  # what the command lacks besides
        return f"mine.yaml {error.format_message()}"
    return "mine.yaml"


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), words)
def test_any_value_of_any_option_is_taken_or_named_in_one_sentence(tmp_path_factory, place, word):
    command, option = place
    text = f"{command}:\n  {option}: {word}\n"
    arguments = ["x"] if command in ("finetune", "evaluate", "predict", "reproduce") else []
    told = said(command, text, tmp_path_factory.getbasetemp(), *arguments)
    assert "mine.yaml" in told
    assert "\n" not in told
    assert len(told) < 1000


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="pretain:lys[]{}&*!|>-?#'\"%@`, \n\t~<0", max_size=60) | st.binary(max_size=40)
)
def test_any_file_is_taken_or_told_in_one_sentence(tmp_path_factory, content):
    told = said("pretrain", content, tmp_path_factory.getbasetemp())
    assert "mine.yaml" in told
    assert "\n" not in told


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_setting_that_is_no_number_is_refused(value):
    good = TrainingSettings(1e-3, 1, 8, 0.1)
    assert good.clip == 1.0
    for name in ("learning_rate", "head_lr_multiplier", "layer_lr_decay", "clip", "warmup", "ema"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}"):
            TrainingSettings(**{**vars(good), name: value})
    for name in ("dropout", "initializer_range"):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}"):
            PreTrainingOptions((), **{name: value})


@pytest.mark.parametrize("grids", ["²", "-1", "1.5", "", "9" * 5000, "٣"])
def test_grids_are_a_number_or_all(gridvlp, squares, grids):
    code, _, err = gridvlp("pretrain", "--features", squares / "store.zarr", "--grids", grids)
    assert code == 2
    assert "give a number, or 'all'" in err
