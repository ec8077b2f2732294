"""Any photo becomes the pixels that a person would see; any other file gets a reason."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from gridvlp.errors import UserError
from gridvlp.extract.photos import BadPhoto, find_photos, read_photo, resized

SIZE = (32, 64)


def picture() -> Image.Image:
    """Left half red, right half blue; wide."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24, 0], pixels[:, 24:, 2] = 255, 255
    return Image.fromarray(pixels)


def read(path: Path) -> np.ndarray:
    return read_photo(path, SIZE).pixels_HW3


def test_plain_photo_is_rgb_with_its_sizes(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png", (64, 128))
    assert photo.pixels_HW3.shape == (64, 96, 3)
    assert photo.pixels_HW3.dtype == np.uint8
    assert photo.original_size == (32, 48)
    assert photo.pixels_HW3[10, 5].tolist() == [255, 0, 0]
    assert photo.pixels_HW3[10, 90].tolist() == [0, 0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int) -> None:
    stored = {
        1: lambda p: p,
        2: lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda p: p.transpose(Image.Transpose.ROTATE_180),
        4: lambda p: p.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda p: p.transpose(Image.Transpose.TRANSPOSE),
        6: lambda p: p.transpose(Image.Transpose.ROTATE_90),
        7: lambda p: p.transpose(Image.Transpose.TRANSVERSE),
        8: lambda p: p.transpose(Image.Transpose.ROTATE_270),
    }[orientation](picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), np.asarray(picture()))


def test_modes_give_what_a_person_sees(tmp_path: Path) -> None:
    grey = np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))
    expected = np.repeat(grey[:, :, None], 3, 2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "grey32.tif")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    picture().quantize(4).save(tmp_path / "palette.png")
    picture().convert("CMYK").save(tmp_path / "cmyk.tif")
    picture().convert("1").save(tmp_path / "bits.png")
    for name in ("grey.png", "grey16.png", "grey32.tif", "float.tif"):
        assert np.array_equal(read(tmp_path / name), expected), name
    for name in ("palette.png", "cmyk.tif"):
        assert np.array_equal(read(tmp_path / name), np.asarray(picture())), name
    assert set(np.unique(read(tmp_path / "bits.png"))) <= {0, 255}


def test_cmyk_jpeg(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - np.asarray(picture())).max() < 12


def test_transparent_lies_on_white(tmp_path: Path) -> None:
    alpha = Image.new("L", (48, 32), 255)
    alpha.paste(0, (0, 0, 24, 32))
    photo = picture()
    photo.putalpha(alpha)
    photo.save(tmp_path / "rgba.png")
    photo.convert("LA").save(tmp_path / "la.png")
    pixels = read(tmp_path / "rgba.png")
    assert (pixels[:, :24] == 255).all()
    assert pixels[0, 40].tolist() == [0, 0, 255]
    assert (read(tmp_path / "la.png")[:, :24] == 255).all()
    palette = picture().quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((2, 2)))
    assert (read(tmp_path / "p.png")[:, :24] == 255).all()


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.jpg")
    assert np.array_equal(read(tmp_path / "a.jpg"), np.asarray(picture()))
    picture().save(tmp_path / "b.png", format="JPEG", quality=100, subsampling=0)  # as in NLVR2
    assert np.abs(read(tmp_path / "b.png").astype(int) - np.asarray(picture())).max() < 12


def test_dark_16_bits_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").max() == 1  # 200 of 65,535


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_no_damage_ends_an_extraction(tmp_path: Path, kind: str) -> None:
    """Whatever a decoder makes of wrong bytes, it is a photo or a BadPhoto."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    whole = io.BytesIO()
    picture().save(whole, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
    path = tmp_path / "a.jpg"
    bad = 0
    for i in range(150):
        damaged = bytearray(whole.getvalue())
        within = len(damaged) if i % 2 else min(len(damaged), 160)
        for place in rng.integers(within, size=int(rng.integers(1, 8))):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged[: int(rng.integers(len(damaged)))] if i % 5 == 0 else damaged)
        try:
            assert read(path).dtype == np.uint8
        except BadPhoto:
            bad += 1
    assert bad > 10


def test_exif_that_cannot_be_written_again_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow turns the photo and then packs the other tags anew, of whatever type they are."""
    picture().save(tmp_path / "a.png")

    def pack(_: Image.Image) -> None:
        struct.pack("<H", "three")

    monkeypatch.setattr(ImageOps, "exif_transpose", pack)
    with pytest.raises(BadPhoto, match="damaged"):
        read(tmp_path / "a.png")


