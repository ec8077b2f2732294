import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.errors import UserError
from gridvlp.train.tasks import get_task
from gridvlp.train.tasks.vqa import official_text, vqa_accuracy


def annotation(id, answers, question_type="what", answer_type="other", **more):
    counts = {answer: answers.count(answer) for answer in answers}
    return {
        "question_id": id,
        "answers": [
            {"answer": a, "answer_confidence": "yes", "answer_id": n}
            for n, a in enumerate(answers, 1)
        ],
        "multiple_choice_answer": max(counts, key=counts.get),
        "question_type": question_type,
        "answer_type": answer_type,
    } | more


@pytest.fixture
def data(tmp_path):
    """Two train questions, four of val2014 of which two are on a minival photo, a test question."""
    (tmp_path / "vqa").mkdir()
    annotations = tmp_path / "coco" / "annotations"
    annotations.mkdir(parents=True)
    captions = {"images": [{"id": 30}], "annotations": []}
    (annotations / "captions_val2017.json").write_text(json.dumps(captions))
    write(tmp_path, "train2014", [(1, 10), (2, 10)], [["two"] * 6 + ["2"] * 4, ["a net"] * 10])
    write(
        tmp_path,
        "val2014",
        [(3, 30), (4, 30), (5, 40), (6, 41)],
        [["net"] * 10, ["red"] * 3 + ["Red."] * 7, ["net"] * 9 + ["2"], ["blue"] * 10],
    )
    write(tmp_path, "test2015", [(7, 50)], None)
    return tmp_path


def write(data, split, questions, answers):
    entries = [
        {"question_id": id, "image_id": image, "question": f"What is {id}?", "new_key": 1}
        for id, image in questions
    ]
    path = data / "vqa" / f"v2_OpenEnded_mscoco_{split}_questions.json"
    path.write_text(json.dumps({"info": {}, "questions": entries}))
    if answers:
        entries = [annotation(id, a) for (id, _), a in zip(questions, answers, strict=True)]
        path = data / "vqa" / f"v2_mscoco_{split}_annotations.json"
        path.write_text(json.dumps({"annotations": entries}))


def test_splits(data):
    task = get_task("vqa")
    assert task.build_answers(data) == ("2", "blue", "net", "red")
    assert any("few questions" in note for note in task.notes)
    ids = {
        split: [example.id for example in task.read(data, split).examples]
        for split in ("train", "nominival", "minival", "val", "test")
    }
    assert ids == {
        "train": ["1", "2"],
        "nominival": ["5", "6"],
        "minival": ["3", "4"],
        "val": ["3", "4", "5", "6"],
        "test": ["7"],
    }
    train = task.read(data, "train").examples
    assert train[0].images == ("000000000010",)
    assert train[0].target == ((0, 1.0),)  # two and 2 are one answer
    nominival = task.read(data, "nominival").examples
    assert dict(nominival[0].target) == {2: 1.0, 0: 0.3}
    assert np.allclose(task.targets(nominival), [[0.3, 0, 1, 0], [0, 1, 0, 0]])
    test = task.read(data, "test-std")
    assert not test.labelled
    assert test.report.unlabelled == 1


def test_all_of_val2014_is_minival_without_the_list(data):
    (data / "coco" / "annotations" / "captions_val2017.json").unlink()
    task = get_task("vqa", ["net"])
    minival, nominival = (task.read(data, split) for split in ("minival", "nominival"))
    assert len(minival.examples) == 4
    assert nominival.examples == []
    assert "all of val2014 is minival" in minival.report.notes[0]


def test_a_labelled_test_split_is_scored(data):
    write(data, "test2015", [(7, 50)], [["net"] * 10])
    task = get_task("vqa", ["net"])
    split = task.read(data, "test")
    assert task.score(split.examples, ["net"])["accuracy"] == 100.0


