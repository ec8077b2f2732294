import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from gridvlp.errors import UserError
from gridvlp.train.answers import AnswerVocabulary
from gridvlp.train.corpus.cache import cache_folder
from gridvlp.train.corpus.corpus import SOURCES, Corpus


def put(data, name, value):
    path = data / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def vqa(data, split, image, answers, id):
    folder = "vqa/v2_OpenEnded_mscoco_{}_questions.json", "vqa/v2_mscoco_{}_annotations.json"
    entry = {"image_id": image, "question_id": id, "question": f"Is it {id}?"}
    put(data, folder[0].format(split), {"questions": [entry]})
    humans = [{"answer": answer} for answer in answers]
    put(data, folder[1].format(split), {"annotations": [{"question_id": id, "answers": humans}]})


@pytest.fixture
def data(tmp_path):
    """Photos 1-4 of COCO, 3 in minival; Visual Genome 20 = COCO 1, 21 = COCO 3, 22 and n5 alone."""
    data = tmp_path / "data"
    train = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"id": 100, "image_id": 1, "caption": " A red\n cup. "},
            {"id": 101, "image_id": 2, "caption": "Ein Hund – собака"},
            {"id": 102, "image_id": 1, "caption": "   "},
            {"id": 103, "image_id": 1, "caption": "A cup."},
        ],
    }
    val = {"images": [{"id": 3}], "annotations": [{"id": 104, "image_id": 3, "caption": "A cat."}]}
    put(data, "coco/annotations/captions_train2017.json", train)
    put(data, "coco/annotations/captions_val2017.json", val)
    again = {"images": [], "annotations": train["annotations"][:2]}  # the same ones in 2014's file
    put(data, "coco/annotations/captions_train2014.json", again)
    images = [(20, 1), (21, 3), (22, None)]
    put(data, "vg/image_data.json", [{"image_id": v, "coco_id": c} for v, c in images])
    regions = [
        {"id": v, "regions": [{"region_id": v, "image_id": v, "phrase": f"region of {v}"}]}
        for v in (20, 21, 22)
    ]
    put(data, "vg/region_descriptions.json", regions)
    qas = [{"qa_id": 1, "image_id": 22, "question": "How many?", "answer": "Two."}]
    put(data, "vg/question_answers.json", [{"id": 22, "qas": qas}])
    vqa(data, "train2014", 2, ["a dog"] * 8 + ["The Dog"] * 2, 200)
    vqa(data, "val2014", 3, ["yes"] * 10, 300)
    gqa = {
        "7": {"imageId": "n5", "question": "Is it grey?", "answer": "grey"},
        "8": {"imageId": "20", "question": "Is it red?", "answer": "red"},
    }
    put(data, "gqa/train_balanced_questions.json", gqa)
    put(data, "gqa/val_balanced_questions.json", {})
    return data


def content(corpus):
    assert list(corpus.sentences()) == [corpus.sentence(i) for i in range(len(corpus))]
    return {
        corpus.image_key(i): [
            (corpus.source_of(j), corpus.sentence(j)) for j in corpus.sentences_of(i)
        ]
        for i in range(corpus.images)
    }


def test_sentences_of_all_sources_are_grouped_by_photo(data):
    corpus = Corpus.build(data)
    assert content(corpus) == {
        "000000000001": [
            ("coco-captions", "A red cup."),
            ("coco-captions", "A cup."),
            ("vg-regions", "region of 20"),
            ("gqa", "Is it red?"),
        ],
        "000000000002": [("coco-captions", "Ein Hund – собака"), ("vqa", "Is it 200?")],
        "22": [("vg-regions", "region of 22"), ("vg-qa", "How many?")],
        "n5": [("gqa", "Is it grey?")],
    }
    assert len(corpus) == 9
    assert corpus.images == 4
    images = [corpus.image_of(j) for j in range(len(corpus))]
    assert images == [i for i in range(4) for _ in corpus.sentences_of(i)]
    assert corpus.images_of(np.arange(9)).tolist() == images
    assert corpus.offsets.tolist() == [0, 4, 6, 8, 9]
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            corpus.sentence(outside)


