"""The official release becomes boxes; whatever is left out is counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridvlp.errors import UserError
from gridvlp.extract.visual_genome import read_visual_genome
from gridvlp.extract.vocabulary import Vocabulary

Writer = Callable[..., dict[str, Any]]


def test_plain_release(visual_genome: Path) -> None:
    data = read_visual_genome(visual_genome)
    assert [words[0] for words in data.vocabulary.objects] == sorted(
        ["ball", "box"], key=lambda name: -sum(
            int((photo.classes_N == i).sum())
            for photo in data
            for i, words in enumerate(data.vocabulary.objects)
            if words[0] == name
        )
    )  # fmt: skip
    assert data.vocabulary.attributes[0] == ["plain"]  # on every box
    assert len(data) == data.counts.photos == 24
    assert {photo.path.parent.name for photo in data} == {"VG_100K", "VG_100K_2"}
    assert data.counts.boxes == 48
    assert data.counts.clipped == data.counts.degenerate == data.counts.without_file == 0
    first = data[0]
    assert first.boxes_N4.shape == (2, 4)
    assert (first.boxes_N4[:, 2:] > first.boxes_N4[:, :2]).all()
    assert ((first.attributes_NM >= 0).sum(1) == 2).all()


def test_every_oddity_is_counted(
    tmp_path: Path, write_visual_genome: Writer, save_release: Callable[..., None]
) -> None:
    release = write_visual_genome(tmp_path, photos=8)
    things = [entry["objects"] for entry in release["objects"]]
    told = [entry["attributes"] for entry in release["attributes"]]
    (tmp_path / "VG_100K" / "1000.jpg").unlink()  # two boxes go with it
    things[1].clear()  # a photo without objects
    things[2][0].update(w=0)  # degenerate
    things[2][1].update(x=9999)  # outside the photo: degenerate as well, and the photo is empty
    things[3][0].update(x=-5, w=30)  # clipped
    things[3][1]["names"] = []  # no name
    many = [f"attribute{i:02}" for i in range(20)]
    told[4][0]["attributes"] = ["Red ", "red", *many]
    told[4][1].pop("attributes")  # none told
    release["image_data"] = [e for e in release["image_data"] if e["image_id"] != 1005]
    save_release(tmp_path, release)
    data = read_visual_genome(tmp_path)
    counts = data.counts
    assert counts.without_file == 2  # 1000 without photo, 1005 without size
    assert counts.without_boxes == 2  # 1001 and 1002
    assert counts.degenerate == 2
    assert counts.clipped == 1
    assert counts.outside_vocabulary == 1
    assert counts.attributes_cut == 1
    assert counts.photos == len(data) == 4
    assert counts.boxes == sum(len(photo.boxes_N4) for photo in data) == 7
    text = "\n".join(counts.lines())
    for number in (counts.without_file, counts.degenerate, counts.attributes_cut):
        assert f"{number:,}" in text
    by_id = {photo.image: photo for photo in data}
    assert by_id[1003].boxes_N4[0, 0] == 0
    assert by_id[1003].boxes_N4[0, 2] == 25
    attributes_NM = by_id[1004].attributes_NM
    assert attributes_NM.shape == (2, 16)
    assert len(set(attributes_NM[0].tolist())) == 16  # no repeats among "Red " and "red"
    assert (attributes_NM[1] == -1).all()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (
            "objects",
            {"x": None},
            'objects.json, entry 2 (object_id 5) has a "x" that is not a number',
        ),
        ("objects", {"w": "9"}, 'has a "w" that is not a number: "9"'),
        ("objects", {"object_id": "5"}, 'has a "object_id" that is not an integer: "5"'),
        ("objects", {"names": None}, 'has a "names" that is not a list of texts: null'),
        ("objects", {"names": [None]}, 'has a "names" that is not a list of texts: [null]'),
        ("objects", {"names": "box"}, 'has a "names" that is not a list of texts: "box"'),
        ("attributes", {"attributes": [None]}, "attributes.json, entry 2 (object_id 5) has a"),
        ("attributes", {"attributes": ["red", 7]}, 'not a list of texts: ["red", 7]'),
        ("attributes", {"object_id": 5.5}, 'has a "object_id" that is not an integer: 5.5'),
    ],
)
def test_a_broken_object_is_left_out_and_named(
    tmp_path: Path,
    write_visual_genome: Writer,
    save_release: Callable[..., None],
    name: str,
    change: dict[str, Any],
    told: str,
) -> None:
    release = write_visual_genome(tmp_path, photos=4)
    release[name][2][name][0].update(change)
    save_release(tmp_path, release)
    data = read_visual_genome(tmp_path)
    assert data.counts.broken == 1
    assert data.counts.boxes == (7 if name == "objects" else 8)
    assert data.counts.attributes == 14
    text = "\n".join(data.counts.lines())
    assert "1 entries that are broken" in text
    assert told in text


def test_a_broken_photo_is_left_out_and_named(
    tmp_path: Path, write_visual_genome: Writer, save_release: Callable[..., None]
) -> None:
    release = write_visual_genome(tmp_path, photos=6)
    release["image_data"][0]["width"] = "128"
    release["image_data"][1]["image_id"] = None
    release["objects"][2]["objects"] = None
    release["objects"][3] = None
    release["attributes"][4]["attributes"] = "red"
    save_release(tmp_path, release)
    counts = read_visual_genome(tmp_path).counts
    assert (counts.broken, counts.photos, counts.boxes) == (5, 2, 4)
    assert counts.without_file == 2  # without size


@pytest.mark.parametrize("name", ["image_data", "objects"])
def test_a_photo_that_stands_twice_is_named(
    tmp_path: Path, write_visual_genome: Writer, save_release: Callable[..., None], name: str
) -> None:
    release = write_visual_genome(tmp_path, photos=3)
    release[name].append(dict(release[name][1]))
    save_release(tmp_path, release)
    with pytest.raises(
        UserError, match=rf"{name}\.json has image_id 1001 twice, in entries 1 and 3"
    ):
        read_visual_genome(tmp_path)


def test_the_fingerprint_is_that_of_the_contents(
    tmp_path: Path, write_visual_genome: Writer, save_release: Callable[..., None]
) -> None:
    release = write_visual_genome(tmp_path / "vg", photos=6)
    first = read_visual_genome(tmp_path / "vg")
    (tmp_path / "vg").rename(tmp_path / "moved")
    assert read_visual_genome(tmp_path / "moved").fingerprint == first.fingerprint
    changes = [
        ("objects", lambda entry: entry["objects"][0].update(x=entry["objects"][0]["x"] + 1)),
        ("objects", lambda entry: entry["objects"][0].update(names=["ball game"])),
        ("objects", lambda entry: entry["objects"].reverse()),
        ("attributes", lambda entry: entry["attributes"][0].update(attributes=["plain"])),
        ("image_data", lambda entry: entry.update(width=entry["width"] + 1)),
    ]
    seen = {first.fingerprint}
    for name, change in changes:
        change(release[name][3])
        save_release(tmp_path / "moved", release)
        seen.add(read_visual_genome(tmp_path / "moved").fingerprint)
    (tmp_path / "moved" / "VG_100K" / "1000.jpg").unlink()
    data = read_visual_genome(tmp_path / "moved")
    seen |= {data.fingerprint, data.subset(slice(2)).fingerprint}
    seen.add(read_visual_genome(tmp_path / "moved", objects=1).fingerprint)
    assert len(seen) == len(changes) + 4


def test_vocabulary_from_lists_with_spellings(tmp_path: Path, visual_genome: Path) -> None:
    (tmp_path / "visual_genome_objects.txt").write_text("cube,box\nyolk\n")
    (tmp_path / "visual_genome_attributes.txt").write_text("crimson,red\nblue\n")
    data = read_visual_genome(visual_genome, vocab=tmp_path)
    assert [words[0] for words in data.vocabulary.objects] == ["cube", "yolk"]
    assert data.counts.outside_vocabulary > 0  # the balls
    assert all((photo.classes_N == 0).all() for photo in data)
    assert set(np.unique(np.concatenate([p.attributes_NM for p in data]))) <= {-1, 0, 1}
    saved = tmp_path / "saved"
    saved.mkdir()
    data.vocabulary.save(saved)
    assert Vocabulary.load(saved) == data.vocabulary


def test_untidy_lists(tmp_path: Path, visual_genome: Path) -> None:
    (tmp_path / "visual_genome_objects.txt").write_bytes(b"cube,\r\n \r\nBall  game , ball,\r\n")
    words = tmp_path / "visual_genome_attributes.txt"
    words.write_text("red\n")
    data = read_visual_genome(visual_genome, vocab=tmp_path)
    assert data.vocabulary == Vocabulary([["cube"], ["ball game", "ball"]], [["red"]])
    objects = tmp_path / "visual_genome_objects.txt"
    objects.write_text("\ufeffcube\u2028a\nball\x0cgame\x85b\n", "utf-8")  # a line is a class
    assert Vocabulary.load(tmp_path).objects == [["cube a"], ["ball game b"]]
    words.write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"visual_genome_attributes\.txt is no UTF-8"):
        read_visual_genome(visual_genome, vocab=tmp_path)


def test_an_object_without_a_name_is_outside_every_vocabulary(
    tmp_path: Path, write_visual_genome: Writer, save_release: Callable[..., None]
) -> None:
    release = write_visual_genome(tmp_path / "vg", photos=3)
    release["objects"][0]["objects"][0]["names"] = []
    save_release(tmp_path / "vg", release)
    (tmp_path / "visual_genome_objects.txt").write_text("ball,\nbox\n\n")
    (tmp_path / "visual_genome_attributes.txt").write_text("red\n")
    counts = read_visual_genome(tmp_path / "vg", vocab=tmp_path).counts
    assert (counts.boxes, counts.outside_vocabulary) == (5, 1)


def test_published_lists(shared_data: Path) -> None:
    vocabulary = Vocabulary.load(shared_data / "vocab")
    assert (len(vocabulary.objects), len(vocabulary.attributes)) == (1600, 400)
    assert ["gray", "grey"] in vocabulary.attributes


def test_only_the_most_frequent_names(visual_genome: Path) -> None:
    data = read_visual_genome(visual_genome, objects=1, attributes=2)
    assert (len(data.vocabulary.objects), len(data.vocabulary.attributes)) == (1, 2)
    kept = data.counts.boxes
    assert kept + data.counts.outside_vocabulary == 48
    assert kept >= 24  # the more frequent of two


def test_missing_and_broken_files_are_said(tmp_path: Path, write_visual_genome: Writer) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        read_visual_genome(tmp_path / "absent")
    with pytest.raises(UserError, match=r"image_data\.json[ ,]"):
        read_visual_genome(tmp_path)
    write_visual_genome(tmp_path, photos=3)
    whole = (tmp_path / "objects.json").read_text()
    (tmp_path / "objects.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"objects\.json is not whole JSON"):
        read_visual_genome(tmp_path)
    (tmp_path / "objects.json").write_text('[{"image_id": 1000}]')
    with pytest.raises(
        UserError, match=r'objects\.json, entry 0 \(image_id 1000\) has no "objects"'
    ):
        read_visual_genome(tmp_path)
    (tmp_path / "objects.json").write_text(whole)
    for folder in ("VG_100K", "VG_100K_2"):
        for path in (tmp_path / folder).iterdir():
            path.unlink()
    with pytest.raises(UserError, match="No photo"):
        read_visual_genome(tmp_path)
    with pytest.raises(UserError, match=r"visual_genome_objects\.txt"):
        read_visual_genome(tmp_path, vocab=tmp_path / "VG_100K")


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_where_the_text_is_cut_for_reading_changes_nothing(
    visual_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    whole = read_visual_genome(visual_genome)
    monkeypatch.setenv("GRIDVLP_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("gridvlp.data.json_files.CHUNK", chunk)
    cut = read_visual_genome(visual_genome)
    assert cut.vocabulary == whole.vocabulary
    assert cut.counts == whole.counts
    for one, other in zip(cut, whole, strict=True):
        assert one.image == other.image
        assert np.array_equal(one.boxes_N4, other.boxes_N4)
        assert np.array_equal(one.attributes_NM, other.attributes_NM)


@pytest.mark.parametrize(
    "text", ["{}", "", "[1, 2]", '[{"image_id": 1, "width": 2, "height": 3}', "[{]"]
)
def test_other_json_is_refused(tmp_path: Path, write_visual_genome: Writer, text: str) -> None:
    write_visual_genome(tmp_path, photos=3)
    (tmp_path / "image_data.json").write_text(text)
    with pytest.raises(UserError, match=r"image_data\.json[ ,]"):
        read_visual_genome(tmp_path)
