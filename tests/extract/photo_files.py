"""Photo files that Pillow does not write itself."""

import struct
import zlib
from pathlib import Path

import numpy as np

SAMPLES = {"u": 1, "i": 2, "f": 3}


def write_tiff(
    path: Path, pixels: np.ndarray, photometric: int = 1, bits: int = 0, order: str = "<"
) -> Path:
    """One uncompressed strip of grey pixels (H, W), of the array's type, or of packed bits."""
    height, width = pixels.shape
    kind, size = pixels.dtype.kind, 8 * pixels.dtype.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    if bits == 12:  # two numbers in three bytes
        pairs = pixels.reshape(-1, 2).astype(np.uint32)
        packed = pairs[:, 0] << 12 | pairs[:, 1]
        data = b"".join(int(number).to_bytes(3, "big") for number in packed)
    tags = {256: width, 257: height, 258: bits or size, 259: 1, 262: photometric, 273: 8}
    tags |= {277: 1, 278: height, 279: len(data), 339: SAMPLES[kind]}
    entries = b"".join(struct.pack(order + "HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    data += b"\0" * (len(data) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    count = struct.pack(order + "H", len(tags))
    path.write_bytes(head + data + count + entries + b"\0\0\0\0")
    return path


def write_png(
    path: Path, pixels: np.ndarray, bits: int = 8, transparent: tuple[int, ...] = ()
) -> Path:
    """Grey (H, W) or RGB (H, W, 3) with the transparent colour of a tRNS chunk."""
    height, width = pixels.shape[:2]
    colour = 0 if pixels.ndim == 2 else 2
    if bits == 16:
        rows = pixels.astype(">u2")
    elif bits == 4:
        rows = (pixels[:, ::2] << 4 | pixels[:, 1::2]).astype(np.uint8)
    else:
        rows = pixels.astype(np.uint8)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    if transparent:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    chunks.append((b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))))
    chunks.append((b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    return path
