import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridvlp.errors import UserError
from gridvlp.train.answers import AnswerVocabulary, most_frequent, normalize_answer, soft_score


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Sailboats.", "sailboats"),
        ("A teddy bear.", "teddy bear"),
        ("an orange", "orange"),
        ("The man", "man"),
        ("the", "the"),
        ("Three", "3"),
        ("three dogs", "three dogs"),
        ("Grey.", "gray"),
        ("grey and white", "grey and white"),
        ("U.S.", "u.s"),
        ("", ""),
        ("another", "another"),
        ("В комнате.", "в комнате"),
    ],
)
def test_normalisation_is_lxmerts(answer, expected):
    assert normalize_answer(answer) == expected


@given(st.text(alphabet="the an.One ", max_size=20))
def test_normalised_answers_have_no_outer_space_or_capitals(answer):
    normalized = normalize_answer(answer)
    assert normalized == normalized.strip().lower()


def test_soft_score_is_the_leave_one_out_mean():
    for k in range(11):
        agree = [True] * k + [False] * (10 - k)
        rule = sum(min(1, sum(agree[:i] + agree[i + 1 :]) / 3) for i in range(10)) / 10
        assert soft_score(k) == pytest.approx(rule)


def test_both_published_formats_are_read(tmp_path):
    plain, lxmert = tmp_path / "plain.json", tmp_path / "lxmert.json"
    plain.write_text(json.dumps(["", "net", "2"]))
    lxmert.write_text(json.dumps([{"ans": "net", "dsets": ["vqa"]}, {"ans": "2", "dsets": []}]))
    assert AnswerVocabulary.from_file(plain).names == ("", "net", "2")
    vocabulary = AnswerVocabulary.from_file(lxmert)
    assert vocabulary.id("2") == 1
    assert vocabulary.id("two") is None
    vocabulary.save(tmp_path / "copy.json")
    assert AnswerVocabulary.from_file(tmp_path / "copy.json").names == vocabulary.names
    plain.write_bytes(b"\xef\xbb\xbf" + '["caf\u00e9"]'.encode())
    assert AnswerVocabulary.from_file(plain).names == ("café",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["net", "net"]', "'net' twice"),
        ("[]", "empty"),
        ('{"net": 0}', "list"),
        ('["net", 3]', 'entry 1 has no "ans"'),
        ('["net", null]', 'entry 1 has no "ans"'),
        ('["net", {"ans": null}]', 'entry 1 has a "ans" that is not text: null'),
        ('["net", {"answer": "x"}]', 'entry 1 has no "ans"'),
        ('["net", "ne', "not whole JSON"),
        ("[" * 100_000, "in each other"),
    ],
)
def test_a_bad_answer_file_is_named(tmp_path, text, said):
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        AnswerVocabulary.from_file(path)
    assert "answers.json" in str(error.value)


def test_published_vocabularies(shared_data):
    for name, size in (("lxmert_answers_9500", 9500), ("vqa_v2_answers_3129", 3129)):
        assert len(AnswerVocabulary.from_file(shared_data / "vocab" / f"{name}.json")) == size


def test_most_frequent_breaks_ties_by_name_and_lists_by_name():
    weights = {"zebra": 5.0, "cat": 1.0, "bat": 1.0, "ant": 0.0}
    assert most_frequent(weights, most=2) == ["bat", "zebra"]
    assert most_frequent(dict(reversed(weights.items())), most=2) == ["bat", "zebra"]
    assert most_frequent(weights) == ["bat", "cat", "zebra"]
