"""Worker processes on one machine, joined over loopback by TF_CONFIG."""

from __future__ import annotations

import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
_CODE = "import workers; workers.work()"


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
    home = Path(inspect.getfile(function)).parent
    paths = os.pathsep.join([str(TESTS), str(home), str(TESTS.parent)])
    job = json.dumps([Path(inspect.getfile(function)).stem, function.__name__, args])
    processes = []
    for index in range(count):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(task),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": paths,
            "TEST_JOB": job,
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", _CODE], env=environment, **pipes))
    return processes


def results(processes, timeout=120):
    """What each worker returned.

    Raises:
        AssertionError: with the end of its errors, if one failed.
    """
    found = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors[-3000:]
            found.append(json.loads(out.split("RESULT")[1]))
    finally:
        for process in processes:
            process.kill()
    return found


def work():
    """What each process runs."""
    import importlib

    import tfkd  # noqa: F401  (before TensorFlow)

    # isort: split
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    module, name, args = json.loads(os.environ["TEST_JOB"])
    result = getattr(importlib.import_module(module), name)(strategy, *args)
    print("RESULT" + json.dumps(result), flush=True)
