"""Ctrl-C at any line of a writer: the store keeps whole maps and nothing else."""

import signal
import sys

import numpy as np
import pytest

from gridvlp.store import FeatureStore, StoreWriter
from gridvlp.store.verification import verify

MAPS = np.random.default_rng(0).random((3, 4, 3, 2), np.float32)


class Striker:
    """Raises SIGINT at one of the lines that the writer's methods run through."""

    def __init__(self, line):
        self.line, self.count = line, 0

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if not code.co_filename.endswith("store/writer.py") or code.co_name not in ("add", "flush"):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.line:
                signal.raise_signal(signal.SIGINT)
        return self


def fill(path, striker):
    with StoreWriter.create(path, channels=4, max_grids=8) as writer:
        sys.settrace(striker)
        try:
            for number, map_CHW in enumerate(MAPS):
                writer.add(str(number), map_CHW)
            writer.flush()
        finally:
            sys.settrace(None)


def test_whole_maps_stay_wherever_a_signal_comes(tmp_path):
    counter = Striker(0)
    fill(tmp_path / "all", counter)
    assert counter.count > 30
    for line in range(1, counter.count + 1, 2):
        path = tmp_path / str(line)
        with pytest.raises(KeyboardInterrupt):
            fill(path, Striker(line))
        store = FeatureStore(path)
        assert not verify(store, 1), line
        for key in store.keys():  # noqa: SIM118 - a store is no dict
            np.testing.assert_array_equal(store.map(key), MAPS[int(key)].astype(np.float16))
        assert len(store) >= min(3, line // (counter.count // 3))
