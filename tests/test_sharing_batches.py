"""Each worker and each replica gets its own part of a batch, and all of it together."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfkd import replicas
from tfkd.curriculum import Curriculum

DATA = Curriculum((np.arange(12.0), np.arange(12) % 2), np.arange(12.0), 1.0, 4)


def share(context):
    return DATA.batches(input_context=context)


def expected(step):
    return DATA.data[0].numpy()[DATA.indices(step)]


def test_a_step_of_two_replicas_is_one_batch(two_replicas):
    fed = iter(replicas.distributed(share, 4, two_replicas))
    for step in range(5):
        x, _ = next(fed)
        parts = [part.numpy() for part in two_replicas.experimental_local_results(x)]
        assert [len(part) for part in parts] == [2, 2]
        np.testing.assert_array_equal(np.concatenate(parts), expected(step))


def test_without_a_strategy_nothing_is_cut():
    x, _ = next(iter(replicas.distributed(share, 4)))
    np.testing.assert_array_equal(x, expected(0))


def test_the_strategy_of_the_scope_is_taken(two_replicas):
    with two_replicas.scope():
        x, _ = next(iter(replicas.distributed(share, 4)))
    assert len(two_replicas.experimental_local_results(x)) == 2


@pytest.mark.parametrize(
    ("make", "size", "error", "words"),
    [
        (share, 3, ValueError, "a multiple of the 2 replicas"),
        (share, 0, ValueError, "batch_size"),
        (tf.data.Dataset.range(3), 4, TypeError, "make"),
    ],
)
def test_bad_arguments(two_replicas, make, size, error, words):
    with pytest.raises(error, match=words):
        replicas.distributed(make, size, two_replicas)
