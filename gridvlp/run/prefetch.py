"""Batches made ahead of need by threads.

Threads, not processes: the work is reading and decoding maps (which releases the GIL), memory is
shared whatever the corpus, and no codec thread pool is ever forked.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """``make(step)`` for each step of a range, in order, a few steps ahead.

    Because a step's batch is a function of its number alone, neither the number of threads nor
    where a run was interrupted changes any batch. ``waited`` is the time in seconds that the
    consumer spent waiting.
    """

    def __init__(self, make: Callable[[int], T], steps: range, threads: int = 2) -> None:
        self.make, self.steps, self.threads = make, steps, threads
        self.waited = 0.0

    def __iter__(self) -> Generator[tuple[int, T], None, None]:
        with ThreadPoolExecutor(self.threads, thread_name_prefix="prefetch") as pool:
            ahead: deque[tuple[int, Future[T]]] = deque()
            upcoming = iter(self.steps)
            try:
                for step in upcoming:
                    ahead.append((step, pool.submit(self.make, step)))
                    if len(ahead) > self.threads:
                        yield self._take(ahead)
                while ahead:
                    yield self._take(ahead)
            finally:
                for _, future in ahead:
                    future.cancel()

    def _take(self, ahead: deque[tuple[int, Future[T]]]) -> tuple[int, T]:
        start = time.perf_counter()
        step, future = ahead.popleft()
        item = future.result()
        self.waited += time.perf_counter() - start
        return step, item
