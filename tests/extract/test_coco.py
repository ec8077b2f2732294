"""COCO-style files become boxes, with grid-feats-vqa's attribute_ids or without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gridvlp.errors import UserError
from gridvlp.extract.coco import photo_folders, read_coco
from gridvlp.extract.detector_training import train_extractor
from gridvlp.extract.options import TrainExtractorOptions
from gridvlp.extract.visual_genome import read_visual_genome
from gridvlp.extract.vocabulary import Vocabulary


def box(image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def write(path: Path, photos: range, annotations: list[dict[str, Any]], **more: Any) -> Path:
    """A file whose lists come in an unusual order, with its photos of 60 x 40."""
    folder = path.parent.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(exist_ok=True)
    for i in photos:
        Image.new("RGB", (60, 40), (i, 90, 90)).save(folder / f"{i}.jpg")
    images = [
        {"id": i, "file_name": f"../../images/{i}.jpg", "width": 60, "height": 40} for i in photos
    ]
    numbered = [{"id": i, **entry} for i, entry in enumerate(annotations)]
    held = {
        "info": {"year": 2020, "big": [[1, 2], {"a": [3]}]},
        "annotations": numbered,
        "images": images,
        "licenses": [],
        "categories": [{"id": 7, "name": "Dog"}, {"id": 3, "name": "cat"}],
        "version": 12345,
        **more,
    }
    path.write_text(json.dumps(held))
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """As grid-feats-vqa lays it out, with every oddity."""
    return write(
        tmp_path / "vg" / "annotations" / "visual_genome_train.json",
        range(1, 7),
        [
            box(2, 7, [50, 5, 30, 10], attribute_ids=[2, 0, 2]),  # clipped; 2 counts once
            box(1, 3, [0, 0, 10, 10], attribute_ids=list(range(20))),
            box(1, 7, [5, 5, 0.4, 10]),  # degenerate
            box(1, 7, [70, 5, 20, 10]),  # outside
            box(1, 7, [10, 10, 20, 20], attribute_ids=[]),
            box(3, 3, [0, 0, 50, 30], iscrowd=1),  # photo 3 has nothing else
            box(4, 3, [1, 2, 3, 0]),
            box(99, 3, [0, 0, 10, 10]),
            box(5, 3, [1.5, 2.5, 20, 20]),
            box(5, 7, [1, 1, 30, 30], iscrowd=1),
        ],
    )


def test_attributes_and_oddities(published: Path) -> None:
    (published.parent.parent / "images" / "6.jpg").unlink()
    data = read_coco([published], photo_folders([published]))
    assert [photo.image for photo in data] == [1, 2, 5]
    counts = data.counts
    assert (counts.photos, counts.boxes, counts.attributes) == (3, 4, 18)
    assert (counts.without_file, counts.without_boxes, counts.without_photo) == (1, 2, 1)
    assert (counts.degenerate, counts.clipped, counts.crowds) == (3, 1, 2)
    assert counts.attributes_cut == 1
    assert [words[0] for words in data.vocabulary.objects] == ["cat", "dog"]  # by number
    assert len(data.vocabulary.attributes) == 20
    first, second, fifth = data
    assert first.classes_N.tolist() == [0, 1]
    assert first.attributes_NM[0].tolist() == list(range(16))
    assert (first.attributes_NM[1] == -1).all()
    assert second.boxes_N4.tolist() == [[50, 5, 60, 15]]
    assert second.attributes_NM[0, :3].tolist() == [2, 0, -1]
    assert fifth.boxes_N4.tolist() == [[1.5, 2.5, 21.5, 22.5]]
    assert fifth.crowds_N4.tolist() == [[1, 1, 31, 31]]
    assert fifth.path == published.parent.parent / "images" / "5.jpg"  # not ../../images
    for text in ("3 boxes that are degenerate", "1 boxes cut to 16", "2 boxes of crowds"):
        assert text in " ".join(counts.lines())


def test_validation_keeps_photos_without_boxes(published: Path) -> None:
    data = read_coco([published], photo_folders([published]), keep_empty=True)
    assert [photo.image for photo in data] == [1, 2, 3, 4, 5, 6]
    assert data[3].boxes_N4.shape == (0, 4)
    assert data[2].crowds_N4.shape == (1, 4)


def test_the_second_reading_comes_from_the_cache(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_coco([published], photo_folders([published]))

    def never(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr("gridvlp.data.json_files.elements", never)
        again = read_coco([published], photo_folders([published]))
    assert again.counts == whole.counts
    assert again.vocabulary == whole.vocabulary
    for one, other in zip(again, whole, strict=True):
        assert np.array_equal(one.boxes_N4, other.boxes_N4)
        assert np.array_equal(one.attributes_NM, other.attributes_NM)
    changed = json.loads(published.read_text())
    changed["annotations"].pop()
    changed["annotations"].pop(1)
    published.write_text(json.dumps(changed))
    assert read_coco([published], photo_folders([published])).counts.boxes == whole.counts.boxes - 1


def test_several_files_are_one_set(published: Path, tmp_path: Path) -> None:
    other = write(
        tmp_path / "vg" / "annotations" / "visual_genome_val.json",
        range(11, 13),
        [box(11, 1, [0, 0, 9, 9]), box(12, 7, [0, 0, 9, 9])],
        categories=[{"id": 1, "name": "dog"}, {"id": 7, "name": "cow"}],
    )
    folders = photo_folders([published, other])
    assert folders == [tmp_path / "vg"]
    data = read_coco([published, other], folders)
    assert [words[0] for words in data.vocabulary.objects] == ["cat", "dog", "cow"]
    assert {photo.image: photo.classes_N.tolist() for photo in data}[11] == [1]
    assert {photo.image: photo.classes_N.tolist() for photo in data}[12] == [2]
    alone = read_coco([other], folders, read_coco([published], folders).vocabulary)
    assert alone.counts.outside_vocabulary == 1  # a cow
    same = write(tmp_path / "vg" / "annotations" / "c.json", range(1, 2), [])
    assert len(read_coco([published, same], folders)) == len(read_coco([published], folders))
    same.write_text(same.read_text().replace("images/1.jpg", "images/other.jpg"))
    with pytest.raises(
        UserError, match=r"image 1 is .*other\.jpg .* here and .*1\.jpg .* elsewhere"
    ):
        read_coco([published, same], folders)


def test_names_of_attributes(published: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary([["cat"], ["hound", "dog"]], [["red"], ["blue"], ["wet", "damp"]])
    data = read_coco([published], photo_folders([published]), vocabulary)
    assert data[1].classes_N.tolist() == [1]
    assert data[1].attributes_NM[0, :3].tolist() == [2, 0, -1]
    assert data.counts.attributes_outside == 17
    named = json.loads(published.read_text())
    named["attCategories"] = [{"id": 0, "name": "Damp"}, {"id": 2, "name": "red"}]
    other = tmp_path / "vg" / "annotations" / "named.json"
    other.write_text(json.dumps(named))
    data = read_coco([other], photo_folders([other]), vocabulary)
    assert data[1].attributes_NM[0, :3].tolist() == [0, 2, -1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"annotations": None}, 'has no "annotations"'),
        ({"images": None}, 'has no "images"'),
        ({"categories": None}, 'has no "categories"'),
        ({"categories": {"id": 3, "name": "cat"}}, 'not hold a list .*"categories"'),
        ({"categories": [{"id": "3", "name": "cat"}]}, r"categories\[0\] .* not an integer"),
        ({"categories": [{"id": 3, "name": None}]}, r"categories\[0\] \(id 3\) .*text: null"),
        (
            {"categories": [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]},
            r"categories id 3 twice, in entries categories\[0\] and categories\[1\]",
        ),
        ({"attCategories": [{"id": "a", "name": "red"}]}, r"attCategories\[0\] .*not an integer"),
        ({"attCategories": [{"id": 10**12, "name": "red"}]}, "from 0 to 99,999: 1000000000000"),
        ({"annotations": [{"image_id": 1, "caption": "a dog"}]}, 'has no "category_id"'),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    good = box(1, 3, [0, 0, 9, 9], attribute_ids=[0])
    path = write(tmp_path / "vg" / "annotations" / "a.json", range(1, 2), [good])
    held = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in held.items() if value is not None}))
    with pytest.raises(UserError, match=rf"a\.json.*{told}"):
        read_coco([path], photo_folders([path]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bbox": None}, 'has a "bbox" that is not a list of 4 numbers: null'),
        ({"bbox": []}, 'has a "bbox" that is not a list of 4 numbers: []'),
        ({"bbox": [0, 0, 1]}, 'has a "bbox" that is not a list of 4 numbers: [0, 0, 1]'),
        ({"bbox": [0, 0, 1, "5"]}, 'that is not a list of 4 numbers: [0, 0, 1, "5"]'),
        ({"bbox": {"x": 1}}, "that is not a list of 4 numbers"),
        ({"image_id": "1"}, 'has a "image_id" that is not an integer: "1"'),
        ({"image_id": 1.0}, 'has a "image_id" that is not an integer: 1.0'),
        ({"image_id": None}, 'has a "image_id" that is not an integer: null'),
        ({"category_id": 99}, 'has a "category_id" without a category: 99'),
        ({"category_id": "3"}, 'has a "category_id" that is not an integer: "3"'),
        ({"category_id": True}, 'has a "category_id" that is not an integer: true'),
        ({"iscrowd": "0"}, 'has a "iscrowd" that is not 0, 1, true or false: "0"'),
        ({"iscrowd": "false"}, 'has a "iscrowd" that is not 0, 1, true or false: "false"'),
        ({"iscrowd": 2}, 'has a "iscrowd" that is not 0, 1, true or false: 2'),
        ({"attribute_ids": [-1]}, 'has "attribute_ids" beyond'),
        ({"attribute_ids": [10**7]}, 'has "attribute_ids" beyond'),
        ({"attribute_ids": ["red"]}, 'that is not a list of integers: ["red"]'),
        ({"attribute_ids": 3}, "that is not a list of integers: 3"),
        ({"id": "img"}, 'has a "id" that is not an integer: "img"'),
    ],
)
def test_a_broken_annotation_is_left_out_and_named(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    broken = box(1, 3, [0, 0, 9, 9]) | change
    boxes = [box(1, 7, [1, 2, 10, 10]), broken, box(2, 3, [3, 4, 10, 10], iscrowd=False)]
    path = write(tmp_path / "vg" / "annotations" / "a.json", range(1, 3), boxes)
    data = read_coco([path], photo_folders([path]))
    assert data.counts.broken == 1
    assert [photo.boxes_N4.tolist() for photo in data] == [[[1, 2, 11, 12]], [[3, 4, 13, 14]]]
    text = "\n".join(data.counts.lines())
    assert "1 entries that are broken" in text
    id = json.dumps(change.get("id", 1))
    assert f"{path}, entry annotations[1] (id {id})" in text
    assert told in text
    assert read_coco([path], photo_folders([path])).counts == data.counts  # from the cache


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": "1"}, 'entry images[0] (id "1") has a "id" that is not an integer: "1"'),
        ({"id": None}, 'entry images[0] (id null) has a "id" that is not an integer: null'),
        ({"file_name": None}, 'entry images[0] (id 1) has a "file_name" that is not text: null'),
        ({"file_name": 1}, 'entry images[0] (id 1) has a "file_name" that is not text: 1'),
        ({"width": "60"}, 'that is not an integer from 0 to 16,777,215: "60"'),
        ({"height": 10**12}, "that is not an integer from 0 to 16,777,215: 1000000000000"),
    ],
)
def test_a_broken_image_is_left_out_and_named(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    boxes = [box(1, 7, [1, 2, 10, 10]), box(2, 3, [3, 4, 10, 10])]
    path = write(tmp_path / "vg" / "annotations" / "a.json", range(1, 3), boxes)
    held = json.loads(path.read_text())
    held["images"][0] |= change
    path.write_text(json.dumps(held))
    data = read_coco([path], photo_folders([path]))
    assert [photo.image for photo in data] == [2]
    assert (data.counts.broken, data.counts.without_photo) == (1, 1)
    assert told in "\n".join(data.counts.lines())


def test_the_fingerprint_knows_what_the_numbers_mean(published: Path) -> None:
    folders = photo_folders([published])
    seen = {read_coco([published], folders).fingerprint}
    for old, new in (('"Dog"', '"Hound"'), ("images/5.jpg", "5.jpg")):
        published.write_text(published.read_text().replace(old, new))
        seen.add(read_coco([published], folders).fingerprint)
    assert len(seen) == 3


def test_boxes_without_any_photo_are_counted(tmp_path: Path) -> None:
    boxes = [box(1, 3, [0, 0, 9, 9]), box(2, 3, [0, 0, 9, 9])]
    path = write(tmp_path / "vg" / "annotations" / "a.json", range(1, 3), boxes)
    for images in ([], [{"id": "1", "file_name": "1.jpg"}]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"images": images}))
        with pytest.raises(UserError, match=r"No photo has both.* 2 boxes of no listed photo"):
            read_coco([path], photo_folders([path]))


def test_where_all_entries_are_broken_nothing_is_made_of_them(tmp_path: Path) -> None:
    few = [box(1, 3, [0, 0, 9, 9]) | {"image_id": "1"}]
    path = write(tmp_path / "vg" / "annotations" / "a.json", range(1, 3), few)
    with pytest.raises(
        UserError, match=r"No photo has both.*1 entries that are broken.*not an int"
    ):
        read_coco([path], photo_folders([path]))
    path = write(tmp_path / "vg" / "annotations" / "b.json", range(1, 3), few * 150)
    with pytest.raises(UserError, match=r"100 inputs in a row .*annotations\[99\].*not an integer"):
        read_coco([path], photo_folders([path]))


@pytest.mark.parametrize("same", [True, False])
def test_an_id_that_stands_twice_is_named(published: Path, same: bool) -> None:
    whole = json.loads(published.read_text())
    again = json.loads(published.read_text())
    again["annotations"].append({**whole["annotations"][4], **({} if same else {"bbox": [1] * 4})})
    published.write_text(json.dumps(again))
    folders = photo_folders([published])
    with pytest.raises(
        UserError, match=r"annotation id 4 twice, in entries annotations\[4\] and annotations\[10\]"
    ):
        read_coco([published], folders)
    again = {**whole, "images": [*whole["images"], dict(whole["images"][2])]}
    again["images"][-1]["width"] += 0 if same else 1
    published.write_text(json.dumps(again))
    with pytest.raises(
        UserError, match=r"image id 3 twice, in entries images\[2\] and images\[6\]"
    ):
        read_coco([published], folders)
    without = {**whole, "annotations": [dict(entry) for entry in whole["annotations"]]}
    for entry in without["annotations"]:
        del entry["id"]  # nothing needs it
    published.write_text(json.dumps(without))
    assert read_coco([published], folders).counts.boxes == 4


def folders_of(tmp_path: Path, names: list[str]) -> list[dict[str, Any]]:
    """Photos below ``tmp_path``, and the entries of images that name them."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    return [
        {"id": i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(names, 1)
    ]


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_photos_of_one_name_are_told_apart_by_their_folder(tmp_path: Path, separator: str) -> None:
    names = ["cam1/0001.jpg", "cam1/0002.jpg", "cam2/0001.jpg", "cam2/0002.jpg"]
    images = folders_of(tmp_path, names)
    for entry in images:
        entry["file_name"] = entry["file_name"].replace("/", separator)
    boxes = [box(i, 3, [i, 0, 9, 9]) for i in range(1, 5)]
    path = write(tmp_path / "annotations" / "a.json", range(0), boxes, images=images)
    data = read_coco([path], photo_folders([path]))
    assert [photo.path for photo in data] == [tmp_path / name for name in names]
    assert [photo.boxes_N4[0, 0] for photo in data] == [1, 2, 3, 4]
    for entry in images:  # the other folder alone
        entry["file_name"] = entry["file_name"].replace("cam1", "cam2")
    path = write(tmp_path / "annotations" / "b.json", range(0), boxes[:2], images=images[:2])
    data = read_coco([path], photo_folders([path]))
    assert [photo.path for photo in data] == [tmp_path / name for name in names[2:]]


