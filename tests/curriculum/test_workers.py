"""Two workers on one machine, each a process, train as one process does."""

from __future__ import annotations

import numpy as np
import tf_keras as keras
import toys
import workers

import tfkd
from tfkd import schedules
from tfkd.curriculum import Curriculum


def train(strategy):
    """The weights after two epochs of a curriculum, and the fractions that it logged."""
    with strategy.scope():
        distiller = tfkd.Distiller(
            toys.net(8, seed=2), toys.net(4), tfkd.losses.LogitsDistillation(2.0)
        )
        distiller.compile(keras.optimizers.SGD(0.1, 0.9), toys.CROSSENTROPY)
    x, y = toys.data(48)
    paced = Curriculum((x, y), x.sum(1), schedules.Linear(0.4, 1.0, end_step=8), 8)
    history = distiller.fit(
        paced.batches(),
        steps_per_epoch=paced.steps_per_epoch,
        epochs=2,
        verbose=0,
        callbacks=[tfkd.callbacks.CurriculumUpdate(paced)],
    )
    weights = [w.tolist() for w in distiller.student.get_weights()]
    return strategy.num_replicas_in_sync, weights, history.history["fraction"]


def test_two_workers_train_as_one_process():
    import tensorflow as tf

    processes = workers.start(train)
    _, weights, fractions = train(tf.distribute.get_strategy())
    for replicas, theirs, seen in workers.results(processes):
        assert replicas == 2
        assert seen == fractions
        for mine, other in zip(weights, theirs, strict=True):
            np.testing.assert_allclose(other, mine, rtol=1e-6, atol=1e-6)
