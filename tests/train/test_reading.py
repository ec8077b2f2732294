"""The tasks' and the corpora's files are read as they are, or refused with the place named."""

import json
from typing import Any

import pytest

from gridvlp.data.image_ids import ImageIds
from gridvlp.errors import UserError
from gridvlp.train.corpus.corpus import Corpus
from gridvlp.train.tasks import get_task

QUESTIONS = "vqa/v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "vqa/v2_mscoco_{}_annotations.json"


def put(data, name, value, mark=""):
    path = data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mark + (value if isinstance(value, str) else json.dumps(value)), "utf-8")
    return path


def question(id: Any, image: Any = 1, **more: Any) -> dict[str, Any]:
    return {"question_id": id, "image_id": image, "question": f"Is it {id}?"} | more


def annotation(id: Any, **more: Any) -> dict[str, Any]:
    answers = [{"answer": "net", "answer_id": n} for n in range(1, 11)]
    return {"question_id": id, "answers": answers, "multiple_choice_answer": "net"} | more


def vqa(data, questions, annotations, mark=""):
    put(data, QUESTIONS.format("train2014"), {"questions": questions}, mark)
    put(data, ANNOTATIONS.format("train2014"), {"annotations": annotations}, mark)
    return data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": None}, r'has a "answers" that is not a list: null'),
        ({"answers": 3}, r'has a "answers" that is not a list: 3'),
        ({"answers": "net"}, r'has a "answers" that is not a list: "net"'),
        ({"answers": {"answer": "net"}}, "not a list"),
        ({"answers": [{"answer": None}] * 10}, r'has a "answer" that is not text: null'),
        ({"answers": [{"answer": 3}]}, r'has a "answer" that is not text: 3'),
        ({"answers": ["net"]}, r'has no "answer"'),
        ({"question_id": "2"}, r'has a "question_id" that is not an integer: "2"'),
        ({"question_id": 2.0}, r'has a "question_id" that is not an integer: 2.0'),
        ({"question_type": 7}, r'has a "question_type" that is not text: 7'),
    ],
)
def test_a_vqa_annotation_of_another_kind_is_named(tmp_path, change, said):
    data = vqa(tmp_path, [question(1), question(2)], [annotation(1), annotation(2) | change])
    with pytest.raises(UserError, match=rf"train2014_annotations\.json, entry 1 .*{said}"):
        get_task("vqa", ["net"]).read(data, "train")
    if "question_type" in change:
        return
    with pytest.raises(UserError, match=rf"train2014_annotations\.json, entry 1 .*{said}"):
        Corpus.build(data, sources=["vqa"])


def test_the_classes_are_made_of_text_alone(tmp_path):
    for change in ({"multiple_choice_answer": 3}, {"multiple_choice_answer": None, "answers": 3}):
        data = vqa(tmp_path, [question(1)], [annotation(1) | change])
        with pytest.raises(UserError, match=r"annotations\.json, entry 0 .* that is not"):
            get_task("vqa").build_answers(data)
    vqa(tmp_path, [question(1)], [annotation(1, multiple_choice_answer=None)])
    assert get_task("vqa").build_answers(tmp_path) == ("net",)


@pytest.mark.parametrize("key", ["question_id", "image_id"])
@pytest.mark.parametrize("value", [None, "2", 2.5, 2.0, True, [2]])
def test_a_vqa_question_with_another_kind_of_id_is_named(tmp_path, key, value):
    data = vqa(tmp_path, [question(1), question(2) | {key: value}], [annotation(1)])
    said = rf'train2014_questions\.json, entry 1 .*has a "{key}" that is not an integer'
    with pytest.raises(UserError, match=said):
        get_task("vqa", ["net"]).read(data, "train")
    with pytest.raises(UserError, match=said):
        Corpus.build(data, sources=["vqa"])


@pytest.mark.parametrize("more", [{}, {"question": "Another?"}])
def test_a_vqa_question_that_stands_twice_is_named(tmp_path, more):
    data = vqa(tmp_path, [question(1), question(2), question(1, **more)], [annotation(1)])
    said = r"train2014_questions\.json has .*1\"? twice, in entries 0 and 2"
    with pytest.raises(UserError, match=said):
        get_task("vqa", ["net"]).read(data, "train")
    with pytest.raises(UserError, match=said):
        Corpus.build(data, sources=["vqa"])


@pytest.mark.parametrize("more", [{}, {"answers": []}])
def test_a_vqa_annotation_that_stands_twice_is_named(tmp_path, more):
    data = vqa(tmp_path, [question(1)], [annotation(1), annotation(2), annotation(1, **more)])
    said = r"train2014_annotations\.json has question_id 1 twice, in entries 0 and 2"
    with pytest.raises(UserError, match=said):
        get_task("vqa", ["net"]).read(data, "train")
    with pytest.raises(UserError, match=said):
        Corpus.build(data, sources=["vqa"])


