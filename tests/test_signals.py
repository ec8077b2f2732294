"""SIGTERM, the notice of spot machines and schedulers, to commands in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gridvlp.store import FeatureStore
from gridvlp.store.verification import verify
from tests.train.test_endurance import arguments, lines, same_weights, silent

STRUCK = """
import os, signal
from gridvlp.store import StoreWriter
from gridvlp.cli import main

add, count = StoreWriter.add, 0

def strike(self, *arguments, **named):
    global count
    count += 1
    if count == 6:
        os.kill(os.getpid(), signal.{signal})
    add(self, *arguments, **named)

signal.signal(signal.SIGINT, signal.default_int_handler)
StoreWriter.add = strike
main()
"""


def start(words, *, code=None):
    run = ["-c", code] if code else ["-m", "gridvlp.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *run, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(there, process):
    while process.poll() is None and not there():
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_conversion_keeps_the_whole_maps_and_goes_on(tmp_path, name, code):
    source, out = tmp_path / "features", tmp_path / "store.zarr"
    source.mkdir()
    maps = np.random.default_rng(0).random((20, 8, 3, 2), np.float32)
    for number, map_CHW in enumerate(maps):
        np.save(source / f"{number:03}.npy", map_CHW)
    words = ["convert", source, "--out", out, "--encoder", "trial"]
    cut = start(words, code=STRUCK.format(signal=name))
    _, told = cut.communicate()
    assert cut.returncode == code, told
    assert "Traceback" not in told
    assert "Interrupted. The same command goes on" in told
    store = FeatureStore(out)
    assert 5 <= len(store) < 20
    assert not verify(store, 1)
    whole = start(words)
    _, told = whole.communicate()
    assert whole.returncode == 0, told
    store = FeatureStore(out)
    for number, map_CHW in enumerate(maps):
        np.testing.assert_array_equal(store.map(f"{number:03}"), map_CHW.astype(np.float16))


@pytest.mark.slow
def test_a_training_that_is_terminated_goes_on_as_if_it_were_not(options, tmp_path):
    from dataclasses import replace

    from gridvlp.train.pretraining import pretrain

    # no checkpoint but the one that the signal makes
    options = replace(
        options, training=replace(options.training, batch_size=1, epochs=1, save_steps=10_000)
    )
    pretrain(options, silent)
    run = tmp_path / "terminated"
    words = arguments(["pretrain"], options, run)
    cut = start(words)
    wait_for((run / "metrics.jsonl").exists, cut)
    cut.send_signal(signal.SIGTERM)
    _, told = cut.communicate()
    assert cut.returncode == 143, told
    assert "Traceback" not in told
    assert json.loads((run / "checkpoint" / "state.json").read_text())["step"] >= 10
    whole = start(words)
    _, told = whole.communicate()
    assert whole.returncode == 0, told
    assert lines(run) == lines(options.run)
    same_weights(run, options.run)


def test_a_command_that_makes_files_ends_without_a_traceback(tmp_path):
    cut = start(["sample-data", tmp_path / "world", "--images", 400])
    wait_for((tmp_path / "world").exists, cut)
    cut.send_signal(signal.SIGTERM)
    _, told = cut.communicate()
    assert cut.returncode == 143, told
    assert "Traceback" not in told
