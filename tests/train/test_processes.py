"""Two processes on a CPU, as torchrun starts them: the figures of one, and a worker that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from gridvlp.train.evaluation import evaluate
from gridvlp.train.finetuning import finetune
from gridvlp.train.options import FineTuningOptions
from gridvlp.train.pretraining import pretrain
from tests.train.test_endurance import arguments, lines, silent

TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
)
RUN = ("-m", "--", "gridvlp.cli")  # after -- so that torchrun leaves our --run alone


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def together(words):
    done = subprocess.run(
        [*TORCHRUN, *RUN, *words], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def check_same(run, other):
    one, two = lines(run), lines(other)
    assert len(one) == len(two) > 3
    for line, its in zip(one, two, strict=True):
        assert line == pytest.approx(its, rel=2e-3), line["step"]


@pytest.mark.slow
def test_two_processes_fine_tune_and_evaluate_as_one(options, squares, task_training, tmp_path):
    pretrain(replace(options, dropout=0.0), silent)
    options = FineTuningOptions(
        "vqa",
        options.features,
        task_training("vqa", epochs=3, accumulate=2),
        data=squares / "data",
        init=options.run,
        run=tmp_path / "one",
    )
    finetune(options, silent)
    done = together(arguments(["finetune", "vqa"], options, tmp_path / "two"))
    assert done.stderr.count("epoch 1:") == 1
    assert done.stdout.count("vqa train:") == 1
    check_same(options.run, tmp_path / "two")

    # 32 examples in batches of 5: the processes have different numbers of batches.
    alone = evaluate("vqa", "val", run=options.run, batch_size=5, precision="float32", say=silent)
    before = (options.run / "evaluate-val" / "examples.jsonl").read_text()
    evaluated = ("evaluate", "vqa", "--split", "val", "--run", options.run, "--batch-size", "5")
    done = together([*map(str, evaluated), "--precision", "float32"])
    assert done.stdout.count("accuracy ") == 1
    after = (options.run / "evaluate-val" / "examples.jsonl").read_text()
    for line, its in zip(before.splitlines(), after.splitlines(), strict=True):
        one, two = json.loads(line), json.loads(its)
        assert [chance for _, chance in one.pop("top")] == pytest.approx(
            [chance for _, chance in two.pop("top")], abs=1e-5
        )
        assert one == two
    recorded = json.loads((options.run / "evaluate-val" / "metrics.json").read_text())
    assert recorded["figures"] == alone.figures


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["torchrun", "the second process"])
def test_processes_that_are_terminated_end_after_one_step_and_go_on(options, tmp_path, whom):
    options = replace(  # no checkpoint but the one that the signal makes
        options,
        dropout=0.0,
        training=replace(options.training, epochs=1, batch_size=2, save_steps=10_000),
    )
    pretrain(options, silent)
    run = tmp_path / "two"
    words = arguments(["pretrain"], options, run)
    cut = subprocess.Popen(
        [*TORCHRUN, *RUN, *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while cut.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    workers = workers_of(cut)
    os.kill(cut.pid if whom == "torchrun" else workers[-1], signal.SIGTERM)
    _, told = cut.communicate(timeout=100)
    assert cut.returncode != 0
    assert not any(alive(worker) for worker in workers)
    assert "RuntimeError" not in told
    assert (run / "checkpoint" / "state.json").exists(), told
    assert 10 <= json.loads((run / "checkpoint" / "state.json").read_text())["step"] < 80
    together(words)
    check_same(options.run, run)


def workers_of(running):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(running.pid)], capture_output=True, text=True, check=True
    )
    return list(map(int, found.stdout.split()))


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_torchrun_restarts_a_run_whose_worker_was_killed(options, tmp_path):
    options = replace(
        options, dropout=0.0, training=replace(options.training, epochs=5, save_steps=1)
    )
    pretrain(options, silent)
    run = tmp_path / "two"
    words = arguments(["pretrain"], options, run)
    running = subprocess.Popen(
        [*TORCHRUN, "--max-restarts", "1", *RUN, *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while running.poll() is None and not (run / "checkpoint" / "state.json").exists():
            time.sleep(0.01)
        os.kill(workers_of(running)[-1], signal.SIGKILL)
        _, told = running.communicate(timeout=400)
    finally:
        running.terminate()  # it ends its workers
    assert running.returncode == 0, told
    assert "SIGKILL" in told or "exitcode: -9" in told
    check_same(options.run, run)
