import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from gridvlp.errors import UserError
from gridvlp.reproduce.processes import in_processes
from gridvlp.run.signals import termination_interrupts

JOBS = {f"job{n}": n for n in range(5)}


def square(number):
    print(f"squaring {number}")
    return number**2, os.getpid()


def fail(number):
    raise ValueError(f"cannot do {number}")


def die(number):
    os._exit(9)


def until_interrupted(folder, number):
    """Leaves a file when begun and another when interrupted."""
    try:
        (folder / f"begun-{number}").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)  # in which another one would come
        (folder / f"interrupted-{number}").touch()
        raise


def test_jobs_are_done_at_a_time_and_each_prints_into_its_own_file(tmp_path):
    found = dict(in_processes(square, JOBS, 2, logs=tmp_path, title="squares"))
    assert {name: value for name, (value, _) in found.items()} == {
        name: number**2 for name, number in JOBS.items()
    }
    assert os.getpid() not in {pid for _, pid in found.values()}
    for name, number in JOBS.items():
        assert (tmp_path / f"{name}.log").read_text() == f"squaring {number}\n"


def test_one_process_does_them_here_in_order(tmp_path):
    found = list(in_processes(square, JOBS, 1, logs=tmp_path / "logs", title="squares"))
    assert found == [(name, (number**2, os.getpid())) for name, number in JOBS.items()]
    assert not (tmp_path / "logs").exists()


def test_an_error_of_a_job_is_raised_here(tmp_path):
    with pytest.raises(ValueError, match="cannot do"):
        list(in_processes(fail, JOBS, 2, logs=tmp_path, title="failing"))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_told_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="ended from outside"):
        list(in_processes(die, JOBS, 2, logs=tmp_path, title="dying"))


def begin(folder):
    """This file as a program that has two jobs under way, in a session of its own."""
    program = subprocess.Popen(
        [sys.executable, __file__, str(folder)], stderr=subprocess.PIPE, start_new_session=True
    )
    wait_until(lambda: len(list(folder.glob("begun-*"))) == 2)
    return program


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(folder):
    return [
        path
        for path in Path("/proc").glob("[0-9]*/environ")
        if _environment(path).count(f"WORKERS_OF={folder}".encode())
    ]


def _environment(path):
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.mark.parametrize(
    ("number", "send"),
    [
        (signal.SIGINT, lambda pid, number, _: os.kill(pid, number)),
        (signal.SIGINT, lambda pid, number, _: os.killpg(pid, number)),  # a terminal
        (signal.SIGTERM, lambda pid, number, _: os.kill(pid, number)),
    ],
    ids=["process", "terminal", "terminated"],
)
def test_ctrl_c_reaches_each_job_once_and_no_other_begins(tmp_path, number, send, monkeypatch):
    monkeypatch.setenv("WORKERS_OF", str(tmp_path))
    program = begin(tmp_path)
    send(program.pid, number, tmp_path)
    _, told = program.communicate(timeout=60)
    assert program.returncode != 0
    assert (b"Termination" if number == signal.SIGTERM else b"KeyboardInterrupt") in told
    begun = sorted(path.name.split("-")[1] for path in tmp_path.glob("begun-*"))
    assert begun == sorted(path.name.split("-")[1] for path in tmp_path.glob("interrupted-*"))
    assert len(begun) == 2
    wait_until(lambda: not workers_of(tmp_path))


def test_the_processes_end_with_the_one_that_began_them(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKERS_OF", str(tmp_path))
    program = begin(tmp_path)
    assert len(workers_of(tmp_path)) >= 3
    program.kill()
    program.communicate(timeout=60)
    wait_until(lambda: not workers_of(tmp_path))
    assert len(list(tmp_path.glob("begun-*"))) == 2


if __name__ == "__main__":
    where = Path(sys.argv[1])
    with termination_interrupts():
        list(
            in_processes(
                partial(until_interrupted, where), JOBS, 2, logs=where / "logs", title="waiting"
            )
        )
