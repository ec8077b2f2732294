"""Fixtures shared by all rooms."""

import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gridvlp import cli
from gridvlp.train.options import FINE_TUNING, PreTrainingOptions, TrainingSettings
from tests.squares import write_data, write_store

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c():
    """Ctrl-C interrupts, also where a shell began the tests in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos and annotations beside the checkout; skips the test where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not there: real data are optional")
    return SHARED_DATA


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """A working folder with data/ and store.zarr; runs go elsewhere."""
    folder = tmp_path_factory.mktemp("squares")
    write_data(folder / "data")
    write_store(folder / "store.zarr")
    return folder


@pytest.fixture
def options(squares, tmp_path):
    """Pre-training of a tiny model that takes a second or two."""
    return PreTrainingOptions(
        features=(squares / "store.zarr",),
        data=squares / "data",
        run=tmp_path / "pretrain",
        grids=4,
        sentences_per_read=2,
        hidden_size=32,
        layers=2,
        heads=2,
        dropout=0.1,
        initializer_range=0.1,
        training=TrainingSettings(
            learning_rate=2e-3,
            epochs=3,
            batch_size=16,
            warmup=0.1,
            precision="float32",
            save_steps=4,
        ),
    )


@pytest.fixture
def task_training():
    """Fine-tuning of the tiny model."""

    def make(task: str, **changes):
        changes = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 8, **changes}
        return replace(FINE_TUNING[task], precision="float32", save_steps=3, **changes)

    return make


@pytest.fixture
def gridvlp(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gridvlp", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
