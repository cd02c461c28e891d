"""Two workers on one machine, each a process, train as one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import tf_keras as keras
import toys

import tfkd
from tfkd.curriculum import Curriculum, pacing

TESTS = Path(__file__).resolve().parent.parent


def train(scope):
    """The weights after two epochs of a curriculum, and the fractions that it logged."""
    with scope:
        distiller = tfkd.Distiller(
            toys.net(8, seed=2), toys.net(4), tfkd.losses.LogitsDistillation(2.0)
        )
        distiller.compile(keras.optimizers.SGD(0.1, 0.9), toys.CROSSENTROPY)
    x, y = toys.data(48)
    paced = Curriculum((x, y), x.sum(1), pacing.Linear(0.4, 8), 8)
    history = distiller.fit(
        paced.batches(),
        steps_per_epoch=paced.steps_per_epoch,
        epochs=2,
        verbose=0,
        callbacks=[tfkd.callbacks.CurriculumUpdate(paced)],
    )
    return [w.tolist() for w in distiller.student.get_weights()], history.history["fraction"]


def work():
    """What each process runs."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == 2
    print("RESULT" + json.dumps(train(strategy.scope())), flush=True)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(index, workers):
    task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    paths = os.pathsep.join([str(TESTS), str(Path(__file__).parent), str(TESTS.parent)])
    environment = {**os.environ, "TF_CONFIG": json.dumps(task), "PYTHONPATH": paths}
    command = [sys.executable, "-c", "import test_workers; test_workers.work()"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def test_two_workers_train_as_one_process():
    import tensorflow as tf

    workers = [f"localhost:{free_port()}" for _ in range(2)]
    processes = [start(index, workers) for index in range(2)]
    weights, fractions = train(tf.distribute.get_strategy().scope())
    for process in processes:
        try:
            out, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, errors[-2000:]
        theirs, seen = json.loads(out.split("RESULT")[1])
        assert seen == fractions
        for mine, other in zip(weights, theirs, strict=True):
            np.testing.assert_allclose(other, mine, rtol=1e-6, atol=1e-6)
