import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridvlp.errors import UserError
from gridvlp.train.tasks import get_task
from gridvlp.train.tasks.nlvr2 import NLVR2


def line(identifier, label="True", **more):
    return {"identifier": identifier, "sentence": "Two dogs.", "label": label, "synset": "d"} | more


@pytest.fixture
def write(tmp_path):
    def write(entries, split="dev"):
        (tmp_path / "nlvr2").mkdir(exist_ok=True)
        text = "\n".join(map(json.dumps, entries))
        (tmp_path / "nlvr2" / f"{split}.json").write_text(text + "\n")
        return tmp_path

    return write


@pytest.fixture
def task():
    return get_task("nlvr2", ["False", "True"])


def test_lines_become_examples(write, task):
    data = write([line("dev-850-0-0"), line("dev-850-0-1", "False"), line("dev-851-2-0", "true")])
    photos = {"dev-850-0-img0", "dev-850-0-img1", "dev-851-2-img0"}
    split = task.read(data, "dev", photos)
    assert [e.id for e in split.examples] == ["dev-850-0-0", "dev-850-0-1"]
    assert split.examples[1].images == ("dev-850-0-img0", "dev-850-0-img1")
    assert [e.target for e in split.examples] == [((1, 1.0),), ((0, 1.0),)]
    assert np.array_equal(task.targets(split.examples), [[0, 1], [1, 0]])
    assert split.report.without_photo == 1
    assert split.report.missing_photos == ["dev-851-2-img1"]
    assert split.skipped == ["dev-851-2-0"]
    assert "3 lines, 2 used, 1 without a photo" in split.report.lines_of_text()[0]
    assert len(task.read(data, "dev").examples) == 3


def test_unlabelled_and_odd_lines(write, task):
    entries = [
        line("test1-0-0-0"),
        line("test1-0-1-0", sentence="  "),
        line("test1-0-2-0", "False"),
    ]
    del entries[0]["label"]
    split = task.read(write(entries, "test1"), "test-P")
    assert split.report.unlabelled == 1
    assert split.report.empty == 1
    assert split.labelled
    assert task.score(split.examples, ["True", "False"])["accuracy"] == 100.0
    with pytest.raises(UserError, match="nothing to score"):
        task.score(split.examples[:1], ["True"])
    with pytest.raises(UserError, match="2 examples but 1 predictions"):
        task.score(split.examples, ["True"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            line("dev-1-0-0", "Maybe"),
            r'line 1 \(identifier "dev-1-0-0"\) has a "label" that is not True or False',
        ),
        ({"sentence": "x", "label": "True"}, 'no "identifier"'),
        ({"identifier": "dev-1-0-0", "label": "True"}, 'no "sentence"'),
        (line("850"), "NLVR2 identifier"),
    ],
)
def test_bad_lines_are_named(write, task, entry, said):
    with pytest.raises(UserError, match=said):
        task.read(write([entry]), "dev")


def test_bad_splits(write, task, tmp_path):
    with pytest.raises(UserError, match="no split 'valid'; it has train, dev"):
        task.read(tmp_path, "valid")
    with pytest.raises(UserError, match=r"train\.json.*docs/data\.md"):
        task.read(tmp_path, "train")
    data = write([line("dev-850-0-0"), line("dev-850-0-1")])
    path = data / "nlvr2" / "dev.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"dev\.json, line 2"):
        task.read(data, "dev")


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.booleans(), st.booleans()
        ),
        min_size=1,
        unique_by=lambda row: row[:3],
    )
)
def test_score_is_the_official_one(rows):
    """Against a slow statement of the rule: group the lines by what is left without the pair."""
    task = NLVR2(["False", "True"])
    examples = []
    for number, pair, sentence, label, _ in rows:
        entry = f"dev-{number}-{pair}-{sentence}"
        examples.append(_example(task, entry, str(label)))
    predicted = [str(answer) for *_, answer in rows]
    scores = task.score(examples, predicted)
    right = [label == answer for *_, label, answer in rows]
    sentences = sorted({(number, sentence) for number, _, sentence, _, _ in rows})
    whole = [
        all(ok for ok, row in zip(right, rows, strict=True) if (row[0], row[2]) == which)
        for which in sentences
    ]
    assert scores["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert scores["consistency"] == pytest.approx(100 * sum(whole) / len(whole))


def _example(task, identifier, label):
    from gridvlp.train.tasks.nlvr2 import Truth
    from gridvlp.train.tasks.task import Example

    split, number, _, sentence = identifier.split("-")
    truth = Truth(label, f"{split}-{number}-{sentence}")
    return Example(identifier, "s", ("l", "r"), ((int(label == "True"), 1.0),), "", truth)


def test_majority_is_the_commonest_training_label(task):
    train = [_example(task, f"train-{i}-0-0", "False" if i < 3 else "True") for i in range(5)]
    test = [_example(task, f"dev-{i}-0-0", "False" if i < 1 else "True") for i in range(4)]
    assert task.majority(train, test) == 25.0
    with pytest.raises(UserError, match="No training line"):
        task.majority([], test)


def test_submission(task, tmp_path):
    task.write_submission(tmp_path / "p.csv", ["dev-1-0-0", "dev-1-1-0"], ["True", "False"])
    assert (tmp_path / "p.csv").read_text() == "dev-1-0-0,True\ndev-1-1-0,False\n"
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    with pytest.raises(UserError, match="twice"):
        task.write_submission(tmp_path / "p.csv", ["a", "a"], ["True", "False"])
    with pytest.raises(UserError, match="cannot be written"):
        task.write_submission(tmp_path / "no" / "p.csv", ["a"], ["True"])


def test_loss_is_cross_entropy(task):
    torch = pytest.importorskip("torch")
    logits_BA = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    targets_BA = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    expected = (np.log(2) + np.log(1 + np.exp(-2))) / 2
    assert task.loss(logits_BA, targets_BA).item() == pytest.approx(expected)


def test_real_lines(shared_data, task):
    for split in ("dev", "test1"):
        read = task.read(shared_data, split)
        assert read.report.lines == read.report.used == 8
        assert task.score(read.examples, [e.truth.label for e in read.examples]) == {
            "accuracy": 100.0,
            "consistency": 100.0,
        }
        answers = ["True"] * 8
        assert task.score(read.examples, answers) == {"accuracy": 50.0, "consistency": 0.0}
    assert [path.name for path in task.missing(shared_data, "train")] == ["train.json"]


def test_a_misspelt_task_gets_a_suggestion():
    with pytest.raises(UserError, match=r"no task 'nvlr2'.*Did you mean nlvr2"):
        get_task("nvlr2")
    with pytest.raises(UserError, match="vqa, gqa, nlvr2"):
        get_task("captioning")