def test_missing_photos_empty_questions_and_unknown_answers_are_counted(data):
    path = data / "vqa" / "v2_OpenEnded_mscoco_val2014_questions.json"
    entries = json.loads(path.read_text())["questions"]
    entries[1]["question"] = " "
    entries[2]["question"] = "что это? " * 10_000
    path.write_text(json.dumps({"questions": entries}))
    task = get_task("vqa", ["net"])
    split = task.read(data, "val", {"000000000030", "000000000040"})
    report = split.report
    assert (report.lines, report.used, report.empty, report.without_photo) == (4, 2, 1, 1)
    assert report.missing_photos == ["000000000041"]
    assert split.skipped == ["4", "6"]
    assert get_task("vqa", ["dog"]).read(data, "val").report.outside_vocabulary == 3


def test_bad_files(data):
    task = get_task("vqa", ["net"])
    questions = data / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json"
    annotations = data / "vqa" / "v2_mscoco_train2014_annotations.json"
    whole = annotations.read_text()
    annotations.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"train2014_annotations\.json is not whole JSON.*byte"):
        task.read(data, "train")
    annotations.write_text(whole.replace('"answers"', '"replies"'))
    with pytest.raises(UserError, match=r'entry 0 \(question_id 1\) has no "answers"'):
        task.read(data, "train")
    annotations.write_text(json.dumps({"annotations": [annotation(99, ["x"] * 10)]}))
    with pytest.raises(UserError, match="not of one split"):
        task.read(data, "train")
    annotations.write_text(whole)
    questions.write_text(questions.read_text().replace('"image_id"', '"photo"'))
    with pytest.raises(UserError, match=r'entry 0 \(question_id 1\) has no "image_id"'):
        task.read(data, "train")
    questions.unlink()
    with pytest.raises(UserError, match=r"train2014_questions\.json, which is not there"):
        task.read(data, "train")
    with pytest.raises(UserError, match="no answer classes yet"):
        get_task("vqa").read(data, "val")


def test_annotations_without_question_are_counted(data):
    path = data / "vqa" / "v2_mscoco_train2014_annotations.json"
    entries = json.loads(path.read_text())["annotations"]
    path.write_text(json.dumps({"annotations": [*entries[:1], annotation(99, ["x"] * 10)]}))
    report = get_task("vqa", ["net"]).read(data, "train").report
    assert report.unlabelled == 1
    assert report.notes == ["1 annotations without a question"]


def test_classes_are_the_majority_answers_seen_nine_times(tmp_path):
    (tmp_path / "vqa").mkdir()
    answers = [["yes"] * 10] * 30 + [["The Cat"] * 10] * 9 + [["dog"] * 10] * 8
    write(tmp_path, "train2014", [(i, i) for i in range(47)], answers)
    write(tmp_path, "val2014", [(100, 100)], [["1,000"] * 10])
    task = get_task("vqa")
    assert task.build_answers(tmp_path) == ("cat", "yes")
    assert task.notes == []
    given = get_task("vqa", ["b", "a"])
    assert given.build_answers(tmp_path) == ("b", "a")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The Dog", "dog"),
        ("a  dog and an apple", "dog and apple"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("isnt", "isn't"),
        ("Couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("t-shirt", "t shirt"),
        ("- t-shirt", "tshirt"),
        ("U.S.", "us"),
        ("2.5", "2.5"),
        ("2.", "2"),
        ("p.m.5", "pm.5"),
        ("what?", "what"),
        ("it's", "it's"),
        ("10:30", "10:30"),
        ("." * 40, "." * 8),
        ("٣,٤", "٣ ٤"),  # a digit is one of 0 to 9
        ("２,０００", "２ ０００"),
        ("1.٥", "1٥"),
        ("1,٥ x-y", "1 ٥ x y"),
        ("x.²", "x²"),
    ],
)
def test_official_text(raw, expected):
    assert official_text(raw) == expected


DIGITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def slow_official_accuracy(answer, humans):
    """The rule of the public evaluator, said once more, slowly and another way."""

    def process(text):
        out = text
        for mark in """;/[]"{}()=+\\_-><@`,?!""":
            squeeze = mark + " " in text or " " + mark in text or re.search("[0-9],[0-9]", text)
            out = ("" if squeeze else " ").join(out.split(mark))
        kept = ""
        for at, character in enumerate(out):
            if character != "." or out[at + 1 : at + 2] in set("0123456789"):
                kept += character
        words = []
        for word in kept.lower().split():
            if word in ("none", "zero"):
                word = "0"
            if word in DIGITS:
                word = str(DIGITS.index(word) + 1)
            if word not in ("a", "an", "the"):
                words.append({"dont": "don't", "cant": "can't", "its": "its"}.get(word, word))
        return " ".join(words)

    humans = [h.replace("\n", " ").replace("\t", " ").strip() for h in humans]
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    if any(human != humans[0] for human in humans):
        humans, answer = [process(h) for h in humans], process(answer)
    total = 0.0
    for left_out in range(len(humans)):
        others = [h for i, h in enumerate(humans) if i != left_out]
        total += min(1.0, sum(h == answer for h in others) / 3)
    return total / len(humans)


pieces = st.sampled_from(
    [
        *("a", "the", "Two", "2", "dont", "don't", "red", "1,000", "p.m.", "3.5", "-", ", "),
        *("/", "?", "٣,٤", ".٥", "２,３", ".²", "۷"),
    ]
)
texts = st.builds(" ".join, st.lists(pieces, min_size=1, max_size=3)) | st.builds(
    "".join, st.lists(pieces, min_size=1, max_size=3)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(texts, min_size=1, max_size=4, unique=True), st.data())
def test_accuracy_is_the_official_one(pool, data):
    humans = data.draw(st.lists(st.sampled_from(pool), min_size=10, max_size=10))
    answer = data.draw(st.sampled_from(pool) | texts)
    assert vqa_accuracy(answer, humans) == pytest.approx(slow_official_accuracy(answer, humans))


def test_text_is_processed_only_where_annotators_disagree():
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy("Two", ["two"] * 10) == 0.0
    assert vqa_accuracy("Two", ["two"] * 9 + ["3"]) == 1.0
    assert vqa_accuracy("2", ["two"] * 9 + ["3"]) == 1.0
    assert vqa_accuracy("x", ["x"] + ["y"] * 9) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([["net"]] * 4, "4 of 4 questions .* cannot exceed 0.0% on them, 0.0% on the whole split"),
        ([["net"] * 2] * 4, "4 of 4 .* cannot exceed 33.3% on them, 33.3% on the whole split"),
        ([["net"] * 3] * 4, "4 of 4 .* cannot exceed 66.7% on them, 66.7% on the whole split"),
        ([["net", "red"]] * 4, "4 of 4 .* cannot exceed 16.7% on them, 16.7% on the whole split"),
        (
            [["net"]] + [["net"] * 10] * 3,
            "1 of 4 .* cannot exceed 0.0% on them, 75.0% on the whole split",
        ),
        ([["net"] * 4] * 4, None),
        ([["net"] * 4 + ["red"] * 6] * 4, None),
    ],
)
def test_what_few_annotators_allow_is_told_with_numbers(data, answers, told):
    write(data, "val2014", [(3, 30), (4, 30), (5, 40), (6, 41)], answers)
    task = get_task("vqa", ["net", "red"])
    split = task.read(data, "val")
    if told is None:
        assert split.report.notes == []
        return
    (note,) = split.report.notes
    assert re.match(told, note)
    share = float(re.search(r"([\d.]+)% on the whole", note)[1])
    reached = max(  # no answer does better on each question
        task.score(split.examples, predicted)["accuracy"]
        for predicted in itertools.product(["net", "red"], repeat=4)
    )
    assert reached == pytest.approx(share, abs=0.051)