def test_a_photo_whose_file_is_not_clear_is_counted_and_named(tmp_path: Path) -> None:
    folders_of(tmp_path, ["cam1/0001.jpg", "cam2/0001.jpg", "cam1/0002.jpg"])
    names = ["0001.jpg", "cam3/0002.jpg", "0002.jpg", "0003.jpg"]
    images = [{"id": i, "file_name": n, "width": 60, "height": 40} for i, n in enumerate(names)]
    boxes = [box(i, 3, [i, 0, 9, 9]) for i in range(4)]
    path = write(tmp_path / "annotations" / "a.json", range(0), boxes, images=images)
    data = read_coco([path], photo_folders([path]))
    assert [(photo.image, photo.path) for photo in data] == [(2, tmp_path / "cam1/0002.jpg")]
    assert (data.counts.without_file, data.counts.unmatched) == (3, 2)
    text = "\n".join(data.counts.lines())
    assert "0001.jpg: several files have that name" in text
    assert "cam3/0002.jpg: the file of that name is in another folder" in text
    assert "2 photos whose file is not clear" in text


def test_absent_and_cut_files_are_said(published: Path) -> None:
    folders = photo_folders([published])
    with pytest.raises(UserError, match=r"no annotation file .*none\.json"):
        read_coco([published.with_name("none.json")], folders)
    with pytest.raises(UserError, match="--photos"):
        read_coco([published], [published.parent / "nowhere"])
    whole = published.read_text()
    for text in ("", "[]", "[1", whole[: len(whole) // 3], whole[:-1], whole + "{}"):
        published.write_text(text)
        with pytest.raises(UserError, match=r"visual_genome_train\.json (is|does) not"):
            read_coco([published], folders)


@pytest.mark.parametrize("chunk", [1, 13, 500])
def test_where_the_text_is_cut_changes_nothing(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    whole = [*read_coco([published], photo_folders([published]))]
    monkeypatch.setenv("GRIDVLP_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("gridvlp.data.json_files.CHUNK", chunk)
    cut = [*read_coco([published], photo_folders([published]))]
    for one, other in zip(cut, whole, strict=True):
        assert np.array_equal(one.boxes_N4, other.boxes_N4)
        assert np.array_equal(one.attributes_NM, other.attributes_NM)


def as_coco(folder: Path, kept: Callable[[int], bool], path: Path) -> Path:
    """The tiny Visual Genome in grid-feats-vqa's form."""
    data = read_visual_genome(folder)
    chosen = [photo for photo in data if kept(photo.image)]
    annotations = [
        box(
            photo.image,
            int(category),
            [left, top, right - left, bottom - top],
            attribute_ids=[a for a in attributes if a >= 0],
        )
        for photo in chosen
        for (left, top, right, bottom), category, attributes in zip(
            photo.boxes_N4.tolist(), photo.classes_N, photo.attributes_NM.tolist(), strict=True
        )
    ]
    held = {
        "images": [
            {"id": p.image, "file_name": p.path.name, "width": p.width, "height": p.height}
            for p in chosen
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": w[0]} for i, w in enumerate(data.vocabulary.objects)],
    }
    path.write_text(json.dumps(held))
    return path


def test_training_on_such_files(visual_genome: Path, tmp_path: Path) -> None:
    """On one file, measured on another; the same boxes as from the release."""
    train = as_coco(visual_genome, lambda image: image % 5 > 0, tmp_path / "train.json")
    valid = as_coco(visual_genome, lambda image: image % 5 == 0, tmp_path / "val.json")
    data = read_coco([train], [visual_genome])
    by_image = {photo.image: photo for photo in read_visual_genome(visual_genome)}
    for photo in data:
        assert np.array_equal(photo.boxes_N4, by_image[photo.image].boxes_N4)
        assert np.array_equal(photo.attributes_NM, by_image[photo.image].attributes_NM)
    said: list[str] = []
    figures = train_extractor(
        TrainExtractorOptions(
            annotations=(train,),
            valid_annotations=valid,
            photos=(visual_genome,),
            run=tmp_path / "run",
            **TINY,
        ),
        said.append,
    )
    assert {"class accuracy", "attribute accuracy", "AP", "AP50"} == set(figures)
    assert any("Training on 19 photos, 5 held out" in line for line in said)
    about = json.loads((tmp_path / "run" / "encoder" / "encoder.json").read_text())
    assert "train.json" in about["name"]


TINY: dict[str, Any] = {
    "width": 0.125,
    "size": "64x96",
    "iterations": 2,
    "batch_size": 4,
    "warmup": 1,
    "learning_rate": 0.002,
    "rpn_batch": 16,
    "roi_batch": 16,
    "proposals": 20,
    "precision": "float32",
}


def test_coco_itself(shared_data: Path, tmp_path: Path) -> None:
    """Real photos, no attributes: no figure and no loss of them."""
    folder = shared_data / "coco"
    figures = train_extractor(
        TrainExtractorOptions(
            annotations=(folder / "annotations" / "instances_val2017.json",),
            run=tmp_path / "run",
            **TINY,
        ),
        lambda line: None,
    )
    assert {"class accuracy", "AP", "AP50"} == set(figures)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "loss_attributes" not in json.loads(lines[0])
    names = (tmp_path / "run" / "encoder" / "visual_genome_objects.txt").read_text().split("\n")
    assert names[0] == "person"
