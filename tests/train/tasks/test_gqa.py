import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridvlp.errors import UserError
from gridvlp.train.tasks import get_task
from gridvlp.train.tasks.gqa import GQA

NAMES = ("blue", "cup", "no", "yes")


def question(answer="cup", image="n1", structural="query", detailed="relS", **more):
    return {
        "imageId": image,
        "question": "What is on the table?",
        "answer": answer,
        "isBalanced": True,
        "entailed": [],
        "groups": {"global": "thing", "local": "x"},
        "types": {"structural": structural, "semantic": "rel", "detailed": detailed},
        "unknown": 3,
    } | more


@pytest.fixture
def write(tmp_path):
    (tmp_path / "gqa").mkdir()
    (tmp_path / "vg").mkdir()
    images = [{"image_id": 2345, "coco_id": 262148}]
    (tmp_path / "vg" / "image_data.json").write_text(json.dumps(images))

    def write(questions, split="testdev_balanced_questions"):
        (tmp_path / "gqa" / f"{split}.json").write_text(json.dumps(questions))
        return tmp_path

    return write


def test_questions_become_examples(write):
    data = write(
        {
            "1": question(image="2345"),
            "2": question("purple", image="n1"),
            "3": question(image="n2"),
            "4": question(question=""),
        }
    )
    split = get_task("gqa", NAMES).read(data, "testdev", {"000000262148", "n1"})
    assert [e.images for e in split.examples] == [("000000262148",), ("n1",)]
    assert [e.target for e in split.examples] == [((1, 1.0),), ()]
    assert split.examples[0].kind == "relS"
    report = split.report
    assert (report.lines, report.used, report.without_photo, report.empty) == (4, 2, 1, 1)
    assert report.outside_vocabulary == 1
    assert report.missing_photos == ["n2"]


def test_classes_are_all_answers_of_train_and_val(write):
    write({"1": question("cup"), "2": question("yes")}, "train_balanced_questions")
    task = get_task("gqa")
    assert task.build_answers(write({"3": question("blue")})) == ("cup", "yes")
    assert "train alone" in task.notes[0]
    data = write({"4": question("no")}, "val_balanced_questions")
    assert get_task("gqa").build_answers(data) == ("cup", "no", "yes")


def test_unlabelled_splits_and_all_questions(write):
    entry = question()
    del entry["answer"], entry["types"], entry["entailed"]
    data = write({"1": entry}, "test_all_questions")
    task = get_task("gqa", NAMES)
    split = task.read(data, "test")
    assert split.report.unlabelled == 1
    assert "test_all_questions.json is read" in split.report.notes[0]
    with pytest.raises(UserError, match=r"val_all_questions\.json"):
        task.read(data, "val-all")


def test_the_servers_split_reads_the_file_that_the_server_wants(write, tmp_path):
    entry = {"imageId": "n1", "question": "Is it?"}
    write({"1": entry}, "test_all_questions")
    write({"2": entry}, "test_balanced_questions")
    task = get_task("gqa", NAMES)
    for balanced in (False, True):  # there is none; a file of that name changes nothing
        with pytest.raises(UserError, match=r"submission_all_questions\.json"):
            task.read(tmp_path, "submission")
        if balanced:
            write({"5": entry}, "submission_balanced_questions")
    data = write({"3": entry, "4": entry}, "submission_all_questions")
    read = {split: task.read(data, split) for split in ("test", "test-all", "submission")}
    ids = {split: [e.id for e in found.examples] for split, found in read.items()}
    assert ids == {"test": ["2"], "test-all": ["1"], "submission": ["3", "4"]}
    assert read["submission"].report.notes == []
    assert read["submission"].report.unlabelled == 2


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"question": "x", "answer": "y"}, 'entry 7 has no "imageId"'),
        ({"imageId": "n1", "answer": "y"}, 'entry 7 has no "question"'),
        (question(entailed="1"), "entailed"),
        (question(semantic="select"), 'entry 7: "semantic" is not a list of steps'),
        (question(semantic=["select"]), 'entry 7: "semantic" is not a list of steps'),
        (question(types=None, groups=None, entailed=None), None),
        (question(types=None, groups=None, semantic=None), None),
        ("text", 'entry 7 has no "imageId"'),
    ],
)
def test_odd_entries(write, entry, said):
    data, task = write({"7": entry}), get_task("gqa", NAMES)
    if said is None:
        split = task.read(data, "testdev")
        assert task.score(split.examples, ["cup"]) == {"accuracy": 100.0, "words: 5": 100.0}
    else:
        with pytest.raises(UserError, match=said):
            task.read(data, "testdev")