@pytest.mark.parametrize("value", [-1, 10**12])
def test_an_image_id_that_coco_cannot_have_is_named(tmp_path, value):
    data = vqa(tmp_path, [question(1, value)], [annotation(1)])
    said = (
        rf"train2014_questions\.json, entry 0 .*not an integer from 0 to 999,999,999,999: {value}"
    )
    with pytest.raises(UserError, match=said):
        get_task("vqa", ["net"]).read(data, "train")
    with pytest.raises(UserError, match=said):
        Corpus.build(data, sources=["vqa"])


def test_the_entries_of_a_part_of_a_file_have_the_numbers_of_the_file(tmp_path):
    put(tmp_path, "coco/annotations/captions_val2017.json", {"images": [{"id": 7}]})
    lines = [question(1, 5), question(2, 7), question(3, 5), question(2, 7)]
    put(tmp_path, QUESTIONS.format("val2014"), {"questions": lines})
    put(tmp_path, ANNOTATIONS.format("val2014"), {"annotations": [annotation(2)]})
    with pytest.raises(UserError, match=r'the id "2" twice, in entries 1 and 3'):
        get_task("vqa", ["net"]).read(tmp_path, "minival")
    assert len(get_task("vqa", ["net"]).read(tmp_path, "nominival").examples) == 2


def gqa(**more: Any) -> dict[str, Any]:
    return {
        "imageId": "n1",
        "question": "What is it?",
        "answer": "cup",
        "isBalanced": True,
        "entailed": ["8"],
        "groups": {"global": "thing"},
        "types": {"structural": "query", "semantic": "rel", "detailed": "relS"},
    } | more


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imageId": None}, 'has a "imageId" that is not a name: null'),
        ({"imageId": 1.5}, 'has a "imageId" that is not a name: 1.5'),
        ({"imageId": ""}, 'has a "imageId" that is not a name: ""'),
        ({"answer": 3}, 'has a "answer" that is not text: 3'),
        ({"answer": ["cup"]}, 'has a "answer" that is not text'),
        ({"isBalanced": "false"}, 'has a "isBalanced" that is not 0, 1, true or false: "false"'),
        ({"entailed": [8]}, 'has a "entailed" that is not a list of texts: [8]'),
        ({"groups": "thing"}, 'has a "groups" that is not an object: "thing"'),
        ({"groups": {"global": 3}}, 'has a "global" that is not text: 3'),
        ({"types": {"structural": 1}}, 'has a "structural" that is not text: 1'),
    ],
)
def test_a_gqa_question_of_another_kind_is_named(tmp_path, change, said):
    put(tmp_path, "gqa/testdev_balanced_questions.json", {"7": gqa(), "9": gqa(**change)})
    with pytest.raises(UserError) as told:
        get_task("gqa", ["cup"]).read(tmp_path, "testdev")
    assert "testdev_balanced_questions.json, entry 9" in str(told.value)
    assert said in str(told.value)


def test_gqa_photos_may_be_numbers(tmp_path):
    put(tmp_path, "gqa/testdev_balanced_questions.json", {"7": gqa(imageId=2345)})
    (example,) = get_task("gqa", ["cup"]).read(tmp_path, "testdev").examples
    assert example.images == ("2345",)
    for image in ("9" * 5000, "٣"):  # no photo has this number, and it may be a name
        put(tmp_path, "gqa/testdev_balanced_questions.json", {"7": gqa(imageId=image)})
        (example,) = get_task("gqa", ["cup"]).read(tmp_path, "testdev").examples
        assert example.images == (image,)
        put(tmp_path, "gqa/train_balanced_questions.json", {"7": gqa(imageId=image)})
        assert len(Corpus.build(tmp_path, sources=["gqa"], allow_leakage=True)) == 1


def test_a_gqa_question_that_stands_twice_is_named(tmp_path):
    entry = json.dumps(gqa())
    text = f'{{"7": {entry}, "8": {entry}, "7": {entry}}}'
    put(tmp_path, "gqa/train_balanced_questions.json", text)
    said = r'train_balanced_questions\.json has .* "7" twice, in entries 0 and 2'
    with pytest.raises(UserError, match=said):
        get_task("gqa", ["cup"]).read(tmp_path, "train")
    with pytest.raises(UserError, match=said):
        Corpus.build(tmp_path, sources=["gqa"])


def test_gqa_choices_are_texts(tmp_path):
    put(tmp_path, "gqa/testdev_balanced_questions.json", {"7": gqa()})
    for value in ("cup", [3], None):
        put(tmp_path, "gqa/testdev_choices.json", {"7": {"valid": value, "plausible": ["cup"]}})
        with pytest.raises(UserError, match=r'choices\.json, entry 7 has a "valid" that is not'):
            get_task("gqa", ["cup"]).read(tmp_path, "testdev")