def test_the_held_out_part_is_minival_in_every_source(data):
    corpus = Corpus.build(data, part="held-out")
    sentences = [("coco-captions", "A cat."), ("vg-regions", "region of 21"), ("vqa", "Is it 300?")]
    assert content(corpus) == {"000000000003": sentences}
    train = Corpus.build(data)
    assert [asdict(e) for e in train.exclusions] == [
        {"rule": "COCO minival (COCO's 2017 val split)", "images": 1, "pairs": 3}
    ]
    leaky = Corpus.build(data, allow_leakage=True)
    assert len(leaky) == 12
    assert "leakage is allowed" in leaky.notes[-1]
    assert len({train.fingerprint, corpus.fingerprint, leaky.fingerprint}) == 3


def test_answers_are_normalised_and_soft(data):
    corpus = Corpus.build(data)
    assert corpus.answers.names == ("2", "dog", "gray", "red")  # "yes" is minival's
    found = {}
    for j in range(len(corpus)):
        classes, scores = corpus.answers_of(j)
        assert (classes.dtype, scores.dtype) == (np.int32, np.float32)
        if len(classes):
            found[corpus.sentence(j)] = {
                corpus.answers[c]: float(s) for c, s in zip(classes, scores, strict=True)
            }
    assert found == {
        "How many?": {"2": 1.0},
        "Is it 200?": {"dog": 1.0},
        "Is it grey?": {"gray": 1.0},
        "Is it red?": {"red": 1.0},
    }
    held_out = Corpus.build(data, part="held-out")
    assert held_out.answers.names == corpus.answers.names
    assert held_out.answers_of(2)[0].tolist() == []


def test_soft_scores_keep_every_answer_of_the_annotators(data):
    vqa(data, "train2014", 2, ["dog"] * 8 + ["puppy"] * 2, 200)
    corpus = Corpus.build(data, sources=["vqa"])
    classes, scores = corpus.answers_of(0)
    assert [corpus.answers[c] for c in classes] == ["dog", "puppy"]
    assert scores.tolist() == pytest.approx([1.0, 0.6])


def test_a_given_vocabulary_is_matched_in_normal_form(data):
    corpus = Corpus.build(data, answers=AnswerVocabulary(["grey", "the dog", "cat"]))
    classes = {corpus.sentence(j): corpus.answers_of(j)[0].tolist() for j in range(len(corpus))}
    assert classes["Is it grey?"] == [0]
    assert classes["Is it 200?"] == [1]
    assert classes["Is it red?"] == []
    assert {r.source: r.questions for r in corpus.report}["gqa"] == 1


def test_what_the_store_lacks_is_counted(data):
    photos = {"20", "000000000003", "n5"}  # COCO 1 has only Visual Genome's map
    corpus = Corpus.build(data, photos)
    assert list(content(corpus)) == ["20", "n5"]
    rows = {row.source: row for row in corpus.report}
    captions = rows["coco-captions"]
    assert (captions.pairs, captions.images, captions.empty) == (2, 1, 1)
    assert (captions.without_photo, captions.images_without_photo) == (1, 1)
    assert (captions.excluded, captions.images_excluded) == (1, 1)
    assert (rows["vqa"].pairs, rows["vqa"].without_photo, rows["vqa"].excluded) == (0, 1, 1)
    assert (rows["gqa"].pairs, rows["gqa"].questions) == (2, 2)
    assert (rows["vqa"].questions, rows["vg-qa"].questions) == (0, 0)
    assert len(Corpus.build(data, set())) == 0
    assert Corpus.build(data).fingerprint == corpus.fingerprint


def test_absent_sources_are_reported(data):
    (data / "vg" / "region_descriptions.json").unlink()
    (data / "vqa" / "v2_mscoco_train2014_annotations.json").unlink()
    rows = {row.source: row for row in Corpus.build(data).report}
    assert list(rows) == list(SOURCES)
    assert rows["vg-regions"].files == ()
    assert rows["vg-regions"].absent == ("region_descriptions.json",)
    assert rows["vqa"].pairs == 0  # questions without their annotations are not read
    assert rows["vqa"].files[0].endswith("val2014_questions.json")


def test_the_cache_follows_the_files(data):
    first = Corpus.build(data)
    folder = data / ".gridvlp-cache"
    before = sorted(folder.iterdir())
    assert len(before) == 1
    stamps = [path.stat().st_mtime_ns for path in before[0].iterdir()]
    assert content(Corpus.build(data)) == content(first)
    assert [path.stat().st_mtime_ns for path in before[0].iterdir()] == stamps
    put(data, "gqa/train_balanced_questions.json", {})
    second = Corpus.build(data)
    assert len(second) == 7
    assert second.fingerprint != first.fingerprint
    assert len(first) == 9
    assert first.sentence(0) == "A red cup."
    assert sorted(path.name[0] for path in folder.iterdir()) == ["c", "c"]  # nothing half-written