def test_a_cut_file_is_named(write):
    data = write({"1": question(), "2": question()})
    path = data / "gqa" / "testdev_balanced_questions.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"testdev_balanced_questions\.json is not whole JSON"):
        get_task("gqa", NAMES).read(data, "testdev")


answers = st.sampled_from(NAMES)
ids = st.sampled_from([str(i) for i in range(8)])
programs = st.lists(
    st.fixed_dictionaries(
        {
            "operation": st.sampled_from(
                ["select", "filter color", "query", "exist", "choose name"]
            ),
            "argument": st.sampled_from(["name", "table (12)", "not(red)", "?", "exist"]),
            "dependencies": st.just([]),
        }
    ),
    max_size=12,
)
entries = st.builds(
    question,
    question=st.sampled_from(["Is it red?", "What is on the table?", "Is it  a cup ?", "a " * 12]),
    semantic=programs,
    answer=answers,
    structural=st.sampled_from(["query", "verify", "choose"]),
    detailed=st.sampled_from(["relS", "twoCommon", "verifyAttr"]),
    isBalanced=st.booleans(),
    entailed=st.lists(ids, max_size=4, unique=True),
    groups=st.fixed_dictionaries({"global": st.sampled_from(["thing", "color", None])}),
)


@settings(deadline=None)
@given(st.dictionaries(ids, st.tuples(entries, answers), min_size=1), st.data())
def test_scores_are_the_official_ones(tmp_path_factory, asked, draw):
    """Against a slow statement of the public evaluator's rules."""
    questions = {id: entry for id, (entry, _) in asked.items()}
    predicted = {id: answer for id, (_, answer) in asked.items()}
    choices = {
        id: {
            name: draw.draw(st.lists(st.sampled_from([*NAMES, "color"]), unique=True))
            for name in ("valid", "plausible")
        }
        for id in questions
    }
    data = tmp_path_factory.mktemp("gqa")
    (data / "gqa").mkdir()
    (data / "gqa" / "val_all_questions.json").write_text(json.dumps(questions))
    (data / "gqa" / "val_choices.json").write_text(json.dumps(choices))
    task = GQA(NAMES)
    examples = task.read(data, "val-all").examples
    scores = task.score(examples, [predicted[e.id] for e in examples])

    right = {id: predicted[id] == q["answer"] for id, q in questions.items()}
    balanced = [id for id, q in questions.items() if q["isBalanced"]] or list(questions)

    def mean(values):
        return 100 * float(np.mean(values))

    assert next(iter(scores)) == "accuracy"
    assert scores["accuracy"] == pytest.approx(mean([right[id] for id in balanced]))
    for name, is_open in (("open", True), ("binary", False)):
        values = [
            right[id]
            for id in balanced
            if (questions[id]["types"]["structural"] == "query") == is_open
        ]
        assert scores.get(name) == (pytest.approx(mean(values)) if values else None)
    for title, name in (("validity", "valid"), ("plausibility", "plausible")):
        values = [
            predicted[id]
            in (
                ["color", "material", "shape"]
                if "Common" in questions[id]["types"]["detailed"]
                else choices[id][name]
            )
            for id in balanced
        ]
        assert scores[title] == pytest.approx(mean(values))
    consistency, official = [], True
    for id in balanced:
        others = [other for other in questions[id]["entailed"] if other != id]
        if right[id] and others:
            official &= all(other in questions for other in others)
            if known := [right[other] for other in others if other in questions]:
                consistency.append(np.mean(known))
    name = "consistency" if official else "consistency (entailed questions that were asked)"
    assert scores.get(name) == (pytest.approx(mean(consistency)) if consistency else None)
    total, weight = 0.0, 0
    for group in ("thing", "color"):
        members = [id for id in balanced if questions[id]["groups"]["global"] == group]
        chi = 0.0
        for answer in {questions[id]["answer"] for id in members}:
            expected = sum(questions[id]["answer"] == answer for id in members)
            observed = sum(predicted[id] == answer for id in members)
            chi += (observed - expected) ** 2 / expected
        total, weight = total + chi * len(members), weight + len(members)
    assert scores.get("distribution") == (pytest.approx(total / weight / 100) if weight else None)
    lengths = {}
    for id in balanced:
        words, steps = len(questions[id]["question"].split()), 0
        for step in questions[id]["semantic"]:
            said = step["operation"] + ": " + step["argument"]
            if "exist" not in said and "query: name" not in said and "choose name" not in said:
                steps += 1
        for name in (f"words: {words}", f"steps: {steps}"):
            lengths.setdefault(name, []).append(right[id])
    found = {name: v for name, v in scores.items() if name.startswith(("words: ", "steps: "))}
    assert found == {name: pytest.approx(mean(values)) for name, values in lengths.items()}
    numbers = [int(name.split(": ")[1]) for name in found if name.startswith("steps: ")]
    assert numbers == sorted(numbers)
    for kind in ("query", "verify", "choose"):
        values = [right[id] for id in balanced if questions[id]["types"]["structural"] == kind]
        assert scores.get(f"structural: {kind}") == (
            pytest.approx(mean(values)) if values else None
        )


