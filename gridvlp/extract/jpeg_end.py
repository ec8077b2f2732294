"""JPEGs without an end marker: which lack only that, and which lack pixels."""

from __future__ import annotations

import hashlib
import io
import os
import re
from typing import IO

import numpy as np
from PIL import Image

START, END = b"\xff\xd8", b"\xff\xd9"
SCAN, RESTART_INTERVAL = 0xDA, 0xDD  # markers of ISO/IEC 10918-1, B.1
DECODED_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
MARKER = re.compile(rb"\xff[^\x00\xff]")
# Where a scan is cut, each becomes other pixels, and other ones than the zeros of libjpeg do.
FILLERS = tuple(bytes(pattern) * 500 for pattern in ((0xB5, 0x6A, 0x9D), (0x5B,), (0xE3, 0x4D)))


def ends_in_zeros(file: IO[bytes]) -> bool:
    """Whether a JPEG has zeros in place of its end, as a download that was cut on a filled disk.

    A decoder takes them for pixels, without a word.
    """
    file.seek(0)
    if file.read(2) != START:
        return False
    file.seek(-2, os.SEEK_END)
    if any(file.read()):
        return False
    file.seek(0)
    data = file.read()
    return END not in data[max(0, data.rfind(bytes((0xFF, SCAN)))) :]


def whole_jpeg(file: IO[bytes]) -> IO[bytes] | None:
    """The file with an end marker, if the marker is all that it lacks; None otherwise.

    Where all pixels are there, a decoder needs nothing that comes behind them: they are the same
    whatever follows. JPEGs with restart intervals are not judged: a decoder fills a gap at the end
    of an interval without a word.
    """
    file.seek(0)
    if file.read(2) != START:
        return None
    data = START + file.read().rstrip(b"\xff")  # half an end marker
    try:
        if not _has_all_scans(data):
            return None
        pixels = _digest(data + END)
        if any(_digest(data + filler + END) != pixels for filler in FILLERS):
            return None
    except Exception:  # Pillow's decoders raise anything, as in decode_photo
        return None
    return io.BytesIO(data + END)


def _digest(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return hashlib.blake2b(np.asarray(image).data).digest()


def _has_all_scans(data: bytes) -> bool:
    """Whether every coefficient's last bit belongs to a scan that begins in the data."""
    place = 2
    absent: set[tuple[int, int]] | None = None  # component, coefficient
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        body = data[place + 4 : place + 2 + length]
        if marker in OTHER_FRAMES or (marker == RESTART_INTERVAL and any(body)):
            return False
        if marker in DECODED_FRAMES:
            absent = {(component, k) for component in body[6::3] for k in range(64)}
        place += 2 + length
        if marker == SCAN and absent:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]  # ValueError where cut
            if bits & 0xF == 0:  # no bit is left to a later scan
                ids = body[1 : 1 + 2 * count : 2]
                absent -= {(component, k) for component in ids for k in range(first, last + 1)}
            following = MARKER.search(data, place)
            if following is None:
                return not absent
            place = following.start()
    return False
