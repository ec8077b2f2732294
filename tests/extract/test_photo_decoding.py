"""Any photo becomes the pixels that a person would see; any other file gets a reason."""

import io
import resource
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from gridvlp.extract.photo_decoding import FORMATS, BadPhoto, decode_photo
from tests.extract.photo_files import write_png, write_tiff

GREY = np.tile(np.arange(48, dtype=np.uint8) * 5, (32, 1))  # to 235
GREY[0, :2] = 0, 255


def picture() -> Image.Image:
    """Left half red, right half blue; wide."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24, 0], pixels[:, 24:, 2] = 255, 255
    return Image.fromarray(pixels)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(decode_photo(path).image)


def assert_grey(path: Path, *rules: str, expected: np.ndarray = GREY) -> None:
    photo = decode_photo(path)
    assert np.array_equal(np.asarray(photo.image), np.repeat(expected[:, :, None], 3, 2))
    assert photo.rules == rules


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int, suffix: str) -> None:
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
    stored.save(tmp_path / f"a.{suffix}", exif=exif, quality=100, subsampling=0)
    found = pixels(tmp_path / f"a.{suffix}")
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - np.asarray(picture())).max() < 12
    upright = ImageOps.exif_transpose(Image.open(tmp_path / f"a.{suffix}"))
    assert np.array_equal(found, np.asarray(upright))


def test_8_bits_are_as_a_person_and_detectron2_see_them(tmp_path: Path) -> None:
    picture().save(tmp_path / "rgb.png")
    picture().quantize(4).save(tmp_path / "palette.png")
    picture().save(tmp_path / "a.jpg")
    picture().save(tmp_path / "a.webp", lossless=True)
    picture().save(tmp_path / "a.tif", compression="tiff_lzw")
    picture().convert("YCbCr").save(tmp_path / "ycbcr.tif")
    picture().convert("CMYK").save(tmp_path / "cmyk.tif")
    picture().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    picture().convert("1").save(tmp_path / "bits.png")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(pixels(path), read_image(str(path), "RGB")), path.name
        assert decode_photo(path).rules == (("CMYK",) if path.stem == "cmyk" else ())
    assert np.array_equal(pixels(tmp_path / "cmyk.tif"), np.asarray(picture()))
    assert set(np.unique(pixels(tmp_path / "bits.png"))) <= {0, 255}


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    muted = smooth().quantize(20).convert("RGB")
    stored = ImageCms.profileToProfile(muted, srgb, lab, outputMode="LAB")
    assert stored is not None
    stored.save(tmp_path / "lab.tif")
    assert np.abs(pixels(tmp_path / "lab.tif").astype(int) - np.asarray(muted)).mean() < 2
    assert decode_photo(tmp_path / "lab.tif").rules == ("LAB",)


def test_16_bits_are_scaled_whatever_the_order_of_bytes(tmp_path: Path) -> None:
    numbers = GREY.astype(np.uint16) * 257
    Image.fromarray(numbers).save(tmp_path / "a.png")
    Image.fromarray(numbers).save(tmp_path / "a.jp2", irreversible=False)
    (tmp_path / "a.pgm").write_bytes(b"P5 48 32 65535\n" + numbers.astype(">u2").tobytes())
    for path in tmp_path.iterdir():
        assert_grey(path, "16 bits")
    assert_grey(write_tiff(tmp_path / "little.tif", numbers), "16 bits")
    assert_grey(write_tiff(tmp_path / "big.tif", numbers, order=">"), "16 bits")
    assert_grey(write_tiff(tmp_path / "white0.tif", 65535 - numbers, photometric=0), "16 bits")
    assert_grey(write_tiff(tmp_path / "8.tif", 255 - GREY, photometric=0))
    write_png(tmp_path / "rgb.png", np.asarray(picture(), np.uint16) * 257, bits=16)
    assert np.array_equal(pixels(tmp_path / "rgb.png"), np.asarray(picture()))
    assert decode_photo(tmp_path / "rgb.png").rules == ("16 bits",)


def test_12_bits_are_scaled_by_their_own_white(tmp_path: Path) -> None:
    numbers = np.round(GREY * (4095 / 255)).astype(np.uint16)
    assert_grey(write_tiff(tmp_path / "12.tif", numbers, bits=12), "12 bits")


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_dark_16_bits_stay_dark(tmp_path: Path, suffix: str) -> None:
    numbers = np.full((8, 8), 200, np.uint16)
    if suffix == "pgm":
        (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + numbers.astype(">u2").tobytes())
    else:
        Image.fromarray(numbers).save(tmp_path / f"a.{suffix}")
    assert pixels(tmp_path / f"a.{suffix}").max() == 1  # 200 of 65,535


@pytest.mark.parametrize(
    ("kind", "white"),
    [
        *(("f4", 1), ("f4", 255), ("f4", 65535)),
        *(("i4", 255), ("i4", 65535), ("i4", 2**31 - 1)),
        *(("u4", 255), ("u4", 65535), ("u4", 2**32 - 1)),
        *(("i2", 255), ("i2", 2**15 - 1)),
    ],
)
def test_numbers_without_an_agreed_white_are_scaled_by_what_they_reach(
    tmp_path: Path, kind: str, white: int
) -> None:
    numbers = (GREY.astype(np.float64) * (white / 255)).astype(kind)
    found = write_tiff(tmp_path / "a.tif", numbers)
    rule = "float" if kind == "f4" else f"{8 * np.dtype(kind).itemsize} bits"
    assert decode_photo(found).rules == (rule,)
    assert np.abs(pixels(found)[:, :, 0].astype(int) - GREY).max() <= (white == 2**15 - 1)


def test_floats_with_white_at_0_are_turned_round(tmp_path: Path) -> None:
    numbers = (1 - GREY / 255).astype(np.float32)
    assert_grey(write_tiff(tmp_path / "a.tif", numbers, photometric=0), "float")
    overshot = (GREY / 255 * 1.004).astype(np.float32)  # as filters leave them
    assert pixels(write_tiff(tmp_path / "b.tif", overshot)).max() == 255


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (np.array([[0, np.nan]], "f4"), "not all finite"),
        (np.array([[0, np.inf]], "f4"), "not all finite"),
        (np.array([[-1, 1]], "f4"), "no brightness"),
        (np.array([[-300, 255]], "i4"), "no brightness"),
        (np.array([[0, 1.5]], "f4"), "white is none of 1, 255, 65535"),
        (np.array([[0, 1e9]], "f4"), "white is none of"),
        (np.array([[0, 300]], "i4"), "white is none of"),
        (np.array([[0, 5]], "i1"), "no agreed white"),
    ],
)
def test_numbers_that_may_mean_anything_are_no_photo(
    tmp_path: Path, numbers: np.ndarray, reason: str
) -> None:
    with pytest.raises(BadPhoto, match=reason):
        decode_photo(write_tiff(tmp_path / "a.tif", numbers))


def test_transparent_lies_on_white(tmp_path: Path) -> None:
    alpha = Image.new("L", (48, 32), 255)
    alpha.paste(0, (0, 0, 24, 32))
    photo = picture()
    photo.putalpha(alpha)
    photo.save(tmp_path / "rgba.png")
    photo.save(tmp_path / "rgba.tif")
    photo.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    photo.convert("LA").save(tmp_path / "la.png")
    palette = picture().quantize(4)
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((2, 2)))
    palette.save(tmp_path / "p.gif", transparency=palette.getpixel((2, 2)))
    for path in tmp_path.iterdir():
        assert (pixels(path)[:, :24] == 255).all(), path.name
        assert path.stem == "la" or pixels(path)[0, 40].tolist() == [0, 0, 255]
        assert decode_photo(path).rules == ("alpha",)
    photo.putalpha(255)
    photo.save(tmp_path / "opaque.png")
    assert np.array_equal(pixels(tmp_path / "opaque.png"), np.asarray(picture()))
    assert decode_photo(tmp_path / "opaque.png").rules == ()
    photo.putalpha(128)
    photo.save(tmp_path / "half.png")
    assert pixels(tmp_path / "half.png")[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_transparent_grey_lies_on_white(tmp_path: Path, bits: int) -> None:
    most = 2**bits - 1
    numbers = np.full((4, 8), most // 3, np.uint16)
    numbers[:2] = most // 5
    found = write_png(tmp_path / "a.png", numbers, bits, transparent=(most // 5,))
    expected = np.full((4, 8), 85, np.uint8)
    expected[:2] = 255
    assert_grey(found, *(("16 bits",) if bits == 16 else ()), "alpha", expected=expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_colour_lies_on_white(tmp_path: Path, bits: int) -> None:
    """Of 16 bits all count: another colour may have the same high bytes."""
    colour = (10, 20, 30) if bits == 8 else (1000, 2000, 3000)
    numbers = np.full((2, 4, 3), colour)
    numbers[1, :, 2] += 1
    found = write_png(tmp_path / "a.png", numbers, bits, transparent=colour)
    assert (pixels(found)[0] == 255).all()
    assert (pixels(found)[1] == (numbers[1] >> (bits - 8))).all()
    assert "alpha" in decode_photo(found).rules


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", format="BMP")
    assert np.array_equal(pixels(tmp_path / "a.jpg"), np.asarray(picture()))
    picture().save(tmp_path / "b.png", format="JPEG", quality=100, subsampling=0)  # as in NLVR2
    assert np.abs(pixels(tmp_path / "b.png").astype(int) - np.asarray(picture())).max() < 12


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    other = Image.new("RGB", (48, 32), "green")
    for name in ("a.gif", "a.webp", "a.png", "a.tif", "a.mpo"):
        options = {"lossless": True} if name == "a.webp" else {"quality": 100, "subsampling": 0}
        picture().save(tmp_path / name, save_all=True, append_images=[other], **options)
        found = pixels(tmp_path / name).astype(int)
        assert np.abs(found - np.asarray(picture())).max() < 12, name


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO", "PCX", "PDF", "DDS", "QOI"])
def test_a_format_that_is_not_named_is_not_decoded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EPS would be run by Ghostscript."""
    picture().save(tmp_path / "a.jpg", format=kind)
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program ran"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program ran"))
    with pytest.raises(BadPhoto, match="no image format that is read"):
        decode_photo(tmp_path / "a.jpg")


