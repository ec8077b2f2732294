"""Photos are found, and resized as Detectron2 does; what is no photo is counted."""

import codecs
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gridvlp.data.photo_names import passed_over_text
from gridvlp.errors import UserError
from gridvlp.extract.photos import (
    SUFFIXES,
    BadPhoto,
    find_photos,
    read_photo,
    resized,
    survey_photos,
)

SIZES = [(600, 1000), (448, 448), (448, 746), (800, 1333)]
RATIOS = [(1, 1), (4, 3), (3, 2), (16, 9), (16, 10), (21, 9), (2, 1), (3, 1), (5, 4), (640, 427)]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_are_detectron2s(size: tuple[int, int]) -> None:
    theirs = ResizeShortestEdge.get_output_shape
    for side in range(100, 1301):
        for one, other in RATIOS:
            shape = side, round(side * other / one)
            assert resized(*shape, *size) == tuple(theirs(*shape, *size)), shape
            assert resized(*shape[::-1], *size) == tuple(theirs(*shape[::-1], *size)), shape


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(16, 800), st.floats(1, 3))
@settings(max_examples=300)
def test_any_size_is_detectron2s(height: int, width: int, shorter: int, ratio: float) -> None:
    longest = int(shorter * ratio)
    theirs = ResizeShortestEdge.get_output_shape(height, width, shorter, longest)
    assert resized(height, width, shorter, longest) == tuple(max(1, side) for side in theirs)


