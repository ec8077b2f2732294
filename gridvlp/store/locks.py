"""Who may write to a store: one writer alone, or one for each of its n parts.

The locks are flocks, which the kernel takes back when a process ends, however it ends. They spare
writers double work, but no map depends on them: some file systems have none, and on others each
machine sees only its own. There a shard's number is claimed by making a file that only one can
make, so that two writers never write the same shard.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gridvlp.store.errors import StoreError

# what flock says where a file system has none: Lustre without -o flock, some NFS and FUSE
NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}


class WriterLock:
    """Held from here on until ``release`` or the end of the process.

    ``.writer.lock`` is held exclusively by a sole writer, and shared by the writers of parts; each
    of those holds ``.part-K.lock`` exclusively, too. Where the file system has no locks, none is
    held and a warning says so.

    Raises:
        StoreError: someone else writes, or the store is write-protected.
    """

    def __init__(self, store: Path, part: tuple[int, int] | None) -> None:
        self._files: list[IO[str]] = []
        try:
            with short_lock(store) as works:
                self._take(store, part)
        except OSError as error:
            self.release()
            raise StoreError(f"{store} cannot be written: {error.strerror or error}.") from error
        except StoreError:
            self.release()
            raise
        if not works:
            warnings.warn(
                f"The file system of {store} has no locks, so that a second writer is not noticed "
                "at once. No map is lost by two, but they may do the same work.",
                stacklevel=3,
            )

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
                _try(whole, fcntl.LOCK_SH)
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
def short_lock(store: Path) -> Iterator[bool]:
    """For moments in which only one writer may act: opening, and making the arrays longer.

    Yields:
        Whether the file system has locks.
    """
    with (store / ".short.lock").open("a") as file:
        yield _lock(file, fcntl.LOCK_EX)


def claim_shard(store: Path, shard: int) -> bool:
    """Take a shard's number: True for one of all who try, on whatever machines, until it is freed.

    The claim of a writer that was killed is taken over on the machine where it ran; elsewhere no
    one can know that it is dead, and the number stays unused.

    Raises:
        OSError: the store cannot be written.
    """
    file = _claim_file(store, shard)
    if not _make(file):
        with short_lock(store) as works:  # or two could take over one claim
            if not (works and _is_of_the_dead(file)):
                return False
            file.unlink()
            if not _make(file):
                return False
    # Who was here first wrote its index before it gave the number up.
    if (store / "index" / f"{shard:06}.jsonl").exists():
        free_shard(store, shard)
        return False
    return True


def free_shard(store: Path, shard: int) -> None:
    """Give a claimed number up; the claimer writes no file of that shard from here on."""
    with suppress(OSError):
        _claim_file(store, shard).unlink()


def _claim_file(store: Path, shard: int) -> Path:
    return store / "index" / f".{shard:06}.claim"


def _make(file: Path) -> bool:
    try:
        with file.open("x") as claim:  # O_EXCL: one of all
            json.dump(_this_process(), claim)
    except FileExistsError:
        return False
    return True


def _is_of_the_dead(file: Path) -> bool:
    """Whether a claim was made by a process of this kernel that has ended."""
    try:
        claimer = json.loads(file.read_bytes())
        own = _this_process()
        if not own["kernel"] or any(claimer[name] != own[name] for name in ("kernel", "pids")):
            return False
        os.kill(int(claimer["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def _this_process() -> dict[str, str | int]:
    """What tells this process from all others: the kernel's run, where pids count, and the pid."""
    kernel = pids = ""
    with suppress(OSError):  # Linux has both; elsewhere no claim is taken over
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        pids = os.readlink("/proc/self/ns/pid")
    return {"kernel": kernel, "pids": pids, "pid": os.getpid(), "host": socket.gethostname()}


def _lock(file: IO[str], kind: int) -> bool:
    """Take a lock; False where the file system has none."""
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _try(file: IO[str], kind: int) -> bool:
    """Take a lock, if no one holds it; where the file system has none, all take it."""
    try:
        _lock(file, kind | fcntl.LOCK_NB)
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
