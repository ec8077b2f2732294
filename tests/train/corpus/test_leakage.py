import json

import pytest

from gridvlp.data.image_ids import ImageIds
from gridvlp.errors import UserError
from gridvlp.train.corpus.leakage import (
    FREE,
    GQA_TEST,
    MINIVAL,
    UNKNOWN,
    VAL2014,
    VQA_TEST,
    Guard,
    guard_files,
    minival,
)
from gridvlp.train.tasks import get_task


@pytest.fixture
def data(tmp_path):
    for folder in ("coco/annotations", "vqa", "gqa", "vg"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def put(data, name, value):
    (data / name).write_text(json.dumps(value))


def captions(data, split, images):
    put(data, f"coco/annotations/captions_{split}.json", {"images": [{"id": i} for i in images]})


def questions(data, split, images):
    entries = [{"image_id": image, "question_id": image} for image in images]
    put(data, f"vqa/v2_OpenEnded_mscoco_{split}_questions.json", {"questions": entries})


def vg(data, coco_ids):
    put(data, "vg/image_data.json", [{"image_id": v, "coco_id": c} for v, c in coco_ids.items()])


def rule(data, *keys):
    guard = Guard(data, ImageIds(data / "vg"))
    return [guard.rule(key) for key in keys]


def test_minival_is_the_2017_validation_split(data):
    captions(data, "val2017", [1, 2])
    questions(data, "val2014", [1, 2, 3])
    assert minival(data) == {1, 2}
    assert rule(data, "000000000001", "000000000003", "000000000004") == [MINIVAL, FREE, FREE]


def test_instances_list_minival_too(data):
    put(data, "coco/annotations/instances_val2017.json", {"images": [{"id": 5}]})
    assert rule(data, "000000000005", "000000000003") == [MINIVAL, FREE]


def test_with_the_2014_files_alone_all_of_val2014_is_held_out(data):
    captions(data, "train2014", [1])
    captions(data, "val2014", [2])
    questions(data, "val2014", [3])
    assert minival(data) is None
    keys = [f"{i:012d}" for i in (1, 2, 3, 4)]
    assert rule(data, *keys) == [FREE, VAL2014, VAL2014, UNKNOWN]
    assert any("all of val2014" in note for note in Guard(data, ImageIds(data / "vg")).notes)


def test_test_photos_are_held_out_whichever_set_speaks_of_them(data):
    captions(data, "val2017", [1])
    questions(data, "test2015", [7])
    put(data, "gqa/testdev_balanced_questions.json", {"q": {"imageId": "n5"}, "r": {"imageId": 20}})
    put(data, "gqa/test_all_questions.json", {"q": {"imageId": "2345"}})
    vg(data, {20: 8, 2345: None, 30: 9})
    keys = ["000000000007", "n5", "000000000008", "2345", "n6", "000000000009"]
    assert rule(data, *keys) == [VQA_TEST, GQA_TEST, GQA_TEST, GQA_TEST, FREE, FREE]


@pytest.mark.parametrize("split", ["testdev", "test", "challenge", "submission"])
def test_all_files_of_a_gqa_test_split_are_held_out(data, split):
    captions(data, "val2017", [1])
    vg(data, {20: 8, 30: None, 40: 9})
    put(data, f"gqa/{split}_balanced_questions.json", {"q": {"imageId": "20"}})
    assert rule(data, "000000000008", "30", "000000000009") == [GQA_TEST, FREE, FREE]
    put(data, f"gqa/{split}_all_questions.json", {"q": {"imageId": "30"}, "r": {"imageId": "40"}})
    assert rule(data, "000000000008", "30", "000000000009") == [GQA_TEST] * 3
    assert len(guard_files(data)) == 4


def test_the_files_of_every_test_split_of_the_tasks_are_read(data):
    """Whatever a task can be measured on, its photos are known to the guard."""
    captions(data, "val2017", [1])
    put(data, "vg/image_data.json", [])
    for name in ("vqa", "gqa"):
        task = get_task(name, ["yes"])
        trained = {*task.train_splits, "val", "val-all", "minival"}  # val: see the guard's note
        for split in (split for split in task.splits if split not in trained):
            for path in task.files(data, split):
                entry = {"image_id": 7, "question_id": 7, "imageId": "n7"}
                held = {"questions": [entry]} if name == "vqa" else {"q": entry}
                path.write_text(json.dumps(held))
                key = "000000000007" if name == "vqa" else "n7"
                assert rule(data, key) == [VQA_TEST if name == "vqa" else GQA_TEST], path
                assert path in guard_files(data)
                path.unlink()


def test_ids_of_another_kind_are_an_error_not_a_leak(data):
    captions(data, "val2017", [1])
    for entry in ({"imageId": None}, {"imageId": 2.5}, {}, None):
        put(data, "gqa/test_all_questions.json", {"q": entry})
        with pytest.raises(UserError, match=r"test_all_questions\.json, entry q"):
            Guard(data, ImageIds(data / "vg"))
    (data / "gqa/test_all_questions.json").unlink()
    captions(data, "val2017", ["1"])
    with pytest.raises(UserError, match=r'captions_val2017\.json, entry 0 \(id "1"\)'):
        Guard(data, ImageIds(data / "vg"))


def test_a_visual_genome_photo_of_unknown_origin_is_held_out(data):
    captions(data, "val2017", [1])
    assert rule(data, "2345", "n6") == [UNKNOWN, FREE]
    vg(data, {2345: None})
    assert rule(data, "2345", "2346") == [FREE, UNKNOWN]


def test_nothing_known_of_coco_holds_its_photos_out(data):
    vg(data, {2345: 1})
    assert rule(data, "000000000001") == [UNKNOWN]


def test_gqa_val_photos_that_are_trained_on_are_told(data):
    captions(data, "val2017", [1])
    vg(data, {20: 1, 30: 2})
    put(data, "gqa/val_balanced_questions.json", {"q": {"imageId": "20"}})
    assert Guard(data, ImageIds(data / "vg")).notes == []
    put(data, "gqa/val_balanced_questions.json", {"q": {"imageId": "20"}, "r": {"imageId": "30"}})
    (note,) = Guard(data, ImageIds(data / "vg")).notes
    assert "1 of the 2 photos of GQA's val split are trained on" in note


def test_every_file_that_decides_is_listed(data):
    captions(data, "val2017", [1])
    questions(data, "test2015", [7])
    put(data, "gqa/testdev_balanced_questions.json", {})
    vg(data, {})
    assert len(guard_files(data)) == 4


def test_a_cut_list_is_an_error_not_a_leak(data):
    captions(data, "val2017", [1, 2, 3])
    path = data / "coco/annotations/captions_val2017.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(UserError, match=r"captions_val2017\.json is not whole JSON"):
        Guard(data, ImageIds(data / "vg"))
