"""Text alone does not give the answer: not by type, not by exact wording, not across splits."""

from collections import Counter, defaultdict

import numpy as np
import pytest

WORDS = 400


def vqa(load, split):
    questions = load(f"vqa/v2_OpenEnded_mscoco_{split}_questions.json")["questions"]
    annotations = load(f"vqa/v2_mscoco_{split}_annotations.json")["annotations"]
    truths = {entry["question_id"]: entry for entry in annotations}
    return [
        (q["question"], t["question_type"], t["multiple_choice_answer"])
        for q in questions
        for t in [truths[q["question_id"]]]
    ]


def gqa(load, split):
    questions = load(f"gqa/{split}_balanced_questions.json").values()
    return [(q["question"], q["types"]["detailed"], q["answer"]) for q in questions]


def nlvr2(load, split):
    return [(line["sentence"], "", line["label"]) for line in load(f"nlvr2/{split}.json")]


TASKS = {
    "vqa": (vqa, "train2014", ("train2014", "val2014", "test2015")),
    "gqa": (gqa, "train", ("train", "val", "testdev")),
    "nlvr2": (nlvr2, "train", ("train", "dev", "test1")),
}


def learned(pairs):
    """The commonest answer for each text or type."""
    counts = defaultdict(Counter)
    for name, answer in pairs:
        counts[name][answer] += 1
    return {name: answers.most_common(1)[0][0] for name, answers in counts.items()}


@pytest.mark.parametrize("task", TASKS)
def test_a_table_of_texts_is_no_better_than_the_majority_of_the_type(load, task):
    read, train, splits = TASKS[task]
    by_text = learned((text, answer) for text, _, answer in read(load, train))
    by_type = learned((kind, answer) for _, kind, answer in read(load, train))
    test = read(load, splits[-1])
    table = np.mean([by_text.get(text, by_type.get(kind)) == a for text, kind, a in test])
    majority = np.mean([by_type.get(kind) == a for _, kind, a in test])
    assert table <= majority + 0.03
    assert majority < 0.55


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_even_for_each_text_in_each_split(load, task):
    read, _, splits = TASKS[task]
    for split in splits:
        counts = defaultdict(Counter)
        for text, _, answer in read(load, split):
            counts[text][answer] += 1
        for text, answers in counts.items():
            assert len(answers) > 1, (split, text)
            assert len(set(answers.values())) == 1, (split, text, answers)


def test_about_half_of_the_questions_are_yes_or_no(load):
    for read, _, splits in (TASKS["vqa"], TASKS["gqa"]):
        for split in splits:
            binary = [answer in ("yes", "no") for _, _, answer in read(load, split)]
            assert 0.44 < np.mean(binary) < 0.66, split


def test_a_test_split_asks_nothing_new(load):
    """Words and answers of the test splits occur in training: what is new is the photo."""
    for read, train, splits in TASKS.values():
        texts = {text for text, _, _ in read(load, train)}
        words = {word for text in texts for word in text.lower().strip("?.").split()}
        answers = {answer for _, _, answer in read(load, train)}
        for split in splits[1:]:
            for text, _, answer in read(load, split):
                assert set(text.lower().strip("?.").split()) <= words
                assert answer in answers


def test_the_vocabulary_is_small(load):
    texts = [text for read, train, _ in TASKS.values() for text, _, _ in read(load, train)]
    captions = load("coco/annotations/captions_train2017.json")["annotations"]
    texts += [entry["caption"] for entry in captions]
    texts += [r["phrase"] for e in load("vg/region_descriptions.json") for r in e["regions"]]
    words = {word for text in texts for word in text.lower().replace(",", "").strip("?.").split()}
    assert 50 < len(words) < WORDS
