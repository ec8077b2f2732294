"""A photo file to RGB pixels as a person would see them, by what the file itself says.

    photo = decode_photo(path)
    photo.image    # Pillow, RGB, upright, whole
    photo.rules    # what changed its look: ("alpha",)

The encoder, the report and the pictures all read photos here. Needs Pillow and NumPy only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from gridvlp.extract.jpeg_end import ends_in_zeros, whole_jpeg

# A change of any rule below changes pixels: stores record the version of their rules.
DECODE_VERSION = 2

# What Pillow decodes itself, in this process, and knows by the first bytes of a file. JPEG includes
# MPO, the several pictures of a phone. Not here: EPS, whose decoder runs Ghostscript; PSD, whose
# layers are no photo; QOI and other decoders written in Python, which take minutes; TGA and PCX,
# which random bytes may look like; video, icons, textures and scientific arrays.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")

# A phone's 108 megapixels fit. Measured with Pillow 13: bytes for each pixel while it is decoded.
MOST_MEMORY = 3 << 29
PIXEL_BYTES = {"WEBP": 16, "JPEG2000": 25}
OTHER_PIXEL_BYTES = 12  # a progressive JPEG has 10; three copies of RGB where a photo is turned
STRIP_PIXELS = 1 << 20  # converted at once

# Where a file does not say which number is white: the smallest that its numbers reach. A photo
# whose brightest number is below 1/16 of that could be one of either range, and is refused.
BEYOND = 1.01  # filters overshoot
REACHED = 1 / 16

ORIENTATION = 0x0112  # EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 258, 262, 322, 323, 339  # TIFF 6.0

# Of metadata, or without the file's name: nothing that a person could act on
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadPhoto(Exception):
    """A file that is no usable photo; the message is the reason."""


@dataclass(frozen=True)
class DecodedPhoto:
    """A photo in full size.

    Args:
        image: RGB, upright.
        rules: the rules by which its look changed: "alpha", "16 bits", "12 bits", "32 bits",
            "float", "CMYK", "LAB", "cut end".
    """

    image: Image.Image
    rules: tuple[str, ...] = ()


def decode_photo(path: Path) -> DecodedPhoto:
    """Decode a photo in full size.

    The content decides the format, not the name. EXIF orientation is applied. Grey, palette and
    CMYK become RGB without colour profiles, as in Detectron2. What is transparent lies on white.
    Of an animation the first frame is taken.

    More than 8 bits become 8: 16 bits are divided by 257, 12 bits in a TIFF by 4095/255. Floats,
    signed and 32-bit numbers have no agreed white: it is 1 (floats), 255, 65,535 (not of 16
    signed bits) or the largest number of the type (integers), whichever the brightest number
    reaches. MinIsWhite is turned round.

    Raises:
        BadPhoto: the file cannot be read or decoded; the message says why.
    """
    try:
        if path.stat().st_size == 0:
            raise BadPhoto("the file is empty (0 bytes)")
        # a file and not its name: Pillow would map it into memory, and a file that shrinks
        # meanwhile would end the process
        with path.open("rb") as file:
            if ends_in_zeros(file):
                raise BadPhoto("the file is cut short: it has zeros in place of its end")
            try:
                return _decode(file)
            except OSError as error:
                whole = whole_jpeg(file) if "truncated" in str(error) else None
                if whole is None:
                    raise
                photo = _decode(whole)
                return DecodedPhoto(photo.image, (*photo.rules, "cut end"))
    except BadPhoto:
        raise
    except UnidentifiedImageError:
        raise BadPhoto(
            f"the content is no image format that is read ({', '.join(FORMATS)}), or a variant "
            "that Pillow does not decode"
        ) from None
    except Image.DecompressionBombError as error:
        raise BadPhoto(f"more pixels than a photo has: {error}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        cut = "truncated" in reason.lower()
        raise BadPhoto(f"the file is cut short: {reason}" if cut else reason) from error
    except MemoryError as error:
        raise BadPhoto("too little memory for the photo") from error
    except Exception as error:
        # On damaged files decoders raise whatever their arithmetic ends in: RuntimeError,
        # ZeroDivisionError, OverflowError, ... None of them may end the other photos' work.
        raise BadPhoto(f"the image is damaged: {error or type(error).__name__}") from error


def _decode(file: IO[bytes]) -> DecodedPhoto:
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        _check_size(image)
        raw = _raw_modes(image)  # loading drops them
        image.load()
        colour = image.info.get("transparency")
        if image.mode == "L" and isinstance(colour, int):  # PNG gives it before scaling to 8 bits
            image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}.get(raw[0], 1)
        rules: set[str] = set()
        if image.mode.startswith(("I", "F")):
            rgb = _rgb_of_numbers(image, rules)
        elif image.mode == "RGB" and any(";16" in mode for mode in raw) and colour is not None:
            rgb = _rgb_of_16_bits(image, file, colour, rules)
        else:
            rgb = _rgb_of_bytes(image, rules)
            rules |= {"16 bits" for mode in raw if ";16" in mode}
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    return DecodedPhoto(rgb if turn is None else rgb.transpose(turn), tuple(sorted(rules)))


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_HEIGHT, 0))
    bytes_each = PIXEL_BYTES.get(str(image.format), OTHER_PIXEL_BYTES)
    if max(width * height, tile) > MOST_MEMORY // bytes_each:
        raise BadPhoto(
            f"more pixels than a photo has: {width} x {height}, at most "
            f"{MOST_MEMORY // bytes_each:,} in {image.format}"
        )


def _raw_modes(image: Any) -> list[str]:
    """How the file packs its pixels, in Pillow's words ("RGB;16B"); of unknown kinds [""]."""
    found = [
        argument
        for tile in image.tile[:1]
        for argument in ((tile.args,) if isinstance(tile.args, str) else tile.args or ())
        if isinstance(argument, str)
    ]
    return found or [""]


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, strip) of an image: whole copies of large ones take gigabytes."""
    rows = max(1, STRIP_PIXELS // image.width)
    for first in range(0, image.height, rows):
        yield first, image.crop((0, first, image.width, min(first + rows, image.height)))


def _rgb_of_bytes(image: Image.Image, rules: set[str]) -> Image.Image:
    """RGB of an image of 8 bits a channel."""
    if getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (1,))[0] == 2:
        raise BadPhoto("signed numbers of 8 bits have no agreed white")
    clear = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if image.mode == "RGB" and not clear:
        return image
    if image.mode in ("CMYK", "LAB"):
        rules.add(image.mode)
    rgb = Image.new("RGB", image.size)
    for first, strip in _strips(image):
        if clear:
            # Pillow knows no way from premultiplied grey to RGBA
            layer = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            strip = layer
            if np.asarray(layer.getchannel("A")).min() < 255:
                rules.add("alpha")
                white = Image.new("RGBA", layer.size, "white")
                strip = Image.alpha_composite(white, layer)
        elif strip.mode == "LAB":
            strip = _rgb_of_lab(strip)
        rgb.paste(strip.convert("RGB"), (0, first))
    return rgb


def _rgb_of_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # it is where the image is not changed in place
    return converted


def _rgb_of_16_bits(
    image: Image.Image, file: IO[bytes], colour: tuple[int, ...], rules: set[str]
) -> Image.Image:
    """RGB of a PNG of 16 bits with a transparent colour, of which Pillow keeps the high bytes."""
    rules.add("16 bits")
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as low:
        # PNG's numbers begin with the high byte; read as if they began with the low one, Pillow
        # keeps the other
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
        rgb = Image.new("RGB", image.size)
        for (first, high_strip), (_, low_strip) in zip(_strips(image), _strips(low), strict=True):
            pixels_HW3 = np.array(high_strip)
            numbers_HW3 = pixels_HW3.astype(np.uint16) << 8 | np.asarray(low_strip)
            clear_HW = (numbers_HW3 == colour).all(axis=2)
            rules |= {"alpha"} if clear_HW.any() else set()
            pixels_HW3[clear_HW] = 255
            rgb.paste(Image.fromarray(pixels_HW3), (0, first))
    return rgb


def _rgb_of_numbers(image: Image.Image, rules: set[str]) -> Image.Image:
    """RGB of a grey image of more than 8 bits."""
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(BITS, (32 if image.mode == "F" else 16,))[0])
    kind = int(tags.get(SAMPLE_FORMAT, (3 if image.mode == "F" else 1,))[0])
    rules.add("float" if kind == 3 else f"{bits} bits")
    unsigned = bits == 32 and kind == 1

    def strips() -> Iterator[tuple[int, np.ndarray]]:
        for first, strip in _strips(image):
            values_HW = np.asarray(strip)
            # Pillow has signed numbers of 32 bits only
            values_HW = values_HW.view(np.uint32) if unsigned else values_HW
            with np.errstate(invalid="ignore"):  # NaN
                yield first, values_HW.astype(np.float64)

    if kind == 1 and bits < 32:
        white = 2.0**bits - 1
    elif kind == 3:
        white = _white((1, 255, 65535), strips())
    else:
        most = 2.0**32 - 1 if unsigned else 2.0 ** (bits - 1) - 1
        white = _white((255, 65535, most) if bits == 32 else (255, most), strips())
    colour = image.info.get("transparency")
    rgb = Image.new("RGB", image.size)
    for first, values_HW in strips():
        scaled_HW = values_HW * (255 / white)
        if tags.get(PHOTOMETRIC) == 0:  # MinIsWhite, which Pillow turns round up to 8 bits only
            scaled_HW = 255 - scaled_HW
        if colour is not None:
            clear_HW = values_HW == colour
            rules |= {"alpha"} if clear_HW.any() else set()
            scaled_HW[clear_HW] = 255
        grey_HW = np.clip(np.round(scaled_HW), 0, 255).astype(np.uint8)
        rgb.paste(Image.fromarray(grey_HW).convert("RGB"), (0, first))
    return rgb


def _white(candidates: tuple[float, ...], strips: Iterator[tuple[int, np.ndarray]]) -> float:
    """The number that is white: the smallest candidate that no number is above.

    Raises:
        BadPhoto: a number is not finite or clearly negative, or no candidate fits.
    """
    least, most = 0.0, 0.0
    for _, values_HW in strips:
        if not np.isfinite(values_HW).all():
            raise BadPhoto("its numbers are not all finite")
        least, most = min(least, values_HW.min()), max(most, values_HW.max())
    white = next((number for number in candidates if most <= number * BEYOND), 0.0)
    if least < -(BEYOND - 1) * white:
        raise BadPhoto(f"its numbers go down to {least:g}: no brightness")
    if not white or (white > candidates[0] and most < white * REACHED):
        known = ", ".join(f"{number:g}" for number in candidates)
        raise BadPhoto(f"its numbers go up to {most:g}: white is none of {known}")
    return white