# --- bad files -------------------------------------------------------------------------------


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
            decode_photo(tmp_path / name)
    with pytest.raises(BadPhoto, match="No such file"):
        decode_photo(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(BadPhoto):
        decode_photo(tmp_path / "folder.jpg")
    monkeypatch.setattr("gridvlp.extract.photo_decoding.MOST_MEMORY", 12_000)
    with pytest.raises(BadPhoto, match="64 x 64, at most 1,000 in PNG"):
        decode_photo(tmp_path / "whole.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadPhoto, match="more pixels"):
        decode_photo(tmp_path / "whole.png")


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), ZeroDivisionError(), OverflowError(), MemoryError(), KeyError(1)]
)
def test_whatever_a_decoder_raises_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    picture().save(tmp_path / "a.png")

    def fail(_: Image.Image) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(BadPhoto):
        decode_photo(tmp_path / "a.png")


def test_an_interrupt_is_no_bad_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "a.png")

    def interrupt(_: Image.Image) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "getexif", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_photo(tmp_path / "a.png")


def test_text_in_a_photo_cannot_fill_the_memory(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for name, head in ((b"zTXt", b"key\0\0"), (b"iTXt", b"key\0\1\0\0\0")):
        body = head + zlib.compress(bytes(80_000_000), 9)
        chunk = len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)
        (tmp_path / "b.png").write_bytes(content[:33] + chunk + content[33:])
        assert len(chunk) < 100_000
        with pytest.raises(BadPhoto, match="too large"):
            decode_photo(tmp_path / "b.png")


