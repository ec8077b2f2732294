"""What the store survives: faults injected, counted by what became of them.

    python benchmarks/faults.py

Each round injects a fault into a store of small maps, opens it again and compares every map that
was written before with what was put in. Detected: an error named the damage, or the store went on
as if the fault had never been. Harmless: nothing that was read changed. Lost: a map that was whole
before the fault and is gone or changed without an error; there must be none.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import numpy as np

from gridvlp.store import FeatureStore, StoreError, StoreWriter
from gridvlp.store.layout import checked_lines
from gridvlp.store.verification import verify

C = 32


def grid_map(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = (C, int(rng.integers(1, 12)), int(rng.integers(1, 20)))
    return np.maximum(rng.standard_normal(size), 0).astype(np.float16).astype(np.float32)


def regions(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    boxes = np.sort(rng.random((count, 2, 2), np.float32), axis=1).reshape(count, 4)
    return {
        "grid_map": rng.random((C, 1, count)).astype(np.float16),
        "boxes_N4": boxes,
        "classes_N": rng.integers(0, 9, count),
        "scores_N": boxes[:, 0],
    }


def add(writer: StoreWriter, seeds: range, maps_in_shard: int = 4) -> None:
    """Add the maps that are not there."""
    for seed in seeds:
        if f"photo{seed}" not in writer:
            if writer.kind == "regions":
                writer.add(f"photo{seed}", **regions(seed), seed=seed)  # type: ignore[arg-type]
            else:
                writer.add(f"photo{seed}", grid_map(seed), seed=seed)
            if seed % maps_in_shard == maps_in_shard - 1:
                writer.flush()


def write(path: Path, seeds: range, **options: Any) -> None:
    with StoreWriter.create(path, channels=C, **options) as writer:
        add(writer, seeds)


class Expected:
    """What a store must give back."""

    def __init__(self, path: Path) -> None:
        store = FeatureStore(path)
        self.maps = {key: self._read(store, key) for key in store.keys()}  # noqa: SIM118

    @staticmethod
    def _read(store: FeatureStore, key: str) -> list[Any]:
        found: list[Any] = [store.record(key)]
        if store.kind == "regions":
            one = store.regions(key)
            return [*found, one.features_NC, one.boxes_N4, one.classes_N, one.scores_N]
        return [*found, store.map(key)]

    def outcome(self, path: Path, keys: list[str] | None = None) -> str:
        """Whether all maps are there and the same: harmless, detected or lost."""
        detected = False
        try:
            store = FeatureStore(path)
        except StoreError:
            return "detected"
        for key in self.maps if keys is None else keys:
            try:
                found = self._read(store, key)
            except StoreError as error:
                if "There is no map" in str(error):
                    return "lost"
                detected = True
            else:
                pairs = zip(found, self.maps[key], strict=True)
                if not all(np.array_equal(a, b) for a, b in pairs):
                    return "lost"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            detected |= bool(verify(store)) or bool(told)
        return "detected" if detected else "harmless"


def flipped_bytes(place: Path, tries: int) -> Iterator[tuple[str, str]]:
    """One bit of one file, in every kind of file of four kinds of store."""
    rng = np.random.default_rng(0)
    stores = {
        "float16": {}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"dtype": "int8"},
        "regions": {"kind": "regions"},
    }  # fmt: skip
    for name, options in stores.items():
        write(place / name, range(8), encoder={"name": "x50", "mean": [103.53]}, **options)
        expected = Expected(place / name)
        files = [
            file for file in sorted((place / name).rglob("*"))
            if file.is_file() and not file.name.startswith(".")
        ]  # fmt: skip
        for file in files:
            whole = file.read_bytes()
            kind = file.relative_to(place / name).parts[0]
            kind += "/zarr.json" if file.name == "zarr.json" and kind != "zarr.json" else ""
            for _ in range(max(1, tries // len(files) // len(stores))):
                changed = bytearray(whole)
                changed[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
                file.write_bytes(changed)
                yield f"bit flipped in {kind}", expected.outcome(place / name)
            file.write_bytes(whole)


@contextmanager
def before_each(act: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``act`` before each fsync and rename, by name and its first argument."""
    real = {name: getattr(os, name) for name in ("fsync", "replace")}

    def hooked(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            act(name, arguments[0])
            return real[name](*arguments)

        return call

    for name in real:
        setattr(os, name, hooked(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def goes_on(path: Path, before: Expected, after: Expected) -> str:
    """A store in which writing was broken off: what was whole is, and the rest can be added."""
    keys = FeatureStore(path).keys()
    if not set(before.maps) <= set(keys) <= set(after.maps):
        return "lost"
    if after.outcome(path, keys) != "harmless":
        return "lost"
    with StoreWriter.open(path) as writer:
        add(writer, range(len(after.maps)))
    return "detected" if after.outcome(path) == "harmless" else "lost"


def power_cuts(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """The disk as it is before each fsync and rename; what was not synced is whole or torn."""
    rng = np.random.default_rng(1)
    write(place / "after", range(12))
    after = Expected(place / "after")
    for kind in ("whole", "cut short", "zeros", "empty"):
        for number in range(rounds):
            path, states = place / f"{kind}{number}", []
            write(path, range(8))
            before = Expected(path)

            def keep(name: str, argument: Any, path: Path = path, states: list[Path] = states,
                     kind: str = kind) -> None:  # fmt: skip
                state = path.with_name(f"{path.name}-{len(states)}")
                shutil.copytree(path, state)
                states.append(state)
                if name == "fsync" and kind != "whole":
                    unsynced = Path(os.readlink(f"/proc/self/fd/{argument}"))
                    file = state / unsynced.relative_to(path)
                    if file.is_file():
                        size = file.stat().st_size
                        content = file.read_bytes()[: int(rng.integers(size + 1))]
                        file.write_bytes(
                            {"cut short": content, "zeros": bytes(size)}.get(kind, b"")
                        )

            with before_each(keep), StoreWriter.open(path) as writer:
                add(writer, range(8, 12))
            for state in states:
                yield f"power cut, unsynced file {kind}", goes_on(state, before, after)
                shutil.rmtree(state)


def forked(work: Callable[[], None]) -> int:
    """Run something in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    return child


def kills(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """kill -9 somewhere while shards are written."""
    rng = np.random.default_rng(2)
    write(place / "after", range(24))
    after = Expected(place / "after")
    write(place / "begun", range(4))
    before = Expected(place / "begun")
    for number in range(rounds):
        path = place / f"killed{number}"
        shutil.copytree(place / "begun", path)

        def work(path: Path = path) -> None:
            with StoreWriter.open(path) as writer:
                add(writer, range(24))

        child = forked(work)
        time.sleep(float(rng.uniform(0, 0.12)))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        yield "kill -9 of a writer", goes_on(path, before, after)
        shutil.rmtree(path)


def full_disks(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """The system refuses the n-th fsync or rename, or any file above a size."""
    write(place / "after", range(12))
    after = Expected(place / "after")
    write(place / "begun", range(8))
    before = Expected(place / "begun")
    for number in range(rounds):
        for kind in ("refused", "size"):
            path = place / f"{kind}{number}"
            shutil.copytree(place / "begun", path)
            calls = 0

            def refuse(name: str, argument: Any, number: int = number) -> None:
                nonlocal calls
                calls += 1
                if calls > number:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            def work(path: Path = path, kind: str = kind, number: int = number) -> None:
                if kind == "size":
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    limit = 40 * (number + 1) ** 2
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                with StoreWriter.open(path) as writer:
                    add(writer, range(8, 12))

            if kind == "size":
                os.waitpid(forked(work), 0)
            else:
                with suppress(StoreError), before_each(refuse):
                    work()
            yield "disk full", goes_on(path, before, after)
            shutil.rmtree(path)


def readers(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """Stores opened and read whole while a writer adds to them."""
    write(place / "after", range(40))
    after = Expected(place / "after")
    for number in range(rounds):
        path = place / f"read{number}"
        write(path, range(4))

        def work(path: Path = path) -> None:
            with StoreWriter.open(path) as writer:
                add(writer, range(40))

        child, seen = forked(work), 0
        while os.waitpid(child, os.WNOHANG)[0] == 0 and seen < 40:
            keys = FeatureStore(path).keys()
            seen += 1
            outcome = after.outcome(path, keys) if len(keys) >= 4 else "lost"
            yield "read while it is written", outcome
        with suppress(ChildProcessError):
            os.waitpid(child, 0)
        yield "read after", after.outcome(path)


def second_writers(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """Writers that come while another writes; parts that begin one store at once."""
    seeds = range(24)
    write(place / "after", seeds)
    after = Expected(place / "after")
    for number in range(rounds):
        path = place / f"two{number}"
        with StoreWriter.create(path, channels=C) as writer:
            for part in (None, (0, 2)):
                try:
                    StoreWriter.open(path, part=part).close()
                    yield "a second writer", "lost"
                except StoreError:
                    yield "a second writer", "detected"
            add(writer, seeds)
        yield "a second writer", after.outcome(path)

        path = place / f"parts{number}"

        def work(part: int, path: Path = path) -> None:
            with StoreWriter.create(path, channels=C, part=(part, 3), exist_ok=True) as writer:
                for seed in seeds[part::3]:
                    add(writer, range(seed, seed + 1), maps_in_shard=2)

        children = [forked(lambda part=part: work(part)) for part in range(3)]  # type: ignore[misc]
        for child in children:
            os.waitpid(child, 0)
        yield "three parts that begin at once", after.outcome(path)


def mixed_stores(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """A file of a store made alike in a store's place: other photos, other numbers, another recipe.

    As a sync that was cut, a copy into the wrong folder or a restored backup leave it.
    """
    rng = np.random.default_rng(3)
    for kind in ("grids", "regions"):
        write(place / kind / "own", range(12), kind=kind)
        expected = Expected(place / kind / "own")
        others = {
            "photos": {"seeds": range(11, -1, -1)},
            "numbers": {"seeds": range(12, 24)},
            "recipe": {"seeds": range(12), "encoder": {"name": "other"}},
        }
        for name, options in others.items():
            write(place / kind / name, kind=kind, **options)  # type: ignore[arg-type]
        for _ in range(rounds):
            for name in others:
                path = place / "mixed"
                shutil.copytree(place / kind / "own", path)
                if rng.integers(2):
                    (path / "index.bin").unlink()
                files = [
                    file.relative_to(path)
                    for part in ("*/c/**/*", "facts/*")
                    for file in sorted(path.glob(part))
                    if file.is_file()
                ]
                for place_of_file in rng.permutation(len(files))[: rng.integers(1, 4)]:
                    file = files[place_of_file]
                    shutil.copy(place / kind / name / file, path / file)
                yield "files of another store", expected.outcome(path)
                shutil.rmtree(path)


def lying_indexes(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """An index file that says, under a right checksum, what cannot be."""
    rng = np.random.default_rng(4)
    write(place / "own", range(8))
    expected = Expected(place / "own")
    for number in range(rounds):
        path = place / f"lies{number}"
        shutil.copytree(place / "own", path)
        file = path / "index" / f"{int(rng.integers(2)):06}.jsonl"
        entry = json.loads(file.read_bytes().splitlines()[0])
        name = ("start", "height", "width", "store", "facts", "arrays")[number % 6]
        if name in ("start", "height", "width"):
            value = entry[name][0]
            lies = [-value - 1, 0.5, 10**6, str(value), None, True]
            lies += [value + 7, value + 20] if name == "start" else []  # else it could be true
            entry[name][int(rng.integers(len(entry[name])))] = lies[int(rng.integers(len(lies)))]
        else:
            entry[name] = "0" * len(entry[name])
        file.write_bytes(checked_lines(entry))
        (path / "index.bin").unlink()
        yield "an index that lies", expected.outcome(path)
        shutil.rmtree(path)


def ghosts(place: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """A writer that stops amid a shard, without locks, and goes on after others have written."""
    write(place / "after", range(16))
    after = Expected(place / "after")
    real = fcntl.flock
    fcntl.flock = lambda *_: None  # type: ignore[assignment]
    try:
        for number in range(rounds):
            for stop in range(1, 9):
                path = place / f"ghost{number}-{stop}"
                write(path, range(4))
                calls = 0

                def pause(name: str, argument: Any, stop: int = stop) -> None:
                    nonlocal calls
                    calls += 1
                    if calls == stop:
                        os.kill(os.getpid(), signal.SIGSTOP)

                def work(path: Path = path, pause: Callable[..., None] = pause) -> None:
                    with before_each(pause), StoreWriter.open(path) as writer:
                        add(writer, range(4, 8))

                child = forked(work)
                os.waitpid(child, os.WUNTRACED)
                with StoreWriter.open(path) as writer:
                    add(writer, range(8, 16))
                keys = [f"photo{seed}" for seed in (*range(4), *range(8, 16))]
                yield "a writer stops, others go on", after.outcome(path, keys)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGCONT)
                with suppress(ChildProcessError):
                    os.waitpid(child, 0)
                yield "and the first comes back", after.outcome(path)
                shutil.rmtree(path)
    finally:
        fcntl.flock = real


FAULTS = {
    flipped_bytes: 50, power_cuts: 1, kills: 3, full_disks: 2, readers: 1, second_writers: 1,
    mixed_stores: 4, lying_indexes: 12, ghosts: 1,
}  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--scale", default=10, help="Rounds of each fault, times a number of its own.")
def main(scale: int) -> None:
    """Print the counts."""
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {}
    for fault, share in FAULTS.items():
        with tempfile.TemporaryDirectory() as place:
            for name, outcome in fault(Path(place), scale * share):
                counts.setdefault(name, Counter())[outcome] += 1
    click.echo(f"{'fault':42} tried  detected or recovered  harmless  maps lost")
    for name, outcomes in [*counts.items(), ("in all", sum(counts.values(), Counter()))]:
        told = (outcomes[kind] for kind in ("detected", "harmless", "lost"))
        click.echo("{:42} {:5}  {:21}  {:8}  {:9}".format(name, sum(outcomes.values()), *told))
    raise SystemExit(bool(sum(outcomes["lost"] for outcomes in counts.values())))


if __name__ == "__main__":
    main()
