"""Worker processes on one machine, joined over loopback by TF_CONFIG."""

from __future__ import annotations

import json
import socket

from forks import Fork


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(function, *args, count=2):
    """Starts processes that each call `function(strategy, *args)` of a test module.

    Args:
        function: at the top of its module; returns what JSON can hold.
        *args: what JSON can hold.
        count: how many.
    """
    addresses = [f"localhost:{free_port()}" for _ in range(count)]
    cluster = {"worker": addresses}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(count)]
    return [Fork(work, function, args, TF_CONFIG=json.dumps(task)) for task in tasks]


def results(forks, timeout=120):
    """What each worker returned.

    Raises:
        AssertionError: with the end of its errors, if one failed.
    """
    found = []
    try:
        for fork in forks:
            done = fork.wait(timeout)
            assert done.returncode == 0, done.stderr[-3000:]
            found.append(json.loads(done.stdout.split("RESULT")[1]))
    finally:
        for fork in forks:
            fork.process.kill()
    return found


def work(function, args):
    """What each process runs."""
    import tensorflow as tf

    result = function(tf.distribute.MultiWorkerMirroredStrategy(), *args)
    print("RESULT" + json.dumps(result), flush=True)