MEMORY = """
import resource, sys
from pathlib import Path
from gridvlp.extract.photos import read_photo
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_photo(Path(sys.argv[1]), (600, 1000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "F", "P"])
def test_a_large_photo_takes_the_memory_of_its_pixels(tmp_path: Path, mode: str) -> None:
    side = 4000
    path = tmp_path / ("a.tif" if mode == "F" else "a.png")
    options = {"compression": "tiff_adobe_deflate"} if mode == "F" else {}
    Image.new(mode, (side, side)).save(path, **options)
    command = [sys.executable, "-c", MEMORY, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    most = {"RGB": 4, "RGBA": 8, "F": 8, "P": 5}[mode] * side * side
    assert int(found.stdout) * 1024 < most + 60_000_000


def test_more_pixels_than_a_photo_has_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = np.zeros((1, 1), np.uint8)
    content = write_png(tmp_path / "a.png", ends).read_bytes()
    head = b"IHDR" + (13000).to_bytes(4) * 2 + content[24:29]
    wide = content[:12] + head + zlib.crc32(head).to_bytes(4) + content[33:]
    (tmp_path / "a.png").write_bytes(wide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(BadPhoto, match="13000 x 13000"):
            decode_photo(tmp_path / "a.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


# --- JPEGs without an end --------------------------------------------------------------------


def smooth(seed: int = 0, mode: str = "RGB") -> Image.Image:
    steps = np.random.default_rng(seed).normal(0, 3, (50, 70, 3))
    return Image.fromarray(np.uint8(np.clip(np.cumsum(steps, 1) + 128, 0, 255))).convert(mode)


@pytest.mark.parametrize("options", [{}, {"quality": 100, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(
    tmp_path: Path, mode: str, options: dict
) -> None:
    smooth(mode=mode).save(tmp_path / "whole.jpg", **options)
    content = (tmp_path / "whole.jpg").read_bytes()
    for cut in (1, 2):
        (tmp_path / "a.jpg").write_bytes(content[:-cut])
        assert np.array_equal(pixels(tmp_path / "a.jpg"), pixels(tmp_path / "whole.jpg"))
    # of a small grey one libjpeg itself does not miss the marker
    assert mode == "L" or "cut end" in decode_photo(tmp_path / "a.jpg").rules


def test_what_follows_the_end_of_a_jpeg_is_no_matter(tmp_path: Path) -> None:
    smooth().save(tmp_path / "whole.jpg")
    for rest in (bytes(5000), b"trailer" + bytes(20)):
        (tmp_path / "a.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes() + rest)
        assert np.array_equal(pixels(tmp_path / "a.jpg"), pixels(tmp_path / "whole.jpg"))


@given(
    st.integers(0, 20),
    st.integers(3, 2000),
    st.sampled_from([0, 2, 50, 100_000]),
    st.sampled_from([{}, {"progressive": True}, {"quality": 95, "restart_marker_rows": 1}]),
)
@settings(max_examples=60, deadline=None)
def test_a_jpeg_that_lacks_pixels_is_cut_short(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: int, zeros: int, options: dict
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    smooth(seed).save(folder / "whole.jpg", **options)
    content = (folder / "whole.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(content[:-cut] + bytes(zeros))
    try:
        found = pixels(folder / "a.jpg")
    except BadPhoto:
        return
    # what is cut may lie in the part of the last blocks that is outside of the photo
    assert np.array_equal(found, pixels(folder / "whole.jpg"))


# --- random damage ---------------------------------------------------------------------------


def seeds() -> dict[str, bytes]:
    """A small file or two of each format."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    grey = Image.fromarray(GREY.astype(np.uint16) * 257)
    files = {
        "JPEG": [(smooth(), {"exif": exif}), (smooth(), {"progressive": True})],
        "PNG": [(smooth(), {"exif": exif}), (grey, {}), (smooth().quantize(), {"transparency": 1})],
        "GIF": [(smooth(), {})],
        "BMP": [(smooth(), {}), (smooth().quantize(), {})],
        "WEBP": [(smooth(), {"exif": exif}), (smooth(mode="RGBA"), {"lossless": True})],
        "TIFF": [
            *[(smooth(), {"compression": c}) for c in ("raw", "tiff_lzw", "jpeg")],
            *[(grey, {}), (Image.fromarray(GREY.astype(np.float32)), {})],
            (smooth().convert("1"), {"compression": "group4"}),
        ],
        "PPM": [(smooth(), {}), (grey, {})],
        "AVIF": [(smooth(), {"exif": exif})],
        "JPEG2000": [(smooth(), {}), (grey, {})],
    }
    whole = {}
    for kind, images in files.items():
        for number, (image, options) in enumerate(images):
            file = io.BytesIO()
            image.save(file, kind, **options)
            whole[f"{kind}{number}"] = file.getvalue()
    return whole


def test_every_format_that_is_read_is_damaged_here() -> None:
    assert {name[:-1] for name in seeds()} == set(FORMATS)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("name", "whole"), seeds().items(), ids=seeds())
def test_no_damage_ends_an_extraction(tmp_path: Path, name: str, whole: bytes) -> None:
    """Whatever a decoder makes of wrong bytes, it is a photo or a BadPhoto, in bounded memory."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    decode_photo(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bad = 0
    for i in range(80):
        damaged = bytearray(whole)
        within = len(damaged) if i % 2 else min(len(damaged), 160)
        for place in rng.integers(within, size=int(rng.integers(1, 8))):
            damaged[place] = int(rng.choice([0, 255, 127, rng.integers(256)]))
        path.write_bytes(damaged[: int(rng.integers(len(damaged)))] if i % 5 == 0 else damaged)
        try:
            image = decode_photo(path).image
        except BadPhoto:
            bad += 1
        else:
            assert image.mode == "RGB"
    assert bad > 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20  # 2 GiB
