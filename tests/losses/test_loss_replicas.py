"""Relations span the global batch: two replicas give what one gives."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tensorflow as tf

from tfkd.losses import RelationalDistillation


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TEACHER = normal(6, 3, seed=1)
X = normal(6, 4, seed=2)
KERNEL = normal(4, 2, seed=3)
WEIGHTS = np.float32([1.0, 0.5, 2.0, 0.0, 1.0, 3.0])


def on_replicas(strategy, loss, first, weighted):
    """Gradient of the kernel and the loss on each replica; `first` examples on the first."""
    with strategy.scope():
        kernel = tf.Variable(KERNEL)
    parts = [slice(0, first), slice(first, 6)]

    def split(array):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[parts[context.replica_id_in_sync_group]])
        )

    def step(teacher, x, weight):
        with tf.GradientTape() as tape:
            value = loss.compute_loss(
                teacher, tf.matmul(x, kernel), sample_weight=weight if weighted else None
            )
            # What a Distiller does to a mean over the global batch.
            share = tf.cast(tf.shape(x)[0], tf.float32) / 6.0 * value
        grad = tape.gradient(share, kernel)
        total = tf.distribute.get_replica_context().all_reduce("sum", grad)
        return value, total

    values, grads = tf.function(lambda *args: strategy.run(step, args))(
        split(TEACHER), split(X), split(WEIGHTS)
    )
    return (strategy.experimental_local_results(r) for r in (values, grads))


@pytest.mark.parametrize("first", [3, 4, 1])
@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_replicas_equal_one_batch(two_replicas, first, weighted):
    weights = WEIGHTS if weighted else None

    def expected(kernel):
        return reference.relational(TEACHER, X.astype(np.float64) @ kernel, weights=weights)

    values, grads = on_replicas(two_replicas, RelationalDistillation(), first, weighted)
    gradient = reference.gradient(expected, KERNEL)
    for value, grad in zip(values, grads, strict=True):
        np.testing.assert_allclose(value, expected(KERNEL.astype(np.float64)), rtol=1e-5)
        np.testing.assert_allclose(grad, gradient, rtol=1e-5, atol=1e-6)


def test_across_replicas_a_batch_is_taken_as_it_is(two_replicas):
    with two_replicas.scope():
        value = RelationalDistillation().compute_loss(tf.constant(TEACHER), tf.constant(X))
    np.testing.assert_allclose(value, reference.relational(TEACHER, X), rtol=1e-5)
