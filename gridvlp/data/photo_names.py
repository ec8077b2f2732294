"""Which key a file has, and which file a name in an annotation means."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c

from gridvlp.store import canonical_key

NAME_BYTES = 255  # of a file's name, on nearly all file systems
# What has a meaning in a path, cannot be printed or encoded, or hides a file; and % itself
_UNSAFE = re.compile(r"[%/\\\x00-\x1f\x7f\ud800-\udfff]|^\.")

_Parts = tuple[str, ...]  # of a path, the folders first


def photo_keys(paths: Sequence[Path]) -> list[str]:
    """The key of each file: its canonical stem, with folders only where the stem is not enough.

    Files of one stem in different folders are different photos. Each has the shortest end of its
    path that no other of them has: "cam1/0001" and "cam2/0001". A key that comes twice means one
    photo as far as names tell: a.jpg and a.png in one folder, COCO's two names for a photo, and
    Visual Genome's photos among GQA's.
    """
    keys = [canonical_key(path.stem) for path in paths]
    groups: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        groups[key].append(place)
    for key, places in groups.items():
        if len(places) == 1:
            continue
        folders = {place: _folders(paths[place]) for place in places}
        homes: dict[str, set[_Parts]] = defaultdict(set)
        for place, parts in folders.items():
            homes[paths[place].stem].add(_numbering(parts) if key.isdecimal() else parts)
        if all(len(home) == 1 for home in homes.values()):
            continue
        ends = _shortest_ends({(*parts, key) for parts in folders.values()})
        for place, parts in folders.items():
            keys[place] = "/".join(ends[(*parts, key)])
    return keys


def _folders(path: Path) -> _Parts:
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(absolute.anchor).parts[:-1]


def _numbering(folders: _Parts) -> _Parts:
    """The folder, but one name for those that number the same photos: see image_ids."""
    shared = folders[-1:] in (("VG_100K",), ("VG_100K_2",)) or folders[-2:] == ("gqa", "images")
    return ("Visual Genome's numbers",) if shared else folders


def _shortest_ends(paths: set[_Parts]) -> dict[_Parts, _Parts]:
    """The shortest end of each path, of two parts or more, that no other path has."""
    ends: dict[_Parts, _Parts] = {}
    for length in range(2, max(map(len, paths)) + 1):
        counts = Counter(parts[-length:] for parts in paths)
        for parts in paths:
            if counts[parts[-length:]] == 1:
                ends.setdefault(parts, parts[-length:])
    return ends


def match_files(
    names: Sequence[str], files: Iterable[Path]
) -> tuple[list[Path | None], dict[str, str]]:
    r"""The file that each name in an annotation means, and why the others have none.

    A name means the one file that shares the most parts at the end of its path. A name with a
    folder means no file of another folder. Nothing outside of ``files`` is ever returned.

    Args:
        names: paths as an annotation has them, with / or \ between the parts.
        files: the photos that were found.

    Returns:
        A file or None for each name; and for each name without a file the reason.
    """
    parts_of = {name: _name_parts(name) for name in names}
    wanted: dict[str, list[_Parts]] = defaultdict(list)
    for parts in dict.fromkeys(parts_of.values()):
        wanted[parts[-1] if parts else ""].append(parts)
    candidates: dict[str, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(files):
        if file.name in wanted:
            candidates[file.name].append(file)
    matches: dict[_Parts, Path] = {}
    reasons: dict[_Parts, str] = {}
    for last, group in wanted.items():
        _match(group, candidates[last], matches, reasons)
    found = [matches.get(parts_of[name]) for name in names]
    return found, {name: reasons[parts] for name, parts in parts_of.items() if parts in reasons}


def _name_parts(name: str) -> _Parts:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _match(
    names: list[_Parts],
    files: list[Path],
    matches: dict[_Parts, Path],
    reasons: dict[_Parts, str],
) -> None:
    """Match names and files that have one last part."""
    by_end: dict[_Parts, list[Path]] = defaultdict(list)
    for file in files:
        parts = (*_folders(file), file.name)
        for length in range(1, min(len(parts), max(map(len, names))) + 1):
            by_end[parts[-length:]].append(file)
    owners: dict[Path, list[_Parts]] = defaultdict(list)
    for name in names:
        length = next((n for n in range(len(name), 0, -1) if name[-n:] in by_end), 0)
        best = by_end[name[-length:]] if length else []
        if not best:
            reasons[name] = "no file has that name"
        elif length < min(2, len(name)):
            reasons[name] = f"the file of that name is in another folder, {best[0].parent}"
        elif len(best) > 1:
            reasons[name] = f"several files have that name: {best[0]} and {best[1]}"
        else:
            owners[best[0]].append(name)
    for file, rivals in owners.items():
        if len(rivals) == 1:
            matches[rivals[0]] = file
            continue
        texts = ["/".join(name) for name in rivals]
        for name in rivals:
            reasons[name] = f"two names mean one file: {texts[0]} and {texts[1]} both mean {file}"


def file_name(key: str, suffix: str) -> str:
    """A file's name for a key: percent-encoded where a name cannot have it, and short enough.

    Two keys never share a name. That of a key which is too long ends in a hash.
    """
    name = _UNSAFE.sub(lambda unsafe: _percent(unsafe[0]), key)
    room = NAME_BYTES - len(suffix.encode())
    if len(name.encode()) > room:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        name = name.encode()[: room - len(digest) - 2].decode("utf-8", "ignore") + f"%~{digest}"
    return name + suffix


def _percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def passed_over_text(suffixes: Counter[str]) -> str:
    """A sentence, as "3 files passed over: 2 .heic, 1 without a suffix."; "" for none."""
    if not suffixes:
        return ""
    total = suffixes.total()
    kinds = ", ".join(
        f"{count:,} {suffix or 'without a suffix'}"
        for suffix, count in sorted(suffixes.items(), key=lambda entry: (-entry[1], entry[0]))
    )
    return f"{total:,} {'file' if total == 1 else 'files'} passed over: {kinds}."


def source_facts(path: Path) -> dict[str, Any]:
    """What a store keeps of the file that a map was made of, by which it is known again.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    return {
        "source": str(path),
        "source_bytes": len(content),
        "source_crc32c": google_crc32c.value(content),
    }


def stored_mismatch(key: str, paths: Sequence[Path], record: Mapping[str, Any]) -> str | None:
    """Why the map that a store has under a photo's key is not of that photo; None where it is.

    A file of the same folder and name is the same one if it has as many bytes. A file of another
    folder is the same one, which was moved, if its content is the same.

    Args:
        key: the photo's.
        paths: its files.
        record: the facts of the map, with those of ``source_facts``.
    """
    source = record.get("source")
    sizes = {path: size for path in paths if (size := _size(path)) is not None}
    if not isinstance(source, str) or not sizes:
        return None
    size, crc32c = record.get("source_bytes"), record.get("source_crc32c")
    tail = Path(source).parts[-2:]
    there = [path for path in sizes if path.parts[-2:] == tail]
    if there:
        if size is None or size in (sizes[path] for path in there):
            return None
        return (
            "the file has changed since it was extracted; use another store: "
            f"{size:,} bytes then, {sizes[there[0]]:,} now"
        )
    if any(sizes[path] == size and source_facts(path)["source_crc32c"] == crc32c for path in sizes):
        return None
    return (
        "the store has another photo under its key; name the folders of both in one command, "
        f"which tells them apart, into another store: {key} is of {source}"
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
