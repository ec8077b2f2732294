"""Where a store's bytes come from: a local folder, or a URL through fsspec."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import google_crc32c

from gridvlp.errors import first_line
from gridvlp.store.errors import StoreError, StoreRefused, StoreUnreachable

TRIES = 4  # of a request that fails
PAUSE = 0.2  # seconds before the second try; four times as long before each further one
REQUESTS_AT_ONCE = 16
BLOCK = 1 << 20
Range = tuple[int, int]  # offset, bytes

# what reads a kind of URL beside fsspec, and how it is installed
EXTRAS = {
    "s3": ("s3fs", "'gridvlp[remote]'"),
    "gs": ("gcsfs", "'gridvlp[remote]'"),
    "http": ("aiohttp", "'gridvlp[remote]'"),
    "https": ("aiohttp", "'gridvlp[remote]'"),
    "az": ("adlfs", "'gridvlp[remote]' adlfs"),
    "abfs": ("adlfs", "'gridvlp[remote]' adlfs"),
    "abfss": ("adlfs", "'gridvlp[remote]' adlfs"),
}


def location(place: str | Path) -> str | Path:
    """A local path or file:// as a Path, another URL as text (a Path would fold its slashes)."""
    text = str(place)
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://").removeprefix("localhost")))
    if "://" in text:
        return text if "?" in text else text.rstrip("/")
    return Path(place)


def without_query(place: str | Path) -> tuple[str, str]:
    """A store's place as it may be shown, and its URL's query, which may be a password."""
    text = str(place)
    end = text.find("?") if text.lower().startswith("http") else -1  # elsewhere names may have it
    return (text, "") if end < 0 else (text[:end].rstrip("/"), text[end:])


def local_folder(place: str | Path) -> Path:
    """The folder of a store that is to be written.

    Raises:
        StoreError: it is a URL.
    """
    folder = location(place)
    if isinstance(folder, str):
        raise StoreError(f"{place}: a store is written to a local folder and then copied.")
    return folder


def store_files(place: str | Path) -> LocalFiles | RemoteFiles:
    """The files of a store.

    Raises:
        StoreError: a URL of a kind that cannot be read.
    """
    return LocalFiles(place) if isinstance(place, Path) else RemoteFiles(place)


