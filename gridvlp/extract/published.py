"""grid-feats-vqa's published weights, fetched once into the user's cache.

A file is downloaded under another name, gone on with after an interruption, and renamed when it is
whole; its sha256 is recorded beside it and checked whenever it is used.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gridvlp.atomic import user_cache, write_json
from gridvlp.errors import UserError
from gridvlp.extract.foreign_checkpoints import sha256_of
from gridvlp.run.progress import track

ADDRESS = "https://dl.fbaipublicfiles.com/grid-feats-vqa"
FILES = {name: f"{title}/{title}.pth" for name, title in (
    ("r50", "R-50"), ("x101", "X-101"), ("x152", "X-152"))}  # fmt: skip
SECONDS = 30.0  # without a byte, and the connection is taken to be lost
PAUSE = 1.0
TRIES = 2  # in a row that bring nothing new
CHUNK = 1 << 20
BEGINNINGS = (b"P", b"\x80")  # of a checkpoint: torch's zip, or its older pickle


def published_weights(name: str) -> Path:
    """The file of ``FILES[name]``, downloaded if it is not in the cache.

    Raises:
        UserError: it cannot be fetched or written, or is not the file that was fetched.
    """
    folder = user_cache() / "weights"
    url = f"{ADDRESS}/{FILES[name]}"
    path = folder / Path(FILES[name]).name
    record = path.with_name(f"{path.name}.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one downloads
            if not path.exists():
                part = path.with_name(f".{path.name}.part")
                _download(url, part)
                write_json(record, {"url": url, "sha256": sha256_of(part)})
                os.replace(part, path)
                part.with_name(f"{part.name}.json").unlink(missing_ok=True)
            elif not record.exists():  # put here by hand
                write_json(record, {"url": None, "sha256": sha256_of(path)})
            elif sha256_of(path) != _about(record).get("sha256"):
                raise UserError(
                    f"{path} is not the file that was downloaded (its sha256 differs): delete it "
                    "and it is fetched again."
                )
    except OSError as error:
        raise UserError(
            f"The weights {name} cannot be kept in {folder} ({error.strerror or error}): make "
            "room, or name another folder in the environment variable GRIDVLP_CACHE."
        ) from error
    return path


def _download(url: str, part: Path) -> None:
    """Fetch until the file is whole, going on where a lost connection left it."""
    failures, reason = 0, ""
    while failures < TRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _fetch(url, part, before):
                return
            reason = "the connection was lost"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what is there is not of this file
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise UserError(_unreachable(url, f"the server answers {error.code}")) from error
            reason = f"the server answers {error.code}"
        except urllib.error.URLError as error:
            reason = str(getattr(error.reason, "strerror", None) or error.reason)
        except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(error) or type(error).__name__
        grown = part.exists() and part.stat().st_size > before
        failures = 0 if grown else failures + 1
        if failures < TRIES:
            time.sleep(PAUSE)
    raise UserError(_unreachable(url, reason))


def _unreachable(url: str, reason: str) -> str:
    return (
        f"{url} cannot be fetched ({reason}). What has come so far is kept, and the same command "
        "goes on; or fetch the file elsewhere and give its path in place of the name."
    )


def _fetch(url: str, part: Path, begin: int) -> bool:
    """One request; returns whether the file is whole."""
    state = part.with_name(f"{part.name}.json")
    version = _about(state).get("version") if begin else None
    headers = {"User-Agent": "gridvlp"}
    if version:
        headers |= {"Range": f"bytes={begin}-", "If-Range": version}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        going_on = (
            answer.status == 206
            and version is not None
            and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {begin}-")
        )
        if answer.status == 206 and not going_on:
            raise UserError(_unreachable(url, "the server sends another part than was asked for"))
        begin = begin if going_on else 0
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length and length.isdigit() else None
        etag = answer.headers.get("ETag") or ""
        # a weak tag does not promise the same bytes
        strong = etag if etag and not etag.startswith("W/") else None
        write_json(state, {"version": strong or answer.headers.get("Last-Modified")})
        with (
            part.open("ab" if going_on else "wb") as file,
            track(f"Downloading {url}", (total or 0) >> 20, "MB", begin >> 20) as bar,
        ):
            done = begin
            while block := answer.read1(CHUNK):
                if not done and not block.startswith(BEGINNINGS):
                    raise UserError(_unreachable(url, "what the server sends is no checkpoint"))
                file.write(block)
                bar.advance(((done + len(block)) >> 20) - (done >> 20))
                done += len(block)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done > total:
        part.unlink()
    return bool(done) and (total is None or done == total)


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}
