import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from gridvlp.sample.questions import GQA_SHARES, VG_SHARES, VQA_SHARES, balanced_questions
from gridvlp.sample.scene import COLOURS, MATERIALS, SHAPES, SIZES, draw_scene
from gridvlp.sample.statements import SHARES, choose_statements, statements
from gridvlp.sample.vqa import question_type

WOOD = {"wood": "wooden"}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([9, i])) for i in range(500)]


def truth_of_question(text, scene):
    """The answer, from the words of the question alone; knows nothing of kinds and templates."""
    words = [w[:-1] if w[:-1] in SHAPES else w for w in re.findall(r"\w+", text.lower())]
    shapes = [w for w in words if w in SHAPES]
    colours = [w for w in words if w in COLOURS]
    materials = [w for w in words if w in (*MATERIALS, "wood")]
    sizes = [w for w in words if w in SIZES]

    def having(*told):
        return [
            t
            for t in scene.things
            if {WOOD.get(w, w) for w in told} <= {t.shape, t.colour, t.material, t.size}
        ]

    def said(material):
        return "wood" if material == "wooden" else material

    if words[:2] == ["how", "many"]:
        return str(len(having(shapes[0])))
    if "same" in words:
        return "yes" if having(shapes[0])[0].colour == having(shapes[1])[0].colour else "no"
    if words[0] == "what" and not shapes:
        return having(colours[0])[0].shape
    if words[0] == "what":
        (thing,) = having(shapes[0])
        return said(thing.material) if "material" in words else thing.colour
    if words[0] == "how":
        return having(shapes[0])[0].size
    if "or" in words and len(shapes) == 1:
        (thing,) = having(shapes[0])
        assert (thing.colour in colours) or (said(thing.material) in materials)
        return thing.colour if colours else said(thing.material)
    if words[0] in ("is", "does") and words[1] in ("the", "this"):
        (thing,) = having(shapes[0])
        return "yes" if thing in having(*colours, *materials, *sizes) else "no"
    if len(shapes) == 2:
        found = [bool(having(shape)) for shape in shapes]
        return "yes" if (any(found) if "or" in words else all(found)) else "no"
    return "yes" if having(*shapes, *colours, *materials) else "no"


@pytest.mark.parametrize(("shares", "each"), [(VQA_SHARES, 9), (GQA_SHARES, 9), (VG_SHARES, 5)])
def test_answers_are_true_and_even_for_each_wording(scenes, shares, each):
    questions = balanced_questions(scenes, shares, each, np.random.default_rng(0))
    assert 0.75 * each < len(questions) / len(scenes) <= 1.05 * each
    by_text = defaultdict(Counter)
    kinds = Counter()
    for question in questions:
        assert truth_of_question(question.text, scenes[question.scene]) == question.answer, question
        by_text[question.text][question.answer] += 1
        kinds[question.kind] += 1
    assert set(kinds) == set(shares)
    for text, answers in by_text.items():
        assert len(answers) > 1, text
        assert len(set(answers.values())) == 1, (text, answers)
    assert len({(q.scene, q.kind, q.arguments) for q in questions}) == len(questions)


@pytest.mark.parametrize("shares", [VQA_SHARES, GQA_SHARES])
def test_about_half_are_yes_or_no_and_few_are_hard(scenes, shares):
    assert sum(shares.values()) == pytest.approx(1)
    questions = balanced_questions(scenes, shares, 9, np.random.default_rng(0))
    binary = np.mean([q.answer in ("yes", "no") for q in questions])
    hard = np.mean([q.kind in ("count", "same color", "and", "or") for q in questions])
    assert 0.45 < binary < 0.58
    assert hard <= 0.2


def test_there_are_two_wordings_of_a_question(scenes):
    questions = balanced_questions(scenes, VQA_SHARES, 9, np.random.default_rng(0))
    texts = defaultdict(set)
    for question in questions:
        texts[question.kind, question.arguments].add(question.text)
    assert {kind for (kind, _), said in texts.items() if len(said) == 2} == set(VQA_SHARES)


def test_the_vqa_question_type_tells_which_answers_are_possible(scenes):
    """So that the majority of a type is what a text alone can give."""
    questions = balanced_questions(scenes, VQA_SHARES, 9, np.random.default_rng(0))
    answers = defaultdict(lambda: defaultdict(set))
    for question in questions:
        kind = question_type(question.text)
        assert question.text.lower().startswith(f"{kind} ")
        answers[kind][question.text].add(question.answer)
    for kind, texts in answers.items():
        assert len({frozenset(given) for given in texts.values()}) == 1, (kind, texts)


def truth_of_statement(text, left, right):
    """Whether the sentence is true, from its words alone."""
    words = [w[:-1] if w[:-1] in SHAPES else w for w in re.findall(r"\w+", text.lower())]
    told = [w for w in words if w in (*SHAPES, *COLOURS, *MATERIALS, *SIZES)]

    def count(scene):
        return sum({*told} <= {t.shape, t.colour, t.material, t.size} for t in scene.things)

    if "more" in words:
        more, fewer = [left, right] if words.index("left") < words.index("right") else [right, left]
        return len(more.things) > len(fewer.things)
    sides = [left] if "left" in words else [right] if "right" in words else [left, right]
    if len(sides) == 1:
        (side,) = sides
        if "everything" in words or words[0] == "all":
            return count(side) == len(side.things)
        if "nothing" in words or words[0] == "no":
            return count(side) == 0
        return count(side) == 2 if "exactly" in words else count(side) > 0
    images = sum(count(side) > 0 for side in sides)
    if "both" in words:
        return images == 2
    return images == 1 if "exactly" in words else images >= 1


def test_every_statement_means_what_it_says(scenes):
    pairs = list(zip(scenes[::2], scenes[1::2], strict=True))[:60]
    texts = set()
    for kind, said, true in statements():
        assert kind in SHARES
        for text in said:
            assert text not in texts, "said twice"
            texts.add(text)
            for left, right in pairs:
                assert true(left, right) == truth_of_statement(text, left, right), text


def test_statements_are_true_of_half_of_their_pairs(scenes):
    pairs = list(zip(scenes[::2], scenes[1::2], strict=True))
    rng = np.random.default_rng(1)
    chosen_kinds = Counter()
    kind_of = {text: kind for kind, said, _ in statements() for text in said}
    for start in range(0, 240, 4):
        of_set = pairs[start : start + 4]
        chosen = choose_statements(of_set, 7, rng)
        assert len({text for text, _ in chosen}) == 7
        for text, truths in chosen:
            assert sum(truths) == 2
            assert truths == [truth_of_statement(text, *pair) for pair in of_set]
            chosen_kinds[kind_of[text]] += 1
    assert set(chosen_kinds) == set(SHARES)
    hard = sum(chosen_kinds[kind] for kind in ("one image", "exactly", "more"))
    assert hard <= 0.2 * chosen_kinds.total()