def test_majority_is_per_detailed_type(write):
    task = get_task("gqa", NAMES)
    entries = [question("cup"), question("cup"), question("blue"), question("no", detailed="v")]
    train = task.read(write({str(i): e for i, e in enumerate(entries)}), "testdev").examples
    data = write({"1": question("cup"), "2": question("no", detailed="v"), "3": question("yes")})
    test = task.read(data, "testdev").examples
    assert task.majority_answers(train, test) == ["cup", "no", "cup"]
    assert task.majority(train, test) == pytest.approx(200 / 3)


def test_submission(write, tmp_path):
    get_task("gqa").write_submission(tmp_path / "p.json", ["05", "7"], ["cup", "no"])
    assert json.loads((tmp_path / "p.json").read_text()) == [
        {"questionId": "05", "prediction": "cup"},
        {"questionId": "7", "prediction": "no"},
    ]


def test_losses():
    torch = pytest.importorskip("torch")
    logits_BA = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    targets_BA = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    bce = get_task("gqa", ["a", "b"]).loss(logits_BA, targets_BA).item()
    softplus = np.log1p(np.exp([[0.0, -1.0], [2.0, 3.0]]))
    assert bce == pytest.approx(softplus.sum(1).mean(), rel=1e-6)
    cross_entropy = get_task("gqa", ["a", "b"], loss="ce").loss(logits_BA, targets_BA).item()
    assert cross_entropy == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-6)
    with pytest.raises(UserError, match="no loss 'mse'"):
        get_task("gqa", loss="mse")


def test_real_questions(shared_data):
    task = get_task("gqa")
    assert task.build_answers(shared_data) == ("picture", "yes")
    split = task.read(shared_data, "train")
    assert [e.images for e in split.examples] == [("n578564",), ("n166008",)]
    scores = task.score(split.examples, ["picture", "no"])
    assert scores["accuracy"] == 100.0  # the second question is not balanced
