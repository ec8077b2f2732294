"""Files of JSON are read as the standard library reads them, or refused in one sentence."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.data import json_files
from gridvlp.errors import UserError

INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1)
values = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip
chunks = st.integers(1, 40)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "file.json"


def read(path: Path, content: str | bytes, function: Any, *arguments: Any, chunk: int = 7) -> Any:
    """All that a reader yields of a content, in blocks of so many bytes."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "CHUNK", chunk)
        return list(function(path, *arguments))


@settings(deadline=None)
@given(st.lists(values, max_size=5), st.sampled_from([None, 1]), st.booleans(), chunks)
def test_elements_are_those_of_json_load(path, entries, indent, ascii_only, chunk):
    text = json.dumps(entries, indent=indent, ensure_ascii=ascii_only)
    assert read(path, f" {text}\r\n", json_files.elements, chunk=chunk) == entries
    assert read(path, f"\ufeff{text}", json_files.elements, chunk=chunk) == entries
    whole = {"info": entries, "wanted": entries, "item": [1], "end": {"wanted": 1}}
    text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only)
    for mark in ("", "\ufeff"):
        assert read(path, mark + text, json_files.elements, "wanted", chunk=chunk) == entries


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=4), values, max_size=5), chunks)
def test_items_are_those_of_json_load(path, entries, chunk):
    expected = list(entries.items())
    assert read(path, json.dumps(entries), json_files.items, chunk=chunk) == expected


def test_where_the_text_is_cut_for_reading_changes_nothing(path):
    entries = [
        *(1, -12.5, 1.5e20, 1e-7, 0.1, -0.0, True, None, "", "aé😀\u2028", '\\"', "\\\\", "[{"),
        {"k": [1.5, 2, {"deep": [[]]}], "\\ud83d": '"]'},
    ]
    for ascii_only in (True, False):
        content = json.dumps({"a": 1, "list": entries}, ensure_ascii=ascii_only).encode()
        for chunk in range(1, len(content) + 2):
            assert read(path, content, json_files.elements, "list", chunk=chunk) == entries


