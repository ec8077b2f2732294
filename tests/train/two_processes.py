"""Runs a function in two processes that train together on a CPU, as torchrun starts them."""

import os
import pickle
import socket
import traceback
from multiprocessing import get_context

PROCESSES = 2
PATIENCE = 300  # seconds


def run_together(function, folder, *arguments):
    """``function(rank, *arguments)`` in each process.

    Args:
        function: importable.
        folder: an empty one, for what they return.

    Returns:
        What each returned.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        get_context("spawn").Process(
            target=_process, args=(rank, port, folder, function, arguments), daemon=True
        )
        for rank in range(PROCESSES)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE)
        assert process.exitcode is not None, "a process waits for the other"
    returned = [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(PROCESSES)]
    for result in returned:
        assert not isinstance(result, Failure), result.told
    return returned


class Failure:
    def __init__(self, told):
        self.told = told


def _process(rank, port, folder, function, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    from gridvlp.run.signals import end_process

    torch.set_num_threads(1)
    try:
        result = function(rank, *arguments)
    except BaseException:
        result = Failure(traceback.format_exc())
    (folder / str(rank)).write_bytes(pickle.dumps(result))
    end_process()
