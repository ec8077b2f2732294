import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp import json_files
from gridvlp.errors import UserError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def tiny_chunks(monkeypatch):
    monkeypatch.setattr(json_files, "CHUNK", 7)  # so that every value is cut somewhere


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "file.json"


@settings(deadline=None)
@given(st.lists(values, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_elements_are_those_of_json_load(path, entries, indent, ascii_only):
    path.write_text(json.dumps(entries, indent=indent, ensure_ascii=ascii_only), "utf-8", "replace")
    expected = json.loads(path.read_text("utf-8"))
    assert list(json_files.elements(path)) == expected
    path.write_text(json.dumps({"info": expected, "list": expected, "end": 1}, indent=indent))
    assert list(json_files.elements(path, "list")) == expected
    both = [(name, entry) for name in ("info", "list") for entry in expected]
    assert list(json_files.lists(path)) == both


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=4), values, max_size=5))
def test_items_are_those_of_json_load(path, entries):
    path.write_text(json.dumps(entries))
    assert list(json_files.items(path)) == list(json.loads(path.read_text()).items())


@given(st.integers(min_value=0, max_value=44))
def test_a_file_cut_anywhere_is_an_error_that_says_where(path, length):
    whole = '[{"a": 1, "b": "two"}, {"a": [3, 4]}, {}, 55]'
    path.write_text(whole[:length])
    with pytest.raises(UserError, match=r"file\.json is not whole JSON.*character"):
        list(json_files.elements(path))


@pytest.mark.parametrize(
    "text",
    ['[{"a": 1} {"a": 2}]', '[{"a": nope}]', "[1,, 2]", "[1, ]", "x", f"[{'9' * 5000}]"],
)
def test_what_is_not_json_is_an_error(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=r"file\.json"):
        list(json_files.elements(path))


def test_other_files_than_expected_are_errors(path, tmp_path):
    path.write_text('{"info": 1}')
    with pytest.raises(UserError, match='no "annotations"'):
        list(json_files.elements(path, "annotations"))
    with pytest.raises(UserError, match="not hold a list"):
        list(json_files.elements(path))
    with pytest.raises(UserError, match=r"absent\.json is not there"):
        list(json_files.elements(tmp_path / "absent.json"))
    path.write_bytes(b'["\xff\xfe"]')
    with pytest.raises(UserError, match="not UTF-8"):
        list(json_files.elements(path))
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"file\.json"):
        list(json_files.elements(path))


def test_lines(path):
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(json_files.lines(path)) == [(1, {"a": 1}), (3, {"a": 2})]
    path.write_text('{"a": 1}\n{"a": 2')
    with pytest.raises(UserError, match=r"file\.json, line 2"):
        list(json_files.lines(path))
    for text in ("9" * 5000, "[" * 100_000):
        path.write_text(text)
        with pytest.raises(UserError, match=r"file\.json, line 1"):
            list(json_files.lines(path))


def test_a_number_that_is_no_integer_is_an_error(path):
    for value in (float("inf"), "one", None):
        with pytest.raises(UserError, match="which is not an integer"):
            json_files.integer({"id": value}, "id", path, 3)
