"""How a store keeps the numbers of a map: as they are, as bfloat16, or as a byte with a scale.

bfloat16 is kept as its 16 bits in uint16, since Zarr v3 has no such core type. int8 is kept as
uint8 with an offset and a scale for each channel of each map: a map after a ReLU has offset 0, so
that zeros stay zeros. A map's bytes depend on that map alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

KEPT_AS = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "int8": "u1"}
DTYPES = tuple(KEPT_AS)
# 255 would halve the error, which at 127 is that of the encoder's own bfloat16 arithmetic, for a
# tenth more bytes (docs/history.md)
LEVELS = 127
LEAST_SCALE = np.float16(2.0**-24)  # the smallest float16 above zero


# float32 of the bits of every float16: a look-up takes a sixth of NumPy's conversion
FLOAT16 = np.arange(1 << 16, dtype="<u2").view("<f2").astype(np.float32)


def holding(dtype: str) -> np.dtype:
    """The NumPy type that holds every number of a store of that dtype."""
    return np.dtype("<f2" if dtype == "float16" else "<f4")


def keep(dtype: str, grids_GC: np.ndarray) -> dict[str, np.ndarray]:
    """Grids as rows of the array ``grids`` and, of int8, one row (1, 2, C) of ``scales``.

    Raises:
        ValueError: a number is not finite, or too large for the dtype, or they are not real.
    """
    if grids_GC.dtype.kind in "cOSUmM":
        raise ValueError(f"{grids_GC.dtype} values, which are not real numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "int8":
            return _as_bytes(grids_GC.astype(np.float32))
        if dtype == "bfloat16":
            kept_GC = _to_bfloat16(grids_GC.astype(np.float32))
            _check(from_bfloat16(kept_GC), dtype)
        else:
            kept_GC = grids_GC.astype(KEPT_AS[dtype])
            _check(kept_GC, dtype)
    return {"grids": kept_GC}


def converted(values: np.ndarray, dtype: Any) -> np.ndarray:
    """The same numbers in another dtype."""
    if values.dtype == np.float16 and np.dtype(dtype) == np.float32:
        return FLOAT16.take(values.view("<u2"))
    return values.astype(dtype, copy=False)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of the bits of bfloat16 ones."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def from_bytes(bytes_GC: np.ndarray, scales_2C: np.ndarray) -> np.ndarray:
    """The float32 numbers of bytes: scale times byte, plus offset."""
    scale_C, offset_C = scales_2C.astype(np.float32)
    grids_GC = bytes_GC * scale_C
    if offset_C.any():
        grids_GC += offset_C
    return grids_GC


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round to the nearest, to even where two are equally near."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # a NaN may not round to infinity, nor wrap around
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")


def _as_bytes(grids_GC: np.ndarray) -> dict[str, np.ndarray]:
    _check(grids_GC, "int8")
    offset_C = np.minimum(grids_GC.min(0), 0).astype(np.float16)
    offset_C = np.where(offset_C > grids_GC.min(0), np.nextafter(offset_C, -np.inf), offset_C)
    above_GC = grids_GC - offset_C.astype(np.float32)
    step_C = above_GC.max(0) / LEVELS
    scale_C = step_C.astype(np.float16)
    scale_C = np.where(scale_C < step_C, np.nextafter(scale_C, np.inf), scale_C)
    scale_C = np.maximum(scale_C, LEAST_SCALE)
    scales_2C = np.stack([scale_C, offset_C]).astype("<f2")
    _check(scales_2C, "int8")
    bytes_GC = np.rint(above_GC / scale_C.astype(np.float32)).astype("u1")
    return {"grids": bytes_GC, "scales": scales_2C[None]}


def _check(values: np.ndarray, dtype: str) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"values that are not finite in {dtype}")