def test_sizes_of_common_photos() -> None:
    assert resized(480, 640, 600, 1000) == (600, 800)
    assert resized(300, 640, 600, 1000) == (469, 1000)
    assert resized(480, 640, 448, 448) == (336, 448)
    assert resized(720, 1280, 600, 1000) == (562, 1000)
    assert resized(1920, 1080, 600, 1000) == (1000, 562)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_thin_photos_keep_a_pixel(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.new("RGB", shape, "green").save(tmp_path / "a.png")
    pixels_HW3 = read_photo(tmp_path / "a.png", (32, 64)).pixels_HW3
    assert min(pixels_HW3.shape) >= 1
    assert max(pixels_HW3.shape) <= 64
    assert (pixels_HW3 == [0, 128, 0]).all()


def test_a_photo_is_resized_as_detectron2_does(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg", (60, 100))
    theirs = read_image(str(tmp_path / "a.jpg"), "RGB")
    change = ResizeShortestEdge(60, 100).get_transform(theirs)
    assert np.array_equal(photo.pixels_HW3, change.apply_image(theirs))
    assert photo.original_size == (90, 160)
    assert photo.rules == ()
    Image.new("RGBA", (8, 8)).save(tmp_path / "b.png")
    assert read_photo(tmp_path / "b.png", (60, 100)).rules == ("alpha",)


# --- folders ---------------------------------------------------------------------------------


def test_photos_are_found_sorted_once(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/1.PNG", "a/3.jpeg", "a/notes.txt", "a/.hidden.jpg")
    expected = [tmp_path / "a/3.jpeg", tmp_path / "b/1.PNG", tmp_path / "b/2.jpg"]
    assert find_photos([tmp_path]) == expected
    assert find_photos([tmp_path / "b/2.jpg", tmp_path]) == [expected[2], *expected[:2]]


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path) -> None:
    photos = ["a.jpg", "b.jfif", "c.avif", "d.jp2", "f.jpg_large", "g.JPG!d", "h.v1.2.jpg", "m.mpo"]
    touch(tmp_path, *photos, "1.heic", "2.HEIC", "i.tga", "Thumbs.db", ".DS_Store", "._a.jpg")
    touch(tmp_path, "x.jpgs", "y.json", "empty")
    Image.new("RGB", (8, 8)).save(tmp_path / "e", format="PNG")
    found = survey_photos([tmp_path])
    assert [path.name for path in found.paths] == sorted([*photos, "e"])
    assert found.passed_over == Counter(
        {".heic": 2, ".tga": 1, ".db": 1, ".jpgs": 1, ".json": 1, "": 1}
    )
    text = passed_over_text(found.passed_over)
    assert text.startswith("7 files passed over: 2 .heic, ")
    assert "1 without a suffix" in text
    touch(tmp_path / "only", "a.jpg")
    assert passed_over_text(survey_photos([tmp_path / "only"]).passed_over) == ""


def test_every_suffix_of_a_format_that_is_read_is_known() -> None:
    assert {".jpg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"} <= SUFFIXES
    assert {".ppm", ".pgm", ".avif", ".jp2", ".mpo"} <= SUFFIXES
    assert not {".eps", ".pdf", ".psd", ".tga", ".ico", ".mpg", ".h5", ".fits"} & SUFFIXES


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        touch(tmp_path, f"all/{name}/{name}.jpg")
        for i in range(3):  # each leads back: a search that follows them blindly never ends
            (tmp_path / "all" / name / f"up{i}").symlink_to(tmp_path / "all")
    touch(tmp_path, "elsewhere/c.jpg")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")
    found = find_photos([tmp_path / "all"])
    assert [path.name for path in found] == ["a.jpg", "b.jpg", "c.jpg"]
    assert found[0] == tmp_path / "all" / "a" / "a.jpg"


def test_nothing_to_find_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        find_photos([tmp_path / "absent"])
    with pytest.raises(UserError, match="empty"):
        find_photos([tmp_path])
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UserError, match="None of the 1 files"):
        find_photos([tmp_path])


# --- lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        *((b"", "utf-8"), (codecs.BOM_UTF8, "utf-8")),
        *((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_text_list_names_photos_from_its_folder_on(
    tmp_path: Path, mark: bytes, encoding: str, end: str
) -> None:
    lines = ["in/ü.png", "", "  in/a.png  ", "in/gone.png", "in/ü.png"]
    (tmp_path / "list.txt").write_bytes(mark + end.join(lines).encode(encoding))
    found = find_photos([tmp_path / "list.txt"])
    assert found == [tmp_path / "in" / name for name in ("ü.png", "a.png", "gone.png")]
    with pytest.raises(BadPhoto, match="No such file"):
        read_photo(found[2], (8, 8))


def coco(path: Path, *names: str, mark: bytes = b"") -> Path:
    path.parent.mkdir(exist_ok=True)
    images = [{"file_name": name} for name in names]
    path.write_bytes(mark + json.dumps({"images": images}).encode())
    return path


def test_a_coco_file_names_photos_beside_annotations(tmp_path: Path) -> None:
    touch(tmp_path, "train2017/1.png", "val2017/2.png", "val2017/3.png", "passwd.png")
    names = ["3.png", "train2017/1.png", "4.png", "../../../etc/passwd.png", "/val2017/2.png"]
    path = coco(tmp_path / "annotations/instances.json", *names, mark=codecs.BOM_UTF8)
    found = survey_photos([path])
    assert found.paths == [
        tmp_path / name for name in ("val2017/3.png", "train2017/1.png", "val2017/2.png")
    ]
    assert list(found.missing) == ["4.png", "../../../etc/passwd.png"]


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_coco_file_tells_folders_apart(tmp_path: Path, separator: str) -> None:
    names = ["cam2/0001.jpg", "cam1/0001.jpg", "cam1/0002.jpg", "cam2/0002.jpg"]
    touch(tmp_path, *names)
    named = [name.replace("/", separator) for name in names]
    found = survey_photos([coco(tmp_path / "annotations/a.json", *named)])
    assert found.paths == [tmp_path / name for name in names]
    assert not found.missing


def test_a_photo_of_another_folder_is_not_taken_for_the_one_that_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "cam1/0001.jpg", "cam1/0002.jpg", "cam3/0002.jpg")
    path = coco(tmp_path / "annotations/a.json", "cam2/0001.jpg", "0002.jpg", "cam3/0002.jpg")
    found = survey_photos([path])
    assert found.paths == [tmp_path / "cam3/0002.jpg"]
    assert "another folder" in found.missing["cam2/0001.jpg"]
    assert "several files" in found.missing["0002.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.txt", "", "names no photo"),
        ("a.txt", codecs.BOM_UTF8, "names no photo"),
        ("a.txt", b"\xff", "cannot be read"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a", "cannot be read"),
        ("a.json", "{", "not a COCO file"),
        ("a.json", "[]", "not a COCO file"),
        ("a.json", '{"images": [{"id": 1}]}', "not a COCO file"),
        ("a.json", '{"images": []}', "names no photo"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=reason):
        find_photos([tmp_path / name])


def test_a_list_of_a_folder_that_moved_is_read_again(tmp_path: Path) -> None:
    touch(tmp_path, "one/in/a.png")
    (tmp_path / "one/list.txt").write_text("in/a.png")
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert find_photos([tmp_path / "two/list.txt"]) == [tmp_path / "two/in/a.png"]


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    photos = survey_photos([tmp_path]).paths
    assert tmp_path / "a.png" in photos
    for path in set(photos) - {tmp_path / "a.png"}:
        with pytest.raises(BadPhoto):
            read_photo(path, (8, 8))
