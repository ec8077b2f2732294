"""Readers written from docs/store-format.md alone, without gridvlp, find the same maps."""

import bisect
import hashlib
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zstandard

from gridvlp.store import FeatureStore, StoreWriter

C = 24
SIZES = {
    "COCO_val2014_000000262148": (19, 32),
    "2345": (1, 1),
    "wide": (4, 5),
    "odd": (7, 3),
    "ключ \udcff": (10, 13),
}


def z(g: int, seed: int) -> int:
    wrap = 2**64 - 1
    s = (seed + g) * 0x9E3779B97F4A7C15 & wrap
    s = (s ^ (s >> 30)) * 0xBF58476D1CE4E5B9 & wrap
    s = (s ^ (s >> 27)) * 0x94D049BB133111EB & wrap
    return s ^ (s >> 31)


def unpacked(chunk: bytes) -> bytes:
    """The numbers of a chunk."""
    version, _, flags, size, *sizes = struct.unpack_from("<BBBBIIIII", chunk)
    assert (version, flags & ~1, sizes[2], sizes[4]) == (2, 0x90, len(chunk), len(chunk) - 24)
    planes = zstandard.ZstdDecompressor().decompress(chunk[24:])
    assert len(planes) == sizes[0] == sizes[1]
    count = len(planes) // size
    return bytes(planes[byte * count + number] for number in range(count) for byte in range(size))