def test_each_bad_file_gets_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    noise.save(tmp_path / "whole.png")
    bytes_png = (tmp_path / "whole.png").read_bytes()
    bad = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"<html>404</html>" * 20, "no image format"),
        "cut.jpg": (whole[: len(whole) // 2], "cut short"),
        "cut.png": (bytes_png[: len(bytes_png) // 2], "cut short"),
        "header.png": (bytes_png[:20], "cut short|damaged|no image"),
        "broken.png": (bytes_png[:60] + b"\0" * 200 + bytes_png[260:], "cut short|damaged|broken"),
    }
    for name, (content, reason) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadPhoto, match=reason):
            read(tmp_path / name)
    with pytest.raises(BadPhoto, match="No such file"):
        read(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BadPhoto):
        read(tmp_path / "folder.jpg")
    monkeypatch.setattr("gridvlp.extract.photos.MOST_PIXELS", 1000)
    with pytest.raises(BadPhoto, match="64 x 64 pixels"):
        read(tmp_path / "whole.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadPhoto, match="more pixels"):
        read(tmp_path / "whole.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3)])
def test_thin_photos_keep_a_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "green").save(tmp_path / "a.png")
    pixels = read(tmp_path / "a.png")
    assert min(pixels.shape) >= 1
    assert max(pixels.shape) <= SIZE[1]
    assert (pixels == [0, 128, 0]).all()


@given(st.integers(10, 4000), st.integers(10, 4000), st.integers(16, 800), st.floats(1, 3))
def test_resize_rule_is_detectron2s(height: int, width: int, shorter: int, ratio: float) -> None:
    longest = int(shorter * ratio)
    theirs = ResizeShortestEdge.get_output_shape(height, width, shorter, longest)
    ours = resized(height, width, shorter, longest)
    # Detectron2 multiplies twice, so that a half may round either way
    assert abs(ours[0] - max(1, theirs[0])) <= 1
    assert abs(ours[1] - max(1, theirs[1])) <= 1
    assert min(ours) <= shorter
    assert max(ours) <= longest


def test_paper_sizes() -> None:
    assert resized(480, 640, 600, 1000) == (600, 800)
    assert resized(300, 640, 600, 1000) == (469, 1000)
    assert resized(480, 640, 448, 448) == (336, 448)


def test_photos_are_found_sorted_once(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.PNG", "a/3.jpeg", "a/notes.txt", "a/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / "a/3.jpeg", tmp_path / "b/1.PNG", tmp_path / "b/2.jpg"]
    assert find_photos([tmp_path]) == expected
    assert find_photos([tmp_path / "b/2.jpg", tmp_path]) == [expected[2], *expected[:2]]


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / f"{name}.jpg").touch()
        for i in range(3):  # each leads back: a search that follows them blindly never ends
            (tmp_path / "all" / name / f"up{i}").symlink_to(tmp_path / "all")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.jpg").touch()
    (tmp_path / "all" / "link").symlink_to(elsewhere)
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


def test_a_text_list_names_photos_from_its_folder_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "list.txt").write_text("in/c.png\n\n  in/a.png  \nin/gone.png\nin/c.png\n")
    found = find_photos([tmp_path / "list.txt"])
    assert found == [tmp_path / "in" / name for name in ("c.png", "a.png", "gone.png")]
    with pytest.raises(BadPhoto, match="No such file"):
        read_photo(found[2], (8, 8))


def test_a_coco_file_names_photos_beside_annotations(tmp_path: Path) -> None:
    for name in ("train2017/1.png", "val2017/2.png", "val2017/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    path = tmp_path / "annotations" / "instances.json"
    path.parent.mkdir()
    names = ["3.png", "1.png", "4.png", "../../../etc/passwd"]
    path.write_text(json.dumps({"images": [{"file_name": name} for name in names]}))
    assert find_photos([path]) == [
        tmp_path / name for name in ("val2017/3.png", "train2017/1.png", "4.png", "passwd")
    ]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "", "names no photo"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.json", "{", "no COCO file"),
        ("a.json", "[]", "no COCO file"),
        ("a.json", '{"images": [{"id": 1}]}', "no COCO file"),
        ("a.json", '{"images": []}', "names no photo"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, name: str, text: str | bytes, told: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told):
        find_photos([tmp_path / name])