def test_a_file_changed_within_its_size_is_read_again(data):
    assert "A red cup." in {s for rows in content(Corpus.build(data)).values() for _, s in rows}
    path = data / "coco/annotations/captions_train2017.json"
    stamp = path.stat().st_mtime_ns + 1_000_000
    path.write_text(path.read_text().replace("red", "big"))
    os.utime(path, ns=(stamp, stamp))
    assert "A big cup." in {s for rows in content(Corpus.build(data)).values() for _, s in rows}


def test_a_build_that_fails_leaves_nothing(data):
    path = data / "vg" / "region_descriptions.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"region_descriptions\.json is not whole JSON"):
        Corpus.build(data)
    assert list((data / ".gridvlp-cache").iterdir()) == []


def test_a_read_only_data_folder_is_left_alone(data, tmp_path, monkeypatch):
    monkeypatch.delenv("GRIDVLP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data.chmod(0o555)
    try:
        assert cache_folder(data) == tmp_path / "cache" / "gridvlp"
        assert len(Corpus.build(data)) == 9
        assert not (data / ".gridvlp-cache").exists()
    finally:
        data.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "coco/annotations/captions_train2017.json",
            "caption",
            "text",
            r'entry 0 \(id \d+\) has no "caption"',
        ),
        ("vg/question_answers.json", '"qas"', '"pairs"', r'entry 0 \(id \d+\) has no "qas"'),
        ("gqa/train_balanced_questions.json", "imageId", "image", 'entry 7 has no "imageId"'),
        ("coco/annotations/captions_val2017.json", '"image_id": 3', '"image_id": "x"', "integer"),
    ],
)
def test_files_of_another_format_are_named(data, name, old, new, said):
    path = data / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=said) as error:
        Corpus.build(data)
    assert path.name in str(error.value)


def test_bad_requests(data, tmp_path):
    with pytest.raises(UserError, match="no source 'coco'"):
        Corpus.build(data, sources=["coco"])
    with pytest.raises(UserError, match="no part 'test'"):
        Corpus.build(data, part="test")
    with pytest.raises(UserError, match=r"none of the files to pre-train on.*docs/data\.md"):
        Corpus.build(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Corpus.build(data, cache=tmp_path / "file")


def test_odd_sentences(data):
    odd = [None, 7, "\ud83d half a pair", "word " * 10_000, "<b>&amp;</b>"]
    annotations = [{"id": i, "image_id": 1, "caption": caption} for i, caption in enumerate(odd)]
    captions = {"images": [], "annotations": annotations}
    put(data, "coco/annotations/captions_train2017.json", captions)
    (data / "coco/annotations/captions_train2014.json").unlink()
    corpus = Corpus.build(data, sources=["coco-captions"])
    assert corpus.report[0].empty == 2
    texts = [corpus.sentence(j) for j in corpus.sentences_of(0)]
    assert texts == ["? half a pair", "word " * 9_999 + "word", "<b>&amp;</b>"]
    assert corpus.answers is None


def test_two_builds_are_the_same_bytes(data, tmp_path):
    for name in ("a", "b"):
        script = (
            "from gridvlp.train.corpus.corpus import Corpus; import sys;"
            f"Corpus.build({str(data)!r}, cache={str(tmp_path / name)!r});"
            "assert 'torch' not in sys.modules"
        )
        environment = os.environ | {"PYTHONHASHSEED": "1" if name == "a" else "2"}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    (a,), (b,) = ((tmp_path / name).iterdir() for name in ("a", "b"))
    assert a.name == b.name
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes()


def test_real_data(shared_data, tmp_path):
    train = Corpus.build(shared_data, cache=tmp_path)
    held_out = Corpus.build(shared_data, cache=tmp_path, part="held-out")
    rows = {row.source: row for row in train.report}
    assert rows["coco-captions"].pairs == 400
    assert rows["vqa"].questions == 146
    assert rows["gqa"].pairs == 2
    assert rows["vg-qa"].excluded == 8  # no image_data.json says whose photos these are
    assert (len(train), len(held_out)) == (548, 395)
    assert not {train.image_key(i) for i in range(train.images)} & {
        held_out.image_key(i) for i in range(held_out.images)
    }
