import threading
import time

import pytest

from gridvlp.run.prefetch import Prefetch


def test_steps_come_in_order_whatever_the_threads():
    def make(step):
        time.sleep(0.002 * ((step * 7) % 5))
        return step * step

    for threads in (1, 2, 5):
        assert list(Prefetch(make, range(3, 30), threads)) == [(s, s * s) for s in range(3, 30)]


def test_an_error_reaches_the_consumer_and_leaves_no_thread():
    def make(step):
        if step == 4:
            raise ValueError("step four")
        return step

    seen = []

    def consume():
        for step, _ in Prefetch(make, range(100), 2):
            seen.append(step)

    with pytest.raises(ValueError, match="step four"):
        consume()
    assert seen == [0, 1, 2, 3]
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_it_makes_no_more_than_it_promises_ahead():
    made = []
    loader = iter(Prefetch(lambda step: made.append(step), range(1000), 2))
    next(loader)
    time.sleep(0.1)
    assert len(made) <= 4
    loader.close()


def test_waiting_is_measured():
    loader = Prefetch(lambda step: time.sleep(0.05), range(3), 1)
    list(loader)
    assert loader.waited > 0.05
