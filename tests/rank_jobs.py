"""What the processes of the tests of several processes do; started by :func:`in_processes`."""

import multiprocessing
import os
import socket
import tempfile
from functools import partial
from pathlib import Path

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["rank_jobs", "conftest", "pyro_fcr.training", "pyro_fcr.cli"])


def in_processes(job, *args, n=2, timeout=120, **options):
    """Run a job in ``n`` processes, as torchrun would; return their results and exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        started = [
            _CONTEXT.Process(
                target=_run, args=(partial(job, *args, **options), number, n, port, folder)
            )
            for number in range(n)
        ]
        for each in started:
            each.start()
        for each in started:
            each.join(timeout)
            if each.is_alive():
                each.kill()
                each.join()
        results = [Path(folder, str(number)) for number in range(n)]
        found = [torch.load(p, weights_only=False) if p.exists() else None for p in results]
    return found, [each.exitcode for each in started]


def _run(job, number, n, port, folder):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": n}
    place |= {"RANK": number, "LOCAL_RANK": number}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    torch.save(job(), Path(folder, str(number)))