def read_by_the_book(store: Path) -> dict[str, np.ndarray]:
    """All maps of a store: files, struct and zstd only."""
    about = json.loads((store / "zarr.json").read_bytes())["attributes"]["gridvlp"]
    assert about["format_version"] == 5
    del about["crc32c"]
    text = json.dumps(about, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    name_of_store = hashlib.sha256(text.encode()).hexdigest()
    channels, chunk_rows = about["channels"], about["chunk_grids"]
    array = json.loads((store / "grids" / "zarr.json").read_bytes())
    shard_rows = array["chunk_grid"]["configuration"]["chunk_shape"][0]
    dtype = np.dtype(array["data_type"]).newbyteorder("<")
    chunks = shard_rows // chunk_rows
    maps = {}
    for file in sorted((store / "index").iterdir()):
        if file.name.startswith("."):
            continue
        line, check, end = file.read_bytes().split(b"\n")
        assert json.loads(check)["crc32c"] == google_crc32c.value(line)
        assert end == b""
        columns = json.loads(line)
        assert columns["store"] == name_of_store
        facts = (store / "facts" / file.name).read_bytes()
        assert columns["facts"] == hashlib.sha256(facts).hexdigest()[:32]
        shard = (store / "grids" / "c" / str(int(file.stem)) / "0").read_bytes()
        tail, named = shard[-20 * chunks - 4 :], columns["arrays"]["grids"]
        assert len(shard) == named["bytes"]
        assert hashlib.sha256(tail).hexdigest()[:32] == named["tail"]
        checks, index = tail[: 4 * chunks], tail[4 * chunks : -4]
        assert google_crc32c.value(index) == struct.unpack("<I", tail[-4:])[0]
        for key, start, height, width in zip(
            columns["key"], columns["start"], columns["height"], columns["width"], strict=True
        ):
            assert start % chunk_rows == 0
            assert start // shard_rows == int(file.stem)
            first = start % shard_rows // chunk_rows
            rows = b""
            for chunk in range(first, first + -(-height * width // chunk_rows)):
                offset, length = struct.unpack_from("<QQ", index, 16 * chunk)
                assert offset != 2**64 - 1
                stored = shard[offset : offset + length]
                assert stored[-4:] == checks[4 * chunk : 4 * chunk + 4]
                rows += unpacked(stored)
            rows_GC = np.frombuffer(rows, dtype).reshape(-1, channels)
            map_HWC = np.empty((height, width, channels), np.float32)
            order = sorted(range(height * width), key=lambda g: z(g, about["order_seed"]))
            for row, g in enumerate(order):
                map_HWC[g // width, g % width] = rows_GC[row]
            maps[key] = map_HWC.transpose(2, 0, 1)
    return maps


def test_regions_are_read_by_plain_zarr_as_the_page_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = (36, 1, 100)
    boxes = [np.sort(rng.random((n, 2, 2), np.float32), 1).reshape(n, 4) for n in counts]
    classes = [rng.integers(0, 1600, n) for n in counts]
    features = [rng.random((C, 1, n), np.float32) for n in counts]
    with StoreWriter.create(tmp_path / "s", channels=C, dtype="float32", kind="regions") as writer:
        for i, n in enumerate(counts):
            given = {} if n == 1 else {"classes_N": classes[i], "scores_N": boxes[i][:, 0]}
            writer.add(str(i), features[i], boxes[i], **given)
    import zarr

    group: Any = zarr.open_group(tmp_path / "s", mode="r")
    about = group.attrs["gridvlp"]
    assert about["kind"] == "regions"
    columns = json.loads((tmp_path / "s/index/000000.jsonl").read_text().splitlines()[0])
    for i, n in enumerate(counts):
        order = sorted(range(n), key=lambda g: z(g, about["order_seed"]))
        rows = slice(columns["start"][i], columns["start"][i] + n)
        np.testing.assert_array_equal(group["grids"][rows], features[i][:, 0].T[order])
        np.testing.assert_array_equal(group["boxes"][rows], boxes[i][order])
        np.testing.assert_array_equal(group["classes"][rows], classes[i][order] if n > 1 else -1)
        scores = boxes[i][order, 0] if n > 1 else np.nan
        np.testing.assert_array_equal(group["scores"][rows], scores)
    for name in ("boxes", "classes", "scores"):
        array = json.loads((tmp_path / "s" / name / "zarr.json").read_text())
        grids = json.loads((tmp_path / "s" / "grids" / "zarr.json").read_text())
        assert array["shape"][0] == grids["shape"][0]
        assert (
            array["codecs"][0]["configuration"]["codecs"][1:]
            == (grids["codecs"][0]["configuration"]["codecs"][1:])
        )


def make(path: Path, dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    maps = {
        key: rng.standard_normal((C, *size)).astype(dtype).astype(np.float32)
        for key, size in SIZES.items()
    }
    with StoreWriter.create(path, channels=C, dtype=dtype) as writer:
        for key, map_CHW in maps.items():
            writer.add(key, map_CHW, source=f"{key}.jpg")
            if key == "wide":
                writer.flush()
    return maps


def packed_by_the_book(store: Path, key: str) -> tuple[int, int, int]:
    """start, H and W of a map, by binary search in index.bin."""
    content = (store / "index.bin").read_bytes()
    assert content[:8] == b"gvlpidx2"
    assert google_crc32c.value(content[:-4]) == struct.unpack("<I", content[-4:])[0]
    maps, shards, _ = struct.unpack_from("<3Q", content, 40)
    hashes, starts, ends = (64 + 8 * maps * n for n in range(3))
    files = ends + 8 * maps + 8 * shards
    places = files + (16 + 24) * shards
    keys = places + 12 * maps
    for row in range(shards):
        (shard,) = struct.unpack_from("<Q", content, files - 8 * (shards - row))
        line = json.loads((store / "index" / f"{shard:06}.jsonl").read_bytes().splitlines()[0])
        assert content[8:40].hex() == line["store"]
        facts, length, tail = struct.unpack_from("<16sQ16s", content, files + 40 * row)
        assert facts.hex() == line["facts"]
        assert {"bytes": length, "tail": tail.hex()} == line["arrays"]["grids"]
    letters = key.encode("utf-8", "surrogatepass")
    match = re.fullmatch(r"COCO_(train|val|test)\d{4}_(\d{12})", key)
    canonical = match[2].encode() if match else letters
    wanted = int.from_bytes(hashlib.sha256(canonical).digest()[:8], "little")
    at = bisect.bisect_left(
        range(maps), wanted, key=lambda i: struct.unpack_from("<Q", content, hashes + 8 * i)[0]
    )
    assert struct.unpack_from("<Q", content, hashes + 8 * at)[0] == wanted
    (place,) = struct.unpack_from("<I", content, places + 4 * at)
    (end,) = struct.unpack_from("<Q", content, ends + 8 * place)
    begin = struct.unpack_from("<Q", content, ends + 8 * (place - 1))[0] if place else 0
    assert content[keys + begin : keys + end] == letters
    (start,) = struct.unpack_from("<Q", content, starts + 8 * place)
    (height,) = struct.unpack_from("<I", content, places + 4 * (maps + place))
    (width,) = struct.unpack_from("<I", content, places + 4 * (2 * maps + place))
    return start, height, width


def test_the_packed_index_is_as_the_page_says(tmp_path: Path) -> None:
    make(tmp_path / "s", "float16")
    rows = {}
    for file in (tmp_path / "s" / "index").iterdir():
        maps = json.loads(file.read_text().splitlines()[0])
        for key, *place in zip(
            *(maps[n] for n in ("key", "start", "height", "width")), strict=True
        ):
            rows[key] = tuple(place)
    assert set(rows) == set(SIZES)
    for key, place in rows.items():
        assert packed_by_the_book(tmp_path / "s", key) == place


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_reader_written_from_the_page_finds_every_map(tmp_path: Path, dtype: str) -> None:
    maps = make(tmp_path / "s", dtype)
    found = read_by_the_book(tmp_path / "s")
    assert list(found) == list(maps)
    for key, map_CHW in maps.items():
        np.testing.assert_array_equal(found[key], map_CHW)
        np.testing.assert_array_equal(FeatureStore(tmp_path / "s").map(key), map_CHW)


PLAIN_ZARR = """
import json, sys
from pathlib import Path
import numpy as np, zarr
store = Path(sys.argv[1])
grids = zarr.open_group(store, mode="r")["grids"]
assert "Batched" in zarr.config.get("codec_pipeline.path")
out = {}
for file in sorted((store / "index").glob("*.jsonl")):
    maps = json.loads(file.read_text("utf-8").splitlines()[0])
    for i, start in enumerate(maps["start"]):
        count = maps["height"][i] * maps["width"][i]
        out[f"{file.stem}-{i}"] = grids[start : start + count]
np.savez(sys.argv[2], **out)
assert "gridvlp" not in sys.modules
"""


def test_plain_zarr_reads_the_rows(tmp_path: Path) -> None:
    maps = make(tmp_path / "s", "float16")
    subprocess.run(
        [sys.executable, "-c", PLAIN_ZARR, str(tmp_path / "s"), str(tmp_path / "out.npz")],
        check=True,
    )
    seed = json.loads((tmp_path / "s" / "zarr.json").read_text())["attributes"]["gridvlp"][
        "order_seed"
    ]
    with np.load(tmp_path / "out.npz") as rows:
        for name, map_CHW in zip(sorted(rows), maps.values(), strict=True):
            grids_GC = map_CHW.reshape(C, -1).T
            order = sorted(range(len(grids_GC)), key=lambda g: z(g, seed))
            np.testing.assert_array_equal(rows[name].astype(np.float32), grids_GC[order])


def test_rows_that_no_map_owns_are_zeros_or_missing(
    tmp_path: Path,
) -> None:
    import zarr

    make(tmp_path / "s", "float16")
    group: Any = zarr.open_group(tmp_path / "s", mode="r")
    rows_GC = group["grids"][:]
    free = np.ones(len(rows_GC), bool)
    for file in (tmp_path / "s" / "index").glob("*.jsonl"):
        maps = json.loads(file.read_text().splitlines()[0])
        for start, height, width in zip(maps["start"], maps["height"], maps["width"], strict=True):
            assert start % 20 == 0
            taken = slice(start, start + height * width)
            assert free[taken].all()
            free[taken] = False
    between = np.isfinite(rows_GC[free])
    assert 0 < between.sum() < between.size
    assert not rows_GC[free][between].any()


def test_the_page_states_what_is_written(tmp_path: Path) -> None:
    """The constants of the page are those on disk."""
    page = Path(__file__).parents[2] / "docs" / "store-format.md"
    text = page.read_text(encoding="utf-8")
    make(tmp_path / "s", "float16")
    about = json.loads((tmp_path / "s" / "zarr.json").read_text())["attributes"]["gridvlp"]
    stated = re.search(r"0x(67\w+) = (\d+)", text)
    assert stated is not None
    assert about["order_seed"] == int(stated[1], 16) == int(stated[2])
    example = ", ".join(map(str, sorted(range(8), key=lambda g: z(g, about["order_seed"]))))
    assert f"the list is {example}." in text
    for field in about:
        assert f"`{field}`" in text
    for field in json.loads(
        (tmp_path / "s" / "index" / "000000.jsonl").read_text().splitlines()[0]
    ):
        assert f"`{field}`" in text
    array = json.loads((tmp_path / "s" / "grids" / "zarr.json").read_text())
    assert array["fill_value"] == "NaN"
    assert array["chunk_key_encoding"]["configuration"]["separator"] == "/"
    (sharding,) = array["codecs"]
    inner = sharding["configuration"]
    assert inner["chunk_shape"] == [20, C]
    assert inner["index_location"] == "end"
    assert [codec["name"] for codec in inner["codecs"]] == ["bytes", "blosc"]
    blosc = inner["codecs"][1]["configuration"]
    assert (blosc["cname"], blosc["shuffle"], blosc["typesize"]) == ("zstd", "shuffle", 2)
    assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
