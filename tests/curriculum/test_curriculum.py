"""Batches: exactly what the pace allows, the same in every process, through fit."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import toys
from hypothesis import given
from hypothesis import strategies as st

import tfkd
from tfkd import schedules
from tfkd.curriculum import AdaptivePace, Curriculum


def make(count=24, batch_size=4, pace=1.0, **options):
    """x and y are the index of the example; harder with the index."""
    x = np.arange(count)
    options = {"balance_classes": False, "partial": True, **options}
    return Curriculum((x, x), np.arange(count), pace, batch_size, **options)


def take(dataset, count):
    return [y.numpy() for _, y in itertools.islice(dataset, count)]


SHARES = st.floats(0.3, 1)
PACES = st.one_of(
    st.builds(schedules.Linear, SHARES, SHARES, st.integers(0, 5), st.integers(5, 40)),
    st.builds(schedules.Cosine, SHARES, SHARES, end_step=st.integers(1, 40)),
    st.builds(schedules.Root, SHARES, SHARES, end_step=st.integers(1, 40), p=st.floats(0.5, 6)),
    st.builds(schedules.Exponential, SHARES, SHARES, end_step=st.integers(1, 40)),
    st.builds(schedules.Staircase, SHARES, st.just(1.0), st.integers(1, 15), st.floats(1.1, 3)),
    st.builds(lambda a, b: schedules.Piecewise([7], [a, b]), SHARES, SHARES),
)


@given(
    pace=PACES,
    count=st.integers(12, 70),
    order=st.sampled_from(["easiest_first", "hardest_first", "random"]),
    seed=st.integers(0, 9),
)
def test_what_is_sampled_is_what_the_pace_allows(pace, count, order, seed):
    paced = make(count, 3, pace, order=order, seed=seed)
    allowed = {
        "easiest_first": np.arange(count),
        "hardest_first": np.arange(count)[::-1],
        "random": paced.ranking,
    }[order]
    for step, batch in enumerate(take(paced.batches(), 45)):
        pool = allowed[: int(np.ceil(round(pace(step) * count, 9)))]
        assert set(batch) <= set(pool)
        # A batch repeats an example only where one pass over the pool ends in it.
        assert len(set(batch)) == 3 or len(pool) % 3
        np.testing.assert_array_equal(batch, paced.indices(step))


@given(fraction=st.floats(0.2, 1), count=st.integers(15, 60), seed=st.integers(0, 99))
def test_a_pool_at_rest_is_drawn_without_replacement(fraction, count, seed):
    paced = make(count, 3, fraction, seed=seed)
    pool = paced.pool_size(0)
    draws = np.concatenate(take(paced.batches(), pool))  # three passes
    for passed in np.split(draws, 3):
        assert sorted(passed) == list(range(pool))


def test_passes_and_seeds_have_orders_of_their_own():
    draws = np.concatenate(take(make(40).batches(), 20))
    assert (draws[:40] != draws[40:]).any()
    other = np.concatenate(take(make(40, seed=1).batches(), 10))
    assert (draws[:40] != other).any()


def test_each_pass_is_a_shuffle_worth_its_name():
    """Mean displacement n/3, no correlation with the order, every first one likely."""
    paced = make(100, 10)
    passes = np.concatenate([paced.indices(s) for s in range(1000)]).reshape(100, 100)
    moved = np.abs(passes - np.arange(100)).mean()
    assert 31 < moved < 36
    correlations = [np.corrcoef(one, np.arange(100))[0, 1] for one in passes]
    assert abs(np.mean(correlations)) < 0.05 and 0.07 < np.std(correlations) < 0.13
    assert len(set(passes[:, 0])) > 50


def test_examples_are_drawn_evenly_while_the_pool_grows():
    paced = make(200, 10, schedules.Linear(0.5, 1.0, end_step=4000))
    seen = np.bincount(np.concatenate([paced.indices(s) for s in range(0, 1000)]), minlength=200)
    # The 100 in play from the first step: 10,000 draws in pools of 100 to 125.
    expected = sum(10 / paced.pool_size(s) for s in range(1000))
    assert 0.75 * expected < seen[:100].min() and seen[:100].max() < 1.3 * expected
    assert seen[125:].sum() == 0


def test_a_run_goes_on_where_it_was():
    paced = make(50, 4, schedules.Linear(0.2, 1.0, end_step=30))
    whole, rest = take(paced.batches(), 40), take(paced.batches(start_step=17), 23)
    np.testing.assert_array_equal(whole[17:], rest)


def test_the_order_is_the_same_on_every_worker():
    def augment(x, seed):
        return x + tf.random.stateless_uniform(tf.shape(x), seed, maxval=1000, dtype=x.dtype)

    for options in ({}, {"augment": augment}):
        paced = make(50, 4, schedules.Linear(0.2, 1.0, end_step=30), **options)
        contexts = [tf.distribute.InputContext(2, i, 2) for i in range(2)]
        shares = [paced.batches(input_context=context) for context in contexts]
        for (x, y), (x0, y0), (x1, y1) in itertools.islice(zip(paced.batches(), *shares), 12):  # noqa: B905
            np.testing.assert_array_equal(x, tf.concat([x0, x1], 0))
            np.testing.assert_array_equal(y, tf.concat([y0, y1], 0))


def test_workers_must_share_a_batch_evenly():
    with pytest.raises(ValueError, match="multiple of the 3 workers"):
        make().batches(input_context=tf.distribute.InputContext(3, 0, 3))


def test_augment_and_preprocess_see_the_batch_and_a_seed_of_the_step():
    def augment(x, seed):
        return x + 100 * tf.cast(seed[1], x.dtype) + 10_000 * tf.cast(seed[0], x.dtype)

    paced = make(seed=2, augment=augment, preprocess=lambda x: tf.cast(x, tf.float32) / 2)
    for step, (x, y) in enumerate(itertools.islice(paced.batches(start_step=3), 3), start=3):
        np.testing.assert_allclose(x, (y.numpy() + 100 * step + 20_000) / 2)


def test_nested_inputs_and_weights_stay_together():
    x = {"a": np.arange(12), "b": (np.arange(12.0) * 2, np.arange(24).reshape(12, 2))}
    data = (x, np.arange(12) % 3, np.arange(12) / 10)
    paced = Curriculum(data, np.zeros(12), 1.0, 4)
    inputs, y, weight = next(iter(paced.batches()))
    index = inputs["a"].numpy()
    np.testing.assert_array_equal(inputs["b"][0], index * 2.0)
    np.testing.assert_array_equal(inputs["b"][1], np.stack([2 * index, 2 * index + 1], 1))
    np.testing.assert_array_equal(y, index % 3)
    np.testing.assert_allclose(weight, index / 10)


def test_a_list_of_inputs_is_a_tuple_in_the_pipeline():
    a, b = np.arange(6.0), 10 * np.arange(6.0)
    made = Curriculum(([a, b], np.arange(6)), np.arange(6), 1.0, 3)
    (x, y) = next(iter(made.batches()))
    np.testing.assert_array_equal(x[0], np.asarray(y, float))
    np.testing.assert_array_equal(x[1], 10.0 * np.asarray(y, float))


def test_a_data_set_of_examples_is_read():
    source = tf.data.Dataset.range(9).map(lambda i: (tf.stack([i, i]), i % 3))
    paced = Curriculum(source, np.arange(9), 1 / 3, 3, partial=True)
    x, y = next(iter(paced.batches()))
    assert sorted(x.numpy()[:, 0]) == [0, 1, 2]
    np.testing.assert_array_equal(x.numpy()[:, 0] % 3, y)
    only_x = Curriculum(source.map(lambda x, y: x), np.arange(9), 1.0, 3, balance_classes=False)
    assert next(iter(only_x.batches())).shape == (3, 2)


def test_examples_may_be_files_that_preprocess_reads(tmp_path):
    for number in range(4):
        (tmp_path / str(number)).write_text(f"{number}{number}")

    def read(names):
        contents = tf.map_fn(tf.io.read_file, names)
        return tf.strings.to_number(contents)

    names = np.array([str(tmp_path / str(number)) for number in range(4)])
    paced = Curriculum(
        (names, np.arange(4)),
        np.arange(4),
        0.5,
        2,
        preprocess=read,
        balance_classes=False,
        partial=True,
    )
    x, y = next(iter(paced.batches()))
    np.testing.assert_array_equal(x, 11 * y.numpy())
    assert sorted(y.numpy()) == [0, 1]


def test_new_scores_change_what_comes_next():
    paced = make(20, 5, 0.25)
    stream = iter(paced.batches())
    assert sorted(next(stream)[1].numpy()) == [0, 1, 2, 3, 4]
    paced.update_difficulty(-np.arange(20))
    batches = [sorted(y.numpy()) for _, y in itertools.islice(paced.batches(), 2)]
    assert batches == [[15, 16, 17, 18, 19]] * 2


def test_an_adaptive_pace_grows_the_pool_of_a_running_stream():
    pace = AdaptivePace(0.25, growth=2)
    paced = make(40, 5, pace)
    stream = iter(paced.batches())
    assert all(max(next(stream)[1].numpy()) < 10 for _ in range(5))
    pace.update({"val_accuracy": 0.5})
    pace.update({"val_accuracy": 0.5})
    later = np.concatenate([next(stream)[1].numpy() for _ in range(40)])
    assert paced.fraction(0) == 0.5 and 10 <= later.max() < 20


def fit(strategy, paced, epochs=3):
    """The weights of a student that the curriculum has trained, and its traces."""
    with strategy.scope():
        distiller = tfkd.Distiller(
            toys.net(8, seed=2), toys.net(4), tfkd.losses.LogitsDistillation(2.0)
        )
        distiller.compile(keras.optimizers.SGD(0.1, 0.9), toys.CROSSENTROPY)
    traces = []
    step = distiller.train_step
    distiller.train_step = lambda data: traces.append(1) or step(data)
    distiller.fit(paced.batches(), steps_per_epoch=paced.steps_per_epoch, epochs=epochs, verbose=0)
    return distiller.student, len(traces)


def curriculum_for_fit(**options):
    x, y = toys.data(40)
    return Curriculum((x, y), x.sum(1), schedules.Linear(0.3, 1.0, end_step=12), 8, **options)


def test_fit_follows_the_pace_step_by_step_and_compiles_once():
    """As plain steps on the batches that `indices` names."""
    paced = curriculum_for_fit()
    student, traces = fit(tf.distribute.get_strategy(), paced)
    assert traces == fit(tf.distribute.get_strategy(), paced, epochs=1)[1] == 1
    x, y = toys.data(40)
    by_hand = tfkd.Distiller(toys.net(8, seed=2), toys.net(4), tfkd.losses.LogitsDistillation(2.0))
    by_hand.compile(keras.optimizers.SGD(0.1, 0.9), toys.CROSSENTROPY)
    for step in range(15):
        rows = paced.indices(step)
        by_hand.train_on_batch(x[rows], y[rows])
    toys.assert_same_weights(student, by_hand.student)


@pytest.mark.parametrize("adaptive", [False, True])
def test_two_replicas_train_as_one(two_replicas, adaptive):
    def paced():
        made = curriculum_for_fit()
        if adaptive:
            x, y = toys.data(40)
            pace = AdaptivePace(0.25, growth=2)
            for _ in range(2):  # the second epoch is no better: it grows to a half
                pace.update({"val_accuracy": 0.5})
            made = Curriculum((x, y), x.sum(1), pace, 8)
            assert made.pool_size(0) == 20
        return made

    one, _ = fit(tf.distribute.get_strategy(), paced())
    two, _ = fit(two_replicas, paced())
    toys.assert_same_weights(one, two, rtol=1e-6, atol=1e-6)


def test_a_pace_that_leaves_examples_out_is_warned_of_unless_it_is_meant():
    x, y = np.zeros((10, 1)), np.arange(10) % 2
    with pytest.warns(UserWarning, match="the 4 hardest of 10 examples are never seen"):
        Curriculum((x, y), np.arange(10), schedules.Linear(0.4, 0.6, end_step=5), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Curriculum((x, y), np.arange(10), schedules.Linear(0.4, 0.6, end_step=5), 2, partial=True)
        Curriculum((x, y), np.arange(10), schedules.Linear(0.4, 1.0, end_step=5), 2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"difficulty": np.arange(9)}, ValueError, "`difficulty`: expected 10 scores"),
        ({"difficulty": [0.0] * 9 + [np.nan]}, ValueError, "example 9 is nan"),
        ({"difficulty": ["a"] * 10}, TypeError, "`difficulty`"),
        ({"pace": 0}, ValueError, "above 0"),
        ({"pace": 1.5}, ValueError, "at most 1"),
        ({"pace": 0.1}, ValueError, "Start at 0.2 or more"),
        ({"pace": lambda step: 0.5}, TypeError, "subclass of tfkd.schedules.Schedule"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"batch_size": 11}, ValueError, "at most the number of examples, 10"),
        ({"order": "easiest"}, ValueError, "Did you mean 'easiest_first'"),
        ({"seed": -1}, ValueError, "`seed`"),
        ({"augment": 3}, TypeError, "`augment`"),
        ({"data": (np.zeros((10, 1)), np.zeros(9))}, ValueError, "as many examples"),
        ({"data": (np.zeros((0, 1)), np.zeros(0))}, ValueError, "at least one example"),
        ({"data": "cifar10"}, TypeError, "`data`"),
        ({"data": (np.zeros((10, 1)), np.zeros((10, 2)))}, ValueError, "balance_classes=False"),
        ({"data": (np.zeros((10, 1)), [0] * 9)}, ValueError, "as many examples"),
        ({"data": tf.data.Dataset.range(3).repeat()}, ValueError, r"`.take\(n\)`"),
        ({"data": tf.data.Dataset.range(0)}, ValueError, "at least one example"),
        ({"partial": "yes"}, TypeError, "`partial`"),
    ],
)
def test_bad_arguments(change, error, words):
    arguments = {
        "data": (np.zeros((10, 1)), np.arange(10) % 2),
        "difficulty": np.arange(10),
        "pace": 1.0,
        "batch_size": 2,
        **change,
    }
    with pytest.raises(error, match=words):
        Curriculum(**arguments)


def test_examples_of_several_shapes_are_named():
    rows = tf.data.Dataset.range(1, 4).map(lambda n: tf.ones(n))
    with pytest.raises(ValueError, match="examples of one shape"):
        Curriculum(rows, np.arange(3), 1.0, 1, balance_classes=False)