class LocalFiles:
    """The files of a folder, by their names with slashes."""

    def __init__(self, folder: Path) -> None:
        self.place = folder

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        return (self.place / name).read_bytes()

    def read_some(self, names: Sequence[str], some_read: bool = False) -> list[bytes | None]:
        """Whole files; None for one that is not there."""

        def read(name: str) -> bytes | None:
            try:
                return self.read(name)
            except (FileNotFoundError, NotADirectoryError):
                return None

        return [read(name) for name in names]

    def ranges(self, name: str, wanted: Sequence[Range]) -> list[bytes]:
        """Some byte ranges of a file.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: it ends before.
        """
        file = os.open(self.place / name, os.O_RDONLY)
        try:
            return [_whole(os.pread(file, size, offset), size) for offset, size in wanted]
        finally:
            os.close(file)

    def tail(self, name: str, size: int, file_bytes: int | None) -> bytes:
        """The last bytes of a file, which has that many in all if it is known; errors as above."""
        file = os.open(self.place / name, os.O_RDONLY)
        try:
            length = os.fstat(file).st_size
            if file_bytes not in (None, length):
                raise ValueError(f"its file has {length:,} bytes, not {file_bytes:,}")
            return _whole(os.pread(file, size, max(length - size, 0)), size)
        finally:
            os.close(file)

    def checked(self, name: str) -> memoryview:
        """A file, mapped, without its last four bytes: the CRC-32C of those before.

        Raises:
            OSError: it is not there, or cannot be read.
            ValueError: its checksum is another.
        """
        with (self.place / name).open("rb") as file:
            left, check = os.fstat(file.fileno()).st_size - 4, 0
            if left <= 0:
                raise ValueError("it is cut short")
            while left and (block := file.read(min(BLOCK, left))):
                check, left = google_crc32c.extend(check, block), left - len(block)
            if check != int.from_bytes(file.read(4), "little"):
                raise ValueError("its checksum is another")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[:-4]

    def names(self, folder: str) -> list[str] | None:
        """The names in a folder.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        with os.scandir(self.place / folder) as entries:
            return [entry.name for entry in entries]

    def size(self) -> int | None:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.place.rglob("*") if file.is_file())


class RemoteFiles:
    """The files below a URL, read by range requests; safe to fork, to pickle and among threads.

    A request that fails is tried again. Raises as ``LocalFiles``, and StoreUnreachable where the
    server or the right to read is missing.
    """

    def __init__(self, url: str) -> None:
        self.place, self._query = without_query(url.rstrip("/") if "?" not in url else url)
        self._opened: tuple[int, Any] = (0, None)  # process, file system
        self._files()  # a kind that cannot be read is said at once

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": (0, None)}

    def read(self, name: str) -> bytes:
        """A whole file."""
        return self._get(name, 0, None)

    def read_some(self, names: Sequence[str], some_read: bool = False) -> list[bytes | None]:
        """Whole files, several at once; None for one that is not there.

        S3 refuses (403) to say that a file is missing to those who may not list. A refusal counts
        as that if something can be read: one of these files, or others before (``some_read``).
        """
        refusals = []

        def read(name: str) -> bytes | None:
            try:
                return self.read(name)
            except FileNotFoundError:
                return None
            except StoreRefused as error:
                refusals.append(error)
                return None

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            contents = list(pool.map(read, names))
        if refusals and not some_read and all(content is None for content in contents):
            raise refusals[0]
        return contents

    def ranges(self, name: str, wanted: Sequence[Range]) -> list[bytes]:
        """Some byte ranges of a file, several at once."""
        if len(wanted) == 1:
            return [self._get(name, wanted[0][0], sum(wanted[0]))]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(pool.map(lambda of: self._get(name, of[0], sum(of)), wanted))

    def tail(self, name: str, size: int, file_bytes: int | None) -> bytes:
        """The last bytes of a file; where it is known how many it has, those at that place."""
        if file_bytes is None:
            return self._get(name, -size, None)
        return self._get(name, file_bytes - size, file_bytes)

    def checked(self, name: str) -> memoryview:
        """A file without its last four bytes: the CRC-32C of those before."""
        found = self.read(name)
        if google_crc32c.value(found[:-4]) != int.from_bytes(found[-4:], "little"):
            raise ValueError("its checksum is another")
        return memoryview(found)[:-4]

    def names(self, folder: str) -> list[str] | None:
        """None: not every server lists its files, nor lets everyone do so."""
        return None

    def size(self) -> int | None:
        """None, as for ``names``."""
        return None

    def _get(self, name: str, start: int, end: int | None) -> bytes:
        url, asked = f"{self.place}/{name}", f"{self.place}/{name}{self._query}"
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 4 ** (attempt - 1))
            try:
                found: bytes = self._files().cat_file(asked, start=start, end=end)
            except (FileNotFoundError, StoreError):
                raise
            except Exception as error:  # each file system has errors of its own
                if _refused(error):
                    raise StoreRefused(
                        f"{url} may not be read ({self._said(error)}): give credentials as for the "
                        "provider's own tools (docs/data.md, 'Stores over a URL')."
                    ) from error
                if _past_the_end(error):
                    raise ValueError("its file is cut short") from error
                failed = error
                continue
            size = len(found) if start == 0 and end is None else (end or 0) - start
            if len(found) > size:
                raise StoreUnreachable(f"The server of {url} does not answer range requests.")
            return _whole(found, size)
        raise StoreUnreachable(
            f"{url} cannot be read ({self._said(failed)}), tried {TRIES} times: see to the network "
            "or the server, and run the same command again."
        ) from failed

    def _files(self) -> Any:
        if self._opened[0] != os.getpid():  # its thread is not there in a forked child
            kind = self.place.split("://")[0].lower()
            if kind not in EXTRAS:
                kinds = ", ".join(f"{known}://" for known in EXTRAS)
                raise StoreError(f"{self.place} cannot be read: a store's URL begins with {kinds}.")
            try:
                import fsspec

                options: dict[str, Any] = {}
                if kind in ("http", "https"):
                    import aiohttp

                    silence = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
                    headers = {"Accept-Encoding": "identity"}  # ranges are of the file's own bytes
                    options = {"client_kwargs": {"timeout": silence, "headers": headers}}
                    options["encoded"] = bool(self._query)  # a signature stays as it was made
                if kind == "s3":
                    options = {"config_kwargs": {"retries": {"max_attempts": 0}}}
                # fsspec knows Azure's third name only once adlfs is there
                files = fsspec.filesystem("abfs" if kind == "abfss" else kind, **options)
            except ImportError as error:
                package, install = EXTRAS[kind]
                raise StoreError(
                    f"{self.place} needs fsspec and {package}: pip install {install}."
                ) from error
            if kind == "s3":
                files.retries = 1  # and none of botocore's: those here are enough
            self._opened = (os.getpid(), files)
        return self._opened[1]

    def _said(self, error: Exception) -> str:
        said = first_line(error).rstrip(".")
        return said.replace(self._query, "") if self._query else said


def _whole(found: bytes, size: int) -> bytes:
    if len(found) != size:
        raise ValueError("its file is cut short")
    return found


def _past_the_end(error: Exception) -> bool:
    status = getattr(error, "status", getattr(error, "code", None))
    response = getattr(error.__cause__, "response", {})  # of boto's errors
    return status == 416 or response.get("Error", {}).get("Code") == "InvalidRange"


def _refused(error: Exception) -> bool:
    status = getattr(error, "status", getattr(error, "code", None))
    names = {kind.__name__ for kind in type(error).__mro__}
    lacking = {"PermissionError", "NoCredentialsError", "PartialCredentialsError"}
    return status in (401, 403) or bool(names & lacking)
