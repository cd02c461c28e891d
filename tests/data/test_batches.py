"""Batches are a pure function of (seed, step)."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st

from tfkd import data

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20)


def labels(dataset):
    return [y.numpy().tolist() for _, y in dataset]


def jitter(images, seed):
    return images + tf.random.stateless_uniform(tf.shape(images), seed)


@given(
    count=st.integers(4, 23),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 30),
)
def test_starting_later_gives_the_same_batches(count, batch, seed, start):
    x, y = np.arange(count, dtype=np.float32)[:, None], np.arange(count)
    options = {"seed": seed, "augment": jitter, "epochs": 3}
    whole = list(data.batches(x, y, batch, **options))
    rest = list(data.batches(x, y, batch, start_step=start, **options))
    assert len(whole) == 3 * (count // batch)
    assert len(rest) == max(len(whole) - start, 0)
    for (xa, ya), (xb, yb) in zip(whole[start:], rest, strict=True):
        np.testing.assert_array_equal(xa, xb)
        np.testing.assert_array_equal(ya, yb)


@given(seed=st.integers(0, 2**31), batch=st.integers(1, 20))
def test_an_epoch_shows_each_example_at_most_once(seed, batch):
    steps = 20 // batch
    rows = labels(data.batches(X, Y, batch, seed=seed, epochs=2))
    assert all(len(row) == batch for row in rows)
    for epoch in (rows[:steps], rows[steps:]):
        seen = np.ravel(epoch).tolist()
        assert len(seen) == len(set(seen)) == steps * batch


def test_a_batch_size_that_divides_gives_permutations_that_differ():
    rows = labels(data.batches(X, Y, 5, seed=3, epochs=2))
    first, second = np.ravel(rows[:4]).tolist(), np.ravel(rows[4:]).tolist()
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))
    assert labels(data.batches(X, Y, 5, seed=4, epochs=1)) != rows[:4]


def test_every_example_comes_first_about_equally_often():
    first = [row[0] for row in labels(data.batches(Y, Y, 20, seed=2, epochs=120))]
    # 120 draws from 20: mean 6, standard deviation 2.4.
    assert np.bincount(first, minlength=20).max() < 6 + 5 * 2.4


def test_images_and_labels_stay_together():
    for x, y in data.batches(X, Y, 4, seed=1, epochs=1):
        np.testing.assert_array_equal(x, X[y.numpy()])


def test_augment_gets_seed_and_step_and_comes_before_preprocess():
    def augment(images, seed):
        return tf.zeros_like(images) + tf.cast(seed, tf.float32)

    seen = data.batches(X, None, 10, seed=7, augment=augment, preprocess=lambda b: b * 10, epochs=2)
    np.testing.assert_array_equal([b.numpy()[0] for b in seen], [[70, 10 * s] for s in range(4)])


def test_cardinality_is_known():
    assert data.batches(X, Y, 6).cardinality() == tf.data.INFINITE_CARDINALITY
    assert data.batches(X, Y, 6, epochs=4, start_step=5).cardinality() == 4 * 3 - 5
    assert data.batches(X, Y, 6, epochs=1, start_step=9).cardinality() == 0


def test_endless_batches_go_past_an_epoch():
    assert len(list(data.batches(X, Y, 20).take(5))) == 5


def test_eval_batches_keep_order_and_lose_nothing():
    parts = list(data.eval_batches(X, Y, 7, preprocess=lambda b: b + 1))
    assert [len(y) for _, y in parts] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), X + 1)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), Y)


def test_without_labels():
    parts = list(data.eval_batches(X, None, 8, preprocess=lambda b: -b))
    np.testing.assert_array_equal(np.concatenate(parts), -X)


@pytest.mark.parametrize(("count", "batch", "steps"), [(10, 3, 3), (9, 3, 3), (3, 3, 1)])
def test_steps_per_epoch(count, batch, steps):
    assert data.steps_per_epoch(count, batch) == steps


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (([1, 2], None, 1), {}, TypeError, "`x`"),
        ((X[:0], None, 1), {}, ValueError, "at least one example"),
        ((X, Y[:5], 4), {}, ValueError, "20 labels"),
        ((X, [0] * 20, 4), {}, TypeError, "`y`"),
        ((X, Y, 21), {}, ValueError, "at most the number of examples, 20"),
        ((X, Y, 0), {}, ValueError, "`batch_size`"),
        ((X, Y, 2.0), {}, TypeError, "`batch_size`"),
        ((X, Y, 4), {"seed": -1}, ValueError, "`seed`"),
        ((X, Y, 4), {"start_step": -1}, ValueError, "`start_step`"),
        ((X, Y, 4), {"epochs": 0}, ValueError, "`epochs`"),
        ((X, Y, 4), {"augment": 3}, TypeError, "`augment`"),
        ((X, Y, 4), {"preprocess": "x"}, TypeError, "`preprocess`"),
    ],
)
def test_bad_arguments(arguments, options, error, said):
    with pytest.raises(error, match=said):
        data.batches(*arguments, **options)


def test_bad_arguments_of_eval_batches():
    with pytest.raises(TypeError, match="`preprocess`"):
        data.eval_batches(X, Y, 4, preprocess=1)
    with pytest.raises(ValueError, match="at least one example"):
        data.eval_batches(X[:0], None, 4)


@pytest.mark.parametrize("form", [list, tuple, lambda pair: {"a": pair[0], "b": pair[1]}])
@pytest.mark.parametrize("labelled", [True, False])
def test_several_inputs_in_every_form(form, labelled):
    a, b, y = np.arange(6.0), 10 + np.arange(12.0).reshape(6, 2), np.arange(6)
    y = y if labelled else None
    whole = data.eval_batches(form([a, b]), y, 4)
    shuffled = data.batches(form([a, b]), y, 2, seed=1, epochs=1, preprocess=lambda x: x)
    for batches, count in ((whole, 2), (shuffled, 3)):
        seen = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
        assert len(seen) == count
        rows = np.concatenate([tf.nest.flatten(x)[0] for x, _, _ in seen]).astype(int)
        np.testing.assert_array_equal(np.sort(rows), np.arange(6))
        np.testing.assert_array_equal(
            np.concatenate([tf.nest.flatten(x)[1] for x, _, _ in seen]), b[rows]
        )
        for x, labels, _ in seen:
            assert isinstance(x, dict) == isinstance(form([a, b]), dict)
            if labelled:
                np.testing.assert_array_equal(labels, tf.nest.flatten(x)[0])
            else:
                assert labels is None