def nlvr2(identifier: Any, **more: Any) -> dict[str, Any]:
    return {"identifier": identifier, "sentence": "Two dogs.", "label": "True"} | more


def write_lines(data, lines, mark=""):
    put(data, "nlvr2/dev.json", "\n".join(map(json.dumps, lines)) + "\n", mark)
    return data


def test_nlvr2_lines_of_another_kind_are_named(tmp_path):
    for line, said in (
        (nlvr2(5), 'has a "identifier" that is not text: 5'),
        (nlvr2("850"), "NLVR2 identifier '850' is not of the form"),
        (nlvr2(None), 'has a "identifier" that is not text: null'),
        (nlvr2("dev-1-0-0", label=1), 'has a "label" that is not True or False: 1'),
        (nlvr2("dev-1-0-0", label="yes"), "is not True or False: 'yes'"),
    ):
        write_lines(tmp_path, [nlvr2("dev-0-0-0"), line])
        with pytest.raises(UserError) as told:
            get_task("nlvr2", ["False", "True"]).read(tmp_path, "dev")
        assert "nlvr2/dev.json," in str(told.value)
        assert "line 2" in str(told.value)
        assert said in str(told.value)


def test_nlvr2_labels_may_be_json_s_own(tmp_path):
    task = get_task("nlvr2", ["False", "True"])
    lines = [nlvr2("dev-0-0-0", label=True), nlvr2("dev-0-0-1", label=False)]
    examples = task.read(write_lines(tmp_path, lines), "dev").examples
    assert [example.truth.label for example in examples] == ["True", "False"]


def test_an_nlvr2_line_that_stands_twice_is_named(tmp_path):
    lines = [nlvr2("dev-0-0-0"), nlvr2("dev-0-0-1"), nlvr2("dev-0-0-0", sentence="")]
    with pytest.raises(
        UserError, match=r'dev\.json has the id "dev-0-0-0" twice, in entries 1 and 3'
    ):
        get_task("nlvr2", ["False", "True"]).read(write_lines(tmp_path, lines), "dev")


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    mark = "\ufeff"
    vqa(tmp_path, [question(1)], [annotation(1)], mark)
    put(tmp_path, "gqa/testdev_balanced_questions.json", {"7": gqa()}, mark)
    write_lines(tmp_path, [nlvr2("dev-0-0-0")], mark)
    put(tmp_path, "answers.json", ["net", "cup"], mark)
    put(tmp_path, "vg/image_data.json", [{"image_id": 5, "coco_id": 6}], mark)
    for name, split in (("vqa", "train"), ("gqa", "testdev"), ("nlvr2", "dev")):
        task = get_task(name)
        if name != "gqa":
            task.build_answers(tmp_path)
        else:
            task = get_task(name, ["cup"])
        assert len(task.read(tmp_path, split).examples) == 1
    assert ImageIds(tmp_path / "vg").visual_genome(5) == ("5", "000000000006")
    assert len(Corpus.build(tmp_path, sources=["vqa"], allow_leakage=True)) == 1


def test_a_caption_that_stands_twice_in_a_file_is_named(tmp_path):
    captions = [{"id": 1, "image_id": 1, "caption": "a"}, {"id": 1, "image_id": 2, "caption": "b"}]
    put(
        tmp_path,
        "coco/annotations/captions_train2017.json",
        {"images": [], "annotations": captions},
    )
    with pytest.raises(UserError, match="annotation id 1 twice, in entries 0 and 1"):
        Corpus.build(tmp_path, sources=["coco-captions"])


def test_visual_genome_s_answers_are_text(tmp_path):
    qas = [{"qa_id": 9, "image_id": 22, "question": "How many?", "answer": 2}]
    put(tmp_path, "vg/question_answers.json", [{"id": 22, "qas": qas}])
    with pytest.raises(UserError, match=r'entry 0 \(qa_id 9\) has a "answer" that is not text: 2'):
        Corpus.build(tmp_path, sources=["vg-qa"])
    put(tmp_path, "vg/question_answers.json", [{"id": 22, "qas": [5]}])
    with pytest.raises(UserError, match=r"question_answers\.json, entry 0 has no"):
        Corpus.build(tmp_path, sources=["vg-qa"])


def test_a_photo_that_stands_twice_in_image_data_is_named(tmp_path):
    images = [{"image_id": 5, "coco_id": 6}, {"image_id": 5, "coco_id": 7}]
    put(tmp_path, "image_data.json", images)
    with pytest.raises(
        UserError, match=r"image_data\.json has image_id 5 twice, in entries 0 and 1"
    ):
        ImageIds(tmp_path).visual_genome(5)
    for value in ("6", 6.5, True, -1, 10**12):
        put(tmp_path, "image_data.json", [{"image_id": 5, "coco_id": value}])
        with pytest.raises(UserError, match=r'entry 0 \(image_id 5\) has a "coco_id" that is not'):
            ImageIds(tmp_path).visual_genome(5)