def test_with_one_annotator_exact_match_stands_beside_the_official_zero(data):
    answers = [["net"], ["The Red."], ["two"], ["1,000"]]
    write(data, "val2014", [(3, 30), (4, 30), (5, 40), (6, 41)], answers)
    task = get_task("vqa", ["net", "red", "2", "1000"])
    split = task.read(data, "val")
    assert "exact match is given beside it" in split.report.notes[0]
    assert task.decisive(split.examples) == "exact match"
    scores = task.score(split.examples, ["net", "red", "2", "net"])
    assert (scores["accuracy"], scores["exact match"]) == (0.0, 75.0)
    write(data, "val2014", [(3, 30), (4, 30)], [["net"], ["red"] * 2])
    split = task.read(data, "val")
    assert task.decisive(split.examples) == "accuracy"
    assert "exact match" not in task.score(split.examples, ["net", "red"])


def test_scores_by_type(data):
    path = data / "vqa" / "v2_mscoco_val2014_annotations.json"
    entries = [
        annotation(3, ["net"] * 10, "what", "other"),
        annotation(4, ["red"] * 10, "what color", "other"),
        annotation(5, ["2"] * 10, "how many", "number"),
        annotation(6, ["yes"] * 10, "is", "yes/no"),
    ]
    path.write_text(json.dumps({"annotations": entries}))
    task = get_task("vqa", ["net", "red", "2", "yes"])
    examples = task.read(data, "val").examples
    scores = task.score(examples, ["net", "blue", "2", "no"])
    assert next(iter(scores)) == "accuracy"
    assert scores["accuracy"] == 50.0
    assert scores["answer type: other"] == 50.0
    assert scores["answer type: number"] == 100.0
    assert scores["question type: what color"] == 0.0
    assert task.majority(examples, examples) == 100.0
    assert task.majority_answers(examples[:2], examples) == ["net", "red", "net", "net"]


def test_an_id_twice_is_named_with_the_file(data):
    task, path = get_task("vqa"), data / "result.json"
    with pytest.raises(UserError, match=rf"^7 would be twice in {path}: "):
        task.write_submission(path, ["7", "8", "7"], ["net"] * 3)
    with pytest.raises(UserError, match=r"^0, 1, 2, 3, 4 and 2 more would be twice"):
        task.write_submission(path, [str(n) for n in range(7)] * 2, ["net"] * 14)
    assert not path.exists()


def test_submission(data):
    path = data / "result.json"
    get_task("vqa").write_submission(path, ["7", "8"], ["net", "café"])
    assert json.loads(path.read_text("utf-8")) == [
        {"question_id": 7, "answer": "net"},
        {"question_id": 8, "answer": "café"},
    ]


def test_loss_is_the_sum_over_classes(data):
    torch = pytest.importorskip("torch")
    task = get_task("vqa", ["a", "b", "c"])
    logits_BA = torch.tensor([[0.0, 1.0, -1.0]])
    targets_BA = torch.tensor([[0.3, 1.0, 0.0]])
    expected = -0.3 * np.log(0.5) - 0.7 * np.log(0.5) + 2 * np.log(1 + np.exp(-1))
    assert task.loss(logits_BA, targets_BA).item() == pytest.approx(expected, rel=1e-6)


def test_real_questions(shared_data):
    task = get_task("vqa")
    task.build_answers(shared_data)
    train, val = task.read(shared_data, "train"), task.read(shared_data, "val")
    assert (train.report.used, val.report.used) == (104, 42)
    for split in (train, val):
        answers = [max(e.truth.answers, key=e.truth.answers.count) for e in split.examples]
        assert task.score(split.examples, answers)["accuracy"] > 80
    minival, nominival = (task.read(shared_data, s).report.lines for s in ("minival", "nominival"))
    assert minival + nominival == 42
