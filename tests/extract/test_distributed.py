"""Two processes on the CPU train as one does, through Detectron2's launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gridvlp.errors import UserError
from gridvlp.extract.batches import Batches
from gridvlp.extract.detector_training import train_extractor
from gridvlp.extract.encoder import read_weights, save_encoder
from gridvlp.extract.options import TrainExtractorOptions
from gridvlp.extract.visual_genome import read_visual_genome
from tests.extract.test_detector_training import options as tiny_options
from tests.extract.test_detector_training import quiet, weights_of


def options(visual_genome: Path, run: Path, **changes: Any) -> TrainExtractorOptions:
    """All anchors and all proposals count, so that no drawing of some of them differs."""
    base = tiny_options(
        visual_genome,
        run,
        warmup=0,
        rpn_batch=2048,
        rpn_boundary=-1,
        roi_batch=512,
        save_steps=2,
    )
    return replace(base, **changes)


def test_processes_see_disjoint_parts_of_a_batch(visual_genome: Path) -> None:
    data = read_visual_genome(visual_genome)
    chosen = options(visual_genome, Path())
    whole = Batches(data, chosen)
    parts = [Batches(data, chosen, rank=rank, processes=2) for rank in range(2)]
    for step in range(6):
        images = [one["image"] for one in whole(step)]
        halves = [[one["image"] for one in part(step)] for part in parts]
        assert [len(half) for half in halves] == [2, 2]
        joined = [image for pair in zip(*halves, strict=True) for image in pair]
        assert all(torch.equal(one, other) for one, other in zip(images, joined, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("scratch", [True, False])
def test_two_processes_train_as_one_does(
    visual_genome: Path, tmp_path: Path, scratch: bool
) -> None:
    """From scratch norms see both halves; from weights they are frozen."""
    given = read_weights("random", "x50", 0.125)
    (tmp_path / "given").mkdir()
    save_encoder(tmp_path / "given", "given", given.architecture, given.state, "64x96", {})
    more = {} if scratch else {"weights": tmp_path / "given"}
    one = options(visual_genome, tmp_path / "one", iterations=2, **more)
    two = replace(one, run=tmp_path / "two", num_gpus=2)
    start = replace(one, run=tmp_path / "start", iterations=1, learning_rate=1e-30)
    figures = train_extractor(two, quiet)
    train_extractor(one, quiet)
    train_extractor(start, quiet)
    assert {"class accuracy", "attribute accuracy", "AP", "AP50"} == set(figures)
    before, alone, both = (weights_of(tmp_path / name) for name in ("start", "one", "two"))
    moved = [key for key in before if key.endswith("weight") and not torch.equal(
        before[key], alone[key])]  # fmt: skip
    assert len(moved) > 20
    expected, found = (
        torch.cat([(after[key] - before[key]).flatten() for key in moved])
        for after in (alone, both)
    )
    assert torch.cosine_similarity(expected, found, dim=0) > 0.98
    assert 0.9 < found.norm() / expected.norm() < 1.1
    logged = [
        json.loads(line)
        for run in ("one", "two")
        for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
def test_two_processes_resume_and_one_writes(visual_genome: Path, tmp_path: Path) -> None:
    """Interrupted, taken up again by two, equal to an undisturbed run of two."""
    command = [
        *(sys.executable, "-W", "ignore", "-m", "gridvlp.cli", "train-extractor"),
        *("--visual-genome", visual_genome, "--width", 0.125, "--size", "64x96"),
        *("--iterations", 8, "--batch-size", 4, "--learning-rate", 0.002, "--warmup", 0),
        *("--rpn-batch", 16, "--roi-batch", 16, "--proposals", 20, "--valid", 0.2),
        *("--save-steps", 2, "--precision", "float32", "--num-gpus", 2, "--run"),
    ]
    arguments = [*map(str, command)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}

    def start(run: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*arguments, str(tmp_path / run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    cut = start("cut")
    limit = time.monotonic() + 200
    while not (tmp_path / "cut" / "checkpoint" / "state.json").exists():
        assert cut.poll() is None, cut.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.killpg(cut.pid, signal.SIGINT)  # as a terminal does
    _, told = cut.communicate(timeout=100)
    assert cut.returncode == 130, told
    step = json.loads((tmp_path / "cut" / "checkpoint" / "state.json").read_text())["step"]
    assert 2 <= step < 8
    assert f"Stopped after step {step}" in told
    for run in ("cut", "whole"):
        process = start(run)
        out, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
        assert out.count("AP50") == 1  # one process speaks
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        assert sum("class accuracy" in line for line in lines) == 1
    cut_weights, whole = weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole")
    assert all(torch.equal(cut_weights[key], whole[key]) for key in whole)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    visual_genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps alone and two by two: the same run, so near to four steps alone."""
    alone = options(visual_genome, tmp_path / "alone")
    mixed = replace(alone, run=tmp_path / "mixed")
    train_extractor(alone, quiet)
    made = Batches.__call__

    def stop(self: Batches, step: int) -> Any:
        if step == 2:
            raise RuntimeError("pulled the plug")
        return made(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", stop)
        with pytest.raises(RuntimeError, match="plug"):
            train_extractor(replace(mixed, save_steps=1), quiet)
    state = json.loads((mixed.run / "checkpoint" / "state.json").read_text())
    assert state["step"] == 2
    figures = train_extractor(replace(mixed, num_gpus=2), quiet)
    assert train_extractor(mixed, quiet) == figures  # finished, whoever asks
    expected, found = (
        torch.cat([value.flatten() for key, value in weights_of(run).items() if "num_" not in key])
        for run in (alone.run, mixed.run)
    )
    assert torch.cosine_similarity(expected, found, dim=0) > 0.999


@pytest.mark.slow
def test_an_error_in_a_process_is_one_sentence(visual_genome: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Training diverged: loss_\w+"):
        train_extractor(
            options(visual_genome, tmp_path / "run", learning_rate=1e18, iterations=20, num_gpus=2),
            quiet,
        )
    assert not (tmp_path / "run" / "encoder").exists()