def as_utf8(value: Any) -> Any:
    """Half a surrogate pair is a question mark."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [as_utf8(entry) for entry in value]
    if isinstance(value, dict):
        return {as_utf8(key): as_utf8(entry) for key, entry in value.items()}
    return value


PIECES = st.sampled_from(
    [
        *map(bytes, zip(b"[]{},:\"\\0e.-'\n \x00\xff\xc3")),
        *(b"\\ud83d", b"\\ude00", b"\\u0041", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"9" * 30),
        *(b"NaN", b"Infinity", b"1e999", b"true", b"//", b"[[]]", b'""'),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(values, max_size=4), st.data(), chunks)
def test_a_damaged_file_is_read_as_json_load_does_or_refused(path, entries, data, chunk):
    content = json.dumps(entries, ensure_ascii=data.draw(st.booleans())).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 3)))
        content = content[:start] + data.draw(PIECES | st.just(b"")) + content[end:]
    try:
        expected = json.loads(content)
    except (ValueError, RecursionError):
        expected = None
    try:
        found = read(path, content, json_files.elements, chunk=chunk)
    except UserError:
        return
    assert found == as_utf8(expected)


@given(st.integers(min_value=0, max_value=44), chunks)
def test_a_file_cut_anywhere_is_an_error_that_says_where(path, length, chunk):
    whole = '[{"a": 1, "b": "two"}, {"a": [3, 4]}, {}, 55]'
    with pytest.raises(UserError, match=rf"file\.json is not whole JSON.* early \(byte {length}\)"):
        read(path, whole[:length], json_files.elements, chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1} {"a": 2}]', r"byte 10, at '\{\"a\": 2\}\]'"),
        ('[{"a": nope}]', "byte 8"),
        ("[1,, 2]", r"byte 3, at ', 2\]'"),
        ("[1, ]", "byte 4"),
        ("[1, 2] x", r"more text after its end \(byte 7, at 'x'\)"),
        ('[{"a": 1}][{"a": 2}]', r"more text after its end \(byte 10"),
        ('[1]"', "it ends too early"),
        ('[1]"x', "it ends too early"),
        ("[1]t", "byte 4"),
        ("[1]-", "byte 4"),
        (f"[{'9' * 5000}]", "an integer beyond 64 bits"),
        ("[9223372036854775808]", "an integer beyond 64 bits"),
        ("[1e400]", "a number beyond 1.8e308"),
        ("[1, NaN]", r"byte 4, at 'NaN\]'"),
        ("[-Infinity]", "byte 2"),
        ("[01]", "I expect"),
        ("[1.]", "byte 3"),
        ('["a\nb"]', "invalid character inside string"),
        (b'["\xff\xfe"]', "bytes that are not UTF-8"),
        ('["\\ud800\\u0041"]', r"half a surrogate pair \(byte 2\)"),
        ('["\\udc00"]', "half a surrogate pair"),
        (b'["\xed\xa0\x80"]', "half a surrogate pair"),
    ],
)
def test_what_is_not_json_is_an_error(path, text, said, chunk):
    with pytest.raises(UserError, match=rf"file\.json is not whole JSON: .*{said}"):
        read(path, text, json_files.elements, chunk=chunk)


def test_other_encodings_are_named(path):
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        with pytest.raises(UserError, match="UTF-16 or UTF-32"):
            read(path, '[{"a": 1}]'.encode(encoding), json_files.elements)


def test_other_files_than_expected_are_errors(path, tmp_path):
    for text, said in (
        ('{"info": 1}', 'no "annotations"'),
        ('{"info": {"annotations": [1]}}', 'no "annotations"'),
        ('{"annotations": 5}', 'not hold a list where one is expected, in "annotations"'),
        ('{"annotations": {"item": 1}}', "not hold a list"),
        ('{"annotations.item": 1, "annotations": [2]}', "not hold a list"),
        ('{"": {"annotations": [1]}}', "without a name"),
        ('{"annotations": [1], "annotations": [2]}', '"annotations" twice'),
        ('{"annotations": [1], "b": 0, "annotations": []}', '"annotations" twice'),
        ("[1]", "not hold an object"),
    ):
        with pytest.raises(UserError, match=said):
            read(path, text, json_files.elements, "annotations")
    for text in ('{"info": 1}', '{"item": 1}', "1", ""):
        with pytest.raises(UserError, match=r"not hold a list|not whole JSON"):
            read(path, text, json_files.elements)
    with pytest.raises(UserError, match="not hold an object"):
        read(path, "[1]", json_files.items)
    with pytest.raises(UserError, match=r"absent\.json is not there"):
        list(json_files.elements(tmp_path / "absent.json"))
    with pytest.raises(UserError, match="cannot be read"):
        list(json_files.elements(tmp_path))


def test_a_list_that_may_be_missing(path):
    assert read(path, '{"b": [1]}', lambda p: json_files.elements(p, "a", optional=True)) == []
    with pytest.raises(UserError, match="not hold a list"):
        read(path, '{"a": 1}', lambda p: json_files.elements(p, "a", optional=True))


def test_the_names_of_lists_may_be_elsewhere_too(path):
    text = '{"info": "annotations", "x": {"annotations": [0]}, "annotations": [{"annotations": 1}]}'
    assert read(path, text, json_files.elements, "annotations") == [{"annotations": 1}]
    twice = '{"a": 1, "b": 2, "a": 3}'
    assert read(path, twice, json_files.items) == [("a", 1), ("b", 2), ("a", 3)]


@pytest.mark.parametrize("opening", ["[", '[{"a":', '{"a":[', '["]]]]",'])
@pytest.mark.parametrize("chunk", [100, 1 << 14])
def test_deep_nesting_is_an_error_and_takes_no_memory(path, opening, chunk):
    tracemalloc.start()
    try:
        for reader in (
            json_files.elements,
            json_files.items,
            lambda p: json_files.elements(p, "a"),
        ):
            with pytest.raises(UserError, match=r"file\.json"):
                read(path, opening * 100_000, reader, chunk=chunk)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert len(read(path, "[" * 90 + "]" * 90, json_files.elements, chunk=chunk)) == 1


def test_a_syntax_error_in_the_first_entry_ends_the_reading(path):
    with path.open("w") as file:
        file.write('[{"a": 1,}, ')
        file.writelines(f'{{"b": "{"y" * 1_000_000}"}},\n' for _ in range(30))
        file.write('{"b": 2}]')
    seen: list[int] = []
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="byte 9"):
            list(json_files.elements(path, advance=seen.append))
        path.write_text(path.read_text().replace("1,}", "1}"))
        tracemalloc.reset_peak()
        assert sum(1 for _ in json_files.elements(path)) == 32
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()
    assert sum(seen) < 1e6


def test_lines(path):
    assert read(path, '{"a": 1}\n\n{"a": 2}\n', json_files.lines) == [(1, {"a": 1}), (3, {"a": 2})]
    assert read(path, '\ufeff{"a": "\u2028"}\r\n[]', json_files.lines) == [
        (1, {"a": "\u2028"}),
        (2, []),
    ]
    with pytest.raises(UserError, match=r"file\.json, line 2"):
        read(path, '{"a": 1}\n{"a": 2', json_files.lines)
    for text in ("9" * 5000, "[" * 100_000, "NaN", "[-Infinity]", "[1e999]", "1 2", "{} {}"):
        with pytest.raises(UserError, match=r"file\.json, line 1"):
            read(path, text, json_files.lines)
    with pytest.raises(UserError, match="not UTF-8"):
        read(path, '{"a": 1}\n'.encode("utf-16"), json_files.lines)


def test_a_line_of_a_whole_file_is_not_read_whole(path, monkeypatch):
    monkeypatch.setattr(json_files, "LONGEST_LINE", 100)
    assert len(read(path, json.dumps("x" * 90), json_files.lines)) == 1
    with pytest.raises(UserError, match=r"line 2 .* 100 characters or more"):
        read(path, "1\n" + json.dumps(["x"] * 100), json_files.lines)


@given(st.lists(values, max_size=4))
def test_lines_are_those_of_json_loads(path, entries):
    text = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    assert [entry for _, entry in read(path, text, json_files.lines)] == entries
