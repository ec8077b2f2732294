"""Values are of the kind that is asked for, or the entry is named."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridvlp.data import json_values
from gridvlp.data.json_values import BadEntry, Unique, optional
from gridvlp.errors import UserError

PATH = Path("a.json")
ANYTHING = [
    *(None, True, False, 0, 1, 17, -1, 0.5, 1.0, 10**400, "", "a", "0", "1"),
    *([], [1], ["a"], [1, 2, 3, 4], [1, 2, 3, 4.5], [1, 2, 3, "4"], {}, {"a": 1}),
]


def four(entry, key, path, where):
    return json_values.number_list(entry, key, path, where, 4)


def number(entry, key, path, where):
    return json_values.numbers(entry, [key], path, where)[0]


@pytest.mark.parametrize(
    ("read", "good"),
    [
        (json_values.integer, [0, 1, 17, -1]),
        (number, [0, 1, 17, -1, 0.5, 1.0, 10**400]),
        (four, [[1, 2, 3, 4], [1, 2, 3, 4.5]]),
        (json_values.string, ["", "a", "0", "1"]),
        (json_values.name, ["a", "0", "1", 0, 1, 17, -1, 10**400]),
        (json_values.flag, [True, False, 0, 1]),
        (json_values.array, [value for value in ANYTHING if isinstance(value, list)]),
        (json_values.strings, [[], ["a"]]),
        (json_values.integers, [[], [1], [1, 2, 3, 4]]),
        (json_values.mapping, [{}, {"a": 1}]),
    ],
)
def test_each_kind_takes_its_own_and_nothing_else(read, good):
    def same(one, other):
        return type(one) is type(other) and one == other

    for value in ANYTHING:
        entry = {"id": 3, "key": value}
        if any(same(value, one) for one in good):
            read(entry, "key", PATH, 5)
        else:
            with pytest.raises(
                BadEntry, match=r'a\.json, entry 5 \(id 3\) has a "key" that is not'
            ):
                read(entry, "key", PATH, 5)
    for entry in ({"id": 3}, None, 5, "key", ["key"]):
        with pytest.raises(BadEntry, match=r'a\.json, entry 5 .*has no "key"|5 has no "key"'):
            read(entry, "key", PATH, 5)


def test_values_come_as_they_are():
    assert json_values.name({"a": 7}, "a", PATH, 0) == "7"
    assert json_values.flag({"a": 1}, "a", PATH, 0) is True
    assert json_values.numbers({"x": 1, "y": 2.5}, ("y", "x"), PATH, 0) == [2.5, 1]
    with pytest.raises(BadEntry, match='"y" that is not a number: "2"'):
        json_values.numbers({"x": 1, "y": "2"}, ("x", "y"), PATH, 0)


def test_bounds_are_said():
    assert json_values.integer({"a": 5}, "a", PATH, 0, 5, 5) == 5
    for value in (4, 6):
        with pytest.raises(BadEntry, match=rf"not an integer from 5 to 5: {value}"):
            json_values.integer({"a": value}, "a", PATH, 0, 5, 5)
    with pytest.raises(BadEntry, match="not an integer: 9223372036854775808"):
        json_values.integer({"a": 1 << 63}, "a", PATH, 0)


def test_what_may_be_missing():
    for entry in ({}, {"a": None}):
        assert optional(json_values.string, "none", entry, "a", PATH, 0) == "none"
    assert optional(json_values.string, "none", {"a": ""}, "a", PATH, 0) == ""
    with pytest.raises(BadEntry, match="not text: 0"):
        optional(json_values.string, "none", {"a": 0}, "a", PATH, 0)
    with pytest.raises(BadEntry, match="has no"):
        optional(json_values.string, "none", [], "a", PATH, 0)


def test_the_reasons_of_one_kind_are_one():
    reasons = set()
    for value in ("x", None, [1]):
        with pytest.raises(BadEntry) as told:
            json_values.integer({"question_id": value}, "question_id", PATH, "q[3]")
        assert told.value.entry == f"a.json, entry q[3] (question_id {json.dumps(value)})"
        reasons.add(told.value.reason.split(":")[0])
    assert reasons == {'has a "question_id" that is not an integer'}


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(BadEntry) as told:
        json_values.integer({"a": "x" * 10_000}, "a", PATH, 0)
    assert len(str(told.value)) < 300


def test_an_id_stands_once():
    unique = Unique(PATH, "question_id")
    unique.add(7, 0)
    unique.add("7", 1)  # text is another id
    with pytest.raises(UserError, match=r"a\.json has question_id 7 twice, in entries 0 and 2"):
        unique.add(7, 2)


@given(st.text())
def test_text_is_words_with_single_spaces(sentence):
    text = json_values.text(sentence)
    assert text.split(" ") == sentence.split() or text == ""
    assert json_values.text("a\u2028 b \ud83d") == "a b ?"
    assert json_values.text(None) == json_values.text(5) == ""
