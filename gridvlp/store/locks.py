"""Who may write to a store: one writer alone, or one for each of its n parts.

The locks are flocks, which the kernel takes back when a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gridvlp.store.layout import StoreError


class WriterLock:
    """Held from here on until ``release`` or the end of the process.

    ``.writer.lock`` is held exclusively by a sole writer, and shared by the writers of parts; each
    of those holds ``.part-K.lock`` exclusively, too.

    Raises:
        StoreError: someone else writes, or the store is write-protected.
    """

    def __init__(self, store: Path, part: tuple[int, int] | None) -> None:
        self._files: list[IO[str]] = []
        try:
            with short_lock(store):
                self._take(store, part)
        except OSError as error:
            self.release()
            raise StoreError(f"{store} cannot be written: {error.strerror or error}.") from error
        except StoreError:
            self.release()
            raise

    def release(self) -> None:
        """Let others write."""
        for file in self._files:
            with suppress(OSError):
                file.close()

    def _take(self, store: Path, part: tuple[int, int] | None) -> None:
        parts = part[1] if part else None
        whole = self._open(store / ".writer.lock")
        if _try(whole, fcntl.LOCK_EX):
            _sign(whole, parts)
            if part is not None:  # no one can come between: openers hold the short lock
                fcntl.flock(whole, fcntl.LOCK_SH)
        else:
            who, others = _signed(whole)
            if others is None:
                raise StoreError(
                    f"{store} is being written by another process ({who}): wait for it, or stop it."
                )
            if parts != others or not _try(whole, fcntl.LOCK_SH):
                raise StoreError(
                    f"{store} is being written in {others} parts, first by {who}: wait for them, "
                    f"or write a part of {others}."
                )
        if part is not None:
            own = self._open(store / f".part-{part[0]}.lock")
            if not _try(own, fcntl.LOCK_EX):
                who, _ = _signed(own)
                raise StoreError(
                    f"Part {part[0]} of {part[1]} of {store} is being written by another process "
                    f"({who}): wait for it, or stop it."
                )
            _sign(own, parts)

    def _open(self, path: Path) -> IO[str]:
        self._files.append(path.open("a+"))
        return self._files[-1]


@contextmanager
def short_lock(store: Path) -> Iterator[None]:
    """For moments in which only one writer may act: opening, and making the arrays longer."""
    with (store / ".short.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file: IO[str], parts: int | None) -> None:
    """Leave word of who holds a lock."""
    file.truncate(0)
    file.write(json.dumps({"who": f"process {os.getpid()} on {socket.gethostname()}", "of": parts}))
    file.flush()


def _signed(file: IO[str]) -> tuple[str, int | None]:
    file.seek(0)
    try:
        word = json.load(file)
        return str(word["who"]), word["of"]
    except (ValueError, KeyError, TypeError):
        return "unknown", None
