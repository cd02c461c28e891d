"""AnnealedFilterDecay: its curve against formulas, and its life inside tfmot's wrapper."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkd.pruning.decay import AnnealedFilterDecay


@keras.saving.register_keras_serializable(package="test_decay")
def cubed(p):
    return (1 - p) ** 3


def logistic(p):
    return 1 / (1 + math.exp(10 * (p - 0.5)))


CURVES = {
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
    "sigmoid": lambda p: (logistic(p) - logistic(1)) / (logistic(0) - logistic(1)),
}


@pytest.mark.parametrize("anneal", CURVES)
def test_rate_follows_its_formula(anneal):
    schedule = AnnealedFilterDecay(0.5, 10, 50, anneal=anneal, initial_decay=0.8)
    for step in range(10, 51):
        expected = 0.8 * CURVES[anneal]((step - 10) / 40)
        assert schedule.decay_rate(step) == pytest.approx(expected, abs=1e-12)
    assert schedule.decay_rate(9) == 1.0
    assert schedule.decay_rate(10) == 0.8
    assert schedule.decay_rate(50) == schedule.decay_rate(1000) == 0.0


@settings(deadline=None, max_examples=30)
@given(
    begin=st.integers(0, 40),
    length=st.integers(0, 60),
    frequency=st.integers(1, 20),
    anneal=st.sampled_from([*CURVES, cubed]),
    initial=st.floats(0, 1),
    target=st.floats(0, 0.99),
)
def test_invariants(begin, length, frequency, anneal, initial, target):
    end = begin + length
    schedule = AnnealedFilterDecay(target, begin, end, frequency, anneal, initial)
    steps = range(end + 30)
    rates = [schedule.decay_rate(step) for step in steps]
    assert all(0 <= rate <= 1 for rate in rates)
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert set(rates[:begin]) <= {1.0}
    assert set(rates[end:]) == {0.0}
    due = sorted({*range(begin, end, frequency), end})
    assert [step for step in steps if schedule.due(step)] == due
    for step in steps:
        assert schedule.ended(step) == (step >= end)
        assert schedule.last_due(step) == max((d for d in due if d <= step), default=None)
        assert schedule.next_due(step) == min((d for d in due if d > step), default=None)
        should_prune, sparsity = schedule(tf.constant(step))
        assert bool(should_prune) == (step in due)
        assert float(sparsity) == pytest.approx(target * (1 - rates[step]), abs=2e-6)


def stepped(p):
    return 1.0 if p < 0.5 else 0.0  # knows scalars only


@pytest.mark.parametrize("anneal", [*CURVES, cubed, stepped])
@pytest.mark.parametrize(("begin", "end"), [(3, 13), (4, 4)])
def test_rates_of_arrays_and_tensors(anneal, begin, end):
    schedule = AnnealedFilterDecay(0.5, begin, end, anneal=anneal, initial_decay=0.8)
    steps = np.arange(18).reshape(3, 6)
    curve = CURVES.get(anneal, anneal)
    want = [0.8 * curve((step - begin) / (end - begin)) for step in range(begin, end)]
    want = np.reshape([1.0] * begin + want + [0.0] * (18 - end), (3, 6))
    found = schedule.decay_rate(steps)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, want, atol=1e-12)
    if anneal is stepped:  # a tensor has no truth value in a graph
        steps = tf.constant(7)
        want = want[1, 1]
    rates = schedule.decay_rate(tf.constant(steps))
    assert rates.dtype == tf.float32
    np.testing.assert_allclose(rates, want, atol=1e-6)
    for step in (0.5, True, "1", np.array([0.5]), tf.constant(0.5)):
        with pytest.raises(TypeError, match="`step`"):
            schedule.decay_rate(step)
    for step in (-1, np.int64(-1), np.array([0, -1])):
        with pytest.raises(ValueError, match="`step`: expected steps of at least 0"):
            schedule.decay_rate(step)


def test_in_a_graph_with_a_variable():
    schedule = AnnealedFilterDecay(0.5, 2, 6, 2, "sigmoid")
    step = tf.Variable(0, dtype=tf.int64)
    compiled = tf.function(lambda: schedule(step))
    found = []
    for value in range(8):
        step.assign(value)
        should_prune, sparsity = compiled()
        assert should_prune.dtype == tf.bool and sparsity.dtype == tf.float32
        found.append((bool(should_prune), float(sparsity)))
    turns = [turn for turn, _ in found]
    assert turns == [False, False, True, False, True, False, True, False]
    expected = [0.5 * (1 - CURVES["sigmoid"](min(max(s - 2, 0), 4) / 4)) for s in range(8)]
    np.testing.assert_allclose([sparsity for _, sparsity in found], expected, atol=1e-6)


def test_hard_pruning_is_a_jump():
    schedule = AnnealedFilterDecay(0.5, 3, 3)
    assert [schedule.decay_rate(step) for step in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [float(schedule(step)[1]) for step in range(5)] == [0.0, 0.0, 0.0, 0.5, 0.5]
    assert [bool(schedule(step)[0]) for step in range(5)] == [False, False, False, True, False]


def test_a_callable_that_does_not_end_at_zero_is_cut_there():
    schedule = AnnealedFilterDecay(0.5, 0, 4, anneal=lambda p: 1 - 0.5 * p)
    assert [schedule.decay_rate(step) for step in range(6)] == [1.0, 0.875, 0.75, 0.625, 0.0, 0.0]
    assert float(schedule(4)[1]) == 0.5


@pytest.mark.parametrize("anneal", ["linear", "sigmoid", "cosine", cubed])
def test_config_round_trip(anneal):
    schedule = AnnealedFilterDecay(0.3, 5, 9, 2, anneal, 0.7)
    config = schedule.get_config()
    assert set(config) == {"class_name", "config"}  # as tfmot's own schedules have it
    assert AnnealedFilterDecay.from_config(config) == schedule
    assert AnnealedFilterDecay.from_config(config["config"]) == schedule
    written = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(written) == schedule
    assert AnnealedFilterDecay(0.3, 5, 9, 2, anneal, 0.6) != schedule


def test_a_callable_must_be_registered_to_be_saved():
    schedule = AnnealedFilterDecay(0.3, 5, 9, anneal=lambda p: 1 - p)
    with pytest.raises(ValueError, match="register_keras_serializable"):
        schedule.get_config()


@pytest.mark.parametrize(("anneal", "suffix"), [("sigmoid", "keras"), (cubed, "h5")])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_inside_the_wrapper_of_tfmot(tmp_path, anneal, suffix):
    schedule = AnnealedFilterDecay(0.5, 0, 6, 2, anneal)
    base = keras.Sequential([keras.layers.Dense(8, input_shape=(4,)), keras.layers.Dense(2)])
    model = tfmot.sparsity.keras.prune_low_magnitude(base, schedule)
    model.compile("sgd", "mse")
    x, y = np.random.rand(32, 4), np.random.rand(32, 2)
    update = tfmot.sparsity.keras.UpdatePruningStep()
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[update])

    zeros = [np.mean(layer.layer.kernel.numpy() == 0) for layer in model.layers]
    assert zeros == [0.5, 0.5]  # step 6, the end, is one of the 8: the target is reached
    path = str(tmp_path / f"pruned.{suffix}")
    model.save(path)
    with tfmot.sparsity.keras.prune_scope():
        loaded = keras.models.load_model(path)
    assert [layer.pruning_schedule for layer in loaded.layers] == [schedule, schedule]
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_sparsity_in_the_wrapper_grows_with_the_curve():
    schedule = AnnealedFilterDecay(0.5, 0, 4, 1)
    layer = keras.layers.Dense(8, use_bias=False, input_shape=(4,))
    model = tfmot.sparsity.keras.prune_low_magnitude(keras.Sequential([layer]), schedule)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    zeros = []
    model.fit(
        np.ones((24, 4)),
        np.ones((24, 8)),
        batch_size=4,
        verbose=0,
        callbacks=[
            tfmot.sparsity.keras.UpdatePruningStep(),
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda *_: zeros.append(np.mean(layer.kernel.numpy() == 0))
            ),
        ],
    )
    # tfmot counts the step before it prunes: its first is 1.
    assert zeros == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


BAD = [
    ({"target_sparsity": 1.0}, ValueError, "target_sparsity"),
    ({"target_sparsity": -0.1}, ValueError, "target_sparsity"),
    ({"target_sparsity": "half"}, TypeError, "target_sparsity"),
    ({"begin_step": -1}, ValueError, "begin_step"),
    ({"begin_step": 1.5}, TypeError, "begin_step"),
    ({"begin_step": 5, "end_step": 4}, ValueError, "end_step"),
    ({"end_step": None}, TypeError, "end_step"),
    ({"frequency": 0}, ValueError, "frequency"),
    ({"initial_decay": 1.1}, ValueError, "initial_decay"),
    ({"anneal": "liner"}, ValueError, "Did you mean 'linear'"),
    ({"anneal": 3}, TypeError, "anneal"),
    ({"anneal": lambda p: p}, ValueError, "never rises"),
    ({"anneal": lambda p: 2 - p}, ValueError, r"\[0, 1\]"),
    ({"anneal": lambda p: float("nan")}, ValueError, r"\[0, 1\]"),
    ({"anneal": lambda p: None}, TypeError, "returns numbers"),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_arguments(changes, error, words):
    arguments = {"target_sparsity": 0.5, "begin_step": 0, "end_step": 10, **changes}
    with pytest.raises(error, match=words):
        AnnealedFilterDecay(**arguments)
